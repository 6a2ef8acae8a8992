"""Does what a run keeps hold training images? Arrays are searched for them, whole or nearly so, in whatever form.

Every run of as many values as an image has, at every place of every array, is held against every image: as pixels
from 0 to 255, on [0, 1] and standardised, its channels last or first. Means of parts and the contrast rule out nearly
all pairs, so that the rest can be compared value by value.
"""

from pathlib import Path

import jax
import numpy as np

from abd_jax import checkpoint, npz

# Root mean square difference, in grey levels of 255, up to which two images are the same one.
TOLERANCE = 2.0
# An image of less contrast (standard deviation, in grey levels) cannot be told from zeros.
BLANK = 4.0
_PARTS, _CHUNK = 8, 100_000


def blank(images_NHWC):
  """bool[N]: which of u8[N, H, W, C] images have too little contrast to be searched for."""
  return images_NHWC.reshape(len(images_NHWC), -1).std(axis=1) < BLANK


def find(arrays, images_NHWC, mean, std, tolerance=TOLERANCE):
  """The images that arrays hold.

  Args:
    arrays: {name: array} of any shape and numeric type.
    images_NHWC: u8[N, H, W, C].
    mean, std: per channel on [0, 1], what the classifier's images are standardised by.
    tolerance: root mean square difference, in grey levels, up to which a match is one.

  Returns:
    {name: sorted list of rows of `images_NHWC`} of the arrays that hold any.
  """
  forms = [_Form(images_NHWC, values, scale, tolerance) for values, scale in _forms(images_NHWC, mean, std)]
  found = {}
  for name, array in arrays.items():
    array = np.asarray(array)
    if array.size >= images_NHWC[0].size and array.dtype.kind in 'iufV' and array.dtype.itemsize <= 8:
      rows = {row for form in forms for row in form.found_in(array)}
      if rows:
        found[name] = sorted(rows)
  return found


def _forms(images_NHWC, mean, std):
  """[(f32[N, D] images as they may be kept, grey levels of one unit)]."""
  pixels = images_NHWC.astype(np.float32)
  standardised = (pixels / 255 - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)
  found = []
  for values, scale in ((pixels, 1.0), (pixels / 255, 255.0), (standardised, 255.0 * min(std))):
    found.append((values.reshape(len(values), -1), scale))
    if values.shape[-1] > 1:
      found.append((values.transpose(0, 3, 1, 2).reshape(len(values), -1), scale))
  return found


class _Form:
  """Images in one form, ready to be looked for."""

  def __init__(self, images_NHWC, values_ND, scale, tolerance):
    from sklearn.neighbors import KDTree

    self._rows = np.flatnonzero(~blank(images_NHWC))
    self._shape, self._values_ND, self._within = images_NHWC.shape[1:], values_ND[self._rows], tolerance / scale
    self._length = values_ND.shape[1]
    self._edges = np.linspace(0, self._length, _PARTS + 1).astype(int)
    if len(self._rows):
      contrasts = self._values_ND.std(axis=1, dtype=np.float64)
      self._contrasts = contrasts.min() - self._within, contrasts.max() + self._within
      means = [part.mean(axis=1, dtype=np.float64) for part in np.split(self._values_ND, self._edges[1:-1], axis=1)]
      self._tree = KDTree(np.stack(means, axis=1))

  def found_in(self, array):
    """The rows of the images that an array holds."""
    if not len(self._rows):
      return set()
    values = np.asarray(array, np.float32).reshape(-1)
    step = self._length if array.shape[-len(self._shape):] == self._shape else 1  # an array of images is in rows
    starts = np.arange(0, len(values) - self._length + 1, step)
    found = set()
    for chunk in np.split(starts, range(_CHUNK, len(starts), _CHUNK)):
      found |= self._found_at(values[chunk[0] : chunk[-1] + self._length], chunk - chunk[0])
    return found

  def _found_at(self, values, starts):
    if not np.all(np.isfinite(values)):
      values = np.nan_to_num(values, posinf=0.0, neginf=0.0)
    sums, squares = (np.concatenate([[0.0], np.cumsum(v)]) for v in (values.astype(float), values.astype(float) ** 2))
    over = lambda sums, first, last: sums[starts + last] - sums[starts + first]
    mean = over(sums, 0, self._length) / self._length
    contrast = np.sqrt(np.maximum(over(squares, 0, self._length) / self._length - mean**2, 0))
    likely = (contrast >= self._contrasts[0]) & (contrast <= self._contrasts[1])
    if not likely.any():
      return set()
    parts = [over(sums, a, b)[likely] / (b - a) for a, b in zip(self._edges, self._edges[1:], strict=False)]
    # No two that are within tolerance are further apart than this in the means of their parts.
    near = self._tree.query_radius(np.stack(parts, axis=1), self._within * _PARTS**0.5 * 1.01)
    found = set()
    for start, candidates in zip(starts[likely], near, strict=True):
      if len(candidates):
        apart = self._values_ND[candidates] - values[start : start + self._length]
        same = np.sqrt(np.mean(apart**2, axis=1)) <= self._within
        found |= set(self._rows[candidates[same]].tolist())
    return found


def search(run):
  """What a `finished.FinishedRun` keeps of the training images that it saw.

  Returns:
    {'searched_for': how many images, 'blank': how many more that are not searched for, 'arrays': how many there were,
    'found': {where: how many images}, 'allowed': of them in one place}.

  Raises:
    UserError: a checkpoint cannot be read.
  """
  images = np.asarray(run.tasks.train(run.last, cumulative=True)[0])
  count, found = 0, {}
  for where, arrays in kept_arrays(run.workdir):
    count += len(arrays)
    rows = find(arrays, images, run.networks.mean, run.networks.std).values()
    if rows:
      found[where] = len(set().union(*rows))
  passed_over = int(blank(images).sum())
  return {
      'searched_for': len(images) - passed_over, 'blank': passed_over, 'arrays': count, 'found': found,
      'allowed': run.config.memory if run.method.coreset else 0,
  }


def sentence(said):
  """What `search` has found, in words."""
  if not said['found']:
    return f'none of {said["searched_for"]} training images in {said["arrays"]} arrays kept'
  where, most = max(said['found'].items(), key=lambda item: item[1])
  return f'{most} of {said["searched_for"]} training images in {where}, of {said["allowed"]} allowed'


def kept_arrays(workdir):
  """What a run's folder keeps in arrays.

  Yields:
    (where, {name: array}): of each checkpoint, and of each .npz file.

  Raises:
    UserError: one of them cannot be read.
  """
  workdir = Path(workdir)
  for record, states in checkpoint.saved(workdir):
    at = f'the checkpoint after task {record["task"]}, phase {record["phase"]}, step {record["step"]}'
    yield at, {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(states)}
  for path in sorted(workdir.rglob('*.npz')):
    yield str(path.relative_to(workdir)), npz.read(path, path)
