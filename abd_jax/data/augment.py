"""Augmentation of image batches inside the compiled step, on [0, 255] before normalisation."""

import math

import jax
import jax.numpy as jnp

from abd_jax.data.photographs import AREA, ATTEMPTS, RATIO

_BRIGHTNESS = 63 / 255
_CONTRAST = (0.2, 1.8)
_GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601 luma, the grey of PIL


def _per_image(values_N):
  return values_N[:, None, None, None]


def _grey_mean(images_NHWC):
  """f32[N]: each image's mean grey."""
  if images_NHWC.shape[-1] == 3:
    images_NHWC = jnp.matmul(images_NHWC, jnp.array(_GREY)[:, None], precision=jax.lax.Precision.HIGHEST)
  return jnp.mean(images_NHWC, axis=(1, 2, 3))


def color_jitter(images_NHWC, key):
  """Brightness times U(1 +- 63/255) and contrast by U(0.2, 1.8) about the mean grey, in random order, each clipped."""
  order_key, brightness_key, contrast_key = jax.random.split(key, 3)
  shape = (len(images_NHWC),)
  factor_N = jax.random.uniform(brightness_key, shape, minval=1 - _BRIGHTNESS, maxval=1 + _BRIGHTNESS)
  contrast_N = jax.random.uniform(contrast_key, shape, minval=_CONTRAST[0], maxval=_CONTRAST[1])

  def brightness(images):
    return jnp.clip(images * _per_image(factor_N), 0, 255)

  def contrast(images):
    grey = _per_image(_grey_mean(images))
    return jnp.clip(grey + _per_image(contrast_N) * (images - grey), 0, 255)

  brightness_first = _per_image(jax.random.bernoulli(order_key, shape=shape))
  return jnp.where(brightness_first, contrast(brightness(images_NHWC)), brightness(contrast(images_NHWC)))


def flip(images_NHWC, key):
  """Each image mirrored with probability one half."""
  mirrored = jax.random.bernoulli(key, shape=(len(images_NHWC),))
  return jnp.where(_per_image(mirrored), images_NHWC[:, :, ::-1], images_NHWC)


def crop(images_NHWC, key, padding):
  """A crop of the original size out of each image with a black border of `padding` pixels."""
  padded = jnp.pad(images_NHWC, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
  corners_N2 = jax.random.randint(key, (len(images_NHWC), 2), 0, 2 * padding + 1)

  def one(image, corner):
    return jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), images_NHWC.shape[1:])

  return jax.vmap(one)(padded, corners_N2)


def resized_crop(images_NHWC, key):
  """A random crop of each image resized to all of it, as `photographs.crop_box` does for one in a file.

  Sides are not rounded to pixels: a crop of 0.08 of a small image is not a few shapes only.
  """
  count, height, width, _ = images_NHWC.shape
  area_key, ratio_key, place_key = jax.random.split(key, 3)
  shape = (count, ATTEMPTS)
  area_NT = height * width * jax.random.uniform(area_key, shape, minval=AREA[0], maxval=AREA[1])
  low, high = (math.log(ratio) for ratio in RATIO)
  ratio_NT = jnp.exp(jax.random.uniform(ratio_key, shape, minval=low, maxval=high))
  sides_NT2 = jnp.stack([jnp.sqrt(area_NT / ratio_NT), jnp.sqrt(area_NT * ratio_NT)], axis=-1)
  whole_2 = jnp.array([height, width], jnp.float32)
  fits_NT = jnp.all(sides_NT2 <= whole_2, axis=-1)
  first_N = jnp.argmax(fits_NT, axis=-1)
  sides_N2 = jnp.take_along_axis(sides_NT2, first_N[:, None, None], axis=1)[:, 0]
  nearest_2 = jnp.array([min(height, width / RATIO[0]), min(width, height * RATIO[1])])  # where none fits
  sides_N2 = jnp.where(jnp.any(fits_NT, axis=-1)[:, None], sides_N2, nearest_2)
  corners_N2 = jax.random.uniform(place_key, (count, 2)) * (whole_2 - sides_N2)

  def one(image, corner_2, sides_2):
    scale_2 = whole_2 / sides_2
    return jax.image.scale_and_translate(image, image.shape, (0, 1), scale_2, -corner_2 * scale_2, 'linear')

  return jax.vmap(one)(images_NHWC, corners_N2, sides_N2)


def make_augment(config):
  """(u8[N, H, W, C], key) -> f32[N, H, W, C] in [0, 255], for a `config.Augmentation`."""

  def augment(images, key):
    jitter_key, flip_key, crop_key = jax.random.split(key, 3)
    images = images.astype(jnp.float32)
    if config.resized_crop:
      images = resized_crop(images, jax.random.fold_in(crop_key, 1))  # splitting in four would change all other draws
    if config.color_jitter:
      images = color_jitter(images, jitter_key)
    if config.flip:
      images = flip(images, flip_key)
    if config.crop_padding:
      images = crop(images, crop_key, config.crop_padding)
    return images

  return augment


def make_normalise(mean, std):
  """f32[N, H, W, C] in [0, 255] -> standardised; mean and std are per channel, on [0, 1]."""
  mean, std = 255 * jnp.asarray(mean, jnp.float32), 255 * jnp.asarray(std, jnp.float32)
  return lambda images: (images - mean) / std
