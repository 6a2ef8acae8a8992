"""The equations of R-DFCIL that the other methods do not share, as pure functions of arrays.

Gao et al., "R-DFCIL: Relation-Guided Representation Learning for Data-Free Class Incremental Learning", ECCV 2022
(https://arxiv.org/abs/2203.13104). Conventions and axes are those of `losses`.
"""

import chex
import jax
import jax.numpy as jnp

from abd_jax.losses import classes_between


def adaptive_factors(past, seen):
  """How the terms are weighed against each other as classes come, section 3.4.

  Args:
    past: number of classes of the earlier tasks, at least 1.
    seen: number of classes of the tasks so far.

  Returns:
    (f32[], f32[]): alpha = log2(new / 2 + 1), how much a task brings; beta = sqrt(past / new), how much is to be kept.
  """
  past, new = (jnp.asarray(count, jnp.float32) for count in (past, seen - past))
  return jnp.log2(new / 2 + 1), jnp.sqrt(past / new)


def hard_distillation(logits_NK, teacher_logits_NK, past):
  """Hard knowledge distillation: the logits themselves are held, not what a softmax makes of them.

  Args:
    logits_NK: f32[N, K], student logits.
    teacher_logits_NK: f32[N, K], teacher logits.
    past: number of classes the teacher knows; the head's other rows are left out.

  Returns:
    f32[N], absolute difference averaged over the past classes.

  Raises:
    AssertionError: the two arrays differ in shape.
  """
  chex.assert_equal_shape([logits_NK, teacher_logits_NK])
  moved_NK = jnp.abs(logits_NK - teacher_logits_NK)
  return jnp.sum(jnp.where(classes_between(moved_NK.shape[-1], 0, past), moved_NK, 0), axis=-1) / past


def angles(features_ND):
  """f32[N, N, N]: at i, j, k the cosine of the angle at row i between the directions to rows j and k.

  A row has no direction to itself or to one that equals it: such cosines are 0, and so are their gradients.
  """
  difference_NND = features_ND[None] - features_ND[:, None]
  squared_NN1 = jnp.sum(difference_NND**2, axis=-1, keepdims=True)
  apart_NN1 = squared_NN1 > 0
  length_NN1 = jnp.sqrt(jnp.where(apart_NN1, squared_NN1, 1.0))  # of 0 the root has no gradient
  direction_NND = jnp.where(apart_NN1, difference_NND / length_NN1, 0.0)
  return jnp.einsum('ijd,ikd->ijk', direction_NND, direction_NND, precision=jax.lax.Precision.HIGHEST)


def angle_distillation(projected_NP, teacher_projected_NP, axis=None):
  """Relational knowledge distillation by angles (Park et al., CVPR 2019, https://arxiv.org/abs/1904.05068).

  Args:
    projected_NP: f32[N, P], student features through the student's projection.
    teacher_projected_NP: f32[N, P], teacher features through the teacher's.
    axis: the mapped axis along which devices share the batch, or None; triplets are of all their rows.

  Returns:
    f32[], absolute difference of the cosines averaged over all triplets of rows, those that repeat a row among them.

  Raises:
    AssertionError: the two arrays differ in shape.
  """
  chex.assert_equal_shape([projected_NP, teacher_projected_NP])
  both = projected_NP, teacher_projected_NP
  if axis is not None:
    both = jax.lax.all_gather(both, axis, tiled=True)
  return jnp.mean(jnp.abs(angles(both[0]) - angles(both[1])))


def inverse_frequency(counts_K, labels_N):
  """f32[N]: for each label 1 / max(1, how often its class was met), from counts [K]."""
  return 1 / jnp.maximum(counts_K, 1).astype(jnp.float32)[labels_N]
