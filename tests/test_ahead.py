"""Programs compiled in threads: all that a run calls, once, and what their traces meet is raised early."""

import contextlib
import threading
import time
from concurrent import futures
from types import SimpleNamespace
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abd_jax import ahead, config, lockstep, methods, parallel, programs, train
from abd_jax.config import with_values
from abd_jax.errors import Abandoned
from abd_jax.methods.finetuning import cross_entropy_loss
from abd_jax.methods.interface import Method, Phase
from abd_jax.parallel import compile_seconds, compile_step
from abd_jax.stopping import Preempted
from tests.small_runs import StopAfter, as_step

TINY = with_values(
    config.Config(),
    dict(
        num_tasks=2, num_classes=4, student='resnet8', batch_size=16, epochs=1, decay_at=(), inversion_steps=2,
        memory=240, color_jitter=False, flip=False, crop_padding=0,
    ),
)


@pytest.fixture
def waiting(monkeypatch):
  """Runs begin when all that they ask for is compiled."""
  enter = ahead.Ahead.__enter__
  monkeypatch.setattr(ahead.Ahead, '__enter__', lambda self: futures.wait(enter(self)._begun) and self)


def built_for(settings, dataset):
  return programs.programs_for(settings, train.tasks_for(settings, dataset), dataset)


@pytest.mark.parametrize('changes', [
    dict(method='abd'), dict(method='abd', inversion='images', image_steps=2), dict(method='dream'), dict(method='dgr'),
    dict(method='bic', steps_per_call=4), dict(method='rdfcil', student='resnet8_icarl', second_epochs=1),
], ids=lambda changes: changes['method'])
def test_all_that_a_run_calls_is_compiled_ahead_for_what_it_is_called_with(changes, small, digits, tmp_path, waiting):
  settings = with_values(TINY, changes)
  programs.clear()
  built = built_for(settings, digits)
  results = train.run(settings, tmp_path, digits)
  assert set(built.traces().values()) == {1}, built.traces()
  by_name = vars(built) | {phase.name: step for phase, step in built.learn.items()}
  called = {name for name, step in by_name.items() if getattr(step, '_called', False)}
  assert called == {name for name in called if by_name[name]._ahead} | {'init_student'}  # which nothing comes before
  assert results.seconds['compile'] == 0 and results.seconds['train'] > 0


def test_a_run_has_threads_compile_for_its_later_tasks(small, digits, tmp_path):
  settings = with_values(TINY, dict(method='abd', epochs=40))
  programs.clear()
  train.run(settings, tmp_path, digits)
  [later] = methods.METHODS['abd'].later
  built = built_for(settings, digits)
  assert all(step._ahead.done() and not step._ahead.cancelled() for step in (built.invert, built.learn[later]))


def test_a_loss_that_cannot_be_computed_ends_the_run_in_its_first_task(small, digits, tmp_path, monkeypatch, waiting):
  def wrong_loss(view, hparams):
    return hparams.no_such_weight, {}

  wrong = Method('wrong', (Phase('learn', cross_entropy_loss),), (Phase('learn', wrong_loss),))
  monkeypatch.setitem(methods.METHODS, 'wrong', wrong)
  for again in ('first', 'second'):  # in one process, whose programs are kept
    with pytest.raises(AttributeError, match='no_such_weight'):
      train.run(with_values(TINY, dict(method='wrong')), tmp_path / again, digits)
    assert 'accuracy' not in (tmp_path / again / 'metrics.jsonl').read_text()


def test_a_resumed_run_compiles_what_is_left_of_it(small, digits, tmp_path, waiting, capsys):
  settings = with_values(TINY, dict(method='abd'))
  with pytest.raises(Preempted):
    train.run(settings, tmp_path, digits, StopAfter(25))
  programs.clear()
  built = built_for(settings, digits)
  train.run(settings, tmp_path, digits)
  assert 'Resuming after 1 tasks, 1 phases and' in capsys.readouterr().out
  [first], [later] = methods.METHODS['abd'].first, methods.METHODS['abd'].later
  traced = [built.learn[later], built.evaluate]
  assert [step.traces for step in (built.invert, built.preview, built.learn[first], *traced)] == [0, 0, 0, 1, 1]


def test_settings_of_a_thread_keep_other_threads_from_it():
  step = compile_step(square)
  for settings, began in ((contextlib.nullcontext(), True), (jax.default_matmul_precision('highest'), False)):
    with settings, ahead.Ahead(TINY, [(step, (jax.ShapeDtypeStruct((3,), jnp.float32),))]) as threads:
      assert bool(threads._begun) == began
    step = compile_step(square)


def test_several_runs_compile_a_step_of_all_once_all_have_asked():
  asked = []
  of_two = SimpleNamespace(compile_ahead=lambda threads, *args: asked.append((threads, args)))
  meeting = lockstep.Lockstep(2, SimpleNamespace(received=False, after=None))
  shared = meeting._shared(mock.Mock(of_several=lambda count: of_two))
  for threads in ('first', 'first', 'second'):
    shared.compile_ahead(threads, 1, 'a')
  assert asked == [('second', ((1, 1), ('a', 'a')))]


