"""The edge where pure step bodies become compiled programs."""

import ctypes
import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

_compile_seconds = 0.0


def _count_compilation(event, seconds, **kwargs):
  global _compile_seconds
  del kwargs
  if event in ('/jax/core/compile/jaxpr_to_mlir_module_duration', '/jax/core/compile/backend_compile_duration'):
    _compile_seconds += seconds


jax.monitoring.register_event_duration_secs_listener(_count_compilation)


def compile_seconds():
  """Seconds that this process has spent lowering and compiling so far."""
  return _compile_seconds


def compiler_options(*, runs_once=False):
  """What the backend is better told.

  On CPU, of the YNNPACK kernels that XLA prefers by default, the reductions are faster than its own, which
  is where BatchNorm spends its time, and the rest is slower; and a program that runs once a task takes seconds to
  optimise, milliseconds to run as it is.
  """
  if jax.default_backend() != 'cpu':
    return None
  options = {'xla_cpu_experimental_ynn_fusion_type': 'LIBRARY_FUSION_TYPE_REDUCE'}
  return options | {'xla_backend_optimization_level': 0} if runs_once else options


def _return_freed_memory():
  """Gives back to the system what compiling took and freed: glibc would keep it for the process."""
  try:
    ctypes.CDLL(None).malloc_trim(0)
  except (OSError, AttributeError):  # another C library
    pass


@functools.cache
def _mesh():
  """All devices in a row; None where there is but one."""
  return Mesh(jax.devices(), ('data',)) if jax.device_count() > 1 else None


def split_rows(rows):
  """A batch inside a compiled step, every device with its share of the rows.

  XLA then finds the collectives: BatchNorm and the statistics of the inversion are those of the whole batch.
  """
  return rows if _mesh() is None else jax.lax.with_sharding_constraint(rows, NamedSharding(_mesh(), PartitionSpec('data')))


def _everywhere():
  """The placement of what every device holds whole: states, a task's images, metrics."""
  return None if _mesh() is None else NamedSharding(_mesh(), PartitionSpec())


def put(tree):
  """The arrays on the device, or whole on every device."""
  return jax.device_put(tree, _everywhere())


class CompiledStep:
  """A jitted step that knows how often it was traced: once a run is what the masks are for."""

  def __init__(self, step, *, donate=()):
    @functools.wraps(step)
    def traced(*args):
      self.traces += 1
      return step(*args)

    self.traces = 0
    self.jitted = jax.jit(
        traced, donate_argnums=donate, out_shardings=_everywhere(), compiler_options=compiler_options()
    )

  def __call__(self, *args):
    traces = self.traces
    result = self.jitted(*args)
    if self.traces > traces:
      _return_freed_memory()
    return result


def compile_step(step, *, donate=()):
  """The step as one compiled program.

  Args:
    step: a pure function of pytrees.
    donate: positions of the arguments that the result replaces, whose memory it may take; never the teacher.
  """
  return CompiledStep(step, donate=donate)


def repeat(step, state, length, count):
  """Several steps as one program: the host is asked once for all of them.

  Args:
    step: (state, i32[] number of the step within the call) -> (state, {name: scalar}).
    state: a pytree.
    length: the most steps of a call, a Python integer; 1 leaves the step as it is, without a loop around it.
    count: how many of them are made, traced, so that a shorter last call is no other program.

  Returns:
    (state, {name: f32[length]}), what the steps said, zeros from `count` on.
  """
  if length == 1:
    state, metrics = step(state, 0)
    return state, jax.tree.map(lambda metric: metric[None], metrics)

  def body(i, carry):
    state, said = carry
    state, metrics = step(state, i)
    return state, jax.tree.map(lambda all_of_it, metric: all_of_it.at[i].set(metric), said, metrics)

  said = jax.tree.map(lambda metric: jnp.zeros((length,), metric.dtype), jax.eval_shape(step, state, 0)[1])
  return jax.lax.fori_loop(0, count, body, (state, said))


def default_steps_per_call(epoch_steps):
  """An epoch on accelerators, which a launch a step keeps waiting; 1 on CPU, where XLA is slower within loops."""
  return 1 if jax.default_backend() == 'cpu' else epoch_steps


def keep_compilations(folder):
  """Compilations go to `folder`, and come from there when they are met again, in whatever process."""
  jax.config.update('jax_compilation_cache_dir', str(folder))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)
