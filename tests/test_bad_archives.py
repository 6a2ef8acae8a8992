"""npz files and archives that are not as they should be, and the sentence that each is refused with."""

import contextlib
import gzip
import io
import tarfile
import unittest.mock
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest

from abd_jax.data import load
from tests.test_bad_input import refused
from tests.test_data import archive, arrays, builders, needs_tfds

SIZES = {'train': 40, 'test': 20}


# npz files.


def npy(array, **changes):
  """The bytes of an npy file, whose header may say otherwise: shape, descr."""
  content = io.BytesIO()
  header = np.lib.format.header_data_from_array_1_0(array) | changes
  np.lib.format.write_array_header_1_0(content, header)
  return content.getvalue() + array.tobytes()


def npz_with(said_size=None, flag_bits=0, compression=zipfile.ZIP_DEFLATED, **members):
  """An npz file of the usual arrays, some members of which are other bytes; the first may claim another size."""
  content = io.BytesIO()
  with zipfile.ZipFile(content, 'w', compression) as file:
    for key, array in arrays().items():
      file.writestr(f'{key}.npy', members.get(key, npy(array)))
    if said_size:
      file.filelist[0].file_size = said_size
    file.filelist[0].flag_bits |= flag_bits
  return content.getvalue()


PIXELS = arrays()['train_images']
UNREADABLE = '{where}/a.npz cannot be read as an npz file of plain arrays: '
NPZ = {
    'zero bytes': (b'', UNREADABLE + '….'),
    'truncated': (npz_with()[:-60], UNREADABLE + '….'),
    'another format': (b'\x89HDF\r\n\x1a\n' + bytes(100), UNREADABLE + '….'),
    'objects': (
        npz_with(class_names=npy(np.array(['a', 'b'], object))),
        '{where}/a.npz holds Python objects in class_names, which are never unpickled: save it as a plain array.',
    ),
    'a pickle': (npz_with(class_names=b'\x80\x04N.'), UNREADABLE + '….'),
    'encrypted': (npz_with(flag_bits=1), UNREADABLE + 'File … is encrypted, password required for extraction.'),
    'a bomb': (
        npz_with(said_size=10**15),
        '{where}/a.npz unpacks to 1,000,000.0 GB, more than this machine has memory for.',
    ),
    'a header that promises too much': (
        npz_with(train_images=npy(PIXELS, shape=(10**12, 32, 32, 3))),
        UNREADABLE + 'train_images has 704 bytes, which is no uint8 [1000000000000, 32, 32, 3].',
    ),
    'a header of a negative shape': (
        npz_with(train_images=npy(PIXELS, shape=(-12, -48))),
        UNREADABLE + 'train_images has 704 bytes, which is no uint8 [-12, -48].',
    ),
    'a flipped bit': (
        npz_with(compression=zipfile.ZIP_STORED).replace(PIXELS[3].tobytes(), bytes(48), 1),
        UNREADABLE + '….',
    ),
    'no such characters': (
        npz_with(class_names=npy(np.array([2**31 - 1], '<u4'), descr='<U1', shape=(1,))),
        UNREADABLE + '….',
    ),
}
ARRAYS = {
    'a missing key': (
        dict(train_labels=None),
        '{where}/a.npz lacks train_labels: its keys must be train_images,'
        ' train_labels, test_images, test_labels, class_names.',
    ),
    'names that are numbers of another kind': (
        dict(class_names=np.arange(4.0)),
        '{where}/a.npz: class_names must be a list of names.',
    ),
    'a name of two lines': (
        dict(class_names=np.array(['a', 'b', 'c\nd', 'e'])),
        '{where}/a.npz: the class name "c\\nd" is not one line of Unicode text: rename it.',
    ),
    'a name twice': (
        dict(class_names=np.array(['a', 'b', 'a', 'c'])),
        '{where}/a.npz: class_names must be different names, none of them empty.',
    ),
    'an empty name': (
        dict(class_names=np.array(['a', 'b', '', 'c'])),
        '{where}/a.npz: class_names must be different names, none of them empty.',
    ),
    'no names': (dict(class_names=np.array([], str)), '{where}/a.npz: train_labels must lie between 0 and -1.'),
    'no images': (
        dict(train_images=PIXELS[:0], train_labels=np.zeros(0, int)),
        '{where}/a.npz: train_images are empty: their shape is [0, 4, 4, 3].',
    ),
    'images of no pixels': (
        dict(train_images=PIXELS[:, :0]),
        '{where}/a.npz: train_images are empty: their shape is [12, 0, 4, 3].',
    ),
    'images as floats': (
        dict(test_images=PIXELS / 255),
        '{where}/a.npz: test_images must be uint8 [M, H, W, C], not float64 [12, 4, 4, 3].',
    ),
    'images without channels': (
        dict(train_images=PIXELS[..., 0]),
        '{where}/a.npz: train_images must be uint8 [M, H, W, C], not uint8 [12, 4, 4].',
    ),
    'labels as floats': (
        dict(train_labels=np.zeros(12)),
        '{where}/a.npz: train_labels must be one whole number for each of 12 images.',
    ),
    'labels one-hot': (
        dict(test_labels=np.zeros((12, 4), int)),
        '{where}/a.npz: test_labels must be one whole number for each of 12 images.',
    ),
    'channels of two kinds': (
        dict(test_images=np.zeros((12, 4, 4, 1), np.uint8)),
        '{where}/a.npz: training images are [4, 4, 3] and test images [4, 4, 1].',
    ),
    'one name, no list': (dict(class_names=np.array('a')), '{where}/a.npz: class_names must be a list of names.'),
    'a label too large': (dict(train_labels=np.full(12, 4)), '{where}/a.npz: train_labels must lie between 0 and 3.'),
    'a negative label': (dict(train_labels=np.full(12, -1)), '{where}/a.npz: train_labels must lie between 0 and 3.'),
}


