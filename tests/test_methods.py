"""Every method: its loss against arithmetic, what it trains, and three tasks of digits with a stop and a resumption."""

import dataclasses
import itertools
import json
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abd_jax import config, data, losses, programs, states, steps, train
from abd_jax.addresses import Address
from abd_jax.config import with_values
from abd_jax.data import coreset
from abd_jax.errors import UserError
from abd_jax.inversion import inversion_loss
from abd_jax.methods import METHODS, bias_correction, distillation, end_to_end, generative, interface
from abd_jax.methods.abd import ABLATIONS, abd_loss
from abd_jax.methods.interface import Rows, Schedule, Shapes, View
from abd_jax.models import make_student
from abd_jax.models.vae import VAE
from abd_jax.stopping import Preempted
from tests.small_runs import StopAfter, as_step, final_states
from tests.test_steps import FEATURES, view_of

HPARAMS = config.Hyperparameters()
# Tasks of two, one and two classes are learned, the fourth task's class is not met yet.
TASKS, PAST, SEEN, CLASSES = np.array([0, 0, 1, 2, 2, 3], np.int32), 3, 5, 6
LOGITS, TEACHER, BEFORE = np.random.default_rng(0).normal(size=(3, 4, CLASSES)).astype(np.float32)
LABELS = np.array([3, 4, 3, 4])


def softmax(z):
  return np.exp(z) / np.exp(z).sum(axis=-1, keepdims=True)


def cross_entropy(logits, labels):
  return -np.log(softmax(logits)[np.arange(len(labels)), labels])


def held(logits, teacher, classes, temperature=2.0):
  """Mean over rows of the softened teacher against the softened student, over some classes alone."""
  target, found = softmax(teacher[:, classes] / temperature), softmax(logits[:, classes] / temperature)
  return np.mean(-np.sum(target * np.log(found), axis=-1))


def view(**changes):
  rows = Rows(jnp.asarray(LABELS), None, jnp.asarray(LOGITS), None, jnp.asarray(TEACHER), jnp.asarray(BEFORE))
  return View(rows, None, rows, PAST, SEEN, CLASSES, None, tasks=jnp.asarray(TASKS)).replace(**changes)


def test_e2e_holds_each_past_task_by_itself():
  loss, terms = end_to_end.e2e_loss(view(), HPARAMS)
  learn = cross_entropy(LOGITS[:, :5], LABELS).mean()
  hold = (2 * held(LOGITS, TEACHER, [0, 1]) + 1 * held(LOGITS, TEACHER, [2])) / 3
  np.testing.assert_allclose([terms['learn'], terms['hold'], loss], [learn, hold, learn + hold], rtol=1e-5)
  assert held(LOGITS, TEACHER, [2]) == 0  # one class has nothing to distil


def test_e2e_balance_holds_the_new_task_to_the_student_before():
  _, terms = end_to_end.e2e_balance_loss(view(), HPARAMS)
  hold = (2 * held(LOGITS, TEACHER, [0, 1]) + 1 * 0 + 2 * held(LOGITS, BEFORE, [3, 4])) / 5
  np.testing.assert_allclose(terms['hold'], hold, rtol=1e-5)


def test_bic_weighs_new_against_past_and_corrects_both_networks():
  scale, shift = np.array([1.0, 1.5, 1.0, 1.0], np.float32), np.array([0.0, -0.5, 0.0, 0.0], np.float32)
  loss, terms = bias_correction.bic_loss(view(own={'scale': jnp.asarray(scale), 'shift': jnp.asarray(shift)}), HPARAMS)
  by_hand = LOGITS.copy(), TEACHER.copy()
  for z in by_hand:
    z[:, 2] = 1.5 * z[:, 2] - 0.5  # the one class of the second task
  learn, hold = cross_entropy(by_hand[0][:, :5], LABELS).mean(), held(*by_hand, [0, 1, 2])
  np.testing.assert_allclose([terms['learn'], terms['hold']], [learn, hold], rtol=1e-5)
  np.testing.assert_allclose(loss, 2 / 5 * learn + 3 / 5 * hold, rtol=1e-5)


