"""What a run says while it goes, to a terminal and to a file."""

import io

import pytest

from abd_jax import progress


class Terminal(io.StringIO):

  def isatty(self):
    return True


@pytest.fixture
def clock(monkeypatch):
  """Seconds that pass as the test says."""
  now = [100.0]
  monkeypatch.setattr(progress.time, 'monotonic', lambda: now[0])
  return now


def told(stream, clock):
  """A run that resumed at step 50 of its second task's inversion and made 70 more in 10 seconds."""
  shown = progress.Progress('abd seed 0', 5, stream)
  shown.begin(2, 'inversion', 1, 2, 50, 250)
  clock[0] += 10
  shown.step(120)
  shown.epoch(120, {'loss': 1.25})
  shown.say('a line [that] stays')
  shown.close()
  return stream.getvalue()


def test_a_file_gets_a_line_an_epoch(clock):
  # 70 steps in 10 s: 7 a second; the 130 left take 18.57 s.
  assert told(io.StringIO(), clock).splitlines() == [
      'abd seed 0  task 2/5  inversion  step 120/250  7.0 steps/s  0:00:18 left  loss 1.25', 'a line [that] stays'
  ]


def test_the_pace_is_that_of_the_calls_after_the_first_which_compiles(clock):
  stream = io.StringIO()
  shown = progress.Progress('abd seed 0', 5, stream)
  shown.begin(1, 'learn', 1, 1, 0, 100)
  for step, seconds in ((10, 50), (20, 2), (30, 2)):
    clock[0] += seconds
    shown.step(step)
    shown.epoch(step, {})
  # Of the first call alone 10 steps in 50 s, later 20 in 4 s, the other 70 in 14.
  assert [line.split('  ')[3:5] for line in stream.getvalue().splitlines()] == [
      ['step 10/100', '0.2 steps/s'], ['step 20/100', '5.0 steps/s'], ['step 30/100', '5.0 steps/s']
  ]
  assert '0:00:14 left' in stream.getvalue()


def test_a_terminal_gets_three_bars_one_within_the_other(clock):
  text = told(Terminal(), clock)
  *_, tasks, phases, steps, figures = [line for line in text.splitlines() if '/' in line or 'loss' in line]
  assert 'abd seed 0' in tasks and '1/5' in tasks  # one task is done
  assert 'task 2' in phases and '0/2' in phases
  assert 'inversion' in steps and '120/250' in steps and '7.0 steps/s  0:00:18 left' in steps
  assert 'loss 1.25' in figures
  assert 'a line [that] stays' in text
