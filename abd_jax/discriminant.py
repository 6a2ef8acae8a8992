"""A linear discriminant that outlives its images: the mean feature of each class, and how features spread around it.

The features of images that nobody kept move while a later task is learned. How they move is seen on images that are
there, the new task's and the synthetic ones, and a linear map fitted to these carries the means along. The map is that
of LDC (Gomez-Villa et al., ECCV 2024), which stores means as well; that the covariance goes the same way, and takes up
what the map leaves over, is ours.

All of it is done once a task, on the host and in float64: normal equations of features lose digits in float32.
"""

import dataclasses

import numpy as np

# Of the mean variance: how much of it every direction gets, so that none is blown up for having little.
_SHRINKAGE = 0.05
# Likewise of what the map is fitted to, for directions in which no image says how features move.
_RIDGE = 1e-3
# Of any direction: features of one image a class, or dead ones, have none.
_LEAST_VARIANCE = 1e-6


@dataclasses.dataclass(frozen=True)
class Discriminant:
  """Classes as normal distributions of one covariance.

  Attributes:
    means: f64[K, D], the mean feature of each class.
    covariance: f64[D, D], of a class's features around its mean, the same for all.
  """

  means: np.ndarray
  covariance: np.ndarray

  def head(self, length=None):
    """(kernel f64[D, K], bias f64[K]): the logits of Fisher's linear discriminant, all classes as likely.

    Args:
      length: the mean Euclidean length of the kernel's columns, which leaves the order of the logits as it is; None: as
        Bayes has it, where the softmax of the logits is the posterior.
    """
    size = len(self.covariance)
    variance = np.trace(self.covariance) / size
    spread = (1 - _SHRINKAGE) * self.covariance + (_SHRINKAGE * variance + _LEAST_VARIANCE) * np.eye(size)
    centre = self.means.mean(axis=0)  # what all classes share tells none from another
    kernel = np.linalg.solve(spread, (self.means - centre).T)
    bias = -0.5 * np.sum((self.means + centre).T * kernel, axis=0)
    scale = 1.0
    if length is not None:
      now = np.linalg.norm(kernel, axis=0).mean()
      scale = length / now if now else 1.0
    return scale * kernel, scale * bias


@dataclasses.dataclass(frozen=True)
class Movement:
  """How features moved, as far as a linear map says it.

  Attributes:
    before, after: f64[D], the mean features on either side.
    matrix: f64[D, D]; a feature f goes to (f - before) @ matrix + after.
    rest: f64[D, D], the covariance of what the map leaves over.
  """

  before: np.ndarray
  after: np.ndarray
  matrix: np.ndarray
  rest: np.ndarray

  def carry(self, discriminant):
    """The `Discriminant` of the same classes where their features are now."""
    means = (discriminant.means - self.before) @ self.matrix + self.after
    return Discriminant(means, self.matrix.T @ discriminant.covariance @ self.matrix + self.rest)


def movement(before_MD, after_MD):
  """The `Movement` of the features of M images, by least squares with a slight ridge.

  Raises:
    ValueError: the two do not have the same shape.
  """
  before_MD, after_MD = (np.asarray(features, np.float64) for features in (before_MD, after_MD))
  if before_MD.shape != after_MD.shape:
    raise ValueError(f'features of shape {before_MD.shape} cannot have moved to shape {after_MD.shape}')
  before, after = before_MD.mean(axis=0), after_MD.mean(axis=0)
  from_MD, to_MD = before_MD - before, after_MD - after
  count, size = from_MD.shape
  moments = from_MD.T @ from_MD / count
  ridge = _RIDGE * np.trace(moments) / size + _LEAST_VARIANCE
  matrix = np.linalg.solve(moments + ridge * np.eye(size), from_MD.T @ to_MD / count)
  left_MD = to_MD - from_MD @ matrix
  return Movement(before, after, matrix, left_MD.T @ left_MD / count)


def of_classes(features_MD, labels_M, classes):
  """The `Discriminant` of a range of classes, of the features of M images and their labels.

  Raises:
    ValueError: a class has no image.
  """
  features_MD, labels_M = np.asarray(features_MD, np.float64), np.asarray(labels_M)
  if missing := sorted(set(classes) - set(labels_M.tolist())):
    raise ValueError(f'class {missing[0]} has no image')
  means = np.stack([features_MD[labels_M == k].mean(axis=0) for k in classes])
  off_MD = features_MD - means[labels_M - classes[0]]
  return Discriminant(means, off_MD.T @ off_MD / len(off_MD))


def joined(old, new):
  """One `Discriminant` of the classes of both; each class has the same weight in the covariance."""
  past, added = len(old.means), len(new.means)
  covariance = (past * old.covariance + added * new.covariance) / (past + added)
  return Discriminant(np.concatenate([old.means, new.means]), covariance)
