"""Tiny-ImageNet and ImageNet from their official trees of JPEG files, through Pillow alone."""

import os
from pathlib import Path

import numpy as np

from abd_jax.data.photographs import Photographs, read_whole, workers
from abd_jax.errors import UserError
from abd_jax.written import check_lines, shown

_TINY = 'tiny-imagenet-200'
_TINY_SIZE = 64
IMAGENET_SIZE = 224


def _files(folder):
  """The images of a folder by name, hidden files passed over."""
  names = (entry.name for entry in os.scandir(folder) if not entry.name.startswith('.') and entry.is_file())
  return [os.path.join(folder, name) for name in sorted(names)]


def _class_folders(root):
  found = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith('.'))
  if not found:
    raise UserError(f'{root} has no folders: there must be one for each class, named after its wnid.')
  check_lines(found, f'{root}: the name of the folder')
  return found


def _text(path):
  try:
    return path.read_text('utf-8')
  except (OSError, UnicodeDecodeError) as error:
    raise UserError(f'{path} cannot be read as text: {error}.') from None


def _labelled(root, wnids, below=''):
  """(paths, i64[M]) of the folders of `wnids` under a root."""
  paths, labels = [], []
  for label, wnid in enumerate(wnids):
    try:
      found = _files(Path(root) / wnid / below)
    except OSError:
      found = []
    if not found:
      raise UserError(f'{Path(root) / wnid / below} has no images: every class of {root} needs some.')
    paths += found
    labels += [label] * len(found)
  return paths, np.array(labels, np.int64)


def read_tiny_imagenet(data_dir):
  """The arrays of Tiny-ImageNet, classes sorted by wnid; the official validation images are for testing.

  Args:
    data_dir: holds tiny-imagenet-200/ as the official archive unpacks, with all of its classes or some.

  Returns:
    {'train_images', 'train_labels', 'test_images', 'test_labels', 'class_names'}.

  Raises:
    UserError: the tree is not there, not whole, or an image cannot be read.
  """
  root = Path(data_dir) / _TINY
  annotations = root / 'val' / 'val_annotations.txt'
  if not (root / 'train').is_dir() or not annotations.is_file():
    raise UserError(
        f'--data_dir={data_dir} has no Tiny-ImageNet: expected {root / "train"} and {annotations}. Download'
        ' http://cs231n.stanford.edu/tiny-imagenet-200.zip and unpack it there.'
    )
  wnids = _class_folders(root / 'train')
  train_files, train_labels = _labelled(root / 'train', wnids, 'images')
  label_of = {wnid: label for label, wnid in enumerate(wnids)}
  lines = [line.split('\t')[:2] for line in _text(annotations).splitlines() if line.strip()]
  unknown = [line for line in lines if len(line) < 2 or line[1] not in label_of]
  if unknown:
    raise UserError(f'{annotations}: "{shown(" ".join(unknown[0]))}" names no class of {root / "train"}.')
  outside = [name for name, _ in lines if Path(name).name != name]
  if outside:
    raise UserError(f'{annotations}: "{shown(outside[0])}" is no name of a file in {root / "val" / "images"}.')
  test_files = [root / 'val' / 'images' / name for name, _ in lines]
  return {
      'train_images': _decoded(train_files),
      'train_labels': train_labels,
      'test_images': _decoded(test_files),
      'test_labels': np.array([label_of[wnid] for _, wnid in lines], np.int64),
      'class_names': _names(root / 'words.txt', wnids),
  }


def _names(words, wnids):
  """The first word for each class; the wnid where there is none."""
  lines = _text(words).splitlines() if words.is_file() else []
  names = dict(line.split('\t')[:2] for line in lines if '\t' in line)
  found = tuple(names.get(wnid, wnid).split(',')[0].strip() for wnid in wnids)
  check_lines(found, f'{words}: the name')
  return found


def _decoded(files):
  """u8[M, 64, 64, 3] of that many files."""
  images = np.empty((len(files), _TINY_SIZE, _TINY_SIZE, 3), np.uint8)
  for i, image in enumerate(workers().map(read_whole, files, chunksize=64)):
    if image.shape != images.shape[1:]:
      raise UserError(f'{files[i]} has {image.shape[1]}x{image.shape[0]} pixels: Tiny-ImageNet\'s are 64x64.')
    images[i] = image
  return images


def read_imagenet(data_dir):
  """ImageNet or some of its classes, as photographs that are decoded when they are needed; classes sorted by wnid.

  Args:
    data_dir: holds imagenet/, or one other folder whose name begins so, with train/<wnid>/ and val/<wnid>/; or is that
      folder itself. The validation images are for testing.

  Returns:
    As `read_tiny_imagenet`, the images being `Photographs`.

  Raises:
    UserError: there is no such folder, several could be meant, or a class has no images.
  """
  root = _imagenet_root(Path(data_dir))
  wnids = _class_folders(root / 'train')
  arrays = {'class_names': tuple(wnids)}
  for split, folder in (('train', 'train'), ('test', 'val')):
    files, arrays[f'{split}_labels'] = _labelled(root / folder, wnids)
    arrays[f'{split}_images'] = Photographs.of(files, IMAGENET_SIZE)
  return arrays


def _imagenet_root(data_dir):
  whole = lambda folder: (folder / 'train').is_dir() and (folder / 'val').is_dir()
  found = [folder for folder in (data_dir / 'imagenet', data_dir) if whole(folder)]
  found = found or [folder for folder in sorted(data_dir.glob('imagenet*')) if whole(folder)]
  if not found:
    raise UserError(
        f'--data_dir={data_dir} has no ImageNet: expected {data_dir / "imagenet" / "train"} and'
        f' {data_dir / "imagenet" / "val"}, with a folder of JPEG files for each wnid.'
    )
  if len(found) > 1 and found[0] != data_dir / 'imagenet':
    names = ' and '.join(folder.name for folder in found)
    raise UserError(f'--data_dir={data_dir} has {names}: name the folder itself with --data_dir.')
  return found[0]
