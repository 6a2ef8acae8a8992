"""The methods by name. To add one: a file of losses and phases here and its `Method` in this table, or `register` elsewhere."""

from abd_jax.errors import UserError
from abd_jax.methods.abd import ABD
from abd_jax.methods.deep_inversion import DEEP_INVERSION
from abd_jax.methods.finetuning import BASE, UPPER_BOUND

METHODS = {method.name: method for method in (UPPER_BOUND, BASE, DEEP_INVERSION, ABD)}

_OURS = frozenset(METHODS)


def register(method):
  """Makes `method`, an `interface.Method`, one that --method can name; before `experiment.launch` or `train.run`.

  A registered method replaces an earlier one of its name, as when a notebook's cell is run again.

  Raises:
    UserError: one of this package's methods has its name.
  """
  if method.name in _OURS:
    raise UserError(f'There is a method called {method.name} already: choose another name.')
  METHODS[method.name] = method
