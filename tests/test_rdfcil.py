"""R-DFCIL: its terms as its authors' code gives them, and by hand what no recording covers."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abd_jax import config, losses, relations, states, steps
from abd_jax.methods import rdfcil
from abd_jax.methods.interface import Rows, Shapes, View, everything, head
from tests import golden_figures
from tests.small_runs import Stem

HPARAMS = config.Hyperparameters()


# The recording: 20 past classes and 10 new ones, 12 rows. A plain transcription reaches 1e-5 relative.


@functools.cache
def recorded():
  return golden_figures.load('golden_rdfcil')


def linear(figures, name):
  """A PyTorch linear layer as ours."""
  return {'kernel': jnp.asarray(figures[f'rkd/{name}.weight'].T), 'bias': jnp.asarray(figures[f'rkd/{name}.bias'])}


def recorded_view(**changes):
  """The recording as a view: the angles' rows are the real ones, the held logits' the synthetic ones."""
  figures = recorded()
  teacher_logits = jnp.pad(figures['hkd/teacher_logits'], ((0, 0), (0, 10)))  # of classes that it does not know
  labels = jnp.asarray(figures['finetune/labels'], jnp.int32)
  real = Rows(20 + labels % 10, figures['rkd/student'], jnp.asarray(figures['finetune/logits']), figures['rkd/teacher'])
  synthetic = Rows(labels % 20, None, jnp.asarray(figures['hkd/student_logits']), None, teacher_logits)
  both = Rows(labels, None, jnp.asarray(figures['finetune/logits']))
  own = {'student': linear(figures, 'embed1'), 'teacher': linear(figures, 'embed2')}
  met = jnp.asarray(figures['finetune/class_counts'], jnp.int32)
  return View(real, synthetic, both, 20, 30, 30, None, own=own, met=met).replace(**changes)


def test_factors_are_the_recorded_ones():
  figures = recorded()
  new, old = figures['factors/new_old']
  alpha, beta = relations.adaptive_factors(old, old + new)
  np.testing.assert_allclose([alpha, beta], figures['factors/alpha_beta'], rtol=3e-6)
  # The loss is linear in its terms: its gradient with respect to a weight is factor times term.
  weights = ('ce_weight', 'hkd_weight', 'rkd_weight')
  _, terms = rdfcil.represent_loss(recorded_view(), HPARAMS)
  for weight, term, factor in zip(weights, ('learn', 'hold', 'relate'), figures['factors/ce_hkd_rkd'], strict=True):
    alone = config.Hyperparameters(**{name: getattr(HPARAMS, name) if name == weight else 0.0 for name in weights})
    loss, _ = rdfcil.represent_loss(recorded_view(), alone)
    np.testing.assert_allclose(loss, factor * terms[term], rtol=3e-6)


def test_angles_and_their_gradients_are_the_recorded_ones():
  figures = recorded()

  def relate(features, own):
    view = recorded_view(own=own)
    return rdfcil.represent_loss(view.replace(real=view.real.replace(features=features)), HPARAMS)[1]['relate']

  value, (of_student, of_own) = jax.value_and_grad(relate, argnums=(0, 1))(figures['rkd/student'], recorded_view().own)
  np.testing.assert_allclose(value, figures['rkd/loss'], rtol=3e-5)
  for ours, theirs in (
      (of_student, figures['rkd/grad_student']),
      (of_own['student']['kernel'].T, figures['rkd/grad_embed1_weight']),
  ):
    np.testing.assert_allclose(ours, theirs, atol=3e-5 * np.abs(theirs).max())


def test_held_logits_are_the_recorded_ones():
  _, terms = rdfcil.represent_loss(recorded_view(), HPARAMS)
  np.testing.assert_allclose(terms['hold'], recorded()['hkd/loss'], rtol=3e-5)


def test_the_refining_cross_entropy_is_the_recorded_one():
  figures = recorded()
  loss, terms = rdfcil.refine_loss(recorded_view(), HPARAMS)
  weights = relations.inverse_frequency(figures['finetune/class_counts'], jnp.arange(30))
  theirs = figures['finetune/class_weights']  # up to a factor, which the normalisation takes away
  np.testing.assert_allclose(weights / weights[0], theirs / theirs[0], rtol=3e-6)
  np.testing.assert_allclose(terms['separate'], figures['finetune/loss'], rtol=3e-5)
  _, hkd, _ = figures['factors/ce_hkd_rkd']
  np.testing.assert_allclose(loss, 0.5 * figures['finetune/loss'] + hkd * figures['hkd/loss'], rtol=3e-5)


# What the recording does not cover: classes not met yet, statistics, momentum, who moves, what is counted.


def test_angles_of_a_right_triangle():
  # At (0, 0) the other two are seen at 90 degrees, at (1, 0) and at (0, 1) at 45; a point sees itself nowhere.
  half = 0.5**0.5
  expected = np.zeros((3, 3, 3))
  for i, j, k, cosine in ((0, 1, 2, 0.0), (1, 0, 2, half), (2, 0, 1, half)):
    expected[i, j, k] = expected[i, k, j] = cosine
    expected[i, j, j] = expected[i, k, k] = 1
  points = jnp.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
  np.testing.assert_allclose(relations.angles(points), expected, atol=1e-6)
  # On a line, 0 between -1 and 1: 180 degrees there, 0 at the ends. |0 + 1| + 2 |half - 1|, in both orders, of 27.
  line = jnp.array([[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
  np.testing.assert_allclose(
      relations.angle_distillation(points, line), 2 * (1 + 2 * (1 - half)) / 27, rtol=1e-6
  )
  np.testing.assert_allclose(relations.angle_distillation(points, 5 * points + 3), 0, atol=1e-6)  # angles alone


def test_equal_rows_have_no_angle_and_no_gradient():
  points = jnp.array([[1.0, 2.0], [1.0, 2.0], [0.0, 0.5]])
  gradient = jax.grad(relations.angle_distillation)(points, points[::-1])
  assert np.all(np.isfinite(gradient))
  np.testing.assert_array_equal(relations.angles(jnp.ones((4, 2))), np.zeros((4, 4, 4)))


def test_devices_that_share_a_batch_see_all_of_its_triplets():
  student, teacher = jax.random.normal(jax.random.key(0), (2, 6, 3))
  matrix = jax.random.normal(jax.random.key(1), (3, 4))

  def loss(matrix, student, teacher, axis=None):
    return relations.angle_distillation(student @ matrix, teacher @ matrix, axis)

  def on_a_device(student, teacher):
    value, gradient = jax.value_and_grad(loss)(matrix, student, teacher, 'data')
    return value, jax.lax.pmean(gradient, 'data')

  shares = student.reshape(2, 3, 3), teacher.reshape(2, 3, 3)
  found = jax.vmap(on_a_device, axis_name='data')(*shares)
  expected = jax.value_and_grad(loss)(matrix, student, teacher)
  for share in range(2):
    chex.assert_trees_all_close(jax.tree.map(lambda leaf, share=share: leaf[share], found), expected, rtol=1e-5)


# Classes 0 to 2 are past, 3 and 4 new, 5 not met yet. Two real rows, two synthetic ones.
PAST, SEEN, CLASSES = 3, 5, 6
LOGITS, TEACHER = np.random.default_rng(0).normal(size=(2, 4, CLASSES)).astype(np.float32)
LABELS = np.array([3, 4, 0, 2])


def view(**changes):
  both = Rows(jnp.asarray(LABELS), jnp.asarray(LOGITS), jnp.asarray(LOGITS), jnp.asarray(TEACHER), jnp.asarray(TEACHER))
  real, synthetic = (jax.tree.map(lambda leaf, at=at: leaf[at], both) for at in (slice(0, 2), slice(2, 4)))
  same = {'kernel': jnp.eye(CLASSES), 'bias': jnp.zeros(CLASSES)}
  own = {'student': same, 'teacher': same}
  return View(real, synthetic, both, PAST, SEEN, CLASSES, None, own=own).replace(**changes)


def nll(logits, label, classes):
  window = np.exp(logits[classes])
  return -np.log(np.exp(logits[label]) / window.sum())


def test_representing_by_hand():
  loss, terms = rdfcil.represent_loss(view(), HPARAMS)
  learn = (nll(LOGITS[0], 3, [3, 4]) + nll(LOGITS[1], 4, [3, 4])) / 2
  hold = np.abs(LOGITS[2:, :3] - TEACHER[2:, :3]).mean()
  np.testing.assert_allclose([terms['learn'], terms['hold']], [learn, hold], rtol=1e-5)
  # Two rows have the same directions to each other whatever they are: no angle can differ.
  np.testing.assert_allclose(terms['relate'], 0, atol=1e-6)
  # new = 2: alpha = log2(2) = 1; beta = sqrt(3 / 2). 0.5 (1 + 1) / beta, and 0.15 beta.
  np.testing.assert_allclose(loss, learn / 1.5**0.5 + 0.15 * 1.5**0.5 * hold, rtol=1e-5)


def test_refining_by_hand():
  met = jnp.array([10, 0, 2, 4, 1, 7])
  loss, terms = rdfcil.refine_loss(view(met=met), HPARAMS)
  # Labels 3, 4, 0 and 2 were met 4, 1, 10 and 2 times; one never met would weigh 1, as one met once.
  weights = np.array([1 / 4, 1, 1 / 10, 1 / 2])
  each = np.array([nll(row, label, range(SEEN)) for row, label in zip(LOGITS, LABELS, strict=True)])
  separate = np.sum(weights * each) / np.sum(weights)
  np.testing.assert_allclose(terms['separate'], separate, rtol=1e-5)
  np.testing.assert_allclose(loss, 0.5 * separate + 0.15 * 1.5**0.5 * terms['hold'], rtol=1e-5)
  np.testing.assert_array_equal(relations.inverse_frequency(met, jnp.array([1, 4, 5])), np.float32([1, 1, 1 / 7]))


@pytest.fixture(scope='module')
def student():
  """A student of iCaRL's kind with projections and a tally, and images for it."""
  model = Stem(blocks_per_stage=0, num_classes=CLASSES, icarl=True, head_bias=False)
  optimizer = states.student_optimizer(config.Optimisation(weight_decay=0.1))
  own = rdfcil.projections(Shapes((8, 8, 1), 4, 8, model.feature_size))
  init = jax.jit(lambda key: states.init_student(model, optimizer, (8, 8, 1), key, own, CLASSES))
  real, synthetic = jax.random.normal(jax.random.key(1), (2, 4, 8, 8, 1))
  return model, optimizer, init(jax.random.key(0)), real, synthetic + 1


