"""A data set as a sequence of tasks: class order, split, image size."""

import itertools
import random

import numpy as np

from abd_jax.data.photographs import Photographs
from abd_jax.errors import UserError


def class_order(num_classes, seed):
  """The order in which classes are met: Python's own shuffle, the one that the literature reports results for."""
  order = list(range(num_classes))
  random.Random(seed).shuffle(order)
  return order


def order_of_1993(num_classes):
  """NumPy's shuffle of seed 1993, in which iCaRL's successors meet their classes."""
  order = np.arange(num_classes)
  np.random.RandomState(1993).shuffle(order)
  return tuple(order.tolist())


def task_sizes(num_classes, num_tasks, first_task_classes=0):
  """How many classes each task has: the same number, or after a first task of another size the same number each.

  Raises:
    UserError: they cannot be split so.
  """
  first = (first_task_classes,) if first_task_classes else ()
  left, others = num_classes - sum(first), num_tasks - len(first)
  each, rest = divmod(left, others) if others else (1, left)
  if min((*first, each)) < 1 or rest:
    after = f' after a first of --first_task_classes={first_task_classes}' if first else ''
    raise UserError(f'{num_classes} classes cannot be split evenly over --num_tasks={num_tasks}{after}.')
  return first + (each,) * others


def area_average(images_NHWC, size):
  """u8[N, size, size, C]: images resampled so that each new pixel is the mean of the area it covers."""

  def coverage(old):
    # Row i: the share of each old pixel in new pixel i.
    edges = np.linspace(0, old, size + 1)
    starts = np.arange(old)
    overlap = np.minimum(edges[1:, None], starts + 1) - np.maximum(edges[:-1, None], starts)
    return (np.maximum(overlap, 0) * size / old).astype(np.float32)

  _, height, width, _ = images_NHWC.shape
  rows, columns = coverage(height), coverage(width)
  resized = np.empty((len(images_NHWC), size, size, images_NHWC.shape[-1]), np.uint8)
  for start in range(0, len(images_NHWC), 1000):  # in floats a thousand at a time
    part = images_NHWC[start : start + 1000].astype(np.float32)
    part = np.einsum('ih,nhwc->niwc', rows, part, optimize=True)
    resized[start : start + 1000] = np.round(np.einsum('jw,niwc->nijc', columns, part, optimize=True))
  return resized


# By what --class_order says.
_ORDERS = {
    'auto': lambda dataset, seed: dataset.class_order or class_order(dataset.num_classes, seed),
    'seed': lambda dataset, seed: class_order(dataset.num_classes, seed),
    'numpy1993': lambda dataset, seed: order_of_1993(dataset.num_classes),
    'labels': lambda dataset, seed: range(dataset.num_classes),
}


