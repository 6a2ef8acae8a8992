"""Operations of a step, counted, and how many a second the device reaches in a large matrix product."""

import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from abd_jax import states
from abd_jax.benchmark.hot_steps import random_dataset
from abd_jax.data import TaskSequence
from abd_jax.models.generator import UpsampledConv
from abd_jax.networks import networks_for


def forward_flops(model, *inputs, **kwargs):
  """Floating-point operations of one forward pass, a multiplication and an addition counted as two.

  Convolutions and dense layers alone, as the networks have them, whatever a kernel spares: for `UpsampledConv` the 16
  products of its four small convolutions a pixel of the small image.
  """
  total = 0

  def count(call, args, call_kwargs, context):
    nonlocal total
    result = call(*args, **call_kwargs)
    module = context.module
    if context.method_name == '__call__' and isinstance(module, (nn.Conv, nn.Dense, UpsampledConv)):
      fan_in = args[0].shape[-1]
      if isinstance(module, nn.Dense):
        taps = 1
      else:
        taps = 4 if isinstance(module, UpsampledConv) else np.prod(module.kernel_size)
      total += 2 * int(np.prod(result.shape)) * fan_in * int(taps)
    return result

  with nn.intercept_methods(count):
    jax.eval_shape(lambda key: model.init(key, *inputs, **kwargs), jax.random.key(0))
  return total


def step_flops(config):
  """{step: floating-point operations}, a backward pass counted as two forward ones.

  ABD's step passes 2B rows through the student and the teacher and samples B; the generator's gradient goes through
  the teacher to its images alone, which is half a backward pass.
  """
  dataset = random_dataset(config, 100)
  tasks = TaskSequence.of(config, dataset)
  networks = networks_for(config, tasks, dataset)
  batch = config.optimisation.batch_size
  student = batch * forward_flops(networks.classifier, jnp.zeros((1, *tasks.image_shape)), train=False)
  dreamer = batch * forward_flops(networks.dreamer, jnp.zeros((1, states.LATENT_SIZE)), train=False)
  return {'first': 3 * student, 'abd': 2 * (3 * student + student) + dreamer, 'generator': 3 * dreamer + 2 * student}


def matmul_peak(precision, size=None):
  """Operations a second of a large matrix product in 'float32' or 'bfloat16': what this device really reaches."""
  size = size or (2048 if jax.default_backend() == 'cpu' else 8192)
  left = jax.random.normal(jax.random.key(0), (size, size), precision)
  product = jax.jit(lambda a: a @ a)
  jax.block_until_ready(product(left))
  best = float('inf')
  for _ in range(10):
    since = time.perf_counter()
    jax.block_until_ready(product(left))
    best = min(best, time.perf_counter() - since)
  return 2 * size**3 / best
