"""The GPU's kernels, interpreted here, against XLA's convolutions in float32."""

import dataclasses
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abd_jax.models import convolution, gpu_convolution
from tests.documents import ROOT, shown

SAME = ((1, 1), (1, 1))
KINDS = sorted({*gpu_convolution.CONVOLUTION, *gpu_convolution.GRADIENT})


def drawn(kind, height, width, batch=3):
  """Images, a kernel and a gradient by what comes out, of a kind's type and channels."""
  dtype, channels = kind
  rng = np.random.default_rng(channels)
  shapes = (batch, height, width, channels), (3, 3, channels, channels), (batch, height, width, channels)
  return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


def off(found, wanted):
  """How far apart, against the length of what is wanted."""
  found, wanted = (np.asarray(x, np.float64) for x in (found, wanted))
  return np.linalg.norm(found - wanted) / np.linalg.norm(wanted)


def usual(images, kernel, upstream):
  """What XLA makes of them in float32: the convolution, its gradients by images and by kernel."""
  wide = [array.astype(jnp.float32) for array in (images, kernel, upstream)]
  result, back = jax.vjp(lambda images, kernel: convolution._xla(images, kernel, 1, SAME), *wide[:2])
  return result, *back(wide[2])


# Images of one group and of many; more of them than a program takes, and a last program with less to do.
@pytest.mark.parametrize('height, width', [(1, 2), (3, 6), (16, 8)])
@pytest.mark.parametrize('kind', KINDS, ids=lambda kind: f'{kind[0]} {kind[1]}')
def test_the_kernels_do_what_xlas_convolutions_do(kind, height, width):
  images, kernel, upstream = drawn(kind, height, width)
  result, by_images, by_kernel = usual(images, kernel, upstream)
  limit = 1e-6 if kind[0] == 'float32' else 4e-3  # what rounding the result to bfloat16 makes
  if gpu_convolution.tile(gpu_convolution.CONVOLUTION, images, kind[1]):
    found = gpu_convolution.convolve(images, kernel, interpret=True)
    assert found.dtype == images.dtype and off(found, result) < limit
    assert off(gpu_convolution.convolve(upstream, convolution._turned(kernel), interpret=True), by_images) < limit
  if gpu_convolution.tile(gpu_convolution.GRADIENT, images, kind[1]):
    found = gpu_convolution.kernel_gradient(images, upstream, interpret=True)
    assert found.dtype == images.dtype and off(found, by_kernel) < limit


@pytest.mark.parametrize('kind', gpu_convolution.GRADIENT, ids=lambda kind: f'{kind[0]} {kind[1]}')
def test_a_part_of_the_gradient_is_summed_in_turns(monkeypatch, kind):
  few = dataclasses.replace(gpu_convolution.GRADIENT[kind], groups=16, parts=2)
  monkeypatch.setitem(gpu_convolution.GRADIENT, kind, few)
  images, kernel, upstream = drawn(kind, 5, 8)
  found = gpu_convolution.kernel_gradient(images, upstream, interpret=True)
  assert off(found, usual(images, kernel, upstream)[2]) < (1e-6 if kind[0] == 'float32' else 4e-3)


@pytest.mark.parametrize('shape, channels_out, why', [
    ((2, 8, 7, 16), 16, 'columns that are no pairs'),
    ((2, 64, 64, 16), 16, 'images larger than were measured'),
    ((2, 8, 8, 16), 32, 'other channels out than in'),
    ((2, 8, 8, 24), 24, 'channels of which there is no power of two'),
    ((2**17, 32, 32, 16), 16, 'places that 32 bits do not count'),
])
def test_other_convolutions_are_left_to_cudnn(shape, channels_out, why):
  tile = lambda shape, channels_out: gpu_convolution.tile(
      gpu_convolution.CONVOLUTION, jax.ShapeDtypeStruct(shape, jnp.bfloat16), channels_out
  )
  assert tile((2, 8, 8, 16), 16) and tile(shape, channels_out) is None, why


def as_on_a_gpu(monkeypatch):
  """The kernels are called wherever they would be for CUDA, and interpreted."""
  called = []

  def instead(kernel, xla, *arrays):
    called.append(kernel.__name__)
    return kernel(*arrays, interpret=True)

  monkeypatch.setattr(convolution, 'platform', lambda: 'gpu')
  monkeypatch.setattr(convolution, '_triton', instead)
  return called


