"""What later tasks need, compiled in threads while the first is learned."""

import os
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np

from abd_jax.addresses import Address
from abd_jax.data.feed import shapes_of_call
from abd_jax.data.streams import Streams
from abd_jax.errors import Abandoned
from abd_jax.methods import METHODS
from abd_jax.parallel import devices, end_compilations, shapes
from abd_jax.programs import eval_batch


class Ahead:
  """While entered, threads compile programs in the order in which they will be called.

  One that is called before a thread has come to it is compiled where it is called, and one that a thread is at is
  waited for: nothing is compiled twice, and nothing later than it would be without threads.
  """

  def __init__(self, config, calls):
    """`calls` are (step, its arguments or their shapes), of a run of `config`."""
    # pmap compiles when it is called, and several processes keep to one order.
    self._calls = calls if config.parallel == 'jit' and jax.process_count() == 1 else ()
    self._begun = []

  def __enter__(self):
    # Half of the cores: the others make the steps of the first task, or hand them out. Four will do for all programs.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
    self._threads = ThreadPoolExecutor(min(4, max(1, cores // 2)), 'compile')
    # What `with jax....:` sets is of its thread alone: others would trace other programs.
    alike = self._threads.submit(_settings).result() == _settings()
    asked = (step.compile_ahead(self._threads, *arguments) for step, arguments in self._calls) if alike else ()
    self._begun = [begun for begun in asked if begun]
    return self

  def check(self):
    """Raises what a thread met when it traced a step: a loss that cannot be computed, before its task has come."""
    for begun in self._begun:
      if begun.done() and not begun.cancelled():
        begun.result()

  def __exit__(self, kind, *exception):
    # What is being compiled cannot be stopped; nobody who pressed Ctrl-C is to wait for it.
    if kind in (KeyboardInterrupt, Abandoned):
      self._threads.shutdown(wait=False, cancel_futures=True)
    else:
      end_compilations(self._threads)


def _settings():
  """JAX's settings as this thread has them."""
  return {name: getattr(jax.config, name, None) for name in jax.config.values}


def to_learn(config, dataset, tasks, programs, plans):
  """(step, its arguments as shapes) of each program that learning calls, in the order of the calls.

  Counts of classes and steps are traced: any will do.

  Args:
    config, dataset, tasks, programs: of the run.
    plans: [(number of a task, whether it is yet to begin, [(address, phase)] what of it is left)].
  """
  method, place = METHODS[config.method], np.zeros(4, np.int32)
  streams = Streams(tasks, method, config.memory, config.seed)
  student = shapes(programs.init_student.shapes(place))
  frozen = shapes(programs.freeze.shapes(student))
  generator = programs.init_generator and shapes(programs.init_generator.shapes(place))

  def of_phase(phase):
    batch_size = streams.batch_size(phase, config.optimisation.batch_size, len(devices()))
    batch = shapes_of_call(
        dataset.streamed, streams.capacity(phase.reads), tasks.image_shape, batch_size, programs.learn_steps
    )
    teacher, before = frozen if phase.needs_teacher else None, frozen if phase.looks_back else None
    return student, place, 1, teacher, generator if phase.dreams else None, *batch, 0, 1, 0.1, before

  for task, begins, plan in plans:
    later = task > 0
    calls = [
        (later and begins and programs.renew, (student, place)),
        (later and begins and method.teacher and programs.freeze, (student,)),
        (later and begins and programs.init_generator, (place,)),
    ]
    for address, phase in plan:
      if address == Address.INVERSION:
        calls.append((programs.invert, (generator, place, 1, frozen, 1)))
        calls.append((programs.preview, (generator, frozen, 1, place)))
      elif phase is None:  # the coreset is chosen, or the task is closed
        calls.append((programs.features, _evaluated(student, tasks)))
        calls.append((later and programs.synthetic_features, (student, frozen, generator, place)))
      else:
        calls.append((not phase.continues and programs.restart, (student,)))
        calls.append((programs.begin_epoch, (student.tally,)))
        calls.append((programs.learn[phase], of_phase(phase)))
    yield from ((step, arguments) for step, arguments in calls if step)


def to_evaluate(tasks, programs):
  """The same of an evaluation."""
  student = shapes(programs.init_student.shapes(np.zeros(4, np.int32)))
  yield programs.evaluate, _evaluated(student, tasks)


def _evaluated(student, tasks):
  return student.variables, jax.ShapeDtypeStruct((eval_batch(tasks.image_shape), *tasks.image_shape), np.uint8)
