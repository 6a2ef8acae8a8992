"""Data sets as arrays: where they are found, how they are read."""

import dataclasses
import hashlib
import json

import numpy as np

from abd_jax import npz
from abd_jax.data import imagenet
from abd_jax.data.photographs import Photographs
from abd_jax.data.tasks import order_of_1993
from abd_jax.errors import UserError
from abd_jax.written import check_lines, path_of

CIFAR100_MEAN = (0.50707516, 0.48654887, 0.44091784)
CIFAR100_STD = (0.26733429, 0.25643846, 0.27615047)
TINY_IMAGENET_MEAN = (0.4389, 0.4114, 0.3682)
TINY_IMAGENET_STD = (0.2402, 0.2350, 0.2268)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# Of an npz file.
_KEYS = ('train_images', 'train_labels', 'test_images', 'test_labels', 'class_names')


@dataclasses.dataclass(frozen=True)
class Dataset:
  """A classification set, in memory or decoded as it is read.

  Attributes:
    name: as it stands in results.
    train_images, test_images: u8[M, H, W, C], or `photographs.Photographs`, which stay on disk.
    train_labels, test_labels: i64[M], from 0.
    class_names: one a class.
    mean, std: per channel on [0, 1], what images are standardised by.
    class_order: the order in which the benchmark meets the classes, whatever the seed; None: each seed has its own.
  """

  name: str
  train_images: np.ndarray
  train_labels: np.ndarray
  test_images: np.ndarray
  test_labels: np.ndarray
  class_names: tuple[str, ...]
  mean: tuple[float, ...]
  std: tuple[float, ...]
  class_order: tuple[int, ...] | None = None

  @property
  def streamed(self):
    """Whether images are decoded as they are read."""
    return isinstance(self.train_images, Photographs)

  @property
  def num_classes(self):
    return len(self.class_names)

  @property
  def image_shape(self):
    return self.train_images.shape[1:]

  @property
  def digest(self):
    """What tells it from another under the same name: of labels, names and shape, and of pixels by mean and std."""
    said = [self.class_names, self.image_shape, self.mean, self.std, self.class_order]
    digest = hashlib.sha256(json.dumps(said).encode())
    for labels in (self.train_labels, self.test_labels):
      digest.update(np.ascontiguousarray(labels, np.int64))
    return digest.hexdigest()[:16]


def load(name, data_dir='~/data', verify_checksum=True):
  """The data set called `name`.

  Args:
    name: 'digits' (ships with scikit-learn), 'cifar100' (from `data_dir`, downloaded to it if need be),
      'tiny_imagenet', 'imagenet' (from their official trees in `data_dir`), or 'npz:PATH' (keys train_images,
      train_labels, test_images, test_labels, class_names).
    data_dir: where archives and prepared sets lie.
    verify_checksum: refuse a downloaded or found archive that is not the distributed one.

  Returns:
    A `Dataset`.

  Raises:
    UserError: no such data set, or its files are missing or damaged.
  """
  data_dir = path_of(data_dir, '--data_dir=')
  if name == 'digits':
    return _digits()
  if name == 'cifar100':
    return _cifar100(data_dir, verify_checksum)
  if name == 'tiny_imagenet':
    arrays = imagenet.read_tiny_imagenet(data_dir)
    return Dataset(name, **arrays, mean=TINY_IMAGENET_MEAN, std=TINY_IMAGENET_STD)
  if name == 'imagenet':
    arrays = imagenet.read_imagenet(data_dir)
    order = order_of_1993(len(arrays['class_names']))
    return Dataset(name, **arrays, mean=IMAGENET_MEAN, std=IMAGENET_STD, class_order=order)
  if name.startswith('npz:'):
    path = path_of(name.removeprefix('npz:'), '--dataset=npz:')
    return _standardised_by_itself(name, **_read_npz(path))
  raise UserError(f'--dataset={name} is not one of digits, cifar100, tiny_imagenet, imagenet, npz:PATH.')


