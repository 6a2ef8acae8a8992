"""Compilation is what tests on CPU wait for: one cache serves this process, its workers and those that they start."""

import functools
import os
import tempfile

import pytest

# Before jax is imported, and inherited by every process that a test starts. With ABD_PLATFORM=cuda, or tpu,
# tests/test_golden.py holds every formula and step to its figures there; other tests are of a CPU's bits.
os.environ['JAX_PLATFORMS'] = os.environ.get('ABD_PLATFORM', 'cpu')
if os.environ['JAX_PLATFORMS'] != 'cpu':
  os.environ.setdefault('JAX_DEFAULT_MATMUL_PRECISION', 'highest')
if 'PYTEST_XDIST_WORKER' not in os.environ:
  _cache = tempfile.TemporaryDirectory(prefix='abd_jax_compilations_')
  os.environ['JAX_COMPILATION_CACHE_DIR'] = _cache.name
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.3'
# LLVM's optimisations take longer than they save where a program runs for a second.
os.environ['JAX_DISABLE_MOST_OPTIMIZATIONS'] = '1'

# The files that take minutes, first: they would be the last to end, with one worker alone.
_LONGEST = ('test_processes', 'test_resume', 'test_train', 'test_folder', 'test_parallel', 'test_methods', 'test_cli')


def pytest_collection_modifyitems(items):
  items.sort(key=lambda item: _LONGEST.index(item.path.stem) if item.path.stem in _LONGEST else len(_LONGEST))


# The library is imported within fixtures: what stands above comes first.


@pytest.fixture
def optimised():
  """Programs as users have them compiled."""
  import jax

  before = jax.config.read('jax_disable_most_optimizations')
  jax.config.update('jax_disable_most_optimizations', False)
  yield
  jax.config.update('jax_disable_most_optimizations', before)


@pytest.fixture(scope='session')
def digits():
  from abd_jax import data

  return data.load('digits')


@pytest.fixture(scope='module')
def small():
  """Networks of the same kinds with few layers and channels: compilation is what these tests would wait for."""
  from abd_jax import models, parallel, programs
  from abd_jax.models import vae
  from abd_jax.models.generator import Generator
  from tests.small_runs import Stem

  programs.clear()
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(models.STUDENTS, 'resnet8', functools.partial(Stem, blocks_per_stage=0))
    patch.setitem(models.STUDENTS, 'resnet8_icarl', functools.partial(Stem, blocks_per_stage=0, icarl=True))
    patch.setitem(models.GENERATORS, 'cifar', functools.partial(Generator, stem_width=8, stage_widths=(8, 8)))
    patch.setattr(vae, '_ENCODER_WIDTHS', (8, 8, 16))
    patch.setattr(vae, '_DECODER_WIDTHS', (16, 8))
    patch.setattr(vae, 'LATENT_SIZE', 16)
    patch.setattr(parallel, 'compiler_options', functools.partial(parallel.compiler_options, runs_once=True))
    yield
  programs.clear()


@pytest.fixture(scope='module')
def saved_model(tmp_path_factory):
  """A model of two classes that learned nothing: all its weights are 1."""
  import jax
  import numpy as np

  from abd_jax.classifier import DEFAULTS, Classifier, with_settings

  where = tmp_path_factory.mktemp('model')
  settings = with_settings(DEFAULTS, dict(student='resnet8', image_size=8))
  model = Classifier(settings, (('cat', 'dog'),), (0.5,) * 3, (0.25,) * 3)
  like = jax.eval_shape(lambda: model.fresh_variables(jax.random.key(0)))
  ones = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), dict(like))
  Classifier(settings, model.tasks, model.mean, model.std, ones).save(where)
  return where
