"""What a method is made of: phases, and what their losses see."""

import dataclasses
import enum
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from abd_jax.inversion import inversion_loss

# Where a method's own parameters stand among the student's: optimised, frozen, kept and counted with the network's.
OWN = 'own'


@flax.struct.dataclass
class Rows:
  """Some rows of a batch, through student and teacher.

  Attributes:
    labels: i32[N]; for synthetic rows the teacher's choice.
    features: f32[N, D], the student's penultimate features.
    logits: f32[N, K], the student's.
    teacher_features: f32[N, D], or None where the phase has no teacher.
    teacher_logits: f32[N, K], or None.
    before_logits: f32[N, K] of the student as it was when the phase began, or None where it does not look back.
    images: f32[N, H, W, C], as they reach the student.
  """

  labels: Any
  features: Any
  logits: Any
  teacher_features: Any = None
  teacher_logits: Any = None
  before_logits: Any = None
  images: Any = None


@flax.struct.dataclass
class View:
  """All that a loss may look at, after one forward pass of each network.

  Attributes:
    real: the batch of the task's own images.
    synthetic: as many dreamed ones, or None where the phase does not dream.
    both: the real rows, then the synthetic.
    past: i32[], classes of the earlier tasks.
    seen: i32[], classes of the tasks so far.
    num_classes: classes of the whole head.
    head: f32[N, D] features to f32[N, K] logits, through the student's head.
    teacher_head: the same through the teacher's, or None.
    axis: the mapped axis along which devices share the batch, or None; what is not a mean over rows needs it.
    own: the method's own parameters beside the network's, or None.
    tasks: i32[K], the task of each class of the head.
    noise: (size) -> f32[N, size], standard normal, a row for each of `both`; for what the loss draws.
    met: i32[K], how often each class was met, real or synthetic, in this task before this epoch; None where the method
      does not count.
  """

  real: Rows
  synthetic: Rows | None
  both: Rows
  past: Any
  seen: Any
  num_classes: int = flax.struct.field(pytree_node=False)
  head: Callable = flax.struct.field(pytree_node=False)
  teacher_head: Callable | None = flax.struct.field(pytree_node=False, default=None)
  axis: str | None = flax.struct.field(pytree_node=False, default=None)
  own: Any = None
  tasks: Any = None
  noise: Callable | None = flax.struct.field(pytree_node=False, default=None)
  met: Any = None


@dataclasses.dataclass(frozen=True)
class Learned:
  """What a method may look at when all phases of a task are over: features in eval mode, of images as they are.

  Attributes:
    labels: i32[M], of the task's own images.
    features: f32[M, D], the student's.
    past: classes of the earlier tasks.
    seen: classes of the tasks so far.
    teacher_features: f32[M, D], or None in the first task.
    synthetic_features: f32[S, D], the student's of about as many synthetic images, or None in the first task.
    synthetic_teacher_features: f32[S, D], or None.
  """

  labels: Any
  features: Any
  past: int
  seen: int
  teacher_features: Any = None
  synthetic_features: Any = None
  synthetic_teacher_features: Any = None


def stack_rows(real, synthetic):
  """The real rows followed by the synthetic ones, where there are any."""
  if synthetic is None:
    return real
  return jax.tree.map(lambda *parts: jnp.concatenate(parts), real, synthetic)


class Reads(enum.Enum):
  """The real images that a phase sees."""

  NEW = 'the task\'s own'
  MIXED = 'the task\'s own and the coreset\'s, those held out left out'
  CORESET = 'the coreset alone, the new classes in it'
  HOLD_OUT = 'what is held out of both, as many images of every class'


def network(params, past, tasks):
  """Trains the whole network, and nothing of the method's own."""
  del past, tasks
  return {name: name != OWN for name in params}


def head(params, past, tasks):
  """Trains the head alone."""
  del past, tasks
  return {name: name == 'head' for name in params}


def everything(params, past, tasks):
  """Trains the network and the method's own parameters."""
  del past, tasks
  return {name: True for name in params}


@dataclasses.dataclass(frozen=True)
class Schedule:
  """How long a phase is and how fast it learns.

  Attributes:
    epochs: passes over its images.
    learning_rate: of the first epoch.
    decay_at: the rate is divided by 10 after these epochs.
  """

  epochs: int
  learning_rate: float
  decay_at: tuple[int, ...] = ()

  def rate(self, epoch):
    """The learning rate of epoch number `epoch`, counted from 0."""
    return self.learning_rate * 0.1 ** sum(epoch >= mark for mark in self.decay_at)


def whole(settings):
  """The schedule of a config.Optimisation as it stands."""
  return Schedule(settings.epochs, settings.learning_rate, settings.decay_at)


