"""What later tasks need, compiled in threads while the first is learned."""

import os
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np

from abd_jax.data.feed import shapes_of_call
from abd_jax.data.streams import Streams
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
    # Half of the cores: the others make the steps of the first task, or hand them out.
    self._threads = ThreadPoolExecutor(max(1, (os.cpu_count() or 1) // 2), 'compile')
    self._begun = [begun for step, arguments in self._calls if (begun := step.compile_ahead(self._threads, *arguments))]
    return self

  def check(self):
    """Raises what a thread met when it traced a step: a loss that cannot be computed, before its task has come."""
    for begun in self._begun:
      if begun.done() and not begun.cancelled():
        begun.result()

  def __exit__(self, kind, *exception):
    # What is being compiled cannot be stopped; nobody who pressed Ctrl-C is to wait for it.
    if kind is KeyboardInterrupt:
      self._threads.shutdown(wait=False, cancel_futures=True)
    else:
      end_compilations(self._threads)


def to_learn(config, dataset, tasks, programs, numbers):
  """(step, its arguments as shapes) of each program that learning the tasks of these numbers calls, in that order.

  The first and one later task call all there are. Counts of classes and steps are traced: any will do.
  """
  method, place = METHODS[config.method], np.zeros(4, np.int32)
  streams = Streams(tasks, method, config.memory, config.seed)
  student = shapes(programs.init_student.shapes(place))
  frozen = shapes(programs.freeze.shapes(student))
  generator = programs.init_generator and shapes(programs.init_generator.shapes(place))
  for task in numbers[:2]:
    if task and programs.renew:
      yield programs.renew, (student, place)
    if task and method.teacher:
      yield programs.freeze, (student,)
    if task and method.dreams:
      yield programs.init_generator, (place,)
      yield programs.invert, (generator, place, 1, frozen, 1)
      yield programs.preview, (generator, frozen, 1, place)
    for phase in method.phases(task):
      batch_size = streams.batch_size(phase, config.optimisation.batch_size, len(devices()))
      batch = shapes_of_call(
          dataset.streamed, streams.capacity(phase.reads), tasks.image_shape, batch_size, programs.learn_steps
      )
      teacher, before = frozen if phase.needs_teacher else None, frozen if phase.looks_back else None
      dreamer = generator if phase.dreams else None
      yield programs.restart, (student,)
      if programs.begin_epoch:
        yield programs.begin_epoch, (student.tally,)
      yield programs.learn[phase], (student, place, 1, teacher, dreamer, *batch, 0, 1, 0.1, before)
    if programs.features:
      yield programs.features, _evaluated(student, tasks)
    if task and programs.synthetic_features:
      yield programs.synthetic_features, (student, frozen, generator, place)


def to_evaluate(tasks, programs):
  """The same of an evaluation."""
  student = shapes(programs.init_student.shapes(np.zeros(4, np.int32)))
  yield programs.evaluate, _evaluated(student, tasks)


def _evaluated(student, tasks):
  return student.variables, jax.ShapeDtypeStruct((eval_batch(tasks.image_shape), *tasks.image_shape), np.uint8)
