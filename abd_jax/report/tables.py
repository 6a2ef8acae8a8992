"""Tables over runs: rows in the paper's order, beside the published figures, as Markdown, LaTeX or CSV."""

import collections
import csv
import dataclasses
import io
import json
import re
from collections.abc import Callable

import numpy as np

from abd_jax import config as config_lib
from abd_jax.errors import UserError
from abd_jax.methods import METHODS
from abd_jax.report.published import ABLATIONS, FIGURES, FLAGS, REPLAY, Benchmark, Figures
from abd_jax.results import Results


@dataclasses.dataclass(frozen=True)
class Metric:
  """A column.

  Attributes:
    title: its head.
    definition: what it is, in a sentence.
    of: a run's figure, or None where it has none.
    digits: after the point.
    spread: whether the standard deviation over seeds is of interest.
    published: the literature's figure and its standard deviation, where the column has such a neighbour.
  """

  title: str
  definition: str
  of: Callable[[Results], float | None]
  digits: int = 1
  spread: bool = True
  published: Callable[[Figures], tuple[float | None, float | None]] | None = None


METRICS = {
    'final_accuracy': Metric(
        'final accuracy A_N %',
        'Share of the test images of all classes that are named rightly after the last task, all classes competing.',
        lambda r: r.final_accuracy, published=lambda f: (f.final_accuracy, f.spread),
    ),
    'omega': Metric(
        'Omega %',
        'Mean over tasks of the accuracy as a share of the upper bound\'s, which sees all images so far (Eq. 17).',
        lambda r: None if r.omega is None else 100 * r.omega, published=lambda f: (f.omega, None),
    ),
    'average_accuracy': Metric(
        'average accuracy %', 'Mean over tasks of the accuracy after each, on all classes seen by then.',
        lambda r: r.average_accuracy,
    ),
    'forgetting': Metric(
        'forgetting', 'Points from the best accuracy a task ever had down to its last one, mean over earlier tasks.',
        lambda r: r.forgetting,
    ),
    'backward_transfer': Metric(
        'backward transfer', 'Points from the accuracy of a task when new to its last one, mean over earlier tasks.',
        lambda r: r.backward_transfer,
    ),
    'local_accuracy': Metric(
        'task-known accuracy %', 'Mean over tasks of the last accuracy, only the classes of its task competing.',
        lambda r: r.local_accuracy,
    ),
    'parameters': Metric(
        'parameters held', 'Numbers in the networks that are kept from task to task.',
        lambda r: r.memory_held['parameters'], digits=0, spread=False,
    ),
    'image_values': Metric(
        'image values held', 'Every channel of every pixel of the old images that are kept.',
        lambda r: r.memory_held.get('image_values', 0 if not r.memory_held['images'] else None), digits=0, spread=False,
    ),
    'seconds_per_batch': Metric(
        'seconds a batch', 'A step of learning, mean over tasks; inversion, evaluation and compilation apart.',
        lambda r: r.seconds_per_batch, digits=3, spread=False,
    ),
    'minutes': Metric(
        'minutes a run', 'From start to end, all included, on the machine of the run.',
        lambda r: r.seconds['total'] / 60, spread=False,
    ),
}
SHORT = ('final_accuracy', 'omega', 'average_accuracy', 'forgetting', 'minutes')


@dataclasses.dataclass(frozen=True)
class Cell:
  """Mean and population standard deviation over so many seeds; of a published figure the seeds are not known."""

  mean: float
  spread: float | None
  seeds: int | None = None


@dataclasses.dataclass(frozen=True)
class Row:
  """A method with its switches: a cell, and a published one, for each metric that has any; and the runs behind them."""

  method: str
  switches: str
  replay: str
  seeds: tuple[int, ...]
  cells: dict[str, Cell]
  published: dict[str, Cell]
  runs: tuple[Results, ...] = ()

  @property
  def label(self):
    return self.method + (f' ({self.switches})' if self.switches else '')


@dataclasses.dataclass(frozen=True)
class Table:
  """Rows of one benchmark."""

  dataset: str
  task_sizes: tuple[int, ...]
  student: str
  top_k: int
  learned: int
  rows: tuple[Row, ...]

  def setting(self):
    """What follows the data set's name in the head."""
    top_k = '' if self.top_k == 1 else f', top-{self.top_k}'
    part = '' if self.learned == len(self.task_sizes) else f', stopped after task {self.learned}'
    return f'{split_of(self)}, {self.student}{top_k}{part}'

  def columns(self, metrics):
    """[(metric's name, whether its published neighbour)]: those of `metrics` that any row has something in."""
    found = []
    for name in metrics:
      found += [(name, False)] if any(name in row.cells for row in self.rows) else []
      found += [(name, True)] if any(name in row.published for row in self.rows) else []
    return found


# From runs to tables.


def split_of(sized):
  """The split of a `Table` or of `Results`, as text."""
  first, *later = sized.task_sizes
  text = f'{first + sum(later)} classes in {1 + len(later)} tasks'
  return text if first in later or not later else f'{text}, the first of {first}'


