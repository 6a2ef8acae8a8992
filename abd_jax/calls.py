"""What the calls of a compiled step have said."""

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
  """Raises `NotFinite` with the first step at which a metric of some calls is not finite."""
  for call in calls:
    for name, values in call.metrics.items():
      bad = np.flatnonzero(~np.isfinite(np.asarray(values)[: call.count]))
      if len(bad):
        value = float(values[bad[0]])
        raise NotFinite(f'Task {task + 1}, {phase}, step {call.step + bad[0] + 1}: {name} is {value}.')
