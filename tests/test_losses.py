"""Each loss against arithmetic shown here, compiled and not, and its gradient against finite differences."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized
from hypothesis import given, settings
from hypothesis import strategies as st

from abd_jax import losses

LN2, LN3 = math.log(2.0), math.log(3.0)


class CrossEntropyTest(chex.TestCase):

  @chex.all_variants(with_pmap=False)
  def test_counts_the_seen_classes_alone(self):
    # Equal logits over 2 seen classes of 4: -ln(1/2). The third logit would win if it were looked at.
    logits = jnp.array([[0.0, 0.0, 50.0, 0.0]])
    loss = self.variant(losses.cross_entropy)(logits, jnp.array([1]), 2)
    chex.assert_trees_all_close(loss, jnp.array([LN2]), rtol=1e-6)

  @chex.all_variants(with_pmap=False)
  def test_local_loss_ignores_past_and_future_logits(self):
    # Window [1, 3): e^0 against e^(ln 2) is 1 : 2, so -ln(1/3) for the first and -ln(2/3) for the second.
    logits = jnp.array([[9.0, 0.0, LN2, 9.0], [9.0, 0.0, LN2, 9.0]])
    loss = self.variant(losses.local_cross_entropy)(logits, jnp.array([1, 2]), 1, 3)
    chex.assert_trees_all_close(loss, jnp.array([LN3, LN3 - LN2]), rtol=1e-6)

  def test_local_loss_moves_only_the_new_logits(self):
    gradient = jax.grad(lambda z: losses.local_cross_entropy(z, jnp.array([1]), 1, 3)[0])(jnp.zeros((1, 4)))
    # softmax - one-hot on the window (1/2 - 1, 1/2), nothing outside.
    chex.assert_trees_all_close(gradient, jnp.array([[0.0, -0.5, 0.5, 0.0]]))

  @parameterized.parameters(
      (jnp.zeros((2, 3)), jnp.zeros(3, int)), (jnp.zeros((2, 3)), jnp.zeros(2)), (jnp.zeros(3), jnp.zeros(3, int)),
  )
  def test_refuses_arrays_that_do_not_fit(self, logits, labels):
    with self.assertRaises(AssertionError):
      losses.cross_entropy(logits, labels, 2)


class BalanceTest(chex.TestCase):

  @chex.all_variants(with_pmap=False)
  def test_weights(self):
    # 3 past of 4 seen: 3/4 for past classes, 1/4 for the new one.
    weights = self.variant(losses.balance_weights)(jnp.array([0, 2, 3]), 3, 4)
    chex.assert_trees_all_close(weights, jnp.array([0.75, 0.75, 0.25]))


class DistillationTest(chex.TestCase):

  @chex.all_variants(with_pmap=False)
  def test_importance_weighted_is_a_mean_over_past_classes(self):
    # Differences 1 and 2 on the two past classes, 7 on a new one that does not count: (1 + 4) / 2.
    ours, theirs = jnp.array([[1.0, 4.0, 7.0]]), jnp.array([[0.0, 2.0, 0.0]])
    chex.assert_trees_all_close(self.variant(losses.feature_distillation)(ours, theirs, 2), jnp.array([2.5]))

  @chex.all_variants(with_pmap=False)
  def test_plain_is_a_squared_distance(self):
    # 3^2 + 4^2 = 25: a sum over features, not a mean.
    loss = self.variant(losses.plain_feature_distillation)(jnp.array([[3.0, 0.0]]), jnp.array([[0.0, 4.0]]))
    chex.assert_trees_all_close(loss, jnp.array([25.0]))

  @chex.all_variants(with_pmap=False)
  def test_softened_predictions(self):
    # Teacher logits (2 ln 3, 0) at T = 2 are 3/4, 1/4. A student of equal logits: over the past alone it says 1/2 to
    # both, so ln 2; with a third class in its softmax 1/3 to each, so ln 3. No factor T^2.
    teacher, student = jnp.array([[2 * LN3, 0.0, 99.0]]), jnp.zeros((1, 3))
    distill = self.variant(losses.knowledge_distillation)
    chex.assert_trees_all_close(distill(student, teacher, 2, 2), jnp.array([LN2]), rtol=1e-6)
    chex.assert_trees_all_close(distill(student, teacher, 2, 3), jnp.array([LN3]), rtol=1e-6)
    # A student that agrees is left with the entropy of (3/4, 1/4).
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    chex.assert_trees_all_close(distill(teacher, teacher, 2, 2), jnp.array([entropy]), rtol=1e-6)

  def test_shapes_must_agree(self):
    for loss in (losses.plain_feature_distillation, lambda a, b: losses.feature_distillation(a, b, 1)):
      with self.assertRaises(AssertionError):
        loss(jnp.zeros((2, 3)), jnp.zeros((2, 4)))


class InversionTermsTest(chex.TestCase):

  @chex.all_variants(with_pmap=False)
  def test_content_is_the_cross_entropy_of_the_first_choice_at_a_temperature(self):
    # Logits (2, 0) / 2 over two past classes: -ln(e / (e + 1)). The third logit is not the teacher's to give.
    loss = self.variant(losses.content)(jnp.array([[2.0, 0.0, 9.0]]), 2, 2.0)
    chex.assert_trees_all_close(loss, jnp.array([math.log(1 + math.exp(-1))]), rtol=1e-6)

  @chex.all_variants(with_pmap=False)
  def test_label_diversity_is_zero_for_a_uniform_batch_and_one_for_a_collapsed_one(self):
    diversity = self.variant(losses.label_diversity)
    # Uniform over 4 classes: H = ln 4, so 1 - H / ln 4 = 0.  One class only: H = 0, so 1.
    chex.assert_trees_all_close(diversity(jnp.zeros((3, 4)), 4), 0.0, atol=1e-6)
    chex.assert_trees_all_close(diversity(jnp.array([[200.0, 0.0, 0.0, 0.0]] * 3), 4), 1.0, atol=1e-6)
    # Two of four classes, each sure: H = ln 2, 1 - ln 2 / ln 4 = 1/2: the mean is taken before the entropy.
    chex.assert_trees_all_close(diversity(jnp.array([[200.0, 0, 0, 0], [0, 200.0, 0, 0]]), 4), 0.5, atol=1e-6)

  def test_label_diversity_is_finite_where_a_probability_underflows_and_for_one_class(self):
    for logits, past in ((jnp.array([[500.0, 0.0, 0.0]] * 2), 3), (jnp.array([[5.0, 2.0, 1.0]] * 2), 1)):
      value, gradient = jax.value_and_grad(losses.label_diversity)(logits, past)
      chex.assert_tree_all_finite((value, gradient))
    self.assertEqual(float(value), 0.0)  # past = 1

  @chex.all_variants(with_pmap=False)
  def test_statistics_alignment_is_the_divergence_of_two_normals(self):
    # One channel, stored (mean 0, variance 4) and batch (mean 1, variance 1):
    # ln(1/2) - 1/2 (1 - (4 + 1) / 1) = 2 - ln 2. A second channel that agrees adds 0 to the mean of the two.
    loss = self.variant(losses.statistics_alignment)(
        jnp.array([1.0, 5.0]), jnp.array([1.0, 9.0]), jnp.array([0.0, 5.0]), jnp.array([4.0, 9.0])
    )
    chex.assert_trees_all_close(loss, (2 - LN2) / 2, rtol=1e-5)

  @chex.all_variants(with_pmap=False)
  def test_smoothness_of_a_constant_is_zero_and_of_a_checkerboard_what_the_blur_removes(self):
    smoothness = self.variant(losses.smoothness)
    chex.assert_trees_all_close(smoothness(jnp.full((1, 6, 6, 2), 3.0)), 0.0, atol=1e-9)
    # +-1 in a checkerboard is an eigenvector of the reflected blur: each pass multiplies by c = t0 - 2 t1 + 2 t2.
    t2, t1, t0 = np.asarray(losses.blur_profile(2**0.5))[:3]
    sign = (-1.0) ** np.add.outer(np.arange(6), np.arange(6))
    c = t0 - 2 * t1 + 2 * t2
    chex.assert_trees_all_close(smoothness(jnp.asarray(sign)[None, :, :, None]), (1 - c * c) ** 2, rtol=1e-5)

  def test_blur_profile_is_the_one_in_the_authors_kernel(self):
    np.testing.assert_allclose(losses.blur_profile(2**0.5), [0.112, 0.237, 0.304, 0.237, 0.112], atol=6e-4)


def _numbers(shape, key=0):
  return jax.random.normal(jax.random.key(key), shape)


_LABELS = jnp.array([3, 2, 3])
DIFFERENTIABLE = {
    'cross_entropy': lambda z: jnp.mean(losses.cross_entropy(z, _LABELS, 4)),
    'local_cross_entropy': lambda z: jnp.mean(losses.local_cross_entropy(z, _LABELS, 2, 4)),
    'feature_distillation': lambda z: jnp.mean(losses.feature_distillation(z, _numbers((3, 5), 1), 2)),
    'plain_feature_distillation': lambda z: jnp.mean(losses.plain_feature_distillation(z, _numbers((3, 5), 1))),
    'knowledge_distillation': lambda z: jnp.mean(losses.knowledge_distillation(z, _numbers((3, 5), 1), 2, 4)),
    'content': lambda z: jnp.mean(losses.content(z, 4, 2.0)),
    'label_diversity': lambda z: losses.label_diversity(z, 4),
    'statistics_alignment': lambda z: losses.statistics_alignment(z[0], jnp.exp(z[1]), z[2], jnp.ones(5)),
    'smoothness': lambda z: losses.smoothness(jnp.tile(z[None, :, :, None], (2, 2, 1, 1))),
}


@pytest.mark.parametrize('name', DIFFERENTIABLE)
def test_gradient_agrees_with_finite_differences(name):
  chex.assert_numerical_grads(DIFFERENTIABLE[name], (_numbers((3, 5)),), order=1, atol=2e-2, rtol=2e-2)


@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_masked_windows_equal_slices(data):
  num_classes = data.draw(st.integers(2, 8), 'K')
  past = data.draw(st.integers(0, num_classes - 1), 'past')
  seen = data.draw(st.integers(past + 1, num_classes), 'seen')
  logits = 10 * np.asarray(_numbers((4, num_classes), data.draw(st.integers(0, 9), 'key')))
  labels = np.array(data.draw(st.lists(st.integers(past, seen - 1), min_size=4, max_size=4), 'labels'))
  masked = losses.local_cross_entropy(jnp.asarray(logits), jnp.asarray(labels), past, seen)
  sliced = logits[:, past:seen].astype(np.float64)
  expected = np.log(np.exp(sliced).sum(-1)) - sliced[np.arange(4), labels - past]
  np.testing.assert_allclose(masked, expected, rtol=1e-4, atol=1e-5)
  if past:
    teacher = logits[::-1].copy()
    full = losses.knowledge_distillation(jnp.asarray(logits), jnp.asarray(teacher), past, past)
    cut = losses.knowledge_distillation(jnp.asarray(logits[:, :past]), jnp.asarray(teacher[:, :past]), past, past)
    np.testing.assert_allclose(full, cut, rtol=1e-5, atol=1e-6)
