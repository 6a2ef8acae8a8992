"""Five tasks of digits on a schedule of a few steps: the loop, its accounting, its promises."""

import dataclasses
import json
from types import SimpleNamespace

import chex
import jax
import numpy as np
import pytest

from abd_jax import config, data, programs, task_loop, train
from abd_jax import results as results_lib
from abd_jax.checkpoint import Checkpoints
from abd_jax.config import with_values
from abd_jax.data import streams
from abd_jax.errors import UserError
from abd_jax.metrics_log import MetricsLog
from abd_jax.record import Record
from abd_jax.stopping import Preempted
from abd_jax.workdir import claim_workdir
from tests.small_runs import TINY, StopAfter, final_states


@pytest.fixture(scope='module')
def dataset():
  return data.load('digits')


@pytest.fixture(scope='module')
def whole_run(dataset, tmp_path_factory):
  """An uninterrupted run, with every teacher as it was frozen and as it was left."""
  workdir = tmp_path_factory.mktemp('whole')
  teachers, begin = [], task_loop.Run._begin

  def recording_begin(self, task):
    begin(self, task)
    if self._teacher is not None:
      teachers.append((self._teacher, jax.tree.map(np.array, self._teacher)))

  programs.clear()
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(task_loop.Run, '_begin', recording_begin)
    results = train.run(TINY, workdir, dataset)
  sequence = train.tasks_for(TINY, dataset)
  return workdir, results, teachers, programs.programs_for(TINY, sequence, dataset).traces()


def test_each_compiled_step_is_traced_exactly_once(whole_run):
  *_, traces = whole_run
  assert traces == {'learn: first_loss': 1, 'learn: abd_loss': 1, 'invert': 1, 'preview': 1, 'evaluate': 1}


def test_several_steps_a_call_come_to_the_same_and_are_traced_once(whole_run, dataset, tmp_path):
  # Nine steps an epoch in calls of 4, 4 and 1, three of the inversion in one call.
  several = with_values(TINY, dict(steps_per_call=4))
  programs.clear()
  train.run(several, tmp_path, dataset)
  assert set(programs.programs_for(several, train.tasks_for(several, dataset), dataset).traces().values()) == {1}
  logs = [(folder / 'metrics.jsonl').read_text() for folder in (tmp_path, whole_run[0])]
  lines = [[json.loads(line) for line in log.splitlines()] for log in logs]
  assert [line['at'] for line in lines[0]] == [line['at'] for line in lines[1]]
  assert [line.get('steps') for line in lines[0]] == [line.get('steps') for line in lines[1]]
  # Within a loop XLA fuses otherwise, which a whole run amplifies: the first task, before it does, is held tight.
  assert lines[0][0]['loss'] == pytest.approx(lines[1][0]['loss'], rel=1e-4)
  assert lines[0][1]['accuracy'] == pytest.approx(lines[1][1]['accuracy'], abs=3)


def test_the_teacher_is_bit_identical_after_the_task(whole_run):
  _, _, teachers, _ = whole_run
  assert len(teachers) == 4
  for teacher, as_frozen in teachers:
    chex.assert_trees_all_equal(teacher, as_frozen)


def test_seeds_are_of_several_runs(tmp_path):
  with pytest.raises(UserError, match='--seeds is of several runs, and this is one'):
    train.run(dataclasses.replace(TINY, seeds=(0, 1)), tmp_path)


def test_results_hold_what_is_promised(whole_run):
  workdir, results, *_ = whole_run
  stored = json.loads((workdir / 'results.json').read_text())
  assert stored == json.loads(json.dumps(dataclasses.asdict(results)))
  said = [stored[name] for name in ('method', 'dataset', 'student', 'num_tasks')]
  assert said == ['abd', 'digits', 'resnet8', 5]
  matrix = np.array(stored['accuracy_matrix'], float)
  assert matrix.shape == (5, 5) and np.array_equal(np.isnan(matrix), np.triu(np.ones((5, 5), bool), 1))
  assert stored['final_accuracy'] == stored['accuracy_after_task'][-1]
  assert stored['average_accuracy'] == pytest.approx(np.mean(stored['accuracy_after_task']))
  assert set(stored['seconds']) == {'inversion', 'train', 'eval', 'compile', 'total'}
  assert stored['seconds']['total'] > sum(v for k, v in stored['seconds'].items() if k != 'total') > 0
  # ResNet-8: the parameters of one classifier are kept between tasks, and no image.
  student = sum(leaf.size for leaf in jax.tree.leaves(final_states(workdir)['student']['params']))
  assert stored['memory_held'] == {'parameters': student, 'images': 0, 'image_values': 0}
  assert all(10**8 < task['memory_bytes'] <= task['peak_memory_bytes'] for task in stored['by_task'])
  lines = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
  for kind in ('train', 'inversion'):
    made = sum(line.get('steps', 0) for line in lines if (line.get('phase') == 'inversion') == (kind == 'inversion'))
    assert stored['steps_per_second'][kind] == pytest.approx(made / stored['seconds'][kind], rel=1e-2)
  assert stored['peak_memory_bytes'] >= stored['by_task'][-1]['peak_memory_bytes']
  assert stored['config']['epochs'] == 1 and stored['versions']['jax']


