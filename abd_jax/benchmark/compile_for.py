"""The hot steps compiled for TPUs that are not there: whether they fit, and what their compiler makes of them."""

import os
import re
import time

import jax
import numpy as np
from jax.experimental import topologies

from abd_jax import __version__, programs
from abd_jax.benchmark.hot_steps import hot_steps, prepared
from abd_jax.errors import UserError
from abd_jax.parallel import compiled_for, platform, shapes


def chips(topology, count=None):
  """The devices of a TPU topology, or the first `count` of them.

  Args:
    topology: as TPU's compiler names it: 'v5e:2x2'.
    count: None for all.

  Raises:
    UserError: there is no such topology, not so many chips, or no compiler.
  """
  os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')  # a machine without TPU has nobody to ask what it is
  try:
    found = topologies.get_topology_desc(platform='tpu', topology_name=topology).devices
  except (RuntimeError, ImportError, NotImplementedError, ValueError) as error:
    said = str(error).splitlines()[0].removesuffix('.')
    raise UserError(
        f'--topology={topology} cannot be compiled for: {said}. It takes `pip install libtpu`, and no TPU.'
    ) from None
  if count is not None and not 1 <= count <= len(found):
    raise UserError(f'--chips={count} is not from 1 to the {len(found)} of --topology={topology}.')
  return tuple(found[:count])


def run(config, topology, count=None):
  """Compiles the steps that `timing` times, as a run of `config` on these chips would.

  Args:
    config: of steps as `timing.run` times them.
    topology, count: as for `chips`.

  Returns:
    {'ours', 'device', 'chips', 'steps': [...], ...}, JSON-able; of each step {'step', 'compile_seconds',
    'argument_bytes', 'temporary_bytes', 'cycles'}, the bytes those of one chip. `cycles` is what the compiler expects
    one step to take, of a clock that it does not name: for comparing programs, no measurement.

  Raises:
    UserError: as `chips`; the batch cannot be shared; --parallel=pmap, which compiles where it runs.
  """
  if config.parallel == 'pmap':
    raise UserError('--parallel=pmap compiles for the devices of its own process alone.')
  devices = chips(topology, count)
  with compiled_for(devices):
    programs.clear()  # what was built so far is for this machine
    try:
      steps = [_compiled(name, hot) for name, hot in _hot_steps(config).items()]
    finally:
      programs.clear()
  return {
      'ours': f'abd_jax {__version__}, jax {jax.__version__}',
      'device': devices[0].device_kind,
      'chips': len(devices),
      'student': config.student,
      'batch_size': config.optimisation.batch_size,
      'image_size': config.image_size or 32,
      'precision': config.precision,
      'steps': steps,
  }


def _hot_steps(config):
  (tasks, built), place = prepared(config), np.zeros(4, np.int32)
  states = (init.shapes(place) for init in (built.init_student, built.init_generator))
  return hot_steps(config, tasks, built, *shapes((*states, *tasks.train(1))))


def _compiled(name, hot):
  since = time.perf_counter()
  compiled = hot.step.jitted.trace(hot.state, *hot.others(0)).lower(lowering_platforms=(platform(),)).compile()
  memory = compiled.memory_analysis()
  return {
      'step': name,
      'compile_seconds': time.perf_counter() - since,
      'argument_bytes': memory.argument_size_in_bytes,
      'temporary_bytes': memory.temp_size_in_bytes,
      'cycles': _cycles(compiled.as_text()),
  }


def _cycles(text):
  """Of the computation that takes most: what a loop repeats, or all there is without one."""
  computations = re.split(r'\n(?=\S[^\n]* -> [^\n]* \{\n)', text)
  return max(sum(map(int, re.findall(r'"estimated_cycles":"(\d+)"', one))) for one in computations)


def markdown_table(*found):
  """What `run` found, for people: of one run of it, or of several."""
  columns = (
      'chips', 'student', 'pixels', 'batch', 'precision', 'step', 'seconds to compile', 'MB held', 'MB in use',
      'million cycles expected',
  )
  lines = [columns, ['---'] * len(columns)]
  lines += [
      (
          f'{one["chips"]} x {one["device"]}', one['student'], one['image_size'], one['batch_size'], one['precision'],
          row['step'], f'{row["compile_seconds"]:.0f}', f'{row["argument_bytes"] / 1e6:.0f}',
          f'{row["temporary_bytes"] / 1e6:.0f}', f'{row["cycles"] / 1e6:.2f}',
      )
      for one in found
      for row in one['steps']
  ]
  return ''.join(f'| {" | ".join(map(str, line))} |\n' for line in lines)