class TaskSequence:
  """The tasks of one run. Labels are positions in the class order: task n has classes `past(n)` to `seen(n)` - 1.

  Attributes:
    order: the data set's label of each class position.
    num_tasks, num_classes, image_shape: sizes.
    task_of_class: the task of each class position.
  """

  def __init__(
      self, dataset, num_tasks, *, num_classes=0, first_task_classes=0, class_order='auto', seed=0, image_size=0
  ):
    """Splits `dataset`; what the arguments mean is said where the flags of their names are defined.

    Raises:
      UserError: the classes cannot be split so, or images are to be enlarged.
    """
    total = num_classes or dataset.num_classes
    if total > dataset.num_classes:
      raise UserError(f'--num_classes={total} is more than the {dataset.num_classes} classes of {dataset.name}.')
    sizes = task_sizes(total, num_tasks, first_task_classes)
    height, width, channels = dataset.image_shape
    if image_size > min(height, width):
      raise UserError(f'--image_size={image_size} is larger than the {height}x{width} images of {dataset.name}.')
    self._dataset = dataset
    self._image_size = image_size
    self.order = list(_ORDERS[class_order](dataset, seed))[:total]
    self.num_tasks = num_tasks
    self.num_classes = total
    self.task_of_class = tuple(task for task, size in enumerate(sizes) for _ in range(size))
    self._edges = tuple(itertools.accumulate(sizes, initial=0))
    self.image_shape = (image_size, image_size, channels) if image_size else (height, width, channels)

  @classmethod
  def of(cls, config, dataset):
    """The tasks of a `config.Config`'s run; raises as above."""
    return cls(
        dataset, config.num_tasks, num_classes=config.num_classes, first_task_classes=config.first_task_classes,
        class_order=config.class_order, seed=config.seed, image_size=config.image_size,
    )

  def _rows_of(self, split, classes):
    """Rows of the data set, and their class positions."""
    labels = getattr(self._dataset, f'{split}_labels')
    position = np.full(self._dataset.num_classes, -1, np.int32)
    position[[self.order[c] for c in classes]] = classes
    rows = np.flatnonzero(position[labels] >= 0)
    return rows, position[labels[rows]]

  def _images_of(self, split, classes):
    rows, positions = self._rows_of(split, classes)
    images = getattr(self._dataset, f'{split}_images')[rows]
    if self._image_size:
      resize = Photographs.resized if isinstance(images, Photographs) else area_average
      images = resize(images, self._image_size)
    return images, positions

  def classes(self, task):
    """The class positions of task number `task`, counted from 0."""
    return list(range(self.past(task), self.seen(task)))

  def past(self, task):
    """How many classes the tasks before this one have."""
    return self._edges[task]

  def seen(self, task):
    """How many classes the tasks up to this one have."""
    return self._edges[task + 1]

  def _training_classes(self, task, cumulative):
    return list(range(self.seen(task))) if cumulative else self.classes(task)

  def train(self, task, *, cumulative=False):
    """(u8[M, H, W, C], i32[M]) training images of a task, or of all tasks up to it."""
    return self._images_of('train', self._training_classes(task, cumulative))

  def train_labels(self, task, *, cumulative=False):
    """i32[M]: the labels that `train` gives, without the images."""
    return self._rows_of('train', self._training_classes(task, cumulative))[1]

  def test(self, task):
    """(u8[M, H, W, C], i32[M]) test images of a task."""
    return self._images_of('test', self.classes(task))

  def _sizes(self, split):
    counts = np.bincount(getattr(self._dataset, f'{split}_labels'), minlength=self._dataset.num_classes)
    return np.add.reduceat(counts[self.order], self._edges[:-1])

  def train_sizes(self, *, cumulative=False):
    """How many training images each task comes with."""
    return np.cumsum(self._sizes('train')) if cumulative else self._sizes('train')

  def test_sizes(self):
    """How many test images each task has."""
    return self._sizes('test')

  def largest_train_size(self, *, cumulative=False):
    """The most training images that a task can come with, whatever the class order: one shape for all seeds."""
    counts = np.sort(np.bincount(self._dataset.train_labels, minlength=self._dataset.num_classes))
    most = self.num_classes if cumulative else max(len(self.classes(task)) for task in range(self.num_tasks))
    return int(counts[-most:].sum())


class OneTask:
  """A task after others whose images are gone, as the task loop asks for one.

  Attributes:
    order: the classes by position; those of this task are the last.
    num_classes: of the head, classes yet to come included.
    task_of_class: no tasks are told apart: a method that does would keep more than a classifier.
    image_shape: (H, W, C).
  """

  def __init__(self, images, labels, past, seen, num_classes):
    """`images` are u8[M, H, W, C], `labels` i32[M] with past <= label < seen."""
    self._images, self._labels = images, labels
    self._past, self._seen = past, seen
    self.order = list(range(seen))
    self.num_classes = num_classes
    self.task_of_class = (0,) * num_classes
    self.image_shape = images.shape[1:]

  def past(self, task):
    """How many classes were learned before."""
    del task
    return self._past

  def seen(self, task):
    """How many there are with this task's."""
    del task
    return self._seen

  def train(self, task, *, cumulative=False):
    """(u8[M, H, W, C], i32[M]) the images and their classes."""
    del task, cumulative
    return self._images, self._labels

  def largest_train_size(self, *, cumulative=False):
    """What the images are padded to, so that tasks of like sizes share their programs: the next power of two."""
    del cumulative
    return 1 << (len(self._images) - 1).bit_length()
