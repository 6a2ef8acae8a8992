"""What goes wrong in a run: it is caught at once, said in a sentence, and nothing worse is kept than was there."""

import contextlib
import dataclasses
import errno
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import chex
import jax
import numpy as np
import pytest

from abd_jax import config, data, task_loop, train
from abd_jax.calls import Call, check_finite
from abd_jax.checkpoint import Checkpoints
from abd_jax.config import with_values
from abd_jax.errors import AnotherRun, NotFinite, UserError
from abd_jax.faults import damage
from abd_jax.faults.small_run import contents
from abd_jax.metrics_log import MetricsLog
from abd_jax.workdir import claim_workdir, hold_workdir
from tests.small_runs import final_states

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


@pytest.fixture(scope='module')
def half(dataset, tmp_path_factory):
  """A run that ended after its first task."""
  workdir = tmp_path_factory.mktemp('half')
  train.run(with_values(TINY, {'stop_after_task': 1}), workdir, dataset)
  return workdir


def _flip(path):
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 0x10
  path.write_bytes(bytes(content))


@pytest.mark.parametrize('part', ['states', 'record'])
def test_a_flipped_bit_falls_back_on_the_checkpoint_before(whole, half, dataset, tmp_path, part):
  workdir = shutil.copytree(half, tmp_path / 'run')
  newest = damage.kept(workdir)
  _flip(max((file for file in (newest / part).rglob('*') if file.is_file()), key=lambda file: file.stat().st_size))
  resumed = train.run(TINY, workdir, dataset)
  assert resumed.accuracy_matrix == whole[1].accuracy_matrix
  chex.assert_trees_all_equal(final_states(workdir), final_states(whole[0]))


def test_a_run_of_which_no_checkpoint_can_be_read_is_refused(half, dataset, tmp_path):
  workdir = shutil.copytree(half, tmp_path / 'run')
  for number in (1, 2):
    damage.truncate(workdir, random.Random(1), number)
  with pytest.raises(UserError, match='holds checkpoints that cannot be read'):
    train.run(TINY, workdir, dataset)


@pytest.mark.parametrize('fault', damage.DAMAGES)
def test_what_is_damaged_is_done_without(fault, whole, half, dataset, tmp_path):
  workdir = shutil.copytree(half, tmp_path / 'run')
  damage.DAMAGES[fault](workdir, random.Random(1))
  resumed = train.run(TINY, workdir, dataset)
  assert resumed.accuracy_matrix == whole[1].accuracy_matrix
  chex.assert_trees_all_equal(final_states(workdir), final_states(whole[0]))


@pytest.mark.parametrize('version, said', [('newer', 'its record has temperature'), ('older', 'its record lacks step')])
def test_a_checkpoint_of_another_version_is_refused_and_nothing_is_touched(version, said, half, dataset, tmp_path):
  workdir = shutil.copytree(half, tmp_path / 'run')
  damage.of_another_version(workdir, damage.VERSIONS[version])
  claim_workdir(dataclasses.replace(TINY, dataset=dataset.name, workdir=str(workdir)), workdir)
  before = contents(workdir)
  with pytest.raises(UserError, match=f'^Checkpoint .* was written by another version of abd_jax .{said}.: go on with'):
    train.run(TINY, workdir, dataset)
  assert contents(workdir) == before


def test_a_run_does_not_go_on_with_other_data_under_the_same_name(half, dataset, tmp_path):
  workdir = shutil.copytree(half, tmp_path / 'run')
  darker = dataset.train_images // 2
  mean, std = data.sources.channel_statistics(darker)
  for other in (
      dataclasses.replace(dataset, train_images=darker, mean=mean, std=std),
      dataclasses.replace(dataset, class_names=dataset.class_names[::-1]),
      dataclasses.replace(dataset, train_labels=dataset.train_labels[::-1]),
  ):
    with pytest.raises(AnotherRun, match=f'^{workdir} holds a run that began with another digits: choose another'):
      train.run(TINY, workdir, other)


