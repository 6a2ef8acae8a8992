"""Distances against arithmetic and known distributions, and the two commands on a run small enough to make here."""

import dataclasses
import json
import shutil
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abd_jax import data, diagnose, diagnostics, figures, finished, metrics_log, states, stored_images, train
from abd_jax.config import with_values
from abd_jax.errors import UserError
from abd_jax.methods.generative import replay_vae
from abd_jax.methods.interface import OWN, Shapes
from tests.documents import ROOT, shown
from tests.small_runs import TINY

# The definitions.


def test_mid_is_the_distance_of_the_means_in_standard_deviations_of_the_reference():
  # First feature: means 1 and 7, std of {0, 2} 1: 6.  Second: means 4 and 20, std of {2, 6} 2: 8.  6, 8: 10.
  reference, sample = np.array([[0.0, 2], [2, 6]]), np.array([[7.0, 20], [7, 20], [7, 20]])
  assert diagnostics.mean_image_distance(reference, sample) == (pytest.approx(10.0), 0)


def test_a_feature_that_hardly_moves_is_alive():
  # Means 0.05 and 1.05, standard deviation 0.05: 20.
  assert diagnostics.mean_image_distance(np.array([[0.0], [0.1]]), np.array([[1.05]])) == (pytest.approx(20), 0)


def test_dead_features_are_left_out_of_mid_and_counted():
  # The mean of three 0.1 is not 0.1 in floating point, so their std is not 0.
  reference = np.array([[0.0, 0.1, 5], [2, 0.1, 5], [1, 0.1, 5]])
  sample = reference + np.array([0.0, 3, 4])
  assert diagnostics.mean_image_distance(reference, sample) == (0.0, 2)


def test_mmd_of_four_numbers():
  # Within {0, 2} the one pair has kernel e^-2 at sigma 1, within {1, 1} it has 1; across all four have e^-0.5.
  first, second = np.array([[0.0], [2]]), np.array([[1.0], [1]])
  expected = np.exp(-2) + 1 - 2 * np.exp(-0.5)
  assert diagnostics.maximum_mean_discrepancy(first, second, 1.0) == pytest.approx(expected, rel=1e-12)


def test_mmd_is_zero_in_the_mean_for_one_distribution_and_not_for_two():
  rng = np.random.default_rng(0)
  same, other = [], []
  for _ in range(200):
    first, second = rng.normal(size=(2, 20, 3))
    bandwidth = diagnostics.median_distance(first, second)
    same.append(diagnostics.maximum_mean_discrepancy(first, second, bandwidth))
    other.append(diagnostics.maximum_mean_discrepancy(first, second + 1, bandwidth))
  # The biased estimate would be 2 / 20 (1 - mean kernel), some .06, above it.
  assert abs(np.mean(same)) < 4 * np.std(same) / np.sqrt(200) < 0.01
  assert min(same) < 0 and np.mean(other) > 0.1


def test_the_median_distance_is_over_pairs_of_all_populations():
  # 0, 1 and 5: distances 1, 4 and 5.
  assert diagnostics.median_distance(np.array([[0.0], [1]]), np.array([[5.0]])) == pytest.approx(4)


def test_populations_of_other_features_are_refused():
  for measure in (diagnostics.mean_image_distance, diagnostics.median_distance, diagnostics.embed):
    with pytest.raises(AssertionError):
      measure(np.zeros((4, 3)), np.zeros((4, 2)))


def test_drift_is_relative_to_where_the_class_was():
  before = np.array([[3.0, 4], [3, 4], [0, 1], [9, 9]])
  after = np.array([[3.0, 4], [3, 9], [0, 0], [0, 0]])
  # Class 0: its mean moved by 2.5 of 5; class 1 by 1 of 1; class 2 has no image; class 3 is not asked about.
  drift = diagnostics.feature_drift(before, after, np.array([0, 0, 1, 3]), 3)
  np.testing.assert_allclose(drift, [0.5, 1, np.nan])


def test_tsne_keeps_apart_what_is_apart():
  rng = np.random.default_rng(0)
  near, far = diagnostics.embed(rng.normal(size=(20, 5)), 50 + rng.normal(size=(12, 5)))
  chex.assert_shape(near, (20, 2))
  chex.assert_shape(far, (12, 2))
  between = np.linalg.norm(near[:, None] - far[None], axis=-1)
  within = np.linalg.norm(near[:, None] - near[None], axis=-1)
  assert between.mean() > 1.5 * within.mean()