def collate(all_results):
  """The `Table`s of runs, a benchmark each, in the order first met.

  Raises:
    UserError: a seed of a row is given twice.
  """
  benchmarks = {}
  for r in all_results:
    key = (r.dataset, r.task_sizes, r.student, r.top_k, len(r.accuracy_after_task))
    benchmarks.setdefault(key, []).append(r)
  return [Table(*key, rows=_rows(runs)) for key, runs in benchmarks.items()]


def _rows(runs):
  apart = config_lib.incidental_flags() | {'seed', 'first_task_classes'}
  grouped = {}
  for r in runs:
    told = {name: value for name, value in r.config.items() if name not in apart | _idle(r.method)}
    grouped.setdefault(json.dumps(told, sort_keys=True), []).append(r)
  usual = usual_flags([group[0].config for group in grouped.values()])
  rows = [_row(group, usual, apart | _idle(group[0].method)) for group in grouped.values()]
  benchmarks = [benchmark for benchmark in map(_benchmark_of, runs) if benchmark]
  figures = FIGURES[benchmarks[0]] if benchmarks else {}
  rows += [
      Row(name, '', REPLAY[name], (), {}, _published_cells(figure))
      for name, figure in figures.items() if name not in {row.method for row in rows if row.published}
  ]
  return tuple(sorted(rows, key=_paper_order))


def _idle(method):
  """The flags that say nothing to a method of ours: of a coreset, a second phase, an inversion, where it has none."""
  if method not in METHODS:
    return set()
  memory = {'memory'} if METHODS[method].coreset is None else set()
  second = {'second_epochs', 'second_learning_rate'} if len(METHODS[method].later) == 1 else set()
  inversion = set() if METHODS[method].dreams else {leaf.name for leaf in config_lib.leaves(config_lib.Inversion())}
  return memory | second | inversion


def usual_flags(configs):
  """{flag: the value that most rows have}; of equally many the default, so that who departs from it is named.

  Args:
    configs: of each row its flags, {name: value}.
  """
  defaults = config_lib.as_dict(config_lib.Config())
  usual = {}
  for name in configs[0]:
    counts = collections.Counter(json.dumps(config.get(name)) for config in configs)
    most = max(counts.values())
    candidates = [value for value, count in counts.items() if count == most]
    default = json.dumps(defaults.get(name))
    usual[name] = json.loads(default if default in candidates else candidates[0])
  return usual


def switches_of(config, usual, apart):
  """The flags in which a row departs from the usual ones, as text; `apart` are names that tell no rows apart."""
  return ', '.join(
      f'--{name}={config_lib.text_of(value)}' for name, value in config.items()
      if name not in apart and value != usual.get(name, value)
  )


def check_seeds(method, seeds):
  """Makes sure that the runs of a row are of different seeds.

  Raises:
    UserError: one is given twice, and would count twice.
  """
  if len(set(seeds)) < len(seeds):
    raise UserError(f'A seed of {method} is given twice: the runs have seeds {", ".join(map(str, seeds))}.')


def _row(runs, usual, apart):
  runs = sorted(runs, key=lambda r: r.seed)
  first, seeds = runs[0], tuple(r.seed for r in runs)
  switches = switches_of(first.config, usual, apart | {'method'})
  check_seeds(first.method, seeds)
  cells = {}
  for name, metric in METRICS.items():
    values = [value for value in map(metric.of, runs) if value is not None]
    if values:
      spread = float(np.std(values)) if metric.spread and len(values) > 1 else None
      cells[name] = Cell(float(np.mean(values)), spread, len(values))
  benchmark = _benchmark_of(first)
  figure = FIGURES[benchmark].get(first.method) if benchmark and _is_as_published(first, benchmark) else None
  published = _published_cells(figure) if figure else {}
  return Row(first.method, switches, _replay(first.method), seeds, cells, published, tuple(runs))


def _replay(method):
  """What a method replays, by its name; of one that is registered elsewhere nothing is known."""
  own = METHODS.get(method)
  kinds = {} if own is None else {'coreset': own.coreset, 'synthetic': own.dreams, 'none': True}
  return REPLAY.get(method) or next((kind for kind, has in kinds.items() if has), '')


def _benchmark_of(r):
  """The `Benchmark` of a whole run, None where the literature has no figures of it."""
  benchmark = Benchmark(r.dataset, len(r.class_order), r.num_tasks, r.student, r.config['epochs'], r.top_k)
  evenly = len(set(r.task_sizes)) == 1
  whole = r.config['image_size'] == 0 and evenly and len(r.accuracy_after_task) == r.num_tasks
  return benchmark if whole and benchmark in FIGURES else None


def _is_as_published(r, benchmark):
  """Whether a run had the flags of the published ones, those apart that say nothing to its method."""
  apart = config_lib.incidental_flags() | {'method', 'seed', 'precision', 'num_classes', 'first_task_classes'}
  apart |= _idle(r.method)
  apart |= {field.name for field in dataclasses.fields(Benchmark)}
  return all(
      r.config[name] in FLAGS[benchmark].get(name, (default,))
      for name, default in config_lib.as_dict(config_lib.Config()).items() if name in r.config and name not in apart
  )


