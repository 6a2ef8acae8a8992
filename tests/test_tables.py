"""Tables from committed runs and from figures small enough to average by eye."""

import csv
import dataclasses
import io
from pathlib import Path

import pytest

from abd_jax import config
from abd_jax.errors import UserError
from abd_jax.methods import METHODS, interface
from abd_jax.report import command as report
from abd_jax.report import published, tables, upper_bounds
from abd_jax.results import Results, runs_below

ROOT = Path(__file__).parent.parent
RUN = dataclasses.replace(Results.load(ROOT / 'experiments' / 'results' / 'digits_5_abd_seed0.json'), omega=None)


def run_of(method='abd', seed=0, final=40.0, flags=(), **changes):
  """A run on the digits, of which the tests say what matters."""
  flags = {**RUN.config, 'ablate': 'none', 'method': method, 'seed': seed, **dict(flags)}
  return dataclasses.replace(RUN, method=method, seed=seed, final_accuracy=final, config=flags, **changes)


def full_cifar100(method, seed=0, num_tasks=10, **changes):
  """A run on the whole of the paper's first benchmark."""
  flags = {**config.as_dict(config.Config()), 'dataset': 'cifar100', 'num_tasks': num_tasks}
  changes = {'accuracy_after_task': [50.0] * num_tasks, **changes}
  return run_of(
      method, seed, flags=flags, dataset='cifar100', num_tasks=num_tasks, student='resnet32',
      class_order=list(range(100)), **changes,
  )


def lines_of(runs, metrics=tables.SHORT):
  return tables.markdown(tables.collate(runs), metrics).strip().splitlines()


def test_seeds_are_averaged_and_switches_named():
  runs = [run_of(seed=0, final=40.0), run_of(seed=1, final=44.0), run_of(flags={'finetune_classes': 'all'}, final=30.0)]
  head, _, *rows = lines_of(runs, ('final_accuracy',))[2:]
  assert head == '| method | replay | seeds | final accuracy A_N % |'
  # 40 and 44: mean 42, population standard deviation 2.
  assert rows == ['| abd | synthetic | 0, 1 | 42.0 ± 2.0 |', '| abd (--finetune_classes=all) | synthetic | 0 | 30.0 |']


def test_the_row_that_departs_from_the_others_is_the_one_named():
  runs = [run_of('dgr', flags={'weight_decay': 0.0}), run_of('base'), run_of('abd')]
  assert [line.split(' | ')[0] for line in lines_of(runs)[4:]] == ['| base', '| dgr (--weight_decay=0.0)', '| abd']


def test_the_room_of_a_coreset_is_no_matter_to_a_method_without_one():
  runs = [run_of('abd', 0), run_of('abd', 1, flags={'memory': 400}), run_of('e2e', flags={'memory': 400})]
  assert [row.label for row in tables.collate(runs)[0].rows] == ['abd', 'e2e (--memory=400)']


def test_rows_stand_in_the_papers_order_ablations_in_table_3s():
  ablated = [run_of(flags={'ablate': name}) for name in ('finetune', 'balance')]
  runs = [run_of('mine'), run_of('bic'), *ablated, run_of('rehearsal'), run_of('abd'), run_of('lwf')]
  labels = [line.split(' | ')[0].removeprefix('| ') for line in lines_of(runs)[4:]]
  assert labels == ['lwf', 'abd', 'abd (--ablate=balance)', 'abd (--ablate=finetune)', 'rehearsal', 'bic', 'mine']


def test_what_a_method_of_ones_own_replays_is_seen_from_its_phases(monkeypatch):
  dreaming = interface.Method('mine', (), (interface.Phase('learn', None, dreams=True),))
  monkeypatch.setitem(METHODS, 'mine', dreaming)
  monkeypatch.setitem(METHODS, 'plain', interface.Method('plain', (), ()))
  cells = [line.split(' | ')[:2] for line in lines_of([run_of('mine'), run_of('plain'), run_of('unknown')])[4:]]
  assert sorted(cells) == [['| mine', 'synthetic'], ['| plain', 'none'], ['| unknown', '']]


def test_a_cell_of_fewer_seeds_than_its_row_says_so():
  runs = [run_of(seed=0, omega=0.5, forgetting=7.0), run_of(seed=1, forgetting=7.0)]
  assert lines_of(runs, ('omega', 'forgetting'))[-1] == '| abd | synthetic | 0, 1 | 50.0 (n=1) | 7.0 ± 0.0 |'


