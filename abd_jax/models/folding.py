"""A frozen network with each BatchNorm folded into the convolution before it.

Of the norm an offset is left, which a GPU's convolution adds itself, with the shortcut and the ReLU that follow: half
of a frozen network's passes over activations are saved. The modules are caught at work, so a model needs no change.
"""

from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from abd_jax.models.batch_norm import BatchNorm


@flax.struct.dataclass
class Folded:
  """A frozen classifier's parameters and statistics, and what `apply` takes in their place.

  `convolutions` are (kernel [kh, kw, C, F], offset [F]) by the names of a convolution and of the BatchNorm behind it.
  """

  params: Any
  batch_stats: Any
  convolutions: dict[str, tuple[Any, Any]]

  @property
  def variables(self) -> dict[str, Any]:
    return {'params': self.params, 'batch_stats': self.batch_stats}


def fold(model, frozen, image_shape):
  """A frozen classifier as `Folded`, computed once for many calls of `apply`, within a compiled program.

  Args:
    model: its Linen module. A BatchNorm is folded where what goes in came out of a convolution.
    frozen: its `params` and `batch_stats`.
    image_shape: (H, W, C).
  """
  convolutions = {}

  def remember(conv, norm, images):
    del images
    convolutions[_names(conv, norm)] = _as_one(conv, norm)

  # An image for the modules to be at work on; what they make of it nobody asks for.
  _watched(model, frozen.variables, jnp.zeros((1, *image_shape)), remember)
  return Folded(frozen.params, frozen.batch_stats, convolutions)


def apply(model, frozen, images_NHWC, **kwargs):
  """`model.apply` in eval mode, but for rounding where `frozen` is `Folded`.

  Args:
    model: a Linen classifier.
    frozen: its `variables`: `Folded`, or a state that is not.
    images_NHWC: f32[N, H, W, C], normalised.
    kwargs: `method`, as for `model.apply`.
  """
  if not isinstance(frozen, Folded):
    return model.apply(frozen.variables, images_NHWC, train=False, **kwargs)

  def convolve(conv, norm, images):
    kernel, offset_F = frozen.convolutions[_names(conv, norm)]
    plain = conv.clone(parent=None, use_bias=False)
    return plain.apply({'params': {'kernel': kernel}}, images) + offset_F

  return _watched(model, frozen.variables, images_NHWC, convolve, **kwargs)


def _names(conv, norm):
  return ' '.join('/'.join(module.path) for module in (conv, norm))


def _as_one(conv, norm):
  """(kernel, offset) of a convolution that does the work of both, from what the two have while they are at work."""
  convolution, kept = conv.variables['params'], norm.variables['batch_stats']
  scaled = norm.variables.get('params', {})
  factor_F = jax.lax.rsqrt(kept['var'] + norm.epsilon) * scaled.get('scale', 1)
  offset_F = (convolution.get('bias', 0) - kept['mean']) * factor_F + scaled.get('bias', 0)
  return (convolution['kernel'] * factor_F).astype(norm.dtype), offset_F.astype(norm.dtype)


def _watched(model, variables, images_NHWC, meet, **kwargs):
  """`model.apply` in eval mode; `meet` may do the work of a convolution and the BatchNorm behind it, on its images."""
  convolved = {}

  def catch(call, args, its_kwargs, context):
    module = context.module
    if type(module) is BatchNorm and args and id(args[0]) in convolved:
      _, conv, images = convolved[id(args[0])]
      done = meet(conv, module, images) if conv.dtype == module.dtype else None
      if done is not None:
        return done
    result = call(*args, **its_kwargs)
    if type(module) is nn.Conv and args and context.method_name == '__call__':
      convolved[id(result)] = result, module, args[0]  # the result itself, so that no other comes to its number
    return result

  with nn.intercept_methods(catch):
    return model.apply(variables, images_NHWC, train=False, **kwargs)
