"""Two real processes as one run: they train to where one trains to, stop together, and one of them writes."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from abd_jax import config, processes, train
from abd_jax.errors import UserError
from tests.small_runs import TINY
from tests.test_faults import COMPILES_FOR_LONG

ROOT = Path(__file__).parent.parent
SMALL = config.with_values(TINY, dict(stop_after_task=2, checkpoint_seconds=0.0))


def meeting_place():
  with socket.socket() as free:
    free.bind(('localhost', 0))
    return f'localhost:{free.getsockname()[1]}'


def start(workdirs, *more):
  """A run of SMALL by two processes, each with a folder of its own, as on machines that share no disk."""
  address = meeting_place()
  workdirs[0].parent.mkdir(exist_ok=True)
  flagfile = workdirs[0].parent / 'small.flags'
  flagfile.write_text(config.to_flagfile(SMALL))
  return [
      subprocess.Popen(
          [sys.executable, 'experiments/digits.py', f'--flagfile={flagfile}', f'--workdir={workdir}',
           f'--distributed={address},2,{i}', *more],
          cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
          env=os.environ | {'XLA_FLAGS': '--xla_backend_optimization_level=0'},
      )
      for i, workdir in enumerate(workdirs)
  ]


def finish(run):
  said = [process.communicate(timeout=300) for process in run]
  return [process.returncode for process in run], *zip(*said, strict=True)


def lines(workdir):
  return [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]


def test_two_processes_stop_together_resume_and_end_where_one_ends(tmp_path):
  workdirs = [tmp_path / 'first', tmp_path / 'second']
  run = start(workdirs)
  for line in run[0].stdout:
    if 'steps/s' in line:
      break
  run[1].send_signal(signal.SIGTERM)  # the one that writes nothing
  codes, said, errors = finish(run)
  assert codes == [75, 75], errors
  assert 'Told to stop: saved.' in said[0] and 'Told' not in said[1]
  codes, said, errors = finish(start(workdirs))
  assert codes == [0, 0], errors
  assert 'Resuming after' in said[0] and 'task' not in said[1] and not workdirs[1].exists()
  whole = train.run(SMALL, tmp_path / 'whole')
  ours, theirs = lines(workdirs[0]), lines(tmp_path / 'whole')
  assert [line['at'] for line in ours] == [line['at'] for line in theirs]
  # The order of sums differs, which a run amplifies from step to step: the first epoch is held tight.
  assert ours[0]['loss'] == pytest.approx(theirs[0]['loss'], rel=1e-4)
  results = json.loads((workdirs[0] / 'results.json').read_text())
  assert results['accuracy_after_task'] == pytest.approx(whole.accuracy_after_task, abs=5)
  # flags.txt replays the run on one machine.
  assert '--distributed=\n' in (workdirs[0] / 'flags.txt').read_text()


# A run whose processes find at other steps that it is time for a checkpoint: their clocks are their own.
UNLIKE_CLOCKS = """
import runpy, sys
from abd_jax.checkpoint import Checkpoints
asked, late = [], int(sys.argv.pop(1))
Checkpoints.due = property(lambda self: asked.append(0) or len(asked) % 5 == late)
sys.argv[0] = 'experiments/digits.py'
runpy.run_path(sys.argv[0], run_name='__main__')
"""


def test_processes_of_unlike_clocks_save_together_and_a_finished_run_is_read_by_all(tmp_path):
  flags = ['--method=base', '--student=resnet8', '--stop_after_task=1', '--epochs=2', '--decay_at=', '--batch_size=128',
           f'--workdir={tmp_path / "run"}']

  def run():
    address = meeting_place()
    return finish([
        subprocess.Popen(
            [sys.executable, '-c', UNLIKE_CLOCKS, str(i), *flags, f'--distributed={address},2,{i}'],
            cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env=os.environ | {'XLA_FLAGS': '--xla_backend_optimization_level=0'},
        )
        for i in range(2)
    ])

  codes, _, errors = run()
  assert codes == [0, 0], errors
  kept = (tmp_path / 'run' / 'results.json').read_bytes()
  codes, said, errors = run()
  assert codes == [0, 0] and 'steps/s' not in said[0], errors
  assert (tmp_path / 'run' / 'results.json').read_bytes() == kept


@pytest.mark.parametrize('told', [0, 1])
def test_a_process_told_to_stop_while_all_compile_ends_all(told):
  address = meeting_place()
  program = f'import sys\nfrom abd_jax import processes\nprocesses.join(sys.argv[1])\n{COMPILES_FOR_LONG}'
  run = [
      subprocess.Popen(
          [sys.executable, '-c', program, f'{address},2,{i}'], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
      )
      for i in range(2)
  ]
  assert [process.stdout.readline() for process in run] == ['compiling\n'] * 2
  run[told].send_signal(signal.SIGTERM)
  since = time.monotonic()
  codes, said, errors = finish(run)
  assert codes == [75, 75] and said == ('saved\n', 'saved\n'), errors
  assert time.monotonic() - since < 10


def test_what_the_first_process_refuses_ends_both_with_its_sentence(tmp_path):
  (tmp_path / 'first').mkdir()
  (tmp_path / 'first' / 'flags.txt').write_text('--learning_rate=0.5\n')
  codes, _, errors = finish(start([tmp_path / 'first', tmp_path / 'second']))
  assert codes == [2, 2]
  assert all('holds a run with --' in error and 'Traceback' not in error for error in errors)


@pytest.mark.parametrize('how', ['yes', 'localhost,2,0', 'localhost:1234', 'localhost:1234,2,x'])
def test_a_way_to_meet_that_is_none_gets_a_sentence(how):
  with pytest.raises(UserError, match='is neither auto nor HOST:PORT,COUNT,INDEX'):
    processes.join(how)
