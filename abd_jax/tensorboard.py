"""Event files for TensorBoard, without TensorFlow: what metrics.jsonl says, and the synthetic images."""

import shutil
import time
from pathlib import Path

import numpy as np

from abd_jax.errors import UserError
from abd_jax.files import writing
from abd_jax.metrics_log import StepCounter, figures_of
from abd_jax.pictures import load_synthetic


class EventFiles:
  """A mirror of metrics.jsonl in <workdir>/tensorboard.

  It is made anew of the lines that are kept where a run is resumed or goes back, so that it has each figure once.
  Figures of a phase stand over the steps of the whole run, accuracies and images over tasks, counted from 1.
  """

  def __init__(self, workdir):
    """
    Raises:
      UserError: the library that writes event files is not installed.
    """
    try:
      import tensorboardX.event_file_writer  # noqa: F401
    except ImportError:
      raise UserError(
          "--tensorboard needs a library: python -m pip install 'abd-jax[tensorboard]', or without the flag."
      ) from None
    self._workdir, self._folder, self._writer = Path(workdir), Path(workdir) / 'tensorboard', None

  def rewind(self, lines):
    """Starts anew, with lines of metrics.jsonl, each a dict.

    Raises:
      UserError: the disk refuses it; so do the other methods.
    """
    # The file itself and not a SummaryWriter, whose thread dies of a full disk and lets the run wait for it for ever.
    from tensorboardX.event_file_writer import EventsWriter

    self.close()
    shutil.rmtree(self._folder, ignore_errors=True)
    with writing(self._folder):
      self._folder.mkdir()
      self._writer = EventsWriter(str(self._folder / 'events'))
    self._steps = StepCounter()
    for line in lines:
      self.add(line)

  def add(self, line):
    """One more line."""
    if 'phase' in line:
      step = self._steps.at(line)
      for name, value in figures_of(line).items():
        self._scalar(f'{line["phase"]}/{name}', value, step)
    elif 'accuracy' in line:
      self._end_task(line)
    with writing(self._folder):
      self._writer.flush()

  def _end_task(self, line):
    from tensorboardX.summary import image

    task = line['task']
    self._scalar('accuracy/all_classes_seen', line['accuracy'], task)
    for i, value in enumerate(line['accuracy_by_task']):
      self._scalar(f'accuracy/of_task_{i + 1}', value, task)
    for synthetic in load_synthetic(self._workdir):
      if synthetic.task == task:
        self._scalar('inversion/confidence', float(np.mean(synthetic.confidences)), task)
        self._write(image('synthetic_images', _grid(synthetic.colours()), dataformats='HWC'), task)

  def _scalar(self, name, value, step):
    from tensorboardX.summary import scalar

    self._write(scalar(name, value), step)

  def _write(self, summary, step):
    from tensorboardX.proto.event_pb2 import Event

    with writing(self._folder):
      self._writer.write_event(Event(summary=summary, step=step, wall_time=time.time()))

  def close(self):
    if self._writer:
      with writing(self._folder):
        self._writer.close()
      self._writer = None


def _grid(images_NHWC, columns=10):
  """u8[H', W', 3]: u8[N, H, W, 3] images in rows, small ones enlarged."""
  enlarged = max(1, 64 // images_NHWC.shape[1])
  images = images_NHWC.repeat(enlarged, axis=1).repeat(enlarged, axis=2)
  images = np.pad(images, ((0, -len(images) % columns), (1, 1), (1, 1), (0, 0)))
  _, height, width, channels = images.shape
  rows = images.reshape(-1, columns, height, width, channels).swapaxes(1, 2)
  return rows.reshape(-1, columns * width, channels)
