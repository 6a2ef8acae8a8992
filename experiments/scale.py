"""Does a task take longer, or more memory, when many came before it? Runs of 5, 20 and 50 tasks on small random images.

  python experiments/scale.py --json=scale.json

What may grow is the evaluation, which asks for all classes seen, and the head, which has them all from the start. Each
run has a process of its own, whose memory is read from /proc, which Linux has.
"""

import gc
import json
import multiprocessing
import os
import statistics
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
from absl import flags

from abd_jax import config, experiment, results, train
from abd_jax.data import Dataset

JSON = flags.DEFINE_string('json', '', 'where the figures go')
TASKS = flags.DEFINE_list('tasks', ['5', '20', '50'], 'how many tasks the runs have, of two classes each')


def random_dataset(num_classes, train_per_class=64, test_per_class=8):
  rng = np.random.default_rng(0)
  images, labels = [], []
  for count in (train_per_class, test_per_class):
    images.append(rng.integers(0, 256, (num_classes * count, 8, 8, 1), np.uint8))
    labels.append(np.repeat(np.arange(num_classes, dtype=np.int32), count))
  names = tuple(map(str, range(num_classes)))
  return Dataset('random', images[0], labels[0], images[1], labels[1], names, (0.5,), (0.25,))


def resident_memory_bytes():
  """What this process holds now, without what nobody refers to any more."""
  gc.collect()
  return int(Path('/proc/self/statm').read_text().split()[1]) * os.sysconf('SC_PAGE_SIZE')


def measure(settings, num_tasks):
  """What the tasks of a run take: the median of five after the second, in which all is compiled, and of the last.

  `resident_memory_bytes` is what the process holds after each task, all that came before the run included.
  """
  settings = config.with_values(settings, {'num_tasks': num_tasks})
  # At the end of a task a run notes the most that was ever held, where compilation hides whatever grows below it.
  now = mock.patch.object(results, 'peak_memory_bytes', resident_memory_bytes)
  with tempfile.TemporaryDirectory() as workdir, now:
    run = train.run(settings, workdir, random_dataset(2 * num_tasks))
  found = {'tasks': num_tasks, 'parameters': run.memory_held['parameters']}
  early, late = run.by_task[2:7], run.by_task[-min(5, num_tasks - 2):]
  for kind in ('inversion', 'train', 'eval'):
    for name, part in (('early', early), ('late', late)):
      found[f'{kind}_seconds_{name}'] = statistics.median(task['seconds'][kind] for task in part)
  found['resident_memory_bytes'] = [task['peak_memory_bytes'] for task in run.by_task]
  return found


def main(settings):
  found = []
  for count in map(int, TASKS.value):
    with multiprocessing.get_context('spawn').Pool(1) as process:
      found.append(process.apply(measure, (settings, count)))
    print(json.dumps(found[-1]), flush=True)
  if JSON.value:
    said = {'versions': results.versions(), 'config': config.as_dict(settings), 'runs': found}
    Path(JSON.value).write_text(json.dumps(said, indent=1) + '\n')


if __name__ == '__main__':
  small = dict(student='resnet8', batch_size=32, epochs=10, decay_at=(), inversion_steps=40, color_jitter=False)
  experiment.launch(config.with_values(config.Config(), small), main)
