"""Learning without forgetting by softened predictions, with no image kept: LwF and its relatives, section 6."""

import jax.numpy as jnp

from abd_jax.losses import binary_cross_entropy, cross_entropy, knowledge_distillation
from abd_jax.methods.finetuning import cross_entropy_loss
from abd_jax.methods.interface import Method, Phase


def lwf_loss(view, hparams):
  """Li and Hoiem, ECCV 2016: cross-entropy over the classes seen, the old prediction held on the same images."""
  rows = view.real
  learn = jnp.mean(cross_entropy(rows.logits, rows.labels, view.seen))
  hold = jnp.mean(
      knowledge_distillation(rows.logits, rows.teacher_logits, view.past, view.past, hparams.kd_temperature)
  )
  loss = learn + hparams.kd_weight * hold
  return loss, {'loss': loss, 'learn': learn, 'hold': hold}


def lwf_mc_loss(view, hparams):
  """Rebuffi et al., CVPR 2017: each class a yes or no of its own; for a past class the teacher's, else the label's."""
  del hparams
  rows = view.real
  loss = jnp.mean(binary_cross_entropy(rows.logits, rows.labels, view.seen, rows.teacher_logits, view.past))
  return loss, {'loss': loss}


def lwf_synthetic_loss(view, hparams):
  """LwF whose old predictions are held on real and on synthetic images alike; the synthetic ones teach no class."""
  real, both = view.real, view.both
  learn = jnp.mean(cross_entropy(real.logits, real.labels, view.seen))
  hold = jnp.mean(
      knowledge_distillation(both.logits, both.teacher_logits, view.past, view.past, hparams.kd_temperature)
  )
  loss = learn + hparams.distillation_weight * hold
  return loss, {'loss': loss, 'learn': learn, 'hold': hold}


_first = (Phase('learn', cross_entropy_loss),)

LWF = Method('lwf', first=_first, later=(Phase('learn', lwf_loss, teacher=True),))
LWF_MC = Method(
    'lwf_mc', first=(Phase('learn', lwf_mc_loss),), later=(Phase('learn', lwf_mc_loss, teacher=True),)
)
LWF_SYNTHETIC = Method('lwf_synthetic', first=_first, later=(Phase('learn', lwf_synthetic_loss, dreams=True),))