def test_confusion_is_the_share_of_each_tasks_images():
  labels, predictions = np.array([0, 0, 1, 1, 2]), np.array([0, 1, 3, 0, 3])
  shares = diagnostics.confusion_by_task(predictions, labels, (0, 0, 1, 1))
  np.testing.assert_allclose(shares, [[0.75, 0.25], [0, 1]])


def test_calibration_error_is_weighted_by_the_bins_images():
  confidences, correct = np.array([0.2, 0.9, 0.9, 1.0, 0.5]), np.array([True, True, False, True, False])
  found = diagnostics.calibration(confidences, correct, num_bins=2)
  # Lower bin, 0.5 in it: accuracy 1/2, confidence .35; upper: 2/3, 2.8/3.  (2 (.15) + 3 (.8/3)) / 5.
  assert found['ece'] == pytest.approx(0.22)
  assert [one['count'] for one in found['bins']] == [2, 3]
  assert found['bins'][1] == {'confidence': pytest.approx(2.8 / 3), 'accuracy': pytest.approx(2 / 3), 'count': 3}
  assert diagnostics.calibration(confidences, correct, 10)['bins'][2] == {
      'confidence': None, 'accuracy': None, 'count': 0
  }


def test_class_frequencies_and_confidences_of_synthetic_images():
  shares, means = diagnostics.class_frequencies(np.array([2, 0, 2, 2]), np.array([0.5, 1.0, 0.7, 0.9]), 3)
  np.testing.assert_allclose(shares, [0.25, 0, 0.75])
  np.testing.assert_allclose(means, [1, np.nan, 0.7])


def test_inversion_terms_are_those_of_the_task():
  lines = [
      {'at': [1, 0, 100], 'task': 2, 'phase': 'inversion', 'epoch': 1, 'steps': 100, 'loss': 3.0, 'content': 2.0},
      {'at': [1, 1, 9], 'task': 2, 'phase': 'learn', 'epoch': 1, 'steps': 9, 'loss': 1.0},
      {'at': [2, 0, 0], 'task': 2, 'accuracy': 50.0},
      {'at': [2, 0, 0], 'rollback': 1, 'reason': 'Task 3, inversion, step 3: loss is nan.'},
      {'at': [2, 0, 100], 'task': 3, 'phase': 'inversion', 'epoch': 1, 'steps': 100, 'loss': 4.0, 'content': 1.0},
  ]
  assert metrics_log.inversion_terms(lines, 2) == [{'step': 100, 'loss': 3.0, 'content': 2.0}]


def test_the_nearest_other_is_not_the_image_itself_but_may_be_its_equal():
  references = np.array([[0.0], [0], [3], [7]])
  distances, rows = diagnostics.nearest_others(np.array([[4.0]]), references)
  assert (distances.tolist(), rows.tolist()) == ([1.0], [2])
  distances, rows = diagnostics.nearest_others(references, references, np.arange(4))
  assert (distances.tolist(), rows.tolist()) == ([0.0, 0.0, 3.0, 4.0], [1, 0, rows[2], 2]) and rows[2] in (0, 1)


def test_memorised_images_are_told_from_new_ones():
  training = np.random.default_rng(0).uniform(size=(200, 4))
  test = np.random.default_rng(1).uniform(size=(100, 4))
  copies, rows, others = diagnostics.memorisation(training[:50] + 1e-6, test, training, np.arange(80))
  assert copies['share_nearer'] == 1 and copies['median_synthetic'] < 1e-5 < copies['median_real']
  np.testing.assert_array_equal(rows, np.arange(50))
  assert not np.any(others == rows)
  # Fresh ones of the same distribution are as near as training images are to each other.
  fresh, *_ = diagnostics.memorisation(test, test, training, np.arange(80))
  assert fresh['share_nearer'] == fresh['share_nearer_test'] and 0.2 < fresh['share_nearer'] < 0.6
  assert fresh['median_synthetic'] == pytest.approx(fresh['median_real'], rel=0.2)


# The commands.

TWO_TASKS = with_values(TINY, dict(stop_after_task=2))


