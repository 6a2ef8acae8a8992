"""A small real run is hurt again and again: killed, told to stop, out of disk, its checkpoints damaged.

  python experiments/faults.py --workdir=faults --json=faults.json

Fifteen to thirty minutes on two cores. Every run is a process of its own and writes below --workdir, which must not
exist; `abd_jax/faults/trials.py` says what is done to it and what counts as survived. Ends with status 1 where one
did not.
"""

import json
import sys

from absl import flags

from abd_jax import experiment
from abd_jax.errors import UserError
from abd_jax.faults.small_run import JOB
from abd_jax.faults.trials import Trials
from abd_jax.files import check_writable, write_whole, writing
from abd_jax.results import versions
from abd_jax.written import path_of

STAGES = ('signals', 'signals_to_two', 'refused', 'two_on_one', 'jumping_clock', 'full_disks', 'damaged')


def define_flags(flag_values=flags.FLAGS):
  where = {'flag_values': flag_values}
  flags.DEFINE_string('workdir', 'faults', 'where the runs go; must not exist', **where)
  flags.DEFINE_string('json', '', 'where the figures go', **where)
  flags.DEFINE_list('stages', list(STAGES), 'what is done', **where)
  flags.DEFINE_integer('signals', 30, 'how often one process is killed or told to stop', lower_bound=0, **where)
  flags.DEFINE_integer('signals_to_two', 8, 'how often two processes are', lower_bound=0, **where)
  flags.DEFINE_integer('times', 3, 'each damage, and how often the disk is full', lower_bound=0, **where)
  flags.DEFINE_integer('seed', 0, 'of the moments', **where)


def run(arguments, asked=flags.FLAGS):
  del arguments
  work = path_of(asked.workdir, '--workdir=')
  if unknown := [stage for stage in asked.stages if stage not in STAGES]:
    raise UserError(f'--stages: {unknown[0]} is not one of {", ".join(STAGES)}.')
  if not asked.stages:
    raise UserError('--stages names nothing to do.')
  if work.exists():
    raise UserError(f'--workdir={work} exists: name a new one.')
  place = check_writable(asked.json, '--json=')
  with writing(work):
    work.mkdir(parents=True)
  trials = Trials(work, asked.seed)
  told = {
      'signals': (asked.signals,), 'signals_to_two': (asked.signals_to_two, 2), 'full_disks': (asked.times,),
      'damaged': (asked.times,),
  }
  for stage in asked.stages:
    getattr(trials, stage.removesuffix('_to_two'))(*told.get(stage, ()))
    text = json.dumps({'job': JOB, **trials.report(), 'versions': versions()}, indent=1) + '\n'
    if place:
      write_whole(place, text)
  print(text, end='')
  if trials.failures:
    sys.exit(1)


if __name__ == '__main__':
  experiment.start(define_flags, run)
