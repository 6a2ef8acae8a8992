"""What a stopped run needs to go on, through Orbax; and the signal that it should stop."""

import json
import signal
import threading
import time
from pathlib import Path

import flax.serialization
import jax
import numpy as np
import orbax.checkpoint as ocp

from abd_jax import config as config_lib
from abd_jax import processes
from abd_jax.errors import UserError


class Preempted(SystemExit):
  """The run was told to stop, saved, and can go on: exit status 75 (EX_TEMPFAIL)."""

  def __init__(self):
    super().__init__(75)


class StopSignal:
  """While entered, SIGTERM asks the run to save and stop; a second one ends it at once."""

  def __init__(self):
    self.received = False
    self._previous = None

  def _receive(self, number, frame):
    del number, frame
    self.received = True
    signal.signal(signal.SIGTERM, signal.SIG_DFL)

  def __enter__(self):
    if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handlers
      self._previous = signal.signal(signal.SIGTERM, self._receive)
    return self

  def __exit__(self, *exception):
    if self._previous is not None:
      signal.signal(signal.SIGTERM, self._previous)


# Saving and restoring are no meeting of all processes.
_ALONE = {0}


class Checkpoints:
  """The last two checkpoints of a run: its states, and a JSON record of where it stands.

  Of several processes the first writes and reads them, and tells the others: what they hold is the same, and their
  disks may be their own.
  """

  def __init__(self, workdir, seconds):
    """Opens <workdir>/checkpoints; `due` is true when the last save is more than `seconds` old."""
    self._seconds = seconds
    self._saved_at = time.monotonic()
    self._manager, self._number = None, 0
    if not processes.is_first():
      return
    options = ocp.CheckpointManagerOptions(
        preservation_policy=ocp.checkpoint_managers.LatestN(2),
        enable_async_checkpointing=True,
        create=False,
        multiprocessing_options=ocp.options.MultiprocessingOptions(
            active_processes=_ALONE, barrier_sync_key_prefix='first'
        ),
    )
    folder = (Path(workdir) / 'checkpoints').resolve()
    folder.mkdir(parents=True, exist_ok=True)
    self._manager = ocp.CheckpointManager(
        folder,
        options=options,
        item_handlers={'states': ocp.StandardCheckpointHandler(), 'record': ocp.JsonCheckpointHandler()},
    )
    # Orbax passes over a save under a number it has, so saves are counted rather than named after steps.
    self._number = self._manager.latest_step() or 0

  @property
  def due(self):
    return time.monotonic() - self._saved_at >= self._seconds

  def save(self, states, record):
    """Writes in the background. `states` is a dict of pytrees, `record` what JSON can say."""
    self._saved_at = time.monotonic()
    if self._manager is None:
      return
    # Copies: the next step may be given the very buffers that are being written.
    arrays = jax.tree.map(np.array, flax.serialization.to_state_dict(states))
    self._number += 1
    items = ocp.args.Composite(states=ocp.args.StandardSave(arrays), record=ocp.args.JsonSave(record))
    self._manager.save(self._number, args=items)

  def restore(self, like):
    """The newest checkpoint that can be read.

    Args:
      like: from a record, a dict of pytrees (arrays or their shapes) of the structure that was saved with it.

    Returns:
      (record, states), or None when nothing was ever saved.

    Raises:
      UserError: there are checkpoints, and none can be read.
    """
    found = []
    processes.on_first(lambda: found.append(self._read(like)))
    record = processes.tell(found[0][0] if found and found[0] else None)
    if record is None:
      return None
    structure = like(record)
    if found:
      arrays = found[0][1]
    else:
      arrays = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), flax.serialization.to_state_dict(structure))
    return record, flax.serialization.from_state_dict(structure, processes.give(arrays))

  def _read(self, like):
    """(record, states as a dict of arrays) of the newest that can be read, or None."""
    numbers = sorted(self._manager.all_steps(), reverse=True)
    for number in numbers:
      try:
        record = self._manager.restore(number, args=ocp.args.Composite(record=ocp.args.JsonRestore()))['record']
        structure = like(record)
        template = jax.tree.map(_on_one_device, flax.serialization.to_state_dict(structure))
        items = ocp.args.Composite(states=ocp.args.StandardRestore(template))
        return record, self._manager.restore(number, args=items)['states']
      except Exception as error:  # whatever Orbax meets in a damaged folder: the one before may be whole
        failure = error
    if numbers:
      raise UserError(
          f'{self._manager.directory} holds checkpoints that cannot be read ({str(failure).splitlines()[0]}): choose'
          ' another --workdir, or delete this one.'
      )
    return None

  def wait(self):
    """Until what was saved is on disk."""
    if self._manager is not None:
      self._manager.wait_until_finished()

  def close(self):
    if self._manager is not None:
      self._manager.close()


def _on_one_device(leaf):
  sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


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
  if config.resume == 'never' and any(workdir.iterdir()):
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


def write_whole(path, text):
  """Replaces a file in one move, so that a reader never sees half of it."""
  partial = Path(path).with_name(Path(path).name + '.partial')
  partial.write_text(text)
  partial.replace(path)


class MetricsLog:
  """metrics.jsonl: a line of figures an epoch, each at a place in the run, so that a resumed run repeats none."""

  def __init__(self, path):
    self._path = Path(path)

  def rewind(self, place):
    """Drops the lines after `place`, a tuple (task, phase, step)."""
    if not processes.is_first() or not self._path.exists():
      return
    kept = []
    for line in self._path.read_text().splitlines():
      try:
        if tuple(json.loads(line)['at']) > place:
          break
      except ValueError:  # the process died while it wrote this line
        break
      kept.append(line + '\n')
    write_whole(self._path, ''.join(kept))

  def write(self, place, **figures):
    if not processes.is_first():
      return
    with self._path.open('a') as file:
      file.write(json.dumps({'at': place, **figures}) + '\n')
