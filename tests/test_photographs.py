"""Tiny-ImageNet and ImageNet from their trees; photographs decoded as they are read, and what a phase is fed with."""

import json
import re
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from abd_jax import config, train
from abd_jax.config import with_values
from abd_jax.data import TaskSequence, augment, load, sources
from abd_jax.data import feed as feeds
from abd_jax.data.photographs import ATTEMPTS, Photographs, crop_box, join
from abd_jax.data.tasks import order_of_1993
from abd_jax.errors import UserError

RANDOM = np.random.default_rng(0)
WNIDS = ('n03', 'n01', 'n04', 'n02')


def write(path, pixels):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(pixels).save(path, 'JPEG', quality=95)


def gradient(height, width):
  """Red tells the column, green the row; smooth, so that JPEG changes little."""
  rows, columns = np.mgrid[0:height, 0:width]
  return np.stack([255 * columns / width, 255 * rows / height, 0 * rows], axis=-1).astype(np.uint8)


@pytest.fixture(scope='module')
def trees(tmp_path_factory):
  """Both official trees, four classes of one grey each, 40 apart in the order of their wnids; and a grey file each."""
  root = tmp_path_factory.mktemp('data')
  tiny, annotations = root / 'tiny-imagenet-200', []
  for i, wnid in enumerate(WNIDS):
    level = 40 * sorted(WNIDS).index(wnid) + 20
    for j in range(6):
      colours = (3,) if j else ()  # the first is greyscale
      write(tiny / 'train' / wnid / 'images' / f'{wnid}_{j}.JPEG', np.full((64, 64, *colours), level, np.uint8))
      write(root / 'imagenet4' / 'train' / wnid / f'{j}.JPEG', np.full((40 + 3 * j, 50, *colours), level, np.uint8))
    for j in range(2):
      write(tiny / 'val' / 'images' / f'val_{2 * i + j}.JPEG', np.full((64, 64, 3), level, np.uint8))
      write(root / 'imagenet4' / 'val' / wnid / f'v{j}.JPEG', np.full((50, 40, 3), level, np.uint8))
      annotations.append(f'val_{2 * i + j}.JPEG\t{wnid}\t0\t0\t63\t63\n')
  (tiny / 'val' / 'val_annotations.txt').write_text(''.join(annotations))
  (tiny / 'words.txt').write_text('n01\tone, the first\nn02\ttwo\nn99\tnone of these\n')
  return root


