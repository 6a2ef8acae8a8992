"""Which old images are kept, and what each phase reads of them, on examples small enough to choose by hand."""

import dataclasses
import itertools

import numpy as np
import pytest

from abd_jax.data import TaskSequence, coreset
from abd_jax.data.sources import Dataset
from abd_jax.data.streams import Streams
from abd_jax.errors import UserError
from abd_jax.methods import METHODS
from abd_jax.methods.interface import Reads


@pytest.mark.parametrize('memory, seen, expected', [
    (2000, 20, [100] * 20),
    (10, 4, [2, 2, 3, 3]),  # the remainder of two goes to the two newest
    (11, 4, [2, 3, 3, 3]),
    (3, 3, [1, 1, 1]),
])
def test_memory_is_shared_evenly_and_the_remainder_goes_to_the_newest(memory, seen, expected):
  np.testing.assert_array_equal(coreset.quotas(memory, seen), expected)


@pytest.mark.parametrize('memory', [7, 10, 23, 100])
def test_no_class_is_ever_given_more_than_it_kept_before(memory):
  # A class ranked once may only be cut: its quota must not grow as classes come.
  before = coreset.quotas(memory, 2)
  for seen in range(3, 8):
    after = coreset.quotas(memory, seen)
    assert np.all(after[: len(before)] <= before) and after.sum() == memory
    before = after


# On a line, with mean 3: distances 3, 2, 1, 0, 6 from 0, 1, 2, 3, 9.
LINE = np.array([[0.0], [1.0], [2.0], [3.0], [9.0]])


def test_nearest_mean_takes_the_nearest_first():
  np.testing.assert_array_equal(coreset.nearest_mean(LINE, 4), [3, 2, 1, 0])


def test_the_mean_is_of_each_feature_by_itself():
  # Means 1 and 12: the third is at (1, 12) itself, the others 2, 6 and 6 away.
  plane = np.array([[3.0, 12.0], [0.0, 6.0], [1.0, 12.0], [0.0, 18.0]])
  assert coreset.nearest_mean(plane, 2).tolist() == [2, 0] and coreset.herding(plane, 1).tolist() == [2]


def test_herding_keeps_the_mean_of_the_chosen_near_the_mean_of_all():
  # Mean 3. First 3 itself. Then means with 3 are 1.5, 2, 2.5, -, 6: nearest is 2.5, of 2. Then (3 + 2 + x) / 3 is
  # 5/3, 2, -, -, 14/3: distances 4/3, 1, 5/3, so 1. Then (6 + x) / 4 is 1.5 or 3.75: 9, which the nearest mean would
  # take last.
  np.testing.assert_array_equal(coreset.herding(LINE, 4), [3, 2, 1, 4])


def test_herding_never_takes_an_image_twice_and_each_prefix_is_the_shorter_choice():
  features = np.random.default_rng(0).normal(size=(30, 5))
  chosen = coreset.herding(features, 30)
  assert sorted(chosen) == list(range(30))
  np.testing.assert_array_equal(coreset.herding(features, 7), chosen[:7])


def test_a_coreset_refuses_more_than_it_may_hold():
  images = np.ones((3, 2, 2, 1), np.uint8)
  full = coreset.filled(4, images, np.array([0, 0, 1], np.int32))
  assert len(full) == 3 and full.images.shape == (4, 2, 2, 1)
  np.testing.assert_array_equal(full.kept[1], [0, 0, 1])
  with pytest.raises(ValueError, match='3 images for a coreset of 2'):
    coreset.filled(2, images, np.zeros(3, np.int32))


def test_what_is_held_out_is_as_much_of_every_class():
  # A coreset of 25: a tenth, rounded down, is 2; over two past classes 1 each, the first of each and of each new class.
  labels = np.array([0] * 13 + [1] * 12 + [3, 2, 2, 3])
  np.testing.assert_array_equal(np.flatnonzero(coreset.held_out(labels, 25, 2, 0.1)), [0, 13, 25, 26])
  # Over three past classes 2 / 3 rounds to none.
  assert not coreset.held_out(labels, 25, 3, 0.1).any()
  # A fifth is 5, 2 for each of two past classes: of classes 2 and 3, which have two images, one is left to learn from.
  np.testing.assert_array_equal(np.flatnonzero(coreset.held_out(labels, 25, 2, 0.2)), [0, 1, 13, 14, 25, 26])


