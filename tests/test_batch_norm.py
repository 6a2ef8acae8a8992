"""BatchNorm in one pass against the definition, and against Flax's in two."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abd_jax.models.batch_norm import BatchNorm, moments

SETTINGS = dict(momentum=0.7, epsilon=0.5)


def drawn(offset=0.0, spread=1.0, shape=(6, 5, 4, 3)):
  return np.random.default_rng(0).normal(offset, spread, shape).astype(np.float32)


@pytest.mark.parametrize('offset, spread, near', [(0, 1, 0), (3, 0.5, 2.9), (-40, 1, -40.1), (0, 1e-3, 0), (7, 2, 7)])
def test_moments_are_those_of_double_precision(offset, spread, near):
  values = drawn(offset, spread)
  mean, variance = moments(values, jnp.full(3, near, jnp.float32))
  exactly = values.astype(np.float64)
  np.testing.assert_allclose(mean, exactly.mean((0, 1, 2)), rtol=1e-6, atol=1e-6 * spread)
  np.testing.assert_allclose(variance, exactly.var((0, 1, 2)), rtol=3e-6)


def test_moments_of_equal_values_are_never_negative():
  mean, variance = moments(np.full((7, 9, 2), 0.1, np.float32), jnp.array([5.0, -0.3]))
  np.testing.assert_allclose(mean, 0.1, rtol=1e-6)
  assert np.all(variance >= 0) and np.all(variance < 1e-5)


def test_the_gradient_of_moments_is_that_of_the_definition():
  values, weights = drawn(2.0), np.arange(1.0, 7.0, dtype=np.float32).reshape(2, 3)

  def by_definition(values):
    mean = jnp.mean(values, (0, 1, 2))
    return mean, jnp.mean((values - mean) ** 2, (0, 1, 2))

  def sum_of(found):
    return sum(jnp.sum(w * jnp.sin(x)) for w, x in zip(weights, found, strict=True))

  near = jnp.array([1.5, 2.0, 2.5])
  ours, to_near = jax.grad(lambda values, near: sum_of(moments(values, near)), (0, 1))(values, near)
  defined = jax.grad(lambda values: sum_of(by_definition(values)))(values)
  np.testing.assert_allclose(ours, defined, rtol=1e-5, atol=1e-6 * np.abs(defined).max())
  np.testing.assert_array_equal(to_near, 0)
  halves = jax.grad(lambda values: sum_of(moments(values, near)))(jnp.asarray(values, jnp.bfloat16))
  assert halves.dtype == jnp.bfloat16


@pytest.mark.parametrize('parts', [{}, dict(use_bias=False, use_scale=False), dict(scale_init=nn.initializers.zeros)])
def test_batch_norm_is_flaxs(parts):
  x = drawn(0.7, 2.0)
  found = []
  for norm, extra in ((BatchNorm, {}), (nn.BatchNorm, dict(use_fast_variance=False))):
    train = norm(use_running_average=False, **SETTINGS, **parts, **extra)
    variables = train.init(jax.random.key(0), x)
    bent = jax.tree.map(lambda leaf: leaf + 0.3 * jnp.arange(1.0, 4.0), variables)

    def loss(x, variables, train=train):
      y, updates = train.apply(variables, x, mutable=['batch_stats'])
      return jnp.sum(jnp.sin(y)), (y, updates)

    gradients, aux = jax.grad(loss, (0, 1), has_aux=True)(x, bent)
    kept = {'params': gradients[1].get('params', {})}  # Flax lets a gradient through to what it stores
    seen = norm(use_running_average=True, **SETTINGS, **parts).apply(bent, x)
    found.append((variables, gradients[0], kept, aux, seen))
  ours, theirs = found
  assert jax.tree.structure(ours) == jax.tree.structure(theirs)
  for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
    np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)


def test_batch_norm_takes_its_sums_about_the_running_mean():
  x = drawn(-1000, 1)
  norm = BatchNorm(use_running_average=False, momentum=0.0)
  variables = norm.init(jax.random.key(0), x)
  variables['batch_stats']['mean'] = jnp.full(3, -1000.1)
  _, updates = norm.apply(variables, x, mutable=['batch_stats'])
  np.testing.assert_allclose(updates['batch_stats']['var'], x.astype(np.float64).var((0, 1, 2)), rtol=1e-4)


def test_activations_in_half_precision_have_their_statistics_in_full():
  x = jnp.asarray(drawn(0.7), jnp.bfloat16)
  norm = BatchNorm(use_running_average=False, dtype=jnp.bfloat16)
  y, updates = norm.apply(norm.init(jax.random.key(0), x), x, mutable=['batch_stats'])
  assert y.dtype == jnp.bfloat16
  exactly = np.asarray(x, np.float64)
  np.testing.assert_allclose(updates['batch_stats']['mean'], 0.1 * exactly.mean((0, 1, 2)), rtol=1e-5)
  np.testing.assert_allclose(updates['batch_stats']['var'], 0.9 + 0.1 * exactly.var((0, 1, 2)), rtol=1e-5)
