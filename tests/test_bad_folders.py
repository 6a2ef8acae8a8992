"""Trees and folders of images that are not as they should be, and the sentence that each is refused with."""

import io
import os
import struct
import zlib

import pytest
from PIL import Image

from abd_jax.data import folder, load
from tests.test_bad_input import assert_is, refused

# Trees of JPEG files.


def jpeg(width=64, height=64, mode='RGB'):
  content = io.BytesIO()
  Image.new(mode, (width, height)).save(content, 'JPEG')
  return content.getvalue()


def tree(where, changes):
  """A Tiny-ImageNet of two classes and one image each, and an ImageNet of one, with files taken away or changed."""
  tiny = 'tiny-imagenet-200'
  files = {
    f'{tiny}/train/n01/images/a.JPEG': jpeg(),
    f'{tiny}/train/n02/images/b.JPEG': jpeg(),
    f'{tiny}/val/images/c.JPEG': jpeg(),
    f'{tiny}/val/val_annotations.txt': b'c.JPEG\tn01\t0\t0\t9\t9\n',
    f'{tiny}/words.txt': b'n01\tone\n',
    'imagenet/train/n01/a.JPEG': jpeg(),
    'imagenet/val/n01/b.JPEG': jpeg(),
  }
  for name, content in (files | changes).items():
    if content is not None:
      path = where / os.fsdecode(name)
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_bytes(content)


TINY = 'tiny-imagenet-200'
TREES = {
    'no annotations': (
        'tiny_imagenet',
        {f'{TINY}/val/val_annotations.txt': None},
        '--data_dir={where} has no Tiny-ImageNet: expected {where}/tiny-imagenet-200/train and'
        ' {where}/tiny-imagenet-200/val/val_annotations.txt. Download http://cs231n.stanford.edu/tiny-imagenet-200.zip'
        ' and unpack it there.',
    ),
    'no classes': (
        'tiny_imagenet',
        {f'{TINY}/train/n01/images/a.JPEG': None, f'{TINY}/train/n02/images/b.JPEG': None, f'{TINY}/train/readme': b''},
        '{where}/tiny-imagenet-200/train has no folders: there must be one for each class, named after its wnid.',
    ),
    'a class without images': (
        'tiny_imagenet',
        {f'{TINY}/train/n02/images/b.JPEG': None, f'{TINY}/train/n02/boxes.txt': b''},
        '{where}/tiny-imagenet-200/train/n02/images has no images: every class of {where}/tiny-imagenet-200/train needs'
        ' some.',
    ),
    'a class that is not there': (
        'tiny_imagenet',
        {f'{TINY}/val/val_annotations.txt': b'c.JPEG\tn03\n'},
        '{where}/tiny-imagenet-200/val/val_annotations.txt: "c.JPEG n03" names no class of'
        ' {where}/tiny-imagenet-200/train.',
    ),
    'a line without a class': (
        'tiny_imagenet',
        {f'{TINY}/val/val_annotations.txt': b'c.JPEG'},
        '{where}/tiny-imagenet-200/val/val_annotations.txt: "c.JPEG" names no class of'
        ' {where}/tiny-imagenet-200/train.',
    ),
    'a path in the place of a name': (
        'tiny_imagenet',
        {f'{TINY}/val/val_annotations.txt': b'../../a.JPEG\tn01\n'},
        '{where}/tiny-imagenet-200/val/val_annotations.txt: "../../a.JPEG" is no name of a file in'
        ' {where}/tiny-imagenet-200/val/images.',
    ),
    'annotations in another encoding': (
        'tiny_imagenet',
        {f'{TINY}/val/val_annotations.txt': b'\xe9.JPEG\tn01\n'},
        '{where}/tiny-imagenet-200/val/val_annotations.txt cannot be read as text: ….',
    ),
    'a test image missing': (
        'tiny_imagenet',
        {f'{TINY}/val/images/c.JPEG': None},
        '{where}/tiny-imagenet-200/val/images/c.JPEG cannot be read as an image: … Mend it or take it away.',
    ),
    'an image of another size': (
        'tiny_imagenet',
        {f'{TINY}/train/n01/images/a.JPEG': jpeg(64, 32)},
        "{where}/tiny-imagenet-200/train/n01/images/a.JPEG has 64x32 pixels: Tiny-ImageNet's are 64x64.",
    ),
    'an image of zero bytes': (
        'tiny_imagenet',
        {f'{TINY}/train/n02/images/b.JPEG': b''},
        '{where}/tiny-imagenet-200/train/n02/images/b.JPEG cannot be read as an image: … Mend it or take it away.',
    ),
    'a name that no page can show': (
        'tiny_imagenet',
        {f'{TINY}/words.txt': b'n02\ttw\x07o\n'},
        '{where}/tiny-imagenet-200/words.txt: the name "tw\\x07o" is not one line of Unicode text: rename it.',
    ),
    'no ImageNet': (
        'imagenet',
        {'imagenet/train/n01/a.JPEG': None, 'imagenet/val/n01/b.JPEG': None},
        '--data_dir={where} has no ImageNet: expected {where}/imagenet/train and {where}/imagenet/val, with a folder of'
        ' JPEG files for each wnid.',
    ),
    'two ImageNets': (
        'imagenet',
        {
            'imagenet/train/n01/a.JPEG': None, 'imagenet/val/n01/b.JPEG': None,
            **{f'imagenet{n}/{part}/n01/a.JPEG': jpeg() for n in (4, 5) for part in ('train', 'val')},
        },
        '--data_dir={where} has imagenet4 and imagenet5: name the folder itself with --data_dir.',
    ),
    'no validation images of a class': (
        'imagenet',
        {'imagenet/train/n02/a.JPEG': jpeg()},
        '{where}/imagenet/val/n02 has no images: every class of {where}/imagenet/val needs some.',
    ),
    'no folders': (
        'imagenet',
        {'imagenet/train/n01/a.JPEG': None, 'imagenet/train/a.JPEG': jpeg()},
        '{where}/imagenet/train has no folders: there must be one for each class, named after its wnid.',
    ),
    'a folder of a name that is not UTF-8': (
        'imagenet',
        {b'imagenet/train/caf\xe9/a.JPEG': jpeg()},
        '{where}/imagenet/train: the name of the folder "caf\\udce9" is not one line of Unicode text: rename it.',
    ),
}


