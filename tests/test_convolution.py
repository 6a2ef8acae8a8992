"""Our own CPU kernels against XLA's convolution: values, both gradients, and what happens without a compiler."""

import contextlib
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
    assert jnp.all(jnp.abs(a - b) <= 8 * 2**-24 * jnp.max(most, places, keepdims=True, initial=0.0))


@needs_kernels
@pytest.mark.parametrize('images, kernel, stride, padding', [
    ((3, 8, 8, 16), (3, 3, 16, 32), 1, SAME),
    ((3, 8, 8, 16), (3, 3, 16, 32), 2, SAME),
    ((40, 2, 2, 32), (3, 3, 32, 16), 1, SAME),  # several small images at a time
    ((2, 16, 16, 3), (7, 7, 3, 64), 2, ((3, 3), (3, 3))),
    ((2, 5, 4, 32), (2, 2, 32, 16), 1, ((1, 0), (0, 1))),
    ((2, 6, 6, 32), (3, 3, 32, 3), 1, SAME),  # few features: the kernel's gradient with changed places
    ((2, 5, 4, 32), (2, 2, 32, 3), 1, ((1, 0), (0, 1))),
    ((2, 6, 6, 32), (3, 3, 32, 3), 2, SAME),  # which a stride does not allow
    ((2, 4, 4, 16), (1, 1, 16, 16), 1, SAME),  # a border as wide as the kernel
    ((0, 4, 4, 16), (3, 3, 16, 16), 1, SAME),  # nothing of one kind or another
    ((2, 4, 4, 0), (3, 3, 0, 16), 1, SAME),
    ((2, 4, 4, 16), (3, 3, 16, 0), 1, SAME),
    ((2, 2, 2, 16), (3, 3, 16, 16), 1, ((0, 0), (0, 0))),
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
@pytest.mark.parametrize('axes', [(0, 0), (0, None), (None, 0)])
def test_several_kernels_at_once_under_vmap(axes):
  images, kernel = arrays((3, 2, 6, 6, 16), (3, 3, 3, 16, 16))
  several = [array if axis == 0 else array[0] for array, axis in zip((images, kernel), axes, strict=True)]
  ours = jax.vmap(lambda x, w: convolution.conv_general_dilated(x, w, (1, 1), SAME), axes)(*several)
  each = [
      convolution._xla(images[i if axes[0] == 0 else 0], kernel[i if axes[1] == 0 else 0], 1, SAME) for i in range(3)
  ]
  chex.assert_trees_all_close(ours, jnp.stack(each), rtol=1e-5, atol=1e-5)


@needs_kernels
@pytest.mark.parametrize('case', ['ours', 'bfloat16', 'two types', 'two devices', 'portable', 'a GPU', 'two GPUs'])
def test_only_one_device_gets_our_kernels_and_a_cpu_in_float32(monkeypatch, case):
  images, kernel = arrays((2, 8, 8, 16), (3, 3, 16, 16))
  images = images.astype(jnp.bfloat16 if case in ('bfloat16', 'two types') else jnp.float32)
  kernel = kernel.astype(jnp.bfloat16 if case == 'bfloat16' else jnp.float32)
  if 'two ' in case and case != 'two types':
    monkeypatch.setattr(convolution, 'devices', lambda: 2 * jax.devices())
  if 'GPU' in case:
    monkeypatch.setattr(convolution, 'platform', lambda: 'gpu')
  called = []
  monkeypatch.setattr(convolution, '_convolve', lambda *arguments: called.append(arguments[-1]))
  with convolution.portable() if case == 'portable' else contextlib.nullcontext():
    convolution.conv_general_dilated(images, kernel, (1, 1), SAME)
  assert called == [{'ours': 'cpu', 'a GPU': 'gpu'}.get(case)]


@pytest.mark.parametrize('platform', ['tpu', 'cuda'])
def test_other_platforms_get_xlas_convolution(platform):
  images, kernel = arrays((2, 8, 8, 16), (3, 3, 16, 16))
  loss = lambda w: jnp.sum(convolution.conv_general_dilated(images, w, (1, 1), SAME) ** 2)
  text = str(jax.export.export(jax.jit(jax.grad(loss)), platforms=[platform])(kernel).mlir_module())
  assert 'stablehlo.convolution' in text and 'custom_call' not in text


def compiler(where, body):
  """The path of one that is a shell script; its library is to go to $last."""
  path = where / 'compiler'
  path.write_text(f'#!/bin/sh\nfor last; do :; done\n{body}\n')
  path.chmod(0o755)
  return str(path)


def homeless(path):
  raise RuntimeError('Could not determine home directory.')


@pytest.mark.parametrize('hurt, said', [
    (lambda patch, where: patch.setattr(native.shutil, 'which', lambda name: None), 'no C++ compiler was found'),
    (lambda patch, where: patch.setenv('CXX', 'false'), 'returned non-zero exit status'),
    (lambda patch, where: patch.setenv('CXX', compiler(where, r"printf 'odd \377' >&2; exit 1")), 'way: odd \ufffd.'),
    (lambda patch, where: patch.setenv('CXX', compiler(where, 'echo rubbish > "$last"')), 'file too short'),
    (lambda patch, where: patch.setattr(native.Path, 'expanduser', homeless), 'Could not determine home directory.'),
    (lambda patch, where: patch.setattr(native, '_TARGETS', ('none_such',)), 'undefined symbol: none_such'),
    (lambda patch, where: patch.setenv('ABD_JAX_NATIVE', '0'), None),
])
def test_without_a_compiler_xla_does_it(monkeypatch, tmp_path, caplog, hurt, said):
  cache = tmp_path / 'cache'
  monkeypatch.setenv('XDG_CACHE_HOME', str(cache))
  hurt(monkeypatch, tmp_path)
  native.lanes.cache_clear()
  try:
    with caplog.at_level(logging.WARNING):
      images, kernel = arrays((2, 8, 8, 16), (3, 3, 16, 16))
      found = convolution.conv_general_dilated(images, kernel, (1, 1), SAME)
    chex.assert_trees_all_equal(found, convolution._xla(images, kernel, 1, SAME))
    assert said in caplog.text if said else not caplog.text
    kept = [path.name for path in cache.rglob('*') if path.is_file()]
    assert len(kept) == ('none_such' in (said or '')), kept  # what works alone is kept, and no scratch
  finally:
    monkeypatch.undo()
    native.lanes.cache_clear()


@needs_kernels
def test_a_kept_library_is_loaded_and_one_that_broke_is_built_anew(monkeypatch, tmp_path):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'one'))
  native._library()
  (kept,) = (tmp_path / 'one' / 'abd_jax').iterdir()
  built = kept.stat().st_mtime_ns
  native._library()
  assert kept.stat().st_mtime_ns == built
  # Elsewhere: what a process has loaded from a path it never reads again.
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'two'))
  broken = tmp_path / 'two' / 'abd_jax' / kept.name
  broken.parent.mkdir(parents=True)
  broken.touch()
  assert native._library().abd_lanes and broken.read_bytes()[:4] == b'\x7fELF'
