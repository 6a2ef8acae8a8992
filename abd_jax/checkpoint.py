"""What a stopped run needs to go on, through Orbax."""

import contextlib
import functools
import hashlib
import json
import os
import re
import sys
import threading
import time
from pathlib import Path

import flax.serialization
import jax
import numpy as np
import orbax.checkpoint as ocp

from abd_jax import processes
from abd_jax.errors import NotFinite, UserError
from abd_jax.files import writing

# Process 0 alone takes part in Orbax's barriers.
_ALONE = {0}

# Orbax numbers its background writes by process: one save at a time, of whichever run.
_one_save = threading.Lock()
_last_saved = None


class Checkpoints:
  """The last two checkpoints of a run: its states, and a JSON record of where it stands.

  Of several processes the first writes and reads them, and tells the others: what they hold is the same, and their
  disks may be their own.
  """

  def __init__(self, workdir, seconds):
    """Opens <workdir>/checkpoints; `due` is true when the last save is more than `seconds` old.

    Raises:
      UserError: it cannot be made.
    """
    self._seconds = seconds
    self._saved_at = time.monotonic()
    self._manager, self._number, self._last, self._refused = None, 0, None, False
    processes.on_first(lambda: self._open((Path(workdir) / 'checkpoints').resolve()))

  def _open(self, folder):
    _ignore_echoes()
    options = ocp.CheckpointManagerOptions(
        preservation_policy=ocp.checkpoint_managers.LatestN(2),
        enable_async_checkpointing=True,
        create=False,
        multiprocessing_options=ocp.options.MultiprocessingOptions(
            active_processes=_ALONE, barrier_sync_key_prefix='first'
        ),
    )
    with writing(folder):
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
      UserError: the disk refuses them, or refused those of the save before.
    """
    self._saved_at = time.monotonic()
    # Copies: the next step may be given the very buffers that are being written.
    arrays = jax.tree.map(np.array, flax.serialization.to_state_dict(states))
    _check_finite(arrays)
    processes.on_first(lambda: self._write(arrays, record))

  def _write(self, arrays, record):
    record = {**record, _DIGEST: digest(record, arrays)}
    self._last = ocp.args.Composite(states=ocp.args.StandardSave(arrays), record=ocp.args.JsonSave(record))
    try:
      self._begin_last()
    except Exception:  # the save before, as a rule, which is only noticed now: this one is in its place
      with self._writing():
        self._begin_last()

  def _begin_last(self):
    self._number += 1
    global _last_saved
    with _one_save:
      if _last_saved is not None and _last_saved is not self._manager:
        with contextlib.suppress(Exception):  # which the run whose save it is will meet
          _last_saved.wait_until_finished()
      self._manager.save(self._number, args=self._last)
      _last_saved = self._manager

  @contextlib.contextmanager
  def _writing(self):
    """Around the second attempt: a disk may fail once, and a clock set forward looks to Orbax like a time-out."""
    try:
      yield
    except Exception as error:  # of a full disk: an OSError here, a ValueError there
      self._refused = True
      raise UserError(
          f'A checkpoint cannot be written to {self._manager.directory} ({_reason(error)}). The one before it is kept:'
          ' make room, and the same command goes on from there.'
      ) from error

  def restore(self, like):
    """The newest checkpoint that can be read.

    Args:
      like: from a record, a dict of pytrees (arrays or their shapes) of the structure that was saved with it.

    Returns:
      (record, states), or None when nothing was ever saved.

    Raises:
      UserError: there are checkpoints, and none can be read; or the newest is of a version that keeps something else,
        or `like` refuses it.
    """
    found = processes.on_first(lambda: self._read(like))
    record = processes.tell(found and found[0])
    if record is None:
      return None
    structure = like(record)
    if found:
      arrays = found[1]
    else:
      arrays = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), flax.serialization.to_state_dict(structure))
    return record, flax.serialization.from_state_dict(structure, processes.give(arrays))

  def _read(self, like):
    """(record, states as a dict of arrays) of the newest that can be read, or None."""
    numbers = sorted(self._manager.all_steps(), reverse=True)
    for number in numbers:
      try:
        record, arrays = _whole(self._manager, number)
      except Exception as error:  # whatever Orbax meets in a damaged folder: the one before may be whole
        failure = error
        continue
      try:
        return record, _shaped(arrays, flax.serialization.to_state_dict(like(record)))
      except UserError:
        raise
      except (ValueError, KeyError) as error:  # the one before is whole too, but to go on from there would undo work
        raise UserError(
            f'Checkpoint {number} in {self._manager.directory} was written by another version of abd_jax ({error}): go'
            ' on with that one, or choose another --workdir.'
        ) from None
    if numbers:
      raise UserError(
          f'{self._manager.directory} holds checkpoints that cannot be read ({_reason(failure)}): choose another'
          ' --workdir, or delete this one.'
      )
    return None

  def wait(self):
    """Until what was saved is on disk.

    Raises:
      UserError: the disk refuses it.
    """
    processes.on_first(self.wait_alone)

  def wait_alone(self):
    """`wait` in one process, the others not asked."""
    if self._manager is None:
      return
    try:
      self._manager.wait_until_finished()
    except Exception:
      with self._writing():
        self._begin_last()
        self._manager.wait_until_finished()

  def close(self):
    global _last_saved
    if self._manager is not None:
      said = self._refused  # of what was refused Orbax speaks again
      with contextlib.suppress(UserError) if said else contextlib.nullcontext(), self._writing():
        self._manager.close()
      with _one_save:
        _last_saved = None if _last_saved is self._manager else _last_saved


# The key of a record's own SHA-256, which is of the states beside it too.
_DIGEST = 'sha256'


def digest(record, arrays):
  """The SHA-256, in hexadecimal, of a record without its digest and of a dict of arrays."""
  found = hashlib.sha256(json.dumps(record, sort_keys=True).encode())
  for path, leaf in jax.tree.leaves_with_path(arrays):
    leaf = np.ascontiguousarray(leaf)
    found.update(f'{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}'.encode())
    found.update(leaf.data)
  return found.hexdigest()


def _whole(manager, number, unvouched=False):
  """(record, states) of a checkpoint as it was written, the states as nested dicts of arrays.

  Raises:
    Exception: it is damaged, or has no digest and is not to be taken `unvouched`.
  """
  _ignore_echoes()
  items = ocp.args.Composite(states=ocp.args.StandardRestore(), record=ocp.args.JsonRestore())
  found = manager.restore(number, args=items)
  record, states = found['record'], found['states']
  vouched = record.pop(_DIGEST, None)
  if not (vouched is None and unvouched) and vouched != digest(record, states):
    raise ValueError(f'checkpoint {number} is not what was written')
  return record, states


@functools.cache
def _ignore_echoes():
  """Keeps quiet what Orbax's threads print after a reading or writing of theirs has failed and was dealt with."""
  show = sys.unraisablehook

  def show_others(met):
    if not (met.exc_type is RuntimeError and str(met.exc_value) == 'Event loop is closed'):
      show(met)

  sys.unraisablehook = show_others


