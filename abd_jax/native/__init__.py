"""Kernels of our own for the CPU, built by the machine's C++ compiler when first needed and kept.

XLA turns the gradient of a convolution's kernel on CPU into two transposes of whole activations and a convolution that
has the batch for its channels, which costs more than all else in a step. `convolution.cc` reads the activations as they
lie, and `winograd.h` takes fewer products where it can. Where no compiler is found everything works as before, slower.
"""

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import jax
import jaxlib

_SOURCE = Path(__file__).parent / 'convolution.cc'
_PARTS = sorted(_SOURCE.parent.glob('*.h'))  # that it includes
_TARGETS = ('abd_convolve', 'abd_kernel_gradient')
# Sums may be fused and contracted, never reordered: results do not depend on the compiler's mood.
_OPTIONS = ('-O3', '-std=c++17', '-shared', '-fPIC', '-ffp-contract=fast', '-w')


@functools.cache
def lanes():
  """How many floats the kernels' vectors have, of which a kernel's features must be a multiple; 0 without kernels.

  Setting ABD_JAX_NATIVE=0 in the environment does without them.
  """
  if os.environ.get('ABD_JAX_NATIVE') == '0':
    return 0
  try:
    library = ctypes.CDLL(str(_build()))
  except (OSError, subprocess.SubprocessError) as error:
    logging.getLogger(__name__).warning('Convolutions on this CPU take XLA\'s slower way: %s.', _reason(error))
    return 0
  for name in _TARGETS:
    jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(getattr(library, name)), platform='cpu')
  return ctypes.c_int.in_dll(library, 'abd_lanes').value


def _reason(error):
  said = (getattr(error, 'stderr', None) or '').strip().splitlines()
  return said[0] if said else error


def _build():
  """The path of the built library; builds it unless this machine has done so before.

  Raises:
    OSError: there is no compiler, or nowhere to keep what it makes.
    subprocess.SubprocessError: it cannot build this.
  """
  compiler = next(filter(None, map(shutil.which, (os.environ.get('CXX', 'c++'), 'g++', 'clang++'))), None)
  if compiler is None:
    raise OSError('no C++ compiler was found')
  digest = hashlib.sha256(b''.join(part.read_bytes() for part in (_SOURCE, *_PARTS)))
  for fact in (jaxlib.__version__, compiler, *_OPTIONS, platform.machine(), _processor()):
    digest.update(fact.encode())
  folder = Path(os.environ.get('XDG_CACHE_HOME', '~/.cache')).expanduser() / 'abd_jax'
  path = folder / f'convolution-{digest.hexdigest()[:16]}.so'
  if path.exists():
    return path
  folder.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(dir=folder) as scratch:
    built = Path(scratch) / path.name
    command = [compiler, *_OPTIONS, '-march=native', f'-I{jax.ffi.include_dir()}', str(_SOURCE), '-o', str(built)]
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
    built.replace(path)  # at once, so that a process beside this one never loads half of it
  return path


def _processor():
  """What tells apart processors that share a home directory: the instructions they know."""
  try:
    lines = Path('/proc/cpuinfo').read_text().splitlines()
  except OSError:
    return platform.processor()
  return next((line for line in lines if line.startswith(('flags', 'Features'))), '')
