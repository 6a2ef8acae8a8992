"""What a run leaves behind: results.json, tables over runs, pictures.

  python -m abd_jax.report RUN_DIR_OR_RESULTS_JSON...

prints a Markdown table, mean and standard deviation over the seeds found.
"""

import dataclasses
import importlib.metadata
import json
import platform
import resource
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from abd_jax import __version__, metrics
from abd_jax import config as config_lib
from abd_jax.checkpoint import write_whole
from abd_jax.errors import UserError


_PLACES = ('workdir', 'data_dir', 'seeds', 'compilation_cache')


@dataclasses.dataclass(frozen=True)
class Results:
  """results.json. Accuracies are percentages on test images; see `metrics` for the definitions."""

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

  def save(self, path):
    write_whole(path, json.dumps(dataclasses.asdict(self), indent=1) + '\n')

  @classmethod
  def load(cls, path):
    """Reads a results.json, or the one in a run's directory.

    Raises:
      UserError: there is none, or it is not one.
    """
    path = Path(path)
    path = path / 'results.json' if path.is_dir() else path
    try:
      results = cls(**json.loads(path.read_text()))
      # An earlier version did not have every flag: its runs were made as the defaults now say.
      return dataclasses.replace(results, config=_flags_of(config_lib.Config()) | results.config)
    except OSError as error:
      raise UserError(f'{path} cannot be read: {error.strerror}.') from None
    except (ValueError, TypeError) as error:
      raise UserError(f'{path} is not a results.json: {error}.') from None


def _flags_of(config):
  """{flag: value} of what a run was told, where it read and wrote apart."""
  return {name: value for name, value in config_lib.as_dict(config).items() if name not in _PLACES}


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


def make_results(config, dataset, tasks, record, memory_held) -> Results:
  """The results of a finished run, from what its record has measured."""
  seconds = {name: round(value, 3) for name, value in record.seconds.items()}
  rates: dict[str, Any] = {
      kind: round(count / record.seconds[kind], 3) if count else None
      for kind, count in record.steps.items()
  }
  packages = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy')
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
      top_k=1,
      final_accuracy=record.accuracy_after_task[-1],
      average_accuracy=metrics.average_accuracy(record.accuracy_after_task),
      forgetting=metrics.forgetting(record.accuracy_matrix),
      backward_transfer=metrics.backward_transfer(record.accuracy_matrix),
      omega=None,
      memory_held=memory_held,
      seconds=seconds,
      steps_per_second=rates,
      peak_memory_bytes=record.peak_memory_bytes,
      device=jax.devices()[0].device_kind,
      versions={'abd_jax': __version__, 'python': platform.python_version(), **{name: importlib.metadata.version(name) for name in packages}},
      config=_flags_of(config),
  )


def benchmark_of(results):
  """What two runs must share to stand in one table: the class count may be a part of the data set's."""
  return results.dataset, len(results.class_order), results.num_tasks, results.student, len(results.accuracy_after_task)


def by_row(all_results):
  """{(benchmark, method, switches): [Results]}: runs that differ in the seed alone, in the order first met."""
  rows = {}
  for results in all_results:
    switches = json.dumps({k: v for k, v in results.config.items() if k not in ('seed', *_OPERATIONAL)}, sort_keys=True)
    rows.setdefault((benchmark_of(results), results.method, switches), []).append(results)
  return rows


_OPERATIONAL = ('checkpoint_seconds', 'resume', 'steps_per_call', 'verify_checksum', 'stop_after_task')


def _mean_and_spread(values, digits=1):
  """'mean ± population standard deviation', or the one value."""
  mean = f'{np.mean(values):.{digits}f}'
  return mean if len(values) == 1 else f'{mean} ± {np.std(values):.{digits}f}'


def _switches(results, reference):
  """How a run's flags differ from the first run's of its table, method and seed apart."""
  skip = ('seed', 'method', *_OPERATIONAL)
  return ', '.join(
      f'--{name}={value}' for name, value in results.config.items()
      if name not in skip and value != reference.config.get(name)
  )


def markdown_table(all_results):
  """One Markdown table a benchmark: final and average accuracy, forgetting, minutes; mean ± std over the seeds."""
  tables = {}
  for (benchmark, method, _), runs in by_row(all_results).items():
    tables.setdefault(benchmark, []).append((method, runs))
  text = ''
  for (dataset, classes, tasks, student, learned), rows in tables.items():
    part = '' if learned == tasks else f', stopped after task {learned}'
    text += f'**{dataset}**, {classes} classes in {tasks} tasks, {student}{part}\n\n'
    text += '| method | seeds | final accuracy A_N % | average accuracy % | forgetting | minutes a run |\n'
    text += '|---|---|---|---|---|---|\n'
    for method, runs in rows:
      switches = _switches(runs[0], rows[0][1][0])
      forgotten = [r.forgetting for r in runs if r.forgetting is not None]
      cells = [
          method + (f' ({switches})' if switches else ''),
          ', '.join(str(r.seed) for r in sorted(runs, key=lambda r: r.seed)),
          _mean_and_spread([r.final_accuracy for r in runs]),
          _mean_and_spread([r.average_accuracy for r in runs]),
          _mean_and_spread(forgotten) if forgotten else '',
          f'{np.mean([r.seconds["total"] for r in runs]) / 60:.1f}',
      ]
      text += '| ' + ' | '.join(cells) + ' |\n'
    text += '\n'
  return text


def save_image_grid(path, images_NHWC, names, confidences):
  """A picture of uint8 images, each under the teacher's name for it and its confidence in %."""
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  columns = 10
  rows = -(-len(images_NHWC) // columns)
  figure = Figure(figsize=(columns, 1.25 * rows))
  FigureCanvasAgg(figure)
  # All on one pair of axes, a unit a cell: axes of their own would take forty times as long to draw.
  axes = figure.add_axes((0, 0, 1, 1), xlim=(0, columns), ylim=(1.25 * rows, 0))
  axes.set_axis_off()
  for i, (image, name, confidence) in enumerate(zip(images_NHWC, names, confidences, strict=True)):
    row, column = divmod(i, columns)
    left, top = column + 0.04, 1.25 * row + 0.25
    # Colour where there are three channels, else their mean.
    pixels = image if image.shape[-1] == 3 else image.mean(axis=-1)
    axes.imshow(pixels, cmap='gray', vmin=0, vmax=255, extent=(left, left + 0.92, top + 0.92, top), aspect='auto')
    axes.text(column + 0.5, top - 0.05, f'{name} {100 * confidence:.0f} %', fontsize=7, ha='center', parse_math=False)
  axes.set(xlim=(0, columns), ylim=(1.25 * rows, 0))
  figure.savefig(path, dpi=100)


def main(arguments):
  if not arguments or arguments[0] in ('-h', '--help'):
    print(__doc__)
    return 0 if arguments else 2
  try:
    print(markdown_table([Results.load(path) for path in arguments]), end='')
  except UserError as error:
    print(error, file=sys.stderr)
    return 2
  return 0


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