@pytest.mark.parametrize('content, sentence', NPZ.values(), ids=NPZ)
def test_npz_files(tmp_path, content, sentence):
  (tmp_path / 'a.npz').write_bytes(content)
  refused(lambda: load(f'npz:{tmp_path}/a.npz'), sentence, tmp_path)


@pytest.mark.parametrize('changes, sentence', ARRAYS.values(), ids=ARRAYS)
def test_arrays_in_npz_files(tmp_path, changes, sentence):
  np.savez(tmp_path / 'a.npz', **{key: array for key, array in arrays(**changes).items() if array is not None})
  refused(lambda: load(f'npz:{tmp_path}/a.npz'), sentence, tmp_path)


def test_npz_files_larger_than_memory_are_not_unpacked(tmp_path, monkeypatch):
  (tmp_path / 'a.npz').write_bytes(npz_with())
  monkeypatch.setattr('abd_jax.npz.memory', lambda: 1000)
  # Two arrays of 12 x 4 x 4 x 3 pixels, two of 12 labels of 8 bytes, 4 names of 4, and 5 headers of 128 bytes: 2,000.
  refused(
    lambda: load(f'npz:{tmp_path}/a.npz'),
    '{where}/a.npz unpacks to 0.0 GB, more than this machine has memory for.',
    tmp_path,
  )


# The archive of CIFAR-100.


def tar_with(*members):
  """A compressed tar of (name, content or the target of a link, type)."""
  content = io.BytesIO()
  with tarfile.open(fileobj=content, mode='w:gz') as file:
    for name, said, kind in members:
      member = tarfile.TarInfo(name)
      member.type = kind
      if kind == tarfile.REGTYPE:
        member.size = len(said)
        file.addfile(member, io.BytesIO(said))
      else:
        member.linkname = said
        file.addfile(member)
  return content.getvalue()


def of_size(size):
  """A compressed tar of a file that says it has so many bytes, and has none."""
  member = tarfile.TarInfo('large')
  member.size = size
  return gzip.compress(member.tobuf() + bytes(1024))


def of_sparse_size(size):
  """The same of a sparse file, which has so many bytes in the tar and none when it is unpacked."""
  member = tarfile.TarInfo('sparse')
  member.size, member.type = size, tarfile.GNUTYPE_SPARSE
  header = bytearray(member.tobuf(tarfile.GNU_FORMAT))
  header[386:495] = bytes(97) + b'0'.rjust(11, b'0') + bytes(1)  # no part of it is told, and the size unpacked is 0
  header[148:156] = b' ' * 8
  header[148:156] = b'%06o\0 ' % sum(header[:512])
  return gzip.compress(bytes(header) + bytes(1024))


def of_link(target):
  return tar_with(('cifar-100-binary/train.bin', target, tarfile.SYMTYPE))


