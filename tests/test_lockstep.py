"""Several seeds as one program: where their steps meet, and that each run comes to what it comes to alone."""

import dataclasses
import re
import threading
from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abd_jax import data, lockstep, programs, task_loop, train
from abd_jax.config import with_values
from abd_jax.errors import NotFinite, UserError
from abd_jax.experiment import run_all
from abd_jax.methods import METHODS
from abd_jax.models.convolution import conv_general_dilated
from abd_jax.parallel import CompiledStep, compile_seconds, compile_step, put
from abd_jax.stopping import Preempted, StopSignal
from tests.small_runs import TINY, as_step, final_states

SHORT = with_values(TINY, dict(num_classes=4, num_tasks=2, seeds=(0, 1)))


@pytest.fixture(scope='module')
def dataset():
  return data.load('digits')


# Runs


@pytest.fixture(scope='module')
def alone(small, dataset, tmp_path_factory):
  """The seeds in turns: their workdirs and results."""
  folder = tmp_path_factory.mktemp('alone')
  found = []
  for seed in SHORT.seeds:
    one = dataclasses.replace(SHORT, seed=seed, seeds=())
    found.append((folder / str(seed), train.run(one, folder / str(seed), dataset)))
  return found


@pytest.fixture
def one_by_one(monkeypatch):
  """Lets the program of all make the very steps that each makes alone, so that nothing but the threads is tested."""

  def of_several(self, count):
    def together(*arguments):
      assert {len(of_all) for of_all in arguments} == {count}
      return tuple(self(*its) for its in zip(*arguments, strict=True))

    return as_step(together)

  monkeypatch.setattr(CompiledStep, 'of_several', of_several)


def _together(folder, dataset, stop=None):
  runs = [(dataclasses.replace(SHORT, seed=seed, seeds=()), folder / str(seed)) for seed in SHORT.seeds]
  with StopSignal() as listening:
    return lockstep.train_together(runs, dataset, stop or listening)


def _assert_same_runs(folder, results, alone):
  for (workdir, expected), found in zip(alone, results, strict=True):
    assert found.class_order == expected.class_order
    assert found.accuracy_matrix == expected.accuracy_matrix
    chex.assert_trees_all_equal(final_states(folder / workdir.name), final_states(workdir))


def test_seeds_at_once_come_to_what_each_comes_to_alone(alone, one_by_one, dataset, tmp_path, monkeypatch):
  calls = []
  make = lockstep.Lockstep._make
  monkeypatch.setattr(
      lockstep.Lockstep, '_make', lambda self, granted, at_once: calls.append(at_once) or make(self, granted, at_once)
  )
  results = _together(tmp_path, dataset)
  # 8 steps of the first task, 3 of the inversion, 8 and 9 of the second task.
  assert calls == [True] * (8 + 3 + 8) + [False]
  _assert_same_runs(tmp_path, results, alone)
  for workdir, _ in alone:
    lines, theirs = ((path / 'metrics.jsonl').read_text() for path in (tmp_path / workdir.name, workdir))
    assert lines == theirs


def test_the_command_trains_them_so_when_told( tmp_path, monkeypatch):
  met = []
  monkeypatch.setattr(lockstep, 'train_together', lambda runs, *rest: met.append(runs) or [None] * len(runs))
  monkeypatch.setattr('abd_jax.processes.is_first', lambda: False)  # which would print a table of them
  settings = with_values(SHORT, dict(seeds_in='one_program', method='abd,base', workdir=str(tmp_path)))
  run_all(settings)
  assert [[(one.method, one.seed) for one, _ in runs] for runs in met] == [
      [('abd', 0), ('abd', 1)], [('base', 0), ('base', 1)]
  ]


def test_several_processes_take_turns(monkeypatch):
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  with pytest.raises(UserError, match='--seeds_in=one_program is for one process: with --distributed, seeds are'):
    run_all(with_values(SHORT, dict(seeds_in='one_program')))


