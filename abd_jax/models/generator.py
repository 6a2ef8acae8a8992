"""The convolutional generator that dreams: latent vectors to images in the classifier's normalised pixel space."""

import functools

import flax.linen as nn
import jax.numpy as jnp

from abd_jax.models.resnet import uniform_within


def _upsample(images_NHWC):
  """Nearest-neighbour doubling of both sides."""
  return jnp.repeat(jnp.repeat(images_NHWC, 2, axis=1), 2, axis=2)


class Generator(nn.Module):
  """A linear stem, then a doubling and a 3x3 convolution a stage; tanh and a BatchNorm without scale close it.

  `train` uses the batch's own statistics: so while it is trained; sampled, it uses the running ones. The output is
  never normalised again.

  Attributes:
    image_shape: (H, W, C) of the images made.
    stem_width: channels after the linear layer.
    stage_widths: channels of each stage; both sides must be multiples of 2 ** len(stage_widths).
  """

  image_shape: tuple[int, int, int]
  stem_width: int
  stage_widths: tuple[int, ...]

  def __post_init__(self):
    factor = 2 ** len(self.stage_widths)
    height, width, _ = self.image_shape
    if height % factor or width % factor:
      raise ValueError(f'images of {height}x{width} cannot be generated: both sides must be multiples of {factor}')
    super().__post_init__()

  @nn.compact
  def __call__(self, latents_NZ, train):
    """f32[N, H, W, C] images of f32[N, Z] standard normal latents."""
    norm = functools.partial(nn.BatchNorm, use_running_average=not train, momentum=0.9, use_fast_variance=False)
    height, width, channels = self.image_shape
    factor = 2 ** len(self.stage_widths)
    small = (height // factor, width // factor, self.stem_width)

    def layer(make, fan_in, **kwargs):
      # U(+-1 / sqrt(fan_in)) for weight and bias: a variance of 1 / (3 fan_in).
      return make(
          kernel_init=nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform'),
          bias_init=uniform_within(fan_in**-0.5),
          **kwargs,
      )

    def conv(inputs, features, name):
      make = functools.partial(nn.Conv, features, (3, 3), padding=((1, 1), (1, 1)))
      return layer(make, 9 * inputs.shape[-1], name=name)(inputs)

    stem = functools.partial(nn.Dense, small[0] * small[1] * small[2])
    x = layer(stem, latents_NZ.shape[-1], name='stem')(latents_NZ)
    x = norm(epsilon=1e-5, name='bn0')(x.reshape(-1, *small))
    for stage, features in enumerate(self.stage_widths, start=1):
      x = conv(_upsample(x), features, f'conv{stage}')
      x = norm(epsilon=0.8, name=f'bn{stage}')(x)
      x = nn.leaky_relu(x, 0.2)
    x = jnp.tanh(conv(x, channels, 'conv_out'))
    return norm(epsilon=1e-5, use_bias=False, use_scale=False, name='bn_out')(x)
