"""Kernels for NVIDIA GPUs: 3x3 convolutions of few channels, and their kernels' gradients.

cuDNN's are made for many channels. These, written in Triton by way of Pallas, make one row of a matrix of neighbouring
pixels, so that it has many after all: of two pixels the window of four that both see, times a kernel that has zeros
where one of the two does not look. Groups of such pixels are counted through all images.
"""

import dataclasses
import math
import os

import jax
import jax.numpy as jnp

try:
  from jax.experimental import pallas as pl
  from jax.experimental.pallas import triton
except ImportError:  # a later JAX, without it
  triton = None  # type: ignore[assignment]

# Pixels of an image up to which kernels were compared with cuDNN's.
_LARGEST = 32 * 32
# Where colours alone come in, zeros beside them and these kernels take less time than cuDNN's.
_WIDENED = ('bfloat16', 16)


@dataclasses.dataclass(frozen=True)
class Tile:
  """How a kernel's work is divided.

  Attributes:
    groups: of pixels, rows of a product of matrices.
    together: pixels of a group, neighbours in their row.
    parts: into which all groups are divided, for a gradient, each with a sum of its own.
    rows: of the kernel's three that a program makes the gradient of.
    window: pixels of a group's together + 2 that a program makes the gradient of, all or one.
    warps, stages: of a program; what Triton calls so.
  """

  groups: int
  together: int = 2
  parts: int = 0
  rows: int = 1
  window: int = 4
  warps: int = 4
  stages: int = 1


# By the arrays' type and their channels, as many in as out: those that were faster than cuDNN's on an H100.
CONVOLUTION = {
    ('bfloat16', 16): Tile(128, warps=8),
    ('bfloat16', 32): Tile(128, warps=8),
    ('bfloat16', 64): Tile(64),
    ('float32', 16): Tile(128, warps=8),
}
GRADIENT = {
    ('bfloat16', 16): Tile(64, parts=256, rows=3, stages=3),
    ('bfloat16', 32): Tile(64, parts=64, stages=3),
    ('bfloat16', 64): Tile(128, together=1, parts=32, window=1),
    ('float32', 16): Tile(32, parts=256),
    ('float32', 32): Tile(32, parts=128),
}


def runs_on(device):
  """Whether Triton compiles for a GPU: NVIDIA's since Ampere. ABD_JAX_NATIVE=0 in the environment does without it."""
  major, *_ = str(getattr(device, 'compute_capability', '8.0')).split('.')  # of AMD's it is a name
  return triton is not None and os.environ.get('ABD_JAX_NATIVE') != '0' and major.isdecimal() and int(major) >= 8


def missing_channels(images_NHWC, channels_out):
  """How many channels of zeros the images are better given, for there to be a `tile`."""
  channels = images_NHWC.shape[-1]
  widened = channels <= 3 and (images_NHWC.dtype.name, channels_out) == _WIDENED
  wide = jax.ShapeDtypeStruct((*images_NHWC.shape[:-1], channels_out), images_NHWC.dtype)
  return channels_out - channels if widened and tile(CONVOLUTION, wide, channels_out) else 0


def tile(tiles, images_NHWC, channels_out):
  """The `Tile` for a 3x3 convolution with a border of one zero, or its kernel's gradient; None where there is none.

  Args:
    tiles: `CONVOLUTION` or `GRADIENT`.
    images_NHWC: what goes in, or its shape and dtype.
    channels_out: of what comes out.
  """
  _, height, width, channels = images_NHWC.shape
  # Places in memory are counted in 32 bits.
  if channels != channels_out or height * width > _LARGEST or math.prod(images_NHWC.shape) > 2**31 - 2**20:
    return None
  found = tiles.get((images_NHWC.dtype.name, channels))
  return found if found and width % found.together == 0 else None


def convolve(images_NHWC, kernel_HWIO, interpret=False):
  """A 3x3 convolution with a border of one zero: [N, H, W, C], in the images' type; sums are in float32.

  Args:
    images_NHWC: [N, H, W, C], such that there is a `tile`.
    kernel_HWIO: [3, 3, C, C], of the same type.
    interpret: on any platform, slowly.
  """
  batch, height, width, channels = images_NHWC.shape
  divided = tile(CONVOLUTION, images_NHWC, channels)
  together, many = divided.together, batch * height * width // divided.together

  def abd_convolve(images_ref, kernel_ref, result_ref):
    groups_P = pl.program_id(0) * divided.groups + _iota(divided.groups)
    pixel_K, in_K = _divmod(_iota((together + 2) * channels), channels)
    pixel_Q, out_Q = _divmod(_iota(together * channels), channels)
    column_KQ = pixel_K[:, None] - pixel_Q[None, :]
    sums_PQ = jnp.zeros((divided.groups, together * channels), jnp.float32)
    for row in range(3):
      window_PK = _window(images_ref, groups_P, row - 1, 0, together + 2, (height, width, channels), together, many)
      places_KQ = ((3 * row + column_KQ) * channels + in_K[:, None]) * channels + out_Q[None, :]
      kernel_KQ = triton.load(kernel_ref.at[places_KQ], mask=(column_KQ >= 0) & (column_KQ < 3), other=0)
      sums_PQ += jnp.dot(window_PK, kernel_KQ, preferred_element_type=jnp.float32)
    _store(result_ref, groups_P, sums_PQ.astype(result_ref.dtype), many)

  grid = (pl.cdiv(many, divided.groups),)
  return _call(abd_convolve, grid, images_NHWC.shape, images_NHWC.dtype, divided, interpret, images_NHWC, kernel_HWIO)


