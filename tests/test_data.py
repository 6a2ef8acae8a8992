"""Where images come from, how they are split, and what is said when they are missing or damaged."""

import dataclasses
import hashlib
import http.server
import importlib.util
import io
import os
import sys
import tarfile
import threading

import numpy as np
import pytest

from abd_jax import addresses
from abd_jax.data import TaskSequence, class_order, load, sources, tasks
from abd_jax.errors import UserError


def test_digits_are_all_of_them_split_by_class():
  digits = load('digits')
  assert digits.train_images.shape == (1437, 8, 8, 1) and digits.test_images.shape == (360, 8, 8, 1)
  assert digits.train_images.dtype == np.uint8 and digits.train_images.max() == 255
  # Stratified: a fifth of every class, to within an image.
  total = np.bincount(digits.train_labels) + np.bincount(digits.test_labels)
  np.testing.assert_allclose(np.bincount(digits.test_labels), total / 5, atol=1)
  again = load('digits')
  np.testing.assert_array_equal(again.test_images, digits.test_images)


@pytest.mark.parametrize('seed, first', [(0, [23, 8, 11, 7]), (1, [53, 37, 65, 51]), (2, [0, 76, 61, 63])])
def test_class_order_is_the_literatures(seed, first):
  order = class_order(100, seed)
  assert order[:4] == first and sorted(order) == list(range(100))


def coloured(num_classes=4, per_class=3, side=4):
  """A data set whose pixels say their class: image i of class c has value 10 c + i."""
  labels = np.tile(np.arange(num_classes), per_class)
  values = (10 * labels + np.repeat(np.arange(per_class), num_classes)).astype(np.uint8)
  images = np.broadcast_to(values[:, None, None, None], (len(labels), side, side, 3)).copy()
  names = tuple('abcdefghij'[:num_classes])
  return sources.Dataset('coloured', images, labels, images, labels, names, (0.5,) * 3, (0.25,) * 3)


def test_tasks_hold_their_classes_under_the_positions_of_the_order():
  sequence = TaskSequence(coloured(), 2, seed=3)
  for task in range(2):
    images, labels = sequence.train(task)
    assert sorted(set(labels)) == sequence.classes(task) == [2 * task, 2 * task + 1]
    for image, label in zip(images, labels, strict=True):
      assert image[0, 0, 0] // 10 == sequence.order[label]
  assert len(sequence.train(1, cumulative=True)[0]) == 12
  assert sequence.train_sizes().tolist() == [6, 6] and sequence.train_sizes(cumulative=True).tolist() == [6, 12]
  assert sequence.largest_train_size() == 6 and sequence.largest_train_size(cumulative=True) == 12


def test_first_classes_of_the_order_can_be_taken_alone():
  sequence = TaskSequence(coloured(), 1, num_classes=3, seed=3)
  assert sequence.order == class_order(4, 3)[:3] and len(sequence.train(0)[0]) == 9


def test_a_first_task_can_have_a_size_of_its_own():
  sequence = TaskSequence(coloured(8), 4, first_task_classes=2, seed=3)
  assert [sequence.classes(task) for task in range(4)] == [[0, 1], [2, 3], [4, 5], [6, 7]]
  sequence = TaskSequence(coloured(8), 3, first_task_classes=4, seed=3)
  assert [sequence.classes(task) for task in range(3)] == [[0, 1, 2, 3], [4, 5], [6, 7]]
  assert [(sequence.past(task), sequence.seen(task)) for task in range(3)] == [(0, 4), (4, 6), (6, 8)]
  assert sequence.task_of_class == (0, 0, 0, 0, 1, 1, 2, 2)
  assert sequence.train_sizes().tolist() == [12, 6, 6] and sequence.largest_train_size() == 12
  assert sequence.train_sizes(cumulative=True).tolist() == [12, 18, 24] and sequence.test_sizes().tolist() == [12, 6, 6]
  assert sorted(set(sequence.train(1, cumulative=True)[1])) == list(range(6))
  assert TaskSequence(coloured(4), 1, first_task_classes=4).classes(0) == [0, 1, 2, 3]