@pytest.fixture(scope='module')
def dataset():
  return data.load('digits')


@pytest.fixture(scope='module')
def abd(dataset, tmp_path_factory):
  """The folder of a run, a diagnosis in it."""
  workdir = tmp_path_factory.mktemp('runs') / 'abd' / 'seed0'
  train.run(TWO_TASKS, workdir, dataset)
  process = subprocess.run(
      [sys.executable, '-m', 'abd_jax.diagnose', workdir, '--audit', '--images=60'],
      cwd=ROOT, capture_output=True, text=True, timeout=120,
  )
  assert process.returncode == 0, process.stderr
  assert f'{workdir / "diagnostics.json"}: MID real_old to real_new ' in process.stdout
  return workdir


def test_a_diagnosis_says_everything_of_a_method_that_dreams(abd, dataset):
  said = json.loads((abd / 'diagnostics.json').read_text())
  assert said['after_task'] == 2 and said['flags']['method'] == 'abd' and 'data_dir' not in said['flags']
  assert said['populations'] == {'real_old': 60, 'real_new': 60, 'synthetic': 60}
  pairs = {'real_old_real_new', 'real_old_synthetic', 'real_new_synthetic'}
  for distances in (said, said['under_teacher']):
    assert distances['mid'].keys() == distances['mmd'].keys() == pairs and min(distances['mid'].values()) > 0
  assert said['mid'] != said['under_teacher']['mid']
  assert 0 <= said['dead_features'] < 64
  assert {name: len(points) for name, points in said['tsne'].items()} == said['populations']
  np.testing.assert_allclose(np.sum(said['confusion_by_task'], axis=1), [1, 1], rtol=1e-4)
  sizes = train.tasks_for(TWO_TASKS, dataset).test_sizes()
  assert sum(one['count'] for one in said['calibration']['bins']) == sum(sizes[:2])
  names = {dataset.class_names[label] for label in train.tasks_for(TWO_TASKS, dataset).order[:2]}
  assert said['synthetic']['class_frequencies'].keys() == said['feature_drift'].keys() == names
  assert sum(said['synthetic']['class_frequencies'].values()) == pytest.approx(1)
  assert [line['step'] for line in said['inversion_terms']] == [3]
  assert {'content', 'diversity', 'statistics', 'smoothness', 'loss'} < said['inversion_terms'][0].keys()
  assert said['memorisation'].keys() == {'pixels', 'features'}
  for name in ('mid', 'mmd', 'tsne', 'confusion'):
    assert (abd / 'diagnostics' / f'{name}.png').exists() and (abd / 'diagnostics' / f'{name}.pdf').exists()
  assert (abd / 'memorisation.png').exists()


def test_what_is_diagnosed_is_the_run_as_it_ended(abd):
  run, said = diagnose.read_run(abd), json.loads((abd / 'diagnostics.json').read_text())
  # The accuracy that the run measured is on the diagonal of its confusion, and more: classes of a task are one there.
  row = [json.loads(line) for line in (abd / 'metrics.jsonl').read_text().splitlines()][-1]['accuracy_by_task']
  assert all(100 * said['confusion_by_task'][i][i] >= row[i] - 1e-2 for i in range(2))
  bins = [one for one in said['calibration']['bins'] if one['count']]
  accuracy = sum(one['count'] * one['accuracy'] for one in bins) / sum(one['count'] for one in bins)
  assert 100 * accuracy == pytest.approx(json.loads((abd / 'results.json').read_text())['final_accuracy'], abs=0.01)
  assert any(jax.tree.leaves(jax.tree.map(lambda a, b: np.any(a != b), run.student.params, run.teacher.params)))
  images = diagnose.synthetic_images(run, 7)
  chex.assert_shape(images, (7, 8, 8, 1))
  assert np.isfinite(images).all() and images.std() > 0


