"""What a stopped run needs to go on, through Orbax; and the signal that it should stop."""

import contextlib
import fcntl
import hashlib
import itertools
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import flax.serialization
import jax
import numpy as np
import orbax.checkpoint as ocp

from abd_jax import config as config_lib
from abd_jax import processes
from abd_jax.errors import NotFinite, UserError
from abd_jax.parallel import compiling


class Preempted(SystemExit):
  """The run was told to stop, saved, and can go on: exit status 75 (EX_TEMPFAIL)."""

  def __init__(self):
    super().__init__(75)


class StopSignal:
  """While entered, SIGTERM asks the run to save and stop; a second one ends it at once.

  Python handles no signal while a compilation keeps it, which may last longer than a machine about to go: a thread
  listens then. Phases are saved before their steps are compiled, so it loses nothing when it ends the process.
  """

  def __init__(self):
    self.received = False
    self.wait_for_save = lambda: None  # what a run still has to write, when it is ended
    self._left = threading.Event()
    self._previous = None

  def _receive(self, number, frame):
    del number, frame
    self.received = True
    signal.signal(signal.SIGTERM, signal.SIG_DFL)

  def __enter__(self):
    if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handlers
      self._previous = signal.signal(signal.SIGTERM, self._receive)
      heard, self._signals = os.pipe()
      os.set_blocking(self._signals, False)
      self._previous_signals = signal.set_wakeup_fd(self._signals)
      threading.Thread(target=self._listen, args=(heard,), daemon=True).start()
    return self

  def _listen(self, heard):
    with os.fdopen(heard, 'rb', buffering=0) as numbers:
      while (number := numbers.read(1)) and number[0] != signal.SIGTERM:
        pass
    while number and not self._left.wait(0.1):
      if compiling():
        self.wait_for_save()
        print('Told to stop: the same command goes on from the last checkpoint.', file=sys.stderr, flush=True)
        os._exit(Preempted().code)

  def __exit__(self, *exception):
    if self._previous is not None:
      self._left.set()
      signal.signal(signal.SIGTERM, self._previous)
      signal.set_wakeup_fd(self._previous_signals)
      os.close(self._signals)


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
    """Writes in the background. `states` is a dict of pytrees, `record` what JSON can say.

    Raises:
      NotFinite: the states are not worth going on from; nothing is written.
    """
    self._saved_at = time.monotonic()
    # Copies: the next step may be given the very buffers that are being written.
    arrays = jax.tree.map(np.array, flax.serialization.to_state_dict(states))
    _check_finite(arrays)
    if self._manager is None:
      return
    record = {**record, _DIGEST: _digest(record, arrays)}
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
        structure = like({name: value for name, value in record.items() if name != _DIGEST})
        template = jax.tree.map(_on_one_device, flax.serialization.to_state_dict(structure))
        items = ocp.args.Composite(states=ocp.args.StandardRestore(template))
        arrays = self._manager.restore(number, args=items)['states']
        if record.pop(_DIGEST) != _digest(record, arrays):
          raise ValueError(f'checkpoint {number} is not what was written')
        return record, arrays
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


# Of a record: what vouches for it and for the states beside it.
_DIGEST = 'sha256'


def _digest(record, arrays):
  """The SHA-256, in hexadecimal, of a record without its digest and of a dict of arrays."""
  digest = hashlib.sha256(json.dumps(record, sort_keys=True).encode())
  for path, leaf in jax.tree.leaves_with_path(arrays):
    leaf = np.ascontiguousarray(leaf)
    digest.update(f'{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}'.encode())
    digest.update(leaf.data)
  return digest.hexdigest()


def _check_finite(arrays):
  for path, leaf in jax.tree.leaves_with_path(arrays):
    if not np.all(np.isfinite(leaf)):
      name = jax.tree_util.keystr(path, simple=True, separator='/')
      raise NotFinite(f'{name} holds values that are not finite.')


def saved(workdir):
  """What the folder of a run still holds, for those who look at it and do not go on with it.

  A finished run has two checkpoints: its end, and the end of its last phase, where teacher and generator still are.

  Yields:
    (record, states), the newest first; the states as nested dicts of arrays, under the names that they were saved by.

  Raises:
    UserError: there are none, or one cannot be read.
  """
  folder = (Path(workdir) / 'checkpoints').resolve()
  if not folder.is_dir() or not any(folder.iterdir()):
    raise UserError(f'{workdir} holds no checkpoints of a run.')
  handlers = {'states': ocp.StandardCheckpointHandler(), 'record': ocp.JsonCheckpointHandler()}
  with ocp.CheckpointManager(folder, item_handlers=handlers) as manager:
    for number in sorted(manager.all_steps(), reverse=True):
      items = ocp.args.Composite(states=ocp.args.StandardRestore(), record=ocp.args.JsonRestore())
      try:
        found = manager.restore(number, args=items)
      except Exception as error:  # whatever Orbax meets in a damaged folder
        raise UserError(f'{folder} holds checkpoints that cannot be read ({str(error).splitlines()[0]}).') from None
      record, states = found['record'], found['states']
      if record.pop(_DIGEST, None) not in (None, _digest(record, states)):
        raise UserError(f'{folder} holds a checkpoint, number {number}, that is not what was written.')
      yield record, states


def _on_one_device(leaf):
  sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


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


def write_whole(path, text):
  """Replaces a file in one move, so that a reader never sees half of it."""
  partial = Path(path).with_name(Path(path).name + '.partial')
  partial.write_text(text)
  partial.replace(path)


class MetricsLog:
  """metrics.jsonl: a line of figures an epoch, each at a place in the run, so that a resumed run repeats none."""

  def __init__(self, path, *mirrors):
    """`mirrors` have `rewind(lines)`, told what is kept of the log, as dicts, and `add(line)`, each that is written."""
    self._path, self._mirrors = Path(path), mirrors

  def read(self):
    """The lines as dicts, to the first that the process died over while it wrote."""
    found = []
    for line in self._path.read_text().splitlines() if self._path.exists() else ():
      try:
        found.append(json.loads(line))
      except ValueError:
        break
    return found

  def rewind(self, place):
    """Drops the lines after `place`, a tuple (task, phase, step)."""
    if not processes.is_first():
      return
    kept = list(itertools.takewhile(lambda line: tuple(line['at']) <= place, self.read()))
    write_whole(self._path, ''.join(json.dumps(line) + '\n' for line in kept))
    for mirror in self._mirrors:
      mirror.rewind(kept)

  def write(self, place, **figures):
    if not processes.is_first():
      return
    with self._path.open('a') as file:
      file.write(json.dumps({'at': place, **figures}) + '\n')
    for mirror in self._mirrors:
      mirror.add({'at': place, **figures})

  def close(self):
    for mirror in self._mirrors:
      mirror.close()


class StepCounter:
  """Counts the steps of a whole run, all its phases together, along the lines of its metrics.jsonl."""

  def __init__(self):
    self._phase, self._before, self._last = None, 0, 0

  def at(self, line):
    """How many steps the run had made when it wrote this line, the next of a phase."""
    task, phase, step = line['at']
    if (task, phase) != self._phase:
      self._phase, self._before = (task, phase), self._last
    self._last = self._before + step
    return self._last


def figures_of(line):
  """{name: value} of what a phase's line of metrics.jsonl measured."""
  return {name: value for name, value in line.items() if name not in ('at', 'task', 'phase', 'epoch', 'steps')}
