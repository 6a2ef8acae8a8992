"""A folder of photographs today, another tomorrow, the first one deleted in between: is it still known?

  python experiments/two_days.py --workdir=days -- --image_size=8 --student=resnet8
  python experiments/two_days.py --dataset=cifar100 --data_dir=~/data --classes=20 --json=two_days.json -- --epochs=30

Every lesson and every question is a process of its own, `experiments/folder.py` with the flags after the --; nothing
goes from one to the next but the model's directory. What distils is held against fine-tuning (`--method=base`).
"""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

from absl import flags
from PIL import Image

from abd_jax import experiment
from abd_jax.data import load
from abd_jax.errors import UserError
from abd_jax.files import check_writable, write_whole
from abd_jax.results import versions
from abd_jax.written import path_of

METHODS = ('dream', 'abd', 'base')


def define_flags(flag_values=flags.FLAGS):
  where = {'flag_values': flag_values}
  flags.DEFINE_string('dataset', 'digits', 'whose images are written as files: digits, cifar100, or npz:PATH', **where)
  flags.DEFINE_string('data_dir', '~/data', 'where the data set is looked for', **where)
  flags.DEFINE_integer('classes', 10, 'of its first so many classes each day teaches one half', lower_bound=2, **where)
  flags.DEFINE_string('workdir', 'days', 'photographs and models; must not exist', **where)
  flags.DEFINE_string('json', '', 'where the figures go', **where)


def write_photographs(folder, images_NHWC, labels, class_names, classes):
  """A PNG file an image, in a folder a class."""
  for k in classes:
    (folder / class_names[k]).mkdir(parents=True)
    for i, image in enumerate(images_NHWC[labels == k]):
      Image.fromarray(image.squeeze()).save(folder / class_names[k] / f'{i:05d}.png')


def folder_py(model, *arguments):
  """What `experiments/folder.py` prints, in a process of its own."""
  command = [sys.executable, str(Path(__file__).with_name('folder.py')), f'--model={model}', *arguments]
  done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
  if done.returncode:
    raise UserError(f'folder.py {" ".join(arguments)} ended with status {done.returncode}.')
  return done.stdout


def accuracies(model, work, days):
  """{day: percent of its test images that are named rightly, all classes known competing}; of both, if two."""
  found, counts = {}, {}
  for day in days:
    said = re.search(r'([\d.]+) % of (\d+) images', folder_py(model, f'--test_dir={work / "test" / day}'))
    found[day], counts[day] = float(said[1]), int(said[2])
  if len(found) > 1:
    found['both'] = round(sum(found[day] * counts[day] for day in days) / sum(counts.values()), 2)
  return found


def run(lesson_flags, asked=flags.FLAGS):
  work = path_of(asked.workdir, '--workdir=')
  if work.exists():
    raise UserError(f'--workdir={work} exists: name a new one.')
  place = check_writable(asked.json, '--json=')
  data = load(asked.dataset, asked.data_dir)
  if asked.classes > data.num_classes:
    raise UserError(f'--classes={asked.classes} is more than the {data.num_classes} of {data.name}.')
  days = {'first': range(asked.classes // 2), 'second': range(asked.classes // 2, asked.classes)}
  for day, classes in days.items():
    write_photographs(work / 'test' / day, data.test_images, data.test_labels, data.class_names, classes)

  def teach(model, day, *more_flags):
    write_photographs(work / 'photos', data.train_images, data.train_labels, data.class_names, days[day])
    folder_py(model, f'--train_dir={work / "photos"}', *lesson_flags, *more_flags)
    shutil.rmtree(work / 'photos')

  teach(work / 'model', 'first')
  found = {'after the first day': accuracies(work / 'model', work, ['first'])}
  print(f'After the first day {found["after the first day"]} %; its images are deleted.', flush=True)
  for method in METHODS:
    model = shutil.copytree(work / 'model', work / method)
    teach(model, 'second', f'--method={method}')
    found[method] = accuracies(model, work, ['first', 'second'])
    print(f'{method}: after the second day {found[method]} %.', flush=True)
  if place:
    names = {day: [data.class_names[k] for k in classes] for day, classes in days.items()}
    record = {'dataset': data.name, 'classes': names, 'flags': lesson_flags, 'accuracy': found, 'versions': versions()}
    write_whole(place, json.dumps(record, indent=1) + '\n')


if __name__ == '__main__':
  experiment.start(define_flags, run)
