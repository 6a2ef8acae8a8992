"""Tiny-ImageNet, 20 tasks of 10 classes, from the official tree.

  python experiments/tiny_imagenet.py --flagfile=experiments/flags/tiny_imagenet_20_abd.flags --data_dir=~/data
"""

from abd_jax import config, experiment

if __name__ == '__main__':
  experiment.launch(config.Config(dataset='tiny_imagenet', num_tasks=20))
