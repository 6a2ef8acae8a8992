"""The edge where pure step bodies become compiled programs."""

import contextlib
import contextvars
import ctypes
import functools
import inspect
import threading
import time
from concurrent import futures

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

_AXIS = 'data'
_of_thread = threading.local()
_compiling = False
_asking = threading.Lock()
_others = contextvars.ContextVar[tuple[jax.Device, ...]]('others', default=())


def _count_compilation(event, duration_secs, **kwargs):
  del kwargs
  if event in ('/jax/core/compile/jaxpr_to_mlir_module_duration', '/jax/core/compile/backend_compile_duration'):
    _of_thread.compile_seconds = compile_seconds() + duration_secs


jax.monitoring.register_event_duration_secs_listener(_count_compilation)


def compile_seconds():
  """Seconds that this thread has spent lowering and compiling so far: runs in one program have a thread each."""
  return getattr(_of_thread, 'compile_seconds', 0.0)


def compiling():
  """Whether a `CompiledStep` is in its first call, or the compilations of threads are waited for."""
  return _compiling


def compiler_options(*, runs_once=False, on_host=False):
  """What the backend is better told; `on_host` that of the machine's processor.

  On CPU, of the YNNPACK kernels that XLA prefers by default, the reductions are faster than its own, which
  is where BatchNorm spends its time, and the rest is slower; but jaxlib 0.11.2's make no sense of what is in bfloat16.
  And a program that runs once a task takes seconds to optimise, milliseconds to run as it is.
  """
  if platform() != 'cpu' and not on_host:
    return None
  kernels = 'REDUCE' if jax.__version_info__ < (0, 11) else 'INDIVIDUAL_CONVOLUTION'
  options = {'xla_cpu_experimental_ynn_fusion_type': f'LIBRARY_FUSION_TYPE_{kernels}'}
  return options | {'xla_backend_optimization_level': 0} if runs_once else options


def return_freed_memory():
  """Gives back to the system what was taken and freed: glibc would keep it for the process."""
  with contextlib.suppress(OSError, AttributeError):  # another C library
    ctypes.CDLL(None).malloc_trim(0)


@contextlib.contextmanager
def compiled_for(others):
  """What is built within is for these devices, whose machine need not be there: it can be compiled, not called."""
  token = _others.set(tuple(others))
  try:
    yield
  finally:
    _others.reset(token)


def devices():
  """The devices of all processes, or those of `compiled_for`."""
  return _others.get() or tuple(jax.devices())


def platform():
  """What kind `devices()` are: 'cpu', 'gpu' or 'tpu'."""
  return devices()[0].platform


def _host():
  """The processor, where `devices()` are others and JAX was not told to leave it out."""
  with contextlib.suppress(RuntimeError):
    return None if platform() == 'cpu' else jax.local_devices(backend='cpu')[0]
  return None


def _mesh():
  """The devices in a row; None where there is but one, and it is this process's own."""
  return Mesh(devices(), (_AXIS,)) if len(devices()) > 1 or _others.get() else None


def axis_of(mode):
  """The name of the mapped axis of --parallel=`mode`: None under jit, where XLA finds the collectives by itself."""
  return _AXIS if mode == 'pmap' else None


def split_rows(rows, axis):
  """A batch inside a compiled step, every device with its share of the rows.

  Args:
    rows: [B, ...], the whole batch, the same on every device.
    axis: from `axis_of`. With it the step goes on with this device's rows alone, and means over the batch are
      `mean_over` the axis; without it with all of them, of which XLA keeps a share on each device.
  """
  if axis is None:
    return keep_split(rows, axis)
  share = rows.shape[0] // jax.lax.axis_size(axis)
  return jax.lax.dynamic_slice_in_dim(rows, jax.lax.axis_index(axis) * share, share)


def keep_split(rows, axis):
  """The rows, of which XLA is told that they are split as those that they were made of."""
  if axis is not None or _mesh() is None:
    return rows
  return jax.lax.with_sharding_constraint(rows, NamedSharding(_mesh(), PartitionSpec(_AXIS)))


def mean_over(tree, axis):
  """The mean over the devices of means over their rows, which are equally many: the mean over the batch."""
  return tree if axis is None else jax.lax.pmean(tree, axis)


def _everywhere():
  """The placement of what every device holds whole: states, a task's images, metrics."""
  return None if _mesh() is None else NamedSharding(_mesh(), PartitionSpec())


def put(tree):
  """The arrays on the device, or whole on every device; every process has them all."""
  if jax.process_count() == 1:
    return jax.device_put(tree, _everywhere())

  def whole(array):
    return jax.make_array_from_callback(array.shape, _everywhere(), lambda place: array[place])

  return jax.tree.map(whole, tree)


def shapes(tree):
  """The shapes of what `put` would place, or of what is there already."""
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=_everywhere()), tree)


def _wait(begun):
  """Waits for a compilation in another thread, as for one in this."""
  since = time.perf_counter()
  futures.wait([begun])
  _of_thread.compile_seconds = compile_seconds() + time.perf_counter() - since


