"""Results and models edited by hand, and the sentence that each is refused with."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from abd_jax import config, model_files, train
from abd_jax.data import load
from abd_jax.learner import Learner
from abd_jax.models import STUDENTS
from abd_jax.pictures import load_synthetic
from abd_jax.report import command as report
from abd_jax.report.upper_bounds import stored
from tests.test_bad_input import assert_is, refused

ROOT = Path(__file__).parent.parent
RESULTS = json.loads((ROOT / 'experiments' / 'results' / 'digits_5_abd_seed0.json').read_text())


# Results, by `python -m abd_jax.report`.


def changed(**changes):
  """The text of a results.json with other values, or without those that are None here."""
  kept = {key: value for key, value in (RESULTS | changes).items() if key not in changes or changes[key] is not ...}
  return json.dumps(kept)


TRIANGLE = 'must have 5 rows of 5, numbers from 0 to 100 with null above the diagonal'
EDITED = {
    'zero bytes': ('', '…'),
    'half of it': (changed()[:300], '…'),
    'a list': ('[]', 'it is not a JSON object'),
    'a thousand brackets': (100_000 * '[', '…'),
    'a field gone': (changed(seed=...), 'it has no seed'),
    'a field too many': (changed(rank=1), 'this version knows no rank'),
    'a number as text': (changed(final_accuracy='85.3'), 'final_accuracy must be a number from 0 to 100'),
    'more than all': (changed(average_accuracy=140), 'average_accuracy must be a number from 0 to 100'),
    'no number': (changed(forgetting=float('nan')), 'forgetting must be a number or null'),
    'no tasks': (changed(num_tasks=0), 'num_tasks must be a whole number above 0'),
    'true for one': (changed(top_k=True), 'top_k must be a whole number above 0'),
    'a seed below zero': (changed(seed=-1), 'seed must be a whole number'),
    'a name of two lines': (changed(dataset='dig\nits'), 'dataset must be a line of text'),
    'a class twice': (changed(class_order=[0, 0]), 'class_order must be a list of different classes'),
    'an uneven split': (
        changed(class_order=[*range(11)]),
        '11 classes cannot be split evenly over --num_tasks=5',
    ),
    'an uneven split after a first': (
        changed(config=RESULTS['config'] | {'first_task_classes': 9}),
        '10 classes cannot be split evenly over --num_tasks=5 after a first of --first_task_classes=9',
    ),
    'more tasks than there are': (
        changed(accuracy_after_task=6 * [50]),
        'accuracy_after_task has 6 tasks, more than the 5 of num_tasks',
    ),
    'no task': (changed(accuracy_after_task=[]), 'accuracy_after_task must be a list of numbers from 0 to 100'),
    'a row gone': (changed(accuracy_matrix=RESULTS['accuracy_matrix'][1:]), 'accuracy_matrix ' + TRIANGLE),
    'a figure before its task': (changed(accuracy_matrix_local=5 * [5 * [50]]), 'accuracy_matrix_local ' + TRIANGLE),
    'a task of words': (
        changed(by_task=[{'seconds': {'train': 'long'}, 'peak_memory_bytes': 1}]),
        'by_task must be a list of what each task took, seconds and peak_memory_bytes',
    ),
    'too few names': (changed(class_names=['a']), 'class_names has 1 names for the 10 classes of class_order'),
    'seconds without their sum': (changed(seconds={'train': 1}), 'seconds must be numbers by name, total among them'),
    'a rate that is text': (
        changed(steps_per_second={'train': 'fast'}),
        'steps_per_second must be numbers by name, train among them',
    ),
    'memory in words': (
        changed(memory_held='little'),
        'memory_held must be whole numbers by name, parameters and images among them',
    ),
    'an end that is another': (
        changed(final_accuracy=12.5), 'final_accuracy is 12.5, and the last of accuracy_after_task another',
    ),
    **{
        f'{name} of other flags': (
            changed(config=RESULTS['config'] | {name: value}), f'{name} is {RESULTS[name]}, and in config another',
        )
        for name, value in {'method': 'bic', 'student': 'resnet20', 'num_tasks': 2, 'seed': 7, 'top_k': 5}.items()
    },
    'flags that are none': (changed(config=[]), 'config must be values by flag'),
    'a flag of another kind': (changed(config={'epochs': 'many'}), 'epochs in config has a value of another kind'),
}


@pytest.mark.parametrize('content, reason', EDITED.values(), ids=EDITED)
def test_results_edited_by_hand(tmp_path, capsys, content, reason):
  path = tmp_path / 'results.json'
  path.write_text(content)
  assert report.main([str(path), '--format=csv']) == 2
  said = capsys.readouterr()
  assert_is(said.err, f'{path} is not a results.json: {reason}.\n')
  assert said.out == ''


@pytest.mark.parametrize('arguments, sentence', [
    (['{where}'], '{where} holds no results.json of a finished run.'),
    (['{where}/none'], '{where}/none cannot be read: No such file or directory.'),
    (['~no-such-user'], '~no-such-user is no path: Could not determine home directory.'),
    (['{results}', '{results}'], 'A seed of abd is given twice: the runs have seeds 0, 0.'),
    (
      ['{results}', '--metrics=luck'],
      '--metrics=luck: luck is not one of all, final_accuracy, omega, average_accuracy,'
      ' forgetting, backward_transfer, local_accuracy, parameters, image_values, seconds_per_batch, minutes.',
    ),
    (
      ['{results}', '--html={where}/none/a.html'],
      '{where}/none/a.html cannot be written: No such file or directory.',
    ),
])
def test_what_a_report_is_asked(tmp_path, capsys, arguments, sentence):
  results = ROOT / 'experiments' / 'results' / 'digits_5_abd_seed0.json'
  arguments = [argument.format(where=tmp_path, results=results) for argument in arguments]
  assert report.main(arguments) == 2
  assert capsys.readouterr().err == sentence.replace('{where}', str(tmp_path)) + '\n'


def test_pictures_edited_by_hand(tmp_path):
  np.savez(tmp_path / 'synthetic_task2.npz', images=np.zeros((2, 4, 4, 3)), names=['a', 'b'], confidences=[0.5, 0.5])
  refused(
    lambda: load_synthetic(tmp_path),
    '{where}/synthetic_task2.npz does not hold the synthetic images of a task, with a name and a confidence for each.',
    tmp_path,
  )


@pytest.mark.parametrize('changes, reason', [
    ({'method': 'base'}, 'its method is base'),
    ({'class_order': RESULTS['class_order'][::-1]},
     'it meets the classes in another order, that of seed 0 and --class_order=auto'),
    ({'student': 'resnet20'}, 'its student is resnet20, not resnet8'),
])
def test_upper_bounds_that_are_none(tmp_path, changes, reason):
  path = tmp_path / 'results.json'
  changes = {'method': 'upper_bound', **changes}
  told = {name: value for name, value in changes.items() if name in RESULTS['config']}
  path.write_text(changed(**changes, config=RESULTS['config'] | told))
  of_the_run = config.from_flagfile(ROOT / 'experiments' / 'flags' / 'digits.flags')
  values = {
    name: value
    for name, value in RESULTS['config'].items()
    if name in {leaf.name for leaf in config.leaves(of_the_run)}
  }
  values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
  run = config.with_values(of_the_run, values | {'upper_bound': str(path)})
  dataset = load('digits')
  refused(
    lambda: stored(run, dataset, train.tasks_for(run, dataset)),
    '--upper_bound={where}/results.json is no upper bound of abd with seed 0: ' + reason + '.',
    tmp_path,
  )


# Models.


def set_weights(where, **arrays):
  """Weights with others in their place, under their right checksum."""
  description, kept = model_files.read(where)
  model_files.write(where, {k: v for k, v in description.items() if k not in ('weights', 'sha256')}, kept | arrays)


DESCRIBED = 'is not a model of this version: '
MODELS = {
    'zero bytes': (lambda where, said: '', '/model.json does not describe a saved model (JSONDecodeError(…)).'),
    'a list': (lambda where, said: '[]', '/model.json does not describe a saved model (TypeError(…)).'),
    'brackets': (lambda where, said: 100_000 * '[', '/model.json does not describe a saved model (RecursionError(…)).'),
    'weights that are a number': (
        lambda where, said: {'weights': 5},
        '/model.json does not describe a saved model (TypeError(…)).',
    ),
    'weights elsewhere': (
        lambda where, said: {'weights': '../weights-0.npz'},
        '/model.json names ../weights-0.npz, which is no file of weights in its directory.',
    ),
    'weights that are a folder': (
        lambda where, said: {'weights': '..'},
        '/model.json names .., which is no file of weights in its directory.',
    ),
    'another checksum': (
        lambda where, said: {'sha256': 64 * '0'},
        '/{weights} is damaged: its SHA-256 is not the one in model.json.',
    ),
    'a byte of the weights': (
        lambda where, said: (where / said['weights']).write_bytes(bytes(100)),
        '/{weights} is damaged: its SHA-256 is not the one in model.json.',
    ),
    'no weights': (
        lambda where, said: (where / said['weights']).unlink(),
        '/{weights} cannot be read: No such file or directory.',
    ),
    'a later format': (
        lambda where, said: {'format': 9},
        ' was saved in format 9, and this version of abd_jax reads format 1.',
    ),
    'no student': (
        lambda where, said: {'config': {'image_size': 8}},
        f" {DESCRIBED}its description is not one (KeyError('student')).",
    ),
    'an unknown student': (
        lambda where, said: {'config': said['config'] | {'student': 'vgg'}},
        f' {DESCRIBED}--student=vgg is not one of {", ".join(STUDENTS)}; --plugin=FILE brings your own.',
    ),
    'another student': (
        lambda where, said: {'config': said['config'] | {'student': 'resnet20'}},
        f' {DESCRIBED}resnet20 has batch_stats/layer1_1/bn1/mean float32[16], and these weights have none.',
    ),
    'half an epoch': (
        lambda where, said: {'config': said['config'] | {'epochs': 2.5}},
        f' {DESCRIBED}--epochs=2.5 must be a whole number.',
    ),
    'a setting too many': (
        lambda where, said: {'config': said['config'] | {'luck': 1}},
        f' {DESCRIBED}A model has no setting called luck.',
    ),
    'a task that is a word': (
        lambda where, said: {'tasks': [['cat'], 'dog']},
        f" {DESCRIBED}Class names must be a list of names, not the one text 'dog'.",
    ),
    'a class twice': (
        lambda where, said: {'tasks': [['cat'], ['cat']]},
        f' {DESCRIBED}Class names must differ: cat comes twice.',
    ),
    'a class of two lines': (
        lambda where, said: {'tasks': [['cat', 'd\nog']]},
        f' {DESCRIBED}The class name "d\\nog" is not one line of Unicode text: rename it.',
    ),
    'more classes than the head has': (
        lambda where, said: {'tasks': [[str(i) for i in range(17)]]},
        f' {DESCRIBED}resnet8 has params/head/bias float32[32], and these weights have float32[16].',
    ),
    'no std': (
        lambda where, said: {'preprocessing': {'mean': [0.5]}},
        f" {DESCRIBED}its description is not one (KeyError('std')).",
    ),
    'a std of zero': (
        lambda where, said: {'preprocessing': {'mean': [0.5], 'std': [0]}},
        f' {DESCRIBED}Mean and std must be as many numbers as images have channels, each std above 0.',
    ),
    'a mean that is no number': (
        lambda where, said: {'preprocessing': {'mean': [float('nan')], 'std': [1]}},
        f' {DESCRIBED}Mean and std must be as many numbers as images have channels, each std above 0.',
    ),
    'weights that are not finite': (
        lambda where, said: set_weights(where, **{'params/head/bias': np.full(16, np.inf, np.float32)}),
        f' {DESCRIBED}The weights params/head/bias are not all finite numbers.',
    ),
    'weights of another type': (
        lambda where, said: set_weights(where, **{'params/head/bias': np.zeros(16)}),
        f' {DESCRIBED}resnet8 has params/head/bias float32[16], and these weights have float64[16].',
    ),
    'a covariance of other features': (
        lambda where, said: set_weights(where, **{'params/own/covariance': np.zeros((2, 2), np.float32)}),
        f' {DESCRIBED}resnet8 has params/own/covariance float32[64, 64], and these weights have float32[2, 2].',
    ),
    'no directory': (
        lambda where, said: shutil.rmtree(where),
        ' holds no saved model: model.json cannot be read (No such file or directory).',
    ),
}


@pytest.mark.parametrize('edit, sentence', MODELS.values(), ids=MODELS)
def test_models_edited_by_hand(saved_model, tmp_path, edit, sentence):
  where = tmp_path / 'model'
  shutil.copytree(saved_model, where)
  said = json.loads((where / 'model.json').read_text())
  edited = edit(where, said)
  if isinstance(edited, str | dict):
    (where / 'model.json').write_text(edited if isinstance(edited, str) else json.dumps(said | edited))
  refused(lambda: Learner.load(where), '{where}' + sentence.replace('{weights}', said['weights']), where)


def test_the_model_that_is_edited_is_whole(saved_model):
  assert Learner.load(saved_model).class_names == ('cat', 'dog')
