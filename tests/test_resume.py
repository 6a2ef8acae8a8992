"""kill -9 at random moments of a digits run: resumed, it ends bit-identical to one that was never disturbed."""

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import chex

from tests.test_train import final_states

ROOT = Path(__file__).parent.parent
KILLS = 10
COMMAND = [
    sys.executable, 'experiments/digits.py', '--method=abd', '--num_tasks=5', '--epochs=3', '--decay_at=2',
    '--inversion_steps=20', '--checkpoint_seconds=0.2',
]


def start(workdir):
  return subprocess.Popen(
      [*COMMAND, f'--workdir={workdir}'], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
  )


def test_ten_kills(tmp_path):
  whole = start(tmp_path / 'whole')
  output, _ = whole.communicate(timeout=300)
  assert whole.returncode == 0, output
  moment = random.Random(0)
  killed = finished = 0
  while killed < KILLS:
    run = start(tmp_path / 'killed')
    # Past start-up, at whatever the run does then: inverting, learning, evaluating, writing a checkpoint.
    for line in run.stdout:
      if 'step' in line or 'accuracy' in line:
        break
    time.sleep(moment.uniform(0, 1.5))
    finished += run.poll() is not None
    run.kill()
    run.communicate(timeout=60)
    killed += 1
  last = start(tmp_path / 'killed')
  output, _ = last.communicate(timeout=300)
  assert last.returncode == 0, output
  assert finished < KILLS / 2, 'most kills came after the end: they showed nothing'
  results = [json.loads((tmp_path / name / 'results.json').read_text()) for name in ('whole', 'killed')]
  assert results[0]['accuracy_matrix'] == results[1]['accuracy_matrix']
  chex.assert_trees_all_equal(final_states(tmp_path / 'whole'), final_states(tmp_path / 'killed'))
