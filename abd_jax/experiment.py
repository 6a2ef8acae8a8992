"""From flags to runs: what every script in experiments/ calls."""

import dataclasses
import functools
import io
import itertools
import logging
import os
import sys
from pathlib import Path

import jax
from absl import app, flags
from absl import logging as absl_logging

from abd_jax import config as config_lib
from abd_jax import flagfiles, lockstep, plugins, processes, train
from abd_jax.config import Config
from abd_jax.data import load
from abd_jax.errors import UserError
from abd_jax.parallel import keep_compilations
from abd_jax.report import pages, tables, upper_bounds
from abd_jax.stopping import StopSignal
from abd_jax.workdir import check_workdir
from abd_jax.written import path_of


def runs_of(config):
  """[(Config of one method and seed, its workdir)], what a config with lists of methods or seeds stands for."""
  methods, seeds = config.method.split(','), config.seeds or (config.seed,)
  # One seed too has its own folder where seeds are listed, so that a longer list later finds it.
  several = len(methods) > 1 or config.seeds
  runs = []
  for method in methods:
    for seed in seeds:
      workdir = path_of(config.workdir, '--workdir=')
      workdir = workdir / method / f'seed{seed}' if several else workdir
      one = dataclasses.replace(config, method=method, seed=seed, seeds=(), workdir=str(workdir))
      runs.append((one, workdir))
  return runs


def start(define, do):
  """Parses the command line with the flags that `define()` defines; calls `do` with the arguments that are no flags.

  Every script has --plugin besides, whose files are run before the values of flags are looked at.

  Exit status 2 after a sentence for what the user can mend, 75 when told to stop and resumable, 130 after Ctrl-C.
  """

  def parse(arguments):
    flags.DEFINE_multi_string(
        'plugin', [], 'a Python file that registers methods or networks of your own; may be repeated',
        module_name=sys.argv[0],
    )
    define()
    try:
      flagfiles.check(arguments[1:])
      rest = flags.FLAGS(arguments)
      for path in flags.FLAGS.plugin:
        plugins.load(path)
      return rest
    except (flags.Error, UserError) as error:
      _refuse(error)

  def main(arguments):
    # Orbax and absl announce each checkpoint, and what they raise besides: a run says both itself.
    absl_logging.set_verbosity(absl_logging.FATAL)
    logging.getLogger('orbax').setLevel(logging.CRITICAL)
    for stream in (sys.stdout, sys.stderr):
      if isinstance(stream, io.TextIOWrapper):  # names of classes and files, in whatever encoding
        stream.reconfigure(errors='backslashreplace')
    try:
      do(arguments[1:])
      sys.stdout.flush()
    except UserError as error:
      _refuse(error)
    except BrokenPipeError:  # of `| head`
      os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
      sys.exit(1)
    except KeyboardInterrupt:
      print('Interrupted. A run goes on from its last checkpoint when its command is given again.', file=sys.stderr)
      sys.stdout.flush()
      os._exit(130)  # not after what threads are still compiling

  app.run(main, flags_parser=parse)


def launch(defaults: Config, do=None):
  """Starts a script whose flags are a config's; `defaults` are its own, `do(config)` is `run_all`."""

  def with_config(arguments):
    if arguments:
      raise UserError(f'Unexpected argument {arguments[0]}: flags are written --name=value.')
    config = config_lib.config_from_flags(defaults)
    if config.distributed:
      processes.join(config.distributed)
    if config.compilation_cache:
      keep_compilations(path_of(config.compilation_cache, '--compilation_cache='))
    jax.config.update('jax_debug_nans', config.debug_nans)
    (do or run_all)(config)

  start(lambda: config_lib.define_flags(defaults), with_config)


def run_all(config):
  """Trains every method and seed of the config, and prints how they compare.

  Returns:
    A list of `results.Results`.
  """
  runs, in_turns = runs_of(config), _in_turns(config)
  stored = []
  with StopSignal() as stop:
    dataset = load(config.dataset, config.data_dir, config.verify_checksum)
    if processes.is_first() and _never_decays(config.optimisation):
      marks, epochs = config_lib.text_of(config.optimisation.decay_at), config.optimisation.epochs
      print(f'--decay_at={marks}: --epochs={epochs} come to none of them, and the learning rate stays as it is.')
    for one, workdir in runs:  # all of them before the first is trained
      tasks = train.tasks_for(one, dataset)
      stored.append(processes.on_first(functools.partial(_prepare, config, one, workdir, dataset, tasks)))
    results = _train(runs, dataset, stop, in_turns)
  if processes.is_first():
    results = _with_omega(config, runs, results, stored)
    if len(runs) > 1:
      shown = [pages.Run(one, workdir) for one, (_, workdir) in zip(results, runs, strict=True)]
      pages.save_collection(Path(config.workdir).expanduser() / 'report.html', shown)
    print('\n' + tables.markdown(tables.collate(results)), end='')
    print(f'Everything is in {Path(config.workdir).expanduser()}', flush=True)
  return results


def _never_decays(settings):
  return bool(settings.decay_at) and min(settings.decay_at) >= settings.epochs


def _train(runs, dataset, stop, in_turns):
  """The results of all runs, in their order: the seeds of a method at once, or one run after the other."""
  if in_turns:
    return [train.run(one, workdir, dataset, stop) for one, workdir in runs]
  results = []
  for _, of_one in itertools.groupby(runs, key=lambda run: run[0].method):
    results += lockstep.train_together(list(of_one), dataset, stop)
  return results


def _in_turns(config):
  """Whether the seeds of a method are trained one after the other."""
  if len(config.seeds) < 2 or config.seeds_in == 'turns':
    return True
  if jax.process_count() > 1:  # threads would not meet those of other processes in the same order
    if config.seeds_in == 'one_program':
      raise UserError('--seeds_in=one_program is for one process: with --distributed, seeds are trained in turns.')
    return True
  return config.seeds_in == 'auto' and jax.default_backend() != 'gpu'


def _prepare(config, one, workdir, dataset, tasks):
  """The stored upper bound of a run, or None; refuses what it cannot write or be held against."""
  check_workdir(one, workdir)
  # Beside the methods of this command, not below one of them.
  return upper_bounds.stored(dataclasses.replace(one, workdir=config.workdir), dataset, tasks)


def _with_omega(config, runs, results, stored):
  """The results against the upper bounds of this command and those stored, saved where that changes them."""
  fresh = [r for r in results if r.method == 'upper_bound']
  found = []
  for (_, workdir), before, bound in zip(runs, results, stored, strict=True):
    kept = [bound] if bound else []
    found.append(upper_bounds.with_omega(before, kept + fresh if config.upper_bound else fresh + kept))
    if found[-1] != before:
      found[-1].save(workdir / 'results.json')
      pages.save_run(workdir, found[-1])
  return found


def _refuse(sentence):
  print(sentence, file=sys.stderr)
  sys.exit(2)
