"""What each phase reads: a task's own images, the coreset's, or what is held out of both."""

import functools

import numpy as np

from abd_jax.addresses import Address, generator_at
from abd_jax.data import coreset as coresets
from abd_jax.data.photographs import join
from abd_jax.errors import UserError
from abd_jax.methods.interface import Reads


class Streams:
  """The real images of every phase of one method's run, from what is on disk and what the coreset keeps."""

  def __init__(self, tasks, method, memory, seed):
    """`memory` is the most images that a coreset may hold; a method without one holds none."""
    self._tasks, self._method, self._seed = tasks, method, seed
    self._rule = method.coreset
    self._memory = memory if method.coreset else 0

  @property
  def memory(self):
    """Room of the coreset: no more than is allowed, nor than there is."""
    return min(self._memory, self._tasks.largest_train_size(cumulative=True))

  def capacity(self, reads):
    """The most images that a phase of any task and of any class order can read: one shape for all."""
    largest = self._tasks.largest_train_size(cumulative=self._method.cumulative)
    if reads is Reads.NEW:
      return largest
    if reads is Reads.MIXED:
      return largest + (largest if self._rule.resampled else self.memory)
    return self.memory

  def longest(self):
    """The capacity of the phase that reads most."""
    return max(self.capacity(phase.reads) for phase in self._method.first + self._method.later)

  def batch_size(self, phase, full, devices=1):
    """Real images a step of a phase: `full`, but no more than a phase that reads old images alone finds in any task.

    So few held-out images are one batch, and a small coreset is enough. It is a multiple of `devices`, and may be 0.
    """
    if phase.reads in (Reads.NEW, Reads.MIXED):
      return full
    least = min(size for _, of_task, size in self.sizes if of_task is phase)
    return min(full, least // devices * devices)

  def check(self, batch_size, devices=1):
    """Goes through all tasks by their labels alone.

    Raises:
      UserError: some phase would read less than a batch, or the coreset could not hold an image of each class.
    """
    if self._rule and self._memory < self._tasks.num_classes:
      raise UserError(
          f'--memory={self._memory} cannot hold an image of each of {self._tasks.num_classes} classes, which'
          f' --method={self._method.name} keeps.'
      )
    new_sizes = self._tasks.train_sizes(cumulative=self._method.cumulative)
    if min(new_sizes) < batch_size:
      task = int(np.argmin(new_sizes))
      raise UserError(
          f'--batch_size={batch_size} is larger than task {task + 1}, which has {new_sizes[task]} images.'
      )
    for task, phase, size in sorted(self.sizes, key=lambda found: found[2]):  # the smallest is the one to name
      if not 0 < self.batch_size(phase, batch_size, devices) <= size:
        raise UserError(
            f'The {size} images that the phase "{phase.name}" of --method={self._method.name} reads in task'
            f' {task + 1} make no batch of --batch_size={batch_size}: raise --memory, or lower --batch_size.'
        )

  @functools.cached_property
  def sizes(self):
    """[(task, phase, how many images it reads)] of the whole run, by the labels alone."""
    found = []
    kept = np.zeros(0, np.int32)
    for task in range(self._tasks.num_tasks):
      new = self._tasks.train_labels(task, cumulative=self._method.cumulative)
      after = kept
      if self._rule:  # any images will do: they are counted
        after = np.concatenate([kept, new])[self._choice(task, kept, new, lambda k, rows, count: rows)]
      for phase in self._method.phases(task):
        rows = self._rows(task, phase.reads, after if phase.reads is Reads.CORESET else kept, new)
        found.append((task, phase, len(rows)))
      kept = after
    return found

  def load(self, task, reads, coreset):
    """(u8[M, H, W, C] or `Photographs`, i32[M]) what a phase reads, in an order that the task alone decides."""
    images, labels = self._tasks.train(task, cumulative=self._method.cumulative)
    if reads is Reads.CORESET:
      old_images, old_labels = coreset.kept
      return join(old_images, images[:0]), old_labels
    if reads is Reads.NEW:
      return images, labels
    old_images, old_labels = coreset.kept
    rows = self._rows(task, reads, old_labels, labels)
    return join(old_images, images)[rows], np.concatenate([old_labels, labels])[rows]

  def _rows(self, task, reads, kept, new):
    """Rows, among the coreset's labels and then the new ones, of what a phase reads."""
    everything = np.arange(len(kept) + len(new))
    if reads is Reads.CORESET:
      return everything[: len(kept)]
    if reads is Reads.NEW or not len(kept):
      return everything[len(kept) :]
    if self._rule.resampled:
      drawn = generator_at(self._seed, task, Address.MIXING).integers(len(kept), size=len(new))
      return np.concatenate([drawn, everything[len(kept) :]])
    out = np.zeros(len(everything), bool)
    if self._rule.hold_out:
      past = self._tasks.past(task)
      out = coresets.held_out(np.concatenate([kept, new]), len(kept), past, self._rule.hold_out)
    return everything[out if reads is Reads.HOLD_OUT else ~out]

  def _choice(self, task, kept, new, order):
    seen = self._tasks.seen(task)
    return coresets.chosen_rows(np.concatenate([kept, new]), seen, self.memory, order)

  def choose(self, task, coreset, features):
    """The coreset after a task.

    Args:
      task: its number.
      coreset: the `Coreset` before.
      features: images u8[M, H, W, C] -> f32[M, D], the student's.

    Returns:
      A `Coreset`.
    """
    images, labels = self._tasks.train(task)
    old_images, old_labels = coreset.kept
    past = self._tasks.past(task)
    draw = generator_at(self._seed, task, Address.CHOOSING)

    def order(k, rows, count):
      if self._rule.rank is None:
        return draw.choice(rows, count, replace=False)
      if k < past:
        return rows  # ranked when the class was new
      return rows[self._rule.rank(features(images[rows - len(old_labels)]), count)]

    rows = self._choice(task, old_labels, labels, order)
    both = join(old_images, images)[rows], np.concatenate([old_labels, labels])[rows]
    return coresets.filled(self.memory, *both)
