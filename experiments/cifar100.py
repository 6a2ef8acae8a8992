"""CIFAR-100 in 5, 10 or 20 tasks.

  python experiments/cifar100.py --flagfile=experiments/flags/cifar100_10_abd.flags --data_dir=~/data --workdir=runs/abd
"""

from abd_jax import config, experiment

if __name__ == '__main__':
  experiment.launch(config.Config(dataset='cifar100', num_tasks=10))
