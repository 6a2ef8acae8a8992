"""Cross-validation on training images of half of the tasks: the folds, the choice, and a sweep of the digits."""

import dataclasses
import json

import numpy as np
import pytest

from abd_jax import config, data, sweep, task_loop
from abd_jax.config import with_values
from abd_jax.data.tasks import order_of_1993
from abd_jax.errors import UserError
from abd_jax.results import Results
from abd_jax.sweep import Sweep, Trial

TINY = with_values(
    config.Config(),
    dict(
        method='base', num_tasks=5, seed=1, student='resnet8', batch_size=32, epochs=1, decay_at=(), color_jitter=False,
        flip=False, crop_padding=0,
    ),
)


class Untouchable:
  """Stands in for test images: whatever is done with it fails."""

  def __getattribute__(self, name):
    raise AssertionError(f'a test image was read: {name}')

  def __getitem__(self, rows):
    raise AssertionError('a test image was read')

  def __len__(self):
    raise AssertionError('a test image was counted')

  __array__ = __iter__ = __len__


@pytest.fixture(scope='module')
def dataset():
  digits = data.load('digits')
  # Two bits of every training image say which it is.
  images = digits.train_images.copy()
  images[:, 0, 0, 0], images[:, 0, 1, 0] = np.divmod(np.arange(len(images)), 256)
  return dataclasses.replace(digits, train_images=images, test_images=Untouchable(), test_labels=Untouchable())


@pytest.fixture(scope='module')
def folds(dataset):
  return sweep.folds_of(dataset, data.TaskSequence(dataset, 5, seed=1), 3, 1)


def rows_in(images):
  return images[:, 0, 0, 0].astype(int) * 256 + images[:, 0, 1, 0]


def test_folds_deal_the_first_half_of_the_tasks_out_evenly(dataset, folds):
  first_half = np.flatnonzero(np.isin(dataset.train_labels, data.class_order(10, 1)[:4]))
  held = [rows_in(fold.test_images) for fold in folds]
  np.testing.assert_array_equal(np.sort(np.concatenate(held)), first_half)  # each held out once
  for fold, its_held in zip(folds, held, strict=True):
    np.testing.assert_array_equal(np.sort(np.concatenate([its_held, rows_in(fold.train_images)])), first_half)
  counts = [np.bincount(fold.test_labels, minlength=4) for fold in folds]
  assert np.ptp(counts, axis=0).max() <= 1 and np.min(counts) > 40  # a class has 143 training images or so


def test_folds_keep_labels_names_and_the_order_of_classes(dataset, folds):
  order = data.class_order(10, 1)
  for fold in folds:
    for images, labels in ((fold.train_images, fold.train_labels), (fold.test_images, fold.test_labels)):
      old = dataset.train_labels[rows_in(images)]
      assert [fold.class_names[label] for label in labels] == [dataset.class_names[label] for label in old]
    run_order = data.TaskSequence(fold, 2, seed=1).order
    assert [fold.class_names[label] for label in run_order] == [str(digit) for digit in order[:4]]


def test_too_few_tasks_or_images_are_refused(dataset):
  with pytest.raises(UserError, match='--num_tasks=2: a sweep learns half of the tasks, which must be two at least'):
    sweep.folds_of(dataset, data.TaskSequence(dataset, 2, seed=1), 3, 1)
  with pytest.raises(UserError, match='--folds=200: class . has 1.. training images.'):
    sweep.folds_of(dataset, data.TaskSequence(dataset, 5, seed=1), 200, 1)


def test_grids_are_the_papers_or_ones_own():
  assert [len(values) for values in sweep.grids_of(list(sweep.GRIDS)).values()] == [3, 3, 4, 5, 5, 3, 3]
  assert set(config.as_dict(config.Config())) >= set(sweep.GRIDS)
  own = sweep.grids_of(['finetune_weight'], ['learning_rate=0.1,1', 'epochs=3'])
  assert own == {'finetune_weight': (0.01, 0.1, 1.0), 'learning_rate': (0.1, 1.0), 'epochs': (3,)}


@pytest.mark.parametrize('names, own, sentence', [
    (['epochs'], [], '--hyperparameters=epochs is not one of content_weight'),
    ([], ['color_jitter=1'], '--grid=color_jitter=1: color_jitter is no flag that takes a number and can be swept.'),
    ([], ['num_tasks=4,10'], '--grid=num_tasks=4,10: num_tasks is no flag that takes a number and can be swept.'),
    ([], ['epochs=1;2'], '--grid=epochs=1;2 is not written NAME=VALUE,VALUE,...'),
    ([], [], '--hyperparameters names none'),
])
def test_grids_that_are_none_are_refused(names, own, sentence):
  with pytest.raises(UserError) as refusal:
    sweep.grids_of(names, own)
  assert sentence in str(refusal.value)


