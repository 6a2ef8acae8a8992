"""What users get wrong at the prompt, and the sentence that each is refused with before any training."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from abd_jax import config, train
from abd_jax.data import load
from abd_jax.errors import UserError
from abd_jax.methods import METHODS
from abd_jax.written import path_of
from tests.test_config import parsed
from tests.test_data import coloured

ROOT = Path(__file__).parent.parent


def refused(act, sentence, where):
  """Holds what `act` is refused with to the sentence.

  In it {where} stands for a folder, and … for what Python, NumPy or Pillow say, each version in other words.
  """
  with pytest.raises(UserError) as refusal:
    act()
  assert_is(str(refusal.value), sentence.replace('{where}', str(where)))


def assert_is(said, sentence):
  before, _, after = sentence.partition('…')
  said_between = said[len(before) : len(said) - len(after)] if '…' in sentence else ''
  assert said == before + said_between + after


# Flags.


@pytest.mark.parametrize('arguments, sentence', [
    # Types that a flag's parser lets pass.
    (['--decay_at=1,two'], '--decay_at=1,two must be whole numbers with commas between them.'),
    (['--decay_at=1.5'], '--decay_at=1.5 must be whole numbers with commas between them.'),
    (['--workdir=two\nlines'], '--workdir=two\\nlines must be one line of Unicode text.'),
    (['--data_dir=caf\udce9'], '--data_dir=caf\\udce9 must be one line of Unicode text.'),
    # Ranges.
    (['--seed=2147483648'], '--seed=2147483648 must be below 2147483648.'),
    (['--inversion_steps=1' + 30 * '0'], f'--inversion_steps=1{30 * "0"} must be below 2147483648.'),
    (['--seeds=0,-1'], '--seeds=0,-1 must be at least 0.'),
    (['--seeds=3000000000'], '--seeds=3000000000 must be below 2147483648.'),
    (['--decay_at=-1'], '--decay_at=-1 must be at least 0.'),
    (['--memory=0'], '--memory=0 must be at least 1.'),
    (['--blur_sigma=0'], '--blur_sigma=0.0 must be above 0.'),
    (['--checkpoint_seconds=-inf'], '--checkpoint_seconds=-inf must be a finite number.'),
    (['--kd_temperature=1e999'], '--kd_temperature=inf must be a finite number.'),
    (['--generator=large'], '--generator=large is not one of auto, cifar, tiny, imagenet.'),
    (['--method='], f'--method= is not one of {", ".join(METHODS)}; --plugin=FILE brings your own.'),
    # Contradictions.
    (['--method=abd,base,abd'], '--method=abd,base,abd names a method twice.'),
    (['--stop_after_task=3', '--num_tasks=2'], '--stop_after_task=3 is more than --num_tasks=2.'),
])
def test_flags(arguments, sentence):
  refused(lambda: parsed(*arguments), sentence, '')


@pytest.mark.parametrize('values, sentence', [
    ({'epochs': 2.5}, '--epochs=2.5 must be a whole number.'),
    ({'epochs': True}, '--epochs=True must be a whole number.'),
    ({'learning_rate': 'fast'}, '--learning_rate=fast must be a number.'),
    ({'flip': 1}, '--flip=1 must be true or false.'),
    ({'workdir': Path('runs')}, '--workdir=runs must be a text.'),
    ({'seeds': (0, 'one')}, "--seeds=(0, 'one') must be whole numbers."),
    ({'epoch': 3}, 'There is no flag called epoch.'),
])
def test_values_from_python(values, sentence):
  refused(lambda: config.with_values(config.Config(), values), sentence, '')


@pytest.mark.parametrize('values, sentence', [
    ({'method': 'abd,base'}, '--method=abd,base: a run has one method.'),
    ({'num_tasks': 4}, '10 classes cannot be split evenly over --num_tasks=4.'),
    ({'num_classes': 11}, '--num_classes=11 is more than the 10 classes of coloured.'),
    ({'image_size': 16}, '--image_size=16 is larger than the 4x4 images of coloured.'),
    (
      {'image_size': 3},
      '--generator=cifar: images of 3x3 cannot be generated: both sides must be multiples of 4. Choose'
      ' another, or another --image_size.',
    ),
    ({'batch_size': 128}, '--batch_size=128 is larger than task 1, which has 6 images.'),
    (
      {'method': 'rehearsal', 'memory': 9},
      '--memory=9 cannot hold an image of each of 10 classes, which --method=rehearsal keeps.',
    ),
    ({'top_k': 10}, '--top_k=10 of 10 classes: every answer would be right.'),
])
def test_flags_that_the_data_set_contradicts(values, sentence):
  values = {'batch_size': 2, 'num_tasks': 5, 'student': 'resnet8', **values}
  refused(lambda: train.tasks_for(config.with_values(config.Config(), values), coloured(10)), sentence, '')


@pytest.mark.parametrize('values, sentence', [
    ({'batch_size': 6}, '--batch_size=6 cannot be split evenly over 4 devices.'),
    (
      {'batch_size': 4, 'parallel': 'pmap', 'inversion_batch_size': 6},
      '--inversion_batch_size=6 cannot be split evenly over 4 devices.',
    ),
])
def test_batches_that_several_devices_cannot_share(values, sentence, monkeypatch):
  monkeypatch.setattr(train, 'devices', lambda: 4 * [None])
  values = {'num_tasks': 5, 'student': 'resnet8', **values}
  refused(lambda: train.tasks_for(config.with_values(config.Config(), values), coloured(10)), sentence, '')


def test_a_class_without_images_to_learn_it_from():
  dataset = coloured()
  kept = dataset.train_labels != 2
  dataset = dataclasses.replace(
      dataset, train_images=dataset.train_images[kept], train_labels=dataset.train_labels[kept]
  )
  values = config.with_values(config.Config(), {'batch_size': 2, 'num_tasks': 2, 'student': 'resnet8'})
  refused(
    lambda: train.tasks_for(values, dataset),
    'coloured has no training image of c: leave that class out, or add some.', '',
  )


def test_a_method_that_does_not_dream_takes_images_of_any_size():
  values = {'method': 'base', 'image_size': 3, 'batch_size': 2, 'num_tasks': 5, 'student': 'resnet8'}
  train.tasks_for(config.with_values(config.Config(), values), coloured(10))


@pytest.mark.parametrize('lines, sentence', [
    (
      {'a': b'--flagfile={where}/b\n', 'b': b'# round\n  --flagfile={where}/a\n'},
      'The flagfile {where}/a includes itself: take that line out of {where}/b.',
    ),
    ({'a': b'--flagfile={where}/b\n'}, 'The flagfile {where}/b cannot be read: No such file or directory.'),
    ({}, 'The flagfile {where}/a cannot be read: No such file or directory.'),
    ({'a': b'--workdir=caf\xe9\n'}, '{where}/a is not a flagfile: it is not UTF-8 text.'),
    ({'a': b'--epochs=3\nepochs=4\n'}, '{where}/a is not a flagfile: epochs=4 is not written --name=value.'),
    (
      {'a': b'\xef\xbb\xbf--epochs=3\n'},
      '{where}/a begins with a byte order mark: save it as UTF-8 without one.',
    ),
    ({'a': b'--flagfile={where}\n'}, 'The flagfile {where} cannot be read: Is a directory.'),
])
def test_flagfiles(tmp_path, lines, sentence):
  for name, content in lines.items():
    (tmp_path / name).write_bytes(content.replace(b'{where}', os.fsencode(tmp_path)))
  refused(lambda: config.from_flagfile(tmp_path / 'a'), sentence, tmp_path)


# Data sets: where they are said to be.


@pytest.mark.parametrize('name, data_dir, sentence', [
    ('mnist', '{where}', '--dataset=mnist is not one of digits, cifar100, tiny_imagenet, imagenet, npz:PATH.'),
    ('npz:', '{where}', 'There is no file ..'),
    ('npz:{where}', '{where}', 'There is no file {where}.'),
    ('npz:a\0b', '{where}', '--dataset=npz:a\\x00b is no path: embedded null byte.'),
    ('npz:' + 300 * 'x', '{where}', f'--dataset=npz:{300 * "x"} cannot be looked at: File name too long.'),
    ('imagenet', '~no-such-user/data', '--data_dir=~no-such-user/data is no path: Could not determine home directory.'),
    (
      'imagenet',
      '{where}/none',
      '--data_dir={where}/none has no ImageNet: expected {where}/none/imagenet/train and'
      ' {where}/none/imagenet/val, with a folder of JPEG files for each wnid.',
    ),
])
def test_places(tmp_path, name, data_dir, sentence):
  refused(
    lambda: load(name.replace('{where}', str(tmp_path)), data_dir.replace('{where}', str(tmp_path))), sentence, tmp_path
  )


def test_a_folder_that_may_not_be_looked_into(tmp_path, monkeypatch):
  monkeypatch.setattr(os, 'access', lambda path, mode: False)  # root may look into all of them
  sentence = '--data_dir={where} cannot be looked at: Permission denied.'
  refused(lambda: path_of(tmp_path, '--data_dir='), sentence, tmp_path)
  assert path_of(tmp_path / 'none') == tmp_path / 'none'


# At the prompt: all of it in one process that starts once.

PROMPT = """
import contextlib, io, json, runpy, sys
from absl import flags
for command in json.loads(sys.argv[1]):
  sys.argv = command
  said, wrong, status = io.StringIO(), io.StringIO(), None
  with contextlib.redirect_stdout(said), contextlib.redirect_stderr(wrong):
    try:
      runpy.run_path(command[0], run_name='__main__')
    except SystemExit as end:
      status = end.code
  print(json.dumps([status, said.getvalue(), wrong.getvalue()]))
  for flag in list(flags.FLAGS.flags_by_module_dict().get(command[0], [])):
    delattr(flags.FLAGS, flag.name)
