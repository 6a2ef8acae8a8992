"""The synthetic images of a task, as a picture and as the numbers behind it."""

import dataclasses
from pathlib import Path

import numpy as np

from abd_jax import npz
from abd_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Synthetic:
  """Synthetic images made before a task, and what the teacher says of them.

  Attributes:
    task: its number, counted from 1.
    images: u8[N, H, W, C].
    names: the teacher's N names for them.
    confidences: f32[N], its confidence in each, in [0, 1].
  """

  task: int
  images: np.ndarray
  names: tuple[str, ...]
  confidences: np.ndarray

  def colours(self):
    """u8[N, H, W, 3]: as they are where they have three channels, else the mean of these as grey."""
    if self.images.shape[-1] == 3:
      return self.images
    return self.images.mean(axis=-1, keepdims=True).astype(np.uint8).repeat(3, axis=-1)

  def save(self, workdir):
    """Writes synthetic_task<n>.npz, and synthetic_task<n>.png to look at."""
    path = Path(workdir) / f'synthetic_task{self.task}.npz'
    partial = path.with_name(path.name + '.partial')
    with partial.open('wb') as file:
      np.savez_compressed(file, images=self.images, names=np.array(self.names), confidences=self.confidences)
    partial.replace(path)
    save_image_grid(path.with_suffix('.png'), self.colours(), self.names, self.confidences)


def load_synthetic(workdir):
  """A run's `Synthetic`s, in the order of their tasks.

  Raises:
    UserError: a file of theirs is damaged.
  """
  found = []
  for path in Path(workdir).glob('synthetic_task*.npz'):
    task, stored = path.stem[len('synthetic_task'):], npz.read(path, path, ('images', 'names', 'confidences'))
    images, names, confidences = stored.values()
    whole = images.dtype == np.uint8 and images.ndim == 4 and images.size and names.dtype.kind == 'U'
    whole = whole and confidences.dtype.kind == 'f' and names.shape == confidences.shape == images.shape[:1]
    if not whole or not task.isdecimal():
      raise UserError(f'{path} does not hold the synthetic images of a task, with a name and a confidence for each.')
    found.append(Synthetic(int(task), images, tuple(names.tolist()), confidences))
  return sorted(found, key=lambda synthetic: synthetic.task)


def save_image_grid(path, images_NHWC, names, confidences):
  """A picture of u8[N, H, W, 3] images, each under the teacher's name for it and its confidence in %."""
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  columns = 10
  rows = -(-len(images_NHWC) // columns)
  figure = Figure(figsize=(columns, 1.25 * rows))
  FigureCanvasAgg(figure)
  # All on one pair of axes, a unit a cell: axes of their own would take forty times as long to draw.
  axes = figure.add_axes((0, 0, 1, 1), xlim=(0, columns), ylim=(1.25 * rows, 0))
  axes.set_axis_off()
  for i, (image, name, confidence) in enumerate(zip(images_NHWC, names, confidences, strict=True)):
    row, column = divmod(i, columns)
    left, top = column + 0.04, 1.25 * row + 0.25
    axes.imshow(image, extent=(left, left + 0.92, top + 0.92, top), aspect='auto')
    axes.text(column + 0.5, top - 0.05, f'{name} {100 * confidence:.0f} %', fontsize=7, ha='center', parse_math=False)
  axes.set(xlim=(0, columns), ylim=(1.25 * rows, 0))
  figure.savefig(path, dpi=100)