def test_runs_stopped_at_different_places_go_on_and_meet_again(alone, one_by_one, dataset, tmp_path):
  # Seed 1 has learned its first task already; the other stands at its beginning.
  train.run(dataclasses.replace(SHORT, seed=1, seeds=(), stop_after_task=1), tmp_path / '1', dataset)
  _assert_same_runs(tmp_path, _together(tmp_path, dataset), alone)


def test_sigterm_stops_all_at_one_place_from_which_they_go_on(alone, one_by_one, dataset, tmp_path, monkeypatch):
  stop, made = SimpleNamespace(received=False, after=StopSignal().after), []
  make = lockstep.Lockstep._make

  def stopping(self, granted, at_once):
    made.append(at_once)
    stop.received = len(made) == 12  # in the second task; heard with the next step
    return make(self, granted, at_once)

  with monkeypatch.context() as patch:
    patch.setattr(lockstep.Lockstep, '_make', stopping)
    with pytest.raises(Preempted):
      _together(tmp_path, dataset, stop)
  assert made == [True] * 13
  assert not list(tmp_path.glob('*/results.json'))
  _assert_same_runs(tmp_path, _together(tmp_path, dataset), alone)


def test_one_that_goes_astray_ends_all(alone, dataset, tmp_path, monkeypatch):
  loop = task_loop.Run._loop

  def failing(self, *arguments):
    if self._config.seed == 1:
      raise NotFinite('Task 1, learn, step 1: loss is nan.')
    return loop(self, *arguments)

  monkeypatch.setattr(task_loop.Run, '_loop', failing)
  with pytest.raises(NotFinite, match='loss is nan'):
    _together(tmp_path, dataset)


# Where they meet


class _Counting:
  """Steps as `CompiledStep` has them, that do nothing but say who asked."""

  def __init__(self, name, log):
    self.name, self._log = name, log

  def __call__(self, who, place, batch):
    self._log.append((self.name, who))
    return (self.name, who)

  def of_several(self, count):
    def together(whos, places, batches):
      del places, batches
      assert len(whos) == count
      self._log.append((self.name, whos))
      return tuple((self.name, who) for who in whos)

    return together


