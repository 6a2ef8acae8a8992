"""The authors' PyTorch steps (GT-RIPL/AlwaysBeDreaming-DFCIL), made when asked: the other side of `timing.Authors`.

  python -m abd_jax.benchmark.authors CHECKOUT BATCH_SIZE

A line '<step> <count>' on standard input is answered by 'answer <seconds a step>'. Needs a PyTorch of the user's; what
the checkout's code expects of CUDA is neutralised where there is none.
"""

import copy
import sys
import time


def _without_cuda(torch):
  """Lets code that says .cuda() everywhere run on a CPU."""
  stay = lambda self, *args, **kwargs: self
  torch.Tensor.cuda = torch.nn.Module.cuda = stay
  torch.cuda.synchronize = lambda *args, **kwargs: None


def make_steps(torch, batch):
  """{step: callable}, each as the training loop of the checkout makes it, its data already on the device."""
  from learners.datafree import AlwaysBeDreaming
  from learners.datafree_helper import Teacher

  on_gpu = torch.cuda.is_available()
  learner = AlwaysBeDreaming({
      'num_classes': 100, 'lr': 0.1, 'momentum': 0.9, 'weight_decay': 2e-4, 'schedule': [250], 'schedule_type': 'decay',
      'model_type': 'resnet', 'model_name': 'resnet32', 'gen_model_type': 'generator', 'gen_model_name': 'CIFAR_GEN',
      'optimizer': 'SGD', 'gpuid': [0 if on_gpu else -1], 'memory': 0, 'temp': 2.0, 'out_dim': 100, 'overwrite': True,
      'beta': 1, 'mu': 0.1, 'DW': False, 'batch_size': batch, 'power_iters': 1,
      'deep_inv_params': [1e-3, 5e1, 1e-3, 1e3, 1],
      'tasks': [list(range(10 * task, 10 * task + 10)) for task in range(10)], 'top_k': 1,
  })
  device = 'cuda' if on_gpu else 'cpu'
  images = torch.randn(batch, 3, 32, 32, device=device)
  learner.dw_k = torch.ones(101, device=device)  # no weighting by class counts

  def learn():
    learner.model.train()
    learner.inversion_replay, learner.last_valid_out_dim, learner.valid_out_dim = False, 0, 10
    learner.update_model(images, torch.randint(0, 10, (batch,), device=device), None)

  def train_generator():
    teacher.generator.train()
    teacher.get_images(bs=batch, epochs=1)

  def learn_with_dreams():
    learner.model.train()
    learner.inversion_replay, learner.last_valid_out_dim, learner.valid_out_dim = True, 10, 20
    labels = torch.randint(10, 20, (batch,), device=device)
    dreamed, choice, scores = learner.sample(teacher, batch, device)
    wanted = teacher.generate_scores(images, allowed_predictions=list(range(10)))
    _, wanted = learner.combine_data(((images, wanted), (dreamed, scores)))
    both, labels = learner.combine_data(((images, labels), (dreamed, choice)))
    learner.update_model(both, labels, wanted)

  learn()
  teacher = Teacher(
      solver=copy.deepcopy(learner.model), generator=learner.generator, gen_opt=learner.generator_optimizer,
      img_shape=(-1, 3, 32, 32), iters=1, deep_inv_params=learner.deep_inv_params, class_idx=list(range(10)),
      train=False, config=learner.config,
  )
  learner.previous_teacher, learner.previous_linear = teacher, copy.deepcopy(learner.model.last)
  return {'first': learn, 'abd': learn_with_dreams, 'generator': train_generator}


def main(arguments):
  checkout, batch = arguments
  sys.path.insert(0, checkout)
  try:
    import torch
  except ImportError:
    print('--against needs PyTorch in this environment; there is none.', flush=True)
    return 2
  if not torch.cuda.is_available():
    _without_cuda(torch)
  # Each call of their inversion frees the cache twice: in training once in thousands of steps, here it would be each.
  torch.cuda.empty_cache = lambda: None
  steps = make_steps(torch, int(batch))
  place = torch.cuda.get_device_name() if torch.cuda.is_available() else f'{torch.get_num_threads()} CPU threads'
  print(f'answer the authors\' code, PyTorch {torch.__version__} on {place}', flush=True)
  for line in sys.stdin:
    name, count = line.split()
    torch.cuda.synchronize()
    since = time.perf_counter()
    for _ in range(int(count)):
      steps[name]()
    torch.cuda.synchronize()
    print('answer', (time.perf_counter() - since) / int(count), flush=True)
  return 0


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
