"""Every equation that is minimised, the paper's and its baselines', as pure functions of arrays.

Smith et al., "Always Be Dreaming: A New Approach for Data-Free Class-Incremental Learning", ICCV 2021
(https://arxiv.org/abs/2106.09701). Functions return one value an example where a weight may follow; the weight and the
one mean belong to the caller. Class windows are traced integers, never slices, so that one compilation serves every
task. All logarithms are natural.

Axes: N examples, K classes of the whole head, D features, H W C image.
"""

import chex
import jax
import jax.numpy as jnp
from jax import Array

# Of classes: a Python integer, or a traced one.
Count = int | Array
# Stands for minus infinity in a masked logit. It is finite, so that 0 * log 0 is 0 and not NaN.
_MASKED = -1e30


def classes_between(num_classes: int, start: Count, stop: Count) -> Array:
  """bool[K]: true for the classes start <= k < stop, either bound a Python or a traced integer."""
  classes = jnp.arange(num_classes)
  return (classes >= start) & (classes < stop)


def mask_logits(logits_NK: Array, start: Count, stop: Count) -> Array:
  """f32[N, K]: the logits with every class outside start <= k < stop removed from any softmax or argmax."""
  return jnp.where(classes_between(logits_NK.shape[-1], start, stop), logits_NK, _MASKED)


def batch_mean(values: Array, axis: str | None = None) -> Array:
  """The mean over the rows of a batch.

  Args:
    values: [N, ...].
    axis: the mapped axis along which devices share the batch, or None; the mean is that of all their rows.
  """
  mean = jnp.mean(values, axis=0)
  return mean if axis is None else jax.lax.pmean(mean, axis)


def _check_logits(logits_NK: Array, labels_N: Array) -> None:
  chex.assert_rank([logits_NK, labels_N], [2, 1])
  chex.assert_equal_shape_prefix([logits_NK, labels_N], 1)
  chex.assert_type([logits_NK, labels_N], [float, int])


def cross_entropy(logits_NK: Array, labels_N: Array, seen: Count) -> Array:
  """Cross-entropy of the softmax over the classes seen so far.

  Args:
    logits_NK: f32[N, K], logits of every class of the head.
    labels_N: i32[N], class indices below `seen`.
    seen: number of classes of the tasks so far; logits of later classes are left out.

  Returns:
    f32[N].

  Raises:
    AssertionError: ranks, types or the number of examples disagree.
  """
  return local_cross_entropy(logits_NK, labels_N, 0, seen)


def local_cross_entropy(logits_NK: Array, labels_N: Array, past: Count, seen: Count) -> Array:
  """Cross-entropy among the new classes alone, Eq. 11: what the past heads say plays no part.

  Args:
    logits_NK: f32[N, K], logits of every class of the head.
    labels_N: i32[N], class indices with past <= label < seen.
    past: number of classes of the earlier tasks.
    seen: number of classes of the tasks so far.

  Returns:
    f32[N].

  Raises:
    AssertionError: ranks, types or the number of examples disagree.
  """
  _check_logits(logits_NK, labels_N)
  log_probabilities_NK = jax.nn.log_softmax(mask_logits(logits_NK, past, seen))
  return -jnp.take_along_axis(log_probabilities_NK, labels_N[:, None], axis=-1)[:, 0]


def balance_weights(labels_N: Array, past: Count, seen: Count) -> Array:
  """Weights that balance a few new classes against many past ones, section 6 of the paper.

  Args:
    labels_N: i32[N], class indices.
    past: number of classes of the earlier tasks.
    seen: number of classes of the tasks so far.

  Returns:
    f32[N], past / seen for a past class and 1 - past / seen for a new one.
  """
  chex.assert_rank(labels_N, 1)
  share = jnp.asarray(past, jnp.float32) / seen
  return jnp.where(labels_N < past, share, 1 - share)


def feature_distillation(projected_NK: Array, teacher_projected_NK: Array, past: Count) -> Array:
  """Importance-weighted feature distillation, Eq. 13: features may move where the old head does not look.

  Args:
    projected_NK: f32[N, K], student features through the teacher's frozen head.
    teacher_projected_NK: f32[N, K], teacher features through the same head.
    past: number of classes of the earlier tasks; the head's other rows are left out.

  Returns:
    f32[N], squared difference averaged over the past classes.

  Raises:
    AssertionError: the two arrays differ in shape.
  """
  chex.assert_equal_shape([projected_NK, teacher_projected_NK])
  squared_NK = (projected_NK - teacher_projected_NK) ** 2
  return jnp.sum(jnp.where(classes_between(squared_NK.shape[-1], 0, past), squared_NK, 0), axis=-1) / past


def plain_feature_distillation(features_ND: Array, teacher_features_ND: Array) -> Array:
  """Unweighted feature distillation, Eq. 12.

  Args:
    features_ND: f32[N, D], student features.
    teacher_features_ND: f32[N, D], teacher features.

  Returns:
    f32[N], squared Euclidean distance.

  Raises:
    AssertionError: the two arrays differ in shape.
  """
  chex.assert_equal_shape([features_ND, teacher_features_ND])
  return jnp.sum((features_ND - teacher_features_ND) ** 2, axis=-1)


