"""What ABD on the paper's benchmarks takes on a machine, from the steps that `experiments/benchmark.py` timed there.

A run's time is that of its steps; evaluation and compilation are little beside them. Networks and image sizes that were
not timed are taken to reach as many operations a second as the ones that were.
"""

import dataclasses
import json

from abd_jax.benchmark.hot_steps import STEPS
from abd_jax.benchmark.operations import step_flops
from abd_jax.config import Config
from abd_jax.data.tasks import task_sizes
from abd_jax.errors import UserError
from abd_jax.programs import inversion_steps
from abd_jax.written import is_line, is_of, path_of, shown


@dataclasses.dataclass(frozen=True)
class Size:
  """A data set, as far as the steps of a run depend on it: its images' side in pixels, classes, training images."""

  side: int
  classes: int
  images: int


SIZES = {
    'cifar100': Size(32, 100, 50000),
    'tiny_imagenet': Size(64, 200, 100000),
    'imagenet': Size(224, 1000, 1281167),
}


def steps_of(config: Config) -> dict[str, int]:
  """{'first', 'abd', 'generator'}: steps of a run of ABD in its first task, in the later ones, and of the inversion."""
  size = SIZES[config.dataset]
  sizes = task_sizes(config.num_classes or size.classes, config.num_tasks, config.first_task_classes)
  first, *later = (
      classes * size.images // size.classes // config.optimisation.batch_size * config.optimisation.epochs
      for classes in sizes
  )
  return {'first': first, 'abd': sum(later), 'generator': len(later) * inversion_steps(config)}


def flops_of(config: Config) -> dict[str, int]:
  """The operations of a run's steps of each kind, a backward pass counted as two forward ones."""
  side = SIZES[config.dataset].side
  a_step = step_flops(dataclasses.replace(config, image_size=side, num_classes=0, num_tasks=10, first_task_classes=0))
  return {name: count * a_step[name] for name, count in steps_of(config).items()}


def seconds_of(config: Config, found: dict) -> float:
  """Seconds of a run, where `found` is what `timing.run` found on the machine."""
  reached = {row['step']: row['flops_per_second'] for row in found['steps']}
  return sum(count / reached[name] for name, count in flops_of(config).items())


def read(path):
  """What `timing.run` found, from the file where `experiments/benchmark.py --json` put it.

  Raises:
    UserError: it cannot be read, or is another file.
  """
  path = path_of(path, '--benchmark=')
  try:
    found = json.loads(path.read_text('utf-8'))
  except OSError as error:
    raise UserError(f'--benchmark={shown(path)} cannot be read: {error.strerror}.') from None
  except (ValueError, RecursionError):
    found = None
  if not _is_found(found):
    raise UserError(f'--benchmark={shown(path)} is not what experiments/benchmark.py --json=FILE writes.')
  return found


def _is_found(found):
  """Whether a JSON value has all that is read of what `timing.run` found."""
  if not isinstance(found, dict) or not isinstance(found.get('steps'), list):
    return False
  texts = all(is_of(found.get(name), str) and is_line(found[name]) for name in ('ours', 'device', 'student'))
  counts = all(is_of(found.get(name), int) for name in ('image_size', 'batch_size'))
  reached = {str(row.get('step')): row.get('flops_per_second') for row in found['steps'] if isinstance(row, dict)}
  rates = all(is_of(reached.get(name), float) and 1 <= reached[name] < 1e300 for name in STEPS)
  return texts and counts and rates and len(reached) == len(found['steps'])


def markdown(configs: dict[str, Config], found: dict) -> str:
  """A table of the runs, by the names they are given.

  Raises:
    UserError: a run is not of ABD on one of the benchmarks.
  """
  lines = [
      f'Hours by {found["ours"]} on {found["device"]} ({found["student"]}, {found["image_size"]} pixels, batch'
      f' {found["batch_size"]} were timed):\n',
      '| one seed of | steps, first task | steps, later tasks | steps of inversion | operations | hours |',
      '|---|---|---|---|---|---|',
  ]
  for name, config in configs.items():
    if config.dataset not in SIZES or config.method != 'abd':
      raise UserError(f'{name} is not a run of abd on one of {", ".join(SIZES)}.')
    counts = ' | '.join(f'{steps_of(config)[step]:,}' for step in STEPS)
    operations = sum(flops_of(config).values())
    lines.append(f'| {name} | {counts} | {operations:.1e} | {seconds_of(config, found) / 3600:,.1f} |')
  return '\n'.join(lines) + '\n'