def test_lwf_mc_asks_every_class_by_itself():
  sigmoid = lambda z: 1 / (1 + np.exp(-z))
  target = np.eye(CLASSES)[LABELS]
  target[:, :PAST] = sigmoid(TEACHER[:, :PAST])
  terms = -target * np.log(sigmoid(LOGITS)) - (1 - target) * np.log(1 - sigmoid(LOGITS))
  loss, _ = distillation.lwf_mc_loss(view(), HPARAMS)
  np.testing.assert_allclose(loss, terms[:, :SEEN].sum() / 4, rtol=1e-5)
  # In the first task there is no teacher, and no class is past.
  target = np.eye(CLASSES)[LABELS]
  terms = -target * np.log(sigmoid(LOGITS)) - (1 - target) * np.log(1 - sigmoid(LOGITS))
  alone = view(past=0, real=view().real.replace(teacher_logits=None))
  np.testing.assert_allclose(distillation.lwf_mc_loss(alone, HPARAMS)[0], terms[:, :SEEN].sum() / 4, rtol=1e-5)


def test_the_vaes_terms():
  # Pixels of 0 and 1 made as 1/2 cost ln 2 each. KL of N(1, 1): 1/2. Of N(0, e): -(1 + 1 - e) / 2.
  images = jnp.array([0.0, 1.0]).reshape(1, 2, 1, 1)
  np.testing.assert_allclose(losses.reconstruction(jnp.zeros((1, 2, 1, 1)), images), [np.log(2)], rtol=1e-6)
  divergence = losses.latent_divergence(jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 1.0]]))
  np.testing.assert_allclose(divergence, [0.5 - (2 - np.e) / 2], rtol=1e-6)


def test_dgr_weighs_rows_and_trains_the_vae_on_all_of_them(monkeypatch):
  # Two real rows of new classes and two replayed ones: w is 3/5 for past classes, 2/5 for new ones.
  images = np.random.default_rng(1).uniform(size=(4, 8, 8, 1)).astype(np.float32)
  labels = np.array([3, 4, 0, 2])
  both = Rows(jnp.asarray(labels), None, jnp.asarray(LOGITS), None, jnp.asarray(TEACHER), None, jnp.asarray(images))
  real, replayed = (jax.tree.map(lambda leaf, at=at: leaf[at], both) for at in (slice(0, 2), slice(2, 4)))
  drawn = np.random.default_rng(2).normal(size=images.shape).astype(np.float32)
  mean, log_variance = np.random.default_rng(3).normal(size=(2, 4, 1024)).astype(np.float32)
  monkeypatch.setattr(VAE, 'apply', lambda *args, **kwargs: (drawn, mean, log_variance))
  loss, terms = generative.dgr_loss(
      view(real=real, synthetic=replayed, both=both, own={'vae': None}, noise=lambda size: None), HPARAMS
  )
  weights = np.array([0.4, 0.4, 0.6, 0.6])
  made = 1 / (1 + np.exp(-drawn))
  pixels = (-images * np.log(made) - (1 - images) * np.log(1 - made)).reshape(4, -1).mean(axis=1)
  kl = -0.5 * (1 + log_variance - mean**2 - np.exp(log_variance)).sum(axis=1).mean() / 64
  expected = {
      'learn': np.mean(weights * cross_entropy(LOGITS[:, :5], labels)),
      'hold': held(LOGITS[2:], TEACHER[2:], [0, 1, 2]),
      'draw': np.mean(weights * pixels) + kl,
  }
  for name, value in expected.items():
    np.testing.assert_allclose(terms[name], value, rtol=1e-4, err_msg=name)
  np.testing.assert_allclose(loss, sum(expected.values()), rtol=1e-4)


# Table 3


@pytest.mark.parametrize('ablate', ABLATIONS)
def test_an_ablation_changes_its_term_and_no_other(ablate):
  rows, head, _ = view_of(jnp.asarray(FEATURES))
  loss, terms = abd_loss(rows, HPARAMS)
  ablated_loss, ablated = abd_loss(rows, config.Hyperparameters(ablate=ablate))
  logits = FEATURES @ np.asarray(head)
  # Every weight of this view is 1/2: past 2 of seen 4.
  shift = rows.teacher_head(jnp.ones((1, 3)))[0, :2]  # the teacher's features are the student's plus one, in every row
  expected = {
      'balance': {'learn': 2 * terms['learn'], 'separate': 2 * terms['separate']},
      'local_ce': {'learn': 0.5 * cross_entropy(logits[:2, :4], [2, 3]).mean()},
      'real_distillation': {'hold': np.mean(shift**2)},
      'synthetic_distillation': {'hold': np.mean(shift**2)},
      'finetune': {},
  }[ablate]
  for name in ('learn', 'separate', 'hold'):
    np.testing.assert_allclose(ablated[name], expected.get(name, terms[name]), rtol=1e-5, err_msg=name)
  weight = 0 if ablate == 'finetune' else 1
  np.testing.assert_allclose(
      ablated_loss, ablated['learn'] + weight * ablated['separate'] + 0.1 * ablated['hold'], rtol=1e-5
  )
  assert ablate.endswith('distillation') or abs(ablated_loss - loss) > 1e-3


