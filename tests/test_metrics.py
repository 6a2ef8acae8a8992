"""The figures of the literature on matrices small enough to check by eye."""

import numpy as np
import pytest

from abd_jax import metrics

MATRIX = [[90.0], [60.0, 80.0], [50.0, 85.0, 70.0]]


def test_forgetting_is_the_drop_from_the_best():
  # Task 1: 90 - 50; task 2: best is 85, at the end: 0.  (40 + 0) / 2.
  assert metrics.forgetting(MATRIX) == 20.0
  assert metrics.forgetting(MATRIX[:1]) is None


def test_backward_transfer_is_the_change_since_the_task_was_new():
  # Task 1: 50 - 90; task 2: 85 - 80.  (-40 + 5) / 2.
  assert metrics.backward_transfer(MATRIX) == -17.5
  assert metrics.backward_transfer(MATRIX[:1]) is None


def test_average_is_not_final():
  assert metrics.average_accuracy([90.0, 70.0, 50.0]) == 70.0


def test_local_accuracy_is_the_mean_over_tasks_of_the_last_row():
  assert metrics.local_accuracy([[90.0, None], [60.0, 80.0]]) == 70.0


def test_omega_is_relative_to_the_upper_bound():
  assert metrics.omega([90.0, 40.0], [90.0, 80.0]) == 0.75


def test_accuracy_counts_seen_classes_only_and_weighs_images_equally():
  # Two tasks of one class, a third class unseen with the highest logit everywhere.
  first, second = np.array([[1.0, 0, 9], [0, 1, 9], [1, 0, 9]]), np.array([[0.0, 1, 9]])
  row, local, accuracy = metrics.accuracies_after_task([first, second], [np.zeros(3, int), np.ones(1, int)], [[0], [1]])
  np.testing.assert_allclose(row, [200 / 3, 100])
  assert local == [100.0, 100.0]  # a task of one class cannot be mistaken once it is known
  assert accuracy == 75.0  # 3 of 4 images, not the mean of 66.7 and 100


@pytest.mark.parametrize('top_k, expected', [(1, [False, False]), (2, [True, False]), (3, [True, True])])
def test_top_k(top_k, expected):
  logits, labels = np.array([[3.0, 2.0, 1.0]] * 2), np.array([1, 2])
  assert metrics.top_k_hits(logits, labels, [0, 1, 2], top_k).tolist() == expected
  if top_k == 1:  # and where nothing else is said
    assert metrics.top_k_hits(logits, labels, [0, 1, 2]).tolist() == expected


def test_a_constant_output_is_right_about_nothing():
  assert not metrics.top_k_hits(np.zeros((2, 3)), np.array([0, 2]), [0, 1, 2]).any()


def test_a_diverged_classifier_is_right_about_nothing():
  assert not metrics.top_k_hits(np.full((2, 3), np.nan), np.array([0, 2]), [0, 1, 2]).any()
