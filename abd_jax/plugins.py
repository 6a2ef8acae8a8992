"""Methods, classifiers and generators of one's own, from Python files that a command line names."""

import importlib.util
import sys

from abd_jax.errors import UserError
from abd_jax.written import path_of, shown


def load(path):
  """Runs a Python file, once a process, for what it registers; it is imported as the module of its name.

  What the file itself raises is not caught: its traceback is its author's to read.

  Raises:
    UserError: there is no such file, it is no Python file, or a module of its name is imported already.
  """
  file = path_of(path, '--plugin=').resolve()
  if file.suffix != '.py' or not file.is_file():
    raise UserError(f'--plugin={shown(path)} is no Python file: it is to be one that registers methods of your own.')
  known = sys.modules.get(file.stem)
  if known is not None:
    if getattr(known, '__file__', None) == str(file):
      return
    raise UserError(f'--plugin={shown(path)}: Python has a module {file.stem} already; give the file another name.')
  spec = importlib.util.spec_from_file_location(file.stem, file)
  assert spec is not None and spec.loader is not None  # of a .py file there is one
  sys.modules[file.stem] = module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
