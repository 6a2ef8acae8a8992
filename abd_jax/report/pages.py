"""report.html: one file that shows a run, or several and how they compare; it loads nothing and runs no script.

`templates/report.html` is the page, `charts` says where things stand in its charts, `tables` what is compared.
"""

import base64
import dataclasses
import functools
import io
import itertools
import json
from pathlib import Path

import numpy as np

from abd_jax import config as config_lib
from abd_jax.errors import UserError
from abd_jax.files import write_whole
from abd_jax.metrics_log import MetricsLog, StepCounter, figures_of
from abd_jax.pictures import load_synthetic
from abd_jax.report import findings, tables
from abd_jax.report.charts import Series, heat_map, line_chart
from abd_jax.results import Results

_PARTS = {
    'inversion': 'inversion', 'train': 'training', 'eval': 'evaluation', 'compile': 'compilation', 'other': 'the rest',
}
_TIME_HEAD = ('method', *_PARTS.values(), 'total')
_SMALL = 300, 170
# Images in a page are no larger than this many pixels a side.
_LARGEST_IMAGE = 96


@dataclasses.dataclass(frozen=True)
class Run:
  """What a page shows of a run.

  Attributes:
    results: its `Results`, which may be those of its first tasks.
    workdir: its folder, with figures and pictures; None where only results.json is there.
  """

  results: Results
  workdir: Path | None = None


def save_run(workdir, results, say=print):
  """Writes <workdir>/report.html; that it cannot be written is said, and stops nothing."""
  _save(Path(workdir) / 'report.html', [Run(results, Path(workdir))], say)


def save_collection(path, runs, say=print):
  """Writes a page of several `Run`s; that it cannot be written is said, and stops nothing."""
  _save(Path(path), runs, say)


def _save(path, runs, say):
  try:
    write_whole(path, page(runs))
  except UserError as error:
    say(f'No {path.name}: {error}')
  except Exception as error:  # whatever it is: a page is not worth a run
    say(f'No {path.name}: {type(error).__name__}: {error}.')


def page(runs):
  """The page as text.

  Args:
    runs: `Run`s; of several the comparison comes first.

  Raises:
    UserError: a seed of a row is given twice.
  """
  collated = tables.collate([run.results for run in runs])
  several = len(runs) > 1
  return _environment().get_template('report.html').render(
      title=f'{len(runs)} runs compared' if several else _label(runs[0].results, collated),
      comparisons=[_comparison(table) for table in collated] if several else [],
      runs=[_run(run, _label(run.results, collated)) for run in runs],
  )


def _label(results, collated):
  """A run's name: with the switches, and where there is need the setting, that tell it from the others."""
  rows = [(table, row) for table in collated for row in table.rows if row.runs]
  [(table, row)] = [(table, row) for table, row in rows if any(one is results for one in row.runs)]
  elsewhere = {(other.dataset, its.label) for other, its in rows if other is not table}
  setting = f' ({table.setting()})' if (table.dataset, row.label) in elsewhere else ''
  return f'{row.label} on {results.dataset}{setting}, seed {results.seed}'


@functools.cache
def _environment():
  import jinja2

  return jinja2.Environment(
      loader=jinja2.PackageLoader('abd_jax.report'), autoescape=True, undefined=jinja2.StrictUndefined,
      trim_blocks=True, lstrip_blocks=True,
  )


# Several runs.


