"""Files that are written whole or not at all, and what is said where the disk refuses."""

import contextlib
import os
from pathlib import Path

from abd_jax.errors import UserError


@contextlib.contextmanager
def writing(path):
  """While entered, what the file system refuses is said in a sentence.

  Raises:
    UserError: the disk is full, say, or the folder is gone.
  """
  try:
    yield
  except OSError as error:
    raise UserError(f'{path} cannot be written: {error.strerror or error}.') from None


def write_whole(path, text):
  """Replaces a file in one move, so that a reader never sees half of it.

  Raises:
    UserError: it cannot be written; what stood there still does.
  """
  partial = Path(path).with_name(Path(path).name + '.partial')
  with writing(path):
    try:
      with partial.open('w') as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())  # on the disk before it has its name
      partial.replace(path)
    except OSError:
      partial.unlink(missing_ok=True)
      raise
