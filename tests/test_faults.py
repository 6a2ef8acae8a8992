"""What goes wrong in a run: it is caught at once, said in a sentence, and nothing worse is kept than was there."""

import dataclasses
import json
import signal
import subprocess
import sys
import time

import chex
import jax
import numpy as np
import pytest

from abd_jax import config, data, train
from abd_jax.checkpoint import Checkpoints
from abd_jax.config import with_values
from abd_jax.errors import NotFinite, UserError
from abd_jax.workdir import hold_workdir
from tests.test_train import final_states

TINY = with_values(
    config.Config(),
    dict(
        method='base', num_classes=4, num_tasks=2, student='resnet8', batch_size=32, epochs=2, decay_at=(),
        color_jitter=False, flip=False, crop_padding=1, checkpoint_seconds=0.0,
    ),
)


@pytest.fixture(scope='module')
def dataset():
  return data.load('digits')


@pytest.fixture(scope='module')
def whole(dataset, tmp_path_factory):
  workdir = tmp_path_factory.mktemp('whole')
  return workdir, train.run(TINY, workdir, dataset)


# Two runs, one workdir


def test_a_workdir_is_held_against_a_second_run(dataset, tmp_path):
  with hold_workdir(tmp_path):
    with pytest.raises(UserError) as refusal:
      train.run(TINY, tmp_path, dataset)
    assert str(refusal.value) == f'--workdir={tmp_path} is in use by another run: wait for its end, or choose another.'
    assert [path.name for path in tmp_path.iterdir()] == ['.lock']  # nothing was touched
  train.run(with_values(TINY, {'resume': 'never', 'stop_after_task': 1}), tmp_path, dataset)


# Checkpoints that were changed behind the run's back


def _flip(path):
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 0x10
  path.write_bytes(bytes(content))


@pytest.mark.parametrize('part', ['states', 'record'])
def test_a_flipped_bit_falls_back_on_the_checkpoint_before(whole, dataset, tmp_path, part):
  _, results = whole
  train.run(with_values(TINY, {'stop_after_task': 1}), tmp_path, dataset)
  newest = max((tmp_path / 'checkpoints').iterdir(), key=lambda path: int(path.name))
  _flip(max((file for file in (newest / part).rglob('*') if file.is_file()), key=lambda file: file.stat().st_size))
  resumed = train.run(TINY, tmp_path, dataset)
  assert resumed.accuracy_matrix == results.accuracy_matrix
  chex.assert_trees_all_equal(final_states(tmp_path), final_states(whole[0]))


def test_a_record_edited_by_hand_is_not_believed(tmp_path):
  kept = Checkpoints(tmp_path, 60)
  kept.save({'a': np.arange(3.0)}, {'accuracy': 41.5})
  kept.wait()
  kept.close()
  (file,) = (tmp_path / 'checkpoints').glob('*/record/metadata')
  assert '41.5' in file.read_text()
  file.write_text(file.read_text().replace('41.5', '97.5'))
  again = Checkpoints(tmp_path, 60)
  with pytest.raises(UserError, match='cannot be read .checkpoint 1 is not what was written.: choose another'):
    again.restore(lambda record: {'a': jax.ShapeDtypeStruct((3,), 'float64')})
  again.close()


# Numbers that are none


def test_an_infinite_loss_ends_the_run_at_once_and_is_not_kept(dataset, tmp_path):
  astray = with_values(TINY, {'learning_rate': 1e30, 'checkpoint_seconds': 60.0})
  with pytest.raises(NotFinite) as said:
    train.run(astray, tmp_path, dataset)
  assert str(said.value).startswith('Task 1, learn, step 3: loss is nan. ')
  assert f'is kept in {tmp_path / "checkpoints"}. A lower --learning_rate' in str(said.value)
  chex.assert_tree_all_finite(final_states(tmp_path))


