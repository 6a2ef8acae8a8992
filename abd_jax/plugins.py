"""Methods and classifiers of one's own, from Python files that a command line names."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from abd_jax.errors import UserError
from abd_jax.written import path_of, shown

_loaded: dict[Path, ModuleType] = {}


def load(path):
  """Runs a Python file, once a process, for what it registers; it can import what lies beside it.

  What the file itself raises is not caught: its traceback is its author's to read.

  Raises:
    UserError: there is no such file, or it is no Python file.
  """
  file = path_of(path, '--plugin=').resolve()
  if file.suffix != '.py' or not file.is_file():
    raise UserError(f'--plugin={shown(path)} is no Python file: it is to be one that registers methods of your own.')
  if file in _loaded:
    return
  name = f'abd_plugin_{len(_loaded)}_{file.stem}'  # whatever the file is called, no package is hidden by it
  spec = importlib.util.spec_from_file_location(name, file)
  assert spec is not None and spec.loader is not None  # of a .py file there is one
  _loaded[file] = sys.modules[name] = module = importlib.util.module_from_spec(spec)
  if str(file.parent) not in sys.path:
    sys.path.append(str(file.parent))
  spec.loader.exec_module(module)
