"""What a method is made of: phases, and what their losses see."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class Rows:
  """Some rows of a batch, through student and teacher.

  Attributes:
    labels: i32[N]; for synthetic rows the teacher's choice.
    features: f32[N, D], the student's penultimate features.
    logits: f32[N, K], the student's.
    teacher_features: f32[N, D], or None where the phase has no teacher.
    teacher_logits: f32[N, K], or None.
  """

  labels: Any
  features: Any
  logits: Any
  teacher_features: Any = None
  teacher_logits: Any = None


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


def stack_rows(real, synthetic):
  """The real rows followed by the synthetic ones, where there are any."""
  if synthetic is None:
    return real
  return jax.tree.map(lambda *parts: jnp.concatenate(parts), real, synthetic)


@dataclasses.dataclass(frozen=True)
class Phase:
  """One stage of learning a task.

  Attributes:
    name: shown while it runs, and the key under which its steps are counted.
    loss: (View, config.Hyperparameters) -> (f32[] loss, {name: f32[]} for the log).
    dreams: whether as many synthetic images as real ones join each batch.
    teacher: whether the loss looks at the frozen teacher; always so when it dreams.
    second_pass: whether the authors' code passes each batch twice through the student in train mode, which
      --bn_double_update reproduces.
  """

  name: str
  loss: Callable
  dreams: bool = False
  teacher: bool = False
  second_pass: bool = False


@dataclasses.dataclass(frozen=True)
class Method:
  """A way to learn class after class.

  Attributes:
    name: what --method says.
    first: the phases of the first task, which has no past.
    later: the phases of every later task.
    cumulative: every task comes with the images of all tasks before it, and the student starts anew: the upper bound.
  """

  name: str
  first: tuple[Phase, ...]
  later: tuple[Phase, ...]
  cumulative: bool = False

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
    return any(phase.dreams or phase.teacher for phase in self.later)