def test_a_state_gone_astray_before_its_loss_is_said_with_its_place(dataset, tmp_path):
  with pytest.raises(NotFinite, match='^Task 1, step 2: student/[a-z0-9_/]* holds values that are not finite. The'):
    train.run(with_values(TINY, {'learning_rate': 1e30}), tmp_path, dataset)
  chex.assert_tree_all_finite(final_states(tmp_path))


def test_states_that_are_not_finite_are_never_written(tmp_path):
  kept = Checkpoints(tmp_path, 60)
  with pytest.raises(NotFinite, match=r'^student/params holds values that are not finite.$'):
    kept.save({'student': {'params': np.array([1, np.inf])}}, {})
  kept.wait()
  assert not list((tmp_path / 'checkpoints').iterdir())
  kept.close()


def _fails_at(monkeypatch, task, step, times):
  """Lets a step's loss be no number, so many times."""
  learn, left = train._Run._loop, [times]

  def loop(self, task_, name, total, epoch_steps, steps_per_call, advance):
    def failing(step_, count):
      metrics = advance(step_, count)
      if (task_, step_) == (task, step) and left[0]:
        left[0] -= 1
        metrics = {**metrics, 'loss': np.full_like(metrics['loss'], np.nan)}
      return metrics

    learn(self, task_, name, total, epoch_steps, steps_per_call, failing)

  monkeypatch.setattr(train._Run, '_loop', loop)


def test_rollback_goes_on_from_the_last_checkpoint_with_other_draws(whole, dataset, tmp_path, monkeypatch):
  workdir, results = whole
  _fails_at(monkeypatch, task=1, step=5, times=1)
  rescued = train.run(dataclasses.replace(TINY, on_nan='rollback'), tmp_path, dataset)
  lines = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
  (back,) = [line for line in lines if 'rollback' in line]
  assert back['rollback'] == 1 and back['reason'] == 'Task 2, learn, step 6: loss is nan.' and back['at'] == [1, 0, 5]
  assert rescued.accuracy_matrix[0] == results.accuracy_matrix[0]
  # Other draws: another end than that of the run that nothing befell.
  ends = [final_states(folder)['student']['params']['head']['kernel'] for folder in (tmp_path, workdir)]
  assert np.isfinite(ends[0]).all() and not np.array_equal(*ends)


def test_rollback_gives_up_after_the_third(dataset, tmp_path, monkeypatch):
  _fails_at(monkeypatch, task=0, step=3, times=4)
  with pytest.raises(NotFinite, match='Task 1, learn, step 4: loss is nan. .*_learning_rate may help[.]$'):
    train.run(dataclasses.replace(TINY, on_nan='rollback'), tmp_path, dataset)
  # A run that may not roll back is the same run: it goes on where that one stood.
  train.run(with_values(TINY, {'stop_after_task': 1}), tmp_path, dataset)


# A machine about to go

COMPILES_FOR_LONG = """
import jax, jax.numpy as jnp
from abd_jax.stopping import StopSignal
from abd_jax.parallel import CompiledStep

def step(x):
  print('compiling', flush=True)
  for _ in range(2000):
    x = jnp.sort(jnp.cumsum(x)[::-1])
  return x

with StopSignal() as stop, stop.after(lambda: print('saved', flush=True)):
  CompiledStep(step)(jnp.ones(100))
print('compiled')
"""


def test_sigterm_during_a_compilation_does_not_wait_for_its_end():
  run = subprocess.Popen(
      [sys.executable, '-c', COMPILES_FOR_LONG], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
  )
  assert run.stdout.readline() == 'compiling\n'
  time.sleep(3)
  assert run.poll() is None
  run.send_signal(signal.SIGTERM)
  told = time.monotonic()
  output, error = run.communicate(timeout=60)
  assert time.monotonic() - told < 10
  assert (run.returncode, output) == (75, 'saved\n')
  assert error == 'Told to stop: the same command goes on from the last checkpoint.\n'
