"""The CIFAR residual networks (He et al., 2016) with parameter-free shortcuts, as the paper uses them.

  model = make_student('resnet32', num_classes=100)
  variables = model.init(key, images, train=False)                                # {'params', 'batch_stats'}
  logits = model.apply(variables, images, train=False)                            # f32[N, K]
  features = model.apply(variables, images, train=False, method='features')       # f32[N, 64], penultimate
  logits = model.apply(variables, features, method='classify')                    # the head alone
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from abd_jax.models.batch_norm import BatchNorm
from abd_jax.models.convolution import conv_general_dilated
from abd_jax.parallel import platform

STAGE_WIDTHS = (16, 32, 64)

_Conv = functools.partial(
    nn.Conv,
    kernel_size=(3, 3),
    padding=((1, 1), (1, 1)),  # SAME would shift a strided convolution by a pixel
    use_bias=False,
    conv_general_dilated=conv_general_dilated,
)
# Accelerators round the factors of a product unless told not to: to 8 bits on a TPU. Losses are to be in float32.
Head = functools.partial(nn.Dense, precision=jax.lax.Precision.HIGHEST)


def uniform_within(bound):
  """Initialiser drawing from U(-bound, bound)."""
  return lambda key, shape, dtype=jnp.float32: nn.initializers.uniform(2 * bound)(key, shape, dtype) - bound


def _kernel_init(icarl):
  """He et al., ICCV 2015: normal, of a variance of 2 / fan_in, or with `icarl` 2 / fan_out."""
  return nn.initializers.variance_scaling(2.0, 'fan_out' if icarl else 'fan_in', 'normal')


def relu_of_sum(values):
  """max(x, 0) of a sum of arrays."""
  return _relu_by_result(values) if platform() == 'gpu' else nn.relu(values)


@jax.custom_vjp
def _relu_by_result(values):
  """The gradient reads what comes of the sum; XLA would have a GPU read what goes in, and add it again."""
  return jnp.maximum(values, 0)


def _relu_forward(values):
  result = _relu_by_result(values)
  return result, result


def _relu_backward(result, upstream):
  return (jnp.where(result != 0, upstream, 0),)  # > 0 XLA would take for a question about the sum


_relu_by_result.defvjp(_relu_forward, _relu_backward)


class BasicBlock(nn.Module):
  """Two 3x3 convolutions and a shortcut that subsamples and pads the channels with zeros, half on each side.

  With `icarl` as in `ResNet`.
  """

  width: int
  stride: int = 1
  dtype: Any = jnp.float32
  axis: str | None = None
  icarl: bool = False

  @nn.compact
  def __call__(self, images_NHWC, train):
    conv = functools.partial(_Conv, self.width, dtype=self.dtype, kernel_init=_kernel_init(self.icarl))
    norm = functools.partial(BatchNorm, use_running_average=not train, dtype=self.dtype, axis_name=self.axis)
    residual = conv(strides=self.stride, name='conv1')(images_NHWC)
    residual = nn.relu(norm(name='bn1')(residual))
    last_scale = nn.initializers.zeros if self.icarl else nn.initializers.ones
    residual = norm(name='bn2', scale_init=last_scale)(conv(name='conv2')(residual))
    shortcut = images_NHWC[:, :: self.stride, :: self.stride]
    missing = self.width - shortcut.shape[-1]
    before = 0 if self.icarl else missing // 2
    shortcut = jnp.pad(shortcut, ((0, 0), (0, 0), (0, 0), (before, missing - before)))
    return shortcut + residual if self.icarl else relu_of_sum(shortcut + residual)


class ResNet(nn.Module):
  """ResNet of 6 * blocks_per_stage + 2 layers; the head has all classes from the start.

  Attributes:
    blocks_per_stage: residual blocks in each of the three stages.
    num_classes: logits of the head, classes not met yet included.
    dtype: of the activations; parameters, statistics, features and logits are float32.
    axis: the mapped axis along which devices share a batch, or None: BatchNorm's statistics are those of all of it.
    icarl: the network of iCaRL (Rebuffi et al., CVPR 2017) as R-DFCIL has it: no ReLU after the addition, so that
      features are signed; a shortcut's new channels are the last; the last scale of each block begins at zero; a head
      that grows, of a small initialisation.
    head_bias: whether the head has one.
    feature_size: D, how many penultimate features there are.
    foldable: whether a frozen one may be folded, as `folding.fold` does; a classifier that does not say so is not.
    head_grows: whether the head's rows come with their task: until then they neither move nor decay.
  """

  blocks_per_stage: int
  num_classes: int
  dtype: Any = jnp.float32
  axis: str | None = None
  icarl: bool = False
  head_bias: bool = True

  feature_size = STAGE_WIDTHS[-1]
  foldable = True

  @property
  def head_grows(self):
    return self.icarl

  def setup(self):
    inits = dict(
        kernel_init=nn.initializers.variance_scaling(2.0, 'fan_in', 'normal'),
        bias_init=uniform_within(STAGE_WIDTHS[-1] ** -0.5),
    )
    if self.icarl:
      inits = dict(kernel_init=nn.initializers.normal(1e-3), bias_init=nn.initializers.zeros)
    self.head = Head(self.num_classes, use_bias=self.head_bias, **inits)

  @nn.compact
  def features(self, images_NHWC, train):
    """f32[N, D]: the penultimate features of f32[N, H, W, C] normalised images, D = 64."""
    x = _Conv(STAGE_WIDTHS[0], dtype=self.dtype, kernel_init=_kernel_init(self.icarl), name='conv1')(images_NHWC)
    norm = functools.partial(BatchNorm, use_running_average=not train, dtype=self.dtype, axis_name=self.axis)
    x = nn.relu(norm(name='bn1')(x))
    for stage, width in enumerate(STAGE_WIDTHS, start=1):
      for block in range(self.blocks_per_stage):
        stride = 2 if stage > 1 and block == 0 else 1
        x = BasicBlock(width, stride, self.dtype, self.axis, self.icarl, name=f'layer{stage}_{block}')(x, train)
    return jnp.mean(x.astype(jnp.float32), axis=(1, 2))

  def classify(self, features_ND):
    """f32[N, K]: the logits of f32[N, D] features."""
    return self.head(features_ND)

  def __call__(self, images_NHWC, train):
    """f32[N, K]: the logits of f32[N, H, W, C] normalised images; `train` uses the batch's own statistics."""
    return self.classify(self.features(images_NHWC, train))