def _standardised_by_itself(name, train_images, train_labels, test_images, test_labels, class_names):
  mean, std = channel_statistics(train_images)
  return Dataset(name, train_images, train_labels, test_images, test_labels, class_names, mean, std)


def channel_statistics(images):
  """(mean, std) of each channel of u8[M, H, W, C] images, on [0, 1]; the std at least one level of grey."""
  levels = np.arange(256) / 255
  counts = np.zeros((images.shape[-1], 256))
  for start in range(0, len(images), 1000):  # counting widens pixels to 64 bits
    part = images[start : start + 1000].reshape(-1, images.shape[-1])
    counts += [np.bincount(channel, minlength=256) for channel in part.T]
  means = [np.average(levels, weights=count) for count in counts]
  variances = [np.average((levels - mean) ** 2, weights=count) for mean, count in zip(means, counts, strict=True)]
  return tuple(map(float, means)), tuple(max(float(variance) ** 0.5, 1 / 255) for variance in variances)


def _digits():
  """scikit-learn's 1,797 real digits of 8x8 pixels, a fixed stratified fifth of them for testing."""
  from sklearn.datasets import load_digits
  from sklearn.model_selection import train_test_split

  digits = load_digits()
  images = np.round(digits.images[..., None] * (255 / 16)).astype(np.uint8)
  train_images, test_images, train_labels, test_labels = train_test_split(
      images, digits.target.astype(np.int64), test_size=0.2, random_state=0, stratify=digits.target
  )
  names = tuple(str(name) for name in digits.target_names)
  return _standardised_by_itself('digits', train_images, train_labels, test_images, test_labels, names)


def _cifar100(data_dir, verify_checksum):
  npz = data_dir / 'cifar100.npz'
  if npz.exists():
    arrays = _read_npz(npz)
  else:
    try:
      from abd_jax.data import builders
    except ImportError as error:
      raise UserError(
          f'--dataset=cifar100 is read by tensorflow-datasets, which cannot be imported ({error}): install it, or put'
          f' {npz.name} in --data_dir.'
      ) from None
    arrays = builders.read_cifar100(data_dir, verify_checksum)
  return Dataset('cifar100', **arrays, mean=CIFAR100_MEAN, std=CIFAR100_STD)


def _read_npz(path):
  """The five arrays of an npz file, checked."""
  if not path.is_file():
    raise UserError(f'There is no file {path}.')
  arrays = npz.read(path, path, _KEYS)
  names = arrays['class_names']
  if names.ndim != 1 or names.dtype.kind not in 'Uiu':
    raise UserError(f'{path}: class_names must be a list of names.')
  arrays['class_names'] = tuple(str(name) for name in names)
  check_lines(arrays['class_names'], f'{path}: the class name')
  if '' in arrays['class_names'] or len(set(arrays['class_names'])) < len(names):
    raise UserError(f'{path}: class_names must be different names, none of them empty.')
  for split in ('train', 'test'):
    images, labels = arrays[f'{split}_images'], arrays[f'{split}_labels']
    if images.dtype != np.uint8 or images.ndim != 4:
      raise UserError(f'{path}: {split}_images must be uint8 [M, H, W, C], not {images.dtype} {list(images.shape)}.')
    if not images.size and (split == 'train' or len(images)):
      raise UserError(f'{path}: {split}_images are empty: their shape is {list(images.shape)}.')
    if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
      raise UserError(f'{path}: {split}_labels must be one whole number for each of {len(images)} images.')
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(names):
      raise UserError(f'{path}: {split}_labels must lie between 0 and {len(names) - 1}.')
    arrays[f'{split}_labels'] = labels.astype(np.int64)
  if arrays['train_images'].shape[1:] != arrays['test_images'].shape[1:]:
    shapes = [list(arrays[f'{split}_images'].shape[1:]) for split in ('train', 'test')]
    raise UserError(f'{path}: training images are {shapes[0]} and test images {shapes[1]}.')
  return arrays
