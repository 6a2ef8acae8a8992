"""A small real run in processes of its own, watched from outside: where it is, what it would lose, how it ends."""

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np

from abd_jax import checkpoint

DIGITS = Path(__file__).parents[2] / 'experiments' / 'digits.py'
JOB = ('--method=abd', '--stop_after_task=3', '--epochs=5', '--decay_at=3', '--inversion_steps=100')
# Two processes on one machine wait for each other at every step.
JOB_OF_TWO = ('--stop_after_task=2', '--epochs=3', '--inversion_steps=40')
# What the run says last before the moment that is aimed at; a checkpoint in the writing says it by its folder's name.
AIMS = {
    'inversion': r'task \d+/\d+  accuracy', 'training': r'  learn  step', 'evaluation': r'  learn  step (\d+)/\1 ',
    'checkpoint': None, 'any': r'steps/s',
}
# Seconds after a run was told to stop at which it has to be gone, and those for which anything else is waited.
TO_STOP, TO_END = 10.0, 900.0


class SmallRun:
  """Processes of one run that is going to be hurt, and what they say."""

  def __init__(self, workdir, *more, processes=1, environment=None):
    self.workdir = Path(workdir)
    command = [sys.executable, str(DIGITS), *JOB, f'--workdir={workdir}', *more]
    joined: list[tuple[str, ...]] = [()]
    if processes > 1:
      command += JOB_OF_TWO
      with socket.socket() as free:
        free.bind(('localhost', 0))
        joined = [(f'--distributed=localhost:{free.getsockname()[1]},{processes},{i}',) for i in range(processes)]
    self.processes = [
        subprocess.Popen(
            [*command, *its], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env=os.environ | {'PYTHONPATH': str(DIGITS.parents[1]), 'JAX_PLATFORMS': 'cpu'} | (environment or {}),
        )
        for its in joined
    ]
    self.lines: list[str] = []
    self.errors: list[str] = []
    self._readers = [
        threading.Thread(target=self._read, args=pipe, daemon=True)
        for process in self.processes for pipe in ((process.stdout, self.lines), (process.stderr, self.errors))
    ]
    for reader in self._readers:
      reader.start()
    self._works_since = None

  def _read(self, pipe, lines):
    for line in pipe:
      lines.append(line)
      if self._works_since is None and ('steps/s' in line or 'Resuming' in line):
        self._works_since = time.time()

  def wait_for(self, aim, checks_every=0.002):
    """Until the run is where it is aimed at; whether it was before its end."""
    begun, sign = len(self.lines), AIMS[aim]
    while self.processes[0].poll() is None:
      if any('steps/s' in line for line in self.lines):
        if sign is None:
          with contextlib.suppress(OSError):
            if any('tmp' in path.name for path in (self.workdir / 'checkpoints').iterdir()):
              return True
        elif any(re.search(sign, line) for line in self.lines[begun:]):
          return True
      time.sleep(checks_every)
    return False

  def lost(self, at):
    """Seconds that are gone when it ends `at` this time: since the last state kept, or since it went on from it."""
    kept = [self._works_since or at]
    for note in (self.workdir / 'checkpoints').glob('*/_CHECKPOINT_METADATA'):
      with contextlib.suppress(OSError, ValueError):
        said = json.loads(note.read_text())
        if said.get('commit_timestamp_nsecs'):
          kept.append(said['init_timestamp_nsecs'] / 1e9)
    return max(0.0, at - max(kept))

  def end(self):
    """The exit statuses."""
    deadline = time.monotonic() + TO_END
    for process in self.processes:
      try:
        process.wait(max(0.1, deadline - time.monotonic()))
      except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for reader in self._readers:
      reader.join()
    for process in self.processes:
      with process:  # which closes its pipes
        pass
    return [process.returncode for process in self.processes]

  @property
  def said(self):
    """All that went to standard error."""
    return ''.join(self.errors)


def end_of(workdir):
  """(accuracy matrix, {path: array}) of a finished run."""
  _, states = next(checkpoint.saved(workdir))
  arrays = {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree.leaves_with_path(states)}
  return json.loads((Path(workdir) / 'results.json').read_text())['accuracy_matrix'], arrays


def same_end(ours, theirs):
  """Whether two ends are bit for bit the same."""
  same = ours[0] == theirs[0] and ours[1].keys() == theirs[1].keys()
  return same and all(np.array_equal(ours[1][name], theirs[1][name]) for name in theirs[1])


def contents(folder):
  """{path: bytes} of all files below, but for the lock and for checkpoints half written, which the next run clears."""
  found = [path for path in sorted(Path(folder).rglob('*')) if path.is_file() and path.name != '.lock']
  return {path: path.read_bytes() for path in found if not any('-tmp' in part for part in path.parts)}
