"""Texts and paths as users write them, or as their disks have them."""

import errno
import numbers
import os
import stat
import unicodedata
from pathlib import Path

import numpy as np

from abd_jax.errors import UserError

# Control characters, halves of characters (what Python makes of bytes that are not UTF-8), separators of lines.
_NO_LINE = ('Cc', 'Cs', 'Zl', 'Zp')
# What values are by the type of a default.
_KINDS = {
    bool: ((bool, np.bool_), 'true or false'), int: (numbers.Integral, 'a whole number'),
    float: (numbers.Real, 'a number'), str: (str, 'a text'), tuple: (tuple | list, 'whole numbers'),
}


def is_line(text):
  """Whether a text can stand in a line of a table, a flagfile or a page."""
  return not any(unicodedata.category(character) in _NO_LINE for character in text)


def shown(text):
  """The text, or path, with escapes in the place of what cannot stand in a line."""
  return ''.join(c if is_line(c) else c.encode('unicode_escape', 'surrogatepass').decode() for c in str(text))


def check_lines(texts, what):
  """Makes sure that texts can be shown wherever a run shows its names.

  Raises:
    UserError: one cannot; `what` begins the sentence.
  """
  wrong = [text for text in texts if not is_line(text)]
  if wrong:
    raise UserError(f'{what} "{shown(wrong[0])}" is not one line of Unicode text: rename it.')


def is_of(value, kind):
  """Whether a value is of the kind of bool, int, float, str, or tuple, which is of whole numbers; a bool is no int."""
  if kind is tuple:
    return isinstance(value, _KINDS[kind][0]) and all(is_of(item, int) for item in value)
  return isinstance(value, _KINDS[kind][0]) and (kind is bool or not isinstance(value, bool | np.bool_))


def check_kind(value, kind, what):
  """Makes sure that a value is of a kind, see `is_of`, and a text a line.

  Raises:
    UserError: it is not; `what` begins the sentence.
  """
  if not is_of(value, kind):
    raise UserError(f'{what}{shown(value)} must be {_KINDS[kind][1]}.')
  if kind is str and not is_line(value):
    raise UserError(f'{what}{shown(value)} must be one line of Unicode text.')


def path_of(text, flag=''):
  """The path that a text names, `~` being the home directory; nothing need be there.

  Args:
    text: of the user.
    flag: '--name=' where it came by a flag, to begin a sentence with.

  Raises:
    UserError: it can be no path, or may not be looked at.
  """
  try:
    path = Path(text).expanduser()
    if stat.S_ISDIR(os.stat(path).st_mode) and not os.access(path, os.R_OK | os.X_OK):
      raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
  except (FileNotFoundError, NotADirectoryError):
    pass
  except OSError as error:
    raise UserError(f'{flag}{shown(text)} cannot be looked at: {error.strerror}.') from None
  except (RuntimeError, ValueError) as error:  # of a user who is not there, or with a zero byte in it
    raise UserError(f'{flag}{shown(text)} is no path: {str(error).rstrip(".")}.') from None
  return path
