"""Files that are written whole or not at all, what is said where the disk refuses, and locks."""

import contextlib
import fcntl
import os
from pathlib import Path

from abd_jax.errors import UserError
from abd_jax.written import path_of


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


def replace_whole(path, content):
  """Replaces a file by bytes in one move, so that a reader never sees half of it.

  Raises:
    OSError: it cannot be written; what stood there still does.
  """
  partial = Path(path).with_name(Path(path).name + '.partial')
  try:
    with partial.open('wb') as file:
      file.write(content)
      file.flush()
      os.fsync(file.fileno())  # on the disk before it has its name
    partial.replace(path)
  except OSError:
    partial.unlink(missing_ok=True)
    raise


def write_whole(path, text):
  """`replace_whole` by a text in UTF-8.

  Raises:
    UserError: it cannot be written; what stood there still does.
  """
  with writing(path):
    replace_whole(path, text.encode())


def check_writable(path, flag):
  """Refuses a file that cannot be written before minutes go into what it will hold; of no path nothing is asked.

  Args:
    path: of the file, `~` being the home directory, or ''.
    flag: '--name=' that it came by.

  Returns:
    The path, or None.

  Raises:
    UserError: it cannot.
  """
  if not path:
    return None
  path = path_of(path, flag)
  try:
    path.open('a').close()
  except OSError as error:
    raise UserError(f'{flag}{path} cannot be written: {error.strerror}.') from None
  return path


@contextlib.contextmanager
def held(lock, refusal):
  """Keeps other processes from what a lock file stands for while entered; it goes with the process, whatever ends it.

  Args:
    lock: path of a file in a folder that is there.
    refusal: the sentence for the one that comes second.

  Raises:
    UserError: another has it, or it cannot be written.
  """
  with contextlib.ExitStack() as stack:
    with writing(lock):
      file = stack.enter_context(Path(lock).open('a'))
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      raise UserError(refusal) from None
    yield
