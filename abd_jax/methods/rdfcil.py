"""R-DFCIL (Gao et al., ECCV 2022, https://arxiv.org/abs/2203.13104): relations guide features, then the head learns."""

import jax
import jax.numpy as jnp

from abd_jax.losses import batch_mean, cross_entropy, local_cross_entropy
from abd_jax.methods.finetuning import cross_entropy_loss
from abd_jax.methods.interface import Method, Phase, Schedule, everything, head
from abd_jax.models.resnet import uniform_within
from abd_jax.relations import adaptive_factors, angle_distillation, hard_distillation, inverse_frequency


def projections(shapes):
  """A linear map of the features to twice as many for either network, initialised as PyTorch does."""
  size = shapes.features
  draw = uniform_within(size**-0.5)

  def linear(key):
    kernel_key, bias_key = jax.random.split(key)
    return {'kernel': draw(kernel_key, (size, 2 * size)), 'bias': draw(bias_key, (2 * size,))}

  return lambda key: {side: linear(jax.random.fold_in(key, i)) for i, side in enumerate(('student', 'teacher'))}


def projected(features_ND, linear):
  """f32[N, 2 D]: features through one of the maps."""
  return jnp.matmul(features_ND, linear['kernel'], precision=jax.lax.Precision.HIGHEST) + linear['bias']


def _hold(view, hparams):
  """The past logits of synthetic images stay where they were, weighted: in both phases alike."""
  alpha, beta = adaptive_factors(view.past, view.seen)
  rows = view.synthetic
  hold = jnp.mean(hard_distillation(rows.logits, rows.teacher_logits, view.past))
  return hparams.hkd_weight * alpha * beta * hold, hold


def represent_loss(view, hparams):
  """The new classes among themselves; past logits held on synthetic images, angles between features on real ones."""
  alpha, beta = adaptive_factors(view.past, view.seen)
  real = view.real
  learn = jnp.mean(local_cross_entropy(real.logits, real.labels, view.past, view.seen))
  relate = angle_distillation(
      projected(real.features, view.own['student']), projected(real.teacher_features, view.own['teacher']), view.axis
  )
  weighted_hold, hold = _hold(view, hparams)
  loss = hparams.ce_weight * (1 + 1 / alpha) / beta * learn + weighted_hold + hparams.rkd_weight * alpha * beta * relate
  return loss, {'loss': loss, 'learn': learn, 'hold': hold, 'relate': relate}


def refine_loss(view, hparams):
  """All classes seen, on real and synthetic images; a class weighs the less the more often it was met in this task."""
  both = view.both
  weights_N = inverse_frequency(view.met, both.labels)
  separate = jnp.mean(weights_N * cross_entropy(both.logits, both.labels, view.seen)) / batch_mean(weights_N, view.axis)
  weighted_hold, hold = _hold(view, hparams)
  loss = hparams.ce_weight * separate + weighted_hold
  return loss, {'loss': loss, 'separate': separate, 'hold': hold}


def refinement(settings):
  """The schedule of the second phase: 40 epochs at 5e-3 after 160 that began at 0.1."""
  epochs = settings.second_epochs or -(-settings.epochs // 4)
  return Schedule(epochs, settings.second_learning_rate or settings.learning_rate / 20)


RDFCIL = Method(
    'rdfcil',
    first=(Phase('learn', cross_entropy_loss),),
    later=(
        Phase('represent', represent_loss, dreams=True, apart=True, trains=everything),
        Phase(
            'refine', refine_loss, dreams=True, trains=head, frozen_statistics=True, continues=True,
            schedule=refinement,
        ),
    ),
    own=projections,
    renews_own=True,
    tallies=True,
)
