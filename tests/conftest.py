"""Compilation is what tests on CPU wait for: one cache serves this process, its workers and those that they start."""

import os
import tempfile

# Before jax is imported, and inherited by every process that a test starts.
os.environ['JAX_PLATFORMS'] = 'cpu'
if 'PYTEST_XDIST_WORKER' not in os.environ:
  _cache = tempfile.TemporaryDirectory(prefix='abd_jax_compilations_')
  os.environ['JAX_COMPILATION_CACHE_DIR'] = _cache.name
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.3'

# The files that take minutes, first: they would be the last to end, with one worker alone.
_LONGEST = ('test_processes', 'test_resume', 'test_train', 'test_folder', 'test_parallel', 'test_methods', 'test_cli')


def pytest_collection_modifyitems(items):
  items.sort(key=lambda item: _LONGEST.index(item.path.stem) if item.path.stem in _LONGEST else len(_LONGEST))