def knowledge_distillation(
    logits_NK: Array, teacher_logits_NK: Array, past: Count, among: Count, temperature: float = 2.0,
) -> Array:
  """Cross-entropy against the teacher's softened prediction: LwF where among = past, Eq. 9 where among = seen.

  Args:
    logits_NK: f32[N, K], student logits.
    teacher_logits_NK: f32[N, K], teacher logits.
    past: number of classes the teacher knows; its probability of any other class is 0.
    among: the student's softmax runs over the classes below this number.
    temperature: divides both logits. The result is not multiplied by its square.

  Returns:
    f32[N].

  Raises:
    AssertionError: the two arrays differ in shape.
  """
  chex.assert_equal_shape([logits_NK, teacher_logits_NK])
  target_NK = jax.nn.softmax(mask_logits(teacher_logits_NK / temperature, 0, past))
  log_probabilities_NK = jax.nn.log_softmax(mask_logits(logits_NK / temperature, 0, among))
  return -jnp.sum(target_NK * log_probabilities_NK, axis=-1)


def distillation_within_tasks(
    logits_NK: Array, teacher_logits_NK: Array, tasks_K: Array, start: Count, stop: Count, temperature: float = 2.0,
) -> Array:
  """Softened predictions among each task's own classes, a task weighted by its number of classes (ECCV 2018).

  Args:
    logits_NK: f32[N, K], student logits.
    teacher_logits_NK: f32[N, K], the logits to hold.
    tasks_K: i32[K], the task of each class, below K.
    start, stop: the classes of the tasks that are held, start <= k < stop; a task lies inside or outside whole.
    temperature: divides both logits. The result is not multiplied by its square.

  Returns:
    f32[N], the sum over the tasks; divided by a count of classes it is the weighted mean.

  Raises:
    AssertionError: the two arrays of logits differ in shape.
  """
  chex.assert_equal_shape([logits_NK, teacher_logits_NK])
  same_task_KK = (tasks_K[:, None] == tasks_K[None, :]).astype(logits_NK.dtype)

  def log_softmax(z_NK: Array) -> Array:
    # Each task's largest logit, by class; the sums are a product of matrices, since N x K x K values would be many.
    largest_KN = jax.ops.segment_max(jax.lax.stop_gradient(z_NK).T, tasks_K, num_segments=len(tasks_K))[tasks_K]
    shifted_NK = z_NK - largest_KN.T
    sums_NK = jnp.matmul(jnp.exp(shifted_NK), same_task_KK, precision=jax.lax.Precision.HIGHEST)
    return shifted_NK - jnp.log(sums_NK)

  target_NK = jnp.exp(log_softmax(teacher_logits_NK / temperature))
  held_NK = -target_NK * log_softmax(logits_NK / temperature) * jnp.sum(same_task_KK, axis=-1)
  return jnp.sum(jnp.where(classes_between(len(tasks_K), start, stop), held_NK, 0), axis=-1)


def binary_cross_entropy(
    logits_NK: Array, labels_N: Array, seen: Count, teacher_logits_NK: Array | None = None, past: Count = 0,
) -> Array:
  """A yes or no for each class by itself (LwF-MC, from iCaRL, CVPR 2017).

  Args:
    logits_NK: f32[N, K], student logits.
    labels_N: i32[N], class indices below `seen`.
    seen: number of classes of the tasks so far; later classes are left out.
    teacher_logits_NK: f32[N, K], whose sigmoid is the target of a past class in the place of the label's; or None.
    past: number of classes the teacher knows.

  Returns:
    f32[N], summed over the classes.

  Raises:
    AssertionError: ranks, types or the number of examples disagree.
  """
  _check_logits(logits_NK, labels_N)
  num_classes = logits_NK.shape[-1]
  target_NK = jax.nn.one_hot(labels_N, num_classes)
  if teacher_logits_NK is not None:
    target_NK = jnp.where(classes_between(num_classes, 0, past), jax.nn.sigmoid(teacher_logits_NK), target_NK)
  loss_NK = _binary_cross_entropy(logits_NK, target_NK)
  return jnp.sum(jnp.where(classes_between(num_classes, 0, seen), loss_NK, 0), axis=-1)


def _binary_cross_entropy(logits: Array, targets: Array) -> Array:
  return -targets * jax.nn.log_sigmoid(logits) - (1 - targets) * jax.nn.log_sigmoid(-logits)


def reconstruction(pixel_logits_NHWC: Array, images_NHWC: Array) -> Array:
  """How far a VAE's images are from those it was given: f32[N], binary cross-entropy averaged over the pixels' values.

  Args:
    pixel_logits_NHWC: f32[N, H, W, C], of which the sigmoid is the image made.
    images_NHWC: f32[N, H, W, C] in [0, 1].

  Raises:
    AssertionError: the two arrays differ in shape.
  """
  chex.assert_equal_shape([pixel_logits_NHWC, images_NHWC])
  return jnp.mean(_binary_cross_entropy(pixel_logits_NHWC, images_NHWC), axis=(1, 2, 3))