def test_the_order_of_classes_can_be_chosen():
  dataset = coloured(8)
  order_of = lambda dataset, name: TaskSequence(dataset, 2, class_order=name, seed=3).order
  assert order_of(dataset, 'auto') == order_of(dataset, 'seed') == class_order(8, 3)
  assert order_of(dataset, 'labels') == list(range(8))
  # Where those begin who follow iCaRL on CIFAR-100.
  assert tasks.order_of_1993(100)[:10] == (68, 56, 78, 8, 23, 84, 90, 65, 74, 76)
  assert order_of(dataset, 'numpy1993') == list(tasks.order_of_1993(8)) != class_order(8, 3)
  benchmark = dataclasses.replace(dataset, class_order=(7, 6, 5, 4, 3, 2, 1, 0))  # that has an order of its own
  assert order_of(benchmark, 'auto') == [7, 6, 5, 4, 3, 2, 1, 0] and order_of(benchmark, 'seed') == class_order(8, 3)


def test_an_upper_bound_has_all_classes_so_far():
  sequence = TaskSequence(coloured(6), 2)
  assert sorted(set(sequence.train(1, cumulative=True)[1])) == list(range(6))


def test_images_are_made_as_small_as_asked_for():
  native, small = TaskSequence(coloured(), 2), TaskSequence(coloured(), 2, image_size=2)
  for task in range(2):
    np.testing.assert_array_equal(small.train(task)[0], tasks.area_average(native.train(task)[0], 2))
  assert small.image_shape == (2, 2, 3)


@pytest.mark.parametrize('arguments, sentence', [
    (dict(num_tasks=3), '4 classes cannot be split evenly over --num_tasks=3.'),
    (dict(num_tasks=5), '4 classes cannot be split evenly over --num_tasks=5.'),
    (dict(num_tasks=10**15), '4 classes cannot be split evenly over --num_tasks=1000000000000000.'),
    *(
        (dict(num_tasks=tasks, first_task_classes=first),
         f'4 classes cannot be split evenly over --num_tasks={tasks} after a first of --first_task_classes={first}.')
        for tasks, first in ((3, 1), (2, 4), (2, 5), (1, 3))
    ),
    (dict(num_tasks=1, num_classes=5), '--num_classes=5 is more than the 4 classes of coloured.'),
    (dict(num_tasks=1, image_size=8), '--image_size=8 is larger than the 4x4 images of coloured.'),
])
def test_impossible_splits_are_refused(arguments, sentence):
  with pytest.raises(UserError) as refusal:
    TaskSequence(coloured(), **arguments)
  assert str(refusal.value) == sentence


def test_area_average():
  # 4 -> 2: means of 2x2 blocks.  3 -> 2: each new pixel covers one and a half old ones.
  image = np.arange(16, dtype=np.uint8).reshape(1, 4, 4, 1) * 4
  assert tasks.area_average(image, 2)[0, :, :, 0].tolist() == [[10, 18], [42, 50]]
  row = np.tile(np.array([0, 90, 30], np.uint8), (3, 1))[None, :, :, None]
  assert tasks.area_average(row, 2)[0, 0, :, 0].tolist() == [30, 50]  # (0 + 45) / 1.5, (45 + 30) / 1.5


def test_more_images_than_are_taken_at_once():
  images = np.random.default_rng(0).integers(0, 256, (2500, 4, 4, 3), np.uint8)
  blocks = images.reshape(2500, 2, 2, 2, 2, 3).mean((2, 4), np.float64)
  np.testing.assert_allclose(tasks.area_average(images, 2), blocks, atol=0.5)
  mean, std = sources.channel_statistics(images)
  np.testing.assert_allclose((mean, std), ((images / 255).mean((0, 1, 2)), (images / 255).std((0, 1, 2))), rtol=1e-9)


def test_every_epoch_has_an_order_of_its_own_from_its_address():
  orders = {tuple(addresses.epoch_order(8, *address)) for address in np.ndindex(2, 2, 2, 3)}
  assert len(orders) == 24
  assert all(sorted(order) == list(range(8)) for order in orders)
  np.testing.assert_array_equal(addresses.epoch_order(8, 0, 1, 2, 3), addresses.epoch_order(8, 0, 1, 2, 3))


# npz


def arrays(**changes):
  d = coloured()
  kept = dict(
      train_images=d.train_images, train_labels=d.train_labels, test_images=d.test_images, test_labels=d.test_labels,
      class_names=np.array(d.class_names),
  )
  return {**kept, **changes}