@pytest.mark.parametrize('kind', KINDS, ids=lambda kind: f'{kind[0]} {kind[1]}')
def test_a_convolution_and_its_gradients_are_made_by_what_there_are_tiles_for(monkeypatch, kind):
  images, kernel, upstream = drawn(kind, 4, 4)
  wanted = usual(images, kernel, upstream)
  called = as_on_a_gpu(monkeypatch)
  convolve = lambda images, kernel: convolution.conv_general_dilated(images, kernel, (1, 1), SAME)
  result, back = jax.vjp(convolve, images, kernel)
  limit = 1e-6 if kind[0] == 'float32' else 4e-3
  assert all(off(a, b) < limit for a, b in zip((result, *back(upstream)), wanted, strict=True))
  twice, gradient = kind in gpu_convolution.CONVOLUTION, kind in gpu_convolution.GRADIENT
  assert called == ['convolve'] * 2 * twice + ['kernel_gradient'] * gradient


def test_colours_are_given_the_channels_that_are_missing(monkeypatch):
  images, kernel, upstream = drawn(('bfloat16', 16), 4, 4)
  images, kernel = images[..., :3], kernel[:, :, :3]
  wanted = usual(images, kernel, upstream)
  called = as_on_a_gpu(monkeypatch)
  convolve = lambda images, kernel: convolution.conv_general_dilated(images, kernel, (1, 1), SAME)
  result, back = jax.vjp(convolve, images, kernel)
  found = (result, *back(upstream))
  assert [array.shape for array in found] == [array.shape for array in wanted]
  assert all(off(a, b) < 4e-3 for a, b in zip(found, wanted, strict=True))
  assert called == ['convolve', 'convolve', 'kernel_gradient']


@pytest.mark.parametrize('capability, usable', [
    ('9.0', True), ('8.6', True), ('10.0', True), ('7.5', False), ('gfx942', False),
])
def test_gpus_that_triton_does_not_compile_for_are_left_to_cudnn(monkeypatch, capability, usable):
  images, kernel, _ = drawn(('bfloat16', 16), 4, 4)
  called = as_on_a_gpu(monkeypatch)
  monkeypatch.setattr(convolution, 'devices', lambda: [SimpleNamespace(compute_capability=capability)])
  convolution.conv_general_dilated(images, kernel, (1, 1), SAME)
  assert called == ['convolve'] * usable


@pytest.mark.parametrize('without', [
    lambda patch: patch.setattr(gpu_convolution, 'triton', None), lambda patch: patch.setenv('ABD_JAX_NATIVE', '0'),
])
def test_without_pallas_triton_or_when_told_so_all_is_left_to_cudnn(monkeypatch, without):
  images, kernel, _ = drawn(('bfloat16', 16), 4, 4)
  called = as_on_a_gpu(monkeypatch)
  without(monkeypatch)
  jax.vjp(lambda *both: convolution.conv_general_dilated(*both, (1, 1), SAME), images, kernel)[1](images)
  assert called == []


def measured():
  """The committed figures as the table that the documents show."""
  found = json.loads((ROOT / 'experiments/results/benchmark/h100_convolutions.json').read_text())
  lines = ['| | type | channels | pixels | microseconds | cuDNN\'s |', '|---|---|---|---|---|---|']
  lines += [
      f'| {row["kernel"]} | {row["type"]} | {row["channels"]} | {row["pixels"]} | {row["microseconds"]} |'
      f' {row["cudnn_microseconds"]} |'
      for row in found['kernels']
  ]
  return '\n'.join(lines) + '\n'


def test_the_documents_have_what_was_measured_of_every_tile():
  assert shown('convolutions H100') == measured()
  found = json.loads((ROOT / 'experiments/results/benchmark/h100_convolutions.json').read_text())['kernels']
  for kernel, tiles in (('convolution', gpu_convolution.CONVOLUTION), ('gradient', gpu_convolution.GRADIENT)):
    rows = {(row['type'], row['channels']): row for row in found if row['kernel'] == kernel}
    assert rows.keys() == tiles.keys()
    assert all(row['microseconds'] < row['cudnn_microseconds'] for row in rows.values())
