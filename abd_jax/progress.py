"""What a run says while it goes: a live line on a terminal, a line an epoch elsewhere."""

import sys
import time

from abd_jax import processes


def _duration(seconds):
  minutes, seconds = divmod(int(seconds), 60)
  return f'{minutes // 60}:{minutes % 60:02d}:{seconds:02d}'


class Progress:
  """Shows task, phase, step, rate and time left of a phase."""

  def __init__(self, label, num_tasks, stream=None):
    """`label` names the run; `stream` defaults to standard output. Of several processes the first one speaks."""
    self._label, self._num_tasks = label, num_tasks
    self._stream = stream or sys.stdout
    self._live = None
    if self._stream.isatty() and processes.is_first():
      from rich import console, live

      self._live = live.Live(console=console.Console(file=self._stream), refresh_per_second=4, transient=True)
      self._live.start()

  def begin(self, task, phase, done, total):
    """A phase of `total` steps starts, or goes on from `done`."""
    self._place = f'{self._label}  task {task}/{self._num_tasks}  {phase}'
    self._first, self._total, self._since = done, total, time.monotonic()

  def step(self, done):
    """So many steps are done."""
    if self._live:
      from rich.text import Text

      self._live.update(Text(self._line(done)))

  def epoch(self, done, metrics):
    """An epoch, or as many steps of the inversion, ends."""
    if not self._live:
      figures = '  '.join(f'{name} {value:.4g}' for name, value in metrics.items())
      self.say(f'{self._line(done)}  {figures}')

  def _line(self, done):
    elapsed = max(time.monotonic() - self._since, 1e-9)
    rate = max(done - self._first, 1e-9) / elapsed
    left = _duration((self._total - done) / rate)
    return f'{self._place}  step {done}/{self._total}  {rate:.1f} steps/s  {left} left'

  def say(self, text):
    """A line that stays."""
    if self._live:
      self._live.console.print(text, markup=False, highlight=False)
    elif processes.is_first():
      print(text, file=self._stream, flush=True)

  def close(self):
    if self._live:
      self._live.stop()
