"""The convolutional generator that dreams: latent vectors to images in the classifier's normalised pixel space."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from abd_jax.models.batch_norm import BatchNorm
from abd_jax.models.convolution import conv_general_dilated
from abd_jax.models.resnet import uniform_within
from abd_jax.parallel import platform


def _each(images_NHWC, kernels):
  """The doubled image by a convolution for each of its four parts."""
  batch, height, width, _ = images_NHWC.shape
  borders = [((1 - row, row), (1 - column, column)) for row in (0, 1) for column in (0, 1)]
  parts = [conv_general_dilated(images_NHWC, *pair) for pair in zip(kernels, ((1, 1),) * 4, borders, strict=True)]
  parts = jnp.stack(parts).reshape(2, 2, *parts[0].shape)
  return parts.transpose(2, 3, 0, 4, 1, 5).reshape(batch, 2 * height, 2 * width, parts.shape[-1])


def _at_once(images_NHWC, kernels):
  """The doubled image by one convolution, whose result has a row and a column too many for each part.

  A GPU's convolutions take no border on one side alone: for each of the four XLA would write the images anew, with it.
  """
  batch, height, width, _ = images_NHWC.shape
  # Or else the border would become the convolution's own, and its kernel's gradient one that a GPU has no kernel for.
  framed = jax.lax.optimization_barrier(jnp.pad(images_NHWC, ((0, 0), (1, 1), (1, 1), (0, 0))))
  found = conv_general_dilated(framed, jnp.concatenate(kernels, axis=-1), (1, 1), ((0, 0), (0, 0)))
  parts = [part[:, i // 2 :, i % 2 :][:, :height, :width] for i, part in enumerate(jnp.split(found, 4, axis=-1))]
  rows = [jnp.stack(parts[:2], axis=3), jnp.stack(parts[2:], axis=3)]
  return jnp.stack(rows, axis=2).reshape(batch, 2 * height, 2 * width, parts[0].shape[-1])


class UpsampledConv(nn.Module):
  """Nearest-neighbour doubling of both sides, then a 3x3 convolution with a border of zeros.

  Of the nine taps, those that fall on copies of one pixel are added up beforehand: each of the four pixels that come of
  one is a 2x2 convolution of the small image, 16 products where the doubled image would take 36.
  """

  features: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, images_NHWC):
    channels = images_NHWC.shape[-1]
    bound = (9 * channels) ** -0.5  # U(+-1 / sqrt(fan_in)) for weight and bias
    kernel = self.param('kernel', uniform_within(bound), (3, 3, channels, self.features))
    bias = self.param('bias', uniform_within(bound), (self.features,)).astype(self.dtype)
    images_NHWC = images_NHWC.astype(self.dtype)
    # An even row sees the row above it and, twice, its own; an odd row its own twice, then the row below. So columns.
    rows = jnp.stack([kernel[0], kernel[1] + kernel[2]]), jnp.stack([kernel[0] + kernel[1], kernel[2]])
    pairs = [
        pair for taps in rows for pair in ((taps[:, 0], taps[:, 1] + taps[:, 2]), (taps[:, 0] + taps[:, 1], taps[:, 2]))
    ]
    kernels = [jnp.stack(pair, axis=1).astype(self.dtype) for pair in pairs]
    return (_at_once if platform() == 'gpu' else _each)(images_NHWC, kernels) + bias


class Generator(nn.Module):
  """A linear stem, then a doubling and a 3x3 convolution a stage; tanh and a BatchNorm without scale close it.

  `train` uses the batch's own statistics: so while it is trained; sampled, it uses the running ones. The output is
  never normalised again.

  Attributes:
    image_shape: (H, W, C) of the images made.
    stem_width: channels after the linear layer.
    stage_widths: channels of each stage; both sides must be multiples of 2 ** len(stage_widths).
    dtype: of the activations; parameters, statistics and the images made are float32.
    axis: the mapped axis along which devices share a batch, or None: its BatchNorm statistics are those of all of it.
  """

  image_shape: tuple[int, int, int]
  stem_width: int
  stage_widths: tuple[int, ...]
  dtype: Any = jnp.float32
  axis: str | None = None

  def __post_init__(self):
    factor = 2 ** len(self.stage_widths)
    height, width, _ = self.image_shape
    if height % factor or width % factor:
      raise ValueError(f'images of {height}x{width} cannot be generated: both sides must be multiples of {factor}')
    super().__post_init__()

  @nn.compact
  def __call__(self, latents_NZ, train):
    """f32[N, H, W, C] images of f32[N, Z] standard normal latents."""
    norm = functools.partial(BatchNorm, use_running_average=not train, dtype=self.dtype, axis_name=self.axis)
    height, width, channels = self.image_shape
    factor = 2 ** len(self.stage_widths)
    small = (height // factor, width // factor, self.stem_width)

    # U(+-1 / sqrt(fan_in)) is a variance of 1 / (3 fan_in).
    kernel_init = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')
    stem = nn.Dense(
        small[0] * small[1] * small[2],
        kernel_init=kernel_init,
        bias_init=uniform_within(latents_NZ.shape[-1] ** -0.5),
        dtype=self.dtype,
        name='stem',
    )
    x = norm(name='bn0')(stem(latents_NZ).reshape(-1, *small))
    for stage, features in enumerate(self.stage_widths, start=1):
      x = UpsampledConv(features, self.dtype, name=f'conv{stage}')(x)
      x = norm(epsilon=0.8, name=f'bn{stage}')(x)
      x = nn.leaky_relu(x, 0.2)
    last = nn.Conv(
        channels,
        (3, 3),
        padding=((1, 1), (1, 1)),
        conv_general_dilated=conv_general_dilated,
        kernel_init=kernel_init,
        bias_init=uniform_within((9 * x.shape[-1]) ** -0.5),
        dtype=self.dtype,
        name='conv_out',
    )
    pixels = jnp.tanh(last(x).astype(jnp.float32))
    return norm(use_bias=False, use_scale=False, dtype=jnp.float32, name='bn_out')(pixels)
