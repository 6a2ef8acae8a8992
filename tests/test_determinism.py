"""What decides a run's figures: its flags and its seed, each draw traceable to its address, and nothing else."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import chex
import jax
import numpy as np
import pytest

from abd_jax import data, programs, task_loop, train
from abd_jax.addresses import Address, epoch_order
from abd_jax.config import with_values
from tests.small_runs import final_states
from tests.test_methods import TINY as SMALL

ROOT = Path(__file__).parent.parent
BASE = with_values(SMALL, dict(method='base', num_classes=4, num_tasks=2))


# Seeds


def observed(settings, dataset, workdir):
  """What a run drew: (results, first student, rows of each step by task)."""
  students, rows = [], {}
  begin, feed = task_loop.Run._begin, task_loop.feed

  def beginning(self, task):
    begin(self, task)
    students.append(jax.tree.map(np.array, self._student.params))

  def feeding(*args, **more):
    batches = feed(*args, **more)
    at = batches.at

    def recording(step, count):
      *arrays, its_rows = at(step, count)
      rows.setdefault(more['address'][1], []).append(its_rows[0])
      return *arrays, its_rows

    batches.at = recording
    return batches

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(task_loop.Run, '_begin', beginning)
    patch.setattr(task_loop, 'feed', feeding)
    return train.run(settings, workdir, dataset), students[0], rows


def test_a_seed_decides_class_order_first_weights_and_data_order_and_nothing_else(small, digits, tmp_path):
  found = []
  for seed in (0, 1):
    settings = with_values(BASE, {'seed': seed})
    results, student, rows = observed(settings, digits, tmp_path / str(seed))
    found.append((results, student, rows))
    # Each where its address says that it is.
    assert results.class_order == data.class_order(10, seed)[:4]
    sequence = train.tasks_for(settings, digits)
    compiled = programs.programs_for(settings, sequence, digits)
    expected = compiled.init_student(np.array([seed, 0, Address.STUDENT_INIT, 0], np.int32)).params
    chex.assert_trees_all_equal(student, jax.tree.map(np.array, expected))
    for task in (0, 1):
      order = epoch_order(sequence.train_sizes()[task], seed, task, int(Address.LEARN), 0)
      steps = len(order) // 16  # batches of 16, the last one dropped
      np.testing.assert_array_equal(np.concatenate(rows[task]), order[: 16 * steps])
    # No program was traced anew for another seed.
    assert set(compiled.traces().values()) == {1}
  (first, weights, rows), (second, other_weights, other_rows) = found
  assert first.class_order != second.class_order and not np.array_equal(rows[0][0], other_rows[0][0])
  differ = jax.tree.map(lambda a, b: not np.array_equal(a, b), weights, other_weights)
  named = {jax.tree_util.keystr(path): moved for path, moved in jax.tree.leaves_with_path(differ)}
  # Kernels are drawn; scales are ones and biases of BatchNorm zeros, whatever the seed.
  assert {name for name, moved in named.items() if moved} == {
      name for name in named if 'kernel' in name or "['head']['bias']" in name
  }
  config, other_config = first.config, second.config
  assert {name for name in config if config[name] != other_config[name]} == {'seed'}


def test_a_benchmark_s_own_class_order_stands_and_the_rest_follows_the_seed(small, digits, tmp_path):
  fixed = dataclasses.replace(digits, class_order=tuple(range(10)))
  found = [observed(with_values(BASE, {'seed': seed}), fixed, tmp_path / str(seed)) for seed in (0, 1)]
  assert [results.class_order for results, *_ in found] == [[0, 1, 2, 3]] * 2
  assert not np.array_equal(found[0][1]['head']['kernel'], found[1][1]['head']['kernel'])
  # The same weights as with another class order: they are drawn from the seed alone.
  ours = observed(BASE, digits, tmp_path / 'ours')
  chex.assert_trees_all_equal(found[0][1], ours[1])


# Devices

# A run on one device, and on eight in either mode: whole, again, and stopped on the way. Networks of few layers.
RUN = '''
import functools, sys
from pathlib import Path
import pytest
from abd_jax import config, data, models, parallel, programs, train
from abd_jax.models.resnet import ResNet
from abd_jax.stopping import Preempted
from tests.small_runs import StopAfter
from tests.test_determinism import BASE
models.STUDENTS['resnet8'] = functools.partial(ResNet, blocks_per_stage=0)
digits, folder, mesh = data.load('digits'), Path(sys.argv[1]), parallel._mesh
for mode in ('alone', 'jit', 'pmap'):
  parallel._mesh = mesh if mode != 'alone' else lambda: None
  programs.clear()
  settings = config.with_values(BASE, dict(parallel='jit' if mode == 'alone' else mode))
  for name in ('whole', 'again'):
    train.run(settings, folder / mode / name, digits)
  for looks in (5, 20):
    with pytest.raises(Preempted):
      train.run(settings, folder / mode / 'resumed', digits, StopAfter(looks))
  train.run(settings, folder / mode / 'resumed', digits)
'''


@pytest.fixture(scope='module')
def on_eight(tmp_path_factory):
  folder = tmp_path_factory.mktemp('eight')
  flags = '--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0'
  process = subprocess.run(
      [sys.executable, '-c', RUN, str(folder)], cwd=ROOT, capture_output=True, text=True, timeout=500,
      env=os.environ | {'XLA_FLAGS': flags, 'ABD_JAX_NATIVE': '0', 'PYTHONPATH': str(ROOT)},
  )
  assert process.returncode == 0, process.stderr
  return folder


@pytest.mark.parametrize('mode', ['alone', 'jit', 'pmap'])
def test_a_run_is_bit_identical_again_and_resumed(on_eight, mode):
  whole = final_states(on_eight / mode / 'whole')
  assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(whole))
  for name in ('again', 'resumed'):
    chex.assert_trees_all_equal(final_states(on_eight / mode / name), whole)


@pytest.mark.parametrize('mode', ['jit', 'pmap'])
def test_modes_and_numbers_of_devices_agree_up_to_the_order_of_sums(on_eight, mode):
  ours, alone = (
      [json.loads(line) for line in (on_eight / name / 'whole' / 'metrics.jsonl').read_text().splitlines()]
      for name in (mode, 'alone')
  )
  assert [line['at'] for line in ours] == [line['at'] for line in alone]
  # The mean loss of the first epoch: sums in another order differ by 1e-7, which its 17 steps amplify.
  assert ours[0]['loss'] == pytest.approx(alone[0]['loss'], rel=1e-4)
