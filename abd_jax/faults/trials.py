"""A small real run, hurt in every way that a machine can hurt one: does it go on to the same end, or say why not?

`experiments/faults.py` is the command. A run is a process, or two, of `experiments/digits.py`; an end is its accuracy
matrix and, bit for bit, the arrays of its last checkpoint, held against those of a run that nothing befell.
"""

import contextlib
import functools
import itertools
import os
import random
import re
import resource
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from abd_jax.faults.damage import DAMAGES, VERSIONS, of_another_version, truncate
from abd_jax.faults.small_run import AIMS, DIGITS, TO_STOP, SmallRun, contents, end_of, same_end

# Read by Python at its start: twice a second the clock on the wall is set, by up to an hour either way.
_JUMPING_CLOCK = """
import random, time
_time, _monotonic = time.time, time.monotonic
time.time = lambda: _time() + random.Random(int(2 * _monotonic())).uniform(-3600, 3600)
"""


class Trials:
  """Hurts runs below a folder and counts what becomes of them."""

  def __init__(self, folder, seed=0, say=print):
    self._folder, self._draw, self._say = Path(folder), random.Random(seed), say
    self._names, self._whole = itertools.count(), {}
    self.tried, self.survived = {}, {}
    self.lost, self.stopping, self.places, self.failures = [], [], [], []

  # What is found.

  def _count(self, fault, survived, why=''):
    self.tried[fault] = self.tried.get(fault, 0) + 1
    self.survived[fault] = self.survived.get(fault, 0) + bool(survived)
    if not survived:
      self.failures.append(f'{fault}: {why}')
    self._say(f'{fault}: {"survived" if survived else "NOT SURVIVED: " + why}', flush=True)

  def report(self):
    """What the trials have come to, as JSON says it; seconds."""
    spread = lambda values: {
        'count': len(values), 'median': round(float(np.median(values)), 2), 'worst': round(max(values), 2)
    } if values else None
    return {
        'faults': {fault: {'tried': n, 'survived': self.survived[fault]} for fault, n in self.tried.items()},
        'tried': sum(self.tried.values()),
        'survived': sum(self.survived.values()),
        'work_lost_by_a_kill': spread(self.lost),
        'from_sigterm_to_the_end': spread(self.stopping),
        'resumed_in': {name: self.places.count(name) for name in sorted(set(self.places))},
        'failures': self.failures,
    }

  # Runs.

  def _new(self):
    return self._folder / f'run{next(self._names)}'

  def _finished(self, workdir, fault, **settings):
    """Lets a run go to its end and counts whether that is the one it has to be."""
    run = SmallRun(workdir, **settings)
    statuses = run.end()
    self._note_place(run)
    if any(statuses):
      return self._count(fault, False, f'ended with {statuses}: {run.said[-300:]}')
    self._count(fault, same_end(end_of(workdir), self.whole(len(statuses))), 'another end')

  def whole(self, processes=1):
    """The end of a run that nothing befalls."""
    if processes not in self._whole:
      workdir = self._new()
      run = SmallRun(workdir, processes=processes)
      assert run.end() == [0] * processes, run.said
      self._whole[processes] = end_of(workdir)
    return self._whole[processes]

  def _note_place(self, run):
    for line in run.lines:
      if found := re.search(r'Resuming after (\d+) tasks, (\d+) phases and (\d+) steps', line):
        _, phase, step = map(int, found.groups())
        self.places.append(('inversion', 'learning', 'the end of a task')[min(phase, 2)] if step else 'between phases')

  def _stopped(self, aim='any'):
    """A workdir whose run was killed in its second half, two checkpoints kept."""
    workdir = self._new()
    run = SmallRun(workdir, '--checkpoint_seconds=0.2')
    run.wait_for('evaluation')
    run.wait_for(aim)
    time.sleep(self._draw.uniform(0, 0.5))
    run.processes[0].kill()
    run.end()
    return workdir

  # Signals.

  def signals(self, moments, processes=1, hits=5):
    """Kills runs, or tells them to stop, `moments` times; each run `hits` times at most before it may end."""
    aims, done = list(AIMS), 0
    while done < moments:
      kinds: list[tuple[str, str]] = []
      workdir, alive = self._new(), True
      while alive and done < moments and len(kinds) < hits:
        run = SmallRun(workdir, f'--checkpoint_seconds={self._draw.choice([0.2, 1, 60])}', processes=processes)
        aim = 'any' if kinds else aims[done // hits % len(aims)]  # which a run that goes on may be past
        alive = run.wait_for(aim)
        if alive:
          time.sleep(self._draw.uniform(0, 0.5))
          kinds.append(self._hit(run, aim, done % 2 == 0))
          done += 1
        else:
          run.end()
        self._note_place(run)
      last = SmallRun(workdir, processes=processes)
      statuses = last.end()
      self._note_place(last)
      survived = not any(statuses) and same_end(end_of(workdir), self.whole(processes))
      for fault, why in kinds:
        self._count(fault, survived and not why, why or f'{statuses}, or another end: {last.said[-300:]}')

  def _hit(self, run, aim, kill):
    """(fault, what was wrong with how the run took it)."""
    where = aim if len(run.processes) == 1 else 'two processes'
    at = time.time()
    if kill:
      lost = run.lost(at)
      for process in run.processes:
        process.kill()
      run.end()
      self.lost.append(lost)
      return f'SIGKILL, {where}', ''
    since = time.monotonic()
    self._draw.choice(run.processes).terminate()
    statuses = run.end()
    took = time.monotonic() - since
    if not any(statuses):  # it had just ended by itself
      return f'SIGTERM, {where}', ''
    self.stopping.append(took)
    wrong = took > TO_STOP or set(statuses) != {75}
    return f'SIGTERM, {where}', f'ended with {statuses} after {took:.1f} s: {run.said[-300:]}' if wrong else ''

  # Disks.

  def full_disks(self, times):
    """No file may grow beyond a few thousand bytes from a random moment on."""
    for _ in range(times):
      workdir = self._new()
      run = SmallRun(workdir, '--checkpoint_seconds=0.2')
      run.wait_for(self._draw.choice(list(AIMS)))
      time.sleep(self._draw.uniform(0, 0.3))
      limit = self._draw.choice([0, 1000, 20_000])
      with contextlib.suppress(ProcessLookupError):
        resource.prlimit(run.processes[0].pid, resource.RLIMIT_FSIZE, (limit, limit))
      statuses = run.end()
      if statuses != [2] or 'Traceback' in run.said or 'cannot be written' not in run.said:
        self._count('full disk', False, f'ended with {statuses}: {run.said[-600:]}')
      else:
        self._finished(workdir, 'full disk')

  def damaged(self, times):
    """What a run has kept is damaged before it goes on."""
    for fault, damage in DAMAGES.items():
      for _ in range(times):
        workdir = self._stopped()
        damage(workdir, self._draw)
        self._finished(workdir, fault)

  def refused(self):
    """What a run must not go on from: it says so, and touches nothing."""
    workdir, kept_as = self._stopped(), self._new()
    shutil.copytree(workdir, kept_as)
    cases: dict[str, Callable] = {
        'both checkpoints truncated': lambda folder: [truncate(folder, self._draw, n) for n in (1, 2)],
        **{f'of a version that is {name}': functools.partial(of_another_version, change=change)
           for name, change in VERSIONS.items()},
        'checkpoints without flags.txt': lambda folder: (folder / 'flags.txt').unlink(),
    }
    for fault, change in cases.items():
      shutil.rmtree(workdir)
      shutil.copytree(kept_as, workdir)
      change(workdir)
      self._refuses(fault, workdir, 'cannot be read|another version|no flags.txt')
    (self._folder / 'file').touch()
    self._refuses('workdir that cannot be written', self._folder / 'file' / 'run', 'cannot be written')

  def _refuses(self, fault, workdir, sentence):
    before = contents(workdir)
    run = SmallRun(workdir, '--checkpoint_seconds=0.2')
    statuses = run.end()
    well = statuses == [2] and re.search(sentence, run.said) and 'Traceback' not in run.said
    same = contents(workdir) == before
    self._count(fault, well and same, f'ended with {statuses}, {"" if same else "files changed, "}{run.said[-300:]}')

  # Others.

  def two_on_one(self):
    """A second run on a workdir in use is refused, and the first goes on to its end."""
    workdir = self._new()
    first = SmallRun(workdir)
    first.wait_for('any')
    second = SmallRun(workdir)
    statuses = second.end() + first.end()
    well = statuses == [2, 0] and 'is in use by another run' in second.said
    self._count('two runs on one workdir', well and same_end(end_of(workdir), self.whole()), f'ended with {statuses}')

  def jumping_clock(self):
    """The time of day means nothing to a run."""
    folder = self._folder / 'clock'
    folder.mkdir()
    (folder / 'sitecustomize.py').write_text(_JUMPING_CLOCK)
    environment = {'PYTHONPATH': os.pathsep.join([str(folder), str(DIGITS.parents[1])])}
    workdir = self._new()
    run = SmallRun(workdir, '--checkpoint_seconds=0.2', environment=environment)
    run.wait_for('evaluation')
    run.processes[0].kill()
    run.end()
    self._finished(workdir, 'clock that jumps', environment=environment)