def test_one_at_a_time_or_every_combination():
  grids = {'kd_weight': (1.0, 2.0), 'finetune_weight': (0.5, 1.0)}
  assert Sweep(TINY, grids).settings() == [
      {'kd_weight': 1.0}, {'kd_weight': 2.0}, {'finetune_weight': 0.5}, {'finetune_weight': 1.0}
  ]
  assert len(Sweep(TINY, grids, full=True).settings()) == 4
  assert Sweep(TINY, grids).changes({'kd_weight': 1.0, 'finetune_weight': 0.5}) == {'finetune_weight': 0.5}


def test_the_best_mean_is_chosen_and_of_equals_the_configs_own():
  plan = Sweep(TINY, {'kd_weight': (0.5, 1.0, 2.0), 'finetune_weight': (1.0, 3.0)})
  trials = [
      Trial({}, (50.0, 60.0), (70.0, 70.0)),  # mean 55, spread 5
      Trial({'kd_weight': 0.5}, (55.0, 55.0), (70.0, 70.0)),  # no better
      Trial({'kd_weight': 2.0}, (10.0, 90.0), (70.0, 70.0)),
      Trial({'finetune_weight': 3.0}, (56.0, 56.0), (71.0, 73.0)),
  ]
  assert plan.chosen(trials) == {'kd_weight': 1.0, 'finetune_weight': 3.0}
  table = plan.markdown_table(trials)
  assert '| kd_weight | 1.0 | 55.0 ± 5.0 | 70.0 ± 0.0 | yes |' in table
  assert '| kd_weight | 2.0 | 50.0 ± 40.0 | 70.0 ± 0.0 |  |' in table
  assert '| finetune_weight | 3.0 | 56.0 ± 0.0 | 72.0 ± 1.0 | yes |' in table
  full = Sweep(TINY, {'kd_weight': (1.0, 2.0), 'finetune_weight': (1.0,)}, full=True)
  assert full.chosen(trials) == {'kd_weight': 1.0, 'finetune_weight': 1.0}
  # The best of all four is off both axes, on which 1.0 is best.
  both = Sweep(TINY, {'kd_weight': (1.0, 2.0), 'finetune_weight': (1.0, 3.0)}, full=True)
  changes = {'kd_weight': 2.0}, {'finetune_weight': 3.0}, {'kd_weight': 2.0, 'finetune_weight': 3.0}
  scores = zip(({}, *changes), (50.0, 40.0, 40.0, 60.0), strict=True)
  assert both.chosen([Trial(values, (score,), (score,)) for values, score in scores]) == changes[2]


def test_a_sweep_reads_no_test_image_and_repeats_no_finished_run(dataset, tmp_path, monkeypatch):
  told = with_values(TINY, {'workdir': str(tmp_path), 'class_order': 'numpy1993'})
  plan = Sweep(told, {'learning_rate': (0.1, 1e-6), 'kd_weight': (1.0,)})
  begun, learn = [], task_loop.Run._learn
  monkeypatch.setattr(task_loop.Run, '_learn', lambda run, *rest: (begun.append(run._workdir), learn(run, *rest)))
  trials = plan.run(dataset)
  folder = tmp_path / 'sweep' / 'base' / 'seed1'
  assert [trial.values for trial in trials] == [{}, {'learning_rate': 1e-6}]
  assert {path.parent.name for path in begun} == {'as_told', 'learning_rate=1e-06'} and len(begun) == 2 * 3 * 2
  assert plan.chosen(trials) == {'learning_rate': 0.1, 'kd_weight': 1.0}  # without a step it learns nothing
  stored = json.loads((folder / 'sweep.json').read_text())
  assert stored['chosen'] == plan.chosen(trials) and len(stored['trials'][0]['final_accuracies']) == 3
  met = Results.load(folder / 'as_told' / 'fold1').class_names
  assert met == [str(digit) for digit in order_of_1993(10)[:4]]
  # One fold of one value is lost: it alone is run again, to the same end.
  begun.clear()
  (folder / 'as_told' / 'fold2' / 'results.json').rename(tmp_path / 'lost.json')
  for path in sorted((folder / 'as_told' / 'fold2' / 'checkpoints').rglob('*'), reverse=True):
    path.rmdir() if path.is_dir() else path.unlink()
  assert plan.run(dataset) == trials
  assert set(begun) == {folder / 'as_told' / 'fold2'}
