"""The methods by name. To add one: a file of losses and phases here, and its `Method` in this table."""

from abd_jax.methods.abd import ABD
from abd_jax.methods.deep_inversion import DEEP_INVERSION
from abd_jax.methods.finetuning import BASE, UPPER_BOUND

METHODS = {method.name: method for method in (UPPER_BOUND, BASE, DEEP_INVERSION, ABD)}
