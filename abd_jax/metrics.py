"""What the literature reports, from logits on the test images of every task. All accuracies are percentages."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike


def top_k_hits(logits_MK: ArrayLike, labels_M: ArrayLike, classes: ArrayLike, top_k: int = 1) -> np.ndarray:
  """bool[M]: whether the label is among the top_k of `classes` (a sequence of class indices) by logit."""
  classes = np.asarray(classes)
  among = np.asarray(logits_MK)[:, classes]
  own = np.take_along_axis(np.asarray(logits_MK), np.asarray(labels_M)[:, None], axis=1)
  # Ties count against the label, and so does NaN: a constant or diverged output is no knowledge.
  ahead = np.sum(~(among < own) & (classes[None, :] != np.asarray(labels_M)[:, None]), axis=1)
  return np.asarray(ahead < top_k)


def accuracies_after_task(
    logits_by_task: Sequence[ArrayLike], labels_by_task: Sequence[ArrayLike], classes_by_task: Sequence[Sequence[int]],
    top_k: int = 1,
) -> tuple[list[float], list[float], float]:
  """One row of each accuracy matrix.

  Args:
    logits_by_task, labels_by_task: for each task so far f32[M, K] logits on its test images and i32[M] labels.
    classes_by_task: for each task so far its class indices.
    top_k: a prediction counts when the label is among so many highest logits.

  Returns:
    (row, local_row, accuracy): % on each task with all seen classes competing; the same among the task's own classes
    (task known); and A_n, % over all test images so far with all seen classes competing.
  """
  seen = [c for classes in classes_by_task for c in classes]
  hits = [top_k_hits(z, y, seen, top_k) for z, y in zip(logits_by_task, labels_by_task, strict=True)]
  local = [
      top_k_hits(z, y, classes, top_k)
      for z, y, classes in zip(logits_by_task, labels_by_task, classes_by_task, strict=True)
  ]

  def percent(hits: np.ndarray) -> float:
    return float(100 * np.mean(hits))

  return [percent(h) for h in hits], [percent(h) for h in local], percent(np.concatenate(hits))


def final_accuracy(accuracy_after_task: Sequence[float]) -> float:
  """A_N (the paper's I): % over the test images of all classes after the last task. Not the average accuracy."""
  return accuracy_after_task[-1]


def average_accuracy(accuracy_after_task: Sequence[float]) -> float:
  """Average incremental accuracy: the mean over n of A_n. Not the final accuracy, which is A_N alone."""
  return float(np.mean(accuracy_after_task))


def local_accuracy(accuracy_matrix_local: Sequence[Sequence[float]]) -> float:
  """Task-known accuracy: the mean over tasks of the final accuracy among each task's own classes."""
  return float(np.mean(accuracy_matrix_local[-1]))


def forgetting(accuracy_matrix: Sequence[Sequence[float]]) -> float | None:
  """Mean over the tasks but the last of the best accuracy a task ever had less its final one; None for one task."""
  final = accuracy_matrix[-1]
  lost = [max(row[j] for row in accuracy_matrix[j:]) - final[j] for j in range(len(final) - 1)]
  return float(np.mean(lost)) if lost else None


def backward_transfer(accuracy_matrix: Sequence[Sequence[float]]) -> float | None:
  """Mean over the tasks but the last of the final accuracy less the one when the task was new; None for one task."""
  final = accuracy_matrix[-1]
  moved = [final[j] - accuracy_matrix[j][j] for j in range(len(final) - 1)]
  return float(np.mean(moved)) if moved else None


def omega(accuracy_after_task: Sequence[float], upper_bound_after_task: Sequence[float]) -> float | None:
  """Omega (Eq. 17): the mean over n of A_n / A_n(upper bound), 1 being as good as training on all data.

  None where the upper bound was right about nothing after some task.
  """
  if not all(upper_bound_after_task):
    return None
  return float(np.mean(np.asarray(accuracy_after_task) / np.asarray(upper_bound_after_task)))
