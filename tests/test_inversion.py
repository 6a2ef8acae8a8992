"""The BatchNorm tap and the four terms at their edges."""

import chex
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abd_jax import config, inversion
from abd_jax.models import make_student


@pytest.fixture(scope='module')
def classifier():
  model = make_student('resnet8', 4)
  images = jax.random.normal(jax.random.key(1), (6, 8, 8, 1))
  return model, jax.jit(lambda key: model.init(key, images, train=False))(jax.random.key(0)), images


def test_every_layer_is_tapped_under_its_own_path(classifier):
  model, variables, images = classifier
  logits, statistics = inversion.apply_with_batch_norm_inputs(model, variables, images)
  paths = {path[:-1] for path in flax.traverse_util.flatten_dict(variables['batch_stats'])}
  assert set(statistics) == paths and len(paths) == 7
  chex.assert_trees_all_equal(logits, model.apply(variables, images, train=False))


def test_statistics_are_those_of_the_input_with_biased_variance(classifier):
  model, variables, images = classifier
  _, statistics = inversion.apply_with_batch_norm_inputs(model, variables, images)
  kernel = variables['params']['conv1']['kernel']
  inputs = jax.lax.conv_general_dilated(
      images, kernel, (1, 1), ((1, 1), (1, 1)), dimension_numbers=('NHWC', 'HWIO', 'NHWC')
  )
  mean, variance = statistics[('bn1',)]
  np.testing.assert_allclose(mean, np.mean(inputs, (0, 1, 2)), atol=1e-6)
  np.testing.assert_allclose(variance, np.var(np.asarray(inputs, np.float64), (0, 1, 2)), rtol=1e-4)


@pytest.mark.parametrize('past, scale, precision', [
    (1, 1.0, 'float32'), (4, 1.0, 'float32'), (4, 1e4, 'float32'), (4, 1e4, 'bfloat16'), (1, 1e4, 'bfloat16'),
])
def test_terms_and_gradients_are_finite_at_the_edges(classifier, past, scale, precision):
  # Weights a ten-thousand-fold drive the class probabilities to exact zeros.
  model, variables, images = classifier
  model = make_student('resnet8', 4, precision)
  head = jax.tree.map(lambda leaf: scale * leaf, variables['params']['head'])
  variables = {**variables, 'params': {**variables['params'], 'head': head}}

  def terms(images):
    return inversion.inversion_loss(model, variables, images, past, config.Inversion())[1]

  values = jax.jit(terms)(images)
  assert set(values) == {'loss', 'content', 'diversity', 'statistics', 'smoothness'}
  if scale > 1 and past > 1:
    assert float(values['diversity']) > 0
  if past == 1:
    assert float(values['diversity']) == 0.0
    assert abs(float(values['content'])) < 1e-6  # one class alone: the softmax is 1, but for what fusing it rounds off
  chex.assert_tree_all_finite((values, jax.jit(jax.jacrev(terms))(images)))


def test_statistics_term_vanishes_when_the_layers_store_what_the_batch_has(classifier):
  model, variables, images = classifier
  # Store each layer's own batch statistics; deeper layers move when shallower ones change, so layer by layer.
  tap = jax.jit(lambda variables: inversion.apply_with_batch_norm_inputs(model, variables, images)[1])
  for _ in range(7):
    statistics = tap(variables)
    stored = {
        (*path, name): value
        for path, pair in statistics.items() for name, value in zip(('mean', 'var'), pair, strict=True)
    }
    variables = {**variables, 'batch_stats': flax.traverse_util.unflatten_dict(stored)}
  statistics = lambda images: inversion.inversion_loss(model, variables, images, 4, config.Inversion())[1]['statistics']
  np.testing.assert_allclose(statistics(images), 0, atol=1e-5)
  assert statistics(images + 1) > 1e-3


def test_terms_and_statistics_are_float32_whatever_the_activations_are(classifier):
  model, variables, images = classifier
  half = make_student('resnet8', 4, 'bfloat16')
  logits, statistics = jax.eval_shape(lambda x: inversion.apply_with_batch_norm_inputs(half, variables, x), images)
  assert {leaf.dtype for leaf in jax.tree.leaves((logits, statistics))} == {jnp.dtype('float32')}
  terms = lambda m: jax.jit(lambda x: inversion.inversion_loss(m, variables, x, 3, config.Inversion())[1])(images)
  ours, exact = terms(half), terms(model)
  assert {leaf.dtype for leaf in jax.tree.leaves(ours)} == {jnp.dtype('float32')}
  chex.assert_trees_all_close(ours, exact, rtol=0.03)
