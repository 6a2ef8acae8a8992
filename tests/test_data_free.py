"""Nothing of a task's images outlives the task: not in memory, not in what is kept, not by being asked for again."""

import dataclasses
import weakref

import chex
import jax
import numpy as np
import pytest

from abd_jax import model_files, stored_images, task_loop, train
from abd_jax.config import with_values
from abd_jax.data import TaskSequence
from abd_jax.finished import read_run
from abd_jax.learner import Learner
from tests import test_learner
from tests.small_runs import final_states
from tests.test_methods import TINY

SHORT = with_values(TINY, dict(memory=30, checkpoint_seconds=0.0))


def images_of(digits):
  """All training images that a run of SHORT sees, as it sees them."""
  return TaskSequence(digits, 3, num_classes=6, seed=SHORT.seed).train(2, cumulative=True)[0]


# The search


RANDOM = np.random.default_rng(0)
SOUGHT = RANDOM.integers(0, 256, (20, 4, 4, 3)).astype(np.uint8)
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
FORMS = {
    'pixels': lambda image: image,
    'between 0 and 1': lambda image: image / 255,
    'standardised': lambda image: (image / 255 - MEAN) / STD,
    'standardised, channels first': lambda image: ((image / 255 - MEAN) / STD).transpose(2, 0, 1),
    'pixels, each a grey level off': lambda image: image + RANDOM.choice([-1, 1], image.shape),
    'standardised, with noise of half a grey level': lambda image: (
        (image / 255 - MEAN) / STD + RANDOM.normal(0, 0.5 / 255, image.shape)),
}


@pytest.mark.parametrize('form', FORMS)
def test_an_image_is_found_in_the_middle_of_an_array(form):
  weights = RANDOM.normal(0, 0.1, 5000).astype(np.float32)
  assert stored_images.find({'kernel': weights.reshape(50, 100)}, SOUGHT, MEAN, STD) == {}
  weights[1234 : 1234 + 48] = np.ravel(FORMS[form](SOUGHT[7].astype(float)))
  assert stored_images.find({'kernel': weights.reshape(50, 100)}, SOUGHT, MEAN, STD) == {'kernel': [7]}


def test_images_in_rows_are_all_found_and_others_are_not():
  kept = np.concatenate([SOUGHT[[3, 5]], RANDOM.integers(0, 256, (2, 4, 4, 3)).astype(np.uint8)])
  assert stored_images.find({'coreset': kept}, SOUGHT, MEAN, STD) == {'coreset': [3, 5]}
  # Five levels off, root mean square, is another image; and so is what has no contrast.
  assert stored_images.find({'coreset': kept.astype(float) + 5}, SOUGHT, MEAN, STD) == {}
  grey = np.full((1, 4, 4, 3), 128, np.uint8)
  assert stored_images.blank(grey) and stored_images.find({'zeros': grey}, grey, MEAN, STD) == {}


# What a run keeps and asks for


