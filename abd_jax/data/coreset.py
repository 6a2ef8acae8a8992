"""The old images that a method may keep: which ones, and no more than it is allowed. The one place where any lives."""

from typing import Any

import flax.struct
import numpy as np

_EMPTY = -1


@flax.struct.dataclass
class Coreset:
  """Old images, in arrays of one size so that they are kept like any other state.

  Attributes:
    images: u8[M, H, W, C], class by class, the best of a class first.
    labels: i32[M], -1 where nothing is kept.
  """

  images: Any
  labels: Any

  def __len__(self):
    return int(np.sum(np.asarray(self.labels) != _EMPTY))

  @property
  def kept(self):
    """(images, labels) of what is kept."""
    return np.asarray(self.images)[: len(self)], np.asarray(self.labels)[: len(self)]


def empty(capacity, image_shape):
  """A coreset of room for `capacity` images, with none in it."""
  return Coreset(np.zeros((capacity, *image_shape), np.uint8), np.full(capacity, _EMPTY, np.int32))


def filled(capacity, images, labels):
  """A coreset of room for `capacity` images, with these in it.

  Raises:
    ValueError: they are more than it may hold.
  """
  if len(images) > capacity:
    raise ValueError(f'{len(images)} images for a coreset of {capacity}')
  coreset = empty(capacity, images.shape[1:])
  coreset.images[: len(images)], coreset.labels[: len(labels)] = images, labels
  return coreset


def quotas(memory, seen):
  """i64[seen]: how many images each class may keep; what cannot be shared evenly goes, one each, to the newest."""
  each, over = divmod(memory, seen)
  return np.full(seen, each) + (np.arange(seen) >= seen - over)


def chosen_rows(labels, seen, memory, order):
  """The rows to keep, class by class, of what was kept before and the new task's images.

  Args:
    labels: i32[M], all of them below `seen`.
    seen: number of classes of the tasks so far.
    memory: how many images may be kept.
    order: (class, its rows, how many) -> rows, best first.

  Returns:
    i64[at most memory].
  """
  rows = []
  for k, quota in enumerate(quotas(memory, seen)):
    of_class = np.flatnonzero(labels == k)
    count = min(quota, len(of_class))
    rows.append(order(k, of_class, count)[:count])
  return np.concatenate(rows)


def nearest_mean(features_MD, count):
  """i64[count]: rows whose features lie nearest the mean of all, nearest first."""
  distances = np.linalg.norm(features_MD - features_MD.mean(axis=0), axis=1)
  return np.argsort(distances, kind='stable')[:count]


def herding(features_MD, count):
  """i64[count]: rows chosen one by one so that their mean stays nearest the mean of all (iCaRL, CVPR 2017)."""
  features_MD = np.asarray(features_MD, np.float64)
  mean_D = features_MD.mean(axis=0)
  chosen, left = [], np.ones(len(features_MD), bool)
  total_D = np.zeros_like(mean_D)
  for n in range(1, count + 1):
    distances = np.linalg.norm(mean_D - (total_D + features_MD) / n, axis=1)
    chosen.append(int(np.argmin(np.where(left, distances, np.inf))))
    left[chosen[-1]] = False
    total_D += features_MD[chosen[-1]]
  return np.array(chosen, np.int64)


def held_out(labels, num_kept, past, share):
  """bool[M]: what is kept out of training, as many images of every class, the first of each.

  Args:
    labels: i32[M], of the coreset and then of the new task's images.
    num_kept: how many of them are the coreset's.
    past: number of classes of the earlier tasks.
    share: of the coreset; each class gives what falls on one of the past classes, rounded down twice. A class of no
      more images than that gives all but one, which is left to learn it from.
  """
  each = int(share * num_kept) // past
  out = np.zeros(len(labels), bool)
  for k in np.unique(labels):
    rows = np.flatnonzero(labels == k)
    out[rows[: min(each, len(rows) - 1)]] = True
  return out
