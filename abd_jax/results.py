"""results.json: what a finished run says of itself."""

import dataclasses
import importlib.metadata
import itertools
import json
import platform
import resource
import sys
from pathlib import Path
from typing import Any

import jax

from abd_jax import __version__, metrics, results_schema
from abd_jax import config as config_lib
from abd_jax.data.tasks import task_sizes
from abd_jax.errors import UserError
from abd_jax.files import write_whole
from abd_jax.written import path_of

_PLACES = ('workdir', 'data_dir', 'seeds', 'compilation_cache', 'upper_bound', 'tensorboard')


@dataclasses.dataclass(frozen=True)
class Results:
  """results.json. Accuracies are percentages on test images; see `metrics` for the definitions.

  `synthetic_confidence` is the teacher's mean confidence in a sample of synthetic images, for each task that had them;
  `class_names` are those of `class_order`; `by_task` has each task's seconds, and the memory held at its end and at
  most by then.
  """

  method: str
  dataset: str
  student: str
  num_tasks: int
  seed: int
  class_order: list
  accuracy_matrix: list
  accuracy_after_task: list
  accuracy_matrix_local: list
  top_k: int
  final_accuracy: float
  average_accuracy: float
  forgetting: float | None
  backward_transfer: float | None
  omega: float | None
  memory_held: dict
  seconds: dict
  steps_per_second: dict
  peak_memory_bytes: int
  device: str
  versions: dict
  config: dict
  synthetic_confidence: list = dataclasses.field(default_factory=list)
  class_names: list = dataclasses.field(default_factory=list)
  by_task: list = dataclasses.field(default_factory=list)

  @property
  def local_accuracy(self):
    """See `metrics.local_accuracy`."""
    return metrics.local_accuracy(self.accuracy_matrix_local)

  @property
  def seconds_per_batch(self):
    """Seconds a step of learning, over all tasks and phases; inversion, evaluation and compilation apart."""
    rate = self.steps_per_second['train']
    return 1 / rate if rate else None

  @property
  def classes_seen(self):
    """How many classes had been met after each task."""
    return list(itertools.accumulate(self.task_sizes))[: len(self.accuracy_after_task)]

  @property
  def task_sizes(self):
    """How many classes each task has, those not yet learned among them."""
    return task_sizes(len(self.class_order), self.num_tasks, self.config['first_task_classes'])

  def save(self, path):
    write_whole(path, json.dumps(dataclasses.asdict(self), indent=1) + '\n')

  @classmethod
  def load(cls, path):
    """Reads a results.json, or the one in a run's directory.

    Raises:
      UserError: there is none, or it is not one.
    """
    path = path_of(path)
    path = path / 'results.json' if path.is_dir() else path
    try:
      said = json.loads(path.read_text('utf-8'))
      if objection := results_schema.objection(said, dataclasses.fields(cls)):
        raise UserError(f'{path} is not a results.json: {objection}.')
      results = cls(**said)
      # An earlier version did not have every flag: its runs were made as the defaults now say.
      return dataclasses.replace(results, config=_flags_of(config_lib.Config()) | results.config)
    except OSError as error:
      raise UserError(f'{path} cannot be read: {error.strerror}.') from None
    except UserError:
      raise
    except (ValueError, RecursionError) as error:
      raise UserError(f'{path} is not a results.json: {error}.') from None


def runs_below(path):
  """The folders of finished runs at a path: itself, and whichever lie below, but for the folds of a sweep.

  Raises:
    UserError: there are none.
  """
  path = path_of(path)
  folders = sorted(file.parent for file in path.glob('**/results.json'))
  found = [folder for folder in folders if 'sweep' not in folder.relative_to(path).parts]
  if not found:
    raise UserError(f'{path} holds no results.json of a finished run.')
  return found


def _flags_of(config):
  """{flag: value} of what a run was told, where it read and wrote apart."""
  return {name: value for name, value in config_lib.as_dict(config).items() if name not in _PLACES}


def _rounded(seconds):
  return {name: round(value, 3) for name, value in seconds.items()}


def _square(rows):
  """Rows of growing length as a square, None above the diagonal."""
  return [row + [None] * (len(rows) - len(row)) for row in rows]


def peak_memory_bytes():
  """The most memory that the device, or on CPU this process with all its runs, has held so far."""
  statistics = jax.local_devices()[0].memory_stats()
  if statistics and 'peak_bytes_in_use' in statistics:
    return int(statistics['peak_bytes_in_use'])
  unit = 1 if sys.platform == 'darwin' else 1024
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def memory_bytes():
  """What the device, or on CPU this process with all its runs, holds now; 0 where the system does not say."""
  statistics = jax.local_devices()[0].memory_stats()
  if statistics and 'bytes_in_use' in statistics:
    return int(statistics['bytes_in_use'])
  try:
    return int(Path('/proc/self/statm').read_text().split()[1]) * resource.getpagesize()
  except OSError:
    return 0


def versions():
  """{name: version} of this package, of Python and of what a result depends on."""
  packages = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy')
  own = {'abd_jax': __version__, 'python': platform.python_version()}
  return {**own, **{name: importlib.metadata.version(name) for name in packages}}


def make_results(config, dataset, tasks, record, memory_held) -> Results:
  """The results of a run after one task or more, from what its record has measured."""
  rates: dict[str, Any] = {
      kind: float(f'{count / record.seconds[kind]:.5g}') if count else None
      for kind, count in record.steps.items()
  }
  # As the paper counts what replay costs: every channel of every pixel, beside the parameters.
  height, width, channels = tasks.image_shape
  memory_held = {**memory_held, 'image_values': memory_held['images'] * height * width * channels}
  return Results(
      method=config.method,
      dataset=dataset.name,
      student=config.student,
      num_tasks=config.num_tasks,
      seed=config.seed,
      class_order=tasks.order,
      accuracy_matrix=_square(record.accuracy_matrix),
      accuracy_after_task=record.accuracy_after_task,
      accuracy_matrix_local=_square(record.accuracy_matrix_local),
      top_k=config.top_k,
      final_accuracy=metrics.final_accuracy(record.accuracy_after_task),
      average_accuracy=metrics.average_accuracy(record.accuracy_after_task),
      forgetting=metrics.forgetting(record.accuracy_matrix),
      backward_transfer=metrics.backward_transfer(record.accuracy_matrix),
      omega=None,
      memory_held=memory_held,
      seconds=_rounded(record.seconds),
      steps_per_second=rates,
      peak_memory_bytes=record.peak_memory_bytes,
      device=jax.devices()[0].device_kind,
      versions=versions(),
      config=_flags_of(config),
      synthetic_confidence=record.synthetic_confidence,
      class_names=[str(dataset.class_names[index]) for index in tasks.order],
      by_task=[{**task, 'seconds': _rounded(task['seconds'])} for task in record.by_task],
  )
