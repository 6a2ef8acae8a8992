"""What runs have come to, from the shell; and their pictures.

  python -m abd_jax.report runs/cifar100_10

prints a table a benchmark: mean and standard deviation over the seeds found, in the paper's order, beside what the
literature reports. Runs of --method=upper_bound among them give the others' Omega.
"""

import argparse
import sys
from pathlib import Path

from abd_jax import tables, upper_bounds
from abd_jax.errors import UserError
from abd_jax.results import Results

FORMATS = {'markdown': tables.markdown, 'latex': tables.latex, 'csv': tables.to_csv}


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


def _load_all(path):
  """The results at a path: a file, a run's directory, or a directory with <method>/seed<k>/ somewhere below.

  Raises:
    UserError: there are none.
  """
  path = Path(path).expanduser()
  if not path.is_dir() or (path / 'results.json').exists():
    return [Results.load(path)]
  found = sorted(path.glob('**/seed*/results.json'))
  if not found:
    raise UserError(f'{path} holds no results.json of a finished run.')
  return [Results.load(file) for file in found]


def _metrics(text):
  """The names in a list with commas between, or all of them."""
  names = tuple(tables.METRICS) if text == 'all' else tuple(text.split(','))
  if unknown := [name for name in names if name not in tables.METRICS]:
    raise UserError(f'--metrics={text}: {unknown[0]} is not one of all, {", ".join(tables.METRICS)}.')
  return names


def main(arguments):
  parser = argparse.ArgumentParser(
      'python -m abd_jax.report', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('runs', nargs='+', metavar='RUN', help='a results.json, or a folder of finished runs')
  parser.add_argument('--format', choices=FORMATS, default='markdown')
  parser.add_argument('--metrics', metavar='NAME,...', help=f'columns: all, or some of {", ".join(tables.METRICS)}')
  told = parser.parse_args(arguments)
  try:
    chosen = {'metrics': _metrics(told.metrics)} if told.metrics else {}
    results = [results for path in told.runs for results in _load_all(path)]
    bounds = [r for r in results if r.method == 'upper_bound']
    results = [upper_bounds.with_omega(r, bounds) if r.omega is None else r for r in results]
    print(FORMATS[told.format](tables.collate(results), **chosen), end='')
  except UserError as error:
    print(error, file=sys.stderr)
    return 2
  return 0


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
