"""Where things stand in a chart: from figures to places in pixels. `templates/charts.html` draws them."""

import dataclasses
import math
import sys

import numpy as np

WIDTH, HEIGHT = 460, 290
# What a chart leaves free for its axes: left, right, top, bottom.
_MARGINS = 46, 20, 10, 42
# As many colours as the style sheet has; then they come again with another dash and mark.
COLOURS = 7
_DASHES = '', '6 3', '2 3', '8 3 2 3'
_MOST_POINTS = 300
# Sums and differences of what is drawn are floats too.
_LARGEST = 1e300
# Matplotlib's cividis at even distances: it reads the same to all kinds of colour vision, and in grey.
_CIVIDIS = '#00224e', '#1a386f', '#434e6c', '#61656f', '#7d7c78', '#9b9476', '#bcae6c', '#dec958', '#fee838'


@dataclasses.dataclass(frozen=True)
class Series:
  """Points that belong together.

  Attributes:
    name: what they are of.
    xs, ys: as many numbers each; those that are not finite, or above 1e300, are left out.
    spreads: for each point how far the band goes up and down, or empty.
    style: a number from 0, its place among the colours, dashes and marks.
    line: whether a line goes through them.
    marks: whether each has a mark, which says its figures when pointed at.
    hollow: whether the marks are outlines, and beside their places: for what was not measured here.
  """

  name: str
  xs: tuple[float, ...]
  ys: tuple[float, ...]
  spreads: tuple[float, ...] = ()
  style: int = 0
  line: bool = True
  marks: bool = True
  hollow: bool = False


@dataclasses.dataclass(frozen=True)
class Mark:
  path: str
  said: str


@dataclasses.dataclass(frozen=True)
class Curve:
  """A `Series` in pixels: SVG paths. `swatch` is its mark in a legend, around the place (14, 7)."""

  name: str
  path: str
  band: str
  marks: tuple[Mark, ...]
  swatch: str
  colour: int
  dash: str
  hollow: bool


@dataclasses.dataclass(frozen=True)
class Chart:
  """What is drawn: `x_ticks` and `y_ticks` are (pixel, text)."""

  title: str
  x_label: str
  y_label: str
  width: int
  height: int
  box: tuple[float, float, float, float]
  x_ticks: tuple[tuple[float, str], ...]
  y_ticks: tuple[tuple[float, str], ...]
  curves: tuple[Curve, ...]


def ticks(low, high, most=6):
  """Round numbers from `low` to `high`, at most about `most`."""
  # No step of less is told apart from none: where the two are equal, or differ in their last bits.
  if not (high - low) / most >= max(sys.float_info.min, 1e-12 * max(abs(low), abs(high))):
    return (low,)
  step = 10.0 ** math.floor(math.log10((high - low) / most))
  step = next(step * times for times in (1, 2, 5, 10, 20) if (high - low) / (step * times) <= most)
  first = math.ceil(low / step - 1e-9)
  return tuple(step * n for n in range(first, math.floor(high / step + 1e-9) + 1))


def _is_finite(value):
  """Whether a number is one that a float can hold: a whole number may be larger."""
  return abs(value) <= sys.float_info.max


def number(value, digits=3):
  """A number as it is said in a chart: so many significant digits, no exponent between 0.001 and a million."""
  if value is None or not _is_finite(value):
    return '–'
  if value and not 1e-3 <= abs(value) < 1e6:
    return f'{value:.{digits - 1}e}'.replace('e+0', 'e').replace('e-0', 'e-')
  if float(value).is_integer():
    return f'{value:,.0f}'
  return f'{value:.{max(0, digits - 1 - math.floor(math.log10(abs(value))))}f}'


