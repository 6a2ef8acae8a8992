"""Several processes as one run: they meet at the start, and the first of them alone keeps the files."""

import json
import time

import jax
import numpy as np
from jax._src import distributed  # what the processes met at: there is no public way to leave a word there
from jax.experimental import multihost_utils

from abd_jax.errors import UserError

# Seconds that a process waits at its end for one that does not come, since it failed.
_PATIENCE = 60
# Where one that cannot wait for the others to be asked says that it ends.
_ENDS = 'abd_jax_ends'


def join(how):
  """Meets the other processes of the run; nothing may have been computed before.

  Args:
    how: 'auto' where JAX finds them by itself (TPU VMs, Slurm, Open MPI), or 'HOST:PORT,COUNT,INDEX': where the first
      process listens, how many there are, and which this one is.

  Raises:
    UserError: `how` is neither, or the others cannot be met.
  """
  host, *numbers = how.split(',')
  count, index = map(int, numbers) if len(numbers) == 2 and all(n.isdecimal() for n in numbers) else (0, 0)
  if how != 'auto' and not (index < count and ':' in host and host.rpartition(':')[2].isdecimal()):
    raise UserError(f'--distributed={how} is neither auto nor HOST:PORT,COUNT,INDEX.')
  try:
    where = () if how == 'auto' else (host, count, index)
    jax.distributed.initialize(*where, shutdown_timeout_seconds=_PATIENCE)
  except (RuntimeError, ValueError) as error:
    raise UserError(f'--distributed={how}: the processes did not meet: {str(error).splitlines()[0]}') from None


def is_first():
  """Whether this process is the one that writes."""
  return jax.process_index() == 0


def tell(value):
  """What the first process says, on all of them: something that JSON can say."""
  if jax.process_count() == 1:
    return value
  text = np.frombuffer(json.dumps(value).encode(), np.uint8)
  length = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
  return json.loads(multihost_utils.broadcast_one_to_all(text if is_first() else np.zeros(length, np.uint8)).tobytes())


def give(tree):
  """The first process's NumPy arrays, on all of them; the others hand in arrays of the same shapes and types."""
  return multihost_utils.broadcast_one_to_all(tree)


def on_first(function):
  """What `function` gives in the first process, None in the others; when it raises a `UserError`, all of them do."""
  found = failure = None
  if is_first():
    try:
      found = function()
    except UserError as error:
      failure = error
  sentence = tell(failure and str(failure))
  if sentence is not None:
    raise failure or UserError(sentence)
  return found


def on_any(flag):
  """Whether the flag is up in any process; all of them must ask at the same place."""
  if jax.process_count() == 1:
    return flag
  return bool(np.any(multihost_utils.process_allgather(np.bool_(flag))))


def announce_end():
  """Tells the others, whatever they are at, that this process ends at once."""
  if (client := distributed.global_state.client) is not None and not end_announced():
    client.key_value_set(f'{_ENDS}/{distributed.global_state.process_id}', 'now')


def end_announced():
  """Whether one of several processes ends at once, so that all have to."""
  client = distributed.global_state.client
  return client is not None and bool(client.key_value_dir_get(_ENDS))


def let_others_end():
  """Waits as long as the others need to hear of it: without the first process they cannot end in peace."""
  if distributed.global_state.client is not None:
    time.sleep(0.5 if distributed.global_state.process_id else 2.0)
