"""The variational auto-encoder that generative replay keeps in the place of images (van de Ven and Tolias, 2018)."""

import math

import flax.linen as nn
import jax.numpy as jnp

from abd_jax.models.convolution import conv_general_dilated
from abd_jax.models.resnet import uniform_within

LATENT_SIZE = 1024
_ENCODER_WIDTHS = (64, 128, 512)
_DECODER_WIDTHS = (256, 64)


def _initial(fan_in):
  """PyTorch's default for weight and bias, U(+-1 / sqrt(fan_in))."""
  uniform = uniform_within(fan_in**-0.5)
  return {'kernel_init': uniform, 'bias_init': uniform}


class VAE(nn.Module):
  """Three strided convolutions, a Gaussian latent, three transposed convolutions. No BatchNorm.

  Attributes:
    image_shape: (H, W, C), both sides multiples of 8.
  """

  image_shape: tuple[int, int, int]

  def __post_init__(self):
    height, width, _ = self.image_shape
    if height % 8 or width % 8:
      raise ValueError(f'images of {height}x{width} cannot be replayed by the VAE: both sides must be multiples of 8')
    super().__post_init__()

  def setup(self):
    height, width, channels = self.image_shape
    self._small = (height // 8, width // 8, _ENCODER_WIDTHS[-1])
    inputs = (channels, *_ENCODER_WIDTHS)
    self.encoder = [
        nn.Conv(
            features, (4, 4), (2, 2), ((1, 1), (1, 1)), conv_general_dilated=conv_general_dilated,
            **_initial(16 * before),
        )
        for before, features in zip(inputs, _ENCODER_WIDTHS, strict=False)
    ]
    self.mean = nn.Dense(LATENT_SIZE, **_initial(math.prod(self._small)))
    self.log_variance = nn.Dense(LATENT_SIZE, **_initial(math.prod(self._small)))
    self.project = nn.Dense(math.prod(self._small), **_initial(LATENT_SIZE))
    # A transposed convolution's fan-in is PyTorch's, counted over its output channels.
    self.decoder = [
        nn.ConvTranspose(features, (4, 4), (2, 2), 'SAME', **_initial(16 * features))
        for features in (*_DECODER_WIDTHS, channels)
    ]

  def decode(self, latents_NZ):
    """f32[N, H, W, C]: logits of the pixels of f32[N, Z] latents."""
    x = self.project(latents_NZ).reshape(-1, *self._small)
    for layer in self.decoder[:-1]:
      x = nn.relu(layer(x))
    return self.decoder[-1](x)

  def sample(self, latents_NZ):
    """f32[N, H, W, C]: images in [0, 1] of f32[N, Z] standard normal latents."""
    return nn.sigmoid(self.decode(latents_NZ))

  def __call__(self, images_NHWC, noise_NZ):
    """(pixel logits f32[N, H, W, C], mean f32[N, Z], log variance f32[N, Z]) of images in [0, 1].

    `noise_NZ` is standard normal, f32[N, Z].
    """
    x = images_NHWC
    for layer in self.encoder:
      x = nn.relu(layer(x))
    x = x.reshape(len(x), -1)
    mean, log_variance = self.mean(x), self.log_variance(x)
    return self.decode(mean + jnp.exp(0.5 * log_variance) * noise_NZ), mean, log_variance
