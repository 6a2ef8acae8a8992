"""Runs of several seeds in lockstep: each in a thread of its own, a step of all of them one program."""

import collections
import contextlib
import dataclasses
import functools
import threading
from concurrent import futures

import jax
import numpy as np

from abd_jax import train
from abd_jax.errors import Abandoned
from abd_jax.parallel import CompiledStep
from abd_jax.programs import programs_for


def train_together(runs, dataset, stop):
  """Trains one method on several seeds at once.

  What the device does, it does for all of them together; what the host does, each run does by itself, so that each has
  the files that it has alone, and the figures but for the last bits of float arithmetic.

  Args:
    runs: [(Config, workdir)], which differ in their seeds and workdirs alone.
    dataset: the `data.Dataset` of all.
    stop: the `stopping.StopSignal` of the process.

  Returns:
    The `results.Results` of each.

  Raises:
    as `train.run`, what the first run to fail has raised.
  """
  config, _ = runs[0]
  lockstep = Lockstep(len(runs), stop)
  # Built before there are threads, which would each build their own.
  programs = lockstep.bind(programs_for(config, train.tasks_for(config, dataset), dataset))

  def one(config, workdir):
    with lockstep.taking_part():
      return train.run(config, workdir, dataset, lockstep.stop, programs)

  with futures.ThreadPoolExecutor(len(runs), 'run') as pool:
    try:
      made = [pool.submit(one, *run) for run in runs]
      futures.wait(made)
    except BaseException:  # Ctrl-C comes to this thread
      lockstep.fail()
      raise
  failures = [failure for failure in (run.exception() for run in made) if failure]
  for failure in sorted(failures, key=lambda failure: isinstance(failure, Abandoned)):
    raise failure
  return [run.result() for run in made]


class _HeardTogether:
  """A `StopSignal` that all runs hear after the same step, so that none is left to go on alone."""

  def __init__(self, stop):
    self._stop = stop
    self.received = False
    self.after = stop.after

  def listen(self):
    self.received = self._stop.received


@dataclasses.dataclass(eq=False)
class _Wish:
  """A step that a run waits for, and what becomes of it."""

  step: CompiledStep
  arguments: tuple
  place: list
  shapes: tuple
  outcome: tuple | None = None
  error: Exception | None = None


class _Shared:
  """A step as a run of several knows it."""

  def __init__(self, lockstep, step):
    self.compile_ahead = functools.partial(lockstep.compile_ahead, step)
    self._ask = functools.partial(lockstep.ask, step)

  def __call__(self, *args):
    return self._ask(*args)


class Lockstep:
  """Where the threads of several runs meet.

  A run that asks for a step waits until all others ask too, or have ended. Where all ask for the same one, of arguments
  of the same shapes, the device is called once; where they do not, as when they resume from different places, the run
  that is furthest behind goes alone until it has caught up.
  """

  def __init__(self, count, stop):
    """`count` runs, which are to hear of `stop`, a `StopSignal`."""
    self.stop = _HeardTogether(stop)
    self._count = self._running = count
    self._meeting = threading.Condition()
    self._wishes = []
    self._failed = False
    self._several = {}
    self._asking = threading.Lock()
    self._askers = collections.defaultdict(set)

  def bind(self, programs):
    """The `Programs` of each run, whose steps are made here."""
    return dataclasses.replace(
        programs,
        learn={phase: self._shared(step) for phase, step in programs.learn.items()},
        invert=programs.invert and self._shared(programs.invert),
    )

  def _shared(self, step):
    self._several[step] = step.of_several(self._count)
    return _Shared(self, step)

  def compile_ahead(self, step, threads, *args):
    """As the step's own, for all runs as one, once all of them have asked: one that is finished will not call it."""
    with self._asking:
      askers = self._askers[step]
      askers.add(threads)
      if len(askers) < self._count:
        return None
    return self._several[step].compile_ahead(threads, *((arg,) * self._count for arg in args))

  def ask(self, step, state, place, *others):
    """What becomes of a run's step, once the others have come to it."""
    shapes = tuple(map(np.shape, jax.tree.leaves(others)))  # a seed's smallest class may make a smaller batch
    return self._ask(_Wish(step, (state, place, *others), list(place[1:]), shapes))

  @contextlib.contextmanager
  def taking_part(self):
    """Entered by the thread of each run, for as long as the others have to wait for it."""
    try:
      yield
    except BaseException:
      self.fail()
      raise
    finally:
      with self._meeting:
        self._running -= 1
        self._grant()

  def fail(self):
    """Ends all runs at their next step, but where all of them end by themselves."""
    with self._meeting:
      self._failed = not self.stop.received
      self._grant()

  def _ask(self, wish):
    with self._meeting:
      self._wishes.append(wish)
      self._grant()
      self._meeting.wait_for(lambda: wish.outcome or wish.error)
    if wish.error:
      raise wish.error
    return wish.outcome

  def _grant(self):
    """Makes what can be made, once all who have not ended wait; the lock is held."""
    if len(self._wishes) < max(self._running, 1):
      return
    self.stop.listen()
    alike = {(wish.step, wish.shapes) for wish in self._wishes}
    same_step = len(self._wishes) == self._count and len(alike) == 1
    granted = self._wishes if same_step or self._failed else [min(self._wishes, key=lambda wish: wish.place)]
    self._wishes = [wish for wish in self._wishes if wish not in granted]
    try:
      for wish, outcome in zip(granted, self._make(granted, same_step), strict=True):
        wish.outcome = outcome
    except Exception as error:  # whatever it is, it is theirs who asked
      for wish in granted:
        wish.error = error
    self._meeting.notify_all()

  def _make(self, granted, together):
    """What each wish comes to."""
    if self._failed:
      raise Abandoned
    if not together:
      return [wish.step(*wish.arguments) for wish in granted]
    return self._several[granted[0].step](*zip(*(wish.arguments for wish in granted), strict=True))
