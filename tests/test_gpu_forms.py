"""What is written otherwise for GPUs, run as it is there on this machine's device: the same figures."""

import functools
import importlib.util

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abd_jax import parallel, programs, states
from abd_jax.benchmark import compile_for
from abd_jax.benchmark.hot_steps import hot_steps, prepared
from abd_jax.config import Config, with_values
from abd_jax.models import batch_norm, convolution, folding, generator, make_student, resnet
from abd_jax.models.batch_norm import BatchNorm
from tests import test_batch_norm, test_golden, test_models


@pytest.fixture
def as_on_a_gpu(monkeypatch):
  for module in (batch_norm, generator, resnet, programs):
    monkeypatch.setattr(module, 'platform', lambda: 'gpu')
  programs.clear()
  yield
  programs.clear()


def close(a, b, tolerance=1e-5):
  """Whether the trees are, each leaf to its own largest figure."""
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance * max(1e-30, np.abs(y).max()))


def bent(variables):
  """Weights and statistics that are nobody's initial ones."""
  leaves, structure = jax.tree.flatten(variables)
  rng = np.random.default_rng(0)
  drawn = [leaf * (1 + 0.3 * rng.random(leaf.shape)) + 0.05 * rng.random(leaf.shape) for leaf in leaves]
  return jax.tree.unflatten(structure, [np.float32(leaf) for leaf in drawn])


@pytest.mark.parametrize('name, norms', [('golden_resnet8', 7), ('golden_resnet32', 31)])
def test_the_authors_figures_are_reached(as_on_a_gpu, optimised, monkeypatch, name, norms):
  figures, model, variables = test_golden.recorded(name)
  golden = figures, model, variables, test_golden.TOLERANCES[name]
  test_golden.test_inversion_terms_and_image_gradient(golden)
  test_golden.test_five_steps_of_generator_training(golden)
  teacher = folding.fold(model, states.TeacherState(**variables), (32, 32, 3))
  assert len(teacher.convolutions) == norms
  monkeypatch.setattr(states, 'TeacherState', lambda **variables: teacher)
  test_golden.test_four_successive_steps_of_a_method(golden, 'abd')


def test_norms_sum_to_the_same(as_on_a_gpu):
  test_batch_norm.test_moments_are_those_of_double_precision(-40, 1, -40.1)
  test_batch_norm.test_the_gradient_of_moments_is_that_of_the_definition()
  test_batch_norm.test_batch_norm_is_flaxs({})
  for shape in ((7, 3), (7, 5, 3), (7, 5, 2, 3), (3, 16, 18, 3), (3, 17, 17, 3)):  # the last but one in quarters
    values = test_batch_norm.drawn(shape=shape)
    close(batch_norm._sums(values, values**2), np.stack([values, values**2]).sum(tuple(range(1, len(shape)))))


def test_an_upsampled_convolution_and_its_gradients_are_the_same(monkeypatch):
  images = jax.random.normal(jax.random.key(0), (2, 3, 5, 4))
  layer = generator.UpsampledConv(6)
  variables = layer.init(jax.random.key(1), images)

  def gradients():
    loss = lambda variables, images: jnp.sum(jnp.sin(layer.apply(variables, images)))
    return jax.grad(loss, (0, 1))(variables, images)

  usual = gradients()
  monkeypatch.setattr(generator, 'platform', lambda: 'gpu')
  text = str(jax.make_jaxpr(layer.apply)(variables, images))
  assert text.count('optimization_barrier') == 1
  test_models.test_upsampled_convolution_is_doubling_then_convolution()
  close(gradients(), usual)


def test_a_relu_of_a_sum_is_one(as_on_a_gpu):
  values = jnp.array([-2.0, -0.0, 0.0, 1e-30, 3.0])
  found = jax.vjp(resnet.relu_of_sum, values)
  usual = jax.vjp(nn.relu, values)
  np.testing.assert_array_equal(found[0], usual[0])
  np.testing.assert_array_equal(found[1](jnp.arange(1.0, 6.0))[0], usual[1](jnp.arange(1.0, 6.0))[0])


@pytest.mark.parametrize('name, norms, precision', [
    ('resnet8', 7, 'float32'), ('resnet8', 7, 'bfloat16'), ('resnet8_icarl', 7, 'float32'), ('resnet18', 20, 'float32'),
])
def test_a_folded_network_says_the_same_with_as_many_convolutions(name, norms, precision):
  model = make_student(name, 5, precision)
  images = np.random.default_rng(1).normal(0, 1, (2, 16, 16, 3)).astype(np.float32)
  variables = bent(test_models.initial(model, images))
  state = states.TeacherState(variables['params'], variables['batch_stats'])
  folded = jax.jit(lambda state: folding.fold(model, state, images.shape[1:]))(state)
  assert model.foldable and len(folded.convolutions) == norms

  @functools.partial(jax.jit, compiler_options=parallel.compiler_options(runs_once=True))
  def features(state):
    return folding.apply(model, state, images, method='features')

  close(features(folded), features(state), 1e-5 if precision == 'float32' else 3e-2)
  # Nobody asks for what the convolutions gave that were folded: they are not compiled.
  program = features.lower(folded).compile().as_text()
  assert program.count('custom_call_target="abd_convolve"') + program.count(' convolution(') == norms


