"""What `dream` has beside ABD: a head that is made of real features, and follows them when they move."""

import chex
import jax
import numpy as np
import pytest

from abd_jax import config, data, train
from abd_jax.config import with_values
from abd_jax.errors import UserError
from abd_jax.methods import dream
from abd_jax.methods.interface import Learned, Shapes
from tests.small_runs import final_states
from tests.test_methods import TINY

# Classes 0 to 2 are past, 3 and 4 new, 5 not met yet; five features.
PAST, SEEN, CLASSES, FEATURES = 3, 5, 6, 5
DRAW = np.random.default_rng(0)


def drawn(*shape):
  return DRAW.normal(size=shape).astype(np.float32)


def gaussians(means, count, seed):
  """Features around each mean, and their labels."""
  rng = np.random.default_rng(seed)
  labels = np.repeat(np.arange(len(means)), count)
  return rng.normal(means[labels], 0.3), labels


def right(params, features, labels, seen):
  logits = features @ params['head']['kernel'] + params['head']['bias']
  return np.mean(logits[:, :seen].argmax(axis=1) == labels)


def test_the_head_is_made_of_real_features_and_follows_them_when_they_move():
  rng = np.random.default_rng(3)
  means = 2 * rng.normal(size=(SEEN, FEATURES))
  own = dream.own_parameters(Shapes((8, 8, 1), 3, CLASSES, FEATURES))(jax.random.key(0))
  trained = {'head': {'kernel': drawn(FEATURES, CLASSES), 'bias': drawn(CLASSES)}, 'own': own, 'conv': np.ones(2)}
  features, labels = gaussians(means, 200, seed=4)
  old = labels < PAST
  first = dream.remember(trained, Learned(labels[old], features[old], 0, PAST))
  assert right(first, features[old], labels[old], PAST) > 0.97
  length = lambda head, count: np.linalg.norm(head['kernel'][:, :count], axis=0).mean()
  np.testing.assert_allclose(length(first['head'], PAST), length(trained['head'], PAST), rtol=1e-5)

  # The features move. What is seen of it: the new classes, and synthetic images that lie off the old ones.
  matrix, shift = rng.normal(size=(FEATURES, FEATURES)), rng.normal(size=FEATURES)
  synthetic = features[old] + 1
  after = lambda before: before @ matrix + shift
  learned = Learned(
      labels[~old], after(features[~old]), PAST, SEEN, features[~old], after(synthetic), synthetic
  )
  second = dream.remember(dream.learn_on(first, PAST), learned)
  assert right(second, after(features), labels, SEEN) > 0.97
  assert right(first, after(features[old]), labels[old], PAST) < 0.8
  np.testing.assert_allclose(second['own']['means'].T[:SEEN], after(means), atol=0.3)
  # The next task goes on with the head that was trained; asked twice it does so still.
  begun = dream.learn_on(first, PAST)
  chex.assert_trees_all_equal(begun['head'], trained['head'])
  chex.assert_trees_all_equal(dream.learn_on(begun, PAST), begun)
  # Classes not met yet are left as they were, and so is all that is not the head's.
  for params in (first, second):
    np.testing.assert_array_equal(params['head']['kernel'][:, SEEN:], trained['head']['kernel'][:, SEEN:])
    np.testing.assert_array_equal(params['conv'], trained['conv'])
    assert {leaf.dtype for leaf in jax.tree.leaves((params['head'], params['own']))} == {np.dtype('float32')}
    chex.assert_trees_all_equal_shapes(params, trained)


def test_columns_that_are_new_since_are_the_heads_own():
  head = {'kernel': drawn(FEATURES, CLASSES), 'bias': drawn(CLASSES)}
  own = dream.own_parameters(Shapes((8, 8, 1), 3, CLASSES, FEATURES))(jax.random.key(0))
  begun = dream.learn_on({'head': head, 'own': own}, PAST)['head']
  assert np.all(begun['kernel'][:, :PAST] == 0) and np.all(begun['bias'][:PAST] == 0)
  np.testing.assert_array_equal(begun['kernel'][:, PAST:], head['kernel'][:, PAST:])
  np.testing.assert_array_equal(begun['bias'][PAST:], head['bias'][PAST:])


def test_a_head_without_a_bias_cannot_be_made():
  settings = with_values(config.Config(), dict(method='dream', student='resnet8_icarl', batch_size=16))
  with pytest.raises(UserError, match='--method=dream makes a head that has a bias, and that of --student=resnet8'):
    train.tasks_for(settings, data.load('digits'))
  train.tasks_for(with_values(settings, dict(head_bias='true')), data.load('digits'))


def test_the_networks_are_those_of_abd_bit_for_bit_and_another_head_answers(small, tmp_path):
  digits, runs = data.load('digits'), {}
  for method in ('abd', 'dream'):
    results = train.run(with_values(TINY, dict(method=method)), tmp_path / method, digits)
    runs[method] = results, final_states(tmp_path / method)['student']
  (abd, plain), (dreamed, remembering) = runs['abd'], runs['dream']
  own = remembering['params'].pop('own')
  made, learned = remembering['params'].pop('head'), plain['params'].pop('head')
  chex.assert_trees_all_equal(remembering['params'], plain['params'])
  chex.assert_trees_all_equal(remembering['batch_stats'], plain['batch_stats'])
  chex.assert_trees_all_equal(own['trained'], learned)
  assert np.all(np.any(made['kernel'] != learned['kernel'], axis=0)) and np.all(np.any(own['means'] != 0, axis=0))
  assert dreamed.accuracy_matrix != abd.accuracy_matrix
  size, classes = own['means'].shape
  kept = size * classes + classes + size * classes + size**2  # the trained head, the means, the covariance
  assert dreamed.memory_held['parameters'] == abd.memory_held['parameters'] + kept
