"""Bias correction (BiC, Wu et al., CVPR 2019): two numbers a task undo the head's preference for new classes."""

import jax.numpy as jnp

from abd_jax.data.coreset import herding
from abd_jax.losses import cross_entropy, knowledge_distillation
from abd_jax.methods.finetuning import cross_entropy_loss
from abd_jax.methods.interface import OWN, Coreset, Method, Phase, Reads, again


def bias_layers(shapes):
  """The layers before any is trained: f32[T] each, a task's logits times its scale plus its shift."""
  return lambda key: {'scale': jnp.ones(shapes.tasks), 'shift': jnp.zeros(shapes.tasks)}


def corrected(logits_NK, layers, tasks):
  """f32[N, K]: logits after the bias layer of each class's task; those of tasks not corrected yet change nothing."""
  return layers['scale'][tasks] * logits_NK + layers['shift'][tasks]


def bic_loss(view, hparams):
  """Cross-entropy and softened predictions, weighted by how much is new and how much is past.

  The bias layers of the earlier tasks are the teacher's too: they are trained once, in their own task.
  """
  rows = view.real
  logits, teacher_logits = (corrected(z, view.own, view.tasks) for z in (rows.logits, rows.teacher_logits))
  learn = jnp.mean(cross_entropy(logits, rows.labels, view.seen))
  hold = jnp.mean(knowledge_distillation(logits, teacher_logits, view.past, view.past, hparams.kd_temperature))
  share = view.past / view.seen
  loss = (1 - share) * learn + share * hold
  return loss, {'loss': loss, 'learn': learn, 'hold': hold}


def bias_loss(view, hparams):
  """Cross-entropy of the corrected logits on images that were held out, as many of every class."""
  del hparams
  logits = corrected(view.real.logits, view.own, view.tasks)
  loss = jnp.mean(cross_entropy(logits, view.real.labels, view.seen))
  return loss, {'loss': loss}


def newest_bias_layer(params, past, tasks):
  """Trains the bias layer of the newest task alone."""
  newest = {name: jnp.arange(len(layer)) == tasks[past] for name, layer in params[OWN].items()}
  return {name: newest if name == OWN else False for name in params}


def _readout(logits_NK, layers, tasks, hparams):
  return corrected(logits_NK, layers, tasks) if hparams.bic_evaluation == 'corrected' else logits_NK


BIC = Method(
    'bic',
    first=(Phase('learn', cross_entropy_loss),),
    later=(
        Phase('learn', bic_loss, Reads.MIXED, teacher=True),
        Phase(
            'bias', bias_loss, Reads.HOLD_OUT, trains=newest_bias_layer, frozen_statistics=True, schedule=again,
        ),
    ),
    coreset=Coreset(rank=herding, hold_out=0.1),
    own=bias_layers,
    readout=_readout,
)
