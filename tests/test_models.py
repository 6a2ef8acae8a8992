"""Shapes, sizes and initial weights of the networks."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abd_jax.models import generator_for, make_generator, make_student
from abd_jax.models.generator import UpsampledConv
from abd_jax.models.vae import VAE
from abd_jax.parallel import compiler_options
from abd_jax.states import LATENT_SIZE


def initial(model, example):
  return jax.jit(lambda key: model.init(key, example, train=False))(jax.random.key(0))


def parameters(model, example):
  shapes = jax.eval_shape(lambda key: model.init(key, example, train=False), jax.random.key(0))
  return sum(leaf.size for leaf in jax.tree.leaves(shapes['params']))


@pytest.mark.parametrize('name, side, expected', [
    ('cifar', 32, 8423939), ('tiny', 64, 8571779), ('imagenet', 224, 3326275),
])
def test_generator_sizes(name, side, expected):
  assert parameters(make_generator(name, (side, side, 3)), jnp.zeros((1, LATENT_SIZE))) == expected


@pytest.mark.parametrize('name, layers', [('resnet8', 8), ('resnet20', 20), ('resnet32', 32)])
def test_resnet_depth_and_size(name, layers):
  # 3 -> 16, then n blocks a stage of two convolutions, each convolution with a BatchNorm; 64 -> 100 with bias.
  n = (layers - 2) // 6
  convs = 27 * 16 + (2 * n) * 9 * 16 * 16
  convs += 9 * 16 * 32 + (2 * n - 1) * 9 * 32 * 32 + 9 * 32 * 64 + (2 * n - 1) * 9 * 64 * 64
  norms = 2 * (16 + 2 * n * (16 + 32 + 64))
  assert parameters(make_student(name, 100), jnp.zeros((1, 32, 32, 3))) == convs + norms + 64 * 100 + 100


def test_resnet_logits_are_the_head_on_the_features():
  model = make_student('resnet8', 7)
  images = jax.random.normal(jax.random.key(1), (3, 8, 8, 1))
  variables = initial(model, images)
  features = model.apply(variables, images, train=False, method='features')
  chex.assert_shape(features, (3, 64))
  logits = model.apply(variables, features, method='classify')
  chex.assert_trees_all_equal(logits, model.apply(variables, images, train=False))
  chex.assert_shape(logits, (3, 7))


@pytest.mark.parametrize('name, plain', [('resnet8_icarl', 'resnet8'), ('resnet32_icarl', 'resnet32')])
def test_icarls_network_is_as_deep_and_has_no_bias_in_the_head_unless_told(name, plain):
  images = jnp.zeros((1, 32, 32, 3))
  plain = parameters(make_student(plain, 100), images)
  assert parameters(make_student(name, 100), images) == plain - 100
  biased = make_student(name, 100, head_bias=True)
  assert parameters(biased, images) == plain
  assert not np.any(initial(biased, images)['params']['head']['bias'])


def test_icarls_blocks_begin_as_their_shortcuts_and_end_without_relu():
  model = make_student('resnet8_icarl', 1000)
  images = jax.random.normal(jax.random.key(1), (3, 8, 8, 1))
  variables = initial(model, images)
  params = variables['params']
  features_of = jax.jit(lambda variables: model.apply(variables, images, train=False, method='features'))
  features = features_of(variables)
  # The last scale of a block is zero at first: what the stem gives comes out, its 16 channels before 48 of zeros.
  assert np.all(features[:, :16] >= 0) and np.all(np.any(features[:, :16], axis=0)) and not np.any(features[:, 16:])
  shifted = jax.tree.map(lambda leaf: leaf, variables)
  shifted['params']['layer3_0']['bn2']['bias'] = -jnp.ones(64)
  np.testing.assert_allclose(features_of(shifted)[:, 16:], -1)
  # N(0, 2 / fan_out), of nine pixels times the channels that come out; a head of N(0, 0.001^2).
  np.testing.assert_allclose(np.std(params['layer2_0']['conv1']['kernel']), (2 / (9 * 32)) ** 0.5, rtol=0.03)
  np.testing.assert_allclose(np.std(params['head']['kernel']), 1e-3, rtol=0.02)


def test_initial_weights():
  model = make_student('resnet8', 1000)
  params = initial(model, jnp.zeros((1, 8, 8, 3)))['params']
  # N(0, 2 / fan_in): 9 * 64 for the last convolution, 64 for the head; bias within 1/8.
  np.testing.assert_allclose(np.std(params['layer3_0']['conv2']['kernel']), (2 / (9 * 64)) ** 0.5, rtol=0.02)
  np.testing.assert_allclose(np.std(params['head']['kernel']), (2 / 64) ** 0.5, rtol=0.02)
  bias = np.asarray(params['head']['bias'])
  assert -0.125 <= bias.min() < -0.12 and 0.12 < bias.max() <= 0.125
  generator = make_generator('cifar', (8, 8, 1))
  params = initial(generator, jnp.zeros((1, LATENT_SIZE)))['params']
  for name, fan_in in {'stem': LATENT_SIZE, 'conv1': 9 * 128, 'conv2': 9 * 128, 'conv_out': 9 * 64}.items():
    for leaf in ('kernel', 'bias'):
      values = np.abs(np.asarray(params[name][leaf]))
      assert 0.85 * fan_in**-0.5 * (leaf == 'kernel') < values.max() <= fan_in**-0.5 * 1.0001, (name, leaf)


def test_upsampled_convolution_is_doubling_then_convolution():
  small = jax.random.normal(jax.random.key(0), (2, 3, 5, 4))
  layer = UpsampledConv(6)
  variables = layer.init(jax.random.key(1), small)
  doubled = jnp.repeat(jnp.repeat(small, 2, axis=1), 2, axis=2)
  expected = nn.Conv(6, (3, 3), padding=((1, 1), (1, 1))).apply(variables, doubled)
  chex.assert_trees_all_close(layer.apply(variables, small), expected, atol=1e-5)


def test_generator_fits_any_multiple_of_four_and_any_channels():
  for shape in ((8, 8, 1), (12, 20, 5)):
    model = make_generator('cifar', shape)
    images, _ = jax.eval_shape(
        lambda key, model=model: model.init_with_output(key, jnp.zeros((2, LATENT_SIZE)), train=True), jax.random.key(0)
    )
    assert images.shape == (2, *shape)
  with pytest.raises(ValueError, match='10x10 cannot be generated: both sides must be multiples of 4'):
    make_generator('cifar', (10, 10, 3))


def test_generator_is_chosen_by_size():
  chosen = [generator_for('auto', (side, side, 3)) for side in (48, 52, 96, 100)]
  assert chosen == ['cifar', 'tiny', 'tiny', 'imagenet']
  assert generator_for('cifar', (224, 224, 3)) == 'cifar'


@pytest.mark.parametrize('build, example', [
    (lambda dtype: make_student('resnet8', 7, dtype), jnp.zeros((4, 16, 16, 3))),
    (lambda dtype: make_generator('cifar', (8, 8, 3), dtype), jnp.zeros((4, LATENT_SIZE))),
])
def test_bfloat16_is_for_activations_alone(build, example):
  model = build('bfloat16')
  variables = initial(model, example)
  result, updates = jax.eval_shape(lambda v: model.apply(v, example, train=True, mutable=['batch_stats']), variables)
  assert {leaf.dtype for leaf in jax.tree.leaves((variables, result, updates))} == {jnp.dtype('float32')}
  seen = set()

  def record(call, args, kwargs, context):
    result = call(*args, **kwargs)
    if isinstance(context.module, nn.Conv):
      seen.add(result.dtype.name)
    return result

  with nn.intercept_methods(record):
    jax.eval_shape(lambda v: model.apply(v, example, train=False), variables)
  assert seen == {'bfloat16'}
  # Eight bits of mantissa: what comes of it is near what float32 gives, and is not that. Compiled as a run's steps are.
  images, as_in_a_run = jax.random.normal(jax.random.key(2), example.shape), compiler_options()
  near, exact = (
      jax.jit(functools.partial(build(dtype).apply, train=False), compiler_options=as_in_a_run)(variables, images)
      for dtype in ('bfloat16', 'float32')
  )
  assert 0 < float(jnp.max(jnp.abs(near - exact))) < 0.1 * float(jnp.max(jnp.abs(exact)))


def test_the_vae_has_the_papers_layers():
  model = VAE((32, 32, 3))
  shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((2, 32, 32, 3)), jnp.zeros((2, 1024)))['params']
  # 4x4 convolutions with biases 3-64-128-512, two linear layers 8192-1024, one back, 512-256-64-3.
  convolutions = 16 * (3 * 64 + 64 * 128 + 128 * 512 + 512 * 256 + 256 * 64 + 64 * 3) + 64 + 128 + 512 + 256 + 64 + 3
  linear = 3 * 8192 * 1024 + 2 * 1024 + 8192
  assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == convolutions + linear
  out, mean, _ = jax.eval_shape(model.apply, {'params': shapes}, jnp.zeros((2, 32, 32, 3)), jnp.zeros((2, 1024)))
  assert out.shape == (2, 32, 32, 3) and mean.shape == (2, 1024)


def test_resnet18_is_the_real_one():
  model = make_student('resnet18', 1000)
  assert parameters(model, jnp.zeros((1, 224, 224, 3))) == 11689512
  images = jnp.zeros((2, 224, 224, 3))
  shapes = {}

  def record(call, args, kwargs, context):
    result = call(*args, **kwargs)
    if context.method_name == '__call__':
      shapes['/'.join(context.module.path)] = result.shape
    return result

  with nn.intercept_methods(record):
    features = jax.eval_shape(
        lambda key: model.init_with_output(key, images, train=False, method='features')[0], jax.random.key(0)
    )
  # Halved by the stem, by the pool before layer1, and by the first block of every later stage.
  places = ('conv1', 'layer1_1', 'layer2_1', 'layer3_1', 'layer4_1')
  assert [shapes[place][1:] for place in places] == [
      (112, 112, 64), (56, 56, 64), (28, 28, 128), (14, 14, 256), (7, 7, 512)
  ]
  assert {place for place in shapes if 'shortcut' in place} == {
      f'layer{stage}_0/{part}_shortcut' for stage in (2, 3, 4) for part in ('conv', 'bn')
  }
  assert features.shape == (2, 512)


def test_resnet18_initial_weights_and_head():
  model = make_student('resnet18', 50)
  images = jax.random.normal(jax.random.key(1), (2, 32, 32, 3))
  variables = initial(model, images)
  params = variables['params']
  # Fan-out He normal: variance 2 / (side * side * features); the head within 1 / sqrt(512), evenly.
  np.testing.assert_allclose(np.std(params['conv1']['kernel']), (2 / (49 * 64)) ** 0.5, rtol=0.03)
  np.testing.assert_allclose(np.std(params['layer4_0']['conv_shortcut']['kernel']), (2 / 512) ** 0.5, rtol=0.01)
  for leaf in ('kernel', 'bias'):
    values = np.abs(np.asarray(params['head'][leaf]))
    assert 0.9 * 512**-0.5 < values.max() <= 512**-0.5 * 1.0001
  logits = jax.jit(lambda v: model.apply(v, images, train=False))(variables)
  head = jax.jit(lambda v: model.apply(v, model.apply(v, images, train=False, method='features'), method='classify'))
  chex.assert_trees_all_close(logits, head(variables), rtol=1e-5)
