"""BatchNorm that reads activations as seldom as it can: that is what a step's time goes into, next to products."""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from abd_jax.parallel import mean_over, platform


def _sums(*arrays):
  """f32[A, C]: the sums of A arrays [..., C] over all dimensions but the last."""
  batch, *sides, channels = arrays[0].shape
  if platform() == 'gpu' and sides:
    # XLA sums there in two kernels, the second one for each array. Told what the first is to leave, it has one for all.
    # That is a sum for each image, of larger ones for each quarter: so much more of the memory is asked for at once.
    pixels = math.prod(sides)
    parts = 4 if pixels >= 256 and pixels % 4 == 0 else 1
    each = [jnp.sum(array.reshape(batch * parts, pixels // parts, channels), axis=1) for array in arrays]
    return jnp.sum(jnp.stack(each), axis=1)
  return jnp.stack([jnp.sum(array, tuple(range(array.ndim - 1))) for array in arrays])


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def moments(values, near_C, axis=None):
  """Mean and biased variance over all dimensions but the last.

  The sum of squares is taken about `near_C`, so that one pass finds both: about zero it would lose digits wherever the
  mean is many standard deviations, and a running mean is never so far off. The gradient takes a pass less than that
  of (x - mean)^2, which would sum what is zero by definition.

  Args:
    values: [..., C], in any precision; the sums are in float32.
    near_C: f32[C], about where the mean lies; no gradient goes to it.
    axis: the mapped axis along which devices share the rows, or None.

  Returns:
    f32[C] and f32[C].
  """
  values = values.astype(jnp.float32)
  sums_2C = _sums(values, (values - near_C) ** 2)
  mean_C, square_C = mean_over(sums_2C / (values.size // values.shape[-1]), axis)
  return mean_C, jnp.maximum(square_C - (mean_C - near_C) ** 2, 0.0)


def _moments_forward(values, near_C, axis):
  found = moments(values, near_C, axis)
  return found, (values, found[0])


def _moments_backward(axis, kept, upstream):
  values, mean_C = kept
  to_mean_C, to_variance_C = mean_over(upstream, axis)  # the loss of every device depends on them
  each = to_mean_C + 2 * to_variance_C * (values.astype(jnp.float32) - mean_C)
  return (each / (values.size // values.shape[-1])).astype(values.dtype), jnp.zeros_like(mean_C)


moments.defvjp(_moments_forward, _moments_backward)


def _affine(values, factor_C, offset_C):
  """f32[..., C]: one product of the values themselves: of (x - mean) a gradient would keep another array as large."""
  return values * factor_C + offset_C


def _affine_forward(values, factor_C, offset_C):
  return _affine(values, factor_C, offset_C), (values, factor_C)


def _affine_backward(kept, upstream):
  values, factor_C = kept
  to_factor_C, to_offset_C = _sums(upstream * values, upstream)
  return (upstream * factor_C).astype(values.dtype), to_factor_C, to_offset_C


# With the sums of its gradient as above.
_affine_summed = jax.custom_vjp(_affine)
_affine_summed.defvjp(_affine_forward, _affine_backward)


class BatchNorm(nn.Module):
  """What `nn.BatchNorm` does to [..., C], with its parameters and `batch_stats`.

  Attributes:
    use_running_average: whether the running statistics are used and kept, or the batch's are and move them.
    momentum: of the running statistics, the share that stays; the variance is the biased one.
    epsilon: added to the variance.
    dtype: of the result; all between is float32.
    use_bias, use_scale: whether there is one.
    scale_init: initialiser of the scale.
    axis_name: the mapped axis along which devices share a batch, or None.
  """

  use_running_average: bool
  momentum: float = 0.9
  epsilon: float = 1e-5
  dtype: Any = jnp.float32
  use_bias: bool = True
  use_scale: bool = True
  scale_init: nn.initializers.Initializer = nn.initializers.ones
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x):
    channels = x.shape[-1:]
    running_mean = self.variable('batch_stats', 'mean', jnp.zeros, channels, jnp.float32)
    running_variance = self.variable('batch_stats', 'var', jnp.ones, channels, jnp.float32)
    mean_C, variance_C = running_mean.value, running_variance.value
    if not (self.use_running_average or self.is_initializing()):
      mean_C, variance_C = moments(x, running_mean.value, self.axis_name)
      for running, found_C in ((running_mean, mean_C), (running_variance, variance_C)):
        running.value = self.momentum * running.value + (1 - self.momentum) * found_C
    factor_C = jax.lax.rsqrt(variance_C + self.epsilon)
    if self.use_scale:
      factor_C *= self.param('scale', self.scale_init, channels)
    offset_C = -mean_C * factor_C
    if self.use_bias:
      offset_C += self.param('bias', nn.initializers.zeros, channels)
    affine = _affine_summed if platform() == 'gpu' else _affine
    return affine(x, factor_C, offset_C).astype(self.dtype)