def stepped(student, loss, state=None, **settings):
  model, optimizer, before, real, synthetic = student
  update = jax.jit(steps.make_student_update(model, optimizer, loss, hparams=HPARAMS, **settings))
  batch = steps.Batch(real, jnp.array([3, 4, 3, 3]), PAST, SEEN, 0.1)
  return update(state or before, states.freeze(before), batch, synthetic)


def constant(value):
  """A loss whose gradient is `value` on every parameter of the head and of the projections, and none elsewhere."""

  def loss(view, hparams):
    del hparams
    head_sum = jnp.sum(view.head(jnp.ones((1, Stem.feature_size))))
    return value * (head_sum + sum(jnp.sum(leaf) for leaf in jax.tree.leaves(view.own))), {}

  return loss


def test_streams_apart_have_batch_statistics_of_their_own(student):
  model, _, before, real, synthetic = student

  def logits(view, hparams):
    return jnp.sum(view.both.features), {'real': view.real.logits, 'synthetic': view.synthetic.logits}

  after, said = stepped(student, logits, apart=True)
  inputs, moved = [], before.batch_stats
  for name, images in (('real', real), ('synthetic', synthetic)):
    found, updates = model.apply(
        {'params': before.params, 'batch_stats': moved}, images, train=True, mutable=['batch_stats']
    )
    moved = updates['batch_stats']
    np.testing.assert_allclose(said[name], found, rtol=1e-4, atol=1e-6)
    kernel = before.params['conv1']['kernel']
    inputs.append(jax.lax.conv_general_dilated(
        images, kernel, (1, 1), ((1, 1), (1, 1)), dimension_numbers=('NHWC', 'HWIO', 'NHWC')
    ))
  chex.assert_trees_all_close(after.batch_stats, moved, rtol=1e-4, atol=1e-6)
  # r to .9 r + .1 real, and that to .9 of it + .1 synthetic, from r = 0: the order shows.
  real_mean, synthetic_mean = (np.mean(part, (0, 1, 2)) for part in inputs)
  np.testing.assert_allclose(after.batch_stats['bn1']['mean'], 0.09 * real_mean + 0.1 * synthetic_mean, rtol=1e-4)


