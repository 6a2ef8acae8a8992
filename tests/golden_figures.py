"""Figures recorded by running the authors' PyTorch code on the CPU in float32, and how to read them."""

import os
from pathlib import Path

import numpy as np
import pytest

_HERE = Path(__file__).parent / 'golden'


def load(name):
  """{key: array} of a recorded file; the larger one lies outside the repository."""
  path = _HERE / f'{name}.npz'
  if not path.exists():
    folder = os.environ.get('ABD_GOLDEN_DIR')
    if not folder or not (Path(folder) / f'{name}.npz').exists():
      pytest.skip(f'{name}.npz is not here: set ABD_GOLDEN_DIR to the folder that holds it')
    path = Path(folder) / f'{name}.npz'
  with np.load(path) as arrays:
    return dict(arrays)


def below(figures, prefix):
  """The figures whose key starts with the prefix, without it."""
  return {key[len(prefix):]: value for key, value in figures.items() if key.startswith(prefix)}