@pytest.mark.parametrize('name, changes, sentence', TREES.values(), ids=TREES)
def test_trees(tmp_path, name, changes, sentence):
  tree(tmp_path, changes)
  refused(lambda: load(name, tmp_path), sentence, tmp_path)


# Photographs of one's own.


def png(width, height, bits=8, colour=2, data=b''):
  """A PNG that says it has so many pixels."""
  chunk = lambda kind, said: struct.pack('>I', len(said)) + kind + said + struct.pack('>I', zlib.crc32(kind + said))
  header = struct.pack('>IIBBBBB', width, height, bits, colour, 0, 0, 0)
  return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', zlib.compress(data)) + chunk(b'IEND', b'')


IMAGES = {
    'zero bytes': (b'', 'not a JPEG, PNG or WebP image'),
    'GIF': (b'GIF89a' + bytes(20), 'not a JPEG, PNG or WebP image'),
    # A program, which Pillow would hand to Ghostscript.
    'EPS': (b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n', 'not a JPEG, PNG or WebP image'),
    'a header alone': (jpeg()[:200], '…'),
    'half a JPEG': (jpeg(256, 256)[:-300], 'image file is truncated …'),
    'a PNG without its pixels': (png(64, 64), 'image file is truncated …'),
    'a side of 20,000 pixels': (png(20_000, 20_000), 'more than 178,956,970 pixels'),
    'a side of none': (png(0, 0), 'not a JPEG, PNG or WebP image'),
}


@pytest.mark.parametrize('content, reason', IMAGES.values(), ids=IMAGES)
def test_images(tmp_path, content, reason):
  (tmp_path / 'a.jpg').write_bytes(content)
  images, readable, [(path, said)] = folder.read_files([tmp_path / 'a.jpg'], 8)
  assert path == tmp_path / 'a.jpg' and not len(images) and not readable.any()
  assert_is(said, reason)


@pytest.mark.parametrize(
  'content',
  [
    jpeg(mode='CMYK'),
    jpeg(mode='L'),
    png(20_000, 2, data=2 * (b'\0' + bytes(60_000))),
    png(3, 3, bits=16, data=3 * (b'\0' + bytes(18))),
    png(3, 3, bits=16, colour=0, data=3 * (b'\0' + bytes(6))),
  ],
  ids=['CMYK', 'grey', '20,000 pixels wide', '16 bits', '16 bits of grey'],
)
def test_odd_images_are_read(tmp_path, content):
  (tmp_path / 'a.jpg').write_bytes(content)
  images, _, unreadable = folder.read_files([tmp_path / 'a.jpg'], 8)
  assert unreadable == [] and images.shape == (1, 8, 8, 3)


def test_links_are_followed_once_and_those_that_lead_nowhere_are_named(tmp_path):
  for name in ('photos/cat/a.jpg', 'elsewhere/b.jpg', 'photos/cat/.hidden/c.jpg'):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(jpeg())
  for name in ('more', 'also'):  # of which the first by name is followed
    (tmp_path / 'photos' / 'cat' / name).symlink_to(tmp_path / 'elsewhere')
  (tmp_path / 'elsewhere' / 'round').symlink_to(tmp_path / 'photos' / 'cat')
  (tmp_path / 'photos' / 'cat' / 'z.jpg').symlink_to(tmp_path / 'gone.jpg')
  files = folder.class_files(tmp_path / 'photos')['cat']
  assert [path.relative_to(tmp_path / 'photos').as_posix() for path in files] == [
    'cat/a.jpg', 'cat/also/b.jpg', 'cat/z.jpg',
  ]
  _, _, [(path, said)] = folder.read_files(files, 8)
  assert path.name == 'z.jpg' and 'No such file' in said


FOLDERS = {
    'nothing': (['photos'], {}, 'There is no {where}/photos.'),
    'a file': (['photos'], {'photos': b''}, '{where}/photos is not a folder.'),
    'an image beside the folders': (
        ['photos'],
        {'photos/cat/a.jpg': b'', 'photos/b.jpg': b''},
        '{where}/photos/b.jpg lies beside the class folders, so it has no class: move it into one, or away.',
    ),
    'no folders': (
        ['photos'],
        {'photos/.hidden': b''},
        '{where}/photos has no folders: there must be one for each class, named after it, with its images.',
    ),
    'a class of hidden files': (
        ['photos'],
        {'photos/cat/.a.jpg': b''},
        '{where}/photos/cat has no files: a class needs at least one image.',
    ),
    'a class of two lines': (
        ['photos'],
        {'photos/black\ncat/a.jpg': b''},
        '{where}/photos: the name of the folder "black\\ncat" is not one line of Unicode text: rename it.',
    ),
    'a class that is not UTF-8': (
        ['photos'],
        {b'photos/caf\xe9/a.jpg': b''},
        '{where}/photos: the name of the folder "caf\\udce9" is not one line of Unicode text: rename it.',
    ),
    'a zero byte': (['pho\0tos'], {}, '{where}/pho\\x00tos is no path: embedded null byte.'),
}


@pytest.mark.parametrize('name, files, sentence', FOLDERS.values(), ids=FOLDERS)
def test_folders(tmp_path, name, files, sentence):
  for path, content in files.items():
    path = tmp_path / os.fsdecode(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
  refused(lambda: folder.class_files(tmp_path / name[0]), sentence, tmp_path)