def test_splits_are_told_apart_and_written_once():
  half_first = {**RUN.config, 'first_task_classes': 6}
  runs = [run_of(), run_of('base', flags=half_first), run_of('abd', flags={**half_first, 'class_order': 'labels'})]
  lines = lines_of(runs, ('final_accuracy',))
  assert [line for line in lines if line.startswith('**')] == [
      '**digits**, 10 classes in 5 tasks, resnet8', '**digits**, 10 classes in 5 tasks, the first of 6, resnet8',
  ]
  assert [line.split(' | ')[0] for line in lines[-2:]] == ['| base', '| abd (--class_order=labels)']
  rows = csv.DictReader(io.StringIO(tables.to_csv(tables.collate(runs))))
  assert [row['first_task_classes'] for row in rows] == ['2', '6', '6']
  evenly = run_of('base', flags={'first_task_classes': 2})  # as many as any
  assert [row.label for row in tables.collate([run_of(), evenly])[0].rows] == ['base', 'abd']


def test_the_published_figures_stand_beside_and_what_is_missing_is_blank():
  lines = lines_of([full_cifar100('abd', seed) for seed in (0, 1)], ('final_accuracy', 'omega'))
  assert lines[0] == '**cifar100**, 100 classes in 10 tasks, resnet32'
  assert lines[2] == '| method | replay | seeds | final accuracy A_N % | published | published |'
  assert '| abd | synthetic | 0, 1 | 40.0 ± 0.0 | 33.7 ± 1.2 | 69.6 |' in lines
  assert '| bic | coreset |  |  | 45.9 ± 1.8 | 81.9 |' in lines
  assert '| R-DFCIL (resnet32_icarl, 160 + 40 epochs) | synthetic |  |  | 42.4 ± 0.7 |  |' in lines


@pytest.mark.parametrize('changes', [
    {'config': {**config.as_dict(config.Config()), 'image_size': 16}},
    {'num_tasks': 4}, {'method': 'rdfcil', 'student': 'resnet32_icarl'}, {'accuracy_after_task': [50.0] * 3},
    {'top_k': 5}, {'config': {**RUN.config, 'epochs': 30}},
    {
        'num_tasks': 5, 'accuracy_after_task': [50.0] * 5,
        'config': {**config.as_dict(config.Config()), 'first_task_classes': 60},
    },
])
def test_no_published_figure_stands_beside_another_benchmark(changes):
  run = dataclasses.replace(full_cifar100('abd'), **changes)
  text = tables.markdown(tables.collate([run]))
  assert 'published' not in text and text.count('\n| ') == 2


@pytest.mark.parametrize('method, flagfile, reported', [
    ('rdfcil', 'rdfcil', '42.4 ± 0.7'), ('abd', 'abd_rerun', '36.2 ± 0.9'),
])
def test_what_r_dfcil_s_authors_report_stands_beside_their_student_and_schedule(
    method, flagfile, reported, monkeypatch
):
  monkeypatch.chdir(ROOT)  # where flagfiles name one another from
  told = config.as_dict(config.from_flagfile(f'experiments/flags/cifar100_10_{flagfile}.flags'))
  theirs = dataclasses.replace(full_cifar100(method), student='resnet32_icarl', config=told)
  assert f'| {method} | synthetic | 0 | 40.0 | {reported} |' in lines_of([theirs], ('final_accuracy',))


@pytest.mark.parametrize('method, flags, beside', [
    ('rehearsal', {}, True),
    ('rehearsal', {'memory': 20}, False),
    ('rehearsal', {'learning_rate': 1.0}, False),
    ('rehearsal', {'batch_size': 8}, False),
    ('rehearsal', {'decay_at': [200]}, False),
    ('rehearsal', {'inversion_steps': 400, 'inversion': 'images'}, True),  # of which it has none
    ('abd', {'inversion_steps': 400}, False),
    ('abd', {'memory': 20, 'second_epochs': 3, 'precision': 'bfloat16', 'head_bias': 'auto'}, True),
    ('abd', {'inversion': 'images'}, False),
    # As the authors' code has it, where the paper does not.
    ('abd', {'inversion_steps': 10000, 'generator_init': 'warm', 'finetune_classes': 'all'}, True),
    ('abd', {'bn_double_update': True, 'local_ce_weight': False, 'color_jitter': False}, True),
    ('abd', {'finetune_weight': 0.5}, False),
])
def test_a_published_figure_stands_beside_runs_of_its_flags_alone(method, flags, beside):
  run = full_cifar100(method)
  [table] = tables.collate([dataclasses.replace(run, config={**run.config, **flags})])
  rows = [row for row in table.rows if row.method == method]
  assert [('final_accuracy' in row.published, len(row.runs)) for row in rows] == (
      [(True, 1)] if beside else [(False, 1), (True, 0)]
  )


