"""What a run carries from step to step: student, frozen teacher, generator or image set, as pytrees."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

from abd_jax.config import Inversion, Optimisation
from abd_jax.methods.interface import OWN

LATENT_SIZE = 1000


@flax.struct.dataclass
class Tally:
  """How often each class of the head was met in a task, real and synthetic images alike.

  Attributes:
    so_far: i32[K], up to the last step.
    before_epoch: i32[K], when the epoch began: what losses look at.
  """

  so_far: Any
  before_epoch: Any


@flax.struct.dataclass
class StudentState:
  """The classifier that learns, and with it the method's own parameters.

  `opt_state` is the momentum; the learning rate comes with each batch. `tally` is None where labels are not counted.
  """

  params: Any
  batch_stats: Any
  opt_state: Any
  tally: Tally | None = None

  @property
  def variables(self) -> dict[str, Any]:
    return {'params': self.params, 'batch_stats': self.batch_stats}


@flax.struct.dataclass
class TeacherState:
  """The classifier as it was when the previous task ended."""

  params: Any
  batch_stats: Any

  @property
  def variables(self) -> dict[str, Any]:
    return {'params': self.params, 'batch_stats': self.batch_stats}


@flax.struct.dataclass
class GeneratorState:
  """The generator of synthetic images, trained against the teacher before each task."""

  params: Any
  batch_stats: Any
  opt_state: Any

  @property
  def variables(self) -> dict[str, Any]:
    return {'params': self.params, 'batch_stats': self.batch_stats}


@flax.struct.dataclass
class ImageSetState:
  """Synthetic images in the generator's place, optimised against the teacher themselves, a batch after another.

  Attributes:
    images: f32[M, H, W, C] in the classifier's pixel space; noise until their batch's turn comes.
    opt_state: the optimizer's, for the batch in the making.
  """

  images: Any
  opt_state: Any


def student_optimizer(hparams: Optimisation) -> optax.GradientTransformation:
  """SGD without its learning rate: PyTorch's order, decay added to the gradient, then momentum."""
  return optax.chain(optax.add_decayed_weights(hparams.weight_decay), optax.trace(hparams.momentum))


def generator_optimizer(hparams: Inversion) -> optax.GradientTransformation:
  """Adam at the constant rate of the inversion."""
  return optax.adam(hparams.generator_learning_rate)


def image_optimizer(hparams: Inversion) -> optax.GradientTransformation:
  """Adam at the constant rate of the direct inversion."""
  return optax.adam(hparams.image_learning_rate)


def init_image_set(
    optimizer: optax.GradientTransformation, count: int, batch_size: int, image_shape: tuple[int, ...], key: jax.Array,
) -> ImageSetState:
  """A set of `count` images of shape (H, W, C), standard normal as the classifier's pixels are."""
  images_MHWC = jax.random.normal(key, (count, *image_shape))
  return ImageSetState(images_MHWC, optimizer.init(images_MHWC[:batch_size]))


def init_student(
    model: nn.Module, optimizer: optax.GradientTransformation, image_shape: tuple[int, ...], key: jax.Array,
    own: Callable[[jax.Array], Any] | None = None, tallied: int | None = None,
) -> StudentState:
  """A student with fresh weights for images of shape (H, W, C); `own` and `tallied` as in `renewed`."""
  variables = model.init(key, jnp.zeros((1, *image_shape)), train=False)
  return renewed(StudentState(variables['params'], variables['batch_stats'], None), optimizer, key, own, tallied)


def renewed(
    student: StudentState, optimizer: optax.GradientTransformation, key: jax.Array,
    own: Callable[[jax.Array], Any] | None = None, tallied: int | None = None,
) -> StudentState:
  """The student as a task begins.

  Args:
    student: a `StudentState`, what it has for one task alone missing or of the task before.
    optimizer: an optax transformation, begun anew.
    key: of the method's own parameters.
    own: (key) -> these; None where there are none, or those of the task before go on.
    tallied: how many classes are counted, from 0 on; None for a method that does not count.
  """
  params = student.params if own is None else {**student.params, OWN: own(jax.random.fold_in(key, 1))}
  # Two arrays, not one twice: both are donated to the next step.
  tally = None if tallied is None else Tally(jnp.zeros(tallied, jnp.int32), jnp.zeros(tallied, jnp.int32))
  return StudentState(params, student.batch_stats, optimizer.init(params), tally)


def begin_epoch(tally: Tally) -> Tally:
  """The tally as an epoch begins: a copy, since both of its arrays are donated to the next step."""
  return Tally(tally.so_far, jnp.copy(tally.so_far))


def init_generator(model: nn.Module, optimizer: optax.GradientTransformation, key: jax.Array) -> GeneratorState:
  """A generator with fresh weights."""
  variables = model.init(key, jnp.zeros((1, LATENT_SIZE)), train=False)
  return GeneratorState(variables['params'], variables['batch_stats'], optimizer.init(variables['params']))


def freeze(student: StudentState) -> TeacherState:
  """The student as the next task's teacher: a copy, since the student's own buffers are donated to its next step."""
  teacher: TeacherState = jax.tree.map(jnp.copy, TeacherState(student.params, student.batch_stats))
  return teacher
