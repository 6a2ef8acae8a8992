"""The metrics that calls of a compiled step return: their means, and the check that they are finite."""

from typing import NamedTuple

import numpy as np

from abd_jax.errors import NotFinite


class Call(NamedTuple):
  """A call of a compiled step: metrics f32[L], of which the first `count` mean something; the first is of `step`."""

  metrics: dict
  count: int  # type: ignore[assignment]  # the name of a method of every tuple, of no use here
  step: int


def means(calls):
  """{name: mean over steps} of the metrics of some calls, on the host."""
  return {
      name: float(np.mean(np.concatenate([call.metrics[name][: call.count] for call in calls])))
      for name in calls[0].metrics
  }


def check_finite(calls, task, phase):
  """Raises `NotFinite` with the first step at which a metric of some calls is not finite, and the terms to blame."""
  for call in calls:
    metrics = {name: np.asarray(values)[: call.count] for name, values in call.metrics.items()}
    bad = [i for i in range(call.count) if not all(np.isfinite(values[i]) for values in metrics.values())]
    if bad:
      astray = {name: float(values[bad[0]]) for name, values in metrics.items() if not np.isfinite(values[bad[0]])}
      blamed = {name: value for name, value in astray.items() if name != 'loss'} or astray  # the loss is their sum
      said = ', '.join(f'{name} is {value}' for name, value in blamed.items())
      raise NotFinite(f'Task {task + 1}, {phase}, step {call.step + bad[0] + 1}: {said}.')
