"""A frozen network with each BatchNorm folded into the convolution before it.

Of the norm an offset is left, which a GPU's convolution adds itself, with the shortcut and the ReLU that follow: half
of a frozen network's passes over activations are saved. The modules are caught at work, so a model needs no change.
"""

import functools
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
  """A frozen classifier as `Folded`, computed once for many calls of `apply`.

  Args:
    model: its Linen module. A BatchNorm is folded where what goes in came out of a convolution.
    frozen: its `params` and `batch_stats`.
    image_shape: (H, W, C).
  """
  met = []
  watch = lambda images: _watched(model, frozen.variables, images, lambda conv, norm, _: met.append((conv, norm)))
  jax.eval_shape(watch, jax.ShapeDtypeStruct((1, *image_shape), jnp.float32))
  return Folded(frozen.params, frozen.batch_stats, {_names(*pair): _as_one(*pair, frozen) for pair in met})


def apply(model, frozen, images_NHWC, **kwargs):
  """`model.apply` in eval mode, but for rounding.

  Args:
    model: a Linen classifier.
    frozen: its `variables`: `Folded`, or a state that is not.
    images_NHWC: f32[N, H, W, C], normalised.
    kwargs: `method`, as for `model.apply`.
  """
  convolutions = frozen.convolutions if isinstance(frozen, Folded) else {}

  def convolve(conv, norm, images):
    if _names(conv, norm) not in convolutions:
      return None
    kernel, offset_F = convolutions[_names(conv, norm)]
    plain = conv.clone(parent=None, use_bias=False)
    return plain.apply({'params': {'kernel': kernel}}, images) + offset_F

  return _watched(model, frozen.variables, images_NHWC, convolve, **kwargs)


def _names(conv, norm):
  return ' '.join('/'.join(module.path) for module in (conv, norm))


def _as_one(conv, norm, frozen):
  """(kernel, offset) of a convolution that does the work of both."""
  of = lambda tree, module: functools.reduce(lambda inner, name: inner.get(name, {}), module.path, tree)
  convolution, scaled, kept = of(frozen.params, conv), of(frozen.params, norm), of(frozen.batch_stats, norm)
  factor_F = jax.lax.rsqrt(kept['var'] + norm.epsilon) * scaled.get('scale', 1)
  offset_F = (convolution.get('bias', 0) - kept['mean']) * factor_F + scaled.get('bias', 0)
  return (convolution['kernel'] * factor_F).astype(norm.dtype), offset_F.astype(norm.dtype)


def _watched(model, variables, images_NHWC, meet, **kwargs):
  """`model.apply` in eval mode; `meet` may do the work of a convolution and the BatchNorm behind it, on its images."""
  convolved = {}

  def catch(call, args, its_kwargs, context):
    module = context.module
    if context.method_name == '__call__' and isinstance(module, BatchNorm) and id(args[0]) in convolved:
      _, conv, images = convolved[id(args[0])]
      done = meet(conv, module, images)
      if done is not None:
        return done
    result = call(*args, **its_kwargs)
    if context.method_name == '__call__' and isinstance(module, nn.Conv):
      convolved[id(result)] = result, module, args[0]  # the result itself, so that no other comes to its number
    return result

  with nn.intercept_methods(catch):
    return model.apply(variables, images_NHWC, train=False, **kwargs)