class Own(nn.Conv):
  """A convolution that is not what it is called."""

  def __call__(self, images):
    return 2 * super().__call__(images)


class Odd(nn.Module):
  """Norms before any convolution, after two, after none, without parameters; convolutions of another kind."""

  @nn.compact
  def __call__(self, images, train):
    norm = lambda name, **parts: BatchNorm(use_running_average=not train, epsilon=0.5, name=name, **parts)
    conv = functools.partial(nn.Conv, 4, dtype=jnp.float32)
    x = norm('first')(images)
    twice = norm('twice')
    x = twice(conv((3, 3), name='one')(x)) + twice(conv((1, 1), name='other')(x))
    x = norm('bare', use_scale=False, use_bias=False)(conv((3, 3), name='conv')(x))
    x = norm('weighted')(nn.WeightNorm(conv((1, 1), name='inner'), name='weight')(x))
    x = norm('own')(Own(4, (1, 1), dtype=jnp.float32)(x))
    x = norm('mixed')(nn.Conv(4, (1, 1), dtype=jnp.bfloat16)(x))
    x = norm('later')(nn.relu(conv((1, 1))(x)))
    return norm('last')(nn.Dense(2)(x))


def test_only_a_norm_right_after_a_convolution_is_folded():
  images = np.random.default_rng(1).normal(0, 1, (2, 6, 6, 3)).astype(np.float32)
  variables = bent(Odd().init(jax.random.key(0), images, train=False))
  state = states.TeacherState(variables['params'], variables['batch_stats'])
  folded = folding.fold(Odd(), state, images.shape[1:])
  assert [*folded.convolutions] == ['one twice', 'other twice', 'conv bare', 'inner weighted']
  close(folding.apply(Odd(), folded, images), Odd().apply(variables, images, train=False))


# Before what asks for `small` networks, which are so until the module's end.
@pytest.mark.skipif(not importlib.util.find_spec('jax_cuda13_plugin'), reason="GPUs' compiler is missing: '.[cuda]'")
def test_less_is_launched_and_moved(monkeypatch, optimised):
  monkeypatch.setattr(convolution, '_own', lambda *arguments: None)  # which move more, in less time
  settings = with_values(Config(), dict(dataset='random', num_tasks=10, student='resnet8', batch_size=32))
  launched = []
  for kind in ('gpu', 'tpu'):
    for module in (batch_norm, generator, resnet, programs):
      monkeypatch.setattr(module, 'platform', lambda kind=kind: kind)
    launched.append(compile_for.run(settings, 'h100')['steps'])
  for ours, usual in zip(*launched, strict=True):
    assert ours['kernels'] < usual['kernels'] and ours['moved_bytes'] < usual['moved_bytes'], (ours, usual)


@pytest.mark.skipif(not importlib.util.find_spec('jax_cuda13_plugin'), reason="GPUs' compiler is missing: '.[cuda]'")
@pytest.mark.parametrize('precision', ['float32', 'bfloat16'])
def test_a_gpus_program_has_our_kernels(precision, optimised):
  settings = with_values(Config(), dict(dataset='random', num_tasks=10, student='resnet8', precision=precision))
  with parallel.compiled_for(compile_for.chips('h100')), compile_for._told_of_gpus():
    hot = compile_for._hot_steps(settings)['abd']
    text = hot.step.jitted.trace(hot.state, *hot.others(0)).lower(lowering_platforms=('cuda',)).compile().as_text()
  # Of convolutions with as many channels out as in, first with those of colours, student and teacher have five, two of
  # them of 16 channels; colours need no gradient.
  calls = [line for line in text.split('\n') if 'custom_call_target="__gpu$xla.gpu.triton"' in line]
  count = lambda name: sum(name in line for line in calls)
  found = count('abd_convolve'), count('abd_kernel_gradient')
  assert found == {'bfloat16': (5 + 5 + 4, 5), 'float32': (2 + 2 + 2, 3)}[precision]


def test_calls_of_the_hot_steps_come_to_the_same(small, as_on_a_gpu, monkeypatch):
  settings = with_values(Config(), dict(
      dataset='random', num_tasks=10, student='resnet8', image_size=8, batch_size=8, steps_per_call=2,
      learning_rate=1e-3,
  ))
  folded = []
  monkeypatch.setattr(folding, 'fold', lambda *args, fold=folding.fold: folded.append(fold(*args)) or folded[-1])

  def moved():
    tasks, built = prepared(settings, 200)
    place = np.zeros(4, np.int32)
    student, dreamer = built.init_student(place), built.init_generator(place)
    hot = hot_steps(settings, tasks, built, student, dreamer, *tasks.train(1))
    of = lambda name: hot[name].step(jax.tree.map(jnp.copy, hot[name].state), *hot[name].others(0))[1]
    return of('abd'), of('generator')

  found = moved()
  assert [len(one.convolutions) for one in folded] == [1]  # ABD's teacher alone, once for both steps
  monkeypatch.setattr(resnet.ResNet, 'foldable', False)
  programs.clear()
  close(moved(), found)
  for module in (batch_norm, generator, resnet, programs):
    monkeypatch.setattr(module, 'platform', lambda: 'cpu')
  programs.clear()
  close(found, moved())
  assert len(folded) == 1  # neither for a network that does not say that it may be, nor elsewhere
