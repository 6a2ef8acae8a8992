"""Randomness by address: what is drawn depends on where in the run it is drawn, never on what was drawn before."""

import enum

import jax
import numpy as np


class Address(enum.IntEnum):
  """The fixed place of each use of randomness within a task; learning phases follow from LEARN on."""

  STUDENT_INIT = 0
  GENERATOR_INIT = 1
  INVERSION = 2
  PREVIEW = 3
  MIXING = 4
  CHOOSING = 5
  CLOSING = 6
  LEARN = 16


def key_at(place, later=0):
  """The key of one step, from where it stands alone: resuming needs no generator state.

  Args:
    place: i32[4], the run's seed, the task, the `Address` and the step.
    later: so many steps after it.
  """
  seed, task, address, step = place
  return jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), task), address), step + later)


def generator_at(seed, task, phase, epoch=0):
  """The host's random numbers, from where they stand alone."""
  return np.random.default_rng((seed, task, phase, epoch))


def epoch_order(num_images, seed, task, phase, epoch):
  """i64[num_images]: the order in which an epoch visits a task's images, from where it stands alone."""
  return generator_at(seed, task, phase, epoch).permutation(num_images)