def _published_cells(figures):
  found = {name: metric.published(figures) for name, metric in METRICS.items() if metric.published}
  return {name: Cell(mean, spread) for name, (mean, spread) in found.items() if mean is not None}


def _paper_order(row):
  order = list(REPLAY)
  ablation = next((i for i, name in enumerate(ABLATIONS) if f'--ablate={name}' in row.switches), 0)
  return order.index(row.method) if row.method in order else len(order), ablation


# From tables to text.


def cell_text(cell, metric, row_seeds=None):
  """A cell as text: 'mean ± standard deviation', with the number of seeds where it is not the row's."""
  if cell is None:
    return ''
  text = f'{cell.mean:,.{metric.digits}f}' if metric.digits == 0 else f'{cell.mean:.{metric.digits}f}'
  text += '' if cell.spread is None else f' ± {cell.spread:.{metric.digits}f}'
  return text if row_seeds is None or cell.seeds == row_seeds else f'{text} (n={cell.seeds})'


def text_rows(table, metrics=SHORT):
  """[head, *rows] of cells as text."""
  columns = table.columns(metrics)
  head = ['method', 'replay', 'seeds']
  head += ['published' if published else METRICS[name].title for name, published in columns]
  rows = []
  for row in table.rows:
    cells = [
        cell_text(row.published.get(name), METRICS[name]) if published
        else cell_text(row.cells.get(name), METRICS[name], len(row.seeds))
        for name, published in columns
    ]
    rows.append([row.label, row.replay, ', '.join(map(str, row.seeds)), *cells])
  return [head, *rows]


def escaped(text):
  """A cell's text, in which a bar ends no cell, for a Markdown table."""
  return text.replace('|', r'\|')


def markdown(tables, metrics=SHORT):
  """The tables as Markdown; `metrics` are names in `METRICS`."""
  text = ''
  for table in tables:
    head, *rows = text_rows(table, metrics)
    text += f'**{table.dataset}**, {table.setting()}\n\n'
    text += '| ' + ' | '.join(head) + ' |\n' + '|---' * len(head) + '|\n'
    text += ''.join('| ' + ' | '.join(map(escaped, row)) + ' |\n' for row in rows) + '\n'
  return text


# What LaTeX sets otherwise, or not at all; two hyphens would be a dash.
_LATEX = {
    'A_N': '$A_N$', 'Omega': r'$\Omega$', '±': r'$\pm$', '--': '-{}-', '\\': r'\textbackslash{}',
    '~': r'\textasciitilde{}', '^': r'\textasciicircum{}', **{character: '\\' + character for character in '%#&_${}'},
}


def _escape(text):
  return re.sub('|'.join(map(re.escape, _LATEX)), lambda found: _LATEX[found.group()], text)


def latex(tables, metrics=SHORT):
  r"""The tables as LaTeX, for \usepackage{booktabs}."""
  text = ''
  for table in tables:
    head, *rows = ([_escape(cell) for cell in row] for row in text_rows(table, metrics))
    caption = _escape(f'{table.dataset}, {table.setting()}; mean ± population standard deviation over seeds.')
    lines = [' & '.join(row) + r' \\' for row in rows]
    text += '\n'.join([
        r'\begin{table}', r'\centering', rf'\caption{{{caption}}}', rf'\begin{{tabular}}{{lll{"r" * (len(head) - 3)}}}',
        r'\toprule', ' & '.join(head) + r' \\', r'\midrule', *lines, r'\bottomrule', r'\end{tabular}', r'\end{table}',
    ]) + '\n\n'
  return text


def to_csv(tables, metrics=tuple(METRICS)):
  """The tables as one CSV: for each metric its mean, population standard deviation, seeds, and the published figure."""
  fields = [
      'dataset', 'num_classes', 'num_tasks', 'first_task_classes', 'student', 'top_k', 'tasks_learned', 'method',
      'switches', 'replay', 'seeds',
  ]
  for name in metrics:
    fields += [f'{name}_mean', f'{name}_std', f'{name}_seeds']
    fields += [f'{name}_published', f'{name}_published_std'] if METRICS[name].published else []
  text = io.StringIO()
  writer = csv.DictWriter(text, fields, lineterminator='\n')
  writer.writeheader()
  for table in tables:
    for row in table.rows:
      line = {
          'dataset': table.dataset, 'num_classes': sum(table.task_sizes), 'num_tasks': len(table.task_sizes),
          'first_task_classes': table.task_sizes[0],
          'student': table.student, 'top_k': table.top_k, 'tasks_learned': table.learned, 'method': row.method,
          'switches': row.switches, 'replay': row.replay, 'seeds': ' '.join(map(str, row.seeds)),
      }
      for name in metrics:
        if cell := row.cells.get(name):
          line |= {f'{name}_mean': cell.mean, f'{name}_std': cell.spread, f'{name}_seeds': cell.seeds}
        if cell := row.published.get(name):
          line |= {f'{name}_published': cell.mean, f'{name}_published_std': cell.spread}
      writer.writerow(line)
  return text.getvalue()
