"""Data-free class-incremental learning in JAX: Always Be Dreaming (ICCV 2021).

Four ways in: `learner.Learner` is a classifier that learns new classes, `train.run` a benchmark run, `methods.register`
adds a method, `experiment.launch` makes a script whose flags are a run's.
"""

__version__ = '0.1.0'
