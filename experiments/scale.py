"""Does a task take longer, or more memory, when many came before it? Runs of 5, 20 and 50 tasks on small random images.

  python experiments/scale.py --json=scale.json

What may grow is the evaluation, which asks for all classes seen, and the head, which has them all from the start. Each
run has a process of its own.
"""

import json
import multiprocessing
import statistics
import tempfile

import numpy as np
from absl import flags

from abd_jax import config, experiment, train
from abd_jax.data import Dataset
from abd_jax.files import check_writable, write_whole
from abd_jax.results import versions

JSON = flags.DEFINE_string('json', '', 'where the figures go')
TASKS = flags.DEFINE_list('tasks', ['5', '20', '50'], 'how many tasks the runs have, of two classes each')


def random_dataset(num_classes, train_per_class=64, test_per_class=8):
  rng = np.random.default_rng(0)
  images, labels = [], []
  for count in (train_per_class, test_per_class):
    images.append(rng.integers(0, 256, (num_classes * count, 8, 8, 1), np.uint8))
    labels.append(np.repeat(np.arange(num_classes, dtype=np.int32), count))
  names = tuple(map(str, range(num_classes)))
  return Dataset('random', images[0], labels[0], images[1], labels[1], names, (0.5,), (0.25,))


def measure(settings, num_tasks):
  """What the tasks of a run take: the median of ten after the second, in which all is compiled, and of the last ten.

  `memory_bytes` is what is held after each task, all that came before the run included.
  """
  settings = config.with_values(settings, {'num_tasks': num_tasks})
  with tempfile.TemporaryDirectory() as workdir:
    results = train.run(settings, workdir, random_dataset(2 * num_tasks))
  found = {'tasks': num_tasks, 'parameters': results.memory_held['parameters']}
  early, late = results.by_task[2:12], results.by_task[-min(10, num_tasks - 2):]
  for kind in ('inversion', 'train', 'eval'):
    for name, part in (('early', early), ('late', late)):
      found[f'{kind}_seconds_{name}'] = statistics.median(task['seconds'][kind] for task in part)
  found['memory_bytes'] = [task['memory_bytes'] for task in results.by_task]
  return found


def main(settings):
  place, found = check_writable(JSON.value, '--json='), []
  for count in map(int, TASKS.value):
    with multiprocessing.get_context('spawn').Pool(1) as process:
      found.append(process.apply(measure, (settings, count)))
    print(json.dumps(found[-1]), flush=True)
  if place:
    said = {'versions': versions(), 'config': config.as_dict(settings), 'runs': found}
    write_whole(place, json.dumps(said, indent=1) + '\n')


if __name__ == '__main__':
  small = dict(student='resnet8', batch_size=32, epochs=10, decay_at=(), inversion_steps=40, color_jitter=False)
  experiment.launch(config.with_values(config.Config(), small), main)
