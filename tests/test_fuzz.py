"""Whatever is in a file, its reader reads it or refuses it with a sentence of ours.

A few seconds of examples, the same each time; with ABD_FUZZ_SECONDS=60 a minute of new ones for each reader, and how
many there were is said (pytest -s).
"""

import contextlib
import gzip
import io
import json
import os
import shutil
import struct
import tarfile
import time
import unittest.mock

import hypothesis
import numpy as np
from hypothesis import strategies as st
from PIL import Image

from abd_jax import config, interop
from abd_jax.data import folder, imagenet, load
from abd_jax.data.photographs import Photographs
from abd_jax.errors import UserError
from abd_jax.learner import Learner
from abd_jax.report import command as report
from abd_jax.report import pages
from abd_jax.results import Results
from tests.test_bad_archives import npz_with
from tests.test_bad_edits import RESULTS
from tests.test_bad_folders import jpeg, tree
from tests.test_data import archive, arrays, builders, needs_tfds

SECONDS = float(os.environ.get('ABD_FUZZ_SECONDS', 0))
EXAMPLES = 40


def fuzz(strategy, subject):
  """Hands examples to the subject, which may refuse them by a `UserError` and in no other way."""
  count, begun = 0, time.monotonic()

  def attempt(example):
    nonlocal count
    count += 1
    with contextlib.suppress(UserError):
      subject(example)

  settings = hypothesis.settings(
      max_examples=EXAMPLES, deadline=None, database=None, derandomize=not SECONDS,
      suppress_health_check=list(hypothesis.HealthCheck),
  )
  while True:
    settings(hypothesis.given(strategy)(attempt))()
    if time.monotonic() - begun >= SECONDS:
      break
  print(f'{subject.__name__}: {count:,} examples in {time.monotonic() - begun:.0f} s')


def damaged(*contents):
  """Bytes like one of these: some of theirs changed, put in or taken away, at places spread over the whole."""
  edit = st.tuples(st.floats(0, 1), st.integers(0, 64), st.binary(max_size=64))

  def apply(content, edits):
    for place, gone, put in edits:
      start = int(place * len(content))
      content = content[:start] + put + content[start + gone :]
    return content

  return st.builds(apply, st.sampled_from(contents), st.lists(edit, min_size=1, max_size=5))


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from([10**400, -1, 0, 2**63]) | st.floats() | st.text(),
    lambda inside: st.lists(inside, max_size=4) | st.dictionaries(st.text(max_size=9), inside, max_size=4),
    max_leaves=6,
)


@st.composite
def edited(draw, said):
  """JSON like this, with something else in a few of its places."""
  said = json.loads(json.dumps(said))
  for _ in range(draw(st.integers(1, 3))):
    where = said
    while True:
      key = draw(st.sampled_from(sorted(where) if isinstance(where, dict) else range(len(where))))
      if not isinstance(where[key], dict | list) or not where[key] or draw(st.booleans()):
        break
      where = where[key]
    if draw(st.booleans()):
      where[key] = draw(ANYTHING)
    else:
      del where[key]
    if not said:
      break
  return said


# Data sets.


def test_npz_files(tmp_path):
  inside = {key: io.BytesIO() for key in arrays()}
  for key, array in arrays().items():
    np.save(inside[key], array)
  # Damaged as a whole, or in one array under a right checksum.
  in_one = st.sampled_from(sorted(inside)).flatmap(
      lambda key: damaged(inside[key].getvalue()).map(lambda content: npz_with(**{key: content}))
  )

  def npz(content):
    (tmp_path / 'a.npz').write_bytes(content)
    load(f'npz:{tmp_path}/a.npz')

  fuzz(damaged(npz_with()) | in_one, npz)


MEMBER = st.builds(
    dict,
    name=st.sampled_from([f'cifar-100-binary/{name}' for name in ('train.bin', 'fine_label_names.txt')]) | st.text(),
    type=st.sampled_from([bytes([kind]) for kind in b'0123456LKSgx\0']) | st.binary(min_size=1, max_size=1),
    linkname=st.text() | st.just('cifar-100-binary/train.bin'),
    size=st.sampled_from([0, 1, 60 * 3074, 2**40]) | st.integers(0, 2000),
    content=st.binary(max_size=2000),
)


def tar_of(members, kind):
  """A tar of members that need not be what their headers say."""
  content = b''
  for member in members:
    info = tarfile.TarInfo(member['name'].replace('\0', '0'))
    info.type, info.linkname, info.size = member['type'], member['linkname'], member['size']
    with contextlib.suppress(ValueError, UnicodeEncodeError):
      content += info.tobuf(kind) + member['content'].ljust(-(-len(member['content']) // 512) * 512, b'\0')
  return content + bytes(1024)


@needs_tfds
def test_archives(tmp_path):
  # One image and one.
  whole = archive(**{f'{split}.bin': bytes(3074) for split in ('train', 'test')})
  plain = gzip.decompress(whole)
  kinds = st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
  strange = st.builds(tar_of, st.lists(MEMBER, max_size=4), kinds)
  compress = lambda content: gzip.compress(content, 1)

  def cifar100(content):
    (tmp_path / builders.ARCHIVE).write_bytes(content)
    builders.read_archive(tmp_path / builders.ARCHIVE)

  with unittest.mock.patch.object(builders, '_SIZES', {'train': 1, 'test': 1}):
    fuzz(damaged(whole) | damaged(plain, plain[:3000]).map(compress) | strange.map(compress), cifar100)


def test_images(tmp_path):
  pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 4), np.uint8)
  files = [jpeg(), jpeg(mode='CMYK'), jpeg(mode='L')]
  for mode, kind in (('RGBA', 'PNG'), ('P', 'PNG'), ('1', 'PNG'), ('I;16', 'PNG'), ('RGBA', 'WEBP'), ('RGB', 'JPEG')):
    file = io.BytesIO()
    image = Image.fromarray(pixels)
    image = Image.fromarray(pixels.view(np.uint16)[..., 0]) if mode == 'I;16' else image.convert(mode)
    image.save(file, kind, exif=Image.Exif())
    files.append(file.getvalue())
  path = tmp_path / 'a.jpg'

  def images(content):
    path.write_bytes(content)
    found, readable, unreadable = folder.read_files([path], 8)
    assert len(found) == readable.sum() == 1 - len(unreadable)
    np.asarray(Photographs.of([path], 8))

  fuzz(damaged(*files), images)


