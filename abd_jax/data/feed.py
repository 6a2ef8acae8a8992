"""The real images of a learning phase, call by call: a whole task's on the device, or batches decoded ahead of it."""

import jax
import numpy as np

from abd_jax.addresses import epoch_order
from abd_jax.data.photographs import Photographs
from abd_jax.parallel import put, shapes

# Batches that are decoded before they are asked for. Memory holds these, those of a call and those on the device.
AHEAD = 2
_CROPS = 1  # keeps draws of crops apart from those of an epoch's order, whose address is as long


class _Visits:
  """In which order the epochs of a phase visit its images, in batches of which an incomplete last one is dropped."""

  def __init__(self, num_images, batch_size, address):
    self._num_images, self._batch_size, self._address = num_images, batch_size, address
    self._order = self._epoch = None
    self.steps_per_epoch = num_images // batch_size

  def rows(self, step):
    """i64[batch_size]: what a step of the phase learns from."""
    epoch, batch = divmod(step, self.steps_per_epoch)
    if epoch != self._epoch:
      self._order, self._epoch = epoch_order(self._num_images, *self._address, epoch), epoch
    return self._order[batch * self._batch_size :][: self._batch_size]


class Held:
  """All images are on the device, padded to `capacity` so that tasks have one shape; a call names rows."""

  def __init__(self, images, labels, capacity, *, batch_size, steps_per_call, address):
    """`images` are u8[M, H, W, C], `labels` i32[M]; `address` is (seed, task, phase)."""
    missing = capacity - len(images)
    images = np.pad(images, ((0, missing), (0, 0), (0, 0), (0, 0)))
    self._visits = _Visits(len(labels), batch_size, address)
    self._arrays = put((images, np.pad(labels, (0, missing))))
    self._shape = steps_per_call, batch_size
    self.steps_per_epoch = self._visits.steps_per_epoch

  def at(self, step, count):
    """(images, labels, rows i32[L, B]) of `count` steps from `step` on; rows beyond them are 0."""
    rows = np.zeros(self._shape, np.int32)
    for i in range(count):
      rows[i] = self._visits.rows(step + i)
    return *self._arrays, rows


class Streamed:
  """A call is handed its own images, decoded since some steps before; its step decides where each is cropped."""

  def __init__(self, images, labels, total, *, batch_size, steps_per_call, address, crop):
    """`images` are `Photographs`, `total` the phase's steps; without `crop` they are as an evaluation sees them."""
    self._images, self._labels, self._total, self._crop = images, labels, total, crop
    self._visits = _Visits(len(labels), batch_size, address)
    self._address = address
    self._shape = steps_per_call, batch_size
    self._begun = {}
    self.steps_per_epoch = self._visits.steps_per_epoch

  def _begin(self, step):
    rows = self._visits.rows(step)
    generator = np.random.default_rng((*self._address, step, _CROPS)) if self._crop else None
    return self._images[rows].decode(generator), self._labels[rows]

  def at(self, step, count):
    """(images u8[L * B, H, W, C], labels, rows i32[L, B]), as `Held.at`."""
    length, batch_size = self._shape
    images = np.zeros((length * batch_size, *self._images.shape[1:]), np.uint8)
    labels = np.zeros(length * batch_size, np.int32)
    for later in range(step, min(step + count + AHEAD, self._total)):
      if later not in self._begun:
        self._begun[later] = self._begin(later)
    for i in range(count):
      part = slice(i * batch_size, (i + 1) * batch_size)
      decoded, labels[part] = self._begun.pop(step + i)
      images[part] = decoded()
    return images, labels, np.arange(length * batch_size, dtype=np.int32).reshape(self._shape)


def shapes_of_call(streamed, capacity, image_shape, batch_size, steps_per_call):
  """The shapes of what `at` gives, of `Streamed` or of `Held`."""
  per_call = steps_per_call * batch_size
  rows = jax.ShapeDtypeStruct((steps_per_call, batch_size), np.int32)
  count = per_call if streamed else capacity
  arrays = jax.ShapeDtypeStruct((count, *image_shape), np.uint8), jax.ShapeDtypeStruct((count,), np.int32)
  return *(arrays if streamed else shapes(arrays)), rows


def feed(images, labels, capacity, epochs, *, crop, **settings):
  """What feeds a phase: `Streamed` for photographs, `Held` for arrays, which the step itself crops."""
  if isinstance(images, Photographs):
    total = epochs * (len(labels) // settings['batch_size'])
    return Streamed(images, labels, total, crop=crop, **settings)
  return Held(images, labels, capacity, **settings)
