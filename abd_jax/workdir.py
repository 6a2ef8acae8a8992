"""The folder that a run writes into: that it can, that it is its own, and that what stands there is whole."""

import contextlib
import fcntl
import os
from pathlib import Path

from abd_jax import config as config_lib
from abd_jax.errors import UserError

# Held by a run for as long as it lasts.
_LOCK = '.lock'


@contextlib.contextmanager
def hold_workdir(workdir):
  """Keeps other runs out of an existing workdir while entered; the lock goes with the process, whatever ends it.

  Raises:
    UserError: another run has it.
  """
  with (Path(workdir) / _LOCK).open('a') as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      raise UserError(f'--workdir={workdir} is in use by another run: wait for its end, or choose another.') from None
    yield


def claim_workdir(config, workdir):
  """Makes the workdir this config's, once `check_workdir` has passed it: writes flags.txt."""
  check_workdir(config, workdir)
  write_whole(Path(workdir) / 'flags.txt', config_lib.to_flagfile(config))


def check_workdir(config, workdir):
  """Makes sure that the workdir can be this config's; creates it where it is not there.

  Raises:
    UserError: the workdir cannot be written, holds another run, or holds any run and --resume=never.
  """
  workdir = Path(workdir)
  flags_file = workdir / 'flags.txt'
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    probe = workdir / '.writable'
    probe.touch()
    probe.unlink()
  except OSError as error:
    raise UserError(f'--workdir={workdir} cannot be written: {error.strerror}.') from None
  if config.resume == 'never' and any(entry.name != _LOCK for entry in workdir.iterdir()):
    raise UserError(f'--workdir={workdir} is not empty and --resume=never: choose another, or --resume=auto.')
  if flags_file.exists():
    name = config_lib.differing_flag(config, theirs := config_lib.from_flagfile(flags_file))
    if name:
      values = [config_lib.as_dict(c)[name] for c in (theirs, config)]
      raise UserError(
          f'--workdir={workdir} holds a run with --{name}={values[0]}, not {values[1]}: choose another, or delete it.'
      )
  elif (workdir / 'checkpoints').exists():
    raise UserError(f'--workdir={workdir} holds checkpoints but no flags.txt to say of what: choose another.')


@contextlib.contextmanager
def writing(path):
  """While entered, what the file system refuses is said in a sentence.

  Raises:
    UserError: the disk is full, say, or the folder is gone.
  """
  try:
    yield
  except OSError as error:
    raise UserError(f'{path} cannot be written: {error.strerror or error}.') from None


def write_whole(path, text):
  """Replaces a file in one move, so that a reader never sees half of it.

  Raises:
    UserError: it cannot be written; what stood there still does.
  """
  partial = Path(path).with_name(Path(path).name + '.partial')
  with writing(path):
    try:
      with partial.open('w') as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())  # on the disk before it has its name
      partial.replace(path)
    except OSError:
      partial.unlink(missing_ok=True)
      raise