@pytest.mark.parametrize('ablate, rows', [('real_distillation', [2, 3]), ('synthetic_distillation', [0, 1])])
def test_distillation_of_some_rows_is_felt_by_those_alone(ablate, rows):
  def hold(features):
    both, *_ = view_of(features)
    # A teacher that does not move along with the student, so that the term depends on the features.
    fixed = both.teacher_head(jnp.asarray(FEATURES) + 1.0)
    parts = {'real': slice(0, 2), 'synthetic': slice(2, 4), 'both': slice(0, 4)}
    both = both.replace(**{name: getattr(both, name).replace(teacher_logits=fixed[at]) for name, at in parts.items()})
    return abd_loss(both, config.Hyperparameters(ablate=ablate))[1]['hold']

  felt = np.any(np.asarray(jax.grad(hold)(jnp.asarray(FEATURES))) != 0, axis=1)
  assert np.flatnonzero(felt).tolist() == rows


def test_local_cross_entropy_ablated_reaches_the_features_and_the_past_heads():
  def learn(features):
    return abd_loss(view_of(features)[0], config.Hyperparameters(ablate='local_ce'))[1]['learn']

  gradient = jax.grad(learn)(jnp.asarray(FEATURES))
  assert np.all(gradient[:2] != 0) and np.all(gradient[2:] == 0)


# What moves, and what does not


@pytest.fixture(scope='module')
def student(small):
  model, settings = make_student('resnet8', CLASSES), config.Optimisation(weight_decay=0.1)
  optimizer = states.student_optimizer(settings)
  own = bias_correction.bias_layers(Shapes((8, 8, 1), 4, 8, 64))
  init = jax.jit(lambda key: states.init_student(model, optimizer, (8, 8, 1), key, own))
  return model, optimizer, init(jax.random.key(0))


def stepped(student, trains, loss, train_mode, steps_made=1):
  model, optimizer, state = student
  update = jax.jit(
      steps.make_student_update(
          model, optimizer, loss, hparams=HPARAMS, trains=trains, train_mode=train_mode, tasks=TASKS,
      )
  )
  images = jax.random.normal(jax.random.key(1), (4, 8, 8, 1))
  for _ in range(steps_made):
    state, metrics = update(state, None, steps.Batch(images, jnp.asarray(LABELS), PAST, SEEN, 0.1), None)
  return state, metrics


def test_the_bias_phase_moves_the_newest_bias_layer_alone(student):
  _, _, before = student
  after, _ = stepped(
      student, bias_correction.newest_bias_layer, bias_correction.bias_loss, train_mode=False, steps_made=2
  )
  own_before, own_after = before.params['own'], after.params['own']
  for name in ('scale', 'shift'):
    moved = np.asarray(own_after[name] != own_before[name])
    assert moved.tolist() == [False, False, True, False]  # class 3, the first new one, is of the third task
  rest = lambda state: {k: v for k, v in state.params.items() if k != 'own'}
  chex.assert_trees_all_equal(rest(after), rest(before))
  chex.assert_trees_all_equal(after.batch_stats, before.batch_stats)


def test_a_bias_layers_step_is_its_gradient_and_its_decay(student):
  def loss(view, hparams):  # gradients of 2 and 3 on every scale and shift
    return 2 * jnp.sum(view.own['scale']) + 3 * jnp.sum(view.own['shift']), {}

  after, _ = stepped(student, bias_correction.newest_bias_layer, loss, train_mode=False)
  # p - lr (g + wd p): 1 - .1 (2 + .1 * 1) = .79, and 0 - .1 * 3 = -.3.
  np.testing.assert_allclose(after.params['own']['scale'], [1, 1, 0.79, 1], rtol=1e-6)
  np.testing.assert_allclose(after.params['own']['shift'], [0, 0, -0.3, 0], rtol=1e-6)