def test_states_of_another_version_are_refused(tmp_path):
  kept = Checkpoints(tmp_path, 60)
  kept.save({'a': np.arange(3.0)}, {})
  kept.wait()
  for like, said in (
      ({'a': jax.ShapeDtypeStruct((4,), 'float64')}, r'it holds a float64\[3\]'),
      ({'a': jax.ShapeDtypeStruct((3,), 'float64'), 'b': jax.ShapeDtypeStruct((), 'int32')}, r'it lacks b int32\[\]'),
  ):
    with pytest.raises(UserError, match=f'another version of abd_jax .{said}.: go on with that one'):
      kept.restore(lambda record, like=like: like)
  kept.close()


# A disk that is full


@contextlib.contextmanager
def no_file_beyond(size):
  """Lets the system refuse to write more than so many bytes to a file of this process."""
  _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, most))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))


def test_a_checkpoint_that_the_disk_refuses_is_a_sentence_and_leaves_the_one_before(tmp_path):
  states = {'a': np.arange(1000.0)}
  kept = Checkpoints(tmp_path, 60)
  kept.save(states, {'number': 1})
  kept.wait()
  with no_file_beyond(100), pytest.raises(UserError) as refusal:
    kept.save(states, {'number': 2})
    kept.wait()
  folder = tmp_path / 'checkpoints'
  assert str(refusal.value) == (
      f'A checkpoint cannot be written to {folder} (File too large). The one before it is kept: make room, and the same'
      ' command goes on from there.'
  )
  kept.close()
  again = Checkpoints(tmp_path, 60)
  record, _ = again.restore(lambda record: states)
  assert record == {'number': 1}
  again.save(states, {'number': 3})
  again.wait()
  assert again.restore(lambda record: states)[0] == {'number': 3}
  again.close()


def test_a_disk_that_refuses_once_is_asked_again(tmp_path, monkeypatch):
  states, asked = {'a': np.arange(10.0)}, []
  kept = Checkpoints(tmp_path, 60)
  save = kept._manager.save

  def busy(number, args):
    asked.append(number)
    if len(asked) == 1:
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return save(number, args=args)

  monkeypatch.setattr(kept._manager, 'save', busy)
  kept.save(states, {'number': 1})
  kept.wait()
  assert asked == [1, 2] and kept.restore(lambda record: states)[0] == {'number': 1}
  kept.close()


@pytest.mark.skipif(not Path('/dev/full').exists(), reason='Linux has a device that is always full')
@pytest.mark.parametrize('name', ['flags.txt', 'results.json', 'report.html'])
def test_a_full_disk_under_a_file_of_a_run_is_a_sentence_and_the_run_goes_on_later(
    name, whole, dataset, tmp_path, capsys
):
  (tmp_path / f'{name}.partial').symlink_to('/dev/full')
  sentence = f'{tmp_path / name} cannot be written: No space left on device.'
  if name == 'report.html':  # which is not worth a run
    train.run(TINY, tmp_path, dataset)
    assert f'No report.html: {sentence}' in capsys.readouterr().out
  else:
    with pytest.raises(UserError) as refusal:
      train.run(TINY, tmp_path, dataset)
    assert str(refusal.value) == sentence
    assert not list(tmp_path.glob('*.partial'))
  assert train.run(TINY, tmp_path, dataset).accuracy_matrix == whole[1].accuracy_matrix


@pytest.mark.skipif(not Path('/dev/full').exists(), reason='Linux has a device that is always full')
def test_a_full_disk_under_the_log_is_a_sentence():
  with pytest.raises(UserError, match='^/dev/full cannot be written: No space left on device.$'):
    MetricsLog('/dev/full').write((0, 0, 1), loss=1.0)


def test_a_log_whose_end_is_no_text_is_read_to_there(tmp_path):
  (tmp_path / 'metrics.jsonl').write_bytes(b'{"at": [0, 0, 8]}\n{"at": [1, 0, 3]}\n\xff\xfe{"at"\n{"at": [2, 0, 1]}\n')
  assert MetricsLog(tmp_path / 'metrics.jsonl').read() == [{'at': [0, 0, 8]}, {'at': [1, 0, 3]}]


