"""The step bodies against arithmetic: running statistics, who is trained by what, keys."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abd_jax import addresses, config, losses, states, steps
from abd_jax.data.augment import make_augment, make_normalise
from abd_jax.methods.abd import abd_loss
from abd_jax.methods.interface import Rows, View
from abd_jax.models import make_student

PAST, SEEN, CLASSES = 2, 4, 6


@pytest.fixture(scope='module')
def networks():
  model = make_student('resnet8', CLASSES)
  settings = config.Optimisation()
  optimizer = states.student_optimizer(settings)
  student = jax.jit(lambda key: states.init_student(model, optimizer, (8, 8, 1), key))(jax.random.key(0))
  real, synthetic = jax.random.normal(jax.random.key(1), (2, 6, 8, 8, 1))
  return model, optimizer, student, real, synthetic


def abd_step(networks, hparams=config.Hyperparameters(), **kwargs):  # noqa: B008
  model, optimizer, student, real, synthetic = networks
  update = jax.jit(steps.make_student_update(model, optimizer, abd_loss, hparams=hparams, **kwargs))
  labels = jnp.array([2, 3, 2, 3, 2, 3])
  return update(student, states.freeze(student), steps.Batch(real, labels, PAST, SEEN, 0.1), synthetic)


def test_running_statistics_after_an_abd_step(networks):
  # One train-mode pass moves r to .9 r + .1 b. Two over the same batch, as the authors' code makes, to
  # .9 (.9 r + .1 b) + .1 b = .81 r + .19 b.
  _, _, student, real, synthetic = networks
  both = jnp.concatenate([real, synthetic])
  kernel = student.params['conv1']['kernel']
  inputs = jax.lax.conv_general_dilated(
      both, kernel, (1, 1), ((1, 1), (1, 1)), dimension_numbers=('NHWC', 'HWIO', 'NHWC')
  )
  batch = np.mean(inputs, (0, 1, 2)), np.var(np.asarray(inputs), (0, 1, 2))
  for rate, decay in ((1.0, 0.9), (1.9, 0.81)):
    after, _ = abd_step(networks, statistics_rate=rate)
    for name, initial, its in zip(('mean', 'var'), (0.0, 1.0), batch, strict=True):
      expected = decay * initial + (1 - decay) * its
      np.testing.assert_allclose(after.batch_stats['bn1'][name], expected, rtol=1e-4, atol=1e-6)


def test_momentum_and_weight_decay_are_pytorchs():
  # g + wd p enters the buffer; p moves by -lr buffer. p = 1, g = 1, wd = .1, m = .5, lr = .1, twice:
  # buffer 1.1, p = .89; buffer .55 + 1.089 = 1.639, p = .7261.
  optimizer = states.student_optimizer(config.Optimisation(weight_decay=0.1, momentum=0.5))
  params = jnp.array(1.0)
  opt_state = optimizer.init(params)
  for expected in (0.89, 0.7261):
    direction, opt_state = optimizer.update(jnp.array(1.0), opt_state, params)
    params = params - 0.1 * direction
    np.testing.assert_allclose(params, expected, rtol=1e-6)


def test_a_step_returns_the_terms_that_make_up_its_loss(networks):
  _, metrics = abd_step(networks)
  expected = metrics['learn'] + metrics['separate'] + 0.1 * metrics['hold']
  np.testing.assert_allclose(metrics['loss'], expected, rtol=1e-6)
  assert float(metrics['hold']) > 0  # train-mode student against eval-mode teacher


def test_synthetic_rows_are_labelled_by_the_teacher_among_the_past_classes(networks):
  model, optimizer, student, real, synthetic = networks

  def labels(view, hparams):
    return jnp.sum(view.both.features), {'labels': view.both.labels, 'synthetic': view.synthetic.labels}

  update = jax.jit(steps.make_student_update(model, optimizer, labels, hparams=config.Hyperparameters()))
  # A teacher torn between the two past classes, whose favourite, class 4, is not among them.
  logits = model.apply(student.variables, synthetic, train=False)
  lead = jnp.median(logits[:, 1] - logits[:, 0])
  bias = student.params['head']['bias'] + jnp.array([lead, 0.0, 0.0, 0.0, 99.0, 0.0])
  head = {**student.params['head'], 'bias': bias}
  teacher = states.TeacherState({**student.params, 'head': head}, student.batch_stats)
  batch = steps.Batch(real, jnp.array([2, 3, 2, 3, 2, 3]), PAST, SEEN, 0.1)
  _, metrics = update(student, teacher, batch, synthetic)
  expected = np.argmax(np.asarray(model.apply(teacher.variables, synthetic, train=False))[:, :PAST], axis=-1)
  assert set(expected.tolist()) == {0, 1}
  np.testing.assert_array_equal(metrics['synthetic'], expected)
  np.testing.assert_array_equal(metrics['labels'], np.concatenate([[2, 3, 2, 3, 2, 3], expected]))


def view_of(features, past=PAST, seen=SEEN):
  """A view of two real rows (new classes) and two synthetic ones (past), the heads being plain matrices."""
  head, teacher_head = jax.random.normal(jax.random.key(5), (2, 3, CLASSES))
  labels = jnp.array([2, 3, 0, 1])
  rows = Rows(labels, features, features @ head, features + 1.0, (features + 1.0) @ teacher_head)
  real, synthetic = (jax.tree.map(lambda leaf, at=at: leaf[at], rows) for at in (slice(0, 2), slice(2, 4)))
  view = View(real, synthetic, rows, past, seen, CLASSES, lambda f: f @ head, lambda f: f @ teacher_head)
  return view, head, teacher_head


FEATURES = np.array([[0.3, -1.0, 2.0], [1.0, 0.5, -0.2], [-0.7, 0.1, 0.4], [0.2, 2.0, -1.0]], np.float32)


def test_abd_loss_with_classes_not_met_yet():
  view, head, teacher_head = view_of(jnp.asarray(FEATURES))
  _, terms = abd_loss(view, config.Hyperparameters())
  logits = FEATURES @ np.asarray(head)

  def nll(row, label, low, high):
    window = np.exp(logits[row, low:high])
    return -np.log(window[label - low] / window.sum())

  # past / seen = 1/2 weighs everything here: new and past rows alike.
  learn = 0.5 * (nll(0, 2, 2, 4) + nll(1, 3, 2, 4)) / 2
  separate = 0.5 * sum(nll(row, label, 0, 4) for row, label in enumerate([2, 3, 0, 1])) / 4
  shift = np.ones(3) @ np.asarray(teacher_head)[:, :2]  # teacher features are the student's plus one
  np.testing.assert_allclose(terms['learn'], learn, rtol=1e-5)
  np.testing.assert_allclose(terms['separate'], separate, rtol=1e-5)
  np.testing.assert_allclose(terms['hold'], np.mean(shift**2), rtol=1e-5)


@pytest.mark.parametrize('switch, term, expected', [
    # Everything is weighted by 1/2: without it the term doubles, and normalised by the weights' sum likewise.
    (dict(local_ce_weight=False), 'learn', lambda terms: 2 * terms['learn']),
    (dict(finetune_normalise='weighted'), 'separate', lambda terms: 2 * terms['separate']),
    # Teacher features lie at a distance of one in each of three dimensions.
    (dict(distillation='features'), 'hold', lambda terms: 3.0),
])
def test_switches(switch, term, expected):
  view, *_ = view_of(jnp.asarray(FEATURES))
  _, terms = abd_loss(view, config.Hyperparameters())
  _, switched = abd_loss(view, config.Hyperparameters(**switch))
  np.testing.assert_allclose(switched[term], expected(terms), rtol=1e-5)
  others = {'learn', 'separate', 'hold'} - {term}
  chex.assert_trees_all_close({k: switched[k] for k in others}, {k: terms[k] for k in others})


def test_softmax_distillation_is_the_softened_prediction_over_past_classes():
  view, *_ = view_of(jnp.asarray(FEATURES))
  _, terms = abd_loss(view, config.Hyperparameters(distillation='softmax'))
  expected = jnp.mean(losses.knowledge_distillation(view.both.logits, view.both.teacher_logits, PAST, PAST))
  np.testing.assert_allclose(terms['hold'], expected, rtol=1e-6)


def test_all_classes_in_the_finetuning_softmax_when_asked():
  view, *_ = view_of(jnp.asarray(FEATURES))
  _, some = abd_loss(view, config.Hyperparameters())
  _, every = abd_loss(view, config.Hyperparameters(finetune_classes='all'))
  expected = np.mean(0.5 * losses.cross_entropy(view.both.logits, view.both.labels, CLASSES))
  np.testing.assert_allclose(every['separate'], expected, rtol=1e-5)
  assert every['separate'] > some['separate']


def test_finetuning_never_shapes_the_features():
  def separate(features):
    return abd_loss(view_of(features)[0], config.Hyperparameters())[1]['separate']

  chex.assert_trees_all_equal(jax.grad(separate)(jnp.asarray(FEATURES)), jnp.zeros((4, 3)))


def test_synthetic_images_do_not_enter_the_local_loss():
  def learn(features):
    return abd_loss(view_of(features)[0], config.Hyperparameters())[1]['learn']

  gradient = jax.grad(learn)(jnp.asarray(FEATURES))
  assert np.all(gradient[2:] == 0) and np.all(gradient[:2] != 0)


def test_keys_depend_on_every_part_of_the_address_and_on_nothing_else():
  key_data = lambda place, later=0: jax.random.key_data(addresses.key_at(jnp.array(place), later))
  places = list(itertools.product(range(2), range(3), addresses.Address, range(3)))
  assert len({key_data(place).tobytes() for place in places}) == len(places)
  chex.assert_trees_all_equal(key_data((5, 1, 2, 3)), jax.jit(key_data)((5, 1, 2, 3)), key_data((5, 1, 2, 1), 2))


def test_freezing_copies():
  model = make_student('resnet8', 2)
  optimizer = states.student_optimizer(config.Optimisation())
  student = jax.jit(lambda key: states.init_student(model, optimizer, (8, 8, 1), key))(jax.random.key(0))
  teacher = states.freeze(student)
  for ours, frozen in zip(jax.tree.leaves(student.variables), jax.tree.leaves(teacher.variables), strict=True):
    assert ours.unsafe_buffer_pointer() != frozen.unsafe_buffer_pointer()


IMAGES = np.random.default_rng(0).integers(0, 256, (64, 8, 8, 3), dtype=np.uint8)


def augmented(**settings):
  chosen = config.Augmentation(**{**dict(color_jitter=False, flip=False, crop_padding=0), **settings})
  return np.asarray(jax.jit(make_augment(chosen))(IMAGES, jax.random.key(0)))


def test_no_augmentation_is_the_identity():
  np.testing.assert_array_equal(augmented(), IMAGES)


def test_flip_mirrors_about_half_of_the_images():
  found = augmented(flip=True)
  mirrored = (found == IMAGES[:, :, ::-1]).all(axis=(1, 2, 3))
  kept = (found == IMAGES).all(axis=(1, 2, 3))
  assert (mirrored ^ kept).all() and 16 < mirrored.sum() < 48


def test_crop_takes_a_window_of_the_image_in_a_black_border():
  found = augmented(crop_padding=2)
  padded = np.pad(IMAGES, ((0, 0), (2, 2), (2, 2), (0, 0)))
  corners = set()
  for image, frame in zip(found, padded, strict=True):
    fits = [(i, j) for i in range(5) for j in range(5) if (frame[i : i + 8, j : j + 8] == image).all()]
    assert len(fits) == 1
    corners.update(fits)
  assert len(corners) > 15  # of 25 places


def test_jitter_is_brightness_and_contrast_within_their_ranges():
  found = augmented(color_jitter=True)
  assert found.min() >= 0 and found.max() <= 255
  assert not np.allclose(found, IMAGES, atol=1)
  # A flat grey image has no contrast: only brightness moves it, by at most 63/255, the same for every pixel.
  flat = np.full((64, 8, 8, 3), 100, np.uint8)
  factors = np.asarray(make_augment(config.Augmentation(flip=False, crop_padding=0))(flat, jax.random.key(0))) / 100
  np.testing.assert_allclose(factors, np.broadcast_to(factors[:, :1, :1, :1], factors.shape), rtol=1e-5)
  assert 1 - 63 / 255 <= factors.min() < 0.85 and 1.15 < factors.max() <= 1 + 63 / 255


def test_contrast_stretches_about_the_mean_grey():
  # Two pixels of grey 40 and 60 keep their mean of 50 times the brightness, and their distance is scaled.
  pair = np.repeat(np.array([40, 60], np.uint8).reshape(1, 1, 2, 1), 3, axis=-1).repeat(200, axis=0)
  found = np.asarray(make_augment(config.Augmentation(flip=False, crop_padding=0))(pair, jax.random.key(1)))[:, 0, :, 0]
  contrast = (found[:, 1] - found[:, 0]) / found.mean(axis=1) / (20 / 50)
  assert 0.2 * 0.99 <= contrast.min() < 0.35 and 1.65 < contrast.max() <= 1.8 * 1.01


def test_normalise():
  normalise = make_normalise((0.5, 0.25), (0.5, 0.125))
  np.testing.assert_allclose(normalise(jnp.full((1, 1, 1, 2), 255.0)), [[[[1.0, 6.0]]]], rtol=1e-6)
