"""Images optimised themselves, in the generator's place: moved, sampled, made by batches, dropped with the task."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abd_jax import config, inversion, programs, states, steps, train
from abd_jax.config import with_values
from abd_jax.models import make_student
from abd_jax.stopping import Preempted
from tests.small_runs import TINY, StopAfter, final_states

IMAGES = with_values(TINY, dict(
    inversion='images', synthetic_images=50, image_steps=3, image_jitter=1, image_flip=False, num_tasks=5,
    stop_after_task=2,
))


def test_moving_shifts_round_the_border_and_mirrors():
  image = jnp.arange(9.0).reshape(1, 3, 3, 1)
  hparams = config.Inversion(image_jitter=1)
  # Of -1, 0, 1 a draw of 0.9 is 1 and of 0.5 is 0; below one half in the third mirrors.
  def one(draws):
    return inversion.moved(image, jnp.array([draws]), hparams)[0, :, :, 0].tolist()

  assert one([0.9, 0.5, 0.9]) == [[6, 7, 8], [0, 1, 2], [3, 4, 5]]
  assert one([0.5, 0.1, 0.9]) == [[1, 2, 0], [4, 5, 3], [7, 8, 6]]
  assert one([0.5, 0.5, 0.1]) == [[2, 1, 0], [5, 4, 3], [8, 7, 6]]
  still = config.Inversion(image_jitter=0, image_flip=False)
  np.testing.assert_array_equal(inversion.moved(image, jnp.zeros((1, 3)), still), image)


def test_a_sample_is_of_all_images_of_the_set():
  image_set = states.ImageSetState(jnp.arange(5.0)[:, None, None, None] * jnp.ones((5, 2, 2, 1)), None)
  hparams = config.Inversion(image_jitter=0, image_flip=False)
  draws = jax.random.uniform(jax.random.key(0), (1000, 4)).at[:2, 0].set(jnp.array([0.0, 1 - 2**-24]))
  chosen = np.asarray(inversion.sample_images(image_set, draws, hparams))[:, 0, 0, 0].astype(int)
  assert chosen[0] == 0 and chosen[1] == 4
  assert np.bincount(chosen, minlength=5).min() > 150  # 200 each, give or take four times 13


@pytest.fixture(scope='module')
def teacher():
  model = make_student('resnet8', 4)
  variables = jax.jit(lambda key: model.init(key, jnp.zeros((1, 8, 8, 1)), train=False))(jax.random.key(0))
  return model, states.TeacherState(variables['params'], variables['batch_stats'])


def test_each_batch_is_made_in_its_turn_by_an_adam_of_its_own(teacher):
  model, frozen = teacher
  hparams = config.Inversion(image_steps=4, image_learning_rate=0.01, image_jitter=0, image_flip=False)
  optimizer = states.image_optimizer(hparams)
  step = jax.jit(steps.make_image_step(model, optimizer, 6, hparams=hparams))
  first = image_set = states.init_image_set(optimizer, 12, 6, (8, 8, 1), jax.random.key(1))
  losses, made = [], None
  for number in range(8):
    before = image_set
    image_set, metrics = step(image_set, frozen, 3, jax.random.key(number), number)
    losses.append(float(metrics['loss']))
    if number == 4:
      # Adam's first step is the learning rate times the gradient's sign, whatever came before.
      change = np.abs(np.asarray(image_set.images - before.images))[6:]
      np.testing.assert_allclose(np.median(change), 0.01, rtol=1e-3)
    if number < 4:
      chex.assert_trees_all_equal(image_set.images[6:], first.images[6:])
    else:
      chex.assert_trees_all_equal(image_set.images[:6], made)
    if number == 3:
      made = image_set.images[:6]
  assert losses[3] < losses[0] and losses[7] < losses[4]
  assert set(metrics) == {'loss', 'content', 'diversity', 'statistics', 'smoothness'}


def test_a_run_by_images_resumes_exactly_and_keeps_none_of_them(digits, tmp_path, monkeypatch):
  held = []
  save = train.Checkpoints.save

  def recording_save(self, kept, record):
    held.append(set(kept))
    save(self, kept, record)

  monkeypatch.setattr(train.Checkpoints, 'save', recording_save)
  programs.clear()
  whole = train.run(IMAGES, tmp_path / 'whole', digits)
  compiled = programs.programs_for(IMAGES, train.tasks_for(IMAGES, digits), digits)
  assert set(compiled.traces().values()) == {1}
  assert compiled.inversion_steps == 2 * 3  # 50 images are two batches of 32
  assert any('generator' in kept for kept in held) and 'generator' not in held[-1]  # while the task lasts
  assert 'generator' not in final_states(tmp_path / 'whole') and whole.memory_held['images'] == 0
  assert len(whole.synthetic_confidence) == 1 and 0.5 <= whole.synthetic_confidence[0] <= 1  # of two classes
  with pytest.raises(Preempted):
    train.run(IMAGES, tmp_path / 'stopped', digits, StopAfter(16))  # nine of task 1, saves, four of inversion
  assert train.run(IMAGES, tmp_path / 'stopped', digits).accuracy_matrix == whole.accuracy_matrix
  chex.assert_trees_all_equal(final_states(tmp_path / 'stopped'), final_states(tmp_path / 'whole'))