class Gone:
  """Training images of which those of a task are gone once a later one's were asked for; it knows who still has any."""

  def __init__(self, dataset):
    self._images, self._handed, self.newest = dataset.train_images, [], 0
    order = TaskSequence(dataset, 3, num_classes=6, seed=SHORT.seed).order
    self._task_of = np.array([order.index(k) // 2 if k in order else -1 for k in dataset.train_labels])
    self.shape = self._images.shape

  def __len__(self):
    return len(self._images)

  def __getitem__(self, rows):
    tasks = self._task_of[rows]
    if tasks.min() < self.newest:
      raise LookupError('an image of an earlier task')
    self.newest = int(tasks.max())
    images = self._images[rows]
    self.hand(images)
    return images

  def hand(self, held):
    """Remembers, and keeps not alive, what holds images of the newest task."""
    self._handed.append(weakref.ref(held))

  def still_held(self):
    return [held() for held in self._handed if held() is not None]


@pytest.fixture(scope='module', params=['abd', 'rehearsal'])
def runs(request, small, digits, tmp_path_factory):
  """A method, a run of it, and one whose earlier tasks' images were gone; what was still held as each task began."""
  settings = with_values(SHORT, {'method': request.param})
  folder = tmp_path_factory.mktemp(request.param)
  gone, held = Gone(digits), []
  begin, feed = task_loop.Run._begin, task_loop.feed

  def beginning(self, task):
    # Whatever has four axes and bytes on the device: a task's images, or a batch of them.
    on_device = [array.shape for array in jax.live_arrays() if array.dtype == np.uint8 and array.ndim == 4]
    held.append((task, gone.still_held(), on_device))
    begin(self, task)

  def feeding(images, *args, **settings):
    batches = feed(images, *args, **settings)
    gone.hand(batches)
    return batches

  whole = train.run(settings, folder / 'whole', digits)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(task_loop.Run, '_begin', beginning)
    patch.setattr(task_loop, 'feed', feeding)
    results = train.run(settings, folder / 'gone', dataclasses.replace(digits, train_images=gone))
  return request.param, folder, (whole, results), held


def test_a_run_whose_earlier_images_are_gone_ends_as_one_that_has_them(runs):
  _, folder, (whole, results), _ = runs
  assert results.accuracy_matrix == whole.accuracy_matrix
  chex.assert_trees_all_equal(final_states(folder / 'gone'), final_states(folder / 'whole'))


def test_images_that_are_gone_are_missed(digits):
  sequence = TaskSequence(dataclasses.replace(digits, train_images=Gone(digits)), 3, num_classes=6, seed=SHORT.seed)
  sequence.train(0)
  sequence.train(1)
  sequence.train(1)  # as often as the task itself needs them
  for ask in (lambda: sequence.train(0), lambda: sequence.train(2, cumulative=True)):  # as the upper bound does
    with pytest.raises(LookupError, match='an image of an earlier task'):
      ask()


def test_no_image_of_a_task_is_held_when_the_next_begins(runs):
  *_, held = runs
  assert [task for task, *_ in held] == [0, 1, 2]
  assert all(not hosts and not devices for _, hosts, devices in held), held


def test_checkpoints_and_files_hold_no_training_image_beyond_the_coreset(runs, digits):
  method, folder, (whole, _), _ = runs
  images = images_of(digits)
  kept = list(stored_images.kept_arrays(folder / 'whole'))
  assert len(kept) == 2 + (2 if method == 'abd' else 0)  # two checkpoints, and what was dreamed before two tasks
  for where, arrays in kept:
    found = stored_images.find(arrays, images, digits.mean, digits.std)
    if method == 'abd' or 'checkpoint' not in where:
      assert found == {}, where
    else:
      assert set(found) == {"['coreset']['images']"} and len(found["['coreset']['images']"]) == 30
  assert whole.memory_held['images'] == (0 if method == 'abd' else 30)


def test_a_finished_run_is_searched_and_what_is_found_is_said(runs):
  method, folder, *_ = runs
  said = stored_images.search(read_run(folder / 'whole'))
  # Six classes of digits, none of them blank.
  assert said['searched_for'] > 800 and said['blank'] == 0 and said['arrays'] > 20
  if method == 'abd':
    assert said['found'] == {} and said['allowed'] == 0
    assert stored_images.sentence(said).startswith('none of 8') and 'arrays kept' in stored_images.sentence(said)
  else:
    assert set(said['found'].values()) == {30} and len(said['found']) == 2 and said['allowed'] == 30
    assert stored_images.sentence(said).startswith('30 of 8') and 'of 30 allowed' in stored_images.sentence(said)


def test_a_lesson_leaves_nothing_of_its_images_in_memory_or_in_the_model(small, tmp_path):
  images, labels, names = test_learner.lesson(('cat', 'dog'), each=6)
  sought = images.copy()
  model = Learner(**test_learner.TINY)
  model.learn(images, labels, names)
  handed = weakref.ref(images)
  del images
  assert handed() is None
  assert not [array for array in jax.live_arrays() if array.dtype == np.uint8 and array.ndim == 4]
  model.save(tmp_path / 'model')
  known, (_, arrays) = model.classifier, model_files.read(tmp_path / 'model')
  assert stored_images.find(arrays, sought, known.mean, known.std) == {}