def test_npz_is_standardised_by_its_own_training_pixels(tmp_path):
  np.savez(tmp_path / 'a.npz', **arrays())
  dataset = load(f'npz:{tmp_path}/a.npz')
  pixels = dataset.train_images / 255
  np.testing.assert_allclose(dataset.mean, pixels.mean((0, 1, 2)))
  np.testing.assert_allclose(dataset.std, pixels.std((0, 1, 2)))
  assert dataset.class_names == ('a', 'b', 'c', 'd')


def test_npz_under_the_name_of_cifar100_has_its_normalisation_and_name(tmp_path):
  np.savez(tmp_path / 'cifar100.npz', **arrays())
  dataset = load('cifar100', tmp_path)
  assert dataset.name == 'cifar100'
  np.testing.assert_allclose(dataset.mean, (0.5071, 0.4865, 0.4409), atol=1e-4)
  np.testing.assert_allclose(dataset.std, (0.2673, 0.2564, 0.2762), atol=1e-4)


def test_cifar100_without_tensorflow_datasets_is_a_sentence(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'abd_jax.data.builders', None)
  monkeypatch.delattr('abd_jax.data.builders', raising=False)
  with pytest.raises(UserError, match=r'is read by tensorflow-datasets, .* put cifar100\.npz in --data_dir'):
    load('cifar100', tmp_path)


# The CIFAR-100 archive, in small: the same layout with 40 and 20 images.

builders = pytest.importorskip('abd_jax.data.builders') if importlib.util.find_spec('tensorflow_datasets') else None
needs_tfds = pytest.mark.skipif(builders is None, reason='tensorflow-datasets is not installed')
RANDOM = np.random.default_rng(0)
RECORDS = {
    split: np.concatenate(
        [RANDOM.integers(0, high, (n, width)) for high, width in ((20, 1), (100, 1), (256, 3072))], axis=1
    ).astype(np.uint8)
    for split, n in (('train', 40), ('test', 20))
}


def archive(**changes):
  members = {f'{split}.bin': records.tobytes() for split, records in RECORDS.items()}
  members['fine_label_names.txt'] = '\n'.join(f'class_{i}' for i in range(100)).encode()
  members['coarse_label_names.txt'] = '\n'.join(f'group_{i}' for i in range(20)).encode()
  data = io.BytesIO()
  with tarfile.open(fileobj=data, mode='w:gz') as tar:
    for name, content in {**members, **changes}.items():
      if content is not None:
        info = tarfile.TarInfo(f'cifar-100-binary/{name}')
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))
  return data.getvalue()


@pytest.fixture
def small_archive(monkeypatch):
  data = archive()
  monkeypatch.setattr(builders, '_SIZES', {'train': 40, 'test': 20})
  monkeypatch.setattr(builders, 'ARCHIVE_SHA256', hashlib.sha256(data).hexdigest())
  return data


