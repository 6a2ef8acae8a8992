"""What a classifier has made of old, new and synthetic images: distances, drift, calibration, memorisation.

Every function is pure, from arrays to numbers; `diagnose` finds the arrays in a finished run. All is computed once, on
the host, in 64 bits: distances between like populations are small differences of large sums.
"""

import chex
import numpy as np

# Distances between populations of features.


def mean_image_distance(reference_ND, sample_MD):
  """MID (Eq. 10 of Smith et al., ICCV 2021, https://arxiv.org/abs/2106.09701): how far the mean of one sample is.

  Args:
    reference_ND: f[N, D], the features of the reference images.
    sample_MD: f[M, D], those of the others.

  Returns:
    (distance, dead): the Euclidean norm of the difference of the means, each feature in units of its standard deviation
    (population) over the reference; and how many features are the same for all of the reference and so are left out.
  """
  reference_ND, sample_MD = _populations(reference_ND, sample_MD)
  alive_D = np.ptp(reference_ND, axis=0) > 0  # and not std > 0: the mean of equal numbers may differ from them
  apart_D = (reference_ND.mean(axis=0) - sample_MD.mean(axis=0))[alive_D] / reference_ND.std(axis=0)[alive_D]
  return float(np.linalg.norm(apart_D)), int(np.sum(~alive_D))


def median_distance(*populations_ND):
  """The median heuristic: the median Euclidean distance between two different rows of all populations together."""
  rows_ND = np.concatenate(_populations(*populations_ND))
  squared_NN = _squared_distances(rows_ND, rows_ND)
  return float(np.sqrt(np.median(squared_NN[np.triu_indices(len(rows_ND), 1)])))


def maximum_mean_discrepancy(first_ND, second_MD, bandwidth):
  """The unbiased estimate of the squared MMD (Gretton et al., JMLR 2012, Eq. 3), Appendix B of the paper.

  Args:
    first_ND, second_MD: f[N, D] and f[M, D] features, of two images at least each.
    bandwidth: sigma of the Gaussian kernel exp(-d^2 / (2 sigma^2)), above 0; distances held against each other need
      the same.

  Returns:
    The estimate, whose expectation is 0 for samples of one distribution: it can be negative.
  """
  first_ND, second_MD = _populations(first_ND, second_MD)

  def kernel(a, b):
    return np.exp(-_squared_distances(a, b) / (2 * bandwidth**2))

  def mean_of_pairs(kernel_NN):
    count = len(kernel_NN)
    return (kernel_NN.sum() - np.trace(kernel_NN)) / (count * (count - 1))

  within = mean_of_pairs(kernel(first_ND, first_ND)) + mean_of_pairs(kernel(second_MD, second_MD))
  return float(within - 2 * kernel(first_ND, second_MD).mean())


def _populations(*populations_ND):
  """As f64, once their shapes are known to fit."""
  chex.assert_rank(populations_ND, 2)
  chex.assert_equal_shape_suffix(populations_ND, 1)
  return [np.asarray(population, np.float64) for population in populations_ND]


def _squared_distances(first_ND, second_MD):
  squared_NM = (first_ND**2).sum(axis=1)[:, None] + (second_MD**2).sum(axis=1) - 2 * first_ND @ second_MD.T
  return np.maximum(squared_NM, 0)


def feature_drift(before_ND, after_ND, labels_N, num_classes):
  """How far each class's mean feature has moved from one classifier to the next.

  Args:
    before_ND, after_ND: f[N, D], features of the same images under the two.
    labels_N: i[N], their classes, of which those below `num_classes` are measured.
    num_classes: K.

  Returns:
    f64[K], the Euclidean distance between the two means as a share of the norm of the first; NaN for a class
    without image.
  """
  before_ND, after_ND = _populations(before_ND, after_ND)
  chex.assert_equal_shape([before_ND, after_ND])
  chex.assert_shape(labels_N, (len(before_ND),))
  drift_K = np.full(num_classes, np.nan)
  for k in range(num_classes):
    rows = labels_N == k
    if rows.any():
      mean_D = before_ND[rows].mean(axis=0)
      drift_K[k] = np.linalg.norm(after_ND[rows].mean(axis=0) - mean_D) / np.linalg.norm(mean_D)
  return drift_K


def embed(*populations_ND, seed=0):
  """t-SNE of several populations together (Appendix F), by scikit-learn: f[N, 2] for each."""
  from sklearn.manifold import TSNE
  from threadpoolctl import threadpool_limits  # which scikit-learn needs

  rows_ND = np.concatenate(_populations(*populations_ND))
  perplexity = min(30, (len(rows_ND) - 1) / 3)
  with threadpool_limits(1):  # of so few rows each thread has less to do than to wait for the others
    points_N2 = TSNE(perplexity=perplexity, init='pca', random_state=seed).fit_transform(rows_ND)
  return np.split(points_N2, np.cumsum([len(population) for population in populations_ND])[:-1])


# What is predicted.


