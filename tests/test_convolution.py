"""Our own CPU kernels against XLA's convolution: values, both gradients, and what happens without a compiler."""

import logging

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from abd_jax import native
from abd_jax.models import convolution

SAME = ((1, 1), (1, 1))

needs_kernels = pytest.mark.skipif(not native.lanes(), reason='there is no C++ compiler to build the kernels with')


def arrays(images_shape, kernel_shape):
  rng = np.random.default_rng(0)
  return tuple(jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in (images_shape, kernel_shape))


def value_and_gradients(convolve, images, kernel, take=lambda array: array):
  """The result, and the gradients of images and kernel for an upstream gradient that differs everywhere; of what `take`
  makes of all three."""
  value, backward = jax.vjp(convolve, take(images), take(kernel))
  upstream = jnp.sin(jnp.arange(value.size, dtype=jnp.float32)).reshape(value.shape)
  return value, *backward(take(upstream))


def assert_equal_to_xla(images, kernel, stride, padding):
  ours = value_and_gradients(
      lambda x, w: convolution.conv_general_dilated(x, w, (stride, stride), padding), images, kernel
  )
  yardstick = lambda x, w: convolution._xla(x, w, stride, padding)
  xla = value_and_gradients(yardstick, images, kernel)
  # Sums in another order: apart by a few roundings (2**-24 each) of what their terms come to without their signs, at
  # the place of the image, or the tap, where that is most: products of tiles are of sums over neighbours. A term too
  # many or too few would be some thousandth of it at least.
  unsigned = value_and_gradients(yardstick, images, kernel, jnp.abs)
  for a, b, most, places in zip(ours, xla, unsigned, ((1, 2), (1, 2), (0, 1)), strict=True):
    assert jnp.all(jnp.abs(a - b) <= 8 * 2**-24 * jnp.max(most, places, keepdims=True))


@needs_kernels
@pytest.mark.parametrize('images, kernel, stride, padding', [
    ((3, 8, 8, 16), (3, 3, 16, 32), 1, SAME),
    ((3, 8, 8, 16), (3, 3, 16, 32), 2, SAME),
    ((40, 2, 2, 32), (3, 3, 32, 16), 1, SAME),  # several small images at a time
    ((2, 16, 16, 3), (7, 7, 3, 64), 2, ((3, 3), (3, 3))),
    ((2, 5, 4, 32), (2, 2, 32, 16), 1, ((1, 0), (0, 1))),
    ((2, 6, 6, 32), (3, 3, 32, 3), 1, SAME),  # few features: the kernel's gradient with changed places
    ((2, 6, 6, 5), (3, 3, 5, 7), 1, SAME),  # no vector fits
    ((7, 6, 4, 48), (3, 3, 48, 16), 1, SAME),  # tiles that fill no block
    ((2, 8, 8, 16), (3, 3, 16, 16), 1, ((0, 0), (2, 2))),
    ((2, 7, 6, 16), (3, 3, 16, 32), 1, SAME),  # an odd side has no tiles of two
    ((2, 6, 7, 16), (3, 3, 16, 32), 1, SAME),
    ((2, 4, 4, 144), (3, 3, 144, 128), 1, SAME),  # nor has a kernel too large for the cache
    ((4, 8, 8, 16), (1, 1, 16, 48), 2, ((0, 0), (0, 0))),
    ((4, 8, 8, 16), (4, 4, 16, 32), 2, SAME),
])
def test_values_and_gradients_are_those_of_xla(images, kernel, stride, padding):
  assert_equal_to_xla(*arrays(images, kernel), stride, padding)


@needs_kernels
@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(1, 40), height=st.integers(1, 9), width=st.integers(1, 9),
    channels=st.integers(1, 20) | st.sampled_from([16, 32, 48]),
    features=st.sampled_from([16, 32, 48]), side=st.integers(1, 3), stride=st.integers(1, 2),
)
def test_any_shape(n, height, width, channels, features, side, stride):
  border = ((side // 2, side // 2),) * 2
  # XLA, which is the yardstick, cannot compile its own gradient where a kernel of 2x2 at stride 2 meets a side of 1.
  assume(not (side == stride == 2 and min(height, width) == 1))
  if min(height, width) + 2 * (side // 2) >= side:
    assert_equal_to_xla(*arrays((n, height, width, channels), (side, side, channels, features)), stride, border)


@needs_kernels
def test_it_is_our_kernels_that_are_called():
  images, kernel = arrays((2, 8, 8, 16), (3, 3, 16, 16))
  gradient = jax.jit(jax.grad(lambda w: jnp.sum(convolution.conv_general_dilated(images, w, (1, 1), SAME) ** 2)))
  text = gradient.lower(kernel).as_text()
  assert 'abd_convolve' in text and 'abd_kernel_gradient' in text and 'stablehlo.convolution' not in text


@needs_kernels
def test_repeated_runs_agree_to_the_bit():
  images, kernel = arrays((64, 8, 8, 16), (3, 3, 16, 16))
  convolve = jax.jit(lambda x, w: value_and_gradients(
      lambda x, w: convolution.conv_general_dilated(x, w, (1, 1), SAME), x, w))
  first = convolve(images, kernel)
  for _ in range(20):
    chex.assert_trees_all_equal(convolve(images, kernel), first)


@needs_kernels
def test_several_kernels_at_once_under_vmap():
  images, kernel = arrays((3, 2, 6, 6, 16), (3, 3, 3, 16, 16))
  ours = jax.vmap(lambda x, w: convolution.conv_general_dilated(x, w, (1, 1), SAME))(images, kernel)
  each = [convolution._xla(x, w, 1, SAME) for x, w in zip(images, kernel, strict=True)]
  chex.assert_trees_all_close(ours, jnp.stack(each), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('platform', ['tpu', 'cuda'])
def test_other_platforms_get_xlas_convolution(platform):
  images, kernel = arrays((2, 8, 8, 16), (3, 3, 16, 16))
  loss = lambda w: jnp.sum(convolution.conv_general_dilated(images, w, (1, 1), SAME) ** 2)
  text = str(jax.export.export(jax.jit(jax.grad(loss)), platforms=[platform])(kernel).mlir_module())
  assert 'stablehlo.convolution' in text and 'custom_call' not in text


@pytest.mark.parametrize('hurt, said', [
    (lambda patch: patch.setattr(native.shutil, 'which', lambda name: None), 'no C++ compiler was found'),
    (lambda patch: patch.setenv('CXX', 'false'), 'returned non-zero exit status'),
    (lambda patch: patch.setenv('ABD_JAX_NATIVE', '0'), None),
])
def test_without_a_compiler_xla_does_it(monkeypatch, tmp_path, caplog, hurt, said):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  hurt(monkeypatch)
  native.lanes.cache_clear()
  try:
    with caplog.at_level(logging.WARNING):
      images, kernel = arrays((2, 8, 8, 16), (3, 3, 16, 16))
      found = convolution.conv_general_dilated(images, kernel, (1, 1), SAME)
    chex.assert_trees_all_equal(found, convolution._xla(images, kernel, 1, SAME))
    assert said in caplog.text if said else not caplog.text
  finally:
    monkeypatch.undo()
    native.lanes.cache_clear()