def _shaped(arrays, like):
  """The arrays in the containers of `like`, the empty ones among them, which Orbax does not give back.

  Raises:
    ValueError: they are not those that `like` has, by name, shape or type.
  """
  described = lambda tree: [
      f'{jax.tree_util.keystr(path, simple=True, separator="/")} {leaf.dtype}{list(leaf.shape)}'
      for path, leaf in jax.tree.leaves_with_path(tree)
  ]
  found, wanted = described(arrays), described(like)
  if found != wanted:
    odd = sorted(set(found) ^ set(wanted))
    raise ValueError(f'it {"holds" if odd[0] in found else "lacks"} {odd[0]}')
  return jax.tree.unflatten(jax.tree.structure(like), jax.tree.leaves(arrays))


def _reason(error):
  """The system's words for it, where they can be found; else the first line."""
  found = re.search(r"os_error_code='(\d+)'", str(error))  # as tensorstore reports it, among much else
  number = int(found[1]) if found else getattr(error, 'errno', None)
  return os.strerror(number) if number else (str(error) or repr(error)).strip().splitlines()[0]


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
      try:
        found = _whole(manager, number, unvouched=True)  # an earlier version wrote no digests
      except Exception as error:  # whatever Orbax meets in a damaged folder
        raise UserError(f'{folder} holds checkpoints that cannot be read ({_reason(error)}).') from None
      yield found
