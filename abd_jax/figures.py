"""The paper's figures, from finished runs.

  python -m abd_jax.figures --out=figures runs/cifar100_10 runs/two_tasks

draws as PNG and PDF what there are figures for in results.json and diagnostics.json files, or folders of runs:

  figure_2   MID after the last task: real old images to real new ones, and to synthetic old ones; a panel a method
  figure_A   accuracy over all classes seen, after each task; a panel a benchmark, a line a method
  figure_B   figure 2 with MMD
  figure_C   t-SNE of the three populations, of the first seed; a panel a method
  figure_D   seconds a training batch, a bar a method; a panel a benchmark

Bars and lines are means over seeds, with the population standard deviation. Figures 2, B and C have a row a benchmark.
The figures behind 2 and B are printed as a table too.
"""

import json
import sys
import textwrap
from pathlib import Path

import numpy as np
from absl import flags

from abd_jax import config as config_lib
from abd_jax.errors import UserError
from abd_jax.files import writing
from abd_jax.report import tables
from abd_jax.report.published import REPLAY
from abd_jax.results import Results
from abd_jax.written import is_line, is_of, path_of, shown

# Told apart by shape too, and by those who see few colours (Okabe and Ito).
POPULATIONS = {
    'real_old': ('real, old', '#0072B2', 'o'),
    'real_new': ('real, new', '#E69F00', 's'),
    'synthetic': ('synthetic, old', '#CC3311', '^'),
}
_PAIRS = {'real_old_real_new': 'real_new', 'real_old_synthetic': 'synthetic'}
_NAMES = {'mid': 'MID', 'mmd': 'squared MMD'}
_DEFAULTS = config_lib.as_dict(config_lib.Config())  # an earlier version did not have every flag
# Flags that make no other benchmark.
_APART = config_lib.incidental_flags() | {'method', 'seed'}


def _figure(panels_RC, width=3.0, height=2.7, **kwargs):
  """A figure with axes [R][C]."""
  from matplotlib.figure import Figure

  rows, columns = len(panels_RC), max(map(len, panels_RC))
  figure = Figure(figsize=(width * columns, height * rows), layout='constrained')
  return figure, figure.subplots(rows, columns, squeeze=False, **kwargs)


def save(figure, folder, name):
  """Writes <folder>/<name>.png and .pdf; the same figure is the same file.

  Raises:
    UserError: they cannot be written.
  """
  with writing(folder):
    Path(folder).mkdir(parents=True, exist_ok=True)
    figure.savefig(Path(folder) / f'{name}.png', dpi=110)
    figure.savefig(Path(folder) / f'{name}.pdf', metadata={'CreationDate': None})


def _label(said, switches):
  return said['flags']['method'] + (f' ({switches})' if switches else '')


def _title(said, switches=''):
  return _wrapped(f'{_label(said, switches)}, after task {said["after_task"]}')


def _switches(panels_RC):
  """[R] the flags in which each row of panels departs from most, as texts: what tells them apart."""
  flags_R = [_DEFAULTS | row[0][0]['flags'] for row in panels_RC]
  usual = tables.usual_flags(flags_R)
  return [tables.switches_of(flags, usual, _APART) for flags in flags_R]


def draw_distances(panels_RC, measure):
  """Bars of 'mid' or 'mmd' from real old images to real new ones and to synthetic ones (Figures 2 and B).

  Args:
    panels_RC: [R][C][S] what the diagnostics.json of a method's seeds say; a panel each, the rows a benchmark each.
    measure: 'mid' or 'mmd'.
  """
  figure, axes_RC = _figure(panels_RC, sharey='row')
  for row, axes_C, switches in zip(panels_RC, axes_RC, _switches(panels_RC), strict=True):
    axes_C[0].set_ylabel(f'{_NAMES[measure]} to real old images')
    for said_S, axes in zip(row, axes_C, strict=False):
      for i, (pair, population) in enumerate(_PAIRS.items()):
        values = [said[measure][pair] for said in said_S if said[measure].get(pair) is not None]
        if values:
          name, colour, _ = POPULATIONS[population]
          error = np.std(values) if len(values) > 1 else None
          axes.bar(i, np.mean(values), 0.6, yerr=error, capsize=4, color=colour, label=name)
      axes.set(title=_title(said_S[0], switches), xticks=range(len(_PAIRS)), xlim=(-0.6, len(_PAIRS) - 0.4))
      axes.set_xticklabels([POPULATIONS[population][0] for population in _PAIRS.values()])
      axes.spines[['top', 'right']].set_visible(False)
    for axes in axes_C[len(row) :]:
      axes.set_axis_off()
  return figure