def tasks_of(per_class=20, num_tasks=3, classes=6):
  """A data set whose images are filled with their own number."""
  labels = np.tile(np.arange(classes), per_class)
  images = np.broadcast_to(np.arange(len(labels), dtype=np.uint8)[:, None, None, None], (len(labels), 8, 8, 1))
  names = tuple(map(str, range(classes)))
  return TaskSequence(Dataset('made', images, labels, images, labels, names, (0.5,), (0.5,)), num_tasks)


def numbers(images):
  return images[:, 0, 0, 0].tolist()


def brightness(images):
  """Features for ranking: the number of the image itself."""
  return images[:, 0, 0, :1].astype(float)


def coresets_of(method, memory, seed=0):
  """(streams, the coreset as it is before each task and at the end)."""
  tasks = tasks_of()
  streams = Streams(tasks, METHODS[method], memory, seed)
  kept = [coreset.empty(streams.memory, tasks.image_shape)]
  for task in range(tasks.num_tasks):
    kept.append(streams.choose(task, kept[-1], brightness))
  return tasks, streams, kept


@pytest.mark.parametrize('method', ['rehearsal', 'e2e', 'bic'])
def test_a_coreset_holds_what_it_may_of_every_class_seen(method):
  tasks, _, kept = coresets_of(method, memory=23)
  for task, held in enumerate(kept[1:]):
    images, labels = held.kept
    counts = np.bincount(labels, minlength=2 * task + 2)
    # Of 23: 12 and 11 would be 11, 12; then 5, 6, 6, 6; then 3, 4, 4, 4, 4, 4.
    assert counts.tolist() == [[11, 12], [5, 6, 6, 6], [3, 4, 4, 4, 4, 4]][task]
    assert len(held) == 23 and len(set(numbers(images))) == 23
    for number, label in zip(numbers(images), labels, strict=True):
      assert tasks.order[label] == number % 6  # each image still has its label


def test_a_random_coreset_is_drawn_anew_and_a_ranked_one_is_cut():
  for method, cut in (('rehearsal', False), ('bic', True), ('e2e', True)):
    _, _, kept = coresets_of(method, memory=24)
    after = [{k: numbers(c.kept[0][c.kept[1] == k]) for k in range(6)} for c in kept[1:]]
    firsts = [
        before[k][: len(now[k])] == now[k] for before, now in itertools.pairwise(after) for k in before if before[k]
    ]
    assert all(firsts) if cut else not any(firsts)
  # Another seed draws others; the same seed the same.
  drawn = [numbers(coresets_of('rehearsal', 24, seed)[2][-1].kept[0]) for seed in (0, 0, 1)]
  assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize('method, rank', [('bic', coreset.herding), ('e2e', coreset.nearest_mean)])
def test_the_images_of_a_new_class_are_kept_in_the_order_of_their_rank(method, rank):
  tasks, _, kept = coresets_of(method, memory=24)
  for task, held in enumerate(kept[1:]):
    images, labels = held.kept
    new, new_labels = tasks.train(task)
    for k in tasks.classes(task):
      of_class, found = new[new_labels == k], numbers(images[labels == k])
      assert found == numbers(of_class[rank(brightness(of_class), len(found))]) != numbers(of_class)[: len(found)]


def test_more_memory_than_images_keeps_them_all():
  _, streams, kept = coresets_of('e2e', memory=2000)
  assert streams.memory == 120 and sorted(numbers(kept[-1].kept[0])) == list(range(120))


