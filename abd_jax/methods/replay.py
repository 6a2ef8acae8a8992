"""Old images kept, and shown again beside the new ones: the baselines of Table 2."""

from abd_jax.methods.distillation import lwf_loss
from abd_jax.methods.finetuning import cross_entropy_loss
from abd_jax.methods.interface import Coreset, Method, Phase, Reads

_drawn = Coreset(resampled=True)
_learn = Phase('learn', cross_entropy_loss, Reads.MIXED)  # the first task has nothing to mix in

REHEARSAL = Method('rehearsal', first=(_learn,), later=(_learn,), coreset=_drawn)
LWF_CORESET = Method(
    'lwf_coreset',
    first=(Phase('learn', cross_entropy_loss),),
    later=(Phase('learn', lwf_loss, Reads.MIXED, teacher=True),),
    coreset=_drawn,
)