def draw_tsne(panels_RC):
  """The populations in the plane (Figure C), of the first seed of each panel; arguments as of `draw_distances`."""
  figure, axes_RC = _figure(panels_RC)
  for row, axes_C, switches in zip(panels_RC, axes_RC, _switches(panels_RC), strict=True):
    for said_S, axes in zip(row, axes_C, strict=False):
      for population, (name, colour, marker) in POPULATIONS.items():
        if points := said_S[0]['tsne'].get(population):
          x, y = np.asarray(points).T
          axes.scatter(x, y, 9, colour, marker=marker, alpha=0.6, linewidths=0, label=name)
      axes.set(title=_title(said_S[0], switches), xticks=[], yticks=[])
    for axes in axes_C[len(row) :]:
      axes.set_axis_off()
  shown = {}
  for axes in axes_RC.flat:
    handles, labels = axes.get_legend_handles_labels()
    shown |= dict(zip(labels, handles, strict=True))
  figure.legend(
      shown.values(), shown.keys(), loc='outside lower center', ncols=3, frameon=False, fontsize=7, markerscale=2,
      handletextpad=0.1, columnspacing=1,
  )
  return figure


def draw_confusion(said):
  """The shares of each task's test images that are predicted as each task's classes."""
  shares_TT = np.asarray(said['confusion_by_task'])
  figure, axes_RC = _figure([[said]], width=3.4, height=3.2)
  axes = axes_RC[0, 0]
  axes.imshow(shares_TT, cmap='Blues', vmin=0, vmax=1)
  tasks = range(len(shares_TT))
  if len(shares_TT) <= 10:
    for i in tasks:
      for j in tasks:
        colour = 'white' if shares_TT[i, j] > 0.5 else 'black'
        axes.text(j, i, f'{100 * shares_TT[i, j]:.0f} %', ha='center', va='center', color=colour, fontsize=8)
  axes.set(title=_title(said), xlabel='predicted as of task', ylabel='test images of task', xticks=tasks, yticks=tasks)
  axes.set_xticklabels([j + 1 for j in tasks])
  axes.set_yticklabels([i + 1 for i in tasks])
  return figure


def draw_memorisation(blocks):
  """Synthetic images, below each its nearest training image, and below that the training image nearest to that one.

  Args:
    blocks: {'pixels' or 'features', what is near in which sense: (synthetic, nearest, other), u8[N, H, W, C] each}.
  """
  from matplotlib.figure import Figure

  columns = len(next(iter(blocks.values()))[0])
  figure = Figure(figsize=(0.7 * columns + 1.4, 2.4 * len(blocks)), layout='constrained')
  axes_B = figure.subplots(len(blocks), 1, squeeze=False)[:, 0]
  for axes, (name, rows) in zip(axes_B, blocks.items(), strict=True):
    for i, images in enumerate(rows):
      for j, image in enumerate(images):
        pixels = image if image.shape[-1] == 3 else image.mean(axis=-1)
        axes.imshow(pixels, cmap='gray', vmin=0, vmax=255, extent=(j, j + 0.94, i + 0.94, i), interpolation='nearest')
    axes.set(xlim=(0, columns), ylim=(len(rows), 0), xticks=[], yticks=[0.5, 1.5, 2.5], title=f'nearest in {name}')
    axes.set_yticklabels(['synthetic', 'nearest training image', 'its nearest other'], fontsize=8)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
  return figure


def draw_accuracy(found):
  """A_n over the tasks (Figure A), of `tables.Table`s: a panel each, a line a row, as in every panel."""
  figure, axes_RC = _figure([found], width=4.0, height=3.4)
  labels = list(dict.fromkeys(row.label for table in found for row in table.rows if row.runs))
  for table, axes in zip(found, axes_RC[0], strict=True):
    for row in (row for row in table.rows if row.runs):
      curves_SN = np.array([run.accuracy_after_task for run in row.runs])
      classes = row.runs[0].classes_seen
      i = labels.index(row.label)
      style = {'marker': 'osv^D<>pP*XhH'[i % 13], 'markersize': 4, 'color': f'C{i % 10}', 'label': _wrapped(row.label)}
      axes.errorbar(classes, curves_SN.mean(axis=0), curves_SN.std(axis=0), capsize=2, **style)
    axes.set(xlabel='classes seen', ylabel='accuracy over them (%)', ylim=(0, 100), xticks=classes)
    axes.set_title(_benchmark(table), fontsize=9)
    axes.legend(fontsize=6, frameon=False)
    axes.spines[['top', 'right']].set_visible(False)
  return figure


