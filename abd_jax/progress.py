"""What a run says while it goes: live bars on a terminal, a line an epoch elsewhere."""

import sys
import threading
import time

from abd_jax import processes


def _duration(seconds):
  minutes, seconds = divmod(int(seconds), 60)
  return f'{minutes // 60}:{minutes % 60:02d}:{seconds:02d}'


class Progress:
  """Shows the task, the phase within it and the step within that, with rate and time left of the phase."""

  def __init__(self, label, num_tasks, stream=None):
    """`label` names the run; `stream` defaults to standard output. Of several processes the first one speaks."""
    self._label, self._num_tasks = label, num_tasks
    self._stream = stream or sys.stdout
    # A terminal has one set of bars: runs in threads say a line an epoch.
    alone = threading.current_thread() is threading.main_thread()
    bars = self._stream.isatty() and processes.is_first() and alone
    self._bars = _Bars(label, num_tasks, self._stream) if bars else None

  def begin(self, task, name, phase, phases, done, total):
    """Phase `name`, the `phase`-th of `phases` in a task, of `total` steps, starts, or goes on from `done`."""
    self._place = f'{self._label}  task {task}/{self._num_tasks}  {name}'
    self._begun, self._first, self._total = (done, time.monotonic()), None, total
    if self._bars:
      self._bars.begin(task, name, phase, phases, done, total)

  def step(self, done):
    """So many steps are done."""
    if self._first is None:  # the first call compiles: the pace is that of the others, as soon as there are any
      self._first = done, time.monotonic()
    if self._bars:
      rate, left = self._pace(done)
      self._bars.step(done, f'{rate:.1f} steps/s  {left} left')

  def epoch(self, done, metrics):
    """An epoch, or as many steps of the inversion, ends."""
    figures = '  '.join(f'{name} {value:.4g}' for name, value in metrics.items())
    if self._bars:
      self._bars.figures(figures)
    else:
      rate, left = self._pace(done)
      self.say(f'{self._place}  step {done}/{self._total}  {rate:.1f} steps/s  {left} left  {figures}')

  def _pace(self, done):
    """Steps a second, and the time that the rest of the phase takes at this rate."""
    first, since = self._first if self._first and done > self._first[0] else self._begun
    rate = max(done - first, 1e-9) / max(time.monotonic() - since, 1e-9)
    return rate, _duration((self._total - done) / rate)

  def say(self, text):
    """A line that stays."""
    if self._bars:
      self._bars.say(text)
    elif processes.is_first():
      print(text, file=self._stream, flush=True)

  def close(self):
    if self._bars:
      self._bars.close()


class _Bars:
  """Three bars, one within the other, and the figures of the last epoch below; gone when the run ends."""

  def __init__(self, label, num_tasks, stream):
    from rich import console, live, progress, text

    self._bars = progress.Progress(
        progress.TextColumn('{task.description}', markup=False),
        progress.BarColumn(bar_width=20),
        progress.MofNCompleteColumn(),
        progress.TextColumn('{task.fields[said]}', markup=False),
    )
    self._figures = text.Text(no_wrap=True, overflow='ellipsis', style='dim')
    self._live = live.Live(
        console.Group(self._bars, self._figures), console=console.Console(file=stream), refresh_per_second=4,
        transient=True,
    )
    self._task = self._bars.add_task(label, total=num_tasks, said='tasks')
    self._phase = self._bars.add_task('', total=None, said='phases', visible=False)
    self._step = self._bars.add_task('', total=None, said='', visible=False)
    self._live.start()

  def begin(self, task, name, phase, phases, done, total):
    self._bars.update(self._task, completed=task - 1)
    self._bars.update(self._phase, description=f'  task {task}', completed=phase - 1, total=phases, visible=True)
    self._bars.update(self._step, description=f'    {name}', completed=done, total=total, said='', visible=True)

  def step(self, done, said):
    self._bars.update(self._step, completed=done, said=said)

  def figures(self, text):
    self._figures.plain = f'    {text}'

  def say(self, text):
    self._live.console.print(text, markup=False, highlight=False)

  def close(self):
    self._live.stop()