def _comparison(table):
  """What the page says of the rows of one benchmark."""
  _, *rows = tables.text_rows(table)
  columns = table.columns(tables.SHORT)
  measured = [row for row in table.rows if row.runs]
  times = [(row.label, _times([r.seconds for r in row.runs])) for row in measured]
  return {
      'title': table.dataset,
      'setting': table.setting(),
      'columns': ['method', 'replay', 'seeds']
      + [('published ' if published else '') + tables.METRICS[name].title for name, published in columns],
      'published': any(published for _, published in columns),
      'rows': rows,
      'definitions': [
          (tables.METRICS[name].title, tables.METRICS[name].definition)
          for name in dict.fromkeys(name for name, _ in columns)
      ],
      'accuracy': _accuracy_chart(
          f'Accuracy after each task, {table.dataset}, {table.setting()}',
          [_over_seeds(row, style) for style, row in enumerate(measured)]
          + [_published(row, style) for style, row in enumerate(measured)],
          table.learned,
      ),
      'matrices': [(row.label, _mean_matrix(row.runs)) for row in measured],
      'times': times,
      'longest': max(sum(seconds for _, seconds, _ in parts) for _, parts in times),
      'time_head': _TIME_HEAD,
      'time_rows': [_time_row(*row) for row in times],
  }


def _over_seeds(row, style):
  after_task = np.array([r.accuracy_after_task for r in row.runs])
  spreads = tuple(after_task.std(axis=0)) if len(row.runs) > 1 else ()
  return Series(row.label, tuple(range(1, after_task.shape[1] + 1)), tuple(after_task.mean(axis=0)), spreads, style)


def _published(row, style):
  """The literature's final accuracy, beside the line of the row that it belongs to."""
  cell, last = row.published.get('final_accuracy'), len(row.runs[0].accuracy_after_task)
  point = ((last,), (cell.mean,), (cell.spread,) if cell.spread else ()) if cell else ((), ())
  return Series(f'{row.label}, published', *point, style=style, hollow=True)


