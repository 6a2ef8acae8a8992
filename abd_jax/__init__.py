"""Data-free class-incremental learning in JAX: Always Be Dreaming (ICCV 2021). Start at `train.run`."""

__version__ = '0.1.0'
