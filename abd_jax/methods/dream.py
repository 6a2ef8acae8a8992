"""Dream: ABD, answered by a head that remembers where its classes lie; our own.

ABD teaches the head by synthetic images where the old classes lie (Eq. 14), and these lie elsewhere than the real ones
did. So when a task is over another head answers: that of a linear discriminant (`discriminant.Discriminant`), whose
means were those of real images when there were some. Synthetic images, and the new real ones, say how features have
moved since, never where a class lies.

The next task begins with the trained head again: what is held, and what the generator inverts, is ABD's, and the
features are ABD's bit for bit. All that is kept is the frozen classifier with both heads.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from abd_jax import discriminant
from abd_jax.methods import abd
from abd_jax.methods.interface import OWN


def own_parameters(shapes):
  """What is kept beside the head that answers, zeros at first.

  Args:
    shapes: an `interface.Shapes`, of D features and K classes.

  Returns:
    (key) -> {'trained': {'kernel': f32[D, K], 'bias': f32[K]}, 'means': f32[D, K], 'covariance': f32[D, D]}: the head
    as it was trained, and what the `discriminant.Discriminant` that answers was made of, its means as columns.
  """
  size, classes = shapes.features, shapes.classes
  empty = {
      'trained': {'kernel': jnp.zeros((size, classes)), 'bias': jnp.zeros(classes)},
      'means': jnp.zeros((size, classes)),
      'covariance': jnp.zeros((size, size)),
  }
  return lambda key: empty


def learn_on(params, past):
  """The student's parameters as a later task begins with them: the head is the trained one again.

  Args:
    params: as `remember` returned them: 'head' of {'kernel': f32[D, K], 'bias': f32[K]}, OWN as of `own_parameters`.
    past: classes of the earlier tasks, the first so many of K; the rest of the head stays as it is.

  Returns:
    The parameters, of the same shapes.
  """
  of_past = lambda made, its: jnp.concatenate([its[..., :past], made[..., past:]], axis=-1)
  return {**params, 'head': jax.tree.map(of_past, dict(params['head']), dict(params[OWN]['trained']))}


def remember(params, learned):
  """The student's parameters when a task is over: the head is a discriminant's, the trained one is kept beside it.

  The discriminant has the new classes by their real images, and the old ones where `discriminant.movement` takes them.
  Its kernel is scaled to the length of the trained one, the mean over classes: few images make a class look so narrow
  that the softmax would be certain of everything.

  Args:
    params: as trained: 'head' of {'kernel': f32[D, K], 'bias': f32[K]}, OWN as of `own_parameters`.
    learned: an `interface.Learned`, with features of size D.

  Returns:
    The parameters, of the same shapes. Of classes not seen yet the head stays as it is.

  Raises:
    ValueError: a new class has no image.
  """
  past, seen, own, head = learned.past, learned.seen, params[OWN], params['head']
  known = discriminant.of_classes(learned.features, learned.labels, range(past, seen))
  if past:
    moved = discriminant.movement(
        np.concatenate([learned.teacher_features, learned.synthetic_teacher_features]),
        np.concatenate([learned.features, learned.synthetic_features]),
    )
    before = discriminant.Discriminant(np.float64(own['means']).T[:past], np.float64(own['covariance']))
    known = discriminant.joined(moved.carry(before), known)
  length = np.linalg.norm(head['kernel'][:, :seen], axis=0).mean()
  made = dict(zip(('kernel', 'bias'), known.head(length), strict=True))
  of_seen = lambda old, new: np.concatenate([new, old[..., seen:]], axis=-1).astype(np.float32)
  remembered = {'means': of_seen(own['means'], known.means.T), 'covariance': np.float32(known.covariance)}
  return {
      **params,
      'head': {name: of_seen(leaf, made[name]) for name, leaf in head.items()},
      OWN: {**own, 'trained': head, **remembered},
  }


DREAM = dataclasses.replace(
    abd.ABD, name='dream', own=own_parameters, own_is_head=True, opens=learn_on, closes=remember
)