def test_image_sets_and_replayed_images_are_synthetic_images_too(abd):
  run = diagnose.read_run(abd)
  settings = with_values(run.config, dict(inversion='images', image_jitter=0, image_flip=False))
  kept = jnp.arange(5.0)[:, None, None, None] * jnp.ones((5, 8, 8, 1))
  images = diagnose.synthetic_images(
      dataclasses.replace(run, config=settings, generator=states.ImageSetState(kept, None)), 40
  )
  assert set(np.unique(images)) == {0, 1, 2, 3, 4}
  # A decoder of zeros makes grey images.
  shapes = jax.eval_shape(replay_vae(Shapes((8, 8, 1), 5, 10, 64)), jax.random.key(0))
  vae = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), shapes)
  teacher = run.teacher.replace(params={**run.teacher.params, OWN: vae})
  dgr = dataclasses.replace(
      run, config=with_values(run.config, dict(method='dgr')), teacher=teacher, generator=None
  )
  images = diagnose.synthetic_images(dgr, 3)
  np.testing.assert_array_equal(images, np.full((3, 8, 8, 1), 0.5))


def test_a_method_without_synthetic_images_has_none(abd, tmp_path):
  # As a run of base leaves it: no checkpoint holds a teacher.
  for name in ('results.json', 'metrics.jsonl'):
    shutil.copy(abd / name, tmp_path)
  (tmp_path / 'flags.txt').write_text((abd / 'flags.txt').read_text().replace('--method=abd', '--method=base'))
  newest = max((abd / 'checkpoints').iterdir(), key=lambda path: int(path.name))
  shutil.copytree(newest, tmp_path / 'checkpoints' / newest.name)
  run = dataclasses.replace(diagnose.read_run(tmp_path), lines=[])
  assert run.teacher is run.generator is None
  said, picture = diagnose.diagnose(run, count=20, audit=True)
  known = {pair for pair, distance in said['mid'].items() if distance is not None}
  assert known == {'real_old_real_new'} and len(said['mid']) == 3
  assert said['populations']['synthetic'] is said['tsne']['synthetic'] is said['synthetic'] is None
  assert said['inversion_terms'] is said['feature_drift'] is said['under_teacher'] is picture is None
  assert 'memorisation' not in said
  figures.draw_distances([[[said]]], 'mid')
  figures.draw_tsne([[[said]]])


@pytest.mark.parametrize('change, sentence', [
    (lambda folder: (folder / 'results.json').unlink(), 'results.json'),
    (lambda folder: (folder / 'flags.txt').unlink(), 'flags.txt cannot be read: No such file'),
    (lambda folder: _shorten(folder, 1), 'has learned one task'),
    (lambda folder: _shorten(folder, 3), 'goes on beyond its results.json'),
    (lambda folder: (folder / 'checkpoints').rename(folder / 'elsewhere'), 'holds no checkpoints of a run'),
    (lambda folder: _rename(folder, 'resnet20'), 'names --student=resnet20, and the checkpoints hold another'),
    (lambda folder: _forge(folder), 'cannot be read .checkpoint [0-9]+ is not what was written.'),
])
def test_what_is_no_finished_run_is_said_so(abd, tmp_path, change, sentence):
  for name in ('results.json', 'flags.txt', 'metrics.jsonl'):
    (tmp_path / name).write_bytes((abd / name).read_bytes())
  (tmp_path / 'checkpoints').symlink_to(abd / 'checkpoints')
  change(tmp_path)
  with pytest.raises(UserError, match=sentence):
    diagnose.read_run(tmp_path)


def test_a_run_on_other_data_than_there_is_now_is_not_diagnosed(abd, dataset, monkeypatch):
  other = dataclasses.replace(dataset, class_names=dataset.class_names[::-1])
  monkeypatch.setattr(finished, 'load', lambda *arguments: other)
  with pytest.raises(UserError, match=f'^{abd} learned from another digits than the one that is there now.$'):
    diagnose.read_run(abd)


def test_a_damaged_file_of_arrays_is_named_by_the_search(abd, tmp_path):
  (tmp_path / 'checkpoints').symlink_to(abd / 'checkpoints')
  (tmp_path / 'synthetic_task2.npz').write_bytes(b'PK')
  with pytest.raises(UserError, match='synthetic_task2.npz cannot be read as an npz file of plain arrays'):
    list(stored_images.kept_arrays(tmp_path))


