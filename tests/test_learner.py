"""Classes learned lesson after lesson in a few steps: what is kept, what is refused, what is exported."""

import dataclasses
import functools
import subprocess
import sys

import chex
import jax
import numpy as np
import pytest

from abd_jax import interop, learner, model_files, models, programs, stopping, train
from abd_jax.classifier import capacity_for, setting_names
from abd_jax.data.sources import channel_statistics
from abd_jax.errors import UserError
from abd_jax.learner import Learner
from tests import golden_figures
from tests.small_runs import Stem

TINY = dict(
    student='resnet8', image_size=8, batch_size=4, epochs=2, decay_at=(1,), inversion_steps=2, inversion_batch_size=4,
    color_jitter=False, flip=False, crop_padding=1,
)
LESSONS = (('cat', 'dog'), tuple(f'beetle {i}' for i in range(15)), ('cow', 'elk'))
EACH = (5, 1, 5)  # images a class


def lesson(names, each=3, seed=0):
  """Images of as many classes as names, labels, and the names."""
  labels = np.repeat(np.arange(len(names)), each)
  images = np.random.default_rng(seed).integers(0, 256, (len(labels), 8, 8, 3)).astype(np.uint8)
  return images, labels, names


@pytest.fixture(scope='module')
def weights():
  """A ResNet-8 of five classes, as arrays of the authors' code."""
  return golden_figures.below(golden_figures.load('golden_resnet8'), 'teacher/')


IMAGES = lesson(('any',), each=10, seed=9)[0]


@pytest.fixture(scope='module')
def taught(tmp_path_factory):
  """What was known after each lesson, the model saved and loaded before each; and the programs used."""
  folder = tmp_path_factory.mktemp('taught') / 'model'
  stages, programs, build = [], [], train.programs_for
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(train, 'programs_for', lambda *args: programs.append(build(*args)) or programs[-1])
    model = Learner(**TINY)
    for i, names in enumerate(LESSONS):
      model.learn(*lesson(names, EACH[i], seed=i))
      stages.append((model.classifier, model.predict(IMAGES)))
      model.save(folder)
      model = Learner.load(folder)
    stages.append((model.classifier, model.predict(IMAGES)))
    yield folder, stages, programs


