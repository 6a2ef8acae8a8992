"""Hyperparameter selection as in Appendix D: 3-fold cross-validation on training images of half of the tasks.

  python experiments/sweep.py --flagfile=experiments/flags/digits.flags --method=abd
  python experiments/sweep.py --flagfile=experiments/flags/cifar100_10_abd.flags --hyperparameters=distillation_weight
  python experiments/sweep.py --flagfile=experiments/flags/cifar100_5_lwf.flags --hyperparameters= --grid=kd_weight=.1,1
"""

import dataclasses

from absl import flags

from abd_jax import config, data, experiment, processes, sweep

HYPERPARAMETERS = flags.DEFINE_list('hyperparameters', list(sweep.GRIDS), 'which of the paper\'s grids, with commas')
GRID = flags.DEFINE_multi_string('grid', [], 'NAME=VALUE,VALUE,...: a grid of your own; may be repeated')
FULL_GRID = flags.DEFINE_boolean('full_grid', False, 'every combination, not one hyperparameter at a time')
FOLDS = flags.DEFINE_integer('folds', 3, 'of the cross-validation', lower_bound=2)


def main(settings):
  # A table's flagfile lists its seeds: hyperparameters are chosen on the first.
  seed = settings.seeds[0] if settings.seeds else settings.seed
  settings = dataclasses.replace(settings, seed=seed, seeds=())
  plan = sweep.Sweep(settings, sweep.grids_of(HYPERPARAMETERS.value, GRID.value), FOLDS.value, FULL_GRID.value)
  trials = plan.run(data.load(settings.dataset, settings.data_dir, settings.verify_checksum))
  if processes.is_first():
    print('\n' + plan.markdown_table(trials), end='')


if __name__ == '__main__':
  experiment.launch(config.Config(), main)