def square(x):
  return x * x


def test_a_call_does_not_wait_for_a_thread_that_has_not_begun():
  step, busy = compile_step(square), threading.Event()
  with futures.ThreadPoolExecutor(1) as threads:
    threads.submit(busy.wait)
    begun = step.compile_ahead(threads, jax.ShapeDtypeStruct((3,), jnp.float32))
    try:
      np.testing.assert_array_equal(step(jnp.arange(3.0)), [0, 1, 4])
    finally:
      busy.set()
    assert begun.cancelled() and step.traces == 1
    assert step.compile_ahead(threads, jax.ShapeDtypeStruct((3,), jnp.float32)) is None


def test_a_call_waits_for_a_thread_that_has_begun_as_for_a_compilation():
  tracing, go_on = threading.Event(), threading.Event()

  def slow(x):
    tracing.set()
    go_on.wait()
    return x * x

  step, seen = compile_step(slow), []
  with futures.ThreadPoolExecutor(1) as threads:
    step.compile_ahead(threads, jax.ShapeDtypeStruct((3,), jnp.float32))
    tracing.wait()

    def look():
      while not parallel.compiling():
        time.sleep(0.01)
      seen.append(step.traces)
      time.sleep(0.1)
      go_on.set()

    looking = threading.Thread(target=look)
    looking.start()
    before = compile_seconds()
    np.testing.assert_array_equal(step(jnp.arange(3.0)), [0, 1, 4])
    looking.join()
  assert seen == [1] and step.traces == 1 and not parallel.compiling()
  assert compile_seconds() - before >= 0.1


def test_what_was_cancelled_can_be_asked_for_again_and_what_was_asked_for_cannot():
  step, shape, busy = compile_step(square), jax.ShapeDtypeStruct((3,), jnp.float32), threading.Event()
  threads = futures.ThreadPoolExecutor(1)
  threads.submit(busy.wait)
  begun = step.compile_ahead(threads, shape)
  assert step.compile_ahead(threads, shape) is None
  busy.set() if begun.cancel() else pytest.fail('it had begun')
  assert step.compile_ahead(threads, shape).result() is None and step.traces == 1
  threads.shutdown()


@pytest.mark.parametrize('error', [None, SystemExit, KeyboardInterrupt, Abandoned])
def test_the_end_of_a_run_waits_as_for_a_compilation_but_not_after_ctrl_c(error):
  tracing, go_on, seen = threading.Event(), threading.Event(), []

  def slow(x):
    tracing.set()
    go_on.wait()
    return x

  def look():
    until = time.monotonic() + 10
    while not parallel.compiling() and not seen and time.monotonic() < until:
      time.sleep(0.01)
    seen.append(parallel.compiling())
    go_on.set()

  looking = threading.Thread(target=look)
  with pytest.raises(error) if error else contextlib.nullcontext(), ahead.Ahead(TINY, [(compile_step(slow), (1.0,))]):
    tracing.wait()
    looking.start()
    if error:
      raise error
  seen += [] if seen else ['not waited for']
  looking.join()
  assert seen[0] == ('not waited for' if error in (KeyboardInterrupt, Abandoned) else True)


def test_a_run_that_ends_in_a_thread_of_its_own_says_nothing_of_the_others():
  tracing, leaving, go_on = threading.Event(), threading.Event(), threading.Event()

  def slow(x):
    tracing.set()
    go_on.wait()
    return x

  def run():
    with ahead.Ahead(TINY, [(compile_step(slow), (1.0,))]):
      tracing.wait()
      leaving.set()

  running = threading.Thread(target=run)
  running.start()
  leaving.wait()
  time.sleep(0.1)
  assert running.is_alive() and not parallel.compiling()
  go_on.set()
  running.join()


def test_no_room_beside_the_steps_of_others_is_no_failure():
  class Unroomy:
    trace = lower = lambda self, *args: self

    def compile(self):
      raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: out of memory')

  step = compile_step(square)
  usual, step.jitted = step.jitted, Unroomy()
  with futures.ThreadPoolExecutor(1) as threads:
    assert step.compile_ahead(threads).result() is None
  step.jitted = usual
  assert step(3.0) == 9


@pytest.mark.parametrize('settings, processes, begun', [
    (TINY, 1, 1), (with_values(TINY, dict(parallel='pmap')), 1, 0), (TINY, 2, 0),
])
def test_nothing_is_compiled_ahead_where_compilations_keep_an_order(settings, processes, begun, monkeypatch):
  asked = []
  step = as_step(lambda: None)
  step.compile_ahead = lambda threads, *args: asked.append(args)
  monkeypatch.setattr(jax, 'process_count', lambda: processes)
  with ahead.Ahead(settings, [(step, (1, 2))]) as threads:
    threads.check()
  assert asked == [(1, 2)] * begun
