"""The convolution of every network here: XLA's, but kernels of our own where one device has them and they are faster.

Those are `abd_jax.native` for a CPU, `gpu_convolution` for a GPU.
"""

import contextlib
import contextvars
import functools

import jax
import jax.numpy as jnp
import numpy as np

from abd_jax import native
from abd_jax.models import gpu_convolution
from abd_jax.parallel import devices, platform

_LAYOUT = ('NHWC', 'HWIO', 'NHWC')
_portable = contextvars.ContextVar('portable', default=False)


@contextlib.contextmanager
def portable():
  """What is traced within uses XLA's convolutions alone, so that processes without this package can run it."""
  token = _portable.set(True)
  try:
    yield
  finally:
    _portable.reset(token)


def conv_general_dilated(images_NHWC, kernel_HWIO, window_strides, padding, **ignored):
  """What `nn.Conv` calls in the place of `jax.lax.conv_general_dilated`.

  Args:
    images_NHWC: [N, H, W, C].
    kernel_HWIO: [kernel height, kernel width, C, F].
    window_strides: (rows, columns), equal.
    padding: ((top, bottom), (left, right)) rows and columns of zeros.
    ignored: dilations and precision, which no network here sets.

  Returns:
    [N, H', W', F].
  """
  del ignored
  stride, padding = window_strides[0], tuple(map(tuple, padding))
  own = _own(images_NHWC, kernel_HWIO, stride, padding)
  missing = gpu_convolution.missing_channels(images_NHWC, kernel_HWIO.shape[-1]) if own == 'gpu' else 0
  if missing:
    images_NHWC = jnp.pad(images_NHWC, ((0, 0), (0, 0), (0, 0), (0, missing)))
    kernel_HWIO = jnp.pad(kernel_HWIO, ((0, 0), (0, 0), (0, missing), (0, 0)))
  return _convolve(images_NHWC, kernel_HWIO, stride, padding, own)


def _own(images, kernel, stride, padding):
  """Whose kernels may do it beside XLA's: 'cpu', 'gpu' or None."""
  # What is called by name is opaque to XLA, which could not split it over several devices.
  if len(devices()) > 1 or _portable.get() or images.dtype != kernel.dtype or not images.size or not kernel.size:
    return None
  if platform() == 'gpu':
    suits = kernel.shape[:2] == (3, 3) and stride == 1 and padding == ((1, 1), (1, 1))
    return 'gpu' if suits and gpu_convolution.runs_on(devices()[0]) else None
  sides = zip(images.shape[1:3], padding, kernel.shape[:2], strict=True)
  usual = all(max(border) < side <= size + sum(border) for size, border, side in sides)
  floats = images.dtype == jnp.float32
  return 'cpu' if platform() == 'cpu' and floats and usual and native.lanes() else None


def _xla(images, kernel, stride, padding):
  return jax.lax.conv_general_dilated(images, kernel, (stride, stride), padding, dimension_numbers=_LAYOUT)


def _one_by_one(function, *arrays):
  """`function(*arrays)`, under `vmap` for one after the other: at once it would be a grouped convolution, for which no
  platform has kernels as good as those for a plain one."""
  function = jax.custom_batching.custom_vmap(function)

  @function.def_vmap
  def _(count, is_batched, *arrays):
    each = [[x[i] if batched else x for x, batched in zip(arrays, is_batched, strict=True)] for i in range(count)]
    return jnp.stack([function(*its) for its in each]), True

  return function(*arrays)


def _native(target, shape, stride, padding, instead, *arrays):
  """One of the kernels where it is compiled for CPU, `instead` on other platforms. Shapes tell the lower border."""
  call = jax.ffi.ffi_call(target, jax.ShapeDtypeStruct(shape, jnp.float32))
  numbers = {'stride': np.int64(stride), 'top': np.int64(padding[0][0]), 'left': np.int64(padding[1][0])}
  kernel = functools.partial(call, **numbers)
  return _one_by_one(lambda *arrays: jax.lax.platform_dependent(*arrays, cpu=kernel, default=instead), *arrays)


def _fits(features):
  """Whether the CPU kernels' vectors divide so many features."""
  return features % native.lanes() == 0


def _tiled(images, features):
  """Whether a GPU kernel is made for such images and so many features."""
  return gpu_convolution.tile(gpu_convolution.CONVOLUTION, images, features) is not None


def _triton(kernel, instead, *arrays):
  """One of the kernels of `gpu_convolution` where it is compiled for CUDA, `instead` on other platforms."""
  return _one_by_one(lambda *arrays: jax.lax.platform_dependent(*arrays, cuda=kernel, default=instead), *arrays)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _convolve(images, kernel, stride, padding, own):
  """`own`: from `_own`; by its kernels, where they fit."""
  xla = functools.partial(_xla, stride=stride, padding=padding)
  if own == 'gpu' and _tiled(images, kernel.shape[-1]):
    return _triton(gpu_convolution.convolve, xla, images, kernel)
  if own == 'cpu' and _fits(kernel.shape[-1]):
    shape = jax.eval_shape(xla, images, kernel).shape
    return _native('abd_convolve', shape, stride, padding, xla, images, kernel)
  return _one_by_one(xla, images, kernel)


def _convolve_forward(images, kernel, stride, padding, own):
  return _convolve(images, kernel, stride, padding, own), (images, kernel)


def _convolve_backward(stride, padding, own, kept, upstream):
  images, kernel = kept
  return (
      _image_gradient(images, kernel, upstream, stride, padding, own),
      _kernel_gradient(images, kernel, upstream, stride, padding, own),
  )


_convolve.defvjp(_convolve_forward, _convolve_backward)


def _mirrored(padding, kernel):
  """The border for a convolution that goes the other way."""
  return tuple((k - 1 - low, k - 1 - high) for k, (low, high) in zip(kernel.shape, padding, strict=False))


def _turned(kernel):
  """The kernel upside down, its channels for its features."""
  return kernel[::-1, ::-1].transpose(0, 1, 3, 2)


def _image_gradient(images, kernel, upstream, stride, padding, own):
  def xla(kernel, upstream):
    return jax.linear_transpose(lambda images: _xla(images, kernel, stride, padding), images)(upstream)[0]

  if (own == 'cpu' and stride == 1) or (own == 'gpu' and _tiled(upstream, kernel.shape[-2])):
    return _convolve(upstream, _turned(kernel), 1, _mirrored(padding, kernel), own)
  return _one_by_one(xla, kernel, upstream)


def _kernel_gradient(images, kernel, upstream, stride, padding, own):
  def xla(images, upstream):
    return jax.linear_transpose(lambda kernel: _xla(images, kernel, stride, padding), kernel)(upstream)[0]

  if own == 'gpu' and gpu_convolution.tile(gpu_convolution.GRADIENT, images, kernel.shape[-1]):
    return _triton(gpu_convolution.kernel_gradient, xla, images, upstream)
  if own == 'cpu' and _fits(kernel.shape[-1]):
    return _native('abd_kernel_gradient', kernel.shape, stride, padding, xla, images, upstream)
  if own == 'cpu' and stride == 1 and _fits(kernel.shape[-2]):
    # Few features of many channels: images and upstream trade places.
    shape = jax.eval_shape(_turned, kernel).shape
    instead = lambda upstream, images: _turned(xla(images, upstream))
    return _turned(_native('abd_kernel_gradient', shape, 1, _mirrored(padding, kernel), instead, upstream, images))
  return _one_by_one(xla, images, upstream)