def _accuracy_chart(title, series, num_tasks):
  return line_chart(
      [one for one in series if one.xs], title, 'task', 'accuracy %',
      x_limits=(1, num_tasks), y_limits=(0, 100),
      x_ticks=tuple(range(1, num_tasks + 1, -(-num_tasks // 10))),
  )


def _mean_matrix(all_results):
  """As `heat_map`: the accuracy matrices' mean."""
  return heat_map(np.mean([np.array(r.accuracy_matrix, float) for r in all_results], axis=0), 100)


def _times(all_seconds):
  """[(what it went into, seconds, share of the total in %)], means over runs."""
  seconds = {kind: float(np.mean([each.get(kind, 0) for each in all_seconds])) for kind in (*_PARTS, 'total')}
  seconds['other'] = max(0.0, seconds['total'] - sum(seconds[kind] for kind in _PARTS if kind != 'other'))
  total = max(sum(seconds[kind] for kind in _PARTS), 1e-9)
  return [(said, seconds[kind], 100 * seconds[kind] / total) for kind, said in _PARTS.items()]


def _time_row(name, parts):
  """Cells under `_TIME_HEAD`."""
  total = sum(seconds for _, seconds, _ in parts)
  return [name, *(f'{seconds:.1f} s, {share:.0f} %' for _, seconds, share in parts), f'{total:.1f} s']


# One run.


def _run(run, name):
  """What the page says of a run."""
  results = run.results
  learned = len(results.accuracy_after_task)
  lines = MetricsLog(run.workdir / 'metrics.jsonl').read() if run.workdir else []
  synthetic = load_synthetic(run.workdir) if run.workdir else []
  times = _times([results.seconds])
  return {
      'name': name,
      'setting': f'{tables.split_of(results)}, {results.student}'
      + (f', top-{results.top_k} accuracy' if results.top_k > 1 else ''),
      'learned': learned,
      'num_tasks': results.num_tasks,
      'headline': _headline(results),
      'accuracy': _accuracy_of(results),
      'classes': _classes_by_task(results),
      'matrix': heat_map(results.accuracy_matrix, 100),
      'local_matrix': heat_map(results.accuracy_matrix_local, 100),
      'curves': _curves(lines),
      'synthetic': [_synthetic(one) for one in synthetic if one.task <= learned],
      'findings': findings.read(run.workdir) if run.workdir else None,
      'times': times,
      'time_head': _TIME_HEAD,
      'time_row': _time_row(results.method, times),
      'rates': [(_PARTS.get(kind, kind), rate) for kind, rate in results.steps_per_second.items() if rate],
      'peak_gigabytes': results.peak_memory_bytes / 1e9,
      'device': results.device,
      'versions': results.versions,
      'requirements': _requirements(results.versions),
      'flags': _flags(results),
  }


def _headline(results):
  """[(title, figure, published figure or '', definition)]."""
  [row] = [row for row in tables.collate([results])[0].rows if row.runs]
  return [
      (
          metric.title, tables.cell_text(row.cells[name], metric),
          tables.cell_text(row.published.get(name), metric), metric.definition,
      )
      for name, metric in tables.METRICS.items() if name in row.cells
  ]


def _accuracy_of(results):
  [row] = [row for row in tables.collate([results])[0].rows if row.runs]
  tasks = tuple(range(1, len(results.accuracy_after_task) + 1))
  series = [
      Series('all classes seen', tasks, tuple(results.accuracy_after_task)),
      Series('classes of the newest task', tasks, tuple(results.accuracy_matrix[n - 1][n - 1] for n in tasks), style=1),
      Series('classes of the first task', tasks, tuple(results.accuracy_matrix[n - 1][0] for n in tasks), style=2),
      dataclasses.replace(_published(row, 0), name='all classes seen, published'),
  ]
  return _accuracy_chart('Accuracy after each task', series, results.num_tasks)


def _classes_by_task(results):
  """The names of each task's classes, as texts."""
  names = results.class_names or list(map(str, results.class_order))
  ends = itertools.accumulate(results.task_sizes, initial=0)
  return [', '.join(names[start:end]) for start, end in itertools.pairwise(ends)]


def _curves(lines):
  """[(phase, [(figure's name, chart)])]: what each phase measured, over the steps of the run."""
  counter, found = StepCounter(), {}
  for line in lines:
    if 'phase' in line:
      step = counter.at(line)
      for name, value in figures_of(line).items():
        points = found.setdefault(line['phase'], {}).setdefault(name, {}).setdefault(line['task'], [])
        points.append((step, value))
  return [
      (phase, [(name, _curve(phase, name, by_task)) for name, by_task in figures.items()])
      for phase, figures in found.items()
  ]


def _curve(phase, name, by_task):
  series = [Series(f'task {task}', *zip(*points, strict=True), marks=False) for task, points in by_task.items()]
  return line_chart(series, f'{name} during {phase}, a line a task', 'steps of the run', size=_SMALL)


def _synthetic(synthetic):
  """Synthetic images of a task as the page shows them."""
  images = [
      (_data_uri(image), name, round(100 * float(confidence)))
      for image, name, confidence in zip(synthetic.colours(), synthetic.names, synthetic.confidences, strict=True)
  ]
  return {'task': synthetic.task, 'images': images, 'confidence': 100 * float(np.mean(synthetic.confidences))}


def _data_uri(image_HWC):
  """An image inside the page: PNG where it is small, else JPEG of a bounded size."""
  from PIL import Image

  small = max(image_HWC.shape[:2]) <= 32
  picture, file = Image.fromarray(image_HWC), io.BytesIO()
  picture.thumbnail((_LARGEST_IMAGE, _LARGEST_IMAGE))
  picture.save(file, 'PNG' if small else 'JPEG', quality=88)
  return f'data:image/{"png" if small else "jpeg"};base64,{base64.b64encode(file.getvalue()).decode()}'


def _requirements(versions):
  """The packages of a run as pip knows them, but for this one, which is read from its repository."""
  apart = {'python', 'abd_jax', 'abd-jax'}
  return ' '.join(f'{name}=={version}' for name, version in versions.items() if name not in apart)


def _flags(results):
  """[(line of a flagfile, whether it departs from the default)]."""
  defaults = json.loads(json.dumps(config_lib.as_dict(config_lib.Config())))
  return [
      (f'--{name}={config_lib.text_of(value)}', value != defaults.get(name)) for name, value in results.config.items()
  ]


