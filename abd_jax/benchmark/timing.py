"""How fast the three hot steps are: the first task's, ABD's, the generator's; beside what the hardware could do.

Steps are timed as a run makes them, augmentation and sampling included, on images already on the device.
"""

import contextlib
import dataclasses
import statistics
import subprocess
import sys
import time
from concurrent import futures

import jax
import jax.numpy as jnp
import numpy as np

from abd_jax import __version__
from abd_jax.addresses import Address
from abd_jax.benchmark.hot_steps import STEPS, hot_steps, prepared
from abd_jax.benchmark.operations import matmul_peak, step_flops
from abd_jax.config import Config
from abd_jax.errors import UserError
from abd_jax.parallel import compile_seconds, put
from abd_jax.results import peak_memory_bytes


@dataclasses.dataclass(frozen=True)
class Timing:
  """Seconds a step: one figure a repeat."""

  seconds: tuple[float, ...]

  @property
  def median(self):
    return statistics.median(self.seconds)

  @property
  def spread(self):
    """Half the distance between the quartiles, against the median."""
    if len(self.seconds) < 2:
      return 0.0
    low, _, high = statistics.quantiles(self.seconds, n=4)
    return (high - low) / 2 / self.median


class Ours:
  """The steps of this library, compiled for `config`: of one run, or of several as one program."""

  name = f'abd_jax {__version__}, jax {jax.__version__}'

  def __init__(self, config: Config, runs=1):
    # As many as CIFAR-100 has, so that a call of an epoch is as long as in a run; of larger images few, for memory.
    enough = {} if config.image_size > 32 else {'num_images': 50_000}
    tasks, programs = prepared(config, **enough)
    place = np.array([config.seed, 0, Address.STUDENT_INIT, 0], np.int32)
    student, generator = programs.init_student(place), programs.init_generator(place)
    self._hot, self._runs = hot_steps(config, tasks, programs, student, generator, *put(tasks.train(1))), runs
    # States as they are after the step before, since a step takes over the memory of those it is given.
    copies = lambda state: [jax.tree.map(jnp.copy, state) for _ in range(runs)]
    self._held = {name: copies(hot.state) for name, hot in self._hot.items()}
    before = compile_seconds()
    with futures.ThreadPoolExecutor(len(STEPS)) as threads:  # as a run has its steps compiled: beside each other
      for name in STEPS if config.parallel == 'jit' else ():  # pmap compiles when it is called
        step, arguments = self._to_call(name, 0)
        step.compile_ahead(threads, *arguments)
      for name in STEPS:
        jax.block_until_ready(self._call(name, 0))
    self.compile_seconds = compile_seconds() - before

  def _to_call(self, name, number):
    """The step and its arguments for a call, whose first step is `number`."""
    hot = self._hot[name]
    of_runs = [(state, *hot.others(number)) for state in self._held[name]]
    if self._runs == 1:
      return hot.step, of_runs[0]
    return hot.step.of_several(self._runs), tuple(zip(*of_runs, strict=True))

  def _call(self, name, number):
    """The metrics of a call, whose first step is `number`."""
    step, arguments = self._to_call(name, number)
    found = [step(*arguments)] if self._runs == 1 else step(*arguments)
    self._held[name] = [state for state, _ in found]
    return [metrics for _, metrics in found]

  def seconds(self, name, count):
    """What each of `count` steps, of all runs together, took on average, in whole calls of --steps_per_call."""
    length = self._hot[name].length
    metrics, calls = None, -(-count // (length * self._runs))
    since = time.perf_counter()
    for i in range(calls):
      metrics = self._call(name, i * length)
    jax.block_until_ready(metrics)
    return (time.perf_counter() - since) / (calls * length * self._runs)


class Authors:
  """The same steps of the authors' PyTorch code, in a process of its own that works only when it is asked."""

  def __init__(self, checkout, config: Config):
    command = [sys.executable, '-m', 'abd_jax.benchmark.authors', checkout, str(config.optimisation.batch_size)]
    self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
      self.name = self._answer()
    except UserError:
      self.close()
      raise

  def _answer(self):
    for line in self._process.stdout:
      if line.startswith('answer '):
        return line.removeprefix('answer ').strip()
    raise UserError('The authors\' code could not be run: what it says stands above.')

  def seconds(self, name, count):
    """What each of `count` successive steps took on average."""
    with contextlib.suppress(BrokenPipeError):  # it has ended, and answers nothing
      print(name, count, file=self._process.stdin, flush=True)
    return float(self._answer())

  def close(self):
    with self._process as process:  # which closes its pipes
      process.stdin.close()
      process.wait(timeout=60)


def measure(contestants, repeats, seconds):
  """Times all steps of all contestants in turn, so that what else the machine does falls on all of them.

  Args:
    contestants: `Ours` or `Authors`.
    repeats: figures a step.
    seconds: about how long each of them is measured.

  Returns:
    A list as long as `contestants` of {step: Timing}.
  """
  found = [{} for _ in contestants]
  for name in STEPS:
    counts = [max(1, round(seconds / contestant.seconds(name, 2))) for contestant in contestants]  # and warms up
    figures = [
        [contestant.seconds(name, count) for contestant, count in zip(contestants, counts, strict=True)]
        for _ in range(repeats)
    ]
    for timings, of_one in zip(found, zip(*figures, strict=True), strict=True):
      timings[name] = Timing(of_one)
  return found


def _compared(slower, faster, prefix=''):
  """How many times as fast, of two `Timing`s made in turn: of a figure a repeat the median and the extremes."""
  ratios = [a / b for a, b in zip(slower.seconds, faster.seconds, strict=True)]
  figures = {'times_as_fast': statistics.median(ratios), 'least': min(ratios), 'most': max(ratios)}
  return {prefix + name: figure for name, figure in figures.items()}


def _row(step, batch, flops, peak, ours, several=None, authors=None):
  """What there is to say of a step, whose operations are `flops`, from the `Timing`s of the contestants."""
  row = {
      'step': step,
      'milliseconds': 1e3 * ours.median,
      'spread': ours.spread,
      'steps_per_second': 1 / ours.median,
      'images_per_second': batch / ours.median,
      'flops_per_second': flops / ours.median,
      'share_of_peak': flops / ours.median / peak,
  }
  if several:
    row |= {'together_milliseconds': 1e3 * several.median, **_compared(ours, several, 'together_')}
  if authors:
    row |= {'authors_milliseconds': 1e3 * authors.median, **_compared(authors, ours)}
  return row


def run(config, repeats=9, seconds=2.0, against=None):
  """The whole comparison.

  Args:
    config: of our steps; the authors' have their own, with the same batch.
    repeats, seconds: as in `measure`.
    against: a checkout of the authors' code, or None.

  Returns:
    What --json writes: {'device', 'peak_flops', 'compile_seconds', 'peak_memory_bytes', 'steps': [...], ...}.

  Raises:
    UserError: the authors' code cannot be run.
  """
  ours = Ours(config)
  memory = peak_memory_bytes()  # of these steps alone
  with contextlib.ExitStack() as stack:
    contestants = {'ours': ours}
    if len(config.seeds) > 1:
      contestants['several'] = Ours(config, len(config.seeds))
    if against:
      contestants['authors'] = Authors(against, config)
      stack.callback(contestants['authors'].close)
    timings = dict(zip(contestants, measure(list(contestants.values()), repeats, seconds), strict=True))
  return _report(config, contestants, timings, repeats, memory)


def _report(config, contestants, timings, repeats, memory):
  """What `run` returns, of its `contestants` and their {step: Timing} by the names that `_row` knows."""
  ours = contestants['ours']
  flops, peak = step_flops(config), matmul_peak(config.precision)
  batch = config.optimisation.batch_size
  rows = [
      _row(name, batch, flops[name], peak, **{side: timed[name] for side, timed in timings.items()}) for name in STEPS
  ]
  return {
      'device': jax.devices()[0].device_kind,
      'ours': ours.name,
      'authors': contestants['authors'].name if 'authors' in contestants else None,
      'runs_together': len(config.seeds) if 'several' in timings else None,
      'student': config.student,
      'batch_size': batch,
      'image_size': config.image_size or 32,
      'precision': config.precision,
      'repeats': repeats,
      'peak_flops': peak,
      'compile_seconds': ours.compile_seconds,
      'peak_memory_bytes': memory,
      'steps': rows,
  }


def markdown_table(found):
  """What `run` found, for people."""
  columns = {'step': '{}', 'milliseconds': '{:.1f}', 'spread': '{:.0%}', 'steps_per_second': '{:.2f}',
             'images_per_second': '{:.0f}', 'share_of_peak': '{:.0%}'}
  # What earlier versions did not time, or say.
  together, precision = found.get('runs_together'), f' in {found["precision"]}' if 'precision' in found else ''
  if together:
    columns |= {'together_milliseconds': '{:.1f}', 'together_times_as_fast': '{:.2f}', 'together_least': '{:.2f}',
                'together_most': '{:.2f}'}
  if found['authors']:
    columns |= {'authors_milliseconds': '{:.1f}', 'times_as_fast': '{:.2f}', 'least': '{:.2f}', 'most': '{:.2f}'}
  lines = [' | '.join(name.replace('_', ' ') for name in columns), '|'.join('---' for _ in columns)]
  lines += [' | '.join(form.format(row[name]) for name, form in columns.items()) for row in found['steps']]
  head = (
      f'{found["ours"]}' + (f', against {found["authors"]}' if found['authors'] else '') + f', on {found["device"]}:'
      f' {found["student"]}{precision}, batch {found["batch_size"]}, {found["image_size"]} pixels,'
      f' {found["repeats"]} repeats'
      + (f', also of {together} runs together' if together else '') + ';'
      f' a matrix product reaches {found["peak_flops"] / 1e9:.0f} GFLOP/s;'
      f' compiled in {found["compile_seconds"]:.0f} s; at most {found["peak_memory_bytes"] / 1e9:.2f} GB.'
  )
  return head + '\n\n' + ''.join(f'| {line} |\n' for line in lines)
