"""The hot steps compiled for devices that are not there: whether they fit, and what the compiler makes of them."""

import contextlib
import os
import re
import time

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh

from abd_jax import __version__, programs
from abd_jax.benchmark import gpus
from abd_jax.benchmark.hot_steps import hot_steps, prepared
from abd_jax.errors import UserError
from abd_jax.parallel import compiled_for, devices, platform, shapes


def chips(topology, count=None):
  """The devices of a topology, or the first `count` of them.

  Args:
    topology: as TPU's compiler names it, 'v5e:2x2'; or one of `gpus.BANDWIDTH`, of as many as are asked for.
    count: None for all, of a GPU for one.

  Raises:
    UserError: there is no such topology, not so many chips, or no compiler.
  """
  if topology in gpus.BANDWIDTH:
    takes = "`pip install -e '.[cuda]'`, and no GPU"
    named = dict(platform='cuda', target_config=gpus.target(topology), topology=f'1x1x{max(1, count or 1)}')
  else:
    os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')  # a machine without TPU has nobody to ask what it is
    takes, named = '`pip install libtpu`, and no TPU', dict(platform='tpu', topology_name=topology)
  try:
    found = topologies.get_topology_desc(**named).devices
  except (RuntimeError, ImportError, NotImplementedError, ValueError) as error:
    said = str(error).splitlines()[0].removesuffix('.')
    raise UserError(f'--topology={topology} cannot be compiled for: {said}. It takes {takes}.') from None
  if count is not None and not 1 <= count <= len(found):
    raise UserError(f'--chips={count} is not from 1 to the {len(found)} of --topology={topology}.')
  return tuple(found[:count])


def run(config, topology, count=None):
  """Compiles the steps that `timing` times, as a run of `config` on these chips would.

  Args:
    config: of steps as `timing.run` times them; those of several `seeds` as one program, unless they take turns.
    topology, count: as for `chips`.

  Returns:
    {'ours', 'device', 'chips', 'steps': [...], ...}, JSON-able; of each step {'step', 'compile_seconds',
    'argument_bytes', 'temporary_bytes'}, the bytes those of one chip, and what it says of one step: of a TPU 'cycles',
    that its compiler expects, of a clock that it does not name; of a GPU 'kernels' launched, 'moved_bytes' as
    `gpus.launches` counts them, and 'bandwidth_milliseconds', that these take at the memory's full bandwidth. All are
    for comparing programs, no measurement.

  Raises:
    UserError: as `chips`; the batch cannot be shared; --parallel=pmap, which compiles where it runs.
  """
  if config.parallel == 'pmap':
    raise UserError('--parallel=pmap compiles for the devices of its own process alone.')
  devices, seeds = chips(topology, count), 1 if config.seeds_in == 'turns' else max(1, len(config.seeds))
  with compiled_for(devices):
    programs.clear()  # what was built so far is for this machine
    try:
      steps = [{'step': name, **_compiled(hot, topology, seeds)} for name, hot in _hot_steps(config).items()]
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
      'seeds': seeds,
      'steps': steps,
  }


def _hot_steps(config):
  (tasks, built), place = prepared(config), np.zeros(4, np.int32)
  states = (init.shapes(place) for init in (built.init_student, built.init_generator))
  return hot_steps(config, tasks, built, *shapes((*states, *tasks.train(1))))


def _compiled(hot, topology, seeds=1):
  step, arguments = hot.step, (hot.state, *hot.others(0))
  if seeds > 1:
    step, arguments = step.of_several(seeds), [(argument,) * seeds for argument in arguments]
  since = time.perf_counter()
  kind = 'cuda' if platform() == 'gpu' else platform()
  with _told_of_gpus() if kind == 'cuda' else contextlib.nullcontext():
    lowered = step.jitted.trace(*arguments).lower(lowering_platforms=(kind,))
  compiled = lowered.compile()
  seconds, memory, text = time.perf_counter() - since, compiled.memory_analysis(), compiled.as_text()
  said = {
      'compile_seconds': seconds,
      'argument_bytes': memory.argument_size_in_bytes,
      'temporary_bytes': memory.temp_size_in_bytes,
  }
  if topology not in gpus.BANDWIDTH:
    return said | {'cycles': _cycles(text)}
  kernels, moved = gpus.launches(text)
  return said | {
      'kernels': kernels, 'moved_bytes': moved, 'bandwidth_milliseconds': 1e3 * moved / gpus.BANDWIDTH[topology]
  }


def _told_of_gpus():
  """Where Pallas asks JAX what GPU it writes kernels for, it is one of `devices()`."""
  return jax.sharding.use_abstract_mesh(Mesh(devices(), ('device',)).abstract_mesh)


def _cycles(text):
  """Of the computation that takes most: what a loop repeats, or all there is without one."""
  computations = re.split(r'\n(?=\S[^\n]* -> [^\n]* \{\n)', text)
  return max(sum(map(int, re.findall(r'"estimated_cycles":"(\d+)"', one))) for one in computations)


# Heading, what it is of a step, its unit, its digits.
_OF_STEP = (
    ('seconds to compile', 'compile_seconds', 1, 0),
    ('MB held', 'argument_bytes', 1e6, 0),
    ('MB in use', 'temporary_bytes', 1e6, 0),
    ('million cycles expected', 'cycles', 1e6, 2),
    ('kernels', 'kernels', 1, 0),
    ('GB moved', 'moved_bytes', 1e9, 2),
    ('ms at full bandwidth', 'bandwidth_milliseconds', 1, 2),
)


def markdown_table(*found):
  """What `run` found, for people: of one run of it, or of several for one kind of devices."""
  of_step = [column for column in _OF_STEP if column[1] in found[0]['steps'][0]]
  of_run = ['student', 'image_size', 'batch_size', 'precision']
  of_run += ['seeds'] if any(one.get('seeds', 1) > 1 for one in found) else []
  heads = {'image_size': 'pixels', 'batch_size': 'batch', 'seeds': 'seeds at once'}
  columns = ('chips', *(heads.get(name, name) for name in of_run), 'step', *(column[0] for column in of_step))
  lines = [columns, ['---'] * len(columns)]
  lines += [
      (
          f'{one["chips"]} x {one["device"]}', *(one.get(name, 1) for name in of_run), row['step'],
          *(f'{row[name] / unit:.{digits}f}' for _, name, unit, digits in of_step),
      )
      for one in found
      for row in one['steps']
  ]
  return ''.join(f'| {" | ".join(map(str, line))} |\n' for line in lines)
