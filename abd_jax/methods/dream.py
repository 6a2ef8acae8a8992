"""Dream: ABD whose features are asked for more than a task needs, and held where that more is read; our own.

The features of a task with few classes tell these apart and little else; what would part them from the classes of other
tasks is learned by nobody, since no two tasks' real images ever meet. So each real image joins a second time, turned by
a quarter, a half or three quarters of a circle, and a head of the method's own says class and turn at once: four times
as many classes, of the same images. Labels of this kind are those of PASS (Zhu et al., CVPR 2021), which stores a mean
of each class besides. What is new here is that Eq. 13 holds the features wherever either head looks.
"""

import jax.numpy as jnp

from abd_jax.losses import feature_distillation, local_cross_entropy
from abd_jax.methods import abd
from abd_jax.methods.interface import Method, Phase, everything
from abd_jax.models.resnet import linear

_WAYS = 4  # in which a square image can lie, upright first
_TURNS = _WAYS - 1


def turned_head(shapes):
  """A logit for each class in each turn, initialised as PyTorch does; ValueError unless images are square."""
  height, width, _ = shapes.image
  if height != width:
    raise ValueError(f'images of {height} x {width} pixels cannot be turned by a quarter')
  return lambda key: linear(key, shapes.features, _TURNS * shapes.classes)


def turned_cross_entropy(rows, own, past, seen):
  """f32[N]: cross-entropy among the new classes, each upright and turned, of `Rows` that were turned.

  Args:
    rows: turned ones.
    own: the parameters of `turned_head`.
    past: number of classes of the earlier tasks.
    seen: number of classes of the tasks so far.
  """
  logits_NK = rows.logits
  count, num_classes = logits_NK.shape
  turned_NTK = (rows.features @ own['kernel'] + own['bias']).reshape(count, _TURNS, num_classes)
  all_NK4 = jnp.concatenate([logits_NK[:, None], turned_NTK], axis=1).swapaxes(1, 2)
  # A class's four logits side by side, so that the new classes are a window.
  return local_cross_entropy(
      all_NK4.reshape(count, -1), _WAYS * rows.labels + rows.quarters, _WAYS * past, _WAYS * seen
  )


def turned_distillation(rows, own, past):
  """f32[N]: Eq. 13 through the turned head of the teacher, averaged over the past classes and turns.

  Args:
    rows: `Rows` of which student and teacher have features.
    own: the parameters of `turned_head`, the teacher's.
    past: number of classes that the teacher knows.
  """
  looked_at = lambda features: (features @ own['kernel']).reshape(_TURNS * len(features), -1)  # noqa: E731
  held_NT = feature_distillation(looked_at(rows.features), looked_at(rows.teacher_features), past)
  return jnp.mean(held_NT.reshape(-1, _TURNS), axis=1)


def first_loss(view, hparams):
  """The first task: cross-entropy, upright and turned."""
  learn, terms = abd.first_loss(view, hparams)
  turn = jnp.mean(turned_cross_entropy(view.turned, view.own, 0, view.seen))
  loss = learn + hparams.turned_weight * turn
  return loss, {**terms, 'loss': loss, 'turn': turn}


def dream_loss(view, hparams):
  """Eq. 15, with the turned classes beside those of Eq. 11, weighed alike, and the turned head beside Eq. 13's."""
  upright, terms = abd.abd_loss(view, hparams)
  turn = jnp.mean(turned_cross_entropy(view.turned, view.own, view.past, view.seen))
  hold = jnp.mean(turned_distillation(view.both, view.teacher_own, view.past))
  share = 1 - view.past / view.seen  # what `losses.balance_weights` gives a new class
  loss = upright + hparams.turned_weight * share * turn + hparams.distillation_weight * hold
  return loss, {**terms, 'loss': loss, 'turn': turn, 'hold_turned': hold}


DREAM = Method(
    'dream',
    first=(Phase('learn', first_loss, trains=everything, turned=True),),
    later=(Phase('learn', dream_loss, dreams=True, trains=everything, turned=True),),
    own=turned_head,
)