def confusion_by_task(predictions_N, labels_N, task_of_class):
  """f64[T, T]: of the images of task i the share that is predicted as a class of task j.

  Args:
    predictions_N, labels_N: i[N], classes.
    task_of_class: the task of each class; each of them has an image.
  """
  chex.assert_equal_shape([predictions_N, labels_N])
  task_of_class = np.asarray(task_of_class)
  counts_TT = np.zeros((task_of_class.max() + 1,) * 2)
  np.add.at(counts_TT, (task_of_class[labels_N], task_of_class[predictions_N]), 1)
  return counts_TT / counts_TT.sum(axis=1, keepdims=True)


def calibration(confidences_N, correct_N, num_bins=15):
  """The expected calibration error (Guo et al., ICML 2017, Eq. 3) over bins of equal width.

  Args:
    confidences_N: f[N] in [0, 1], of the classes predicted.
    correct_N: bool[N].
    num_bins: between 0 and 1; a confidence on an edge belongs to the bin below it.

  Returns:
    {'ece': mean over the images of their bin's |accuracy - confidence|, 'bins': [{'confidence', 'accuracy', 'count'}]},
    means over the bin's images, None in an empty bin. Shares of 1.
  """
  chex.assert_equal_shape([confidences_N, correct_N])
  confidences_N, correct_N = np.asarray(confidences_N, np.float64), np.asarray(correct_N)
  bin_N = np.clip(np.ceil(confidences_N * num_bins).astype(int) - 1, 0, num_bins - 1)
  bins, error = [], 0.0
  for i in range(num_bins):
    rows = bin_N == i
    count = int(rows.sum())
    confidence, accuracy = (float(of[rows].mean()) if count else None for of in (confidences_N, correct_N))
    bins.append({'confidence': confidence, 'accuracy': accuracy, 'count': count})
    error += count * abs(accuracy - confidence) / len(confidences_N) if count else 0
  return {'ece': float(error), 'bins': bins}


def class_frequencies(choices_N, confidences_N, num_classes):
  """What a classifier sees in synthetic images.

  Args:
    choices_N, confidences_N: its choice of class for each, and its confidence in it.
    num_classes: K.

  Returns:
    (f64[K] share of each class, f64[K] mean confidence where it was chosen, NaN where it never was).
  """
  chex.assert_equal_shape([choices_N, confidences_N])
  counts_K = np.bincount(choices_N, minlength=num_classes)
  sums_K = np.bincount(choices_N, weights=confidences_N, minlength=num_classes)
  return counts_K / len(choices_N), np.where(counts_K, sums_K / np.maximum(counts_K, 1), np.nan)


# Memorisation.


def nearest_others(queries_MD, references_ND, own_M=None):
  """The nearest reference of each query.

  Args:
    queries_MD: f[M, D].
    references_ND: f[N, D].
    own_M: i[M], where the queries are references themselves: their rows, which do not count. Equals of theirs do.

  Returns:
    (f64[M] Euclidean distances, i64[M] rows of the references).
  """
  from sklearn.neighbors import NearestNeighbors

  chex.assert_equal_shape_suffix([queries_MD, references_ND], 1)
  index = NearestNeighbors(n_neighbors=1 if own_M is None else 2, algorithm='brute').fit(references_ND)
  distances, rows = index.kneighbors(queries_MD)
  if own_M is None:
    return distances[:, 0], rows[:, 0]
  chosen = (np.arange(len(rows)), (rows[:, 0] == own_M).astype(int))
  return distances[chosen], rows[chosen]


def memorisation(synthetic_MD, test_LD, training_ND, sample):
  """Whether synthetic images lie nearer to training images than those lie to each other.

  Args:
    synthetic_MD: f[M, D], pixels or features of synthetic images.
    test_LD: f[L, D], of real images that were not trained on: what an honest share is.
    training_ND: f[N, D], of those that were.
    sample: i[S], rows of the training images that are the yardstick.

  Returns:
    (figures, rows_M, others_M). The figures are the median distances to the nearest training image, of synthetic images
    (`median_synthetic`), of test images (`median_test`) and of training images to another one (`median_real`), and the
    share of synthetic and of test images that are nearer to their nearest training image than that is to its nearest
    other (`share_nearer`, `share_nearer_test`; 1 less the authenticity of Alaa et al., ICML 2022). `rows_M` is the
    nearest training image of each synthetic one, and `others_M` that one's nearest other.
  """
  to_training_M, rows_M = nearest_others(synthetic_MD, training_ND)
  to_training_L, rows_L = nearest_others(test_LD, training_ND)
  nearest = np.unique(np.concatenate([rows_M, rows_L, sample]))
  distances, others = nearest_others(training_ND[nearest], training_ND, nearest)
  among = lambda rows: np.searchsorted(nearest, rows)
  return {
      'median_synthetic': float(np.median(to_training_M)),
      'median_test': float(np.median(to_training_L)),
      'median_real': float(np.median(distances[among(sample)])),
      'share_nearer': float(np.mean(to_training_M < distances[among(rows_M)])),
      'share_nearer_test': float(np.mean(to_training_L < distances[among(rows_L)])),
  }, rows_M, others[among(rows_M)]
