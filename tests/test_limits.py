"""The smallest and the largest that a run may be: one class, one image, one past class, a thousand classes, 16 bits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abd_jax import config, data, train
from abd_jax.config import with_values
from abd_jax.errors import NotFinite
from abd_jax.learner import Learner
from abd_jax.methods import METHODS
from abd_jax.methods.interface import Rows, Shapes, View
from tests import test_learner
from tests.test_faults import fails_at
from tests.test_methods import TINY

# Losses of a thousand classes

CLASSES, FEATURES, ROWS = 1000, 16, 4
DRAW = np.random.default_rng(0)
HEAD, TEACHER_HEAD = DRAW.normal(0, 0.1, (2, FEATURES, CLASSES)).astype(np.float32)
DRAWN = DRAW.normal(size=(3, 2 * ROWS, FEATURES)).astype(np.float32)  # of student, teacher, student before
PHASES = {
    f'{name}: {phase.name}': (method, phase)
    for name, method in METHODS.items() if name != 'dgr'  # whose VAE has figures of its own, below a thousand
    for phase in method.later
}


def view_of(features, scale, past, seen, method, phase):
  """Four rows of the newest classes and as many synthetic ones, under linear heads `scale` large."""
  classify = lambda x: scale * (x @ HEAD)
  by_teacher = lambda x: scale * (x @ TEACHER_HEAD)
  labels = jnp.asarray([past, seen - 1, past, seen - 1, 0, past - 1, 0, past - 1])
  both = Rows(labels, features, classify(features), DRAWN[1], by_teacher(DRAWN[1]), classify(DRAWN[2]))
  real, synthetic = (jax.tree.map(lambda rows: rows[part], both) for part in (slice(ROWS), slice(ROWS, None)))  # noqa: B023
  tasks = jnp.asarray(np.arange(CLASSES) // 500)
  own = method.own and method.own(Shapes((8, 8, 1), 2, CLASSES, FEATURES))(jax.random.key(0))
  met = jnp.zeros(CLASSES, jnp.int32) if method.tallies else None
  if not phase.dreams:
    both, synthetic = real, None
  return View(
      real, synthetic, both, past, seen, CLASSES, classify, by_teacher, own=own, tasks=tasks, met=met,
  )


@pytest.mark.parametrize('name', PHASES)
def test_losses_and_their_gradients_are_finite_of_a_thousand_classes_at_any_scale(name):
  method, phase = PHASES[name]

  def total(features, scale, past, seen):
    return phase.loss(view_of(features, scale, past, seen, method, phase), config.Hyperparameters())

  differentiated = jax.jit(jax.value_and_grad(total, has_aux=True))
  for past, seen in ((500, 1000), (1, 2)):
    for scale in (1.0, 1e5):  # logits of hundred thousands: probabilities are zeros and ones
      (loss, terms), gradient = differentiated(DRAWN[0], scale, past, seen)
      assert np.isfinite(loss) and np.all(np.isfinite(gradient)), (past, scale, terms)
      assert loss > 0 or (past, seen) == (1, 2)  # of one new class there may be nothing to learn


# Runs


@pytest.mark.parametrize('method, precision', [('abd', 'bfloat16'), ('bic', 'float32')])
def test_a_class_a_task_in_either_precision(method, precision, small, digits, tmp_path):
  # The first task has nothing to tell apart, the second one past class.
  settings = with_values(TINY, dict(method=method, precision=precision, num_classes=3, num_tasks=3))
  results = train.run(settings, tmp_path, digits)
  assert results.accuracy_after_task[0] == 100 and results.accuracy_matrix_local[2] == [100] * 3
  assert all(0 <= value <= 100 for value in results.accuracy_after_task)


def test_a_thousand_classes_of_an_image_each(small, tmp_path):
  images = DRAW.integers(0, 256, (2, 1000, 8, 8, 1)).astype(np.uint8)
  names, labels = tuple(f'class {i}' for i in range(1000)), np.arange(1000)
  thousand = data.Dataset('thousand', images[0], labels, images[1], labels, names, (0.5,), (0.3,))
  settings = with_values(TINY, dict(method='e2e', num_classes=1000, num_tasks=2, batch_size=100, memory=1000))
  results = train.run(settings, tmp_path, thousand)
  assert len(results.class_order) == 1000 and np.all(np.isfinite(results.accuracy_after_task))


def test_one_image_of_one_class_is_a_lesson(small):
  model = Learner(**test_learner.TINY)
  for i, names in enumerate((('cat',), ('dog',), ('eel',))):
    images, labels, names = test_learner.lesson(names, each=1, seed=i)
    model.learn(images, labels, names)
    probabilities = model.predict(images).probabilities
    assert probabilities.shape == (1, i + 1) and probabilities.sum() == pytest.approx(1)
  assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(model.classifier.variables))


# The inversion gone astray


def test_a_term_of_the_inversion_is_named_with_its_step_and_the_last_state_before_it(
    small, digits, tmp_path, monkeypatch
):
  fails_at(monkeypatch, task=1, step=1, times=1, figure='smoothness')
  with pytest.raises(NotFinite) as said:
    train.run(TINY, tmp_path, digits)
  start = 'Task 2, inversion, step 2: smoothness is nan. The last state before it, 0 steps into phase 1 of task 2, is'
  assert str(said.value).startswith(f'{start} kept in {tmp_path / "checkpoints"}.')
