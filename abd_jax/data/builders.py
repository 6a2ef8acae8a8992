"""CIFAR-100 through TFDS with no TensorFlow: our own builder writes ArrayRecord, stock TFDS's is read alike.

Imported only when `cifar100` is asked for without a `cifar100.npz`.
"""

import gzip
import hashlib
import io
import tarfile
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from abd_jax.data.photographs import FORMATS
from abd_jax.errors import UserError

ARCHIVE = 'cifar-100-binary.tar.gz'
ARCHIVE_URL = f'https://www.cs.toronto.edu/~kriz/{ARCHIVE}'
ARCHIVE_SHA256 = '58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec'
VERSION = '3.0.2'  # the layout of stock TFDS, so that either's files serve
_RECORD = 2 + 32 * 32 * 3  # coarse label, fine label, red, green and blue planes
_SIZES = {'train': 50000, 'test': 10000}
_MOST_NAMES = 10_000  # bytes of a list of names
_AT_A_CALL = 1000  # records: one by one takes twice the time


def read_cifar100(data_dir, verify_checksum=True):
  """The arrays of CIFAR-100 in the archive's order.

  Args:
    data_dir: holds cifar100/3.0.2 (ArrayRecord, ours or stock TFDS's) or the binary archive; with neither, the archive
      is downloaded there.
    verify_checksum: refuse an archive that is not the distributed one.

  Returns:
    {'train_images', 'train_labels', 'test_images', 'test_labels', 'class_names'}.

  Raises:
    UserError: nothing usable is there and nothing could be downloaded.
  """
  data_dir = Path(data_dir)
  prepared = data_dir / 'cifar100' / VERSION
  if not prepared.is_dir():
    try:
      _prepare(data_dir, verify_checksum)
    except OSError as error:
      raise UserError(
          f'--data_dir={data_dir} cannot take the prepared CIFAR-100: {error}. Choose one that can be written.'
      ) from None
  try:
    builder = tfds.builder_from_directory(prepared)
    arrays = {'class_names': tuple(builder.info.features['label'].names)}
    for split in _SIZES:
      arrays[f'{split}_images'], arrays[f'{split}_labels'] = _read_split(builder, split)
  except UserError:
    raise
  except Exception as error:  # TFDS and ArrayRecord raise whatever they meet in a damaged file
    raise UserError(
        f'{prepared} cannot be read as CIFAR-100 in ArrayRecord: {error}. Delete that folder to prepare it anew.'
    ) from error
  return arrays


def _read_split(builder, split):
  """Images and labels in the order of their ids: TFDS shuffles what it writes."""
  source = builder.as_data_source(split=split, decoders={'image': tfds.decode.SkipDecoding()})
  images = np.empty((len(source), 32, 32, 3), np.uint8)
  labels = np.empty(len(source), np.int64)
  found = np.zeros(len(source), bool)
  for start in range(0, len(source), _AT_A_CALL):
    for record in source.__getitems__(range(start, min(start + _AT_A_CALL, len(source)))):
      name = record['id'].decode() if isinstance(record['id'], bytes) else str(record['id'])
      index = int(name.rsplit('_', 1)[1])
      if not 0 <= index < len(source) or found[index]:
        raise ValueError(f'{name} is there twice, or beyond {len(source)} images')
      found[index] = True
      images[index] = np.asarray(Image.open(io.BytesIO(record['image']), formats=FORMATS))
      labels[index] = record['label']
  if not found.all():
    raise ValueError(f'{split} lacks the image numbered {np.argmin(found)}')
  if not len(labels) or not 0 <= labels.min() <= labels.max() < builder.info.features['label'].num_classes:
    raise ValueError(f'{split} has no images, or labels that no class has')
  return images, labels


def _prepare(data_dir, verify_checksum):
  archive = data_dir / ARCHIVE
  if not archive.exists():
    _download(archive)
  if verify_checksum:
    _check_sha256(archive)
  _builder_class()(*read_archive(archive), data_dir=data_dir, file_format='array_record').download_and_prepare()


def read_archive(archive):
  """What the binary archive holds.

  Returns:
    ({'train', 'test': u8[M, 3074]}, names, coarse_names); a record is coarse label, label, and planes of red, green and
    blue.

  Raises:
    UserError: it is damaged, or another archive.
  """
  sizes = {f'{split}.bin': count * _RECORD for split, count in _SIZES.items()}
  members = _read_members(archive, {'fine_label_names.txt': None, 'coarse_label_names.txt': None, **sizes})
  names, coarse_names = (_names(archive, members, kind) for kind in ('fine', 'coarse'))
  if len(names) != 100 or len(coarse_names) != 20:
    raise UserError(f'{archive} names {len(names)} classes and {len(coarse_names)} groups: CIFAR-100 has 100 and 20.')
  records = {split: _records(archive, split, members[f'{split}.bin']) for split in _SIZES}
  return records, names, coarse_names