def _meet(*plans):
  """Runs that ask for steps [(name, place, size of a batch)] in threads of their own; what was called, in order."""
  log = []
  meeting = lockstep.Lockstep(len(plans), SimpleNamespace(received=False, after=None))
  steps = {name: meeting._shared(_Counting(name, log)) for name in ('invert', 'learn')}

  def one(who, plan):
    with meeting.taking_part():
      for name, place, *size in plan:
        assert steps[name](who, (0, *place), np.zeros(size)) == (name, who)

  threads = [threading.Thread(target=one, args=run) for run in enumerate(plans)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join(timeout=20)
    assert not thread.is_alive()
  return [(name, whos if isinstance(whos, int) else tuple(sorted(whos))) for name, whos in log]


def test_the_one_behind_goes_alone_until_it_has_caught_up():
  ahead = [('learn', (1, 16, 0)), ('learn', (1, 16, 1))]
  behind = [('invert', (1, 2, 4)), ('invert', (1, 2, 5)), *ahead]
  assert _meet(ahead, behind) == [('invert', 1), ('invert', 1), ('learn', (0, 1)), ('learn', (0, 1))]


def test_one_that_has_ended_is_not_waited_for():
  short, long = [('learn', (0, 16, 0))], [('learn', (0, 16, 0)), ('learn', (0, 16, 1))]
  assert _meet(short, long) == [('learn', (0, 1)), ('learn', 1)]


def test_batches_of_two_sizes_are_no_one_program():
  twelve = [('learn', (1, 17, 0), 12), ('learn', (1, 18, 0), 8)]
  sixteen = [('learn', (1, 17, 0), 16), ('learn', (1, 18, 0), 8)]
  assert _meet(twelve, sixteen) == [('learn', 0), ('learn', 1), ('learn', (0, 1))]


# What they run


def test_convolutions_of_several_runs_are_not_grouped():
  images, kernels = jnp.ones((3, 2, 8, 8, 16)), jnp.ones((3, 3, 3, 16, 16))

  def loss(images, kernel):
    return jnp.sum(conv_general_dilated(images, kernel, (2, 2), ((1, 1), (1, 1))) ** 2)

  several = jax.jit(jax.vmap(jax.grad(loss, argnums=(0, 1))))
  text = str(jax.export.export(several, platforms=['cuda'])(images, kernels).mlir_module())
  counts = re.findall(r'(batch|feature)_group_count = (\d+)', text)
  assert len(counts) == 2 * 3 * 3 and {count for _, count in counts} == {'1'}  # forwards and two gradients, three runs


def test_a_step_of_several_is_the_step_of_each():
  step = compile_step(lambda state, batch, none: ({'w': state['w'] + batch}, jnp.sum(batch)), donate=(0,))
  states = tuple({'w': jnp.full(2, float(i))} for i in range(3))
  batches = tuple(np.array([1.0, i], np.float32) for i in range(3))
  found = step.of_several(3)(states, batches, (None, None, None))
  for i, (state, total) in enumerate(found):
    chex.assert_trees_all_equal(state, {'w': jnp.array([i + 1.0, 2.0 * i])})
    assert total == 1 + i


def test_steps_of_several_runs_are_their_own(small, dataset):
  """A step of ABD and one of its inversion, of two seeds at once and alone: the order of sums alone differs."""
  found = {}
  tasks = [train.tasks_for(dataclasses.replace(SHORT, seed=seed), dataset) for seed in SHORT.seeds]
  compiled = programs.programs_for(SHORT, tasks[0], dataset)
  arguments = []
  for seed, its_tasks in zip(SHORT.seeds, tasks, strict=True):
    place = np.array([seed, 1, 16, 0], np.int32)
    student, generator = compiled.init_student(place), compiled.init_generator(place)
    images, labels = its_tasks.train(1)
    images, labels = put((images[:280], labels[:280]))
    rows = np.random.default_rng(seed).permutation(280).astype(np.int32)[None, :32]
    teacher = compiled.freeze(student)
    arguments.append((student, place, 1, teacher, generator, images, labels, rows, 2, 4, 0.1, None))
  for at_once in (True, False):
    learn, invert = compiled.learn[METHODS['abd'].later[0]], compiled.invert
    copies = [jax.tree.map(jnp.copy, (a[0], a[4])) for a in arguments]
    learned = [(student, *a[1:]) for (student, _), a in zip(copies, arguments, strict=True)]
    inverted = [(generator, a[1], 1, a[3], 2) for (_, generator), a in zip(copies, arguments, strict=True)]
    found[at_once] = [
        step.of_several(2)(*zip(*given, strict=True)) if at_once else [step(*its) for its in given]
        for step, given in ((learn, learned), (invert, inverted))
    ]
  (students, generators), alone = found[True], found[False]
  # After one step SGD's momentum is the gradient, Adam's first moment a tenth of it.
  for ours, theirs in zip((*students, *generators), (*alone[0], *alone[1]), strict=True):
    moments = [(s.opt_state, s.batch_stats, metrics) for s, metrics in (ours, theirs)]
    for a, b in zip(*map(jax.tree.leaves, moments), strict=True):
      if np.issubdtype(b.dtype, np.floating):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6 + 1e-3 * np.abs(b).max())
  losses = [float(metrics['loss'][0]) for _, metrics in students]
  assert abs(losses[0] - losses[1]) > 1e-3  # each its own


def test_compilation_counts_for_the_run_in_whose_thread_it_is():
  of_thread = []

  def compile_something():
    jax.jit(lambda x: x + 1.0)(np.ones(3)).block_until_ready()
    of_thread.append(compile_seconds())

  before = compile_seconds()
  thread = threading.Thread(target=compile_something)
  thread.start()
  thread.join()
  assert of_thread[0] > 0 and compile_seconds() == before
