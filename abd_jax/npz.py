"""npz files from anywhere: plain arrays or a sentence; nothing is unpickled, nor unpacked beyond what memory holds."""

import math
import os
import zipfile

import numpy as np

from abd_jax.errors import UserError

_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def read(file, name, keys=None):
  """{key: array} of an npz file.

  Args:
    file: its path, or a binary file that can seek.
    name: what the sentences call it.
    keys: those to read, all of which must be there; None: all there are.

  Raises:
    UserError: it is no npz file, damaged, lacks a key, holds objects, or unpacks to more than memory holds.
  """
  try:
    with zipfile.ZipFile(file) as archive:
      members = {member.filename.removesuffix('.npy'): member for member in archive.infolist()}
      keys = tuple(members) if keys is None else keys
      missing = [key for key in keys if key not in members]
      if missing:
        raise UserError(f'{name} lacks {", ".join(missing)}: its keys must be {", ".join(keys)}.')
      unpacked = sum(members[key].file_size for key in keys)
      if unpacked > memory():
        raise UserError(f'{name} unpacks to {unpacked / 1e9:,.1f} GB, more than this machine has memory for.')
      return {key: _array(archive, members[key], key, name) for key in keys}
  except UserError:
    raise
  except Exception as error:  # zipfile, what it unpacks with and NumPy raise whatever a damaged file makes them
    reason = str(error) or type(error).__name__
    raise UserError(f'{name} cannot be read as an npz file of plain arrays: {reason.rstrip(".")}.') from None


def memory():
  """Bytes of memory of this machine."""
  return os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')


def _array(archive, member, key, name):
  """One array, whose header is checked before anything is made of the size that it says."""
  with archive.open(member) as file:
    version = np.lib.format.read_magic(file)
    if version not in _HEADERS:
      raise ValueError(f'{key} is of format {version}')
    shape, _, dtype = _HEADERS[version](file)
    header = file.tell()
  if dtype.hasobject:
    raise UserError(f'{name} holds Python objects in {key}, which are never unpickled: save it as a plain array.')
  if min(shape, default=0) < 0 or header + math.prod(shape) * dtype.itemsize != member.file_size:
    raise ValueError(f'{key} has {member.file_size} bytes, which is no {dtype} {list(shape)}')
  with archive.open(member) as file:
    array = np.lib.format.read_array(file, allow_pickle=False)
  if dtype.kind == 'U':
    array.tolist()  # raises where 32 bits are no character
  return array
