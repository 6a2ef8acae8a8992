"""Images and labels as a caller hands them over, checked."""

import numpy as np

from abd_jax.errors import UserError
from abd_jax.written import check_lines


def checked_images(images, image_size, channels=None):
  """u8[N, H, W, C]: the images, if they are such.

  Args:
    images: what the caller takes for them.
    image_size: pixels a side.
    channels: C, None for any number.

  Raises:
    UserError: they have another type or shape.
  """
  images = _array(images, 'Images')
  if images.ndim != 4:
    raise UserError(
        f'Images must be an array [N, H, W, C], not {list(images.shape)}: one image is images[None], images without'
        ' channels are images[..., None].'
    )
  if images.dtype != np.uint8:
    raise UserError(
        f'Images must be uint8 from 0 to 255, not {images.dtype}: from [0, 1] they become so by'
        ' np.round(255 * images).astype(np.uint8).'
    )
  height, width, found = images.shape[1:]
  if (height, width) != (image_size, image_size):
    raise UserError(
        f'The model sees images of {image_size}x{image_size} pixels, and these have {height}x{width}: resize them, as'
        ' abd_jax.data.folder.fit does, or create a model of another image_size.'
    )
  if found != (channels or found):
    raise UserError(f'The model sees images of {channels} channels, and these have {found}.')
  return images


def checked_names(class_names, known=()):
  """The names of new classes as a tuple.

  Raises:
    UserError: they are no names, one comes twice, or one is among the classes `known` already.
  """
  if isinstance(class_names, str):
    raise UserError(f'Class names must be a list of names, not the one text {class_names!r}.')
  if isinstance(class_names, set | frozenset):
    raise UserError('Class names must be in an order, by which labels name them: a set has none.')
  names = tuple(class_names)
  wrong = [name for name in names if not isinstance(name, str) or not name]
  if wrong:
    raise UserError(f'Class names must be texts, and {wrong[0]!r} is not.')
  check_lines(names, 'The class name')
  if not names:
    raise UserError('There must be at least one class to learn.')
  twice = sorted({name for name in names if names.count(name) > 1})
  if twice:
    raise UserError(f'Class names must differ: {", ".join(twice)} comes twice.')
  clash = [name for name in names if name in known]
  if clash:
    raise UserError(
        f'The model knows {", ".join(clash)} already: a class is learned once, from all of its images. Give other'
        ' classes, or other names.'
    )
  return names


def checked_labels(labels, class_names, num_images):
  """i32[N]: the position of each image's class among `class_names`.

  Args:
    labels: for each image that position, or the name.
    class_names: the classes there are.
    num_images: N.

  Raises:
    UserError: there are more or fewer than images, or one is no class.
  """
  labels = _array(labels, 'Labels')
  if labels.shape != (num_images,):
    raise UserError(f'There must be one label for each of {num_images} images, not an array {list(labels.shape)}.')
  if labels.dtype.kind in 'UO':
    position = {name: i for i, name in enumerate(class_names)}
    unknown = [label for label in labels.tolist() if not isinstance(label, str) or label not in position]
    if unknown:
      raise UserError(f'{unknown[0]!r} is not one of the classes {_listed(class_names)}.')
    return np.array([position[label] for label in labels.tolist()], np.int32)
  if labels.dtype.kind not in 'iu' and num_images:
    raise UserError(f'Labels must be whole numbers or class names, not {labels.dtype}.')
  if num_images and not 0 <= labels.min() <= labels.max() < len(class_names):
    wrong = labels.max() if labels.min() >= 0 else labels.min()
    raise UserError(
        f'Labels must be positions among the {len(class_names)} class names, 0 to {len(class_names) - 1}, and {wrong}'
        ' is none.'
    )
  return labels.astype(np.int32)


def _array(values, what):
  try:
    return np.asarray(values)
  except ValueError as error:  # rows of unlike lengths
    raise UserError(f'{what} are no array: {str(error).rstrip(".")}.') from None


def _listed(names, most=10):
  return ', '.join(names[:most]) + (f' and {len(names) - most} more' if len(names) > most else '')