def kernel_gradient(images_NHWC, upstream_NHWC, interpret=False):
  """The gradient [3, 3, C, C] of `convolve` by its kernel, in the images' type; sums are in float32.

  Args:
    images_NHWC: what the convolution was given, such that there is a `tile`.
    upstream_NHWC: the gradient by what it gave, of the same type.
    interpret: on any platform, slowly.
  """
  batch, height, width, channels = images_NHWC.shape
  divided = tile(GRADIENT, images_NHWC, channels)
  together, many = divided.together, batch * height * width // divided.together
  turns = pl.cdiv(pl.cdiv(many, divided.parts), divided.groups)

  def abd_kernel_gradient(images_ref, upstream_ref, result_ref):
    part, first_row, first_pixel = (pl.program_id(i) for i in range(3))
    rows = range(3) if divided.rows == 3 else (first_row,)

    def body(turn, sums):
      groups_P = (part * turns + turn) * divided.groups + _iota(divided.groups)
      places_PQ = _elements(groups_P, together * channels)
      mask_PQ = jnp.broadcast_to((groups_P < many)[:, None], places_PQ.shape)
      upstream_PQ = triton.load(upstream_ref.at[places_PQ], mask=mask_PQ, other=0)
      windows = (
          _window(
              images_ref, groups_P, row - 1, first_pixel, divided.window, (height, width, channels), together, many
          )
          for row in rows
      )
      return tuple(
          sums_KQ + jnp.dot(window_PK.T, upstream_PQ, preferred_element_type=jnp.float32)
          for sums_KQ, window_PK in zip(sums, windows, strict=True)
      )

    none = jnp.zeros((divided.window * channels, together * channels), jnp.float32)
    for row, sums_KQ in zip(rows, jax.lax.fori_loop(0, turns, body, (none,) * len(rows)), strict=True):
      first = ((part * 3 + row) * (together + 2) + first_pixel) * channels
      _store(result_ref, first + _iota(len(sums_KQ)), sums_KQ)

  shape = divided.parts, 3, together + 2, channels, together, channels
  grid = divided.parts, 3 // divided.rows, (together + 2) // divided.window
  found = _call(abd_kernel_gradient, grid, shape, jnp.float32, divided, interpret, images_NHWC, upstream_NHWC)
  found = jnp.sum(found, axis=0)
  return sum(found[:, i : i + 3, :, i] for i in range(together)).astype(images_NHWC.dtype)


def _call(kernel, grid, shape, dtype, divided, interpret, *arrays):
  """What `kernel` makes of whole arrays, each element after element in the device's memory."""
  whole, result = pl.BlockSpec(memory_space=pl.ANY), jax.ShapeDtypeStruct((math.prod(shape),), dtype)
  params = triton.CompilerParams(num_warps=divided.warps, num_stages=divided.stages)
  call = pl.pallas_call(
      kernel, out_shape=result, grid=grid, in_specs=[whole] * len(arrays), out_specs=whole, compiler_params=params,
      interpret=interpret,
  )
  return call(*(array.reshape(-1) for array in arrays)).reshape(shape)


def _iota(size):
  return jax.lax.iota(jnp.int32, size)


def _divmod(numbers, divisor):
  """Of numbers that are not negative: what Python's would do for others hides from Triton which lie side by side."""
  return jax.lax.div(numbers, jnp.int32(divisor)), jax.lax.rem(numbers, jnp.int32(divisor))


def _elements(rows_R, columns):
  """i32[R, columns]: where the rows of a matrix lie in memory."""
  return (rows_R * columns)[:, None] + _iota(columns)[None, :]


def _store(ref, rows_R, values, many=None):
  """Puts rows of a matrix where they lie, but none from number `many` on."""
  mask = None if many is None else jnp.broadcast_to((rows_R < many)[:, None], values.shape)
  triton.store(ref.at[_elements(rows_R, values.shape[1])], values, mask=mask)


def _window(images_ref, groups_P, down, first, count, image_shape, together, many):
  """[P, count * C]: of the pixels from the one left of each group, `count` from number `first` on, side by side.

  They lie `down` rows below the group's, and are zeros beyond the image and of groups from number `many` on.
  """
  height, width, channels = image_shape
  pixels_P = groups_P * together
  row_P, column_P = _divmod(pixels_P, width)
  row_P = _divmod(row_P, height)[1] + down
  number_K, _ = _divmod(_iota(count * channels), channels)
  column_PK = column_P[:, None] + (number_K + (first - 1))[None, :]
  mask_PK = ((row_P >= 0) & (row_P < height) & (groups_P < many))[:, None] & (column_PK >= 0) & (column_PK < width)
  start_P = (pixels_P + down * width + (first - 1)) * channels
  return triton.load(images_ref.at[start_P[:, None] + _iota(count * channels)[None, :]], mask=mask_PK, other=0)