NO_ARCHIVE = '{where}/cifar-100-binary.tar.gz is truncated or not the CIFAR-100 binary archive: '
ARCHIVE = '{where}/cifar-100-binary.tar.gz'
ARCHIVES = {
    'zero bytes': (lambda: b'', NO_ARCHIVE + '….'),
    'wrong magic': (lambda: b'PK\3\4' + bytes(600), NO_ARCHIVE + '….'),
    'truncated': (lambda: archive()[:9000], NO_ARCHIVE + '….'),
    'no tar inside': (lambda: zlib.compress(bytes(range(256)) * 9, wbits=31), NO_ARCHIVE + '….'),
    'a record short': (
        lambda: archive(**{'train.bin': bytes(39 * 3074)}),
        ARCHIVE + ': train.bin has 119886 bytes, not 40 records of 3074.',
    ),
    'records of CIFAR-10': (
        lambda: archive(**{'test.bin': bytes(20 * 3073)}),
        ARCHIVE + ': test.bin has 61460 bytes, not 20 records of 3074.',
    ),
    'labels out of range': (
        lambda: archive(**{'test.bin': b'\xff' * 20 * 3074}),
        ARCHIVE + ': test.bin has labels beyond 20 groups and 100 classes.',
    ),
    'a part missing': (
        lambda: archive(**{'test.bin': None}),
        ARCHIVE + ' is not the CIFAR-100 binary archive: it has no cifar-100-binary/test.bin.',
    ),
    'the Python version': (
        lambda: tar_with(('cifar-100-python/train', b'\x80\x04N.', tarfile.REGTYPE)),
        ARCHIVE + ' is not the CIFAR-100 binary archive: it has no cifar-100-binary/fine_label_names.txt.',
    ),
    'too few names': (
        lambda: archive(**{'fine_label_names.txt': b'apple'}),
        ARCHIVE + ' names 1 classes and 20 groups: CIFAR-100 has 100 and 20.',
    ),
    'names in another encoding': (
        lambda: archive(**{'coarse_label_names.txt': b'caf\xe9\n' * 20}),
        ARCHIVE + ': coarse_label_names.txt is not UTF-8 text.',
    ),
    'a link out of it': (lambda: of_link('/etc/passwd'), ARCHIVE + ': train.bin is a link or a folder, not a file.'),
    'a link to itself': (lambda: of_link('train.bin'), ARCHIVE + ': train.bin is a link or a folder, not a file.'),
    'a name outside': (
        lambda: tar_with(('../../train.bin', b'', tarfile.REGTYPE)),
        ARCHIVE + ' is not the CIFAR-100 binary archive: it has no cifar-100-binary/fine_label_names.txt.',
    ),
    'a terabyte that is not there': (
        lambda: of_size(10**12),
        ARCHIVE + ' is not the CIFAR-100 binary archive: it unpacks to twice as much and more.',
    ),
    'a sparse terabyte': (
        lambda: of_sparse_size(10**12),
        ARCHIVE + ' is not the CIFAR-100 binary archive: it unpacks to twice as much and more.',
    ),
    # 60 records of 3,074 bytes and 10,000 of names, twice: 388,880 bytes. These are a million in 1 kB.
    'a bomb': (
        lambda: archive(**{'0': bytes(10**6)}),
        ARCHIVE + ' is not the CIFAR-100 binary archive: it unpacks to twice as much and more.',
    ),
}


@contextlib.contextmanager
def small_archive(content, where):
  """CIFAR-100 of 40 and 20 images, whose archive is this."""
  (where / builders.ARCHIVE).write_bytes(content)
  with unittest.mock.patch.object(builders, '_SIZES', SIZES):
    yield lambda: load('cifar100', where, verify_checksum=False)


@needs_tfds
@pytest.mark.parametrize('content, sentence', ARCHIVES.values(), ids=ARCHIVES)
def test_archives(tmp_path, content, sentence):
  with small_archive(content(), tmp_path) as read:
    refused(read, sentence, tmp_path)
  assert [entry.name for entry in tmp_path.iterdir()] == [builders.ARCHIVE]


@needs_tfds
def test_names_that_lead_out_of_an_archive_lead_nowhere(tmp_path):
  inside = tmp_path / 'inside'
  inside.mkdir()
  with small_archive(archive(**{'../../../evil': b'evil', '/evil': b'evil'}), inside) as read:
    assert len(read().train_images) == 40
  assert [entry.name for entry in tmp_path.iterdir()] == ['inside'] and not Path('/evil').exists()
  assert {entry.name for entry in inside.iterdir()} <= {builders.ARCHIVE, 'cifar100', 'downloads'}
