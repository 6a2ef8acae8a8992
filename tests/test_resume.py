"""Killed and told to stop: a run that is resumed ends bit-identical to one that was never disturbed."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import chex
import pytest

from tests.small_runs import final_states

ROOT = Path(__file__).parent.parent
# Ten, when asked: each is a process that starts anew.
KILLS = int(os.environ.get('ABD_KILLS', '3'))
COMMAND = [
    sys.executable, 'experiments/digits.py', '--method=abd', '--stop_after_task=3', '--epochs=3', '--decay_at=2',
    '--inversion_steps=15', '--checkpoint_seconds=0.4',
]


def start(workdir):
  return subprocess.Popen(
      [*COMMAND, f'--workdir={workdir}'], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
      env=os.environ | {'JAX_DISABLE_MOST_OPTIMIZATIONS': '0'},  # as users have it
  )


def wait_until_it_works(run):
  """Reads what a run says until it has made steps of its own; gives where it resumed, (task, phase, step), or None."""
  resumed = None
  for line in run.stdout:
    if found := re.search(r'Resuming after (\d+) tasks, (\d+) phases and (\d+) steps', line):
      resumed = tuple(int(number) for number in found.groups())
    elif 'steps/s' in line:
      break
  return resumed


def finish(run):
  output, _ = run.communicate(timeout=300)
  assert run.returncode == 0, output


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('whole') / 'run'
  finish(start(workdir))
  return workdir


def assert_same_end(workdir, whole):
  results = [json.loads((folder / 'results.json').read_text()) for folder in (workdir, whole)]
  assert results[0]['accuracy_matrix'] == results[1]['accuracy_matrix']
  chex.assert_trees_all_equal(final_states(workdir), final_states(whole))


def test_kills(whole, tmp_path):
  moment = random.Random(0)
  places = set()
  for _ in range(KILLS):
    run = start(tmp_path / 'run')
    places.add(wait_until_it_works(run))
    # At whatever it does then: inverting, learning, evaluating, writing a checkpoint.
    time.sleep(moment.uniform(0, 0.5))
    run.kill()
    run.communicate(timeout=60)
  finish(start(tmp_path / 'run'))
  assert_same_end(tmp_path / 'run', whole)
  # The kills made a difference: the run resumed at several places, in the middle of phases too.
  assert len(places) > KILLS // 3 and any(place and place[2] for place in places), places


def test_sigterm_saves_and_ends_with_status_75(whole, tmp_path):
  run = start(tmp_path / 'run')
  wait_until_it_works(run)
  run.send_signal(signal.SIGTERM)
  output, _ = run.communicate(timeout=60)
  assert run.returncode == 75 and 'Told to stop: saved.' in output
  finish(start(tmp_path / 'run'))
  assert_same_end(tmp_path / 'run', whole)
