"""Photographs of all sizes, decoded when they are needed: data sets larger than memory.

Decoding is Pillow's, which runs outside Python's lock, so threads of this process keep all cores busy: nothing is
copied between processes, and an image needs no more than its pixels at the size asked for.
"""

import contextlib
import dataclasses
import functools
import math
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from abd_jax.errors import UserError

# What an image may be, whatever its file is called: other decoders of Pillow's start programs.
FORMATS = ('JPEG', 'PNG', 'WEBP')
# The share of an image that a random crop covers, its width to its height, and how often one is tried that fits.
AREA = (0.08, 1.0)
RATIO = (3 / 4, 4 / 3)
ATTEMPTS = 10
# An evaluation resizes an image's short side to 256 for a crop of 224.
_MARGIN = 256 / 224


@functools.cache
def workers():
  """The threads that decode, as many as there are cores."""
  return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix='decode')


@dataclasses.dataclass(frozen=True, eq=False)
class Photographs:
  """A sequence of images that are decoded on demand; indexed by rows it is a shorter one.

  As an array it is u8[M, size, size, 3], as an evaluation sees each: the short side resized to 8/7 of the size,
  the middle cut out.

  Attributes:
    items: an object array of M paths, or of images u8[H, W, 3] that are in memory already.
    size: pixels a side.
  """

  items: Any
  size: int

  @classmethod
  def of(cls, items, size):
    """From any sequence of paths or images."""
    held = np.empty(len(items), object)
    for i, item in enumerate(items):
      held[i] = item
    return cls(held, size)

  @property
  def shape(self):
    return len(self), self.size, self.size, 3

  def __len__(self):
    return len(self.items)

  def __getitem__(self, rows):
    return Photographs(self.items[rows], self.size)

  def __array__(self, dtype=None, copy=None):
    del copy
    images = np.empty(self.shape, np.uint8)
    for i, image in enumerate(workers().map(functools.partial(_middle, size=self.size), self.items)):
      images[i] = image
    return images if dtype is None else images.astype(dtype)

  def resized(self, size):
    """The same images, decoded to another size."""
    return Photographs(self.items, size)

  def decode(self, generator=None):
    """Begins to decode all of them; the function returned waits for u8[M, size, size, 3].

    Args:
      generator: NumPy's, whose draws say where each image is cropped; None: as an evaluation sees them.
    """
    one = functools.partial(_middle, size=self.size)
    arguments = [(item,) for item in self.items]
    if generator is not None:
      draws = generator.random((len(self), ATTEMPTS, 4))
      one, arguments = functools.partial(_crop, size=self.size), list(zip(self.items, draws, strict=True))
    futures = [workers().submit(one, *its) for its in arguments]
    return lambda: np.stack([future.result() for future in futures])


def join(first, second):
  """Two batches of images as one: arrays, or photographs where one of them is."""
  if not isinstance(second, Photographs):
    return np.concatenate([first, second])
  items = first.items if isinstance(first, Photographs) else Photographs.of(first, second.size).items
  return Photographs(np.concatenate([items, second.items]), second.size)


def crop_box(width, height, draws):
  """(left, top, width, height) of a random crop, as Inception was trained (Szegedy et al., CVPR 2015).

  Args:
    width, height: of the image.
    draws: f64[ATTEMPTS, 4] in [0, 1): area, ratio, left, top of each attempt. The first crop that fits is taken; the
      middle of the image, cut to the nearest ratio, when none does.
  """
  for area, ratio, left, top in draws:
    pixels = width * height * (AREA[0] + area * (AREA[1] - AREA[0]))
    shape = math.exp(math.log(RATIO[0]) + ratio * (math.log(RATIO[1]) - math.log(RATIO[0])))
    wide, high = round(math.sqrt(pixels * shape)), round(math.sqrt(pixels / shape))
    if 0 < wide <= width and 0 < high <= height:
      return int(left * (width - wide + 1)), int(top * (height - high + 1)), wide, high
  wide, high = min(width, round(height * RATIO[1])), min(height, round(width / RATIO[0]))
  return (width - wide) // 2, (height - high) // 2, wide, high


@contextlib.contextmanager
def _opened(item):
  """Pillow's image of a path or u8[H, W, 3]; a file is closed again, also where it breaks off."""
  from PIL import Image

  if isinstance(item, np.ndarray):
    yield Image.fromarray(item)
    return
  try:
    image = Image.open(item, formats=FORMATS)
  except Exception as error:  # whatever Pillow meets in what is no image
    raise _unreadable(item, error) from None
  with image:
    yield image


def _unreadable(item, error):
  return UserError(f'{item} cannot be read as an image: {error}. Mend it or take it away.')


def _rgb(image, item):
  try:
    return image.convert('RGB')  # some are grey
  except Exception as error:  # truncated files show only when decoded
    raise _unreadable(item, error) from None


def read_whole(path):
  """u8[H, W, 3]: an image as it is.

  Raises:
    UserError: it cannot be read.
  """
  with _opened(path) as image:
    return np.asarray(_rgb(image, path))


def _crop(item, draws, size):
  from PIL import Image

  with _opened(item) as image:
    width, height = image.size
    left, top, wide, high = crop_box(width, height, draws)
    # A JPEG many times larger than needed is decoded at half, a quarter or an eighth of its size.
    image.draft('RGB', (math.ceil(width * size / wide), math.ceil(height * size / high)))
    across, down = image.size[0] / width, image.size[1] / height
    box = (left * across, top * down, (left + wide) * across, (top + high) * down)
    return np.asarray(_rgb(image, item).resize((size, size), Image.Resampling.BILINEAR, box=box))


def _middle(item, size):
  from PIL import Image

  with _opened(item) as opened:
    image = _rgb(opened, item)
  if isinstance(item, np.ndarray) and item.shape[:2] == (size, size):
    return np.asarray(image)  # it is the middle of an image already
  factor = round(size * _MARGIN) / min(image.size)
  width, height = (max(size, round(side * factor)) for side in image.size)
  left, top = (width - size) // 2, (height - size) // 2
  resized = image.resize((width, height), Image.Resampling.BILINEAR)
  return np.asarray(resized.crop((left, top, left + size, top + size)))