def draw_seconds(found):
  """Seconds a training batch (Figure D), of `tables.Table`s: a panel each, a bar a row."""
  figure, axes_RC = _figure([found], width=4.0, height=3.4)
  for table, axes in zip(found, axes_RC[0], strict=True):
    rows = [row for row in table.rows if 'seconds_per_batch' in row.cells][::-1]
    axes.barh(range(len(rows)), [row.cells['seconds_per_batch'].mean for row in rows], 0.6, color='#0072B2')
    devices = sorted({run.device for row in rows for run in row.runs})
    axes.set_xlabel(f'seconds a training batch ({", ".join(devices)})', fontsize=8)
    axes.set_title(_benchmark(table), fontsize=9)
    axes.set_yticks(range(len(rows)), [_wrapped(row.label) for row in rows], fontsize=7)
    axes.spines[['top', 'right']].set_visible(False)
  return figure


def _wrapped(label):
  return textwrap.fill(label, 30, break_on_hyphens=False, break_long_words=False)


def _benchmark(table):
  return f'{table.dataset}, {tables.split_of(table)}'


# From files to figures.


def read(path):
  """([Results], [what a diagnostics.json says]) at a path: a file of either, or a folder of runs.

  Raises:
    UserError: there is none.
  """
  path = path_of(path)
  if path.is_dir():
    files = [path / name for name in ('results.json', 'diagnostics.json') if (path / name).exists()]
    files = files or sorted(path.glob('**/seed*/results.json')) + sorted(path.glob('**/seed*/diagnostics.json'))
    if not files:
      raise UserError(f'{path} holds neither results.json nor diagnostics.json of a finished run.')
  else:
    files = [path]
  results, diagnosed = [], []
  for file in files:
    said = _diagnosed(file)
    results += [] if said else [Results.load(file)]
    diagnosed += [said] if said else []
  return results, diagnosed


def _diagnosed(file):
  """What a diagnostics.json says, None for another file.

  Raises:
    UserError: it is one that was edited, of which no figure can be drawn.
  """
  try:
    said = json.loads(file.read_text('utf-8'))
  except (OSError, ValueError, RecursionError):
    return None  # of which `Results.load` says what is wrong
  if not isinstance(said, dict) or not {'flags', 'mid', 'tsne'} <= said.keys():
    return None
  if objection := _objection(said):
    raise UserError(f'{shown(file)} is not a diagnostics.json: {objection}.')
  return said


def _objection(said):
  """What in a diagnostics.json no figure can be drawn of, as the end of a sentence; None where all can."""
  told, after = said['flags'], said.get('after_task')
  if not isinstance(told, dict) or not is_of(told.get('method'), str) or not is_line(told['method']):
    return 'flags must have a method'
  if not is_of(told.get('seed'), int) or not is_of(after, int):
    return 'seed in flags, and after_task, must be whole numbers'
  under_teacher = said.get('under_teacher') or {}
  for of in (said, under_teacher):
    for measure in _NAMES if of else ():
      if not isinstance(of, dict) or not isinstance(of.get(measure), dict) or not all(
          of[measure].get(pair) is None or _is_figure(of[measure][pair]) for pair in _PAIRS
      ):
        return f'{measure} must be numbers, or null, by pair of populations'
  for name in POPULATIONS:
    points = said['tsne'].get(name) if isinstance(said['tsne'], dict) else 0
    if points is not None and not (isinstance(points, list) and all(map(_is_point, points))):
      return 'tsne must be pairs of numbers, or null, by population'
  return None


def _is_figure(value):
  return is_of(value, float) and abs(value) < 1e300


def _is_point(value):
  return isinstance(value, list) and len(value) == 2 and all(map(_is_figure, value))