def test_the_workdir_holds_what_is_promised(whole_run):
  workdir, *_ = whole_run
  assert config.from_flagfile(workdir / 'flags.txt') == dataclasses.replace(TINY, workdir=str(workdir))
  assert {path.name for path in workdir.iterdir()} == {
      '.lock', 'flags.txt', 'metrics.jsonl', 'results.json', 'report.html', 'checkpoints',
      *(f'synthetic_task{n}.{kind}' for n in range(2, 6) for kind in ('png', 'npz')),
  }
  lines = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
  assert [line['at'] for line in lines] == sorted(line['at'] for line in lines)
  inversion = [line for line in lines if line.get('phase') == 'inversion']
  assert len(inversion) == 4 and {'content', 'diversity', 'statistics', 'smoothness', 'loss'} <= set(inversion[0])
  assert [line['accuracy'] for line in lines if 'accuracy' in line] == whole_run[1].accuracy_after_task


def test_a_finished_run_is_not_run_again_and_says_so(whole_run, dataset, monkeypatch, capsys):
  workdir, results, *_ = whole_run
  monkeypatch.setattr(task_loop.Run, '_learn', lambda *args: pytest.fail('it learned again'))
  assert train.run(TINY, workdir, dataset) == results
  assert capsys.readouterr().out == 'This run is finished: nothing is trained, its figures are those kept.\n'


@pytest.mark.parametrize('generator_init', ['fresh', 'warm'])
def test_stopped_runs_resume_bit_identically(whole_run, dataset, tmp_path, generator_init):
  tiny = with_values(TINY, {'generator_init': generator_init})
  workdir, results, *_ = whole_run
  if generator_init == 'warm':
    workdir = tmp_path / 'whole'
    results = train.run(tiny, workdir, dataset)
  # The signal is looked for after each step, phase and task, 8 and 3 of learning and inversion a task: these stops come
  # in the middle of both, after a phase, and after a task.
  for steps in (5, 5, 2, 7, 13, 1):
    with pytest.raises(Preempted) as stopped:
      train.run(tiny, tmp_path / 'stopped', dataset, StopAfter(steps))
    assert stopped.value.code == 75
  resumed = train.run(tiny, tmp_path / 'stopped', dataset)
  assert resumed.accuracy_matrix == results.accuracy_matrix
  chex.assert_trees_all_equal(final_states(tmp_path / 'stopped'), final_states(workdir))
  logs = [(folder / 'metrics.jsonl').read_text().splitlines() for folder in (tmp_path / 'stopped', workdir)]
  assert [json.loads(line)['at'] for line in logs[0]] == [json.loads(line)['at'] for line in logs[1]]


def test_a_run_stopped_after_a_task_goes_on_when_told_further(whole_run, dataset, tmp_path):
  workdir, results, *_ = whole_run
  part = train.run(with_values(TINY, {'stop_after_task': 2}), tmp_path, dataset)
  assert part.accuracy_matrix == [row[:2] for row in results.accuracy_matrix[:2]]
  rest = train.run(TINY, tmp_path, dataset)
  assert rest.accuracy_matrix == results.accuracy_matrix
  chex.assert_trees_all_equal(final_states(tmp_path), final_states(workdir))


@pytest.mark.parametrize('method', ['base', 'deep_inversion', 'upper_bound'])
def test_the_other_methods_run_with_one_trace_a_step(method, dataset, tmp_path):
  programs.clear()
  config_ = with_values(TINY, {'method': method, 'num_tasks': 5, 'stop_after_task': 3})
  results = train.run(config_, tmp_path, dataset)
  assert set(programs.programs_for(config_, train.tasks_for(config_, dataset), dataset).traces().values()) == {1}
  assert len(results.accuracy_matrix) == 3
  # What is kept: the upper bound alone keeps images, those of all tasks before the last.
  kept = train.tasks_for(config_, dataset).train_sizes()[:2].sum() if method == 'upper_bound' else 0
  assert results.memory_held['images'] == kept
  assert results.memory_held['image_values'] == kept * 64  # 8x8 pixels of one channel