def test_trees(tmp_path):
  tree(tmp_path, {})
  tiny = tmp_path / 'tiny-imagenet-200'
  annotations, words = tiny / 'val' / 'val_annotations.txt', tiny / 'words.txt'

  def tiny_imagenet(contents):
    annotations.write_bytes(contents[0])
    words.write_bytes(contents[1])
    imagenet.read_tiny_imagenet(tmp_path)

  fuzz(st.tuples(damaged(annotations.read_bytes()), damaged(words.read_bytes())), tiny_imagenet)


# What runs and models are told by and leave.


def test_flags(tmp_path):
  lines = st.sampled_from(config.leaves(config.Config())).flatmap(
      lambda leaf: st.builds(lambda value: f'--{leaf.name}={value}\n'.encode('utf-8', 'surrogatepass'), ANYTHING)
  )

  def flagfile(content):
    (tmp_path / 'a.flags').write_bytes(content)
    config.from_flagfile(tmp_path / 'a.flags')

  whole = config.to_flagfile(config.Config()).encode()
  fuzz(damaged(whole) | st.lists(lines, min_size=1, max_size=4).map(b''.join), flagfile)


def test_values_from_python():
  names = st.sampled_from([leaf.name for leaf in config.leaves(config.Config())])

  def values(told):
    told = config.with_values(config.Config(), told)
    assert config.to_flagfile(told).count('\n') == len(config.leaves(told))

  fuzz(
      st.dictionaries(names, ANYTHING.map(lambda one: tuple(one) if isinstance(one, list) else one), max_size=3), values
  )


def test_results(tmp_path):
  text = json.dumps(RESULTS).encode()

  def results(content):
    (tmp_path / 'results.json').write_bytes(content)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
      for kind in report.FORMATS:
        assert report.main([str(tmp_path), '--metrics=all', f'--format={kind}']) in (0, 2)
    pages.page([pages.Run(Results.load(tmp_path))])

  fuzz(damaged(text) | edited(RESULTS).map(lambda said: json.dumps(said).encode()), results)


def test_what_a_page_shows_of_a_workdir(tmp_path):
  (tmp_path / 'results.json').write_text(json.dumps(RESULTS))
  log = [
      {'at': [0, 0, 5], 'task': 1, 'phase': 'learn', 'epoch': 1, 'steps': 5, 'loss': 0.5},
      {'at': [1, 0, 0], 'task': 1, 'accuracy': 5},
  ]
  picture = io.BytesIO()
  np.savez(picture, images=np.zeros((2, 4, 4, 1), np.uint8), names=['a', 'b'], confidences=np.ones(2, np.float32))
  diagnostics = {
      'after_task': 2, 'mid': {'real_old_real_new': 1}, 'calibration': {'ece': 0.1, 'bins': []},
      'tsne': {'real_old': [[0, 1]]},
  }

  def workdir(said):
    lines, pictured, diagnosed = said
    (tmp_path / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
    (tmp_path / 'synthetic_task2.npz').write_bytes(pictured)
    (tmp_path / 'diagnostics.json').write_text(json.dumps(diagnosed))
    pages.page([pages.Run(Results.load(tmp_path), tmp_path)])

  fuzz(st.tuples(edited(log), damaged(picture.getvalue()), edited(diagnostics)), workdir)


def test_models(saved_model, tmp_path):
  said = json.loads((saved_model / 'model.json').read_text())
  shutil.copytree(saved_model, tmp_path / 'model')
  description = tmp_path / 'model' / 'model.json'

  def model(content):
    description.write_bytes(content)
    Learner.load(tmp_path / 'model')

  fuzz(damaged(description.read_bytes()) | edited(said).map(lambda one: json.dumps(one).encode()), model)


def test_safetensors(tmp_path):
  header = json.dumps({'a': {'dtype': 'F32', 'shape': [2, 2], 'data_offsets': [0, 16]}}).encode()
  headers = edited(json.loads(header)).map(lambda said: json.dumps(said).encode()) | damaged(header) | st.just(header)

  def safetensors(content):
    (tmp_path / 'a.safetensors').write_bytes(content)
    interop.read_arrays(tmp_path / 'a.safetensors')

  whole = headers.map(lambda text: struct.pack('<Q', len(text)) + text + bytes(16))
  fuzz(whole | whole.flatmap(damaged), safetensors)
