"""Several devices against one: the same states come of the same batch. On eight CPU devices, in their own process."""

import os
import subprocess
import sys
from concurrent import futures
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abd_jax import config, data, parallel, programs, states, train
from tests.small_runs import TINY

ROOT = Path(__file__).parent.parent

# A step of ABD and one of its generator from the same states, then one of each phase of R-DFCIL and the features that
# dream looks at on a smaller network, on one device and on eight in either mode; saves what came of them, and prints
# where the batches lay.
RUN = '''
import sys
import functools, jax, numpy as np
from abd_jax import config, data, models, parallel, programs, steps, train
from abd_jax.methods import METHODS
from tests.small_runs import Stem, TINY
models.STUDENTS['resnet8_icarl'] = functools.partial(Stem, blocks_per_stage=0, icarl=True, head_bias=False)
places, keep, mesh, digits = set(), steps.keep_split, parallel._mesh, data.load('digits')
def watched(rows, axis):
  rows = keep(rows, axis)
  if axis is None:
    jax.debug.inspect_array_sharding(rows, callback=lambda at: places.add((at.num_devices, at.is_fully_replicated)))
  else:
    places.add(rows.shape)
  return rows
steps.keep_split = watched
for mode in ('alone', 'jit', 'pmap'):
  parallel._mesh = mesh if mode != 'alone' else lambda: None
  settings = config.with_values(TINY, dict(parallel='jit' if mode == 'alone' else mode, finetune_normalise='weighted'))
  tasks = train.tasks_for(settings, digits)
  programs.clear()
  compiled = programs.programs_for(settings, tasks, digits)
  rows, place = np.arange(32, dtype=np.int32)[None], np.array([0, 1, 16, 0], np.int32)
  student, generator = compiled.init_student(place), compiled.init_generator(place)
  teacher, (images, labels) = compiled.freeze(student), parallel.put(tasks.train(1))
  moved, terms = compiled.invert(jax.tree.map(jax.numpy.copy, generator), place, 1, teacher, 2)
  student, metrics = compiled.learn[METHODS['abd'].later[0]](
      student, place, 1, teacher, generator, images, labels, rows, 2, 4, 0.1, None)
  settings = config.with_values(settings, dict(method='rdfcil', student='resnet8_icarl'))
  compiled = programs.programs_for(settings, tasks, digits)
  other = compiled.init_student(place)
  teacher, said = compiled.freeze(other), []
  for phase in METHODS['rdfcil'].later:
    other = other.replace(tally=compiled.begin_epoch(other.tally))
    other, its = compiled.learn[phase](other, place, 1, teacher, generator, images, labels, rows, 2, 4, 0.1, None)
    said.append(its)
  assert other.tally.so_far.sum() == 2 * 64 and other.tally.before_epoch.sum() == 64, other.tally
  settings = config.with_values(settings, dict(method='dream'))
  compiled = programs.programs_for(settings, tasks, digits)
  learning = compiled.init_student(place)
  said.append(compiled.synthetic_features(learning, compiled.freeze(learning), generator, place))
  # After one step SGD's momentum is the gradient, Adam's first moment a tenth of it.
  found = student.opt_state, student.batch_stats, moved.opt_state[0].mu, moved.batch_stats, metrics, terms, other, said
  np.savez(f'{sys.argv[1]}/{mode}.npz', *jax.tree.leaves(found))
print('batches', sorted(places, key=str))
'''


