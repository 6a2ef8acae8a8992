"""The folder that a run writes into: that it can, that it is its own, and that what stands there is whole."""

from pathlib import Path

from abd_jax import config as config_lib
from abd_jax.errors import AnotherRun, UserError
from abd_jax.files import held, write_whole

# Held by a run for as long as it lasts.
_LOCK = '.lock'


def hold_workdir(workdir):
  """Keeps other runs out of an existing workdir while entered, as `files.held`."""
  refusal = f'--workdir={workdir} is in use by another run: wait for its end, or choose another.'
  return held(Path(workdir) / _LOCK, refusal)


def claim_workdir(config, workdir):
  """Makes the workdir this config's, once `check_workdir` has passed it: writes flags.txt."""
  check_workdir(config, workdir)
  write_whole(Path(workdir) / 'flags.txt', config_lib.to_flagfile(config))


def check_workdir(config, workdir):
  """Makes sure that the workdir can be this config's; creates it where it is not there.

  Raises:
    AnotherRun: the workdir holds another run.
    UserError: it cannot be written, or holds any run and --resume=never.
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
      raise AnotherRun(
          f'--workdir={workdir} holds a run with --{name}={values[0]}, not {values[1]}: choose another, or delete it.'
      )
  elif (workdir / 'checkpoints').exists():
    raise UserError(f'--workdir={workdir} holds checkpoints but no flags.txt to say of what: choose another.')
