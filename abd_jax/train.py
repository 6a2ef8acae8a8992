"""The training of one method: what it may begin from, where it writes, and what has to be closed after it."""

import contextlib
import dataclasses

import numpy as np

from abd_jax import processes
from abd_jax.checkpoint import Checkpoints
from abd_jax.data import TaskSequence, load
from abd_jax.data.streams import Streams
from abd_jax.errors import UserError
from abd_jax.methods import METHODS
from abd_jax.metrics_log import MetricsLog
from abd_jax.models import generator_for, make_generator
from abd_jax.networks import check_head, networks_for
from abd_jax.parallel import devices
from abd_jax.programs import inversion_batch, programs_for
from abd_jax.progress import Progress
from abd_jax.stopping import StopSignal
from abd_jax.task_loop import Run
from abd_jax.tensorboard import EventFiles
from abd_jax.workdir import check_workdir, claim_workdir, hold_workdir
from abd_jax.written import path_of


def run(config, workdir, dataset=None, stop=None, programs=None):
  """Trains one method on one sequence of tasks, or goes on where such a run stopped.

  Args:
    config: a `config.Config` of one method.
    workdir: where flags.txt, metrics.jsonl, results.json, pictures and checkpoints go.
    dataset: a `data.Dataset`, when it is not to be loaded as `config` says.
    stop: the caller's `stopping.StopSignal`, when it listens for SIGTERM itself.
    programs: the `programs.Programs` to be used, when they are not the run's own.

  Returns:
    The `results.Results`, as in results.json.

  Raises:
    UserError: something the user can mend, before anything is trained.
    NotFinite: training went astray, and may not be rolled back or was too often.
    Preempted: SIGTERM came; everything is saved.
  """
  if config.seeds:
    raise UserError('--seeds is of several runs, and this is one: `experiment.run_all` makes a run of each.')
  dataset = dataset or load(config.dataset, config.data_dir, config.verify_checksum)
  config = dataclasses.replace(config, dataset=dataset.name, workdir=str(workdir), distributed='')
  tasks = tasks_for(config, dataset)
  label = f'{config.method} seed {config.seed}'
  with _opened(config, workdir, dataset, tasks, stop, label, config.num_tasks, programs) as opened:
    return opened.execute()


def learn_task(config, workdir, dataset, tasks, task, student, stop=None):
  """Teaches one task to a classifier, whatever taught it the ones before: what a `learner` does again and again.

  Args:
    config, workdir: as in `run`; the workdir is of this task alone, and a lesson stopped there goes on.
    dataset: the class names, mean and std.
    tasks: what `run` asks of a `TaskSequence`, for this task.
    task: its number, counted from 0: so many were learned before.
    student: the `states.StudentState` that they left, None for the first.
    stop: as in `run`.

  Returns:
    The student with the task learned.

  Raises:
    UserError: the workdir is another lesson's.
    Preempted: SIGTERM came; everything is saved.
  """
  with _opened(config, workdir, dataset, tasks, stop, config.method, task + 1) as opened:
    return opened.lesson(task, student)


@contextlib.contextmanager
def _opened(config, workdir, dataset, tasks, stop, label, num_tasks, programs=None):
  """A `Run` in a workdir that is its own, with what has to be closed after it."""
  workdir = path_of(workdir)
  with (
      contextlib.ExitStack() as held,
      contextlib.nullcontext(stop) if stop else StopSignal() as stop,
      contextlib.closing(Progress(label, num_tasks)) as progress,
  ):
    processes.on_first(lambda: _claim(config, workdir, held))
    checkpoints = held.enter_context(contextlib.closing(Checkpoints(workdir, config.checkpoint_seconds)))
    held.enter_context(stop.after(checkpoints.wait_alone))
    log = held.enter_context(contextlib.closing(MetricsLog(workdir / 'metrics.jsonl', *_mirrors(config, workdir))))
    programs = programs or programs_for(config, tasks, dataset)
    yield Run(config, workdir, dataset, tasks, programs, checkpoints, log, stop, progress)


def _claim(config, workdir, held):
  """Makes the workdir this run's, for as long as `held` is open."""
  # Before it is held, since that leaves a file; and by `claim_workdir` after, since another may have come between.
  check_workdir(config, workdir)
  held.enter_context(hold_workdir(workdir))
  claim_workdir(config, workdir)


def _mirrors(config, workdir):
  """What `MetricsLog` is mirrored by; of several processes the first one has it."""
  events = processes.on_first(lambda: EventFiles(workdir)) if config.tensorboard else None
  return [events] if events else []


def tasks_for(config, dataset):
  """The `TaskSequence` of a run, once all is known to fit.

  Raises:
    UserError: the config does not fit the data set, or names several methods.
  """
  if config.method not in METHODS:
    raise UserError(f'--method={config.method}: a run has one method.')
  tasks, method = TaskSequence.of(config, dataset), METHODS[config.method]
  _check_batches(config, method)
  _check_images(config, method, dataset, tasks)
  _check_networks(config, method, dataset, tasks)
  if 1 < config.top_k and tasks.num_classes <= config.top_k:
    raise UserError(f'--top_k={config.top_k} of {tasks.num_classes} classes: every answer would be right.')
  return tasks


def _check_batches(config, method):
  sizes = {'batch_size': config.optimisation.batch_size}
  if method.dreams and config.parallel == 'pmap':
    sizes['inversion_batch_size'] = inversion_batch(config)
  for flag, size in sizes.items():
    if size % len(devices()):
      raise UserError(f'--{flag}={size} cannot be split evenly over {len(devices())} devices.')


def _check_images(config, method, dataset, tasks):
  images_of = np.bincount(dataset.train_labels, minlength=dataset.num_classes)
  if empty := [dataset.class_names[label] for label in tasks.order if not images_of[label]]:
    raise UserError(f'{dataset.name} has no training image of {", ".join(empty)}: leave that class out, or add some.')
  Streams(tasks, method, config.memory, config.seed).check(config.optimisation.batch_size, len(devices()))
  if not all(tasks.test_sizes()):
    raise UserError(f'{dataset.name} has no test images of task {int(np.argmin(tasks.test_sizes())) + 1}.')


def _check_networks(config, method, dataset, tasks):
  networks = networks_for(config, tasks, dataset)
  check_head(method, config.student, networks.classifier)
  try:
    networks.make_init_own()
  except ValueError as error:
    raise UserError(f'--method={method.name}: {error}. Choose another --image_size.') from None
  if networks.generator:
    try:
      make_generator(networks.generator, tasks.image_shape)
    except ValueError as error:
      name = generator_for(networks.generator, tasks.image_shape)
      raise UserError(f'--generator={name}: {error}. Choose another, or another --image_size.') from None