def latent_divergence(mean_NZ: Array, log_variance_NZ: Array) -> Array:
  """f32[N]: KL(N(mean, variance) || N(0, 1)) of a VAE's latents, summed over f32[N, Z] (Kingma and Welling, 2014)."""
  return -0.5 * jnp.sum(1 + log_variance_NZ - mean_NZ**2 - jnp.exp(log_variance_NZ), axis=-1)


def content(logits_NK: Array, past: Count, temperature: float = 1000.0) -> Array:
  """How unsure the teacher is of its own first choice, Eq. 2 and 3.

  At the paper's temperature the loss stays near ln(past) and its gradient is a thousandth of the usual one: a gentle
  pull towards the centre of a class, which the statistics may overrule.

  Args:
    logits_NK: f32[N, K], teacher logits of synthetic images.
    past: number of classes the teacher knows.
    temperature: divides the logits.

  Returns:
    f32[N].
  """
  choice_N = jax.lax.stop_gradient(jnp.argmax(mask_logits(logits_NK, 0, past), axis=-1))
  return cross_entropy(logits_NK / temperature, choice_N, past)


def label_diversity(logits_NK: Array, past: Count, axis: str | None = None) -> Array:
  """How unevenly a batch of synthetic images covers the past classes, Eq. 1 normalised to [0, 1].

  Args:
    logits_NK: f32[N, K], teacher logits of synthetic images.
    past: number of classes the teacher knows.
    axis: the mapped axis along which devices share the batch, or None.

  Returns:
    f32[], 1 - H(p) / ln(past) with p the mean prediction: 0 for a uniform batch, 1 for a batch of one class, and 0
    when there is but one class. A class whose probability underflows to 0 adds 0 to the value and to the gradient.
  """
  chex.assert_rank(logits_NK, 2)
  mean_K = batch_mean(jax.nn.softmax(mask_logits(logits_NK, 0, past)), axis)
  positive_K = jnp.where(mean_K > 0, mean_K, 1.0)  # ln 1 = 0 stands in for 0 ln 0
  entropy = -jnp.sum(positive_K * jnp.log(positive_K) * (mean_K > 0))
  several = past > 1
  return jnp.where(several, 1 - entropy / jnp.log(jnp.where(several, past, 2)), 0.0)


def statistics_alignment(mean_C: Array, variance_C: Array, running_mean_C: Array, running_variance_C: Array) -> Array:
  """Divergence between a layer's stored statistics and those of a synthetic batch, one layer of Eq. 4 and 5.

  Args:
    mean_C: f32[C], batch mean of the input of a BatchNorm layer.
    variance_C: f32[C], its biased batch variance.
    running_mean_C: f32[C], the mean that the layer stores.
    running_variance_C: f32[C], the variance that the layer stores.

  Returns:
    f32[], KL(N(running) || N(batch)) averaged over channels; 1e-8 is added to both variances.

  Raises:
    AssertionError: the four arrays differ in shape.
  """
  chex.assert_equal_shape([mean_C, variance_C, running_mean_C, running_variance_C])
  variance_C = variance_C + 1e-8
  running_variance_C = running_variance_C + 1e-8
  ratio_C = (running_variance_C + (running_mean_C - mean_C) ** 2) / variance_C
  return jnp.mean(0.5 * jnp.log(variance_C / running_variance_C) - 0.5 * (1 - ratio_C))


def blur_profile(sigma: float) -> Array:
  """f32[5]: the five taps of a Gaussian of the given standard deviation in pixels, summing to 1."""
  taps_5 = jnp.exp(-(jnp.arange(-2.0, 3.0) ** 2) / (2 * sigma**2))
  return taps_5 / jnp.sum(taps_5)


def blur(images_NHWC: Array, sigma: float) -> Array:
  """f32[N, H, W, C]: the images under a 5x5 Gaussian, borders reflected.

  Two passes of five shifted sums: a grouped convolution of one channel each is many times slower on every backend.
  """
  chex.assert_rank(images_NHWC, 4)
  taps_5 = blur_profile(sigma)
  for axis in (1, 2):
    size = images_NHWC.shape[axis]
    padding = [(2, 2) if i == axis else (0, 0) for i in range(4)]
    padded = jnp.pad(images_NHWC, padding, mode='reflect')
    taps = (taps_5[i] * jax.lax.slice_in_dim(padded, i, i + size, axis=axis) for i in range(5))
    images_NHWC = sum(taps)  # type: ignore[assignment]  # never the 0 of no taps
  return images_NHWC


def smoothness(images_NHWC: Array, blur_sigma: float = 2**0.5) -> Array:
  """Mean squared difference between images and their blur, Eq. 6.

  Args:
    images_NHWC: f32[N, H, W, C], height and width at least 3.
    blur_sigma: standard deviation of the Gaussian in pixels. The paper does not give it; its authors' kernel is
      exp(-(d / 2)^2), that is the square root of 2.

  Returns:
    f32[].
  """
  return jnp.mean((images_NHWC - blur(images_NHWC, blur_sigma)) ** 2)