def _shorten(folder, tasks):
  results = json.loads((folder / 'results.json').read_text())
  matrix = [[50.0] * (n + 1) + [None] * (tasks - n - 1) for n in range(tasks)]
  changes = {'num_tasks': tasks, 'class_order': list(range(tasks)), 'class_names': []}
  changes |= {'accuracy_after_task': [50.0] * tasks, 'final_accuracy': 50.0}
  changes['config'] = {**results['config'], 'num_tasks': tasks}
  changes |= dict.fromkeys(('accuracy_matrix', 'accuracy_matrix_local'), matrix)
  (folder / 'results.json').write_text(json.dumps({**results, **changes}))


def _rename(folder, student):
  told = (folder / 'flags.txt').read_text()
  (folder / 'flags.txt').write_text(told.replace('--student=resnet8\n', f'--student={student}\n'))


def _forge(folder):
  """Says another memory in the record of each checkpoint."""
  kept = (folder / 'checkpoints').resolve()
  (folder / 'checkpoints').unlink()
  shutil.copytree(kept, folder / 'checkpoints')
  for path in (folder / 'checkpoints').glob('*/record/metadata'):
    path.write_text(json.dumps({**json.loads(path.read_text()), 'peak_memory_bytes': 1}))


def test_figures_are_drawn_from_what_there_is_and_the_rest_is_asked_for(abd, tmp_path, capsys):
  results, diagnosed = figures.read(abd.parent.parent)
  sentences = figures.draw_all(results, diagnosed, tmp_path / 'one')
  assert 'Figure 2 needs diagnostics.json of deep_inversion: python -m abd_jax.diagnose' in sentences[0]
  assert {path.name for path in (tmp_path / 'one').iterdir()} == {
      f'figure_{name}.{kind}' for name in 'AD' for kind in ('png', 'pdf')
  }
  other = dict(diagnosed[0], flags={**diagnosed[0]['flags'], 'method': 'deep_inversion'})
  assert figures.draw_all([], [*diagnosed, other], tmp_path / 'two')[-1].startswith('Figure D needs results.json')
  assert {path.name for path in (tmp_path / 'two').iterdir()} == {
      f'figure_{name}.{kind}' for name in '2BC' for kind in ('png', 'pdf')
  }


def test_panels_are_benchmarks_by_methods_by_seeds(abd):
  said = figures.read(abd / 'diagnostics.json')[1][0]

  def of(method, seed, **flags):
    return dict(said, flags={**said['flags'], 'method': method, 'seed': seed, **flags})

  early = of('abd', 1)
  early['flags'].pop('image_jitter')  # as a version without that flag wrote it
  panels = figures.panels_of([early, of('abd', 0), of('deep_inversion', 0), of('abd', 0, epochs=9)])
  told = [[[(one['flags']['method'], one['flags']['seed']) for one in column] for column in row] for row in panels]
  assert sorted(told, key=len) == [
      [[('abd', 0)]], [[('deep_inversion', 0)], [('abd', 0), ('abd', 1)]]
  ]


COMMITTED = ROOT / 'experiments' / 'results' / 'diagnostics'


def test_a_seed_given_twice_is_refused():
  said = figures.read(COMMITTED / 'cifar100mini20_2_abd_seed0.json')[1]
  with pytest.raises(UserError, match='A seed of abd is given twice: the runs have seeds 0, 0.'):
    figures.panels_of(said + said)


def test_rows_are_named_by_the_flags_in_which_they_depart():
  names = ('cifar100mini20_2_abd_seed0', 'cifar100mini20_2_abd_seed1', 'inversion_2000/cifar100mini20_2_abd_seed1')
  panels = figures.panels_of([one for name in names for one in figures.read(COMMITTED / f'{name}.json')[1]])
  rows = [line.split(' | ')[:2] for line in figures.distance_table(panels).splitlines()[2:]]
  assert rows == [['| abd', '0, 1'], ['| abd (--inversion_steps=2000)', '1']]
  for figure in (figures.draw_distances(panels, 'mid'), figures.draw_tsne(panels)):
    titles = [axes.get_title().replace('\n', ' ') for axes in figure.axes]
    assert titles == ['abd, after task 2', 'abd (--inversion_steps=2000), after task 2']
  panels[1][0][0]['after_task'] = 1
  rows = [line.split(' | ')[0] for line in figures.distance_table(panels).splitlines()[2:]]
  assert rows == ['| abd, after task 2', '| abd (--inversion_steps=2000), after task 1']


