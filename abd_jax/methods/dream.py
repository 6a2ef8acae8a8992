"""Dream: ABD with features that are asked for more, and a head that remembers where its classes lie; our own.

Two things keep ABD from more. The features of a task with few classes tell these apart and little else; what would part
them from the classes of other tasks is learned by nobody, since no two tasks' real images ever meet. And the head is
taught where the old classes lie by synthetic images (Eq. 14), which lie elsewhere than real ones did.

So each real image joins a second time, turned by a quarter, a half or three quarters of a circle, and a head of the
method's own says class and turn at once: four times as many classes, of the same images. Labels of this kind are those
of PASS (Zhu et al., CVPR 2021). Eq. 13 holds the features wherever either head looks.

And when a task is over another head than the trained one answers: that of a linear discriminant
(`discriminant.Discriminant`), whose means were those of real images when there were some. Synthetic images say how
features have moved since, never where a class lies. The next task begins with the trained head again: what is held, and
what the generator inverts, is ABD's. So the frozen classifier is all that is kept, with three heads: a mean of each
class, and one covariance, are those of the third.
"""

import jax
import jax.numpy as jnp
import numpy as np

from abd_jax import discriminant
from abd_jax.losses import feature_distillation, local_cross_entropy
from abd_jax.methods import abd
from abd_jax.methods.interface import OWN, Method, Phase, everything
from abd_jax.models.resnet import linear

_WAYS = 4  # in which a square image can lie, upright first
_TURNS = _WAYS - 1


def own_parameters(shapes):
  """The other heads; ValueError unless images are square.

  `turned` has a logit for each turn of each class, initialised as PyTorch does; `trained` is the network's own while
  the one that was made stands in its place; `means` [D, K] and `covariance` [D, D] are those of a
  `discriminant.Discriminant`.
  """
  height, width, _ = shapes.image
  if height != width:
    raise ValueError(f'images of {height} x {width} pixels cannot be turned by a quarter')
  size, classes = shapes.features, shapes.classes

  def init(key):
    flat = linear(key, size, _TURNS * classes)
    return {
        'turned': {
            'kernel': flat['kernel'].reshape(size, _TURNS, classes), 'bias': flat['bias'].reshape(_TURNS, classes)
        },
        'trained': {'kernel': jnp.zeros((size, classes)), 'bias': jnp.zeros(classes)},
        'means': jnp.zeros((size, classes)),
        'covariance': jnp.zeros((size, size)),
    }

  return init


def trains(params, past, tasks):
  """Trains the network and the turned head."""
  made = {'turned': True, 'trained': False, 'means': False, 'covariance': False}
  return {**everything(params, past, tasks), OWN: made}


def turned_cross_entropy(rows, own, past, seen):
  """f32[N]: cross-entropy among the new classes, each upright and turned, of `Rows` that were turned.

  Args:
    rows: turned ones.
    own: `own_parameters`.
    past: number of classes of the earlier tasks.
    seen: number of classes of the tasks so far.
  """
  count, _ = rows.logits.shape
  turned_NTK = jnp.einsum('nd,dtk->ntk', rows.features, own['turned']['kernel']) + own['turned']['bias']
  all_NK4 = jnp.concatenate([rows.logits[:, None], turned_NTK], axis=1).swapaxes(1, 2)
  # A class's four logits side by side, so that the new classes are a window.
  return local_cross_entropy(
      all_NK4.reshape(count, -1), _WAYS * rows.labels + rows.quarters, _WAYS * past, _WAYS * seen
  )


def turned_distillation(rows, own, past):
  """f32[N]: Eq. 13 through the turned head of the teacher, averaged over the past classes and turns.

  Args:
    rows: `Rows` of which student and teacher have features.
    own: `own_parameters`, the teacher's.
    past: number of classes that the teacher knows.
  """
  kernel = own['turned']['kernel']
  looked_at = lambda features: jnp.einsum('nd,dtk->ntk', features, kernel).reshape(-1, kernel.shape[-1])  # noqa: E731
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


def learn_on(params):
  """The parameters as the next task begins with them: the trained head in the place of the one that was made."""
  return {**params, 'head': jax.tree.map(jnp.copy, params[OWN]['trained'])}  # a copy: a step takes the memory of both


def remember(params, learned):
  """The parameters with the head of a discriminant, of the new classes as they are and the old ones as they moved."""
  past, seen, own, head = learned.past, learned.seen, params[OWN], params['head']
  known = discriminant.of_classes(learned.features, learned.labels, range(past, seen))
  if past:
    moved = discriminant.movement(
        np.concatenate([learned.teacher_features, learned.synthetic_teacher_features]),
        np.concatenate([learned.features, learned.synthetic_features]),
    )
    before = discriminant.Discriminant(np.float64(own['means']).T[:past], np.float64(own['covariance']))
    known = discriminant.joined(moved.carry(before), known)
  made = dict(zip(('kernel', 'bias'), known.head(), strict=True))
  of_seen = lambda old, new: np.concatenate([new, old[..., seen:]], axis=-1).astype(np.float32)  # noqa: E731
  remembered = {'means': of_seen(own['means'], known.means.T), 'covariance': np.float32(known.covariance)}
  return {
      **params,
      'head': {name: of_seen(leaf, made[name]) for name, leaf in head.items()},
      OWN: {**own, 'trained': head, **remembered},
  }


DREAM = Method(
    'dream',
    first=(Phase('learn', first_loss, trains=trains, turned=True),),
    later=(Phase('learn', dream_loss, dreams=True, trains=trains, turned=True),),
    own=own_parameters,
    own_is_head=True,
    opens=learn_on,
    closes=remember,
)
