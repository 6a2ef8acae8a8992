"""Compilation is what tests on CPU wait for: one cache serves this process and those that it starts."""

import os
import tempfile

_cache = tempfile.TemporaryDirectory(prefix='abd_jax_compilations_')
# Before jax is imported, and inherited by every process that a test starts.
os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['JAX_COMPILATION_CACHE_DIR'] = _cache.name
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.3'