def end_compilations(threads):
  """Waits for what `threads` are compiling, as for a compilation in this one; what they have not begun they leave."""
  global _compiling
  # A run in a thread of its own has others beside it, which are not to be ended for it.
  _compiling = threading.current_thread() is threading.main_thread()
  try:
    threads.shutdown(cancel_futures=True)
  finally:
    _compiling = False


class CompiledStep:
  """A compiled step that counts its own traces: one a run, thanks to masks in the place of slices."""

  def __init__(self, step, *, donate=(), axis=None, runs_once=False, on_host=False):
    @functools.wraps(step)
    def traced(*args):
      self.traces += 1
      return step(*args)

    self.traces = 0
    self._ahead, self._called = None, False
    self._step, self._settings = step, {'donate': donate, 'axis': axis, 'on_host': on_host}
    self._host = _host() if on_host else None
    self._several = {}
    if self._host:
      self.jitted = jax.jit(traced, compiler_options=compiler_options(runs_once=True, on_host=True))
    elif axis is None:
      self.jitted = jax.jit(
          traced, donate_argnums=donate, out_shardings=_everywhere(),
          compiler_options=compiler_options(runs_once=runs_once),
      )
    else:
      # Every device is given everything and takes its own rows; what comes of it is the same on all of them. pmap wants
      # something to map over: the devices' numbers.
      in_axes = (0, *[None] * len(inspect.signature(step).parameters))
      mapped = jax.pmap(
          lambda _, *args: traced(*args), axis, in_axes=in_axes, out_axes=None, donate_argnums=[1 + i for i in donate]
      )
      self.jitted = functools.partial(mapped, np.arange(jax.local_device_count()))

  def __call__(self, *args):
    global _compiling
    traces = self.traces
    with _asking:
      begun = self._begun_ahead()
      _compiling = not self._called
      self._called = True
    try:
      if begun:
        _wait(begun)
      result = self._on_host(*args) if self._host else self.jitted(*args)
    finally:
      _compiling = False
    if self.traces > traces:
      return_freed_memory()
    return result

  def _on_host(self, *args):
    with self._where():
      return put(jax.tree.map(np.asarray, self.jitted(*args)))

  def _where(self):
    return jax.default_device(self._host) if self._host else contextlib.nullcontext()

  def shapes(self, *args):
    """The shapes of what the step would give, which is neither compiled nor called."""
    return jax.eval_shape(self.jitted, *args)

  def compile_ahead(self, threads, *args):
    """Has the step compiled by one of `threads` for arguments of the shapes of these, unless it is already.

    Returns:
      A future of its trace, or None.
    """
    with _asking:
      if self._called or (self._ahead and not self._ahead.cancelled()):
        return None
      self._ahead = threads.submit(self._compile, args)
      return self._ahead

  def _compile(self, args):
    try:
      with self._where():
        self.jitted.trace(*args).lower().compile()
    except jax.errors.JaxRuntimeError:
      pass  # out of memory, beside the steps of others: the call tries again
    except BaseException:
      with _asking:
        self._ahead = None  # who asked has it: kept with the step it would keep all that its traceback reaches
      raise
    return_freed_memory()

  def _begun_ahead(self):
    """The future of a thread that is at the step; None where the call is to compile it, or needs not."""
    waits = self._ahead and not self._ahead.cancel() and not self._ahead.done()
    return self._ahead if waits else None

  def of_several(self, count):
    """The same step of `count` runs as one program.

    Returns:
      A `CompiledStep` that takes, for each argument of this one, a tuple of what it is for each run, and gives a tuple
      of what each run gets. The runs are a `vmap` apart, so that all but the convolutions is one operation for all.
    """

    @functools.wraps(self._step)
    def together(*arguments):
      stacked = [jax.tree.map(lambda *leaves: jnp.stack(leaves), *of_all) for of_all in arguments]
      found = jax.vmap(self._step)(*stacked)
      return tuple(jax.tree.map(lambda leaf, i=i: leaf[i], found) for i in range(count))

    if count not in self._several:
      self._several[count] = CompiledStep(together, **self._settings)
    return self._several[count]


def compile_once(function):
  """A function that runs once a task or so, as a `CompiledStep` that is quickly made."""
  return CompiledStep(function, runs_once=True)


def compile_on_host(function):
  """As `compile_once`, a function of numbers alone that the host's processor computes, for the devices.

  A GPU's compiler takes several times as long as a processor's for the draws that a network's weights begin as.
  """
  return CompiledStep(function, runs_once=True, on_host=True)


def compile_step(step, *, donate=(), axis=None):
  """The step as one compiled program.

  Args:
    step: a pure function of pytrees.
    donate: positions of the arguments that the result replaces, whose memory it may take; never the teacher.
    axis: from `axis_of`; with it the step is mapped over the devices by `pmap`.
  """
  return CompiledStep(step, donate=donate, axis=axis)


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
  return 1 if platform() == 'cpu' else epoch_steps


def keep_compilations(folder):
  """Compilations go to `folder`, and come from there when they are met again, in whatever process."""
  jax.config.update('jax_compilation_cache_dir', str(folder))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)