def panels_of(diagnosed):
  """[R][C][S] for `draw_distances`: benchmarks, methods with synthetic images in the paper's order, seeds.

  Raises:
    UserError: a seed of a panel is given twice.
  """
  order, benchmarks = list(REPLAY), {}
  for said in sorted(diagnosed, key=lambda said: said['flags']['seed']):
    if said['mid'].get('real_old_synthetic') is not None:
      told = {name: value for name, value in (_DEFAULTS | said['flags']).items() if name not in _APART}
      methods = benchmarks.setdefault(json.dumps([told, said['after_task']], sort_keys=True), {})
      methods.setdefault(said['flags']['method'], []).append(said)
  for methods in benchmarks.values():
    for method, said_S in methods.items():
      tables.check_seeds(method, [said['flags']['seed'] for said in said_S])
  place = lambda method: order.index(method) if method in order else len(order)
  return [[methods[name] for name in sorted(methods, key=place)] for methods in benchmarks.values()]


def distance_table(panels_RC):
  """The bars of Figures 2 and B as Markdown, a row a panel, named as there; arguments as of `draw_distances`.

  Under the teacher, the classifier as it was before the task, stands how far synthetic images were when they were made.
  """
  others = ('new', 'synthetic', 'synthetic under the teacher')
  columns = ['method', 'seeds', *(f'{name}, {other}' for name in _NAMES.values() for other in others)]
  text = '| ' + ' | '.join(columns) + ' |\n' + '|---' * len(columns) + '|\n'
  ends = {row[0][0]['after_task'] for row in panels_RC}
  named = [(said_S, switches) for row, switches in zip(panels_RC, _switches(panels_RC), strict=True) for said_S in row]
  for said_S, switches in named:
    name = _label(said_S[0], switches) + (f', after task {said_S[0]["after_task"]}' if len(ends) > 1 else '')
    cells = [tables.escaped(name), ', '.join(str(said['flags']['seed']) for said in said_S)]
    for measure, digits in (('mid', 2), ('mmd', 3)):
      new, synthetic = ([said[measure].get(pair) for said in said_S] for pair in _PAIRS)
      before = [((said.get('under_teacher') or {}).get(measure) or {}).get('real_old_synthetic') for said in said_S]
      for values in (new, synthetic, before):
        known = [value for value in values if value is not None]
        spread = f' ± {np.std(known):.{digits}f}' if len(known) > 1 else ''
        cells.append(f'{np.mean(known):.{digits}f}{spread}' if known else '')
    text += '| ' + ' | '.join(cells) + ' |\n'
  return text


def draw_all(results, diagnosed, folder):
  """Every figure that there are runs for, into a folder.

  Returns:
    [a sentence on each figure].
  """
  said = []
  panels = panels_of(diagnosed)
  there = {said_S[0]['flags']['method'] for row in panels for said_S in row}
  missing = [method for method in ('deep_inversion', 'abd') if method not in there]
  for name, draw in (
      ('2', lambda: draw_distances(panels, 'mid')), ('B', lambda: draw_distances(panels, 'mmd')),
      ('C', lambda: draw_tsne(panels)),
  ):
    if missing:
      said.append(
          f'Figure {name} needs diagnostics.json of {" and ".join(missing)}: python -m abd_jax.diagnose makes it of a'
          ' run.'
      )
    else:
      said.append(_drawn(draw(), folder, name))
  found = [table for table in tables.collate(results) if any(row.runs for row in table.rows)]
  for name, draw in (('A', draw_accuracy), ('D', draw_seconds)):
    if found:
      said.append(_drawn(draw(found), folder, name))
    else:
      said.append(f'Figure {name} needs results.json of runs, a line or bar for each method among them.')
  return said


def _drawn(figure, folder, name):
  save(figure, folder, f'figure_{name}')
  return f'Figure {name}: {Path(folder) / f"figure_{name}.png"} and .pdf'


def _define_flags():
  flags.DEFINE_string('out', 'figures', 'the folder that the figures go to', module_name=sys.argv[0])


def _draw(arguments):
  if not arguments:
    raise UserError('An argument is needed: python -m abd_jax.figures RUN_OR_FILE... --out=FOLDER')
  found = [read(path) for path in arguments]
  folder = path_of(flags.FLAGS.out, '--out=')
  results, diagnosed = ([one for part in parts for one in part] for parts in zip(*found, strict=True))
  for sentence in draw_all(results, diagnosed, folder):
    print(sentence)
  if panels := panels_of(diagnosed):
    print('\nFrom real old images to others:\n\n' + distance_table(panels), end='')


if __name__ == '__main__':
  from abd_jax import experiment

  experiment.start(_define_flags, _draw)
