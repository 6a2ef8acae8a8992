"""DeepInversion (Yin et al., CVPR 2020) for class-incremental learning: the paper's baseline, section 4."""

import jax.numpy as jnp

from abd_jax.losses import cross_entropy, knowledge_distillation
from abd_jax.methods.finetuning import cross_entropy_loss
from abd_jax.methods.interface import Method, Phase


def deep_inversion_loss(view, hparams):
  """Eq. 8 and 9: cross-entropy on real images, softened predictions held on real and on synthetic ones.

  On the synthetic images the student's softmax has the new classes too, with zeros in the teacher's place.
  """
  real, synthetic, temperature = view.real, view.synthetic, hparams.kd_temperature
  learn = jnp.mean(cross_entropy(real.logits, real.labels, view.seen))
  hold_real = knowledge_distillation(real.logits, real.teacher_logits, view.past, view.past, temperature)
  hold_synthetic = knowledge_distillation(synthetic.logits, synthetic.teacher_logits, view.past, view.seen, temperature)
  hold = jnp.mean(hold_real) + jnp.mean(hold_synthetic)
  loss = learn + hparams.kd_weight * hold
  return loss, {'loss': loss, 'learn': learn, 'hold': hold}


DEEP_INVERSION = Method(
    'deep_inversion',
    first=(Phase('learn', cross_entropy_loss),),
    later=(Phase('learn', deep_inversion_loss, dreams=True),),
)
