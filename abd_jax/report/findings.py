"""diagnostics.json as a page shows it."""

import json

from abd_jax.report.charts import Series, heat_map, line_chart, number

_PAIRS = {
    'real_old_real_new': 'old real to new real', 'real_old_synthetic': 'old real to synthetic',
    'real_new_synthetic': 'new real to synthetic',
}
_POPULATIONS = {'real_old': 'old real', 'real_new': 'new real', 'synthetic': 'synthetic'}
_MEASURES = {'mid': 'MID', 'mmd': 'squared MMD'}
_DISTANCES = {
    'median_synthetic': 'synthetic images, to their nearest training image', 'median_test': 'test images, likewise',
    'median_real': 'training images, to their nearest other', 'share_nearer': 'synthetic images nearer than those, %',
    'share_nearer_test': 'test images nearer than those, %',
}
# A table of classes is cut here; diagnostics.json has all.
_MOST_CLASSES = 100


def read(workdir):
  """What <workdir>/diagnostics.json says, by the names that the page has for it; None where there is no such file.

  Everything in the file is optional. One that cannot be read so comes to {'failure': why}.
  """
  try:
    said = json.loads((workdir / 'diagnostics.json').read_text('utf-8'))
  except OSError:
    return None
  except (ValueError, RecursionError) as error:
    return {'failure': str(error)}
  try:
    return {'failure': '', **_shown(said)}
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    return {'failure': f'{type(error).__name__}: {error}'}


def _shown(said):
  calibration, synthetic = said.get('calibration') or {}, said.get('synthetic') or {}
  return {
      'after_task': said.get('after_task'),
      'populations': [(_POPULATIONS.get(k, k), n) for k, n in (said.get('populations') or {}).items() if n is not None],
      'distances': _distances(said),
      'pairs': list(_PAIRS.values()),
      'dead_features': said.get('dead_features'),
      'tsne': _embedding(said.get('tsne') or {}),
      'confusion': heat_map(said.get('confusion_by_task') or [], 1),
      'ece': None if calibration.get('ece') is None else 100 * calibration['ece'],
      'calibration': _reliability(calibration.get('bins') or []),
      'classes': _classes(synthetic, said.get('feature_drift') or {}),
      'spaces': _spaces(said),
      'memorisation': _memorisation(said),
  }


def _distances(said):
  """[[measure, figure of each pair]]."""
  states = ('', said), (' before the task', said.get('under_teacher') or {})
  return [
      [title + when, *(number(of[name].get(pair)) for pair in _PAIRS)]
      for name, title in _MEASURES.items() for when, of in states if of.get(name)
  ]


def _embedding(tsne):
  series = [
      Series(title, *(zip(*tsne[name], strict=True)), style=style, line=False)
      for style, (name, title) in enumerate(_POPULATIONS.items()) if tsne.get(name)
  ]
  return line_chart(series, 't-SNE of the penultimate features of the three populations', axes=False)


def _reliability(bins):
  bins = [each for each in bins if each.get('count')]
  if not bins:
    return None
  series = [
      Series('confidence as it should be', (0, 100), (0, 100), style=6, marks=False),
      Series('accuracy', tuple(100 * b['confidence'] for b in bins), tuple(100 * b['accuracy'] for b in bins)),
  ]
  return line_chart(
      series, 'Accuracy by confidence', 'confidence %', 'accuracy %', x_limits=(0, 100), y_limits=(0, 100)
  )


def _classes(synthetic, drift):
  """[[class name, share of the synthetic images, teacher's confidence in them, drift]]; all in %."""
  shares, confidences = synthetic.get('class_frequencies') or {}, synthetic.get('confidence') or {}
  percent = lambda value: '–' if value is None else f'{100 * value:.1f}'
  names = list(dict.fromkeys([*shares, *drift]))[:_MOST_CLASSES]
  return [[name, *(percent(of.get(name)) for of in (shares, confidences, drift))] for name in names]


def _spaces(said):
  return [space for space in ('pixels', 'features') if (said.get('memorisation') or {}).get(space)]


def _memorisation(said):
  """[[what is measured, figure in each space]]."""
  rows = []
  for name, title in _DISTANCES.items():
    values = [said['memorisation'][space].get(name) for space in _spaces(said)]
    if any(value is not None for value in values):
      rows.append([title, *(number(100 * v if v is not None and name.startswith('share') else v) for v in values)])
  return rows