def test_a_head_phase_moves_and_decays_the_head_alone(student):
  _, _, before = student
  frozen, _ = stepped(student, interface.head, METHODS['base'].later[0].loss, train_mode=False)
  for name, params in before.params.items():
    if name == 'head':
      assert np.all(frozen.params['head']['kernel'] != params['kernel'])  # of classes not met yet too: they decay
    else:
      chex.assert_trees_all_equal(frozen.params[name], params)
  chex.assert_trees_all_equal(frozen.batch_stats, before.batch_stats)
  updated, _ = stepped(student, interface.head, METHODS['base'].later[0].loss, train_mode=True)
  assert np.any(updated.batch_stats['bn1']['mean'] != before.batch_stats['bn1']['mean'])
  chex.assert_trees_all_equal(updated.params['conv1'], before.params['conv1'])


def test_bias_layers_rest_while_the_network_learns(student):
  _, _, before = student
  after, _ = stepped(student, interface.network, METHODS['base'].later[0].loss, train_mode=True)
  chex.assert_trees_all_equal(after.params['own'], before.params['own'])  # weight decay would pull the scales from 1
  assert np.any(after.params['conv1']['kernel'] != before.params['conv1']['kernel'])


def test_what_each_method_is_made_of():
  later = {name: method.later for name, method in METHODS.items()}
  of_lwf, of_bic, of_e2e = later['lwf_coreset'], later['bic'], later['e2e']
  assert [phase.loss for phase in of_lwf] == [distillation.lwf_loss]
  assert METHODS['bic'].coreset.rank is coreset.herding and METHODS['e2e'].coreset.rank is coreset.nearest_mean
  assert [phase.reads for phase in of_bic] == [interface.Reads.MIXED, interface.Reads.HOLD_OUT]
  assert [phase.reads for phase in of_e2e] == [interface.Reads.MIXED, interface.Reads.CORESET]
  assert (METHODS['dgr'].standardised, METHODS['dgr'].weight_decay) == (False, 0.0)
  represent, refine = later['rdfcil']
  assert represent.apart and represent.trains is interface.everything
  assert refine.frozen_statistics and refine.continues and refine.trains is interface.head
  for name in ('abd', 'deep_inversion', 'lwf_synthetic', 'rdfcil', 'dream'):
    assert all(phase.dreams for phase in later[name])


# The VAE


def test_a_vae_refuses_sides_that_it_cannot_halve_thrice():
  digits = data.load('digits')
  with pytest.raises(UserError, match='--method=dgr: images of 6x6 cannot be replayed by the VAE: both sides must be'):
    train.tasks_for(with_values(TINY, {'method': 'dgr', 'image_size': 6}), digits)


# Three tasks of digits

TINY = with_values(
    config.Config(),
    dict(
        num_tasks=3, num_classes=6, student='resnet8', batch_size=16, epochs=1, decay_at=(), inversion_steps=2,
        memory=240, color_jitter=False, flip=False, crop_padding=0,
    ),
)
UNEVEN = with_values(TINY, dict(num_classes=7, first_task_classes=3))  # 3 + 2 + 2
# Where each method is stopped, in looks for the signal: one at a task's begin, one a step, one after a phase.
STOPS = {
    'lwf': (30, 3), 'lwf_mc': (30, 3), 'lwf_synthetic': (30, 3), 'dgr': (30, 3),
    'rehearsal': (40, 3), 'lwf_coreset': (40, 3), 'e2e': (30, 35, 2), 'bic': (30, 33, 1), 'rdfcil': (30, 20, 35, 5),
    'dream': (30, 3),
}
OTHERWISE = {'rdfcil': dict(student='resnet8_icarl', head_bias='false', second_epochs=2)}
# The place of the second learning phase in a task's plan: e2e chooses its coreset before it, bic after; rdfcil dreams.
SECOND_PHASE = {'e2e': 2, 'bic': 1, 'rdfcil': 2}


