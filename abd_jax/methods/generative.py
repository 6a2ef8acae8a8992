"""Deep generative replay (DGR, Shin et al., NeurIPS 2017): a VAE learns along and replays its past."""

import jax.numpy as jnp

from abd_jax.losses import (
    balance_weights,
    cross_entropy,
    knowledge_distillation,
    latent_divergence,
    reconstruction,
)
from abd_jax.methods.interface import Method, Phase, everything
from abd_jax.models import vae


def replay_vae(shapes):
  """The VAE before it is trained; ValueError where a side of the images is no multiple of 8."""
  model = vae.VAE(tuple(shapes.image))
  return lambda key: {'vae': model.init(key, jnp.zeros((1, *shapes.image)), jnp.zeros((1, vae.LATENT_SIZE)))['params']}


def _draw(view):
  """The VAE's loss on all rows, which are images in [0, 1] here."""
  images, labels = view.both.images, view.both.labels
  model = vae.VAE(images.shape[1:])
  pixel_logits, mean, log_variance = model.apply({'params': view.own['vae']}, images, view.noise(vae.LATENT_SIZE))
  weights_N = balance_weights(labels, view.past, view.seen)
  divergence = jnp.mean(latent_divergence(mean, log_variance)) / images[0].size
  return jnp.mean(weights_N * reconstruction(pixel_logits, images)) + divergence


def _learn(view):
  both = view.both
  weights_N = balance_weights(both.labels, view.past, view.seen)
  return jnp.mean(weights_N * cross_entropy(both.logits, both.labels, view.seen))


def first_dgr_loss(view, hparams):
  """Cross-entropy and the VAE's loss. They share no parameter, so one SGD on their sum is one on each."""
  del hparams
  learn, draw = _learn(view), _draw(view)
  loss = learn + draw
  return loss, {'loss': loss, 'learn': learn, 'draw': draw}


def dgr_loss(view, hparams):
  """The same on real and replayed images, weighted for balance; old predictions are held on the replayed ones."""
  rows = view.synthetic
  hold = jnp.mean(
      knowledge_distillation(rows.logits, rows.teacher_logits, view.past, view.past, hparams.kd_temperature)
  )
  learn, draw = _learn(view), _draw(view)
  loss = learn + hparams.kd_weight * hold + draw
  return loss, {'loss': loss, 'learn': learn, 'hold': hold, 'draw': draw}


DGR = Method(
    'dgr',
    first=(Phase('learn', first_dgr_loss, trains=everything),),
    later=(Phase('learn', dgr_loss, replays=True, trains=everything),),
    own=replay_vae,
    standardised=False,
    weight_decay=0.0,
)
