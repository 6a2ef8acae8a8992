"""The ImageNet subset, 10 tasks of 10 classes at 224 pixels, from folders of JPEG files; accuracy is top-5.

  python experiments/imagenet.py --flagfile=experiments/flags/imagenet100_10_abd.flags --data_dir=~/data
"""

from abd_jax import config, experiment

if __name__ == '__main__':
  experiment.launch(config.Config(dataset='imagenet', num_tasks=10, student='resnet18', top_k=5))