@pytest.mark.parametrize('method', STOPS)
def test_three_tasks_of_digits_stopped_and_resumed(method, small, digits, tmp_path, capsys):
  tiny = with_values(UNEVEN, {'method': method} | OTHERWISE.get(method, {}))
  whole = train.run(tiny, tmp_path / 'whole', digits)
  traces = programs.programs_for(tiny, train.tasks_for(tiny, digits), digits).traces()
  assert set(traces.values()) == {1}, traces
  matrix = np.array(whole.accuracy_matrix, float)
  assert matrix.shape == (3, 3) and np.all(np.isfinite(matrix[np.tril_indices(3)]))

  for looks in STOPS[method]:
    with pytest.raises(Preempted):
      train.run(tiny, tmp_path / 'stopped', digits, StopAfter(looks))
  resumed = train.run(tiny, tmp_path / 'stopped', digits)
  assert resumed.accuracy_matrix == whole.accuracy_matrix
  chex.assert_trees_all_equal(final_states(tmp_path / 'stopped'), final_states(tmp_path / 'whole'))
  places = re.findall(r'Resuming after (\d+) tasks, (\d+) phases and (\d+) steps', capsys.readouterr().out)
  phases_stopped_in = {int(phase) for _, phase, step in places if int(step)}
  assert len(places) == len(STOPS[method]) and SECOND_PHASE.get(method, max(phases_stopped_in)) in phases_stopped_in
  assert set(programs.programs_for(tiny, train.tasks_for(tiny, digits), digits).traces().values()) == {1}

  kept = final_states(tmp_path / 'whole')
  passing = 'own' if METHODS[method].renews_own else None
  network = {name: leaf for name, leaf in kept['student']['params'].items() if name != passing}
  parameters = sum(leaf.size for leaf in jax.tree.leaves(network))
  old_images = 240 if METHODS[method].coreset else 0
  assert (whole.memory_held['parameters'], whole.memory_held['images']) == (parameters, old_images)
  assert ('coreset' in kept) == bool(METHODS[method].coreset)
  if method == 'bic':  # trained once each, in the second and the third task
    assert np.flatnonzero(kept['student']['params']['own']['scale'] != 1).tolist() == [1, 2]


def test_only_declared_methods_keep_old_images():
  assert {name for name, method in METHODS.items() if method.coreset} == {'rehearsal', 'lwf_coreset', 'e2e', 'bic'}
  assert {name for name, method in METHODS.items() if method.cumulative} == {'upper_bound'}


def test_second_phases_have_a_hundredth_of_the_rate_and_the_flags_they_obey():
  settings = config.Optimisation(epochs=9, learning_rate=0.5, decay_at=(3,))
  for name in ('e2e', 'bic'):
    phase = METHODS[name].later[1]
    assert phase.frozen_statistics and phase.schedule(settings) == Schedule(9, 0.01 * 0.5, (3,))
    told = dataclasses.replace(settings, second_epochs=6, second_learning_rate=2.0)  # decays at a third of it too
    assert phase.schedule(told) == Schedule(6, 2.0, (2,)) and METHODS[name].later[0].schedule(told).epochs == 9
  assert [Schedule(9, 2.0, (3, 5)).rate(epoch) for epoch in (2, 3, 5)] == pytest.approx([2, 0.2, 0.02])
  layers = {'scale': jnp.array([1.0, 2.0]), 'shift': jnp.array([0.0, 1.0])}
  read = METHODS['bic'].readout
  logits, tasks = jnp.ones((1, 3)), jnp.array([0, 0, 1])
  np.testing.assert_array_equal(read(logits, layers, tasks, HPARAMS), [[1, 1, 3]])
  raw = dataclasses.replace(HPARAMS, bic_evaluation='raw')
  np.testing.assert_array_equal(read(logits, layers, tasks, raw), logits)


def test_several_steps_a_call_in_two_phases(small, digits, tmp_path):
  # The bias phase has two steps in the second task and one in the third: calls of four are never full there.
  lines = []
  for name, steps_per_call in (('one', 1), ('four', 4)):
    several = with_values(UNEVEN, {'method': 'bic', 'steps_per_call': steps_per_call})
    train.run(several, tmp_path / name, digits)
    traces = programs.programs_for(several, train.tasks_for(several, digits), digits).traces()
    assert max(traces.values()) == len(lines) + 1  # one for each number of steps
    lines.append([json.loads(line) for line in (tmp_path / name / 'metrics.jsonl').read_text().splitlines()])
  for line in lines:
    assert [found['steps'] for found in line if found.get('phase') == 'bias'] == [2, 1]
  assert [line['at'] for line in lines[0]] == [line['at'] for line in lines[1]]
  assert lines[0][0]['loss'] == pytest.approx(lines[1][0]['loss'], rel=1e-3)  # within a loop XLA fuses otherwise


