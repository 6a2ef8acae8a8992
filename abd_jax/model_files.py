"""A saved model: a directory with a description in JSON and its weights as plain arrays.

The description names the file of the weights and their checksum, and is replaced in one move after they are written: a
reader finds the model of before or the one of after, whatever happens to the writer.
"""

import hashlib
import io
import json
import re

import numpy as np

from abd_jax import npz
from abd_jax.errors import UserError
from abd_jax.files import replace_whole
from abd_jax.written import path_of, shown

DESCRIPTION = 'model.json'
_FORMAT = 1
_WEIGHTS = 'weights-*.npz'


def exists(path):
  """Whether the directory holds a saved model."""
  return (path_of(path) / DESCRIPTION).is_file()


def check_writable(path):
  """Makes sure that a model can be saved in the directory; creates it where it is not there.

  Raises:
    UserError: it cannot be written, or holds something else.
  """
  path = path_of(path)
  try:
    path.mkdir(parents=True, exist_ok=True)
    ours = {*path.glob(_WEIGHTS), *path.glob('*.partial')}  # what a save that was killed leaves
    foreign = sorted(set(path.iterdir()) - ours)
    if foreign and not exists(path):
      raise UserError(f'{path} holds {foreign[0].name} and no {DESCRIPTION}: choose another directory for the model.')
    probe = path / 'writable.partial'
    probe.touch()
    probe.unlink()
  except OSError as error:
    raise UserError(f'{path} cannot be written: {error.strerror}.') from None


def write(path, description, arrays):
  """Saves a model in the directory, in the place of the one that it holds.

  Args:
    path: the directory.
    description: what JSON can say.
    arrays: {name: array}.

  Raises:
    UserError: the directory cannot be written, or holds something else.
  """
  check_writable(path)
  path = path_of(path)
  content = io.BytesIO()
  np.savez(content, **arrays)
  digest = hashlib.sha256(content.getbuffer()).hexdigest()
  weights = path / _WEIGHTS.replace('*', digest[:16])
  try:
    replace_whole(weights, content.getbuffer())
    description = {'format': _FORMAT, 'weights': weights.name, 'sha256': digest, **description}
    replace_whole(path / DESCRIPTION, (json.dumps(description, indent=1) + '\n').encode())
    for old in set(path.glob(_WEIGHTS)) - {weights}:
      old.unlink()
  except OSError as error:
    raise UserError(f'{path} cannot be written: {error.strerror}. The model that it held is as it was.') from None


def read(path):
  """(description, {name: array}) of a saved model; nothing in it is ever unpickled.

  Raises:
    UserError: there is none, it is damaged, or of a later version.
  """
  path = path_of(path)
  while True:
    description = _read_description(path)
    weights = path / description['weights']
    try:
      content = weights.read_bytes()
      break
    except OSError as error:
      # A writer may just have put another model in the place of the one described.
      if _read_description(path)['weights'] == description['weights']:
        raise UserError(f'{weights} cannot be read: {error.strerror}.') from None
  if hashlib.sha256(content).hexdigest() != description['sha256']:
    raise UserError(f'{weights} is damaged: its SHA-256 is not the one in {DESCRIPTION}.')
  return description, npz.read(io.BytesIO(content), weights)


def _read_description(path):
  try:
    description = json.loads((path / DESCRIPTION).read_text('utf-8'))
    version, weights, _ = description['format'], description['weights'], description['sha256']
    ours = re.fullmatch(_WEIGHTS.replace('*', '[0-9a-f]+'), weights)
  except OSError as error:
    raise UserError(f'{path} holds no saved model: {DESCRIPTION} cannot be read ({error.strerror}).') from None
  except (ValueError, KeyError, TypeError, RecursionError) as error:
    raise UserError(f'{path / DESCRIPTION} does not describe a saved model ({error!r}).') from None
  if version != _FORMAT:
    raise UserError(f'{path} was saved in format {version}, and this version of abd_jax reads format {_FORMAT}.')
  if not ours:
    raise UserError(f'{path / DESCRIPTION} names {shown(weights)}, which is no file of weights in its directory.')
  return description
