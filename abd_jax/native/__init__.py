"""Kernels of our own for the CPU, built by the machine's C++ compiler when first needed and kept.

XLA turns the gradient of a convolution's kernel on CPU into two transposes of whole activations and a convolution that
has the batch for its channels, which costs more than all else in a step. `convolution.cc` reads the activations as they
lie, and `winograd.h` takes fewer products where it can. Where no compiler is found everything works as before, slower.
"""

import contextlib
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
    library = _library()
    targets = {name: jax.ffi.pycapsule(getattr(library, name)) for name in _TARGETS}
    found = ctypes.c_int.in_dll(library, 'abd_lanes').value
  except (OSError, RuntimeError, AttributeError, ValueError, subprocess.SubprocessError) as error:
    logging.getLogger(__name__).warning('Convolutions on this CPU take XLA\'s slower way: %s.', _reason(error))
    return 0
  for name, target in targets.items():
    jax.ffi.register_ffi_target(name, target, platform='cpu')
  return found


def _reason(error):
  said = error.stderr.strip().splitlines() if isinstance(error, subprocess.CalledProcessError) else ()
  return said[0] if said else str(error).rstrip('.')


def _library():
  """The library, loaded: the one kept from before, or one built now.

  Raises:
    OSError: there is no compiler, nowhere to keep what it makes, or what it makes cannot be loaded.
    RuntimeError: there is no home directory to keep it in.
    subprocess.SubprocessError: it cannot build this.
  """
  compiler = next(filter(None, map(shutil.which, (os.environ.get('CXX', 'c++'), 'g++', 'clang++'))), None)
  if compiler is None:
    raise OSError('no C++ compiler was found')
  digest = hashlib.sha256(b''.join(part.read_bytes() for part in (_SOURCE, *_PARTS)))
  for fact in (jaxlib.__version__, compiler, *_OPTIONS, platform.machine(), _processor()):
    digest.update(fact.encode())
  caches = os.environ.get('XDG_CACHE_HOME', '')
  folder = Path(caches if os.path.isabs(caches) else '~/.cache').expanduser() / 'abd_jax'
  path = folder / f'convolution-{digest.hexdigest()[:16]}.so'
  with contextlib.suppress(OSError):  # it is not there, or the power went while it was written
    return ctypes.CDLL(str(path))
  folder.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(dir=folder) as scratch:
    built = Path(scratch) / path.name
    command = [compiler, *_OPTIONS, '-march=native', f'-I{jax.ffi.include_dir()}', str(_SOURCE), '-o', str(built)]
    subprocess.run(command, check=True, capture_output=True, text=True, errors='replace', timeout=300)
    library = ctypes.CDLL(str(built))  # nothing is kept that cannot be loaded
    built.replace(path)  # at once, so that a process beside this one never loads half of it
  return library


def _processor():
  """What tells apart processors that share a home directory: the instructions they know."""
  try:
    lines = Path('/proc/cpuinfo').read_text().splitlines()
  except OSError:
    return platform.processor()
  return next((line for line in lines if line.startswith(('flags', 'Features'))), '')
