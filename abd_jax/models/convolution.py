"""The convolution of every network here: XLA's, but on a single CPU device the kernels of `abd_jax.native`."""

import contextlib
import contextvars
import functools

import jax
import jax.numpy as jnp
import numpy as np

from abd_jax import native
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
  # What is called by name is opaque to XLA, which could not split it over several devices.
  single = platform() == 'cpu' and len(devices()) == 1 and not _portable.get()
  floats = images_NHWC.dtype == kernel_HWIO.dtype == jnp.float32
  sides = zip(images_NHWC.shape[1:3], padding, kernel_HWIO.shape[:2], strict=True)
  usual = all(max(border) < side <= size + sum(border) for size, border, side in sides)
  own = bool(single and floats and usual and images_NHWC.size and kernel_HWIO.size and native.lanes())
  return _convolve(images_NHWC, kernel_HWIO, stride, padding, own)


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
  """Whether the kernels' vectors divide so many features."""
  return features % native.lanes() == 0


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _convolve(images, kernel, stride, padding, own):
  """`own`: by the kernels of `abd_jax.native`, where they fit."""
  xla = functools.partial(_xla, stride=stride, padding=padding)
  if not (own and _fits(kernel.shape[-1])):
    return _one_by_one(xla, images, kernel)
  shape = jax.eval_shape(xla, images, kernel).shape
  return _native('abd_convolve', shape, stride, padding, xla, images, kernel)


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

  if own and stride == 1:
    return _convolve(upstream, _turned(kernel), 1, _mirrored(padding, kernel), own)
  return _one_by_one(xla, kernel, upstream)


def _kernel_gradient(images, kernel, upstream, stride, padding, own):
  def xla(images, upstream):
    return jax.linear_transpose(lambda kernel: _xla(images, kernel, stride, padding), kernel)(upstream)[0]

  if own and _fits(kernel.shape[-1]):
    return _native('abd_kernel_gradient', kernel.shape, stride, padding, xla, images, upstream)
  if own and stride == 1 and _fits(kernel.shape[-2]):  # few features of many channels: images and upstream trade places
    shape = jax.eval_shape(_turned, kernel).shape
    instead = lambda upstream, images: _turned(xla(images, upstream))
    return _turned(_native('abd_kernel_gradient', shape, 1, _mirrored(padding, kernel), instead, upstream, images))
  return _one_by_one(xla, images, upstream)