def test_streams():
  # 20 images a class, two classes a task, a coreset of 60. Of old images rehearsal reads as many as of new ones, e2e
  # each once, and bic those that it does not hold out.
  for method in ('rehearsal', 'e2e', 'bic'):
    _, streams, kept = coresets_of(method, memory=60)
    # 40 kept after task 1: a tenth is 4, 2 a class, of 2 classes old and 2 new. 60 after task 2: 6, over 4 classes 1
    # each, of 6 classes.
    expected_held = {'bic': {1: 8, 2: 6}}.get(method, {})
    for task in (1, 2):
      images, labels = streams.load(task, Reads.MIXED, kept[task])
      old = len(kept[task])
      new = 40
      count = {'rehearsal': new + new, 'e2e': old + new, 'bic': old + new - expected_held.get(task, 0)}[method]
      assert len(images) == len(labels) == count <= streams.capacity(Reads.MIXED)
      assert set(labels.tolist()) == set(range(2 * task + 2))
      if method == 'rehearsal':  # drawn from the coreset, with replacement, the same whenever it is asked for
        drawn = numbers(images)[:new]
        assert set(drawn) <= set(numbers(kept[task].kept[0])) and len(set(drawn)) < new
        assert numbers(streams.load(task, Reads.MIXED, kept[task])[0]) == numbers(images)
      if method == 'bic':
        out, out_labels = streams.load(task, Reads.HOLD_OUT, kept[task])
        assert len(out) == expected_held[task] and len(set(np.bincount(out_labels))) == 1
        assert not set(numbers(out)) & set(numbers(images))
    first, _ = streams.load(0, Reads.MIXED, kept[0])
    assert len(first) == 40  # nothing to mix in
    assert numbers(streams.load(2, Reads.CORESET, kept[3])[0]) == numbers(kept[3].kept[0])


@pytest.mark.parametrize('method, memory, batch, sentence', [
    ('base', 60, 50, '--batch_size=50 is larger than task 1, which has 40 images.'),
    ('rehearsal', 5, 8, '--memory=5 cannot hold an image of each of 6 classes, which --method=rehearsal keeps.'),
    ('bic', 20, 8, 'The 0 images that the phase "bias" of --method=bic reads in task 3 make no batch of --batch_size=8:'
     ' raise --memory, or lower --batch_size.'),
])
def test_what_makes_no_batch_is_refused(method, memory, batch, sentence):
  with pytest.raises(UserError) as refusal:
    Streams(tasks_of(), METHODS[method], memory, 0).check(batch)
  assert str(refusal.value).startswith(sentence)


def test_a_phase_of_old_images_alone_has_batches_of_what_it_finds():
  # A tenth of the 40 images of task 1 over 2 past classes: 2 of each of 4 classes. Of 60 over 4: one of each of 6.
  streams = Streams(tasks_of(), METHODS['bic'], 60, 0)
  learn, bias = METHODS['bic'].later
  assert [size for _, phase, size in streams.sizes if phase is bias] == [8, 6]
  assert streams.batch_size(bias, 8) == 6 and streams.batch_size(bias, 8, devices=4) == 4
  assert streams.batch_size(bias, 4) == 4 and streams.batch_size(learn, 8) == 8
  streams.check(8)


@pytest.mark.parametrize('name', METHODS)
def test_every_phase_has_room_for_what_it_reads(name):
  tasks, method = tasks_of(), METHODS[name]
  streams = Streams(tasks, method, 60, 0)
  held = coreset.empty(streams.memory, tasks.image_shape)
  for task in range(3):
    after = streams.choose(task, held, brightness) if method.coreset else held
    for phase in method.phases(task):
      images, labels = streams.load(task, phase.reads, after if phase.reads is Reads.CORESET else held)
      assert len(images) == len(labels) <= streams.capacity(phase.reads) <= streams.longest()
      # A method that declares no coreset is given no old image.
      past = 0 if method.coreset or method.cumulative else 2 * task
      assert labels.min() >= past
    held = after


def test_unequal_classes_give_what_they_have():
  tasks = tasks_of(per_class=4)
  streams = Streams(tasks, dataclasses.replace(METHODS['e2e']), 12, 0)
  after = streams.choose(0, coreset.empty(streams.memory, tasks.image_shape), brightness)
  assert len(after) == 8  # 6 a class allowed, 4 there
