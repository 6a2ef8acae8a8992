"""The discriminant against scikit-learn's, and how it follows features that move."""

import numpy as np
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from abd_jax import discriminant
from abd_jax.discriminant import Discriminant

RNG = np.random.default_rng(0)
CLASSES, SIZE, COUNT = 4, 6, 50
MIXING = RNG.normal(size=(SIZE, SIZE))
LABELS = np.tile(np.arange(CLASSES), COUNT)
FEATURES = RNG.normal(size=(CLASSES, SIZE))[LABELS] + RNG.normal(size=(CLASSES * COUNT, SIZE)) @ MIXING


def softmax(logits):
  powers = np.exp(logits - logits.max(axis=1, keepdims=True))
  return powers / powers.sum(axis=1, keepdims=True)


def test_its_head_is_scikit_learns_discriminant():
  theirs = LinearDiscriminantAnalysis(solver='lsqr', shrinkage=0.05, priors=np.full(CLASSES, 1 / CLASSES))
  theirs.fit(FEATURES, LABELS)
  ours = discriminant.of_classes(FEATURES, LABELS, range(CLASSES))
  np.testing.assert_allclose(ours.means, theirs.means_, rtol=1e-10)
  np.testing.assert_allclose(0.95 * ours.covariance[0, 1], theirs.covariance_[0, 1], rtol=1e-10)
  kernel, bias = ours.head()
  np.testing.assert_allclose(softmax(FEATURES @ kernel + bias), theirs.predict_proba(FEATURES), rtol=1e-3, atol=1e-8)


def test_a_length_changes_the_confidence_alone():
  known = discriminant.of_classes(FEATURES, LABELS, range(CLASSES))
  (kernel, bias), (other, its) = known.head(), known.head(3.0)
  np.testing.assert_allclose(np.linalg.norm(other, axis=0).mean(), 3)
  scale = other[0, 0] / kernel[0, 0]
  np.testing.assert_allclose(other, scale * kernel)
  np.testing.assert_allclose(its, scale * bias)


def test_a_linear_move_is_followed_and_what_is_left_over_widens_the_classes():
  matrix, shift = RNG.normal(size=(SIZE, SIZE)), RNG.normal(size=SIZE)
  known = discriminant.of_classes(FEATURES, LABELS, range(CLASSES))
  # Seen on images that are none of the classes'.
  others = RNG.normal(size=(4000, SIZE)) @ RNG.normal(size=(SIZE, SIZE)) + 2
  carried = discriminant.movement(others, others @ matrix + shift).carry(known)
  truth = discriminant.of_classes(FEATURES @ matrix + shift, LABELS, range(CLASSES))
  np.testing.assert_allclose(carried.means, truth.means, atol=0.02 * np.abs(truth.means).max())
  np.testing.assert_allclose(carried.covariance, truth.covariance, atol=0.02 * np.abs(truth.covariance).max())

  blurred = others @ matrix + shift + 0.7 * RNG.normal(size=others.shape)
  blur = discriminant.movement(others, blurred)
  np.testing.assert_allclose(blur.rest, 0.49 * np.eye(SIZE), atol=0.06)
  points = blur.carry(Discriminant(known.means, np.zeros((SIZE, SIZE))))
  np.testing.assert_array_equal(points.covariance, blur.rest)


def test_where_nothing_moved_nothing_does():
  known = discriminant.of_classes(FEATURES, LABELS, range(CLASSES))
  same = discriminant.movement(FEATURES, FEATURES).carry(known)
  np.testing.assert_allclose(same.means, known.means, rtol=0.02, atol=0.01)
  np.testing.assert_allclose(same.covariance, known.covariance, rtol=0.02, atol=0.02)


def test_classes_weigh_alike_when_two_are_joined():
  old = Discriminant(np.zeros((3, 2)), np.eye(2))
  new = Discriminant(np.ones((1, 2)), 5 * np.eye(2))
  both = discriminant.joined(old, new)
  np.testing.assert_array_equal(both.means, [[0, 0], [0, 0], [0, 0], [1, 1]])
  np.testing.assert_array_equal(both.covariance, 2 * np.eye(2))


def test_labels_count_from_the_first_class():
  found = discriminant.of_classes([[0.0, 1.0], [2.0, 1.0], [5.0, 5.0]], [7, 7, 8], range(7, 9))
  np.testing.assert_array_equal(found.means, [[1, 1], [5, 5]])
  np.testing.assert_allclose(found.covariance, [[2 / 3, 0], [0, 0]])


@pytest.mark.parametrize('features', [np.zeros((3, 2)), np.ones((3, 2)), np.array([[0, 0.0], [1, 0], [2, 0]])])
def test_dead_features_and_single_images_leave_all_finite(features):
  known = discriminant.of_classes(features, [0, 1, 2], range(3))
  moved = discriminant.movement(features, features).carry(known)
  for part in (*known.head(1.0), *moved.head(1.0), moved.means, moved.covariance):
    assert np.isfinite(part).all()


def test_what_does_not_fit_is_refused():
  with pytest.raises(ValueError, match='class 2 has no image'):
    discriminant.of_classes(FEATURES, np.where(LABELS == 2, 1, LABELS), range(CLASSES))
  with pytest.raises(ValueError, match=r'features of shape \(3, 2\) cannot have moved to shape \(2, 2\)'):
    discriminant.movement(np.zeros((3, 2)), np.zeros((2, 2)))