@pytest.mark.parametrize('change, objection', [
    (lambda said: said.update(flags=1), 'flags must have a method'),
    (lambda said: said['flags'].update(method=['abd']), 'flags must have a method'),
    (lambda said: said['flags'].update(seed='0'), 'seed in flags, and after_task, must be whole numbers'),
    (lambda said: said.pop('after_task'), 'seed in flags, and after_task, must be whole numbers'),
    (lambda said: said.update(mid=2), 'mid must be numbers, or null, by pair of populations'),
    (lambda said: said.pop('mmd'), 'mmd must be numbers, or null, by pair of populations'),
    (lambda said: said['mid'].update(real_old_synthetic='far'), 'mid must be numbers, or null, by pair'),
    (lambda said: said['under_teacher'].pop('mid'), 'mid must be numbers, or null, by pair of populations'),
    (lambda said: said.update(under_teacher=3), 'mid must be numbers, or null, by pair of populations'),
    (lambda said: said.update(tsne=3), 'tsne must be pairs of numbers, or null, by population'),
    (lambda said: said['tsne'].update(synthetic=[[1, 2], [3]]), 'tsne must be pairs of numbers, or null'),
])
def test_an_edited_diagnostics_is_refused_in_a_sentence(tmp_path, change, objection):
  said = json.loads((COMMITTED / 'cifar100mini20_2_abd_seed0.json').read_text())
  change(said)
  (tmp_path / 'diagnostics.json').write_text(json.dumps(said))
  with pytest.raises(UserError, match=f'diagnostics.json is not a diagnostics.json: {objection}'):
    figures.read(tmp_path / 'diagnostics.json')


def test_distances_that_are_not_known_are_left_out(tmp_path):
  said = json.loads((COMMITTED / 'cifar100mini20_2_abd_seed0.json').read_text())
  said |= {'under_teacher': None, 'mmd': {}, 'tsne': {}, 'mid': {'real_old_synthetic': 4.0}}
  (tmp_path / 'diagnostics.json').write_text(json.dumps(said))
  other = json.loads(json.dumps(said).replace('"abd"', '"deep_inversion"'))
  diagnosed = [*figures.read(tmp_path)[1], other]
  assert figures.distance_table(figures.panels_of(diagnosed)).endswith('| abd | 0 |  | 4.00 |  |  |  |  |\n')
  assert len(figures.draw_all([], diagnosed, tmp_path / 'figures')) == 5


@pytest.mark.parametrize('arguments, sentence', [
    (['{where}/none', '--out={where}/figures'], '{where}/none cannot be read: No such file or directory.'),
    (['~nobody_of_this_name', '--out={where}/figures'], '~nobody_of_this_name is no path: '),
    (['{run}', '--out={where}/file'], '{where}/file cannot be written: File exists.'),
    (['{run}', '--out={where}/file/figures'], '{where}/file/figures cannot be written: Not a directory.'),
    (['{run}', '--out=~nobody_of_this_name'], '--out=~nobody_of_this_name is no path: '),
])
def test_places_that_figures_cannot_come_from_or_go_to_are_said(tmp_path, arguments, sentence):
  (tmp_path / 'file').touch()
  run = ROOT / 'experiments' / 'results' / 'digits_5_abd_seed0.json'
  arguments = [argument.format(where=tmp_path, run=run) for argument in arguments]
  command = [sys.executable, '-m', 'abd_jax.figures', *arguments]
  process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
  assert process.returncode == 2 and process.stderr.startswith(sentence.format(where=tmp_path)), process.stderr


def test_the_readmes_table_is_of_the_committed_figures():
  files = sorted((ROOT / 'experiments' / 'results' / 'diagnostics').glob('cifar100mini20_2_*.json'))
  diagnosed = [one for file in files for one in figures.read(file)[1]]
  assert shown('diagnostics').strip() == figures.distance_table(figures.panels_of(diagnosed)).strip()


def test_bars_are_means_over_seeds(abd):
  said = figures.read(abd / 'diagnostics.json')[1][0]
  of = lambda new, synthetic: dict(said, mid={'real_old_real_new': new, 'real_old_synthetic': synthetic})
  axes = figures.draw_distances([[[of(1.0, 5.0), of(3.0, 5.0)]]], 'mid').axes[0]
  assert [bar.get_height() for bar in axes.patches] == [2.0, 5.0]
