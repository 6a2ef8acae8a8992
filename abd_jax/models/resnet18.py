"""ResNet-18 for images of ImageNet's size (He et al., CVPR 2016, https://arxiv.org/abs/1512.03385, table 1).

The real one, 11,689,512 parameters with 1000 classes; used like the networks in `resnet.py`.
"""

import functools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from abd_jax.models.batch_norm import BatchNorm
from abd_jax.models.convolution import conv_general_dilated
from abd_jax.models.resnet import Head, relu_of_sum, uniform_within

STAGE_WIDTHS = (64, 128, 256, 512)
BLOCKS_PER_STAGE = 2


def _conv(width, side, stride, dtype, name):
  """A square convolution without bias, half its side of zeros around: SAME would shift a strided one by a pixel."""
  border = (side // 2, side // 2)
  return nn.Conv(
      width,
      (side, side),
      strides=stride,
      padding=(border, border),
      use_bias=False,
      dtype=dtype,
      conv_general_dilated=conv_general_dilated,
      kernel_init=nn.initializers.variance_scaling(2.0, 'fan_out', 'normal'),
      name=name,
  )


class ProjectionBlock(nn.Module):
  """Two 3x3 convolutions, and where the shape changes a shortcut of a 1x1 convolution with its own BatchNorm."""

  width: int
  stride: int = 1
  dtype: Any = jnp.float32
  axis: str | None = None

  @nn.compact
  def __call__(self, images_NHWC, train):
    norm = functools.partial(BatchNorm, use_running_average=not train, dtype=self.dtype, axis_name=self.axis)
    residual = _conv(self.width, 3, self.stride, self.dtype, 'conv1')(images_NHWC)
    residual = nn.relu(norm(name='bn1')(residual))
    residual = norm(name='bn2')(_conv(self.width, 3, 1, self.dtype, 'conv2')(residual))
    shortcut = images_NHWC
    if self.stride > 1 or self.width != images_NHWC.shape[-1]:
      shortcut = _conv(self.width, 1, self.stride, self.dtype, 'conv_shortcut')(shortcut)
      shortcut = norm(name='bn_shortcut')(shortcut)
    return relu_of_sum(shortcut + residual)


class ResNet18(nn.Module):
  """A 7x7/2 stem, a 3x3/2 max-pool and four stages of two blocks; the head has all classes from the start.

  Attributes: `num_classes`, `dtype`, `axis`, `head_bias`, `feature_size`, `foldable`, `head_grows` as in
  `resnet.ResNet`.
  """

  num_classes: int
  dtype: Any = jnp.float32
  axis: str | None = None
  head_bias: bool = True

  feature_size = STAGE_WIDTHS[-1]
  foldable = True
  head_grows = False

  def setup(self):
    # U(+-1 / sqrt(fan_in)) is a variance of 1 / (3 fan_in).
    self.head = Head(
        self.num_classes,
        use_bias=self.head_bias,
        kernel_init=nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform'),
        bias_init=uniform_within(STAGE_WIDTHS[-1] ** -0.5),
    )

  @nn.compact
  def features(self, images_NHWC, train):
    """f32[N, 512]: the penultimate features of f32[N, H, W, C] normalised images."""
    x = _conv(STAGE_WIDTHS[0], 7, 2, self.dtype, 'conv1')(images_NHWC)
    x = BatchNorm(use_running_average=not train, dtype=self.dtype, axis_name=self.axis, name='bn1')(x)
    x = nn.max_pool(nn.relu(x), (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
    for stage, width in enumerate(STAGE_WIDTHS, start=1):
      for block in range(BLOCKS_PER_STAGE):
        stride = 2 if stage > 1 and block == 0 else 1
        x = ProjectionBlock(width, stride, self.dtype, self.axis, name=f'layer{stage}_{block}')(x, train)
    return jnp.mean(x.astype(jnp.float32), axis=(1, 2))

  def classify(self, features_ND):
    """f32[N, K]: the logits of f32[N, 512] features."""
    return self.head(features_ND)

  def __call__(self, images_NHWC, train):
    """f32[N, K]: the logits of f32[N, H, W, C] normalised images; `train` uses the batch's own statistics."""
    return self.classify(self.features(images_NHWC, train))
