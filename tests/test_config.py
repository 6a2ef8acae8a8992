"""Flags and configs are one thing said in two ways."""

import dataclasses
import json

import numpy as np
import pytest
from absl import flags

from abd_jax import config
from abd_jax.config import Config
from abd_jax.errors import UserError
from abd_jax.methods import METHODS
from abd_jax.models import STUDENTS


def parsed(*arguments, defaults=Config()):  # noqa: B008
  values = flags.FlagValues()
  config.define_flags(defaults, values)
  values(['', *arguments])
  return config.config_from_flags(defaults, values)


def test_no_flags_give_the_defaults():
  assert parsed() == Config()
  mine = Config(dataset='cifar100', seeds=(1, 2), optimisation=config.Optimisation(epochs=7))
  assert parsed(defaults=mine) == mine


def test_every_leaf_is_a_flag_of_its_own_name():
  names = [leaf.name for leaf in config.leaves(Config())]
  assert len(names) == len(set(names))
  for name in ('method', 'epochs', 'crop_padding', 'inversion_steps', 'finetune_weight', 'checkpoint_seconds'):
    assert name in names


def test_flags_reach_their_groups():
  c = parsed(
      '--method=base', '--epochs=3', '--decay_at=1,2', '--nocolor_jitter', '--blur_sigma=2', '--finetune_classes=all'
  )
  assert (c.method, c.optimisation.epochs, c.optimisation.decay_at) == ('base', 3, (1, 2))
  assert (c.augmentation.color_jitter, c.inversion.blur_sigma, c.hparams.finetune_classes) == (False, 2.0, 'all')


def test_a_flagfile_replays_a_config(tmp_path):
  c = with_everything_changed()
  path = tmp_path / 'flags.txt'
  path.write_text(config.to_flagfile(c))
  assert config.from_flagfile(path) == c


@pytest.mark.parametrize('content', [b'--no_such_flag=1', b'epochs=3', b'\xff\xfe', b'--epochs=many'])
def test_what_is_no_flagfile_is_refused(tmp_path, content):
  path = tmp_path / 'flags.txt'
  path.write_bytes(content)
  with pytest.raises(UserError, match='is not a flagfile'):
    config.from_flagfile(path)


def with_everything_changed():
  changes = {}
  for leaf in config.leaves(Config()):
    choices = leaf.field.metadata['choices']
    if choices:
      changes[leaf.name] = next(choice for choice in choices if choice != leaf.value)
    elif isinstance(leaf.value, bool):
      changes[leaf.name] = not leaf.value
    elif isinstance(leaf.value, tuple):
      changes[leaf.name] = (3, 5)
    elif isinstance(leaf.value, str):
      changes[leaf.name] = leaf.value + ' X'
    else:
      changes[leaf.name] = leaf.value + 1
  return config.with_values(Config(), {**changes, 'stop_after_task': 2})


def test_values_of_numpy_and_lists_are_kept_as_those_of_flags():
  told = config.with_values(Config(), {
      'decay_at': [1, np.int32(2)], 'seeds': np.arange(2), 'seed': np.int64(1), 'learning_rate': np.float32(0.5),
      'flip': np.bool_(False),
  })
  meant = config.with_values(Config(), {
      'decay_at': (1, 2), 'seeds': (0, 1), 'seed': 1, 'learning_rate': 0.5, 'flip': False,
  })
  assert told == meant and hash(told) == hash(meant) and json.dumps(config.as_dict(told))
  assert config.Optimisation(decay_at=[1]).decay_at == (1,)


def test_what_makes_another_run_and_what_does_not():
  c = Config()
  same = dataclasses.replace(c, workdir='elsewhere', checkpoint_seconds=1.0, stop_after_task=2)
  assert config.differing_flag(c, same) is None
  assert config.incidental_flags() == {
      'checkpoint_seconds', 'compilation_cache', 'data_dir', 'debug_nans', 'distributed', 'on_nan', 'parallel',
      'resume', 'seeds', 'seeds_in', 'steps_per_call', 'stop_after_task', 'tensorboard', 'upper_bound',
      'verify_checksum', 'workdir',
  }
  assert config.differing_flag(c, config.with_values(c, {'learning_rate': 0.2})) == 'learning_rate'


@pytest.mark.parametrize('argument, sentence', [
    ('--method=abc', f'--method=abc is not one of {", ".join(METHODS)}; --plugin=FILE brings your own.'),
    ('--method=abd,abc', f'--method=abc is not one of {", ".join(METHODS)}; --plugin=FILE brings your own.'),
    ('--student=resnet9', f'--student=resnet9 is not one of {", ".join(STUDENTS)}; --plugin=FILE brings your own.'),
    ('--epochs=0', '--epochs=0 must be at least 1.'),
    ('--learning_rate=0', '--learning_rate=0.0 must be above 0.'),
    ('--learning_rate=nan', '--learning_rate=nan must be a finite number.'),
    ('--statistics_weight=inf', '--statistics_weight=inf must be a finite number.'),
    ('--seeds=1,1', '--seeds=1,1 names a seed twice.'),
    ('--seeds=0,x', '--seeds=0,x must be whole numbers with commas between them.'),
    ('--stop_after_task=9', '--stop_after_task=9 is more than --num_tasks=5.'),
    ('--resume=maybe', '--resume=maybe is not one of auto, never.'),
    ('--seed=-1', '--seed=-1 must be at least 0.'),
])
def test_values_out_of_range(argument, sentence):
  with pytest.raises(UserError) as refusal:
    parsed(argument)
  assert str(refusal.value) == sentence


def test_a_classifier_of_ones_own_can_be_named(monkeypatch):
  monkeypatch.setitem(STUDENTS, 'mine', STUDENTS['resnet8'])
  assert parsed('--student=mine').student == 'mine'