@pytest.fixture(scope='module')
def stepped(tmp_path_factory):
  """What one process with eight devices says, and where: {mode: arrays}."""
  folder = tmp_path_factory.mktemp('stepped')
  quickly_made = '--xla_backend_optimization_level=0 --xla_cpu_experimental_ynn_fusion_type=LIBRARY_FUSION_TYPE_REDUCE'
  flags = f'--xla_force_host_platform_device_count=8 {quickly_made}'
  environment = os.environ | {'XLA_FLAGS': flags, 'ABD_JAX_NATIVE': '0'}
  process = subprocess.run(
      [sys.executable, '-c', RUN, str(folder)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500
  )
  assert process.returncode == 0, process.stderr
  return process.stdout, {mode: list(np.load(folder / f'{mode}.npz').values()) for mode in ('alone', 'jit', 'pmap')}


@pytest.mark.parametrize('mode', ['jit', 'pmap'])
def test_eight_devices_step_to_where_one_steps_to(stepped, mode):
  said, found = stepped
  # The batches lay in shares: of XLA's making, or as 8 rows a device, 4 where the two streams pass apart.
  assert "batches [(1, True), (4, 8, 8, 1), (8, 8, 8, 1), (8, False)]" in said, said
  # The order of sums alone differs. BatchNorm over shares of eight rows instead of all 64 would be off by a tenth.
  for ours, theirs in zip(found[mode], found['alone'], strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-6 + 1e-3 * np.abs(theirs).max())


@pytest.mark.parametrize('platform', ['tpu', 'cuda'])
def test_every_step_is_lowered_for_accelerators(platform):
  settings = config.with_values(TINY, dict(steps_per_call=4, precision='bfloat16'))
  digits = data.load('digits')
  tasks = train.tasks_for(settings, digits)
  compiled, place = programs.programs_for(settings, tasks, digits), np.zeros(4, np.int32)
  student, generator = compiled.init_student.shapes(place), compiled.init_generator.shapes(place)
  teacher = states.TeacherState(student.params, student.batch_stats)
  images, labels = tasks.train(0)
  rows = np.zeros((4, 32), np.int32)
  calls = {'invert': (compiled.invert, (generator, place, 3, teacher, 2)),
           'preview': (compiled.preview, (generator, teacher, 2, place)),
           'evaluate': (compiled.evaluate, (student.variables, images[:programs.EVAL_BATCH]))}
  dreams = programs.programs_for(config.with_values(settings, dict(method='dream')), tasks, digits)
  calls['synthetic_features'] = dreams.synthetic_features, (student, teacher, generator, place)
  for phase, step in compiled.learn.items():
    helpers = (teacher, generator) if phase.dreams else (None, None)
    calls[phase.loss.__name__] = step, (student, place, 3, *helpers, images, labels, rows, 2, 4, 0.1, None)
  for name, (step, arguments) in calls.items():
    text = str(jax.export.export(step.jitted, platforms=[platform])(*arguments).mlir_module())
    # Several steps are a loop; convolutions are XLA's own, and in half precision.
    assert ('stablehlo.while' in text) or name in ('preview', 'evaluate', 'synthetic_features'), name
    assert 'bf16' in text and 'stablehlo.convolution' in text and 'abd_convolve"' not in text, name
    # What is in float32 is so to the last bit: an accelerator's own choice would round the factors of its products.
    products = [line for line in text.splitlines() if 'stablehlo.dot_general' in line and 'bf16' not in line]
    assert all('precision = [HIGHEST, HIGHEST]' in line for line in products), (name, products)
    assert products or name == 'invert' or 'features' in name, name


@pytest.mark.parametrize('count', [0, 1, 3])
def test_repeat_makes_as_many_steps_as_it_is_told(count):
  # x -> 2 x + i from 1: 1, 2, 5, 12; each step says what it started from.
  step = lambda x, i: (2 * x + i, {'from': x})
  x, said = jax.jit(lambda count: parallel.repeat(step, jnp.int32(1), 3, count))(count)
  assert x == [1, 2, 5, 12][count]
  np.testing.assert_array_equal(said['from'], [1, 2, 5][:count] + [0] * (3 - count))


def test_a_compiled_step_takes_the_memory_that_it_is_given_and_is_made_once():
  step = parallel.compile_step(lambda x, y: (x + y, x), donate=(0,))
  donated, kept = jnp.ones(1000), jnp.ones(1000)
  before = parallel.compile_seconds()
  step(donated, kept)
  once = parallel.compile_seconds()
  assert donated.is_deleted() and not kept.is_deleted() and once > before
  step.of_several(2)((jnp.ones(1000), jnp.ones(1000)), (kept, kept))
  assert parallel.compile_seconds() > once and step.of_several(2) is step.of_several(2)


def test_what_a_run_begins_with_is_drawn_by_the_host(monkeypatch):
  draw = lambda place: {'w': jax.random.normal(jax.random.key(place[0]), (3,))}
  here = parallel.compile_on_host(draw)
  monkeypatch.setattr(parallel, 'platform', lambda: 'gpu')
  given, put = [], parallel.put
  monkeypatch.setattr(parallel, 'put', lambda tree: given.append(tree) or put(tree))
  step, places = parallel.compile_on_host(draw), [np.array([seed], np.int32) for seed in (4, 5)]
  found = [step(places[0]), *step.of_several(2)((places[0], places[1]))]
  wanted = [here(place) for place in (places[0], *places)]
  for one, its in zip(found, wanted, strict=True):
    np.testing.assert_array_equal(one['w'], its['w'])
  assert [type(leaf) for leaf in jax.tree.leaves(given)] == [np.ndarray] * 3  # for the devices, from the host
  assert step.traces == 1 and step.shapes(places[0])['w'].shape == (3,)

  # A thread compiles it for the host too: there is nothing left to compile when it is called.
  where, ahead = [], parallel.compile_on_host(lambda place: where.append(jax.config.jax_default_device) or draw(place))
  with futures.ThreadPoolExecutor(1) as threads:
    ahead.compile_ahead(threads, places[0]).result()
  np.testing.assert_array_equal(ahead(places[0])['w'], wanted[0]['w'])
  assert where == jax.local_devices(backend='cpu')[:1]

  def none(**kwargs):
    raise RuntimeError('Unknown backend cpu')

  monkeypatch.setattr(jax, 'local_devices', none)  # JAX_PLATFORMS=cuda
  alone = parallel.compile_on_host(draw)
  np.testing.assert_array_equal(alone(places[0])['w'], wanted[0]['w'])
  assert len(jax.tree.leaves(given)) == 4


def test_an_accelerator_is_asked_once_an_epoch(monkeypatch):
  assert parallel.default_steps_per_call(39) == 1
  monkeypatch.setattr(parallel, 'platform', lambda: 'tpu')
  assert parallel.default_steps_per_call(39) == 39


def test_seconds_of_compiling_add_up(monkeypatch):
  monkeypatch.setattr(parallel._of_thread, 'compile_seconds', 1.0, raising=False)
  for event in ('backend_compile_duration', 'jaxpr_to_mlir_module_duration', 'something_else'):
    parallel._count_compilation(f'/jax/core/compile/{event}', 2.0)
  assert parallel.compile_seconds() == 5.0
