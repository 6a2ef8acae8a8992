"""Damage to what a stopped run has kept, as disks, killed writers and other versions do it."""

import json
import os
from pathlib import Path

from abd_jax import checkpoint


def kept(folder, number=1):
  """The folder of a run's newest checkpoint (1), or of the one before (2)."""
  whole = [path for path in (Path(folder) / 'checkpoints').iterdir() if path.name.isdecimal()]
  return sorted(whole, key=lambda path: -int(path.name))[number - 1]


def _files(folder, number=1):
  return sorted(path for path in kept(folder, number).rglob('*') if path.is_file())


def truncate(folder, draw, number=1):
  """Cuts the largest file of a checkpoint short: of the newest (1), or of the one before (2)."""
  path = max(_files(folder, number), key=lambda file: file.stat().st_size)
  os.truncate(path, draw.randrange(path.stat().st_size))


def flip_bit(folder, draw):
  """Flips a bit of the newest checkpoint's arrays or record, whichever."""
  files = [path for path in _files(folder) if path.stat().st_size and 'METADATA' not in path.name]
  path = draw.choice([file for file in files if file.parent != kept(folder)])
  content = bytearray(path.read_bytes())
  content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
  path.write_bytes(bytes(content))


def half_delete(folder, draw):
  """Deletes half of the newest checkpoint's files."""
  files = _files(folder)
  for path in draw.sample(files, (len(files) + 1) // 2):
    path.unlink()


def tear_log(folder, draw):
  """Leaves the last line of metrics.jsonl half written, and no text after it."""
  path = Path(folder) / 'metrics.jsonl'
  content = path.read_bytes()
  path.write_bytes(content[: len(content) - draw.randrange(2, 40)] + b'\xff\x00\xfe')


def of_another_version(folder, change):
  """Changes the record of every checkpoint and vouches for it, as another version would have."""
  for number in (1, 2):
    path = kept(folder, number) / 'record' / 'metadata'
    record, states = list(checkpoint.saved(folder))[number - 1]
    change(record)
    path.write_text(json.dumps(record | {'sha256': checkpoint.digest(record, states)}))


DAMAGES = {
    'newest checkpoint truncated': truncate, 'newest checkpoint with a bit flipped': flip_bit,
    'newest checkpoint half deleted': half_delete, 'metrics.jsonl torn': tear_log,
}
VERSIONS = {
    'newer': lambda record: record.update(temperature=1.0),
    'older': lambda record: record.pop('step'),
}