def _download(archive):
  """Fetches the archive whole or not at all."""
  import requests  # comes with tensorflow-datasets

  partial = archive.with_name(archive.name + '.partial')
  try:
    archive.parent.mkdir(parents=True, exist_ok=True)
    with requests.get(ARCHIVE_URL, stream=True, timeout=60) as response, partial.open('wb') as file:
      response.raise_for_status()
      for block in response.iter_content(1 << 20):
        file.write(block)
      expected = int(response.headers.get('Content-Length', file.tell()))
      if file.tell() != expected:
        raise requests.ConnectionError(f'{file.tell()} of {expected} bytes came')
    partial.rename(archive)
  except requests.RequestException as error:
    partial.unlink(missing_ok=True)
    raise UserError(
        f'--data_dir={archive.parent} has no CIFAR-100: expected {archive.parent / "cifar100" / VERSION}, {archive} or'
        f' {archive.parent / "cifar100.npz"}, and {ARCHIVE_URL} could not be downloaded ({type(error).__name__}).'
        ' Put the archive there, or run experiments/digits.py, which needs no download.'
    ) from None


def _check_sha256(archive):
  with archive.open('rb') as file:
    found = hashlib.file_digest(file, 'sha256').hexdigest()
  if found != ARCHIVE_SHA256:
    raise UserError(
        f'{archive} is not the distributed archive: its SHA-256 is {found}, not {ARCHIVE_SHA256}. Delete it to download'
        ' it again, or accept it as it is with --verify_checksum=false.'
    )


class _Bounded:
  """What an archive unpacks to, in the one direction in which it is read, to twice what CIFAR-100 has."""

  def __init__(self, file, archive):
    self._file, self._archive, self._read = file, archive, 0

  def read(self, size):
    block = self._file.read(size)
    self._read += len(block)
    self.check(self._read)
    return block

  def check(self, size):
    if size > 2 * (sum(_SIZES.values()) * _RECORD + _MOST_NAMES):
      raise UserError(f'{self._archive} is not the CIFAR-100 binary archive: it unpacks to twice as much and more.')


def _read_members(archive, sizes):
  """{name: bytes} of the archive's files, those in `sizes` by name, each of so many bytes or few.

  They are read where they stand: nothing is unpacked to disk, so that it matters to no one where names or links lead.
  """
  found = {}
  try:
    with gzip.open(archive) as file, tarfile.open(fileobj=(bounded := _Bounded(file, archive)), mode='r|') as tar:
      for member in tar:
        # Where the next member would stand: before tarfile looks for the end of a terabyte that is not there. A sparse
        # file's own size says nothing of it.
        bounded.check(tar.offset)
        name = member.name.removeprefix('cifar-100-binary/')
        if name == member.name or name not in sizes:
          continue
        if not member.isreg():
          raise UserError(f'{archive}: {name} is a link or a folder, not a file.')
        if sizes[name] not in (None, member.size):
          records = sizes[name] // _RECORD
          raise UserError(f'{archive}: {name} has {member.size} bytes, not {records} records of {_RECORD}.')
        found[name] = tar.extractfile(member).read(sizes[name] or _MOST_NAMES)
  except UserError:
    raise
  except Exception as error:  # tarfile and zlib raise whatever a damaged archive makes them
    raise UserError(f'{archive} is truncated or not the CIFAR-100 binary archive: {error}.') from None
  missing = [name for name in sizes if name not in found]
  if missing:
    raise UserError(f'{archive} is not the CIFAR-100 binary archive: it has no cifar-100-binary/{missing[0]}.')
  return found


def _names(archive, members, kind):
  try:
    return members[f'{kind}_label_names.txt'].decode().split()
  except UnicodeDecodeError:
    raise UserError(f'{archive}: {kind}_label_names.txt is not UTF-8 text.') from None


def _records(archive, split, content):
  """u8[M, record] of a split, checked."""
  records = np.frombuffer(content, np.uint8).reshape(-1, _RECORD)
  if records[:, 0].max() >= 20 or records[:, 1].max() >= 100:
    raise UserError(f'{archive}: {split}.bin has labels beyond 20 groups and 100 classes.')
  return records


def _builder_class():
  """The builder, registered nowhere: stock TFDS has one of the same name, whose layout it shares."""
  with tfds.core.registered.skip_registration():

    class Cifar100(tfds.core.GeneratorBasedBuilder):
      """CIFAR-100 (Krizhevsky, 2009)."""

      VERSION = tfds.core.Version(VERSION)

      def __init__(self, records, names, coarse_names, **kwargs):
        self._records, self._names, self._coarse_names = records, names, coarse_names
        super().__init__(**kwargs)

      def _info(self):
        features = {
            'id': tfds.features.Text(),
            'image': tfds.features.Image(shape=(32, 32, 3), encoding_format='png'),
            'label': tfds.features.ClassLabel(names=self._names),
            'coarse_label': tfds.features.ClassLabel(names=self._coarse_names),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description='CIFAR-100: 60,000 images of 32x32 pixels in 100 classes.',
            features=tfds.features.FeaturesDict(features),
            homepage='https://www.cs.toronto.edu/~kriz/cifar.html',
        )

      def _split_generators(self, dl_manager):
        del dl_manager
        return {split: self._generate_examples(split) for split in self._records}

      def _generate_examples(self, split):
        for index, record in enumerate(self._records[split]):
          png = io.BytesIO()  # bytes, not an array: encoding an array is what would need TensorFlow
          Image.fromarray(record[2:].reshape(3, 32, 32).transpose(1, 2, 0)).save(png, 'png', compress_level=1)
          name = f'{split}_{index:05d}'
          yield name, {'id': name, 'image': png.getvalue(), 'label': int(record[1]), 'coarse_label': int(record[0])}

  return Cifar100
