"""The signal that a run should stop."""

import contextlib
import os
import select
import signal
import sys
import threading
import time

from abd_jax import processes
from abd_jax.parallel import compiling

# Seconds after a signal at which the process ends whatever it does: machines about to go wait ten or more.
_PATIENCE = 8.0


class Preempted(SystemExit):
  """The run was told to stop, saved, and can go on: exit status 75 (EX_TEMPFAIL)."""

  def __init__(self):
    super().__init__(75)


class StopSignal:
  """While entered, SIGTERM asks the run to save and stop; a second one ends it at once.

  Python handles no signal while a compilation keeps it, which may last longer than a machine about to go: a thread
  listens then. Phases are saved before their steps are compiled, so it loses nothing when it ends the process. It does
  so too when what the run is at takes `_PATIENCE`, a step as well as an evaluation or the reading of a data set: the
  last checkpoint is there. Of several processes it ends all.
  """

  def __init__(self):
    self.received = False
    self._waits = []  # for what runs still have to write, when they are ended
    self._left = threading.Event()
    self._previous = None

  @contextlib.contextmanager
  def after(self, wait):
    """While entered, the process is not ended before `wait()` returns."""
    self._waits.append(wait)
    try:
      yield
    finally:
      self._waits.remove(wait)

  def _receive(self, number, frame):
    del number, frame
    self.received = True
    signal.signal(signal.SIGTERM, signal.SIG_DFL)

  def __enter__(self):
    if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handlers
      self._previous = signal.signal(signal.SIGTERM, self._receive)
      heard, self._signals = os.pipe()
      os.set_blocking(self._signals, False)
      self._previous_signals = signal.set_wakeup_fd(self._signals)
      threading.Thread(target=self._listen, args=(heard,), daemon=True).start()
    return self

  def _listen(self, heard):
    told = None
    with os.fdopen(heard, 'rb', buffering=0) as numbers:
      while not self._left.is_set():
        if select.select([numbers], [], [], 0.2)[0]:
          number = numbers.read(1)
          if number and number[0] == signal.SIGTERM:
            told = told or time.monotonic()
        if told and not self._left.is_set() and (compiling() or time.monotonic() - told > _PATIENCE):
          processes.announce_end()
          self._end()
        if processes.end_announced():
          self._end()

  def _end(self):
    for wait in self._waits:
      wait()
    processes.let_others_end()
    print('Told to stop: the same command goes on from the last checkpoint.', file=sys.stderr, flush=True)
    os._exit(Preempted().code)

  def __exit__(self, *exception):
    if self._previous is not None:
      self._left.set()
      signal.signal(signal.SIGTERM, self._previous)
      signal.set_wakeup_fd(self._previous_signals)
      os.close(self._signals)