def test_a_second_phase_s_flags_are_idle_where_there_is_none():
  runs = [run_of('abd'), run_of('e2e')] + [run_of(name, flags={'second_epochs': 3}) for name in ('lwf', 'bic')]
  assert [row.label for row in tables.collate(runs)[0].rows] == ['lwf', 'abd', 'e2e', 'bic (--second_epochs=3)']


def test_an_ablation_has_no_published_figure():
  ablated = full_cifar100('abd')
  ablated = dataclasses.replace(ablated, config={**ablated.config, 'ablate': 'balance'})
  rows = {row.label: row for row in tables.collate([full_cifar100('abd'), ablated])[0].rows if row.runs}
  assert rows['abd'].published['final_accuracy'].mean == 33.7
  assert rows['abd (--ablate=balance)'].published == {}


def test_a_seed_given_twice_is_refused():
  with pytest.raises(UserError, match='A seed of abd is given twice: the runs have seeds 0, 0.'):
    tables.collate([RUN, RUN])


@pytest.mark.parametrize('dataset, tasks, name, final', [
    ('cifar100', 20, 'REMIX', 33.1), ('cifar100', 5, 'rehearsal', 34.0), ('cifar100', 10, 'lwf_mc', 17.1),
    ('tiny_imagenet', 5, published.RDFCIL, 35.3), ('tiny_imagenet', 20, published.RDFCIL, 24.9),
    ('tiny_imagenet', 10, published.RERUN, 23.2),
])
def test_figures_that_no_flagfile_repeats_are_the_literatures(dataset, tasks, name, final):
  classes = {'cifar100': 100, 'tiny_imagenet': 200}[dataset]
  assert published.FIGURES[published.Benchmark(dataset, classes, tasks)][name].final_accuracy == final


def test_flags_in_another_order_make_no_other_row():
  other = run_of(seed=1)
  backwards = dataclasses.replace(other, config=dict(reversed(other.config.items())))
  assert len(lines_of([run_of(seed=0), backwards], ('final_accuracy',))[4:]) == 1


def test_a_table_of_runs_that_stopped_early_says_so():
  early = dataclasses.replace(full_cifar100('abd'), accuracy_after_task=[50.0] * 3)
  assert lines_of([early])[0] == '**cifar100**, 100 classes in 10 tasks, resnet32, stopped after task 3'


def test_top_5_is_never_averaged_with_top_1():
  assert [t.setting() for t in tables.collate([RUN, dataclasses.replace(RUN, top_k=5)])] == [
      '10 classes in 5 tasks, resnet8', '10 classes in 5 tasks, resnet8, top-5'
  ]


def test_latex_is_escaped():
  runs = [run_of('lwf_mc', 0, 40.0), run_of('lwf_mc', 1, 44.0), run_of('abd', 0, 41.0)]
  runs.append(run_of('abd', flags={'local_ce_weight': False}))
  text = tables.latex(tables.collate(runs), ('final_accuracy',))
  assert r'method & replay & seeds & final accuracy $A_N$ \% \\' in text
  assert r'lwf\_mc & none & 0, 1 & 42.0 $\pm$ 2.0 \\' in text
  assert r'abd (-{}-local\_ce\_weight=false) & synthetic & 0 & 40.0 \\' in text
  assert text.index(r'\toprule') < text.index(r'\midrule') < text.index(r'\bottomrule')


def test_what_a_name_holds_is_one_cell_and_set_as_it_is():
  runs = [run_of('abd'), run_of('mine', flags={'dataset': r'npz:a|b\c{d}~e^f$g'})]
  tables_ = tables.collate(runs)
  assert r'| mine (--dataset=npz:a\|b\c{d}~e^f$g) |  | 0 | 40.0 |' in tables.markdown(tables_, ('final_accuracy',))
  said = r'npz:a|b\textbackslash{}c\{d\}\textasciitilde{}e\textasciicircum{}f\$g'
  assert rf'mine (-{{}}-dataset={said}) &  & 0 & 40.0 \\' in tables.latex(tables_, ('final_accuracy',))


