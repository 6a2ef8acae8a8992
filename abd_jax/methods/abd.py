"""Always Be Dreaming (Smith et al., ICCV 2021, https://arxiv.org/abs/2106.09701), section 6."""

import jax.numpy as jnp
from jax.lax import stop_gradient

from abd_jax.losses import (
  balance_weights,
  batch_mean,
  cross_entropy,
  feature_distillation,
  knowledge_distillation,
  local_cross_entropy,
  plain_feature_distillation,
)
from abd_jax.methods.interface import Method, Phase

ABLATIONS = ('balance', 'local_ce', 'real_distillation', 'synthetic_distillation', 'finetune')  # Table 3


def _finetune_classes(view, hparams):
  """How many classes the softmax runs over: those seen, or in the authors' code the whole head."""
  return view.seen if hparams.finetune_classes == 'seen' else view.num_classes


def first_loss(view, hparams):
  """The first task: plain cross-entropy."""
  loss = jnp.mean(cross_entropy(view.real.logits, view.real.labels, _finetune_classes(view, hparams)))
  return loss, {'loss': loss}


def _balance(labels, view, hparams):
  return jnp.ones(len(labels)) if hparams.ablate == 'balance' else balance_weights(labels, view.past, view.seen)


def _learn(view, hparams):
  """Eq. 11: the new classes among themselves."""
  start = 0 if hparams.ablate == 'local_ce' else view.past
  loss_N = local_cross_entropy(view.real.logits, view.real.labels, start, view.seen)
  weights_N = _balance(view.real.labels, view, hparams) if hparams.local_ce_weight else 1.0
  return jnp.mean(weights_N * loss_N)


def _separate(view, hparams):
  """Eq. 14: the head alone tells new from past; synthetic images never shape the features."""
  logits_NK = view.head(stop_gradient(view.both.features))
  loss_N = cross_entropy(logits_NK, view.both.labels, _finetune_classes(view, hparams))
  weights_N = _balance(view.both.labels, view, hparams)
  loss = jnp.mean(weights_N * loss_N)
  return loss / batch_mean(weights_N, view.axis) if hparams.finetune_normalise == 'weighted' else loss


def _hold(view, hparams):
  """Eq. 13 (importance), Eq. 12 (features), or the softened predictions of Eq. 8 (softmax)."""
  rows = {'real_distillation': view.synthetic, 'synthetic_distillation': view.real}.get(hparams.ablate, view.both)
  if hparams.distillation == 'importance':
    held_N = feature_distillation(view.teacher_head(rows.features), rows.teacher_logits, view.past)
  elif hparams.distillation == 'features':
    held_N = plain_feature_distillation(rows.features, rows.teacher_features)
  else:
    held_N = knowledge_distillation(rows.logits, rows.teacher_logits, view.past, view.past, hparams.kd_temperature)
  return jnp.mean(held_N)


def abd_loss(view, hparams):
  """Eq. 15: learn the new classes, separate them from the past ones, hold the old features."""
  learn, separate, hold = _learn(view, hparams), _separate(view, hparams), _hold(view, hparams)
  finetune_weight = 0 if hparams.ablate == 'finetune' else hparams.finetune_weight
  loss = learn + finetune_weight * separate + hparams.distillation_weight * hold
  return loss, {'loss': loss, 'learn': learn, 'separate': separate, 'hold': hold}


ABD = Method(
    'abd',
    first=(Phase('learn', first_loss),),
    later=(Phase('learn', abd_loss, dreams=True, second_pass=True),),
)
