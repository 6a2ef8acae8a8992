"""What tests of runs share: settings and a network that compile in a moment, a stop at a step, what a run has left."""

import jax
import numpy as np
import orbax.checkpoint as ocp

from abd_jax import config
from abd_jax.config import with_values
from abd_jax.models.resnet import ResNet
from abd_jax.stopping import StopSignal

TINY = with_values(
    config.Config(),
    dict(
        method='abd', num_tasks=5, student='resnet8', batch_size=32, epochs=1, decay_at=(), inversion_steps=3,
        color_jitter=False, flip=False, crop_padding=1,
    ),
)


class Stem(ResNet):
  """The network without a block, whose features are the stem's."""

  feature_size = 16


class StopAfter(StopSignal):
  """A stop signal that comes after so many steps of the run."""

  def __init__(self, steps):
    super().__init__()
    self._steps = steps

  @property
  def received(self):
    self._steps -= 1
    return self._steps <= 0

  @received.setter
  def received(self, value):
    pass


def as_step(function):
  """The function as a step that no thread compiles ahead."""
  function.compile_ahead = lambda *args: None
  return function


def final_states(workdir):
  """The arrays of a finished run's last checkpoint, by path."""
  whole = [path for path in (workdir / 'checkpoints').iterdir() if path.name.isdecimal()]  # not what was being written
  folder = max(whole, key=lambda path: int(path.name))
  return jax.tree.map(np.asarray, ocp.StandardCheckpointer().restore(folder.resolve() / 'states'))
