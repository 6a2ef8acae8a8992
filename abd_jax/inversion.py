"""Inverting a frozen classifier: what its BatchNorm layers and its confidence say about images nobody kept."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from abd_jax import losses


def apply_with_batch_norm_inputs(model, variables, images_NHWC, axis=None):
  """The classifier in eval mode, and the statistics of what reaches each of its BatchNorm layers.

  The inputs are caught on their way into the modules, so a model needs no change to be inverted; the paths are those
  of its `batch_stats` collection.

  Args:
    model: a Linen classifier.
    variables: {'params', 'batch_stats'}.
    images_NHWC: f32[N, H, W, C], normalised.
    axis: the mapped axis along which devices share the batch, or None.

  Returns:
    logits f32[N, K], and {path: (mean f32[C], biased variance f32[C])} over the batch.
  """
  statistics = {}

  def record(call, args, kwargs, context):
    if isinstance(context.module, nn.BatchNorm) and context.method_name == '__call__':
      reached = args[0].astype(jnp.float32)  # whatever the activations are kept in
      places = tuple(range(reached.ndim - 1))
      mean_C = losses.batch_mean(reached, axis, places)
      statistics[context.module.path] = mean_C, losses.batch_mean((reached - mean_C) ** 2, axis, places)
    return call(*args, **kwargs)

  with nn.intercept_methods(record):
    logits_NK = model.apply(variables, images_NHWC, train=False)
  return logits_NK, statistics


def inversion_terms(model, variables, images, past, temperature=1000.0, blur_sigma=2**0.5, axis=None):
  """The four terms of Eq. 7, unweighted.

  Args:
    model: the frozen classifier's Linen module.
    variables: its {'params', 'batch_stats'}.
    images: f32[N, H, W, C], synthetic images in its normalised pixel space.
    past: number of classes it has learned; the head's other logits are left out.
    temperature: of the content term.
    blur_sigma: of the smoothness term, in pixels.
    axis: the mapped axis along which devices share the batch, or None; the statistics and the diversity are then those
      of the whole batch, and the mean over the devices of the other two is.

  Returns:
    {'content', 'diversity', 'statistics', 'smoothness'}: f32[] each, differentiable in `images`; finite when a class
    probability underflows and when past is 1.
  """
  logits_NK, statistics = apply_with_batch_norm_inputs(model, variables, images, axis)
  divergences = []
  for path, (mean_C, variance_C) in statistics.items():
    running = variables['batch_stats']
    for name in path:
      running = running[name]
    divergences.append(losses.statistics_alignment(mean_C, variance_C, running['mean'], running['var']))
  return {
      'content': jnp.mean(losses.content(logits_NK, past, temperature)),
      'diversity': losses.label_diversity(logits_NK, past, axis),
      'statistics': jnp.mean(jnp.stack(divergences)),
      'smoothness': losses.smoothness(images, blur_sigma),
  }


def inversion_loss(terms, hparams):
  """f32[]: the weighted sum of Eq. 7 over what `inversion_terms` returns; hparams is a `config.Inversion`."""
  return (
      hparams.content_weight * terms['content']
      + hparams.diversity_weight * terms['diversity']
      + hparams.statistics_weight * terms['statistics']
      + hparams.smoothness_weight * terms['smoothness']
  )


def sample(model, generator, latents_NZ):
  """f32[N, H, W, C]: images of the trained generator, in eval mode; no gradient reaches it."""
  return jax.lax.stop_gradient(model.apply(generator.variables, latents_NZ, train=False))
