"""Inverting a frozen classifier: what its BatchNorm layers and its confidence say about images nobody kept."""

import functools
import operator

import flax.linen as nn
import jax
import jax.numpy as jnp

from abd_jax import losses
from abd_jax.models.batch_norm import BatchNorm, moments


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
    if isinstance(context.module, (BatchNorm, nn.BatchNorm)) and context.method_name == '__call__':
      path = context.module.path
      statistics[path] = moments(args[0], _running(variables, path)['mean'], axis)
    return call(*args, **kwargs)

  with nn.intercept_methods(record):
    logits_NK = model.apply(variables, images_NHWC, train=False)
  return logits_NK, statistics


def _running(variables, path):
  """{'mean', 'var'}: what the BatchNorm layer at `path` stores."""
  return functools.reduce(operator.getitem, path, variables['batch_stats'])


def inversion_loss(model, variables, images, past, hparams, axis=None):
  """Eq. 7: the weighted sum of four terms.

  Args:
    model: the frozen classifier's Linen module.
    variables: its {'params', 'batch_stats'}.
    images: f32[N, H, W, C], synthetic images in its normalised pixel space.
    past: number of classes it has learned; the head's other logits are left out.
    hparams: a `config.Inversion`.
    axis: the mapped axis along which devices share the batch, or None; the statistics and the diversity are then those
      of the whole batch, and the mean over the devices of the other two is.

  Returns:
    (f32[], {'loss', 'content', 'diversity', 'statistics', 'smoothness'}): the sum, and with it each term unweighted;
    differentiable in `images`, finite when a class probability underflows and when past is 1.
  """
  logits_NK, statistics = apply_with_batch_norm_inputs(model, variables, images, axis)
  divergences = []
  for path, (mean_C, variance_C) in statistics.items():
    running = _running(variables, path)
    divergences.append(losses.statistics_alignment(mean_C, variance_C, running['mean'], running['var']))
  terms = {
      'content': jnp.mean(losses.content(logits_NK, past, hparams.content_temperature)),
      'diversity': losses.label_diversity(logits_NK, past, axis),
      'statistics': jnp.mean(jnp.stack(divergences)),
      'smoothness': losses.smoothness(images, hparams.blur_sigma),
  }
  loss = (
      hparams.content_weight * terms['content']
      + hparams.diversity_weight * terms['diversity']
      + hparams.statistics_weight * terms['statistics']
      + hparams.smoothness_weight * terms['smoothness']
  )
  return loss, {'loss': loss, **terms}


def sample(model, generator, latents_NZ):
  """f32[N, H, W, C]: images of the trained generator, in eval mode; no gradient reaches it."""
  return jax.lax.stop_gradient(model.apply(generator.variables, latents_NZ, train=False))


def moved(images_NHWC, draws_N3, hparams):
  """Images shifted by up to --image_jitter pixels, what leaves on one side entering on the other, and mirrored or not.

  Args:
    images_NHWC: f32[N, H, W, C].
    draws_N3: f32[N, 3] in [0, 1): rows, columns, and mirrored below one half.
    hparams: a config.Inversion.
  """
  if hparams.image_jitter:
    furthest = hparams.image_jitter
    shifts_N2 = jnp.floor(draws_N3[:, :2] * (2 * furthest + 1)).astype(jnp.int32) - furthest
    roll = lambda image, shift: jnp.roll(image, (shift[0], shift[1]), axis=(0, 1))
    images_NHWC = jax.vmap(roll)(images_NHWC, shifts_N2)
  if hparams.image_flip:
    images_NHWC = jnp.where(draws_N3[:, 2, None, None, None] < 0.5, images_NHWC[:, :, ::-1], images_NHWC)
  return images_NHWC


def sample_images(image_set, draws_N4, hparams):
  """f32[N, H, W, C]: images of the set, any of them as likely, each `moved`.

  Args:
    image_set: a `states.ImageSetState`.
    draws_N4: f32[N, 4] in [0, 1): which image, then as for `moved`.
    hparams: a config.Inversion.
  """
  count = len(image_set.images)
  rows_N = jnp.minimum((draws_N4[:, 0] * count).astype(jnp.int32), count - 1)  # the product may round up to `count`
  return moved(image_set.images[rows_N], draws_N4[:, 1:], hparams)
