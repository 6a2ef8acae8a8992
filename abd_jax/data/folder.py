"""Photographs as they lie on a disk: JPEG, PNG and WebP of any size and colour, one folder a class."""

import os
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from abd_jax.data.photographs import FORMATS
from abd_jax.errors import UserError
from abd_jax.written import check_lines, path_of, shown


def class_files(folder):
  """{class name: its files} of a folder with a folder a class, by name; hidden files are passed over.

  Raises:
    UserError: there are no such folders, one has no file, or files lie beside them.
  """
  folder = path_of(folder)
  _check_folder(folder)
  entries = [entry for entry in sorted(folder.iterdir()) if not entry.name.startswith('.')]
  beside = [entry for entry in entries if not entry.is_dir()]
  if beside:
    raise UserError(f'{shown(beside[0])} lies beside the class folders, so it has no class: move it into one, or away.')
  if not entries:
    raise UserError(f'{folder} has no folders: there must be one for each class, named after it, with its images.')
  check_lines([entry.name for entry in entries], f'{shown(folder)}: the name of the folder')
  files = {entry.name: files_below(entry) for entry in entries}
  empty = [name for name, found in files.items() if not found]
  if empty:
    raise UserError(f'{folder / empty[0]} has no files: a class needs at least one image.')
  return files


def _check_folder(folder):
  if not folder.is_dir():
    raise UserError(f'{shown(folder)} is not a folder.' if folder.exists() else f'There is no {shown(folder)}.')


def files_below(path):
  """The file itself, or all files below a folder by name, links followed, hidden ones passed over.

  Links that lead nowhere are among them, to be named as unreadable.

  Raises:
    UserError: there is nothing of that name, or a folder may not be looked into.
  """
  path = path_of(path)
  if path.is_file():
    return [path]
  _check_folder(path)
  found, walked = [], set()

  def walk(folder):
    if (place := folder.resolve()) in walked:  # a link to a folder above it would lead round for ever
      return
    walked.add(place)
    for entry in sorted(path_of(folder).iterdir()):
      if entry.name.startswith('.'):
        continue
      if entry.is_dir():
        walk(entry)
      elif entry.is_file() or not entry.exists():
        found.append(entry)

  walk(path)
  return sorted(found)


def fit(image, size):
  """u8[size, size, 3]: a Pillow image as the model sees it.

  Turned upright as its EXIF orientation says, transparent parts over white, 16 bits rounded to 8; the square in its
  middle, as long as its short side, resampled (bicubic, each new pixel from all that it covers).
  """
  from PIL import Image, ImageOps

  image = ImageOps.exif_transpose(image)
  if image.mode.startswith('I'):  # 16 bits a pixel, which Pillow would clip, not scale
    levels = np.asarray(image).astype(np.int64)
    image = Image.fromarray(np.clip(np.round(levels / 257), 0, 255).astype(np.uint8))
  if image.has_transparency_data:
    image = image.convert('RGBA')
    image = Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image)
  image = image.convert('RGB')
  side = min(image.size)
  left, top = ((length - side) / 2 for length in image.size)
  square = (left, top, left + side, top + side)
  return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box=square))


def _read(path, size):
  """The image, or the reason why there is none."""
  from PIL import Image

  try:
    with Image.open(path, formats=FORMATS) as image:
      image.draft('RGB', (2 * size, 2 * size))  # a JPEG many times larger need not be decoded in full
      return fit(image, size)
  except Image.UnidentifiedImageError:
    return 'not a JPEG, PNG or WebP image'
  except Image.DecompressionBombError:
    return f'more than {2 * Image.MAX_IMAGE_PIXELS:,} pixels'
  except Exception as error:  # decoders raise whatever a damaged file makes them
    return str(error) or type(error).__name__


def read_files(files, size):
  """Reads images, several at a time.

  Args:
    files: their paths.
    size: pixels a side, see `fit`.

  Returns:
    (images, readable, unreadable): u8[N, size, size, 3], bool[M] for the M files which N of them are, and
    [(path, why not)] of the others.
  """
  from PIL import Image

  files = list(files)
  images = np.empty((len(files), size, size, 3), np.uint8)
  readable, unreadable = np.zeros(len(files), bool), []
  # Decoding runs outside Python's lock. What Pillow refuses is said; that an image is large need not be.
  with warnings.catch_warnings(), ThreadPoolExecutor(os.cpu_count()) as pool:
    warnings.simplefilter('ignore', Image.DecompressionBombWarning)
    for i, found in enumerate(pool.map(lambda path: _read(path, size), files)):
      if isinstance(found, str):
        unreadable.append((files[i], found))
      else:
        images[i], readable[i] = found, True
  return images[readable] if unreadable else images, readable, unreadable
