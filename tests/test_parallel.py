"""Several devices against one: the same states come of the same batch. On eight CPU devices, in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abd_jax import config, data, parallel, programs, states, train
from tests.test_train import TINY

ROOT = Path(__file__).parent.parent

# A step of ABD and one of its generator, from the same states; prints where the batches lay, and saves what came of them.
RUN = '''
import sys
import jax, numpy as np
from abd_jax import data, programs, states, steps, train
from abd_jax.methods import METHODS
from abd_jax.parallel import put
from tests.test_train import TINY
places, split = set(), steps.split_rows
def watched(rows):
  rows = split(rows)
  jax.debug.inspect_array_sharding(rows, callback=lambda at: places.add((at.num_devices, at.is_fully_replicated)))
  return rows
steps.split_rows = watched
digits = data.load('digits')
tasks = train.check(TINY, digits)
compiled, root = programs.programs_for(TINY, tasks, digits), jax.random.key(0)
student, generator = compiled.init_student(root), compiled.init_generator(root)
teacher, (images, labels) = states.freeze(student), put(tasks.train(1))
rows, place = np.arange(32, dtype=np.int32)[None], np.array([1, 16, 0], np.int32)
phase = METHODS['abd'].later[0]
_, terms = compiled.invert(jax.tree.map(jax.numpy.copy, generator), teacher, 2, root, place, 1)
student, metrics = compiled.learn[phase](student, teacher, generator, images, labels, rows, 2, 4, 0.1, root, place, 1)
np.savez(sys.argv[1], *jax.tree.leaves((student.params, student.batch_stats, metrics, terms)))
print('devices', jax.device_count(), 'batches', sorted(places))
'''


def stepped_on(devices, path):
  environment = os.environ | {'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices}', 'ABD_JAX_NATIVE': '0'}
  process = subprocess.run(
      [sys.executable, '-c', RUN, str(path)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500
  )
  assert process.returncode == 0, process.stderr
  return process.stdout, list(np.load(path).values())


def test_eight_devices_step_to_where_one_steps_to(tmp_path):
  (_, one), (said, eight) = (stepped_on(devices, tmp_path / f'{devices}.npz') for devices in (1, 8))
  assert 'devices 8 batches [(8, False)]' in said  # every batch lay in shares
  # The order of sums alone differs. BatchNorm over shares of eight rows instead of all 64 would be off by a tenth.
  for ours, theirs in zip(eight, one, strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)


def test_a_batch_that_the_devices_cannot_share_gets_a_sentence():
  process = subprocess.run(
      [sys.executable, 'experiments/digits.py', '--batch_size=30'], cwd=ROOT, capture_output=True, text=True, timeout=100,
      env=os.environ | {'XLA_FLAGS': '--xla_force_host_platform_device_count=8'},
  )
  assert process.returncode == 2 and '--batch_size=30 cannot be split evenly over 8 devices.' in process.stderr


@pytest.mark.parametrize('platform', ['tpu', 'cuda'])
def test_every_step_is_lowered_for_accelerators(platform):
  settings = config.with_values(TINY, dict(steps_per_call=4, precision='bfloat16'))
  digits = data.load('digits')
  tasks = train.check(settings, digits)
  compiled, key = programs.programs_for(settings, tasks, digits), jax.random.key(0)
  student, generator = jax.eval_shape(compiled.init_student, key), jax.eval_shape(compiled.init_generator, key)
  teacher = states.TeacherState(student.params, student.batch_stats)
  images, labels = tasks.train(0)
  rows, place = np.zeros((4, 32), np.int32), np.zeros(3, np.int32)
  calls = {'invert': (compiled.invert, (generator, teacher, 2, key, place, 3)),
           'preview': (compiled.preview, (generator, teacher, 2, key)),
           'evaluate': (compiled.evaluate, (student.variables, images[:programs.EVAL_BATCH]))}
  for phase, step in compiled.learn.items():
    helpers = (teacher, generator) if phase.dreams else (None, None)
    calls[phase.loss.__name__] = step, (student, *helpers, images, labels, rows, 2, 4, 0.1, key, place, 3)
  for name, (step, arguments) in calls.items():
    text = str(jax.export.export(step.jitted, platforms=[platform])(*arguments).mlir_module())
    # Several steps are a loop; convolutions are XLA's own, and in half precision.
    assert ('stablehlo.while' in text) or name in ('preview', 'evaluate'), name
    assert 'bf16' in text and 'stablehlo.convolution' in text and 'abd_convolve"' not in text, name


@pytest.mark.parametrize('count', [0, 1, 3])
def test_repeat_makes_as_many_steps_as_it_is_told(count):
  # x -> 2 x + i from 1: 1, 2, 5, 12; each step says what it started from.
  step = lambda x, i: (2 * x + i, {'from': x})  # noqa: E731
  x, said = jax.jit(lambda count: parallel.repeat(step, jnp.int32(1), 3, count))(count)
  assert x == [1, 2, 5, 12][count]
  np.testing.assert_array_equal(said['from'], [1, 2, 5][:count] + [0] * (3 - count))