# The clock on the wall


def test_a_clock_that_jumps_changes_nothing(whole, dataset, tmp_path, monkeypatch):
  clock = time.time
  hour = lambda: 3600 * random.Random(int(2 * time.monotonic())).choice([-1, 0, 1])  # for half a second
  monkeypatch.setattr(time, 'time', lambda: clock() + hour())
  results = train.run(TINY, tmp_path, dataset)
  assert results.accuracy_matrix == whole[1].accuracy_matrix
  assert 0 < results.seconds['total'] < 600 and min(results.seconds.values()) >= 0
  chex.assert_trees_all_equal(final_states(tmp_path), final_states(whole[0]))


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


def test_of_several_figures_those_are_named_that_led_the_loss_astray():
  metrics = {'content': [1.0, 2.0, 3.0], 'loss': [1.0, np.nan, np.nan], 'statistics': [1.0, np.inf, 1.0]}
  metrics = {name: np.array(values, np.float32) for name, values in metrics.items()}
  # The first step of the call is the run's sixth: its second, the seventh, is the first to have gone astray.
  with pytest.raises(NotFinite, match='^Task 2, inversion, step 7: statistics is inf.$'):
    check_finite([Call(metrics, 3, 5)], 1, 'inversion')
  with pytest.raises(NotFinite, match='^Task 2, inversion, step 8: loss is nan.$'):
    check_finite([Call({name: values[2:] for name, values in metrics.items()}, 1, 7)], 1, 'inversion')
  check_finite([Call(metrics, 1, 5)], 1, 'inversion')  # of which only the first counts


def fails_at(monkeypatch, task, step, times, figure='loss'):
  """Lets a figure of a step be no number, so many times."""
  learn, left = task_loop.Run._loop, [times]

  def loop(self, task_, name, total, epoch_steps, steps_per_call, advance):
    def failing(step_, count):
      metrics = advance(step_, count)
      if (task_, step_) == (task, step) and left[0]:
        left[0] -= 1
        metrics = {**metrics, figure: np.full_like(metrics[figure], np.nan)}
      return metrics

    learn(self, task_, name, total, epoch_steps, steps_per_call, failing)

  monkeypatch.setattr(task_loop.Run, '_loop', loop)


def test_rollback_goes_on_from_the_last_checkpoint_with_other_draws(whole, dataset, tmp_path, monkeypatch):
  workdir, results = whole
  fails_at(monkeypatch, task=1, step=5, times=1)
  rescued = train.run(dataclasses.replace(TINY, on_nan='rollback'), tmp_path, dataset)
  lines = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
  (back,) = [line for line in lines if 'rollback' in line]
  assert back['rollback'] == 1 and back['reason'] == 'Task 2, learn, step 6: loss is nan.' and back['at'] == [1, 0, 5]
  assert rescued.accuracy_matrix[0] == results.accuracy_matrix[0]
  # Other draws: another end than that of the run that nothing befell.
  ends = [final_states(folder)['student']['params']['head']['kernel'] for folder in (tmp_path, workdir)]
  assert np.isfinite(ends[0]).all() and not np.array_equal(*ends)


def test_rollback_gives_up_after_the_third(dataset, tmp_path, monkeypatch):
  fails_at(monkeypatch, task=0, step=3, times=4)
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


IS_BUSY_FOR_LONG = """
import time
from abd_jax import stopping

stopping._PATIENCE = 0.5
with stopping.StopSignal() as stop, stop.after(lambda: print('saved', flush=True)):
  print('busy', flush=True)
  time.sleep(60)  # which goes on after a signal
"""


def test_sigterm_does_not_wait_for_long_whatever_the_run_is_at():
  run = subprocess.Popen([sys.executable, '-c', IS_BUSY_FOR_LONG], text=True, stdout=subprocess.PIPE)
  assert run.stdout.readline() == 'busy\n'
  run.send_signal(signal.SIGTERM)
  output, _ = run.communicate(timeout=30)
  assert (run.returncode, output) == (75, 'saved\n')
