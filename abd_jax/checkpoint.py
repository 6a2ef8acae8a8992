"""What a stopped run needs to go on, through Orbax."""

import hashlib
import json
import threading
import time
from pathlib import Path

import flax.serialization
import jax
import numpy as np
import orbax.checkpoint as ocp

from abd_jax import processes
from abd_jax.errors import NotFinite, UserError

# Saving and restoring are no meeting of all processes.
_ALONE = {0}

# Orbax numbers what it writes in the background by what the process wrote last: one save at a time, whosoever it is.
_one_save = threading.Lock()
_last_saved = None


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
    global _last_saved
    with _one_save:
      if _last_saved is not None and _last_saved is not self._manager:
        _last_saved.wait_until_finished()
      self._manager.save(self._number, args=items)
      _last_saved = self._manager

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
    global _last_saved
    if self._manager is not None:
      self._manager.close()
      with _one_save:
        _last_saved = None if _last_saved is self._manager else _last_saved


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