def test_rows_of_later_tasks_neither_move_nor_decay(student):
  _, _, before, *_ = student
  after, _ = stepped(student, constant(1.0), trains=everything)
  kernel, moved = before.params['head']['kernel'], after.params['head']['kernel']
  # p - lr (g + wd p) = .99 p - .1 where the class has been met.
  np.testing.assert_allclose(moved[:, :SEEN], 0.99 * kernel[:, :SEEN] - 0.1, rtol=1e-6)
  np.testing.assert_array_equal(moved[:, SEEN:], kernel[:, SEEN:])
  for side in ('student', 'teacher'):  # the projections learn by the same SGD
    bias = before.params['own'][side]['bias']
    np.testing.assert_allclose(after.params['own'][side]['bias'], 0.99 * bias - 0.1, rtol=1e-5, atol=1e-7)


def test_the_head_goes_on_with_its_momentum_and_the_rest_stops(student):
  _, _, before, *_ = student
  pushed = before.replace(opt_state=jax.tree.map(jnp.ones_like, before.opt_state))
  after, _ = stepped(student, constant(1.0), pushed, trains=head, train_mode=False)
  for name, params in before.params.items():
    if name != 'head':
      chex.assert_trees_all_equal(after.params[name], params)
  # The buffer goes from 1 to .9 + g + wd p; p moves by -.1 of it.
  kernel = before.params['head']['kernel'][:, :SEEN]
  np.testing.assert_allclose(after.params['head']['kernel'][:, :SEEN], 0.99 * kernel - 0.19, rtol=1e-6)
  chex.assert_trees_all_equal(after.batch_stats, before.batch_stats)


