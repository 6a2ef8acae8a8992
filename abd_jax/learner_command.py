"""A learner at the prompt: classes from folders of photographs, predictions of files."""

import contextlib
import json
import shutil
import sys
from pathlib import Path

import numpy as np
from absl import flags

from abd_jax import config as config_lib
from abd_jax import export, model_files
from abd_jax.classifier import DEFAULTS, setting_names
from abd_jax.data import folder
from abd_jax.data.arrays import checked_names
from abd_jax.errors import AnotherRun, UserError
from abd_jax.files import held, writing
from abd_jax.learner import Learner
from abd_jax.written import path_of, shown

_LOCK = '.lesson'
# What a lesson has made before it has its flags.txt.
_FIRST_FILES = {_LOCK, '.lock', '.writable', 'flags.txt.partial'}


def define_flags(flag_values=flags.FLAGS):
  """The flags of the script, and those of a model's settings."""
  script = {'module_name': sys.argv[0], 'flag_values': flag_values}  # --help lists the flags of its name
  flags.DEFINE_string('model', '', 'the directory of the model: created by the first call, extended later', **script)
  flags.DEFINE_string('train_dir', '', 'new classes: a folder of images for each in it, named after it', **script)
  flags.DEFINE_string('test_dir', '', 'the same, to say how often the model is right', **script)
  flags.DEFINE_string('predict', '', 'an image or a folder of images to name; more may follow it', **script)
  flags.DEFINE_string('export', '', 'a directory for a program that predicts without abd_jax', **script)
  flags.DEFINE_boolean('skip_unreadable', False, 'go on without files that cannot be read; they are listed', **script)
  flags.DEFINE_boolean('json', False, 'predictions as a line of JSON an image', **script)
  config_lib.define_flags(DEFAULTS, flag_values, names=setting_names())


def run(arguments, asked=flags.FLAGS):
  """Does what the flags ask for: learns, evaluates, predicts, exports, in this order.

  Args:
    arguments: of the command line, those that are no flags.
    asked: the parsed flags.

  Raises:
    UserError: what the user can mend, before anything is learned.
    Preempted: SIGTERM came; the same command goes on.
  """
  _check(asked, arguments)
  asked.model = str(path_of(asked.model, '--model='))
  settings = config_lib.given_on_command_line(DEFAULTS, asked)
  if not model_files.exists(asked.model) and not asked.train_dir:
    raise UserError(f'--model={asked.model} holds no model yet: the first call needs --train_dir.')
  # Standard output is for the predictions.
  with contextlib.redirect_stdout(sys.stderr) if asked.json else contextlib.nullcontext():
    with _lesson(asked) as lesson:
      model = Learner.load(asked.model, **settings) if model_files.exists(asked.model) else Learner(**settings)
      # All that is asked for is looked for before anything is learned.
      new = folder.class_files(asked.train_dir) if asked.train_dir else {}
      names = checked_names(new, model.class_names) if new else ()
      tests = folder.class_files(asked.test_dir) if asked.test_dir else {}
      if unknown := [name for name in tests if name not in (*model.class_names, *names)]:
        raise UserError(f'{Path(asked.test_dir) / unknown[0]} is of a class that {asked.model} does not know.')
      pictures = [file for path in (asked.predict, *arguments) if path for file in folder.files_below(path)]
      if asked.export:
        export.check_writable(asked.export)
      if new:
        _learn(model, new, names, lesson, asked)
    if tests:
      _evaluate(model, tests, asked)
  if pictures:
    _predict(model, pictures, asked)
  if asked.export:
    model.export(asked.export)


