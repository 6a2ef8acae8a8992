"""Networks by the name a flag gives them.

A classifier of one's own is an entry in `STUDENTS`, made before a config names it: a function of `num_classes`, `dtype`
and `axis`, and of `head_bias` where a method or --head_bias asks for one (as `make_student` has them), that gives a
Linen module with

  features(images, train)   f32[N, D] of f32[N, H, W, C]; BatchNorm, which the inversion reads, by `axis`
  classify(features)        f32[N, K], by a submodule called `head` with a kernel and, where `head_bias` says so, a bias
  __call__(images, train)   the one after the other
  num_classes, head_bias, feature_size (D), head_grows (False but for heads whose rows come with their task)
  foldable                  where it is True: what `resnet.ResNet` says of it

`resnet.ResNet` is one.
"""

import functools

import jax.numpy as jnp

from abd_jax.models.generator import Generator
from abd_jax.models.resnet import ResNet
from abd_jax.models.resnet18 import ResNet18

STUDENTS = {
    'resnet8': functools.partial(ResNet, blocks_per_stage=1),
    'resnet20': functools.partial(ResNet, blocks_per_stage=3),
    'resnet32': functools.partial(ResNet, blocks_per_stage=5),
    'resnet8_icarl': functools.partial(ResNet, blocks_per_stage=1, icarl=True, head_bias=False),
    'resnet32_icarl': functools.partial(ResNet, blocks_per_stage=5, icarl=True, head_bias=False),
    'resnet18': ResNet18,
}

GENERATORS = {
    'cifar': functools.partial(Generator, stem_width=128, stage_widths=(128, 64)),
    'tiny': functools.partial(Generator, stem_width=128, stage_widths=(128, 128, 64)),
    'imagenet': functools.partial(Generator, stem_width=64, stage_widths=(64, 64, 64, 64, 64)),
}


def make_student(name, num_classes, dtype=jnp.float32, axis=None, head_bias=None):
  """The classifier called `name`, with a head of `num_classes` logits and activations of type `dtype`.

  `axis` is the mapped axis along which devices share a batch, or None: BatchNorm is over all of it. `head_bias` says
  whether the head has a bias; None: as the classifier has it.
  """
  chosen = {} if head_bias is None else {'head_bias': head_bias}
  return STUDENTS[name](num_classes=num_classes, dtype=jnp.dtype(dtype), axis=axis, **chosen)


def generator_for(name, image_shape):
  """The generator's name once 'auto' is decided: by the longer side, up to 48 and up to 96 pixels, or above."""
  if name != 'auto':
    return name
  side = max(image_shape[:2])
  return 'cifar' if side <= 48 else 'tiny' if side <= 96 else 'imagenet'


def make_generator(name, image_shape, dtype=jnp.float32, axis=None):
  """The generator called `name` ('auto': by size) for images of shape (H, W, C), with activations of type `dtype`.

  `axis` as in `make_student`.

  Raises:
    ValueError: a side is not a multiple of what the generator doubles up to.
  """
  return GENERATORS[generator_for(name, image_shape)](image_shape=tuple(image_shape), dtype=jnp.dtype(dtype), axis=axis)