def test_labels_of_both_streams_are_counted_and_seen_from_the_next_epoch_on(student):
  model, _, before, _, synthetic = student

  def met(view, hparams):
    return jnp.sum(view.both.features), {'met': view.met}

  chosen = np.argmax(np.asarray(model.apply(before.variables, synthetic, train=False))[:, :PAST], axis=-1)
  counts = np.bincount(chosen, minlength=CLASSES) + np.array([0, 0, 0, 3, 1, 0])
  first_epoch = states.Tally(np.arange(CLASSES), np.zeros(CLASSES, np.int32))
  for tally in (first_epoch, states.begin_epoch(first_epoch)):
    after, said = stepped(student, met, before.replace(tally=tally))
    np.testing.assert_array_equal(said['met'], tally.before_epoch)
    np.testing.assert_array_equal(after.tally.so_far, np.arange(CLASSES) + counts)
    np.testing.assert_array_equal(after.tally.before_epoch, tally.before_epoch)
  np.testing.assert_array_equal(tally.before_epoch, np.arange(CLASSES))


def test_what_is_for_one_task_alone_is_made_new(student):
  _, optimizer, before, *_ = student
  own = rdfcil.projections(Shapes((8, 8, 1), 4, 8, 64))
  before = states.renewed(before, optimizer, jax.random.key(0), own, CLASSES)
  learned = jax.tree.map(lambda leaf: leaf + 1, before)
  new = states.renewed(learned, optimizer, jax.random.key(7), own, CLASSES)
  for name, params in learned.params.items():
    assert name == 'own' or new.params[name] is params
  assert not np.any(new.tally.so_far) and not any(np.any(leaf) for leaf in jax.tree.leaves(new.opt_state))
  drawn = [np.asarray(leaf) for leaf in jax.tree.leaves((before.params['own'], new.params['own']))]
  assert len({leaf.tobytes() for leaf in drawn}) == 8  # kernels and biases, of both sides, of both tasks
  assert {leaf.shape for leaf in drawn} == {(64, 128), (128,)}
  for leaf in drawn:  # U(+-1/8): PyTorch's for 64 inputs, weights and biases alike
    assert 0.12 < np.abs(leaf).max() <= 0.125 and abs(leaf.mean()) < 0.02


@pytest.mark.parametrize('settings, expected', [
    (dict(epochs=160, learning_rate=0.1), (40, 5e-3)),
    (dict(epochs=1, learning_rate=0.1), (1, 5e-3)),
    (dict(epochs=160, second_epochs=7, second_learning_rate=0.25), (7, 0.25)),
])
def test_the_second_phase_has_a_constant_rate_of_its_own(settings, expected):
  schedule = rdfcil.refinement(config.Optimisation(decay_at=(1, 2), **settings))
  assert (schedule.epochs, pytest.approx(schedule.rate(0))) == expected
  assert schedule.rate(schedule.epochs) == schedule.rate(0)


def test_flags_weigh_the_terms():
  loss, terms = rdfcil.refine_loss(view(met=jnp.ones(CLASSES)), config.Hyperparameters(ce_weight=3.0, hkd_weight=0.0))
  np.testing.assert_allclose(loss, 3 * terms['separate'], rtol=1e-6)
  np.testing.assert_allclose(
      terms['separate'], jnp.mean(losses.cross_entropy(jnp.asarray(LOGITS), jnp.asarray(LABELS), SEEN)), rtol=1e-5
  )
