"""What the networks of a run look like."""

import dataclasses
from collections.abc import Callable

from abd_jax.data.augment import make_normalise
from abd_jax.errors import UserError
from abd_jax.methods import METHODS
from abd_jax.methods.interface import Shapes
from abd_jax.models import make_generator, make_student
from abd_jax.parallel import axis_of


@dataclasses.dataclass(frozen=True)
class Networks:
  """The networks of a run, as what is compiled for them depends on.

  Attributes:
    student, generator: names in `models`; the generator is None for a method that does not dream, or of images that are
      optimised themselves.
    image_shape: (H, W, C).
    num_classes: of the head.
    mean, std: per channel, what images are standardised by.
    precision: of the activations, 'float32' or 'bfloat16'.
    axis: the mapped axis along which devices share a batch under --parallel=pmap, or None.
    task_of_class: the task of each class of the head.
    own, tallies: as in `methods.interface.Method`.
    head_bias: whether the student's head has a bias; None: as the student has it.
  """

  student: str
  generator: str | None
  image_shape: tuple[int, int, int]
  num_classes: int
  mean: tuple[float, ...]
  std: tuple[float, ...]
  precision: str = 'float32'
  axis: str | None = None
  task_of_class: tuple[int, ...] = ()
  own: Callable | None = None
  tallies: bool = False
  head_bias: bool | None = None

  @property
  def classifier(self):
    return make_student(self.student, self.num_classes, self.precision, self.axis, self.head_bias)

  @property
  def dreamer(self):
    return make_generator(self.generator, self.image_shape, self.precision, self.axis)

  @property
  def normalise(self):
    return make_normalise(self.mean, self.std)

  @property
  def tallied(self):
    """How many classes are counted, or None for a method that does not count."""
    return self.num_classes if self.tallies else None

  def make_init_own(self):
    """(key) -> the method's own parameters, or None for a method without.

    Raises:
      ValueError: the method cannot take images of this shape.
    """
    if self.own is None:
      return None
    features = self.classifier.feature_size
    return self.own(Shapes(self.image_shape, 1 + max(self.task_of_class, default=0), self.num_classes, features))


def check_head(method, student, model):
  """Refuses a method that makes its own head where the head has no bias.

  Args:
    method: a `methods.interface.Method`.
    student, model: the classifier's name and Linen module.

  Raises:
    UserError: the head has no bias.
  """
  if method.closes and not model.head_bias:
    raise UserError(f'--method={method.name} makes a head that has a bias, and that of --student={student} has none.')


def networks_for(config, tasks, dataset):
  """The `Networks` of a run of `config` on a `TaskSequence` of a `Dataset`."""
  method = METHODS[config.method]
  mean, std = (dataset.mean, dataset.std) if method.standardised else ((0.0,), (1.0,))
  return Networks(
      student=config.student,
      generator=config.inversion.generator if method.dreams and config.inversion.inversion == 'generator' else None,
      image_shape=tasks.image_shape,
      num_classes=tasks.num_classes,
      mean=tuple(mean),
      std=tuple(std),
      precision=config.precision,
      axis=axis_of(config.parallel),
      task_of_class=tasks.task_of_class,
      own=method.own,
      tallies=method.tallies,
      head_bias={'auto': None, 'true': True, 'false': False}[config.head_bias],
  )