def test_csv_has_every_metric_and_its_seeds():
  text = tables.to_csv(tables.collate([full_cifar100('abd', 0), full_cifar100('abd', 1, omega=0.5)]))
  rows = {row['method']: row for row in csv.DictReader(io.StringIO(text))}
  abd, bic = rows['abd'], rows['bic']
  assert (abd['num_tasks'], abd['seeds'], abd['final_accuracy_seeds'], abd['omega_seeds']) == ('10', '0 1', '2', '1')
  assert (abd['omega_mean'], abd['omega_published'], abd['final_accuracy_published_std']) == ('50.0', '69.6', '1.2')
  assert (bic['final_accuracy_mean'], bic['final_accuracy_published'], bic['seeds']) == ('', '45.9', '')
  assert all(f'{name}_mean' in abd for name in tables.METRICS)


def test_seconds_a_batch_and_memory_as_the_paper_counts_it():
  # 4 steps a second; 2,000 images of 32x32x3 are 6,144,000 values beside the parameters.
  held = {'parameters': 464154, 'images': 2000, 'image_values': 2000 * 32 * 32 * 3}
  run = dataclasses.replace(RUN, steps_per_second={'inversion': None, 'train': 4.0}, memory_held=held)
  [row] = tables.collate([run])[0].rows
  names = ('seconds_per_batch', 'parameters', 'image_values')
  assert [row.cells[name].mean for name in names] == [0.25, 464154, 6144000]


# The command


def test_report_pairs_runs_with_their_upper_bound(tmp_path, capsys):
  # Halves and quarters of the upper bound over two tasks: (1/2 + 1/4) / 2.
  two_tasks = {name: [[50.0, None], [50.0, 50.0]] for name in ('accuracy_matrix', 'accuracy_matrix_local')}
  bound = run_of('upper_bound', 0, 80.0, accuracy_after_task=[80.0, 80.0], **two_tasks)
  bound.save(tmp_path / 'bound.json')
  run_of('base', 0, 20.0, accuracy_after_task=[40.0, 20.0], **two_tasks).save(tmp_path / 'base.json')
  other = run_of('abd', 1, 20.0, accuracy_after_task=[40.0, 20.0], **two_tasks)
  dataclasses.replace(other, class_order=other.class_order[::-1]).save(tmp_path / 'abd.json')
  paths = [str(tmp_path / f'{name}.json') for name in ('bound', 'base', 'abd')]
  assert report.main([*paths, '--metrics=omega']) == 0
  rows = capsys.readouterr().out.splitlines()[4:]
  assert rows[:3] == ['| upper_bound | none | 0 | 100.0 |', '| base | none | 0 | 37.5 |', '| abd | synthetic | 1 |  |']


def test_a_folder_s_runs_are_all_that_lie_in_it_but_the_folds_of_a_sweep(tmp_path):
  folders = [tmp_path, tmp_path / 'mine', tmp_path / 'abd' / 'seed0', tmp_path / 'abd' / 'seed1']
  for folder in (*folders, tmp_path / 'sweep' / 'base' / 'seed1' / 'as_told' / 'fold0'):
    folder.mkdir(parents=True, exist_ok=True)
    RUN.save(folder / 'results.json')
  assert runs_below(tmp_path) == sorted(folders)
  assert len(runs_below(tmp_path / 'sweep' / 'base')) == 1  # who asks for a fold is shown it


def test_report_refuses_a_metric_it_does_not_know(capsys):
  path = str(ROOT / 'experiments' / 'results' / 'digits_5_abd_seed0.json')
  assert report.main([path, '--metrics=accuracy']) == 2
  assert '--metrics=accuracy: accuracy is not one of all, final_accuracy, omega' in capsys.readouterr().err
  assert report.main([path, '--metrics=all', '--format=csv']) == 0


def test_an_upper_bound_of_more_tasks_serves_by_classes_seen():
  # Ten tasks of one class serve five of two: the second, fourth, ... stage count.
  bound = dataclasses.replace(run_of('upper_bound', accuracy_after_task=[1.0, 60.0] * 5), num_tasks=10)
  assert upper_bounds.with_omega(run_of('base', accuracy_after_task=[30.0] * 5), [bound]).omega == 0.5
  fewer = dataclasses.replace(run_of('upper_bound', accuracy_after_task=[60.0]), num_tasks=1)
  assert upper_bounds.with_omega(run_of('base'), [fewer]).omega is None  # no stage of 2 classes