def test_labels_are_counted_epoch_by_epoch_however_many_steps_a_call_makes(small, digits, tmp_path, monkeypatch):
  # 17 or 18 steps an epoch in calls of four; two epochs of refining after one of representing. The synthetic labels
  # depend on float sums, which a loop orders otherwise: their number does not.
  several = with_values(UNEVEN, {'method': 'rdfcil', 'steps_per_call': 4, 'stop_after_task': 2} | OTHERWISE['rdfcil'])
  build, did = train.programs_for, []

  def watched(*args):
    found = build(*args)
    learn = {
        phase: as_step(lambda *args, phase=phase: did.append((phase.name, args[10])) or found.learn[phase](*args))
        for phase in found.learn
    }
    restart = as_step(lambda student: did.append('restart') or found.restart(student))
    return dataclasses.replace(found, learn=learn, restart=restart)

  monkeypatch.setattr(train, 'programs_for', watched)
  train.run(several, tmp_path, digits)
  # The second phase has a rate of its own and goes on with the momentum of the first.
  of_task_2 = did[did.index(('represent', 0.1)) - 1 :]
  assert [found for found, _ in itertools.groupby(of_task_2)] == ['restart', ('represent', 0.1), ('refine', 0.005)]
  lines = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
  epochs = [line['steps'] for line in lines if line['task'] == 2 and line.get('phase') in ('represent', 'refine')]
  assert len(epochs) == 3 and len(set(epochs)) == 1
  tally = final_states(tmp_path)['student']['tally']
  assert (tally['so_far'].sum(), tally['before_epoch'].sum()) == (2 * 16 * sum(epochs), 2 * 16 * sum(epochs[:2]))
  # As many synthetic images, of the past classes, as real ones, of the new; none of classes not met yet.
  assert tally['so_far'][3:5].sum() == tally['so_far'][:3].sum() and not tally['so_far'][5:].any()


def test_projections_are_new_in_each_task_and_the_same_again_when_it_begins_again(small, digits):
  settings = with_values(TINY, {'method': 'rdfcil'} | OTHERWISE['rdfcil'])
  made = programs.programs_for(settings, train.tasks_for(settings, digits), digits)
  place = lambda task: np.array([0, task, Address.STUDENT_INIT, 0], np.int32)
  first = made.init_student(place(0))
  second = made.renew(first.replace(tally=jax.tree.map(lambda counts: counts + 1, first.tally)), place(1))
  chex.assert_trees_all_equal(second, made.renew(second, place(1)))
  for name, params in first.params.items():
    same = jax.tree.map(np.array_equal, params, second.params[name])
    assert not any(jax.tree.leaves(same)) if name == 'own' else all(jax.tree.leaves(same)), name
  assert not np.any(second.tally.so_far)


@pytest.mark.parametrize('inversion', ['generator', 'images'])
def test_a_method_can_bring_a_loss_of_its_own_to_the_inversion(inversion, small, digits, tmp_path, monkeypatch):
  def symmetric(model, variables, images, past, hparams, axis=None):
    loss, terms = inversion_loss(model, variables, images, past, hparams, axis)
    askew = jnp.mean(jnp.abs(images - images[:, :, ::-1]))
    return loss + 1e3 * askew, {**terms, 'askew': askew}

  monkeypatch.setitem(METHODS, 'mirror', dataclasses.replace(METHODS['abd'], name='mirror', inverts=symmetric))
  short = dict(
      inversion=inversion, inversion_steps=40, generator_learning_rate=0.02, synthetic_images=16, image_steps=40,
      image_jitter=0, stop_after_task=2,
  )
  askew = {}
  for name in ('mirror', 'abd'):
    train.run(with_values(TINY, {'method': name, **short}), tmp_path / name, digits)
    images = np.load(tmp_path / name / 'synthetic_task2.npz')['images'].astype(float)
    askew[name] = np.mean(np.abs(images - images[:, :, ::-1]))
  lines = map(json.loads, (tmp_path / 'mirror' / 'metrics.jsonl').read_text().splitlines())
  [line] = [line for line in lines if line.get('phase') == 'inversion']
  assert {'askew', 'content'} < set(line) and askew['mirror'] < 0.5 * askew['abd'], askew


def test_statistics_move_in_the_second_phase_when_asked(small, digits, tmp_path):
  after = {}
  for value in ('frozen', 'updated'):
    two = with_values(TINY, {'method': 'e2e', 'stop_after_task': 2, 'phase2_batch_stats': value})
    train.run(two, tmp_path / value, digits)
    after[value] = final_states(tmp_path / value)['student']
  for name, params in after['frozen']['params'].items():
    same = jax.tree.map(np.array_equal, params, after['updated']['params'][name])
    assert all(jax.tree.leaves(same)) == (name != 'head'), name  # that alone learns there, on other statistics
  frozen, updated = (after[name]['batch_stats']['bn1']['mean'] for name in ('frozen', 'updated'))
  assert not np.array_equal(frozen, updated)
