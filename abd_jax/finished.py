"""What a finished run has left: its classifier, the teacher and the generator of its last task, its data."""

import dataclasses
import functools
import math
from pathlib import Path
from typing import Any

import flax
import jax
import numpy as np

from abd_jax import checkpoint, states
from abd_jax import config as config_lib
from abd_jax.addresses import Address, key_at
from abd_jax.data import TaskSequence, load
from abd_jax.errors import UserError
from abd_jax.methods import METHODS
from abd_jax.metrics_log import MetricsLog
from abd_jax.networks import networks_for
from abd_jax.parallel import compile_step
from abd_jax.programs import EVAL_BATCH, synthesis
from abd_jax.results import Results
from abd_jax.written import path_of


@dataclasses.dataclass(frozen=True)
class FinishedRun:
  """What a finished run has left.

  Attributes:
    config: its `config.Config`.
    flags: {flag: value} of it, as results.json has them.
    workdir: its folder.
    dataset, tasks: what it learned from, as a `data.Dataset` and a `TaskSequence`.
    last: the number of the last task learned, from 0; there is one before.
    student, teacher: `states.TeacherState`s; the teacher is None for a method without.
    generator: what it dreamed with in the last task, or None.
    lines: of metrics.jsonl.
  """

  config: config_lib.Config
  flags: dict
  workdir: Path
  dataset: Any
  tasks: TaskSequence
  last: int
  student: states.TeacherState
  teacher: states.TeacherState | None
  generator: Any
  lines: list

  @property
  def method(self):
    return METHODS[self.config.method]

  @property
  def networks(self):
    """As one device needs them."""
    return dataclasses.replace(networks_for(self.config, self.tasks, self.dataset), axis=None)

  @property
  def class_names(self):
    """By class position."""
    return [self.dataset.class_names[label] for label in self.tasks.order]


def read_run(workdir, data_dir=''):
  """The `FinishedRun` in a folder.

  Args:
    workdir: where `train.run` wrote.
    data_dir: in the place of the run's own, where it is not empty.

  Raises:
    UserError: there is no finished run of two tasks or more.
  """
  workdir = path_of(workdir)
  results = Results.load(workdir / 'results.json')
  config = config_lib.from_flagfile(workdir / 'flags.txt')
  last = len(results.accuracy_after_task) - 1
  if not last:
    raise UserError(f'{workdir} has learned one task: a diagnosis needs old classes and new ones.')
  end, during = None, {}
  for record, held in checkpoint.saved(workdir):
    end = end or (record, held)
    if record['task'] == last and 'teacher' in held:
      during = held
      break
  if (end[0]['task'], end[0]['phase'], end[0]['step']) != (last + 1, 0, 0):
    raise UserError(f'{workdir} holds a run that goes on beyond its results.json: let it finish first.')
  dataset = load(config.dataset, data_dir or config.data_dir, config.verify_checksum)
  if end[0].get('data', dataset.digest) != dataset.digest:
    raise UserError(f'{workdir} learned from another {dataset.name} than the one that is there now.')
  tasks = TaskSequence.of(config, dataset)
  _check_network(workdir, end[1]['student'], networks_for(config, tasks, dataset))
  frozen = lambda state: states.TeacherState(state['params'], state['batch_stats'])
  generator = during.get('generator')
  if generator is not None and config.inversion.inversion == 'images':
    generator = states.ImageSetState(generator['images'], None)
  elif generator is not None:
    generator = states.GeneratorState(generator['params'], generator['batch_stats'], None)
  lines = MetricsLog(workdir / 'metrics.jsonl').read()
  teacher = frozen(during['teacher']) if during else None
  student = frozen(end[1]['student'])
  return FinishedRun(config, results.config, workdir, dataset, tasks, last, student, teacher, generator, lines)


def _check_network(workdir, student, networks):
  """Refuses a checkpoint whose weights are not of the network that the flags name."""
  init = functools.partial(networks.classifier.init, train=False)
  like = jax.eval_shape(init, jax.random.key(0), np.zeros((1, *networks.image_shape), np.float32))
  shapes = lambda tree: {'/'.join(path): leaf.shape for path, leaf in flax.traverse_util.flatten_dict(tree).items()}
  for part in ('params', 'batch_stats'):
    found, named = shapes(student[part]), shapes(like[part])
    if any(found.get(name) != shape for name, shape in named.items()):
      raise UserError(f'{workdir}: flags.txt names --student={networks.student}, and the checkpoints hold another.')


def synthetic_images(run, count):
  """Images as the last task's student saw them: f32[count, H, W, C] in the classifier's pixel space, None for a method
  without, and where a run's folder no longer holds the teacher.
  """
  replays = any(phase.replays for phase in run.method.later)
  if run.teacher is None or not (run.method.dreams or replays):
    return None
  of_images = run.config.inversion if run.config.inversion.inversion == 'images' else None
  draw, dream = synthesis(run.networks, run.method.dreams, replays, of_images)
  sample = compile_step(lambda generator, teacher, place: dream(generator, teacher, draw(key_at(place), EVAL_BATCH)))
  images = []
  for i in range(math.ceil(count / EVAL_BATCH)):
    place = np.array([run.config.seed, run.last, Address.PREVIEW, 1 + i], np.int32)  # 0 is the run's own picture
    images.append(np.asarray(sample(run.generator, run.teacher, place)))
  return np.concatenate(images)[:count]
