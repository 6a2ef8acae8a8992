"""A frozen network with each BatchNorm folded into the convolution before it.

Of the norm an offset is left, which a GPU's convolution adds itself, with the shortcut and the ReLU that follow: half
of a frozen network's passes over activations are saved. The modules are caught at work, so a model needs no change.
"""

import functools
import operator
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from abd_jax.models.batch_norm import BatchNorm


@flax.struct.dataclass
class Folded:
  """A frozen classifier's parameters and statistics, and what `apply` takes in their place.

  `convolutions` are (kernel [kh, kw, C, F], offset f32[F]) by the path of the BatchNorm that they make superfluous.
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
  convolutions = {}

  def fold_one(norm, conv, images):
    del images
    of = lambda tree, path: functools.reduce(operator.getitem, path, tree)
    scaled, kept = of(frozen.params, norm.path), of(frozen.batch_stats, norm.path)
    factor_C = jax.lax.rsqrt(kept['var'] + norm.epsilon) * scaled.get('scale', 1)
    of_conv = of(frozen.params, conv.path)
    offset_C = (of_conv.get('bias', 0) - kept['mean']) * factor_C + scaled.get('bias', 0)
    folded = of_conv['kernel'] * factor_C, offset_C
    convolutions['/'.join(norm.path)] = tuple(array.astype(norm.dtype) for array in folded)

  met = []
  meet = lambda *modules: met.append(modules)
  images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
  jax.eval_shape(lambda images: _watched(model, frozen.variables, images, meet), images)
  for modules in met:
    fold_one(*modules)
  return Folded(frozen.params, frozen.batch_stats, convolutions)


def apply(model, frozen, images_NHWC, **kwargs):
  """`model.apply` in eval mode, but for rounding.

  Args:
    model: a Linen classifier.
    frozen: its `variables`: `Folded`, or a state that is not.
    images_NHWC: f32[N, H, W, C], normalised.
    kwargs: `method`, as for `model.apply`.
  """
  convolutions = frozen.convolutions if isinstance(frozen, Folded) else {}

  def convolve(norm, conv, images):
    if '/'.join(norm.path) not in convolutions:
      return None
    kernel, offset_C = convolutions['/'.join(norm.path)]
    plain = conv.clone(parent=None, use_bias=False)
    return plain.apply({'params': {'kernel': kernel}}, images) + offset_C

  return _watched(model, frozen.variables, images_NHWC, convolve, **kwargs)


def _watched(model, variables, images_NHWC, meet, **kwargs):
  """`model.apply` in eval mode; `meet` may do the work of a BatchNorm and the convolution before it, on its images."""
  convolved = {}

  def catch(call, args, its_kwargs, context):
    module = context.module
    if context.method_name == '__call__' and isinstance(module, BatchNorm) and id(args[0]) in convolved:
      done = meet(module, *convolved[id(args[0])][1:])
      if done is not None:
        return done
    result = call(*args, **its_kwargs)
    if context.method_name == '__call__' and isinstance(module, nn.Conv):
      convolved[id(result)] = result, module, args[0]  # the result itself, so that no other comes to its number
    return result

  with nn.intercept_methods(catch):
    return model.apply(variables, images_NHWC, train=False, **kwargs)
