"""Where a run stands and what it has measured."""

import contextlib
import dataclasses
import time

from abd_jax.parallel import compile_seconds

_OF_TASK = ('inversion', 'train', 'eval', 'compile')
_TIMED = (*_OF_TASK, 'total')
_COUNTED = ('inversion', 'train')


@dataclasses.dataclass
class Record:
  """What a checkpoint says in JSON.

  `phase` counts the inversion and the method's phases within a task, `step` within a phase; `rollbacks` how often
  training was taken back to a checkpoint, to go on with other draws; `by_task` what each task has taken; `data` is the
  `digest` of the data set.
  """

  task: int = 0
  phase: int = 0
  step: int = 0
  holds: list = dataclasses.field(default_factory=list)
  accuracy_matrix: list = dataclasses.field(default_factory=list)
  accuracy_matrix_local: list = dataclasses.field(default_factory=list)
  accuracy_after_task: list = dataclasses.field(default_factory=list)
  seconds: dict = dataclasses.field(default_factory=lambda: dict.fromkeys(_TIMED, 0.0))
  steps: dict = dataclasses.field(default_factory=lambda: dict.fromkeys(_COUNTED, 0))
  peak_memory_bytes: int = 0
  synthetic_confidence: list = dataclasses.field(default_factory=list)
  rollbacks: int = 0
  by_task: list = dataclasses.field(default_factory=list)
  data: str = ''

  @classmethod
  def read(cls, said):
    """From what a checkpoint says in JSON; what an earlier version did not measure is as at a run's start.

    Raises:
      ValueError: another version says something else.
    """
    known = [field.name for field in dataclasses.fields(cls)]
    if unknown := sorted(set(said) - set(known)):
      raise ValueError(f'its record has {unknown[0]}')
    if missing := [name for name in known[:4] if name not in said]:  # the place, without which nothing has a meaning
      raise ValueError(f'its record lacks {missing[0]}')
    return cls(**said)

  @property
  def place(self):
    return self.task, self.phase, self.step

  def end_task(self, peak_memory_bytes, memory_bytes):
    """Notes what the task has taken, of which the peak is the run's so far, and goes to the start of the next."""
    before = {kind: sum(task['seconds'][kind] for task in self.by_task) for kind in _OF_TASK}
    seconds = {kind: self.seconds[kind] - before[kind] for kind in _OF_TASK}
    held = {'peak_memory_bytes': peak_memory_bytes, 'memory_bytes': memory_bytes}
    self.by_task.append({'seconds': seconds, **held})
    self.task, self.phase, self.step = self.task + 1, 0, 0

  @contextlib.contextmanager
  def timed(self, kind):
    """Adds the time inside to `seconds`, compilation apart; yields a function that adds the time so far at once."""
    since, compiled = time.monotonic(), compile_seconds()

    def clock():
      nonlocal since, compiled
      now, compiled_now = time.monotonic(), compile_seconds()
      self.seconds['compile'] += compiled_now - compiled
      self.seconds[kind] += now - since - (compiled_now - compiled)
      since, compiled = now, compiled_now

    yield clock
    clock()