def again(settings):
  """The whole schedule once more, at a hundredth of its rate; longer or shorter it decays in proportion."""
  rate = settings.second_learning_rate or 0.01 * settings.learning_rate
  epochs = settings.second_epochs or settings.epochs
  return Schedule(epochs, rate, tuple(mark * epochs // settings.epochs for mark in settings.decay_at))


@dataclasses.dataclass(frozen=True)
class Phase:
  """One stage of learning a task.

  Attributes:
    name: shown while it runs, and `phase` in its lines of metrics.jsonl, where 'inversion' is the generator's training.
    loss: (View, config.Hyperparameters) -> (f32[] loss, {name: f32[]} for the log).
    reads: the real images that it sees.
    dreams: whether as many images of the inverted teacher as real ones join each batch.
    replays: whether as many samples of the teacher's VAE do.
    teacher: whether the loss looks at the frozen teacher; always so where synthetic images join.
    looks_back: whether the loss looks at the student as it was when the phase began.
    trains: (params, i32[] past, i32[K] tasks) -> a prefix of the tree of parameters: a bool or bool array each, true
      for what moves and decays.
    frozen_statistics: BatchNorm uses its running statistics and leaves them, unless --phase2_batch_stats=updated.
    schedule: (config.Optimisation) -> `Schedule`.
    continues: whether the optimizer goes on with the momentum of the phase before; else it begins anew.
    apart: whether real and synthetic images pass through the student one after the other, each with batch statistics of
      their own, so that running statistics move twice; else together.
    second_pass: whether the authors' code passes each batch twice through the student in train mode, which
      --bn_double_update reproduces.
  """

  name: str
  loss: Callable
  reads: Reads = Reads.NEW
  dreams: bool = False
  replays: bool = False
  teacher: bool = False
  looks_back: bool = False
  trains: Callable = network
  frozen_statistics: bool = False
  schedule: Callable = whole
  continues: bool = False
  apart: bool = False
  second_pass: bool = False

  @property
  def needs_teacher(self):
    return self.dreams or self.replays or self.teacher


@dataclasses.dataclass(frozen=True)
class Shapes:
  """What the shapes of a method's own parameters depend on.

  Attributes:
    image: (H, W, C).
    tasks: how many there are.
    classes: how many the head has.
    features: how many reach it.
  """

  image: tuple[int, int, int]
  tasks: int
  classes: int
  features: int


@dataclasses.dataclass(frozen=True)
class Coreset:
  """How a method chooses the old images that it keeps, --memory of them at most.

  Attributes:
    rank: (f32[M, D] features of a new class, how many) -> the rows kept, best first. A class is ranked once, when it is
      new, and later keeps the best. None: drawn at random, anew after every task.
    resampled: a task's images come with as many of the coreset's, drawn with replacement; else with each of them once.
    hold_out: this share of the coreset, and as many images of a new class as of a past one, are not trained on.
  """

  rank: Callable | None = None
  resampled: bool = False
  hold_out: float = 0.0


@dataclasses.dataclass(frozen=True)
class Method:
  """A way to learn class after class.

  Attributes:
    name: what --method says.
    first: the phases of the first task, which has no past.
    later: the phases of every later task.
    cumulative: every task comes with the images of all tasks before it, and the student starts anew: the upper bound.
    coreset: how old images are chosen; None for a method that keeps none.
    own: (`Shapes`) -> ((key) -> parameters), what the method trains beside the network; ValueError for images that it
      cannot take.
    renews_own: whether these are made new for each task, and none is kept from one to the next.
    own_is_head: whether they are of the classifier's head, kept and grown with it: classes are the last axis of those
      that have one a class.
    tallies: whether labels are counted, for losses that look at `View.met`.
    opens: (the student's parameters, past) -> its parameters as a later task begins with them, where `closes` made
      others; twice is as good as once. None for a method that goes on with those it has.
    closes: (the student's parameters, `Learned`) -> its parameters when all phases of a task are over: what is made
      without a gradient, on the host. None for a method that leaves them as they were trained. Such a method dreams.
    readout: (logits, own parameters, i32[K] tasks, config.Hyperparameters) -> the logits that an evaluation reads.
    standardised: whether images are standardised; else they stay in [0, 1].
    weight_decay: in the place of --weight_decay.
    inverts: what the generator, or the images of --inversion=images, are trained by; called as `inversion_loss` is.
  """

  name: str
  first: tuple[Phase, ...]
  later: tuple[Phase, ...]
  cumulative: bool = False
  coreset: Coreset | None = None
  own: Callable | None = None
  renews_own: bool = False
  own_is_head: bool = False
  tallies: bool = False
  opens: Callable | None = None
  closes: Callable | None = None
  readout: Callable | None = None
  standardised: bool = True
  weight_decay: float | None = None
  inverts: Callable = inversion_loss

  def phases(self, task):
    """The phases of task number `task`, counted from 0."""
    return self.later if task else self.first

  @property
  def dreams(self):
    """Whether a generator is trained before each later task."""
    return any(phase.dreams for phase in self.later)

  @property
  def teacher(self):
    """Whether the classifier of the previous task is kept, frozen."""
    return any(phase.needs_teacher for phase in self.later)