"""


def test_the_prompt_says_the_sentence_alone_and_ends_with_status_2(tmp_path):
  (tmp_path / 'loop.flags').write_text(f'--flagfile={tmp_path}/loop.flags\n')
  (tmp_path / 'latin.flags').write_bytes(b'--workdir=caf\xe9\n')
  digits, photographs, reports = 'experiments/digits.py', 'experiments/folder.py', 'abd_jax/report'
  cases = {
    (
      digits,
      f'--flagfile={tmp_path}/loop.flags',
    ): f'The flagfile {tmp_path}/loop.flags includes itself: take that line out of {tmp_path}/loop.flags.',
    (
      digits,
      f'--flagfile={tmp_path}/latin.flags',
    ): f'{tmp_path}/latin.flags is not a flagfile: it is not UTF-8 text.',
    (
      digits,
      '--flagfile',
      f'{tmp_path}/none.flags',
    ): f'The flagfile {tmp_path}/none.flags cannot be read: No such file or directory.',
    (digits, '--epochs=many'): "flag --epochs=many: …",
    (digits, '--epoch_count=3'): "Unknown command line flag 'epoch_count'",
    (digits, 'epochs=3'): 'Unexpected argument epochs=3: flags are written --name=value.',
    (digits, '--method=abc'): f'--method=abc is not one of {", ".join(METHODS)}; --plugin=FILE brings your own.',
    (digits, '--num_tasks=3'): '10 classes cannot be split evenly over --num_tasks=3.',
    (digits, '--batch_size=1000'): '--batch_size=1000 is larger than task …',
    (digits, '--dataset=npz:nowhere.npz'): 'There is no file nowhere.npz.',
    (digits, '--workdir=/proc/run'): '--workdir=/proc/run/abd/seed0 cannot be written: No such file or directory.',
    (digits, '--epochs'): 'Missing value for flag --epochs',
    (
      digits,
      '--workdir=~no-such-user/runs',
    ): '--workdir=~no-such-user/runs is no path: Could not determine home directory.',
    (digits, '--workdir=' + 300 * 'x'): f'--workdir={300 * "x"} cannot be looked at: File name too long.',
    (digits, '--distributed=here,2,2'): '--distributed=here,2,2 is neither auto nor HOST:PORT,COUNT,INDEX.',
    (
      photographs,
      f'--model={tmp_path}/model',
      '--predict=a.jpg',
    ): f'--model={tmp_path}/model holds no model yet: the first call needs --train_dir.',
    (reports, str(tmp_path)): f'{tmp_path} holds no results.json of a finished run.',
    ('experiments/faults.py', '--stages='): '--stages names nothing to do.',
  }
  command = [sys.executable, '-c', PROMPT, json.dumps(list(cases))]
  process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
  assert process.returncode == 0, process.stderr
  said = [json.loads(line) for line in process.stdout.splitlines()]
  for (status, printed, refusal), sentence in zip(said, cases.values(), strict=True):
    assert_is(refusal, sentence + '\n')
    assert (status, printed) == (2, '')
  assert {entry.name for entry in tmp_path.iterdir()} == {'loop.flags', 'latin.flags'}
