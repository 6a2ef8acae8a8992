"""End-to-end incremental learning (Castro et al., ECCV 2018): a head distilled task by task, then balanced."""

import jax.numpy as jnp

from abd_jax.data.coreset import nearest_mean
from abd_jax.losses import cross_entropy, distillation_within_tasks
from abd_jax.methods.finetuning import cross_entropy_loss
from abd_jax.methods.interface import Coreset, Method, Phase, Reads, again, head


def _total(learn, hold, hparams):
  loss = learn + hparams.kd_weight * hold
  return loss, {'loss': loss, 'learn': learn, 'hold': hold}


def e2e_loss(view, hparams):
  """Cross-entropy, and each past task's own softened predictions held, a task weighted by its share of the past."""
  rows = view.real
  learn = jnp.mean(cross_entropy(rows.logits, rows.labels, view.seen))
  held_N = distillation_within_tasks(
      rows.logits, rows.teacher_logits, view.tasks, 0, view.past, hparams.kd_temperature
  )
  return _total(learn, jnp.mean(held_N) / view.past, hparams)


def e2e_balance_loss(view, hparams):
  """The same on the coreset alone, the new task held too, to the student as it was before this phase.

  The authors' code reads the first logits of the old model in the place of the new task's by mistake.
  """
  rows, temperature = view.real, hparams.kd_temperature
  learn = jnp.mean(cross_entropy(rows.logits, rows.labels, view.seen))
  past_N = distillation_within_tasks(rows.logits, rows.teacher_logits, view.tasks, 0, view.past, temperature)
  new_N = distillation_within_tasks(rows.logits, rows.before_logits, view.tasks, view.past, view.seen, temperature)
  return _total(learn, jnp.mean(past_N + new_N) / view.seen, hparams)


E2E = Method(
    'e2e',
    first=(Phase('learn', cross_entropy_loss),),
    later=(
        Phase('learn', e2e_loss, Reads.MIXED, teacher=True),
        Phase(
            'balance', e2e_balance_loss, Reads.CORESET, teacher=True, looks_back=True, trains=head,
            frozen_statistics=True, schedule=again,
        ),
    ),
    coreset=Coreset(rank=nearest_mean),
)
