"""The methods by name. To add one: a file of losses and phases here, its `Method` below; elsewhere, `register`."""

import re

from abd_jax.errors import UserError
from abd_jax.methods.abd import ABD
from abd_jax.methods.bias_correction import BIC
from abd_jax.methods.deep_inversion import DEEP_INVERSION
from abd_jax.methods.distillation import LWF, LWF_MC, LWF_SYNTHETIC
from abd_jax.methods.dream import DREAM
from abd_jax.methods.end_to_end import E2E
from abd_jax.methods.finetuning import BASE, UPPER_BOUND
from abd_jax.methods.generative import DGR
from abd_jax.methods.rdfcil import RDFCIL
from abd_jax.methods.replay import LWF_CORESET, REHEARSAL

_ALL = (
    UPPER_BOUND, BASE, LWF, LWF_MC, LWF_SYNTHETIC, DEEP_INVERSION, DGR, ABD, RDFCIL, DREAM,
    REHEARSAL, LWF_CORESET, E2E, BIC,  # with old images
)
METHODS = {method.name: method for method in _ALL}

_OURS = frozenset(METHODS)


def register(method):
  """Makes `method`, an `interface.Method`, one that --method can name; before a config names it.

  A registered method replaces an earlier one of its name, as when a notebook's cell is run again. A workdir knows a
  method by its name: after a change of its losses name another.

  Raises:
    UserError: one of this package's methods has its name, or no folder can; its phases are no tuples; or it closes a
      task with synthetic images and makes none.
  """
  if method.name in _OURS:
    raise UserError(f'There is a method called {method.name} already: choose another name.')
  if not re.fullmatch(r'\w[\w-]*', method.name) or method.name == 'sweep':
    raise UserError(f'{method.name!r} is no name for a method, whose runs have a folder of it: choose another.')
  for name, phases in (('first', method.first), ('later', method.later)):
    if not isinstance(phases, tuple):
      raise UserError(f'{method.name}: {name} is a tuple of phases, (Phase(...),).')
  if method.closes and not method.dreams:
    raise UserError(f'{method.name}: what closes a task looks at synthetic images, and no phase has dreams=True.')
  METHODS[method.name] = method
