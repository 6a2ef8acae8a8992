"""What seeds of ABD take on a machine whose steps `experiments/benchmark.py --json=FILE` has timed.

  python experiments/cost.py --benchmark=benchmark.json experiments/flags/cifar100_10_abd.flags
"""

from pathlib import Path

from absl import flags

from abd_jax import config, experiment
from abd_jax.benchmark import cost
from abd_jax.errors import UserError


def main(flagfiles):
  found = cost.read(flags.FLAGS.benchmark)
  if not flagfiles:
    raise UserError('Name the flagfiles of the runs after the flags.')
  print(cost.markdown({Path(file).stem: config.from_flagfile(file) for file in flagfiles}, found), end='')


if __name__ == '__main__':
  experiment.start(lambda: flags.DEFINE_string('benchmark', '', 'what experiments/benchmark.py --json wrote'), main)