def levels(images):
  """The class that a grey says."""
  return (np.asarray(images).mean((1, 2, 3)) // 40).astype(int).tolist()


def test_tiny_imagenet_is_read_from_its_tree(trees):
  dataset = load('tiny_imagenet', trees)
  assert dataset.train_images.shape == (24, 64, 64, 3) and dataset.test_images.shape == (8, 64, 64, 3)
  assert levels(dataset.train_images) == dataset.train_labels.tolist() == np.repeat(range(4), 6).tolist()
  assert levels(dataset.test_images) == dataset.test_labels.tolist() == [2, 2, 0, 0, 3, 3, 1, 1]
  assert dataset.class_names == ('one', 'two', 'n03', 'n04')
  assert dataset.mean == sources.TINY_IMAGENET_MEAN and not dataset.streamed


def test_imagenet_stays_on_disk_and_is_decoded_by_rows(trees):
  dataset = load('imagenet', trees)
  assert dataset.streamed and dataset.image_shape == (224, 224, 3) and len(dataset.train_images) == 24
  assert dataset.class_names == tuple(sorted(WNIDS))
  rows = np.array([23, 0, 7])
  assert levels(dataset.train_images[rows]) == dataset.train_labels[rows].tolist() == [3, 0, 1]
  np.testing.assert_array_equal(load('imagenet', trees / 'imagenet4').test_labels, [0, 0, 1, 1, 2, 2, 3, 3])
  sequence = TaskSequence(dataset, 2, image_size=32)
  images, labels = sequence.test(1)
  assert sequence.image_shape == images.shape[1:] == (32, 32, 3)
  assert [sequence.order[label] for label in labels] == levels(images)


def test_imagenets_class_order_is_that_of_seed_1993_whatever_the_seed(trees):
  # The first hundred of a thousand, which every ImageNet-100 table since iCaRL's successors begins with.
  assert order_of_1993(1000)[:4] == (54, 7, 894, 512)
  dataset = load('imagenet', trees)
  assert TaskSequence(dataset, 2, seed=0).order == TaskSequence(dataset, 2, seed=1).order == list(order_of_1993(4))


def test_an_evaluation_sees_the_middle_at_eight_sevenths(tmp_path):
  # 128 by 64, size 28: the short side becomes 32, so the middle 28/32 of 64 rows and as many columns are seen.
  write(tmp_path / 'a.jpg', gradient(64, 128))
  image = np.asarray(Photographs.of([tmp_path / 'a.jpg'], 28))[0].astype(int)
  middles = (np.arange(28) + 0.5) / 28
  np.testing.assert_allclose(image[:, 14, 1], 255 * (0.5 + (middles - 0.5) * 28 / 32), atol=6)
  np.testing.assert_allclose(image[14, :, 0], 255 * (0.5 + (middles - 0.5) * 14 / 32), atol=6)


def test_crops_are_inceptions():
  boxes = np.array([crop_box(500, 375, draws) for draws in RANDOM.random((2000, ATTEMPTS, 4))])
  left, top, width, height = boxes.T
  assert (left >= 0).all() and (top >= 0).all() and (left + width <= 500).all() and (top + height <= 375).all()
  areas, ratios = width * height / (500 * 375), width / height
  assert 0.07 < areas.min() < 0.1 and 0.95 < areas.max() <= 1
  assert 0.74 < ratios.min() < 0.77 and 1.3 < ratios.max() < 1.35
  # An area a fits 4:3 when the ratio is at least 4a/3: always up to 9/16, then with probability -ln a / (2 ln 4/3). Of
  # a in [.08, 1] that leaves .4825 + .1978, so below .54 there are .46 / .6803 = .676 of the crops.
  np.testing.assert_allclose(np.mean(areas < 0.54), 0.676, atol=0.03)
  # Drawn by hand: area .08 + .5 * .92 = .54 of 100 x 100, ratio 3/4 * (16/9)**.5 = 1, so 73 x 73 with 27 to spare.
  draws = np.full((ATTEMPTS, 4), 0.5)
  assert crop_box(100, 100, draws) == (14, 14, 73, 73)
  # None fits a strip: its middle, no wider than four thirds of its height.
  assert crop_box(1000, 30, np.full((ATTEMPTS, 4), 0.999)) == (480, 0, 40, 30)


def test_a_crop_of_a_file_shows_its_box(tmp_path):
  write(tmp_path / 'a.jpg', gradient(400, 400))  # ten times what is asked for, so that it is decoded smaller
  photographs = Photographs.of([tmp_path / 'a.jpg'] * 3, 20)
  images = photographs.decode(np.random.default_rng(5))()
  again = photographs.decode(np.random.default_rng(5))()
  np.testing.assert_array_equal(images, again)
  for image, draws in zip(images, np.random.default_rng(5).random((3, ATTEMPTS, 4)), strict=True):
    left, top, width, height = crop_box(400, 400, draws)
    middles = (np.arange(20) + 0.5) / 20
    np.testing.assert_allclose(image[10, :, 0], 255 * (left + width * middles) / 400, atol=6)
    np.testing.assert_allclose(image[:, 10, 1], 255 * (top + height * middles) / 400, atol=6)


def test_a_file_that_breaks_off_is_named_when_it_is_met(tmp_path):
  # Its size can be read, so that no look at the tree finds it: the run meets it while it trains.
  write(tmp_path / 'whole.jpg', gradient(100, 100))
  (tmp_path / 'broken.jpg').write_bytes((tmp_path / 'whole.jpg').read_bytes()[:1000])
  photographs = Photographs.of([tmp_path / 'whole.jpg', tmp_path / 'broken.jpg'], 20)
  sentence = re.escape(f'{tmp_path / "broken.jpg"} cannot be read as an image: ') + '.+ Mend it or take it away.'
  for decode in (photographs.decode(), photographs.decode(np.random.default_rng(0)), photographs.__array__):
    with pytest.raises(UserError, match=sentence):
      decode()


def test_kept_images_join_those_on_disk(trees):
  photographs = load('imagenet', trees).train_images.resized(16)
  kept = np.full((2, 16, 16, 3), 100, np.uint8)
  both = join(kept, photographs[:3])
  assert len(both) == 5 and levels(both) == [2, 2, 0, 0, 0]
  np.testing.assert_array_equal(np.asarray(both[:2]), kept)  # not resized and cropped a second time
  np.testing.assert_array_equal(join(kept, kept), np.concatenate([kept, kept]))


def test_crops_within_the_step_show_a_part_of_the_image_within_the_bounds():
  size = 32
  images = jnp.asarray(np.repeat(gradient(size, size)[None], 256, 0), jnp.float32)
  crops = np.asarray(jax.jit(augment.resized_crop)(images, jax.random.key(0)))
  assert crops.shape == images.shape
  # From the slope of red along a row and green along a column: the crop's sides, in pixels of the image.
  width = (crops[:, 16, 24, 0] - crops[:, 16, 8, 0]) / 16 * size * size / 255
  height = (crops[:, 24, 16, 1] - crops[:, 8, 16, 1]) / 16 * size * size / 255
  areas, ratios = width * height / size**2, width / height
  assert 0.06 < areas.min() < 0.15 and 0.9 < areas.max() < 1.05
  assert 0.65 < ratios.min() < 0.85 and 1.2 < ratios.max() < 1.5
  assert crops.min() >= -0.01 and crops.max() <= 255.01


def fed(labels, images, total, steps_per_call=2, crop=True):
  return feeds.Streamed(
      images, labels, total, batch_size=4, steps_per_call=steps_per_call, address=(0, 1, 16), crop=crop
  )


def test_streamed_and_held_phases_visit_the_same_rows(trees):
  dataset = load('imagenet', trees)
  images, labels = dataset.train_images.resized(16), dataset.train_labels.astype(np.int32)
  held = feeds.Held(np.asarray(images), labels, 30, batch_size=4, steps_per_call=2, address=(0, 1, 16))
  streamed = fed(labels, images, 12, crop=False)
  assert held.steps_per_epoch == streamed.steps_per_epoch == 6
  for step, count in ((0, 2), (2, 2), (4, 2), (6, 1)):
    (a, its_a, rows_a), (b, its_b, rows_b) = held.at(step, count), streamed.at(step, count)
    np.testing.assert_array_equal(np.asarray(a)[rows_a[:count]], b[rows_b[:count]])
    np.testing.assert_array_equal(np.asarray(its_a)[rows_a[:count]], its_b[rows_b[:count]])
    assert rows_a.shape == rows_b.shape == (2, 4) and len(a) == 30 and len(b) == 8


def test_crops_depend_on_the_step_alone(trees):
  dataset = load('imagenet', trees)
  images, labels = dataset.train_images.resized(16), dataset.train_labels
  write(trees / 'gradient.jpg', gradient(60, 80))
  images = Photographs.of([trees / 'gradient.jpg'] * 24, 16)
  whole, resumed = fed(labels, images, 12, 1), fed(labels, images, 12, 1)
  seen = [whole.at(step, 1)[0] for step in range(8)]
  np.testing.assert_array_equal(resumed.at(7, 1)[0], seen[7])  # as after a stop
  assert not np.array_equal(seen[0], seen[6])  # the same place in the next epoch
  several = fed(labels, images, 12, 4).at(4, 4)[0]
  np.testing.assert_array_equal(several, np.concatenate(seen[4:]))


def test_decoding_is_ahead_by_two_batches_and_no_more(trees, monkeypatch):
  dataset = load('imagenet', trees)
  begun, decode = [], Photographs.decode

  def counted(self, generator=None):
    begun.append(len(self))
    return decode(self, generator)

  monkeypatch.setattr(Photographs, 'decode', counted)
  batches = fed(dataset.train_labels, dataset.train_images.resized(16), 5, 1)
  counts = []
  for step in range(5):
    batches.at(step, 1)
    counts.append(len(begun))
  assert counts == [3, 4, 5, 5, 5]  # never beyond the phase's last
  assert threading.active_count() < 100


def test_a_run_streams_learns_and_keeps_a_coreset(trees, tmp_path):
  # Four classes of one grey each: half are learned, then the others; the coreset joins what is decoded.
  settings = with_values(
      config.Config(),
      dict(
          method='rehearsal', dataset='imagenet', data_dir=str(trees), num_tasks=2, student='resnet8', image_size=16,
          epochs=2, decay_at=(), batch_size=4, memory=8, resized_crop=True, color_jitter=False, crop_padding=0,
      ),
  )
  results = train.run(settings, tmp_path / 'run')
  assert results.class_order == list(order_of_1993(4))
  assert results.memory_held['images'] == 8 and len(results.accuracy_after_task) == 2
  lines = [json.loads(line) for line in (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()]
  # 12 images a task in batches of 4; with as many of the coreset's, 24.
  assert [line['steps'] for line in lines if 'loss' in line] == [3, 3, 6, 6]
