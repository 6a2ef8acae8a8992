"""Event files for TensorBoard, without TensorFlow: what metrics.jsonl says, and the synthetic images."""

import shutil
from pathlib import Path

import numpy as np

from abd_jax.errors import UserError
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
      from tensorboardX import SummaryWriter
    except ImportError:
      raise UserError(
          "--tensorboard needs a library: python -m pip install 'abd-jax[tensorboard]', or without the flag."
      ) from None
    self._workdir, self._open, self._writer = Path(workdir), SummaryWriter, None

  def rewind(self, lines):
    """Starts anew, with lines of metrics.jsonl, each a dict."""
    self.close()
    shutil.rmtree(self._workdir / 'tensorboard', ignore_errors=True)
    self._writer = self._open(str(self._workdir / 'tensorboard'), flush_secs=10)
    self._steps = StepCounter()
    for line in lines:
      self.add(line)

  def add(self, line):
    """One more line."""
    if 'phase' in line:
      step = self._steps.at(line)
      for name, value in figures_of(line).items():
        self._writer.add_scalar(f'{line["phase"]}/{name}', value, step)
    elif 'accuracy' in line:
      self._end_task(line)

  def _end_task(self, line):
    task = line['task']
    self._writer.add_scalar('accuracy/all_classes_seen', line['accuracy'], task)
    for i, value in enumerate(line['accuracy_by_task']):
      self._writer.add_scalar(f'accuracy/of_task_{i + 1}', value, task)
    for synthetic in load_synthetic(self._workdir):
      if synthetic.task == task:
        self._writer.add_scalar('inversion/confidence', float(np.mean(synthetic.confidences)), task)
        self._writer.add_image('synthetic_images', _grid(synthetic.colours()), task, dataformats='HWC')
    self._writer.flush()

  def close(self):
    if self._writer:
      self._writer.close()


def _grid(images_NHWC, columns=10):
  """u8[H', W', 3]: u8[N, H, W, 3] images in rows, small ones enlarged."""
  enlarged = max(1, 64 // images_NHWC.shape[1])
  images = images_NHWC.repeat(enlarged, axis=1).repeat(enlarged, axis=2)
  images = np.pad(images, ((0, -len(images) % columns), (1, 1), (1, 1), (0, 0)))
  _, height, width, channels = images.shape
  rows = images.reshape(-1, columns, height, width, channels).swapaxes(1, 2)
  return rows.reshape(-1, columns * width, channels)