def assert_is_the_small_archive(dataset):
  for split, records in RECORDS.items():
    images = records[:, 2:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    np.testing.assert_array_equal(getattr(dataset, f'{split}_images'), images)
    np.testing.assert_array_equal(getattr(dataset, f'{split}_labels'), records[:, 1])
  assert dataset.class_names[7] == 'class_7'


@needs_tfds
def test_cifar100_is_prepared_from_the_archive_without_tensorflow_and_read_in_its_order(
    tmp_path, small_archive, monkeypatch
):
  monkeypatch.setattr(builders, '_AT_A_CALL', 15)
  (tmp_path / builders.ARCHIVE).write_bytes(small_archive)
  assert_is_the_small_archive(load('cifar100', tmp_path))
  assert 'tensorflow' not in sys.modules
  (tmp_path / builders.ARCHIVE).unlink()
  assert_is_the_small_archive(load('cifar100', tmp_path))  # from what was prepared
  assert list((tmp_path / 'cifar100' / '3.0.2').glob('*.array_record*'))


@needs_tfds
def test_cifar100_prepared_by_stock_tfds_is_read_alike(tmp_path):
  # Stock TFDS 3.0.2 has the same four features, under another key order and without PNG said of the image.
  import tensorflow_datasets as tfds

  with tfds.core.registered.skip_registration():

    class Cifar100(tfds.core.GeneratorBasedBuilder):
      VERSION = tfds.core.Version('3.0.2')

      def _info(self):
        features = {
            'coarse_label': tfds.features.ClassLabel(num_classes=20),
            'id': tfds.features.Text(),
            'image': tfds.features.Image(shape=(32, 32, 3)),
            'label': tfds.features.ClassLabel(names=[f'class_{i}' for i in range(100)]),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

      def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in RECORDS}

      def _generate_examples(self, split):
        from PIL import Image

        for i, record in enumerate(RECORDS[split]):
          png = io.BytesIO()
          Image.fromarray(record[2:].reshape(3, 32, 32).transpose(1, 2, 0)).save(png, 'png')
          coarse_label, label = map(int, record[:2])
          yield i, {
              'id': f'{split}_{i:05d}', 'image': png.getvalue(), 'label': label, 'coarse_label': coarse_label,
          }

  Cifar100(data_dir=tmp_path, file_format='array_record').download_and_prepare()
  assert_is_the_small_archive(load('cifar100', tmp_path))


class Server:
  """Serves bytes at any path of loopback, as many of them as told."""

  def __init__(self, data, promised=None):
    class Handler(http.server.BaseHTTPRequestHandler):

      def do_GET(self):
        self.send_response(200)
        self.send_header('Content-Length', str(promised or len(data)))
        self.end_headers()
        self.wfile.write(data)

      def log_message(self, *args):
        pass

    self._server = http.server.HTTPServer(('127.0.0.1', 0), Handler)
    self.url = f'http://127.0.0.1:{self._server.server_port}/archive'

  def __enter__(self):
    threading.Thread(target=self._server.serve_forever, daemon=True).start()
    return self.url

  def __exit__(self, *exception):
    self._server.shutdown()
    self._server.server_close()


@needs_tfds
def test_cifar100_is_downloaded_when_it_is_nowhere(tmp_path, small_archive, monkeypatch):
  with Server(small_archive) as url:
    monkeypatch.setattr(builders, 'ARCHIVE_URL', url)
    assert_is_the_small_archive(load('cifar100', tmp_path / 'new'))


@needs_tfds
def test_a_broken_download_leaves_nothing_behind(tmp_path, small_archive, monkeypatch):
  with Server(small_archive[:1000], promised=len(small_archive)) as url:
    monkeypatch.setattr(builders, 'ARCHIVE_URL', url)
    with pytest.raises(UserError, match='has no CIFAR-100: expected .* could not be downloaded'):
      load('cifar100', tmp_path)
  assert not list(tmp_path.iterdir())


@needs_tfds
def test_a_data_dir_that_cannot_be_written(tmp_path, small_archive):
  (tmp_path / builders.ARCHIVE).write_bytes(small_archive)
  (tmp_path / 'cifar100').touch()  # where the folder should go
  with pytest.raises(UserError, match='cannot take the prepared CIFAR-100'):
    load('cifar100', tmp_path)


@needs_tfds
def test_an_archive_of_another_checksum_is_refused_unless_accepted(tmp_path, small_archive, monkeypatch):
  (tmp_path / builders.ARCHIVE).write_bytes(small_archive)
  monkeypatch.setattr(builders, 'ARCHIVE_SHA256', '0' * 64)
  with pytest.raises(UserError, match='is not the distributed archive: its SHA-256 is .*--verify_checksum=false'):
    load('cifar100', tmp_path)
  assert_is_the_small_archive(load('cifar100', tmp_path, verify_checksum=False))


@needs_tfds
def test_a_damaged_prepared_set_is_named(tmp_path, small_archive):
  (tmp_path / builders.ARCHIVE).write_bytes(small_archive)
  load('cifar100', tmp_path)
  prepared = tmp_path / 'cifar100' / '3.0.2'
  next(prepared.glob('*train*')).write_bytes(b'')
  with pytest.raises(UserError, match='Delete that folder to prepare it anew'):
    load('cifar100', tmp_path)


@pytest.mark.skipif(
    'ABD_DATA_DIR' not in os.environ, reason='set ABD_DATA_DIR to a folder with CIFAR-100 to read the real one'
)
def test_the_real_cifar100():
  dataset = load('cifar100', os.environ['ABD_DATA_DIR'], verify_checksum=False)
  assert np.bincount(dataset.train_labels).tolist() == [500] * 100
  assert np.bincount(dataset.test_labels).tolist() == [100] * 100
  pixels = dataset.train_images[::10] / 255
  np.testing.assert_allclose(pixels.mean((0, 1, 2)), sources.CIFAR100_MEAN, atol=0.005)
  np.testing.assert_allclose(pixels.std((0, 1, 2)), sources.CIFAR100_STD, atol=0.005)
