"""Flagfiles before absl reads them: it passes over one that names itself, and trips over one that is no text."""

from abd_jax.errors import UserError
from abd_jax.written import path_of, shown

_DIRECTIVES = ('--flagfile=', '-flagfile=')


def check(arguments, within=()):
  """Makes sure that the flagfiles of a command line, and those that they name, can be read and come to an end.

  Args:
    arguments: of the command line, or the lines of a flagfile.
    within: the files that these are the lines of, the outermost first.

  Raises:
    UserError: one is not there, is not text, or names one that it is named by.
  """
  for path in _named(arguments):
    found = path_of(path, '--flagfile=').resolve()
    if found in within:
      raise UserError(f'The flagfile {shown(path)} includes itself: take that line out of {within[-1]}.')
    try:
      lines = found.read_text('utf-8').splitlines()
    except OSError as error:
      raise UserError(f'The flagfile {shown(path)} cannot be read: {error.strerror}.') from None
    except UnicodeDecodeError:
      raise UserError(f'{shown(path)} is not a flagfile: it is not UTF-8 text.') from None
    if lines and lines[0].startswith('\ufeff'):  # absl would take it for part of the first flag
      raise UserError(f'{shown(path)} begins with a byte order mark: save it as UTF-8 without one.')
    check([line.strip() for line in lines], (*within, found))


def _named(arguments):
  """The flagfiles that arguments name, in either way of writing it."""
  found, arguments = [], iter(arguments)
  for argument in arguments:
    if argument == '--':
      break  # what follows are no flags
    if argument in ('--flagfile', '-flagfile'):
      found.append(next(arguments, ''))
    elif argument.startswith(_DIRECTIVES):
      found.append(argument.partition('=')[2].strip())
  return [path for path in found if path]  # absl says that one without a name is none