@contextlib.contextmanager
def _lesson(asked):
  """The folder of this call's lesson, no other process's meanwhile; None without --train_dir.

  It lies beside the model, which holds no images: it has pictures of what the generator makes.

  Raises:
    UserError: another process teaches this model, or the folder holds something else.
  """
  if not asked.train_dir:
    yield None
    return
  lesson = Path(asked.model).resolve()
  lesson = lesson.with_name(f'{lesson.name}.lesson')
  with writing(lesson):
    lesson.mkdir(parents=True, exist_ok=True)
    begun = _is_begun(lesson)
  images = path_of(asked.train_dir, '--train_dir=').resolve()
  if lesson in (images, *images.parents) or (not begun and {entry.name for entry in lesson.iterdir()} - _FIRST_FILES):
    raise UserError(f'{lesson} is where lessons of {asked.model} are kept, and holds something else: move it away.')
  with held(lesson / _LOCK, f'--model={asked.model} is in use by another lesson: wait for its end.'):
    try:
      yield lesson
    except BaseException:
      if not _is_begun(lesson):
        shutil.rmtree(lesson)
      raise
    shutil.rmtree(lesson)


def _is_begun(lesson):
  """Whether the folder has a lesson that was stopped."""
  flags_file = lesson / 'flags.txt'
  return flags_file.exists() and config_lib.from_flagfile(flags_file).dataset.startswith('images:')


def _check(asked, arguments):
  if not asked.model:
    raise UserError('--model must name the directory of the model.')
  if not (asked.train_dir or asked.test_dir or asked.predict or asked.export):
    raise UserError('There is nothing to do: give --train_dir, --test_dir, --predict or --export.')
  if arguments and not asked.predict:
    raise UserError(f'Unexpected argument {arguments[0]}: flags are written --name=value.')


def _read(files, model, asked):
  """(images, readable) of the files.

  Raises:
    UserError: some cannot be read and may not be skipped, or none can.
  """
  images, readable, unreadable = folder.read_files(files, model.classifier.config.image_size)
  for path, reason in unreadable:
    print(f'{shown(path)} cannot be read: {shown(reason)}.', file=sys.stderr)
  if unreadable and not asked.skip_unreadable:
    raise UserError(f'{len(unreadable)} of {len(files)} files cannot be read: remove them, or pass --skip_unreadable.')
  if not len(images):
    raise UserError('No file can be read.')
  return images, readable


def _read_classes(path, names, files, model, asked):
  """(images, class names of theirs) of {class name: files}.

  Raises:
    UserError: as `_read`, or no file of a class can be read.
  """
  images, readable = _read([file for name in names for file in files[name]], model, asked)
  labels = np.array([name for name in names for _ in files[name]])[readable]
  gone = [name for name in names if name not in labels]
  if gone:
    raise UserError(f'{Path(path) / gone[0]} has no file that can be read: a class needs at least one image.')
  return images, labels


def _learn(model, files, names, lesson, asked):
  model_files.check_writable(asked.model)
  images, labels = _read_classes(asked.train_dir, names, files, model, asked)
  print(f'{asked.train_dir}: {len(images)} images of {len(names)} new classes, {", ".join(names)}.', flush=True)
  try:
    model.learn(images, labels, names, workdir=lesson)
  except AnotherRun:
    raise UserError(
        f'{lesson} holds a lesson of other images or settings that was stopped: give its command again to go on with'
        ' it, or delete the folder.'
    ) from None
  model.save(asked.model)
  print(f'{asked.model} knows {len(model.class_names)} classes now, and needs {asked.train_dir} no more.', flush=True)


def _evaluate(model, files, asked):
  found = model.evaluate(*_read_classes(asked.test_dir, list(files), files, model, asked))
  for name, accuracy in found.accuracy_by_class.items():
    print(f'{name}: {accuracy:.1f} %')
  print(f'{found.accuracy:.2f} % of {found.num_images} images are named rightly.', flush=True)


def _predict(model, files, asked):
  images, readable = _read(files, model, asked)
  files = [str(file) for file, kept in zip(files, readable, strict=True) if kept]
  found = model.predict(images)
  if asked.json:
    for file, name, row in zip(files, found.names, found.probabilities.tolist(), strict=True):
      said = {'file': file, 'class': name, 'probabilities': dict(zip(model.class_names, row, strict=True))}
      print(json.dumps(said))
    return
  rows = [('file', 'class', 'probability')]
  best = found.probabilities.max(axis=1)
  rows += [(shown(f), n, f'{p:.3f}') for f, n, p in zip(files, found.names, best, strict=True)]
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  for row in rows:
    print('  '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