def line_chart(
    series, title, x_label='', y_label='', x_limits=None, y_limits=None, x_ticks=None, size=(WIDTH, HEIGHT),
    axes=True,
):
  """A chart of `Series`.

  Args:
    series: what it shows.
    title: what it is, in a sentence: for those who cannot see it.
    x_label, y_label: of the axes.
    x_limits, y_limits: the ends of the axes, where they are not to be those of the points.
    x_ticks: where the horizontal axis has numbers, where they are not to be chosen.
    size: width and height in pixels; a page shows it larger or smaller.
    axes: whether the axes have numbers.

  Returns:
    A `Chart`, or None when there is no point at all.
  """
  series = [_thinned(one) for one in series]
  xs = [x for one in series for x in one.xs]
  lows = [y - d for one in series for y, d in zip(one.ys, one.spreads or (0,) * len(one.ys), strict=True)]
  highs = [y + d for one in series for y, d in zip(one.ys, one.spreads or (0,) * len(one.ys), strict=True)]
  if not xs:
    return None
  width, height = size
  left, right, top, bottom = _MARGINS if axes else (6, 6, 6, 6)
  x_limits, y_limits = x_limits or (min(xs), max(xs)), y_limits or (min(lows), max(highs))
  x_of, y_of = _scale(*x_limits, left, width - right), _scale(*y_limits, height - bottom, top)
  return Chart(
      title, x_label, y_label, width, height, (left, top, width - right, height - bottom),
      tuple((x_of(x), f'{x:,.6g}') for x in (x_ticks or ticks(*x_limits, most=width // 75))) if axes else (),
      tuple((y_of(y), f'{y:,.6g}') for y in ticks(*y_limits, most=5)) if axes else (),
      tuple(_curve(one, x_of, y_of) for one in series),
  )


def _scale(low, high, first, last):
  """Takes `low` to pixel `first` and `high` to `last`; the middle, where the two are one."""
  if high == low:
    return lambda value: (first + last) / 2
  return lambda value: round(first + (value - low) / (high - low) * (last - first), 1)


def _thinned(series):
  """The series with finite points alone, and no more of them than can be told apart."""
  spreads = series.spreads or (0.0,) * len(series.xs)
  points = zip(series.xs, series.ys, spreads, strict=True)
  points = [point for point in points if all(value is not None and abs(value) <= _LARGEST for value in point)]
  every = -(-len(points) // _MOST_POINTS)
  if series.line and every > 1:  # means of neighbours
    points = [tuple(np.mean(points[i : i + every], axis=0)) for i in range(0, len(points), every)]
  xs, ys, spreads = zip(*points, strict=True) if points else ((), (), ())
  return dataclasses.replace(series, xs=xs, ys=ys, spreads=spreads if series.spreads else ())


def _curve(series, x_at, y_of):
  x_of = (lambda x: x_at(x) + 9) if series.hollow else x_at
  places = [(x_of(x), y_of(y)) for x, y in zip(series.xs, series.ys, strict=True)]
  said = [f'{series.name}: {number(x)}, {number(y)}' for x, y in zip(series.xs, series.ys, strict=True)]
  if series.spreads:
    said = [f'{text} ± {number(spread)}' for text, spread in zip(said, series.spreads, strict=True)]
    rows = list(zip(series.xs, series.ys, series.spreads, strict=True))
    upper = [(x_of(x), y_of(y + spread)) for x, y, spread in rows]
    lower = [(x_of(x), y_of(y - spread)) for x, y, spread in rows]
    # A single point has a bar where others have a band.
    band = _line(upper + lower[::-1]) + 'Z' if len(rows) > 1 else _line(upper + lower)
  else:
    band = ''
  marks = ()
  if series.marks:
    r = 4 if series.line else 2.5
    marks = tuple(Mark(mark(series.style, *place, r), text) for place, text in zip(places, said, strict=True))
  return Curve(
      series.name, _line(places) if series.line and len(places) > 1 else '', band, marks,
      mark(series.style, 14, 7) if series.marks else '', series.style % COLOURS, dash(series.style), series.hollow,
  )


def _line(places):
  return 'M' + 'L'.join(f'{x:g} {y:g}' for x, y in places)


def dash(style):
  """The SVG dashes of a style."""
  return _DASHES[style // COLOURS % len(_DASHES)]


def mark(style, x, y, r=4):
  """The SVG path of a style's mark around a place: a disc, a square, a triangle or a diamond."""
  if style % 4 == 0:
    return f'M{x - r:g} {y:g}a{r} {r} 0 1 0 {2 * r} 0a{r} {r} 0 1 0 {-2 * r} 0Z'
  corners = (
      ((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)), ((0, -1.2), (1.1, 0.9), (-1.1, 0.9)),
      ((0, -1.3), (1.3, 0), (0, 1.3), (-1.3, 0)),
  )[style % 4 - 1]
  return _line([(round(x + r * dx, 1), round(y + r * dy, 1)) for dx, dy in corners]) + 'Z'


def heat_map(rows, high):
  """Cells coloured from 0 to `high`.

  Args:
    rows: [[number, or None or NaN where there is none]].
    high: what is 100 %.

  Returns:
    [[(text in %, background, ink), or None]]: cividis, and what can be read on it.
  """
  return [[None if value is None or not _is_finite(value) else _cell(value / high) for value in row] for row in rows]


def _cell(share):
  at = min(max(share, 0), 1) * (len(_CIVIDIS) - 1)
  i = min(int(at), len(_CIVIDIS) - 2)
  before, after = (np.array([int(_CIVIDIS[j][k : k + 2], 16) for k in (1, 3, 5)]) for j in (i, i + 1))
  red, green, blue = (int(c) for c in before + (at - i) * (after - before))
  bright = 0.2126 * (red / 255) ** 2.2 + 0.7152 * (green / 255) ** 2.2 + 0.0722 * (blue / 255) ** 2.2
  return f'{100 * share:.0f}', f'#{red:02x}{green:02x}{blue:02x}', '#000' if bright > 0.18 else '#fff'
