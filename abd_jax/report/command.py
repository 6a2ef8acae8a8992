"""What runs have come to, from the shell.

  python -m abd_jax.report runs/cifar100_10
  python -m abd_jax.report runs/cifar100_10 --html=report.html

prints a table a benchmark: mean and standard deviation over the seeds found, in the paper's order, beside what the
literature reports. Runs of --method=upper_bound among them give the others' Omega. The page is one file that shows all
that is known of the runs.
"""

import argparse
import dataclasses
import sys

from abd_jax import plugins
from abd_jax.errors import UserError
from abd_jax.files import write_whole
from abd_jax.report import pages, tables, upper_bounds
from abd_jax.results import Results, runs_below
from abd_jax.written import path_of

FORMATS = {'markdown': tables.markdown, 'latex': tables.latex, 'csv': tables.to_csv}


def _load_all(path):
  """The `pages.Run`s at a path: a file, a run's directory, or a directory with <method>/seed<k>/ somewhere below.

  Raises:
    UserError: there are none.
  """
  path = path_of(path)
  if not path.is_dir():
    # Without the run's flags beside it a results.json was kept apart from the rest.
    return [pages.Run(Results.load(path), path.parent if (path.parent / 'flags.txt').exists() else None)]
  return [pages.Run(Results.load(folder), folder) for folder in runs_below(path)]


def _metrics(text):
  """The names in a list with commas between, or all of them."""
  names = tuple(tables.METRICS) if text == 'all' else tuple(text.split(','))
  if unknown := [name for name in names if name not in tables.METRICS]:
    raise UserError(f'--metrics={text}: {unknown[0]} is not one of all, {", ".join(tables.METRICS)}.')
  return names


def _with_omega(runs):
  """The runs against the upper bounds among them, where they have no Omega yet."""
  bounds = [run.results for run in runs if run.results.method == 'upper_bound']
  return [
      run if run.results.omega is not None
      else dataclasses.replace(run, results=upper_bounds.with_omega(run.results, bounds))
      for run in runs
  ]


def main(arguments):
  parser = argparse.ArgumentParser(
      'python -m abd_jax.report', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('runs', nargs='+', metavar='RUN', help='a results.json, or a folder of finished runs')
  parser.add_argument('--format', choices=FORMATS, default='markdown')
  parser.add_argument('--metrics', metavar='NAME,...', help=f'columns: all, or some of {", ".join(tables.METRICS)}')
  parser.add_argument('--html', metavar='FILE', help='where a page of the runs is written, beside what is printed')
  parser.add_argument('--plugin', metavar='FILE', action='append', default=[], help='a file of methods of your own')
  told = parser.parse_args(arguments)
  try:
    for path in told.plugin:
      plugins.load(path)
    chosen = {'metrics': _metrics(told.metrics)} if told.metrics else {}
    runs = _with_omega([run for path in told.runs for run in _load_all(path)])
    print(FORMATS[told.format](tables.collate([run.results for run in runs]), **chosen), end='')
    if told.html:
      write_whole(path_of(told.html, '--html='), pages.page(runs))
  except UserError as error:
    print(error, file=sys.stderr)
    return 2
  return 0
