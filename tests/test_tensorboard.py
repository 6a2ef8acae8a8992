"""Event files read back by TensorBoard's own reader, of a whole run and of one that was stopped and resumed."""

import io
import json
import sys

import numpy as np
import pytest

from abd_jax import data, train
from abd_jax.config import with_values
from abd_jax.errors import UserError
from abd_jax.metrics_log import MetricsLog, StepCounter
from abd_jax.pictures import load_synthetic
from abd_jax.stopping import Preempted
from abd_jax.tensorboard import EventFiles
from tests.small_runs import TINY, StopAfter
from tests.test_faults import no_file_beyond

pytest.importorskip('tensorboardX')
pytest.importorskip('tensorboard')

SHORT = with_values(TINY, dict(num_classes=4, num_tasks=2, tensorboard=True))


def read(workdir):
  from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

  events = EventAccumulator(str(workdir / 'tensorboard'), size_guidance={'images': 0, 'scalars': 0})
  return events.Reload()


def scalars(events):
  return {name: [(event.step, event.value) for event in events.Scalars(name)] for name in events.Tags()['scalars']}


@pytest.fixture(scope='module')
def dataset():
  return data.load('digits')


@pytest.fixture(scope='module')
def run(dataset, tmp_path_factory):
  workdir = tmp_path_factory.mktemp('tensorboard')
  results = train.run(SHORT, workdir, dataset)
  return workdir, results


def test_scalars_are_those_of_the_log(run):
  workdir, results = run
  found = scalars(read(workdir))
  single = lambda values: pytest.approx(values, rel=1e-6)  # event files hold float32
  assert found['accuracy/all_classes_seen'] == [(n + 1, single(v)) for n, v in enumerate(results.accuracy_after_task)]
  assert found['accuracy/of_task_1'] == [(n + 1, single(row[0])) for n, row in enumerate(results.accuracy_matrix)]
  assert found['accuracy/of_task_2'] == [(2, single(results.accuracy_matrix[1][1]))]
  assert found['inversion/confidence'] == [(2, single(results.synthetic_confidence[0]))]
  lines = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
  learned, inverted, relearned = [line for line in lines if 'phase' in line]
  # Eight steps, three of the inversion, nine more: the steps of the whole run.
  steps = [learned['steps'], inverted['steps'], relearned['steps']]
  assert steps == [8, 3, 9]
  assert found['learn/loss'] == [(8, single(learned['loss'])), (20, single(relearned['loss']))]
  assert found['inversion/statistics'] == [(11, single(inverted['statistics']))]


def test_images_are_those_that_were_made(run):
  from PIL import Image

  workdir, _ = run
  [event] = read(workdir).Images('synthetic_images')
  grid = np.asarray(Image.open(io.BytesIO(event.encoded_image_string)))
  [synthetic] = load_synthetic(workdir)
  assert event.step == synthetic.task == 2
  # Forty images of 8x8 pixels, eight times as large, with a border of one: four rows of ten.
  assert grid.shape == (4 * 66, 10 * 66, 3)
  for i, image in enumerate(synthetic.images):
    row, column = divmod(i, 10)
    cell = grid[66 * row + 1 : 66 * row + 65, 66 * column + 1 : 66 * column + 65]
    np.testing.assert_array_equal(cell[::8, ::8], image.repeat(3, axis=-1))


def test_a_resumed_run_has_each_figure_once(run, dataset, tmp_path):
  for steps in (5, 13):  # in the middle of the first task, and of the second
    with pytest.raises(Preempted):
      train.run(SHORT, tmp_path, dataset, StopAfter(steps))
  train.run(SHORT, tmp_path, dataset)
  resumed, whole = read(tmp_path), read(run[0])
  assert {name: [step for step, _ in points] for name, points in scalars(resumed).items()} == {
      name: [step for step, _ in points] for name, points in scalars(whole).items()
  }
  assert scalars(resumed)['accuracy/all_classes_seen'] == scalars(whole)['accuracy/all_classes_seen']
  assert len(resumed.Images('synthetic_images')) == 1


def test_a_run_that_went_without_has_them_when_told_later(run, dataset, tmp_path):
  train.run(with_values(SHORT, {'tensorboard': False}), tmp_path, dataset)
  assert not (tmp_path / 'tensorboard').exists()
  train.run(SHORT, tmp_path, dataset)
  assert scalars(read(tmp_path)) == scalars(read(run[0]))


def test_what_a_run_goes_back_over_is_written_once(tmp_path):
  log = MetricsLog(tmp_path / 'metrics.jsonl', EventFiles(tmp_path))
  log.rewind((0, 0, 0))
  for step, loss in ((4, 1.0), (8, 100.0)):
    log.write((0, 0, step), task=1, phase='learn', epoch=step // 4, steps=4, loss=loss)
  log.rewind((0, 0, 4))
  log.write((0, 0, 4), rollback=1, reason='Task 1, learn, step 9: loss is nan.')
  log.write((0, 0, 8), task=1, phase='learn', epoch=2, steps=4, loss=0.5)
  log.close()
  assert scalars(read(tmp_path)) == {'learn/loss': [(4, 1.0), (8, 0.5)]}


def test_a_full_disk_is_a_sentence_and_nothing_is_waited_for(tmp_path):
  events = EventFiles(tmp_path)
  events.rewind([])
  with no_file_beyond(200), pytest.raises(UserError, match='tensorboard cannot be written: File too large.$'):
    for step in range(100):
      events.add({'at': [0, 0, step], 'task': 1, 'phase': 'learn', 'loss': 1.0})
  events.close()


def test_no_tensorflow_is_loaded(run):
  assert 'tensorflow' not in sys.modules


def test_a_missing_library_is_said_before_any_training(dataset, tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'tensorboardX', None)
  with pytest.raises(UserError, match=r"--tensorboard needs a library: python -m pip install 'abd-jax\[tensorboard\]'"):
    train.run(SHORT, tmp_path, dataset)
  assert not (tmp_path / 'metrics.jsonl').exists()


def test_steps_are_counted_over_phases_that_were_resumed():
  # Three phases of 8, 3 and 4 steps, the first in two epochs.
  counter = StepCounter()
  places = [(0, 0, 4), (0, 0, 8), (1, 0, 3), (1, 1, 4)]
  assert [counter.at({'at': place}) for place in places] == [4, 8, 11, 15]
