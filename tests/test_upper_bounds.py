"""Omega: which upper bound a run is held against, and which is refused."""

import dataclasses
import json

import pytest

from abd_jax import config, data, experiment, train
from abd_jax.config import with_values
from abd_jax.errors import UserError
from abd_jax.report import upper_bounds
from abd_jax.results import Results

TINY = with_values(
    config.Config(),
    dict(
        method='base', num_classes=4, num_tasks=2, student='resnet8', batch_size=32, epochs=1, decay_at=(),
        color_jitter=False, flip=False, crop_padding=0, top_k=2, seeds=(0,),
    ),
)


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  """Where an upper bound was trained in a command of its own."""
  folder = tmp_path_factory.mktemp('runs')
  [bound] = experiment.run_all(with_values(TINY, dict(method='upper_bound', workdir=str(folder))))
  assert bound.omega == 1.0
  return folder


@pytest.fixture(scope='module')
def base(workdir):
  """A run made beside it, later."""
  [results] = experiment.run_all(with_values(TINY, dict(workdir=str(workdir))))
  return results


def test_a_stored_upper_bound_is_found_beside_the_method(workdir, base):
  bound = Results.load(workdir / 'upper_bound' / 'seed0')
  expected = sum(a / b for a, b in zip(base.accuracy_after_task, bound.accuracy_after_task, strict=True)) / 2
  assert base.omega == pytest.approx(expected) and base.omega > 0
  assert Results.load(workdir / 'base' / 'seed0') == base


def test_a_stored_upper_bound_is_found_beside_an_ablations_folder(workdir):
  ablation = with_values(TINY, dict(workdir=str(workdir / 'ablation')))
  dataset = data.load('digits')
  assert upper_bounds.stored(ablation, dataset, train.tasks_for(ablation, dataset)).method == 'upper_bound'


def test_accuracies_are_top_k(base):
  # After task 1 two classes have been seen: the label is always among the two highest.
  assert base.top_k == 2 and base.accuracy_matrix[0][0] == base.accuracy_matrix_local[1][1] == 100.0


def test_top_k_of_no_more_classes_is_refused():
  with pytest.raises(UserError, match='--top_k=4 of 4 classes: every answer would be right.'):
    train.tasks_for(with_values(TINY, {'top_k': 4}), data.load('digits'))


def test_a_named_upper_bound_serves_every_seed_of_its_own(workdir):
  named = with_values(TINY, dict(upper_bound=str(workdir / 'upper_bound' / 'seed{seed}'), workdir='elsewhere'))
  dataset = data.load('digits')
  assert upper_bounds.stored(named, dataset, train.tasks_for(named, dataset)).method == 'upper_bound'
  named = with_values(named, {'seed': 1})
  with pytest.raises(UserError, match='seed1/results.json cannot be read|seed1 cannot be read'):
    upper_bounds.stored(named, dataset, train.tasks_for(named, dataset))


@pytest.mark.parametrize('values, why', [
    ({'seed': 1}, 'it meets the classes in another order, that of seed 0 and --class_order=auto'),
    ({'num_classes': 6, 'num_tasks': 3}, 'its num_classes is 4, not 6'),
    ({'num_tasks': 4}, 'it was not trained on 1 classes'),
    ({'num_tasks': 3, 'first_task_classes': 2}, 'it was not trained on 3 classes'),
    ({'class_order': 'labels'}, 'it meets the classes in another order, that of seed 0 and --class_order=auto'),
    ({'student': 'resnet20'}, 'its student is resnet8, not resnet20'),
    ({'epochs': 2}, 'its epochs is 1, not 2'),
    ({'flip': True}, 'its flip is False, not True'),
    ({'top_k': 1}, 'its top_k is 2, not 1'),
])
def test_the_upper_bound_of_another_benchmark_is_refused(workdir, values, why):
  bound = workdir / 'upper_bound' / 'seed0'
  other = with_values(TINY, dict(values, upper_bound=str(bound), workdir=str(workdir)))
  dataset = data.load('digits')
  tasks = train.tasks_for(other, dataset)
  with pytest.raises(UserError) as refusal:
    upper_bounds.stored(other, dataset, tasks)
  assert str(refusal.value) == f'--upper_bound={bound} is no upper bound of base with seed {other.seed}: {why}.'
  # Where nobody named it, it is passed over.
  assert upper_bounds.stored(with_values(other, {'upper_bound': '', 'seed': 0}), dataset, tasks) is None


def test_a_first_task_of_its_own_size_is_held_against_the_stages_it_has(workdir, base):
  run = dataclasses.replace(base, omega=None, num_tasks=1, accuracy_after_task=[30.0])
  bound = Results.load(workdir / 'upper_bound' / 'seed0')
  assert upper_bounds.with_omega(run, [bound]).omega == 30.0 / bound.accuracy_after_task[1]
  run = dataclasses.replace(base, omega=None, num_tasks=2, config={**base.config, 'first_task_classes': 3})
  assert run.classes_seen == [3, 4] and upper_bounds.with_omega(run, [bound]) == run


def test_a_run_of_another_method_is_no_upper_bound(workdir, base):
  other = with_values(TINY, dict(upper_bound=str(workdir / 'base' / 'seed0')))
  dataset = data.load('digits')
  with pytest.raises(UserError, match='its method is base'):
    upper_bounds.stored(other, dataset, train.tasks_for(other, dataset))


def test_a_diverged_upper_bound_gives_no_omega(workdir, base):
  bound = dataclasses.replace(Results.load(workdir / 'upper_bound' / 'seed0'), accuracy_after_task=[0.0, 50.0])
  assert json.loads(json.dumps(upper_bounds.with_omega(base, [bound]).omega)) is None
