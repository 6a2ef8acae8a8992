"""What `dream` has beside ABD: images once more, turned; a head that tells class and turn; what it looks at held."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abd_jax import config, data, states, steps, train
from abd_jax.config import with_values
from abd_jax.data.augment import turn
from abd_jax.errors import UserError
from abd_jax.methods import METHODS, abd, dream
from abd_jax.methods.interface import Learned, Rows, Shapes, View
from tests.test_methods import Stem

# Classes 0 to 2 are past, 3 and 4 new, 5 not met yet. Two real rows, two synthetic ones, five features.
PAST, SEEN, CLASSES, FEATURES = 3, 5, 6, 5
DRAW = np.random.default_rng(0)
HPARAMS = config.Hyperparameters()


def drawn(*shape):
  return DRAW.normal(size=shape).astype(np.float32)


OWN, TEACHER_OWN = (
    {'turned': {'kernel': drawn(FEATURES, 3, CLASSES), 'bias': drawn(3, CLASSES)}} for _ in range(2)
)
STUDENT, TEACHER = drawn(4, FEATURES), drawn(4, FEATURES)
HEAD, TEACHER_HEAD = drawn(FEATURES, CLASSES), drawn(FEATURES, CLASSES)
TURNED = Rows(np.array([3, 4]), drawn(2, FEATURES), drawn(2, CLASSES), quarters=np.array([2, 1]))


def view():
  both = Rows(jnp.array([3, 4, 0, 2]), STUDENT, STUDENT @ HEAD, TEACHER, TEACHER @ TEACHER_HEAD)
  real, synthetic = (jax.tree.map(lambda rows: rows[part], both) for part in (slice(2), slice(2, None)))  # noqa: B023
  return View(
      real, synthetic, both, PAST, SEEN, CLASSES, lambda features: features @ HEAD,
      lambda features: features @ TEACHER_HEAD, own=OWN, teacher_own=TEACHER_OWN, turned=TURNED,
  )


def test_class_and_turn_are_told_at_once_among_what_is_new():
  found = dream.turned_cross_entropy(TURNED, OWN, PAST, SEEN)
  for row, (label, quarters) in enumerate(((3, 2), (4, 1))):
    turned = np.tensordot(TURNED.features[row], OWN['turned']['kernel'], 1) + OWN['turned']['bias']
    logits = {(k, q): (turned[q - 1] if q else TURNED.logits[row])[k] for k in (3, 4) for q in range(4)}
    expected = np.log(sum(np.exp(z) for z in logits.values())) - logits[label, quarters]
    np.testing.assert_allclose(found[row], expected, rtol=1e-5)


def test_features_are_held_where_the_teachers_turned_head_looks():
  found = dream.turned_distillation(view().both, TEACHER_OWN, PAST)
  moved = np.tensordot(STUDENT - TEACHER, TEACHER_OWN['turned']['kernel'], 1)[..., :PAST]
  np.testing.assert_allclose(found, np.mean(moved**2, axis=(1, 2)), rtol=1e-5)
  np.testing.assert_array_equal(dream.turned_distillation(view().both.replace(features=TEACHER), TEACHER_OWN, PAST), 0)


def test_it_is_abd_and_the_two_terms():
  abds, terms = abd.abd_loss(view(), HPARAMS)
  told = with_values(config.Config(), dict(turned_weight=3.0, distillation_weight=0.7)).hparams
  loss, said = dream.dream_loss(view(), told)
  turned = np.mean(dream.turned_cross_entropy(TURNED, OWN, PAST, SEEN))
  held = np.mean(dream.turned_distillation(view().both, TEACHER_OWN, PAST))
  # Of five classes two are new: 2 / 5 is what a new class weighs.
  np.testing.assert_allclose(loss, abds + 3 * 0.4 * turned + 0.6 * terms['hold'] + 0.7 * held, rtol=1e-5)
  assert set(said) == {'loss', 'learn', 'separate', 'hold', 'turn', 'hold_turned'}
  np.testing.assert_allclose([said['turn'], said['hold_turned'], said['loss']], [turned, held, loss], rtol=1e-5)
  first, said = dream.first_loss(view(), told)
  np.testing.assert_allclose(
      first, abd.first_loss(view(), told)[0] + 3 * np.mean(dream.turned_cross_entropy(TURNED, OWN, 0, SEEN)), rtol=1e-5
  )


def test_images_are_turned_as_numpy_turns_them():
  images = drawn(4, 3, 3, 2)
  found = turn(jnp.asarray(images), jnp.array([0, 1, 2, 3]))
  for quarters in range(4):
    np.testing.assert_array_equal(found[quarters], np.rot90(images[quarters], quarters))


def test_the_head_has_a_logit_for_each_class_and_turn_and_wants_squares():
  made = dream.own_parameters(Shapes((8, 8, 1), 3, 7, 64))
  own, other = (made(jax.random.key(seed))['turned'] for seed in (0, 1))
  assert jax.tree.map(jnp.shape, own) == {'kernel': (64, 3, 7), 'bias': (3, 7)}
  assert 0.12 < np.abs(own['kernel']).max() <= 0.125 and np.any(own['kernel'] != other['kernel'])
  digits = data.load('digits')
  oblong = dataclasses.replace(
      digits, train_images=digits.train_images[:, :, :6], test_images=digits.test_images[:, :, :6]
  )
  settings = with_values(config.Config(), dict(method='dream', batch_size=16))
  with pytest.raises(UserError, match='--method=dream: images of 8 x 6 pixels cannot be turned by a quarter.'):
    train.check(settings, oblong)


def test_each_real_image_joins_turned_and_the_teacher_sees_none_of_it():
  model = Stem(blocks_per_stage=0, num_classes=CLASSES)
  optimizer = states.student_optimizer(config.Optimisation())
  own = dream.own_parameters(Shapes((8, 8, 1), 3, CLASSES, model.feature_size))
  student = states.init_student(model, optimizer, (8, 8, 1), jax.random.key(0), own)
  real, synthetic = jax.random.normal(jax.random.key(1), (2, 16, 8, 8, 1))
  labels = jnp.arange(16) % 2 + 3

  def look(view, hparams):
    del hparams
    said = {'both': view.both, 'real': view.real, 'turned': view.turned, 'own': view.own, 'theirs': view.teacher_own}
    return jnp.sum(view.turned.features), said

  update = jax.jit(steps.make_student_update(model, optimizer, look, hparams=HPARAMS, turned=True))
  teacher = states.freeze(student).replace(params=jax.tree.map(lambda leaf: leaf + 1, student.params))
  after, said = update(student, teacher, real, labels, synthetic, PAST, SEEN, 0.1, jax.random.key(2))
  quarters = said['turned'].quarters
  assert set(quarters.tolist()) == {1, 2, 3}
  turned = jnp.stack([jnp.rot90(image, q) for image, q in zip(real, quarters.tolist(), strict=True)])
  # One pass: all of them share its batch statistics, and move the running ones once.
  features, updates = model.apply(
      {'params': student.params, 'batch_stats': student.batch_stats}, jnp.concatenate([real, synthetic, turned]),
      train=True, method='features', mutable=['batch_stats'],
  )
  np.testing.assert_allclose(said['both'].features, features[:32], rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(said['turned'].features, features[32:], rtol=1e-4, atol=1e-5)
  chex.assert_trees_all_close(after.batch_stats, updates['batch_stats'], rtol=1e-4, atol=1e-6)
  assert len(said['real'].features) == 16 and said['both'].teacher_features.shape == (32, model.feature_size)
  np.testing.assert_array_equal(said['turned'].labels, labels)
  assert said['turned'].teacher_features is None
  chex.assert_trees_all_equal(said['own'], student.params['own'])
  chex.assert_trees_all_equal(said['theirs'], teacher.params['own'])
  # Other draws, other turns.
  _, other = update(student, teacher, real, labels, synthetic, PAST, SEEN, 0.1, jax.random.key(3))
  assert np.any(other['turned'].quarters != quarters)


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
  first = dream.remember(trained, Learned(labels[old], features[old], None, None, None, 0, PAST))
  assert right(first, features[old], labels[old], PAST) > 0.97

  # The features move. What is seen of it: the new classes, and synthetic images that lie off the old ones.
  matrix, shift = rng.normal(size=(FEATURES, FEATURES)), rng.normal(size=FEATURES)
  synthetic = features[old] + 1
  after = lambda before: before @ matrix + shift  # noqa: E731
  learned = Learned(
      labels[~old], after(features[~old]), features[~old], after(synthetic), synthetic, PAST, SEEN
  )
  second = dream.remember(dream.learn_on(first), learned)
  assert right(second, after(features), labels, SEEN) > 0.97
  assert right(first, after(features[old]), labels[old], PAST) < 0.8
  np.testing.assert_allclose(second['own']['means'].T[:SEEN], after(means), atol=0.3)
  # The next task goes on with the head that was trained; asked twice it does so still.
  begun = dream.learn_on(first)
  chex.assert_trees_all_equal(begun['head'], trained['head'])
  chex.assert_trees_all_equal(dream.learn_on(begun), begun)
  # Classes not met yet are left as they were, and so is all that is not the head's.
  for params in (first, second):
    np.testing.assert_array_equal(params['head']['kernel'][:, SEEN:], trained['head']['kernel'][:, SEEN:])
    np.testing.assert_array_equal(params['own']['turned']['kernel'], own['turned']['kernel'])
    np.testing.assert_array_equal(params['conv'], trained['conv'])
    assert {leaf.dtype for leaf in jax.tree.leaves((params['head'], params['own']))} == {np.dtype('float32')}
    chex.assert_trees_all_equal_shapes(params, trained)


def test_no_step_moves_the_discriminant_not_even_decay():
  model = Stem(blocks_per_stage=0, num_classes=CLASSES)
  optimizer = states.student_optimizer(config.Optimisation(weight_decay=0.1))
  init = dream.own_parameters(Shapes((8, 8, 1), 3, CLASSES, model.feature_size))
  ones = lambda tree: jax.tree.map(jnp.ones_like, tree)  # noqa: E731
  own = lambda key: {**ones(init(key)), 'turned': init(key)['turned']}  # noqa: E731
  student = states.init_student(model, optimizer, (8, 8, 1), jax.random.key(0), own)
  phase = METHODS['dream'].first[0]
  update = steps.make_student_update(
      model, optimizer, phase.loss, hparams=HPARAMS, turned=True, trains=phase.trains
  )
  images, labels = jax.random.normal(jax.random.key(1), (4, 8, 8, 1)), jnp.arange(4) % 2
  after, _ = jax.jit(update)(student, None, images, labels, None, 0, 2, 0.1, jax.random.key(2))
  now, before = after.params['own'], student.params['own']
  for name in ('means', 'covariance', 'trained'):
    chex.assert_trees_all_equal(now[name], before[name])
  assert np.any(now['turned']['kernel'] != before['turned']['kernel'])


def test_a_head_without_a_bias_cannot_be_made():
  settings = with_values(config.Config(), dict(method='dream', student='resnet8_icarl', batch_size=16))
  with pytest.raises(UserError, match='--method=dream makes a head that has a bias, and that of --student=resnet8'):
    train.check(settings, data.load('digits'))
  train.check(with_values(settings, dict(head_bias='true')), data.load('digits'))