def test_a_lesson_adds_its_classes_to_those_known(taught):
  _, stages, _ = taught
  assert [known.class_names for known, _ in stages[:2]] == [LESSONS[0], LESSONS[0] + LESSONS[1]]
  assert stages[-1][0].tasks == LESSONS
  for known, said in stages:
    assert said.probabilities.shape == (10, len(known.class_names))
    np.testing.assert_allclose(said.probabilities.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(said.labels, said.probabilities.argmax(axis=1))
    assert said.names == tuple(known.class_names[label] for label in said.labels)


def test_steps_are_traced_anew_only_when_the_head_grows(taught):
  # Heads of 16, 32 and 32 classes for 2, 17 and 19. The last two lessons, of 15 and 10 images, both fill 16 rows.
  *_, programs = taught
  assert [p.networks.num_classes for p in programs] == [16, 32, 32]
  assert programs[1].learn == programs[2].learn and programs[1].invert is programs[2].invert
  traces = programs[2].traces()
  assert traces == {
      'learn: first_loss': 0, 'learn: abd_loss': 1, 'invert': 1, 'preview': 1, 'evaluate': 0, 'features': 1,
      'synthetic_features': 1,
  }


def test_images_are_standardised_as_the_first_lesson_s_were(taught):
  _, stages, _ = taught
  mean, std = channel_statistics(lesson(LESSONS[0], EACH[0])[0])
  assert all((known.mean, known.std) == (mean, std) for known, _ in stages)
  pixels = lesson(LESSONS[0], EACH[0])[0].reshape(-1, 3) / 255
  np.testing.assert_allclose(mean, pixels.mean(axis=0), rtol=1e-12)
  np.testing.assert_allclose(std, pixels.std(axis=0), rtol=1e-12)


def test_a_loaded_model_is_the_one_saved(taught):
  _, stages, _ = taught
  (before, said_before), (after, said_after) = stages[-2:]
  assert (before.config, before.tasks, before.mean, before.std) == (after.config, after.tasks, after.mean, after.std)
  chex.assert_trees_all_equal(before.variables, after.variables)
  np.testing.assert_array_equal(said_before.probabilities, said_after.probabilities)


def test_a_saved_model_holds_no_image(taught):
  folder, stages, _ = taught
  description, arrays = model_files.read(folder)
  assert {path.name for path in folder.iterdir()} == {'model.json', description['weights']}
  assert {name.split('/')[0] for name in arrays} == {'params', 'batch_stats'}
  assert sum(a.size for a in arrays.values()) == sum(a.size for a in jax.tree.leaves(stages[-1][0].variables))
  assert set(description['config']) == set(setting_names()) and description['versions']['jax'] == jax.__version__
  assert description['preprocessing']['image_size'] == 8 and description['tasks'] == [list(names) for names in LESSONS]


def test_a_grown_head_leaves_old_logits_as_they_were_bit_for_bit(taught):
  known = taught[1][0][0]
  grown = dataclasses.replace(known.grown(17), tasks=(*known.tasks, LESSONS[1]))
  assert grown.variables['params']['head']['kernel'].shape == (64, 32)
  images = np.random.default_rng(5).integers(0, 256, (100, 8, 8, 3)).astype(np.uint8)
  before, after = known.logits(images), grown.logits(images)
  assert (before.shape, after.shape) == ((100, 2), (100, 17))
  np.testing.assert_array_equal(before, after[:, :2])
  assert np.abs(after[:, 16:]).max() > 0.1  # fresh weights, not zeros


def test_capacity_doubles():
  assert [capacity_for(n) for n in (1, 16, 17, 32, 33, 100)] == [16, 16, 32, 32, 64, 128]


def test_prediction_is_batched_by_one_program(taught):
  _, stages, _ = taught
  known = stages[-1][0]
  model = Learner._of(known)
  images = np.concatenate([IMAGES] * 13)  # 130: two full batches of 64 and two rows
  said = model.predict(images)
  np.testing.assert_array_equal(said.probabilities[:10], model.predict(IMAGES).probabilities)
  np.testing.assert_array_equal(said.labels, np.tile(said.labels[:10], 13))
  assert model.predict(IMAGES[:0]).probabilities.shape == (0, 19)
  # One program for every lesson's head.
  assert programs.features(dataclasses.replace(known.networks(), num_classes=16, own=None)).traces == 1


def test_evaluation_counts_by_class(taught):
  model = Learner._of(taught[1][-1][0])
  said = model.predict(IMAGES)
  # The model's own answers are all right; with one of them replaced by another class nine in ten are.
  assert model.evaluate(IMAGES, said.names).accuracy == 100
  labels = said.labels.copy()
  labels[0] = np.argsort(said.probabilities[0])[-2]
  found = model.evaluate(IMAGES, labels)
  assert found.accuracy == pytest.approx(90) and found.num_images == 10
  assert set(found.accuracy_by_class) == {model.class_names[label] for label in labels}
  own = found.accuracy_by_class[model.class_names[labels[0]]]
  assert own == pytest.approx(100 * (1 - 1 / np.sum(labels == labels[0])))


RELOADED = """
import sys, json
import jax, numpy as np
program, classes, images, out = sys.argv[1:]
exported = jax.export.deserialize(open(program, 'rb').read())
assert tuple(exported.platforms) == ('cpu', 'cuda', 'tpu'), exported.platforms
assert len(json.load(open(classes))['classes']) == 19
images = np.load(images)
found = [np.asarray(exported.call(images[:n])) for n in (len(images), 1)]  # any batch size
np.testing.assert_allclose(found[0][:1], found[1], rtol=1e-5)
np.save(out, found[0])
assert not [name for name in sys.modules if name.split('.')[0] in ('abd_jax', 'flax')]
"""


def test_an_exported_model_predicts_the_same_without_this_package(taught, tmp_path):
  model = Learner._of(taught[1][-1][0])
  model.export(tmp_path / 'exported')
  np.save(tmp_path / 'images.npy', IMAGES)
  paths = [tmp_path / 'exported' / 'predict.stablehlo', tmp_path / 'exported' / 'classes.json', tmp_path / 'images.npy']
  command = [sys.executable, '-c', RELOADED, *map(str, paths), str(tmp_path / 'said.npy')]
  alone = {'JAX_PLATFORMS': 'cpu'}  # no PYTHONPATH
  process = subprocess.run(command, cwd=tmp_path, env=alone, capture_output=True, text=True, timeout=120)
  assert process.returncode == 0, process.stderr
  said = model.predict(IMAGES)
  exported = np.load(tmp_path / 'said.npy')
  np.testing.assert_allclose(exported, said.probabilities, rtol=1e-4, atol=1e-6)
  np.testing.assert_array_equal(exported.argmax(axis=1), said.labels)


class StopAfter(stopping.StopSignal):
  """A stop signal that comes with the given look at it."""

  def __init__(self, looks=5):
    self._looks = looks
    super().__init__()

  @property
  def received(self):
    self._looks -= 1
    return self._looks < 0

  @received.setter
  def received(self, value):
    pass


def test_a_stopped_lesson_goes_on_and_comes_to_the_same(taught, tmp_path, monkeypatch):
  _, stages, _ = taught
  model = Learner._of(stages[1][0])
  with monkeypatch.context() as patch, pytest.raises(stopping.Preempted):
    patch.setattr(train, 'StopSignal', StopAfter)
    model.learn(*lesson(LESSONS[2], EACH[2], seed=2), workdir=tmp_path)
  assert model.classifier is stages[1][0]  # as it was
  with pytest.raises(UserError, match='holds a run with --dataset=images:'):
    model.learn(*lesson(LESSONS[2], EACH[2], seed=4), workdir=tmp_path)  # other images
  images, labels, *rest = lesson(LESSONS[2], EACH[2], seed=2)
  with pytest.raises(UserError, match='holds a run with --dataset=images:'):
    model.learn(images, labels[::-1], *rest, workdir=tmp_path)
  model.learn(*lesson(LESSONS[2], EACH[2], seed=2), workdir=tmp_path)
  chex.assert_trees_all_equal(model.classifier.variables, stages[2][0].variables)


def test_r_dfcil_leaves_nothing_of_one_task_behind(tmp_path, monkeypatch):
  stem = functools.partial(Stem, blocks_per_stage=0, icarl=True, head_bias=False)
  monkeypatch.setitem(models.STUDENTS, 'resnet8_icarl', stem)  # which compiles quickly
  model = Learner(**TINY | dict(method='rdfcil', student='resnet8_icarl', epochs=1, decay_at=()))
  heads = []
  for names in (LESSONS[0], LESSONS[2]):
    model.learn(*lesson(names))
    known = model.classifier.checked()
    assert 'own' not in known.variables['params']
    heads.append(known.variables['params']['head'])
  assert known.class_names == LESSONS[0] + LESSONS[2] and [set(head) for head in heads] == [{'kernel'}] * 2
  # The rows of the four classes learned moved in the second lesson; those of classes yet to come are as drawn.
  moved = np.any(heads[0]['kernel'] != heads[1]['kernel'], axis=0)
  assert moved.tolist() == [True] * 4 + [False] * 12 and np.all(heads[1]['kernel'][:, 4:] != 0)
  model.save(tmp_path / 'model')
  said = Learner.load(tmp_path / 'model', method='abd').predict(IMAGES)
  np.testing.assert_array_equal(said.probabilities, model.predict(IMAGES).probabilities)


def test_what_dream_keeps_in_the_head_grows_with_it_and_goes_with_the_method(taught):
  _, stages, _ = taught
  (two, _), (seventeen, _), *_ = stages
  own = seventeen.variables['params']['own']
  assert jax.tree.map(np.shape, own) == {
      'trained': {'kernel': (64, 32), 'bias': (32,)}, 'means': (64, 32), 'covariance': (64, 64),
  }
  assert np.all(own['means'][:, 17:] == 0) and np.all(np.any(own['means'][:, :17] != 0, axis=0))
  grown = two.grown(17).variables['params']['own']
  corner = lambda name: jax.tree.map(lambda leaf: leaf[..., :16], grown[name])
  for name in ('trained', 'means'):
    chex.assert_trees_all_equal(corner(name), two.variables['params']['own'][name])
  np.testing.assert_array_equal(grown['covariance'], two.variables['params']['own']['covariance'])


def test_another_method_drops_what_dream_kept_and_dream_does_not_go_on_without(taught, tmp_path):
  folder, stages, _ = taught
  plain = Learner.load(folder, method='abd')
  assert 'own' not in plain.classifier.variables['params']
  np.testing.assert_array_equal(plain.predict(IMAGES).probabilities, stages[-1][1].probabilities)
  plain.save(tmp_path / 'model')
  with pytest.raises(UserError, match='method=dream keeps something of each class since it was new, and these classes'):
    Learner.load(tmp_path / 'model', method='dream')
  variables = plain.classifier.variables
  with pytest.raises(UserError, match='these classes were learned otherwise: choose another method'):
    Learner.from_variables(variables, plain.class_names, (0.5,) * 3, (0.2,) * 3, **TINY | dict(method='dream'))
  headless = {**variables, 'params': {name: leaf for name, leaf in variables['params'].items() if name != 'head'}}
  with pytest.raises(UserError, match='have no params/head/kernel'):
    Learner.from_variables(headless, plain.class_names, (0.5,) * 3, (0.2,) * 3, **TINY)
  of_arrays = Learner.from_variables(variables, plain.class_names, *np.full((2, 3), 0.5, np.float32), **TINY)
  of_arrays.save(tmp_path / 'of_arrays')
  assert Learner.load(tmp_path / 'of_arrays').classifier.std == (0.5,) * 3


def test_a_batch_larger_than_the_lesson_is_reduced_and_that_is_said(capsys):
  config = learner.fit_batch(Learner(**TINY, learning_rate=0.1).classifier.config, 1)
  # One row of four: the rate is halved.
  assert (config.optimisation.batch_size, config.optimisation.learning_rate) == (1, pytest.approx(0.05))
  learner._announced(Learner(**TINY).classifier.config, config, 1)
  said = capsys.readouterr().out
  assert 'With 1 images the batch is reduced from 4 to 1, and the learning rate from 0.1 to 0.05.' in said


def test_a_model_imported_from_the_authors_weights_learns_the_next_task(taught, weights):
  # Standardised like the models above and with heads as large, so that their programs serve.
  known = taught[1][0][0]
  settings = {name: value for name, value in TINY.items() if name != 'student'}
  model = interop.learner_from_torch(weights, LESSONS[0] + ('eel', 'fox'), known.mean, known.std, **settings)
  before = model.classifier
  model.learn(*lesson(LESSONS[1], EACH[1]))
  assert model.classifier.tasks == (('cat', 'dog', 'eel', 'fox'), LESSONS[1])
  assert (model.classifier.mean, model.classifier.std) == (known.mean, known.std)
  learned = lambda old, new: not np.array_equal(old, new[..., : old.shape[-1]])
  assert all(jax.tree.leaves(jax.tree.map(learned, before.variables, model.classifier.variables)))
  assert model.predict(IMAGES).probabilities.shape == (10, 19)


@pytest.mark.parametrize('change, sentence', [
    (dict(class_names=('cat', 'fox')), 'The model knows cat already'),
    (dict(class_names=('fox', 'fox')), 'Class names must differ: fox comes twice'),
    (dict(class_names='fox'), "not the one text 'fox'"),
    (dict(class_names=()), 'at least one class'),
    (dict(class_names={'fox', 'owl'}), 'must be in an order, by which labels name them: a set has none'),
    (dict(labels=[[0], [1, 2]]), 'Labels are no array: setting an array element'),
    (dict(labels=np.array([['a'], 0, 1, 0, 1, 0], object)), r"\['a'\] is not one of the classes fox, owl"),
    (dict(class_names=(1, 2)), 'Class names must be texts, and 1 is not'),
    (dict(class_names=('fox', 'owl', 'eel')), 'There is no image of eel.'),
    (dict(labels=np.array([0, 1, 2] * 2)), 'positions among the 2 class names, 0 to 1, and 2 is none'),
    (dict(labels=np.array([0, 1, -1] * 2)), 'and -1 is none'),
    (dict(labels=np.zeros(6)), 'whole numbers or class names, not float64'),
    (dict(labels=['fox'] * 5 + ['yak']), "'yak' is not one of the classes fox, owl."),
    (dict(labels=np.zeros(5, int)), 'one label for each of 6 images, not an array \\[5\\]'),
    (dict(images=np.zeros((6, 8, 8), np.uint8)), 'must be an array \\[N, H, W, C\\], not \\[6, 8, 8\\]'),
    (dict(images=np.zeros((6, 8, 8, 3), np.float32)), 'uint8 from 0 to 255, not float32'),
    (dict(images=np.zeros((6, 16, 8, 3), np.uint8)), 'images of 8x8 pixels, and these have 16x8'),
    (dict(images=np.zeros((6, 8, 8, 1), np.uint8)), 'images of 3 channels, and these have 1'),
])
def test_what_cannot_be_learned_is_refused_before_any_training(taught, monkeypatch, change, sentence):
  monkeypatch.setattr(train, 'learn_task', lambda *args: pytest.fail('it trained'))
  images, labels, names = lesson(('fox', 'owl'))
  with pytest.raises(UserError, match=sentence):
    Learner._of(taught[1][0][0]).learn(**(dict(images=images, labels=labels, class_names=names) | change))


@pytest.mark.parametrize('settings, sentence', [
    (dict(epoch_count=3), 'no setting called epoch_count'),
    (dict(dataset='digits'), 'no setting called dataset'),
    (dict(student='resnet8_icarl'), '--method=dream makes a head that has a bias, and that of --student=resnet8_icarl'),
    (dict(student='vgg'), '--student=vgg is not one of'),
    (dict(method='upper_bound'), 'method=upper_bound is not one of .*, which carry nothing but the classifier'),
    (dict(image_size=30), 'images of 30x30 cannot be generated: both sides must be multiples of 4'),
    (dict(image_size=0), 'image_size must be the pixels of a side'),
    (dict(generator_init='warm'), 'a saved model holds no generator'),
    (dict(epochs=0), '--epochs=0 must be at least 1'),
])
def test_settings_out_of_range_are_refused(settings, sentence):
  with pytest.raises(UserError, match=sentence):
    Learner(**settings)


@pytest.mark.parametrize('settings', [dict(method='base'), dict(method='abd', inversion='images')])
def test_images_that_no_generator_makes_are_for_those_that_need_none(settings):
  assert Learner(image_size=30, student='resnet8', **settings).classifier.config.image_size == 30


def test_a_model_that_knows_nothing_is_saved_but_asked_nothing(tmp_path):
  Learner(**TINY).save(tmp_path / 'model')
  model = Learner.load(tmp_path / 'model', epochs=7)
  assert model.class_names == () and model.classifier.config.optimisation.epochs == 7
  for ask in (model.predict, model.export):
    with pytest.raises(UserError, match='knows no class yet'):
      ask(IMAGES)


def test_what_a_model_was_made_with_stays(taught):
  folder, *_ = taught
  assert Learner.load(folder, method='base', image_size=8).classifier.config.method == 'base'
  with pytest.raises(UserError, match='is a model of student=resnet8, which cannot be changed to resnet20'):
    Learner.load(folder, student='resnet20')


def test_a_writer_that_dies_leaves_the_model_of_before(tmp_path, monkeypatch):
  model_files.write(tmp_path, {'said': 1}, {'a': np.arange(3)})
  replace = model_files.replace_whole

  def die_at_the_description(path, content):
    if path.name == 'model.json':
      raise KeyboardInterrupt
    replace(path, content)

  with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
    patch.setattr(model_files, 'replace_whole', die_at_the_description)
    model_files.write(tmp_path, {'said': 2}, {'a': np.arange(4)})
  description, arrays = model_files.read(tmp_path)
  assert description['said'] == 1 and len(arrays['a']) == 3
  model_files.write(tmp_path, {'said': 2}, {'a': np.arange(4)})
  assert model_files.read(tmp_path)[0]['said'] == 2 and len(list(tmp_path.iterdir())) == 2


def test_a_directory_of_something_else_is_not_written_to(tmp_path):
  (tmp_path / 'thesis.tex').touch()
  with pytest.raises(UserError, match='holds thesis.tex and no model.json'):
    model_files.write(tmp_path, {}, {})
