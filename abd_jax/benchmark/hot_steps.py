"""The hot steps as a run makes them: the first task's, ABD's, the generator's, on random images."""

import dataclasses
from collections.abc import Callable

import numpy as np

from abd_jax import states, train
from abd_jax.addresses import Address
from abd_jax.data.sources import CIFAR100_MEAN, CIFAR100_STD, Dataset
from abd_jax.errors import UserError
from abd_jax.methods import METHODS
from abd_jax.parallel import CompiledStep
from abd_jax.programs import programs_for
from abd_jax.states import GeneratorState, StudentState

STEPS = ('first', 'abd', 'generator')


def random_dataset(config, num_images=2560):
  """Random images of CIFAR-100's shape, or of --image_size: a step takes as long on them as on any."""
  rng = np.random.default_rng(0)
  side = config.image_size or 32
  images = rng.integers(0, 256, (num_images, side, side, 3), np.uint8)
  labels = np.arange(num_images) % 100
  names = tuple(f'class {k}' for k in range(100))
  return Dataset('random', images, labels, images[:100], labels[:100], names, CIFAR100_MEAN, CIFAR100_STD)


@dataclasses.dataclass(frozen=True)
class Hot:
  """One of the hot steps, as a run would call it.

  Attributes:
    step: a `CompiledStep`.
    length: how many steps a call makes.
    state: what it moves.
    others: (number of the first step) -> its other arguments.
  """

  step: CompiledStep
  length: int
  state: StudentState | GeneratorState
  others: Callable


def hot_steps(config, tasks, programs, student, generator, images, labels):
  """{name: `Hot`} on a task's images and labels, of states or their shapes."""
  method, teacher = METHODS[config.method], states.TeacherState(student.params, student.batch_stats)
  rows = np.tile(np.arange(config.optimisation.batch_size, dtype=np.int32), (programs.learn_steps, 1))
  rate = config.optimisation.learning_rate
  place = lambda task, address, step: np.array([config.seed, task, address, step], np.int32)

  def learn(task, phase, teacher, generator):
    others = lambda step: (
        place(task, Address.LEARN, step), programs.learn_steps, teacher, generator, images, labels, rows,
        tasks.past(task), tasks.seen(task), rate, None,
    )
    return Hot(programs.learn[phase], programs.learn_steps, student, others)

  invert = lambda step: (place(1, Address.INVERSION, step), programs.invert_steps, teacher, tasks.past(1))
  return {
      'first': learn(0, method.first[0], None, None),
      'abd': learn(1, method.later[0], teacher, generator),
      'generator': Hot(programs.invert, programs.invert_steps, generator, invert),
  }


def prepared(config, num_images=2560):
  """The (TaskSequence, Programs) that the hot steps are of, on a data set of so many images.

  Raises:
    UserError: the method has no inversion; the config cannot be run.
  """
  if not METHODS[config.method].dreams:
    raise UserError(f'--method={config.method} trains no generator: other steps than those timed here.')
  if config.inversion.inversion != 'generator':
    raise UserError(f'--inversion={config.inversion.inversion} trains no generator: other steps than those timed here.')
  dataset = random_dataset(config, num_images)
  tasks = train.tasks_for(config, dataset)
  return tasks, programs_for(config, tasks, dataset)