def test_the_upper_bound_starts_anew_and_sees_everything(dataset, tmp_path, monkeypatch):
  config_ = with_values(TINY, {'method': 'upper_bound', 'num_tasks': 2, 'num_classes': 4, 'epochs': 4})
  seen = []
  load = streams.Streams.load

  def recording_load(self, *args):
    images, labels = load(self, *args)
    seen.append(sorted(set(labels.tolist())))
    return images, labels

  monkeypatch.setattr(streams.Streams, 'load', recording_load)
  train.run(config_, tmp_path, dataset)
  assert seen == [[0, 1], [0, 1, 2, 3]]


def test_a_task_without_test_images_is_refused(dataset):
  without = dataclasses.replace(dataset, test_images=dataset.test_images[:0], test_labels=dataset.test_labels[:0])
  with pytest.raises(UserError, match='digits has no test images of task 1.'):
    train.tasks_for(TINY, without)


# The workdir


def test_a_workdir_of_another_run_is_refused_by_the_flag_that_differs(tmp_path):
  claim_workdir(TINY, tmp_path)
  claim_workdir(TINY, tmp_path)
  with pytest.raises(UserError) as refusal:
    claim_workdir(with_values(TINY, {'epochs': 2}), tmp_path)
  assert str(refusal.value) == f'--workdir={tmp_path} holds a run with --epochs=1, not 2: choose another, or delete it.'


def test_a_workdir_in_use_is_refused_when_not_to_be_resumed(tmp_path):
  (tmp_path / 'thesis.txt').touch()
  with pytest.raises(UserError, match='is not empty and --resume=never'):
    claim_workdir(with_values(TINY, {'resume': 'never'}), tmp_path)


def test_a_workdir_that_cannot_be_written(tmp_path):
  (tmp_path / 'file').touch()
  with pytest.raises(UserError, match='cannot be written: '):
    claim_workdir(TINY, tmp_path / 'file' / 'run')


def test_half_a_line_of_figures_is_dropped(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  path.write_text('{"at": [0, 0, 8]}\n{"at": [1, 0, 3]}\n{"at": [1, 1, 8]}\n{"at": [1, ')
  MetricsLog(path).rewind((1, 1, 0))
  assert path.read_text() == '{"at": [0, 0, 8]}\n{"at": [1, 0, 3]}\n'


def test_checkpoints_give_back_what_was_saved_though_its_buffers_are_reused(tmp_path):
  kept = Checkpoints(tmp_path, 60)
  assert kept.restore(dict) is None and not kept.due
  step = jax.jit(lambda x: x + 1, donate_argnums=0)
  array = jax.numpy.arange(1000.0)
  kept.save({'a': array}, {'task': 1})
  step(array)
  kept.wait()
  kept.close()
  again = Checkpoints(tmp_path, 0)
  record, restored = again.restore(lambda record: {'a': jax.ShapeDtypeStruct((1000,), 'float32')})
  assert again.due and record == {'task': 1}
  chex.assert_trees_all_equal(restored['a'], np.arange(1000.0, dtype='f'))
  again.close()


# results.json


def test_results_of_a_version_with_fewer_flags_read_as_its_defaults(whole_run, tmp_path):
  workdir, results, *_ = whole_run
  older = json.loads((workdir / 'results.json').read_text())
  del older['config']['precision']
  (tmp_path / 'results.json').write_text(json.dumps(older))
  assert results_lib.Results.load(tmp_path) == results


@pytest.mark.parametrize('steps_per_call, saves, wanted', [
    (2, (), 'call 0, call 2, told 1, call 4, told 2, told 3'),
    (1, (), 'call 0, call 1, call 2, told 1, call 3, call 4, told 2, call 5, told 3'),
    (2, (1, 2), 'call 0, told 1, saved 2, call 2, told 2, saved 4, call 4, told 3'),
])
def test_an_epoch_is_told_of_behind_the_call_after_it_and_before_a_save(monkeypatch, steps_per_call, saves, wanted):
  happened = []
  told = lambda place, epoch, **figures: happened.append(f'told {epoch}') if figures['loss'] == epoch else None
  silent = SimpleNamespace(begin=lambda *args: None, step=lambda done: None, epoch=lambda done, figures: None)
  run = object.__new__(task_loop.Run)
  asked = iter(range(1, 100))
  for name, value in dict(
      _record=Record(data=''), _progress=silent, _log=SimpleNamespace(write=told), _plan=lambda task: [],
      _ahead=SimpleNamespace(check=lambda: None), _stop=SimpleNamespace(received=False),
      _save=lambda: happened.append(f'saved {run._record.step}'), _stop_if_asked=lambda: None,
  ).items():
    setattr(run, name, value)
  run._checkpoints = type('Due', (), {'due': property(lambda self: next(asked) in saves)})()

  def advance(step, count):
    happened.append(f'call {step}')
    return {'loss': np.full(steps_per_call, step // 2 + 1.0)}

  run._loop(0, 'learn', 6, 2, steps_per_call, advance)
  assert ', '.join(happened) == wanted
