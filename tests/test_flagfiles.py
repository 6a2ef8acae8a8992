"""One flagfile, one row of the paper's tables: all there, all read, their heads true."""

import dataclasses
import json
import re
import types
from pathlib import Path

import numpy as np
import pytest

from abd_jax import config, data
from abd_jax.data.streams import Streams
from abd_jax.methods import METHODS
from abd_jax.methods.interface import Schedule
from abd_jax.report import tables
from abd_jax.report.published import ABLATIONS, FIGURES, REPLAY, Benchmark

FOLDER = Path(__file__).parent.parent / 'experiments' / 'flags'
FILES = sorted(path.name for path in FOLDER.glob('*.flags'))
BEYOND = [name for name in FILES if re.fullmatch(r'cifar100_\d+_(rdfcil|dream|abd_rerun)\.flags', name)]
PAPERS = r'cifar100_\d+_(?!ablate_).*(?<!authors)\.flags'
ROWS = [name for name in FILES if re.fullmatch(PAPERS, name) and name not in BEYOND]
TIMED = [name for name in FILES if 'benchmark/h100' in (FOLDER / name).read_text()]


# 500 training images of each of 100 classes: all that decides how many steps a run makes.
LABELS_OF_CIFAR100 = data.Dataset(
    'cifar100', np.zeros((0, 32, 32, 3)), np.arange(50000) % 100, None, None, tuple(map(str, range(100))), (), ()
)


def head(name):
  """The comment that a flagfile begins with, in one line."""
  lines = (FOLDER / name).read_text().splitlines()
  return ' '.join(line.removeprefix('# ') for line in lines if line.startswith('# '))


def steps_of_learning(row):
  """{task: steps} of a run on CIFAR-100, over all phases of the task."""
  tasks = data.TaskSequence(LABELS_OF_CIFAR100, row.num_tasks)
  found = dict.fromkeys(range(row.num_tasks), 0)
  for task, phase, size in Streams(tasks, METHODS[row.method], row.memory, row.seed).sizes:
    found[task] += size // row.optimisation.batch_size * phase.schedule(row.optimisation).epochs
  return found


def steps_of_inversion(row):
  return row.inversion.inversion_steps * (row.num_tasks - 1) if METHODS[row.method].dreams else 0


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
  # Flagfiles name one another from the root of the repository.
  monkeypatch.chdir(FOLDER.parent.parent)


@pytest.mark.parametrize('name', FILES)
def test_every_flagfile_is_read(name):
  assert (FOLDER / name).read_text().startswith('# ')
  config.from_flagfile(FOLDER / name)


def test_every_row_of_the_tables_has_one():
  methods = [name for name in REPLAY if name.isidentifier() and name not in ('REMIX', 'rdfcil', 'dream')]
  assert len(methods) == 12
  expected = {f'cifar100_{tasks}_{method}.flags' for tasks in (5, 10, 20) for method in methods}
  assert expected == set(ROWS)
  assert {f'cifar100_10_ablate_{part}.flags' for part in ABLATIONS[1:]} <= set(FILES)


@pytest.mark.parametrize('name', ROWS)
def test_a_row_is_its_method_on_its_benchmark_and_nothing_else_differs(name):
  _, tasks, method = name.removesuffix('.flags').split('_', 2)
  row, base = config.from_flagfile(FOLDER / name), config.from_flagfile(FOLDER / f'cifar100_{tasks}.flags')
  assert (row.method, row.num_tasks, row.seeds, row.dataset) == (method, int(tasks), (0, 1, 2), 'cifar100')
  assert config.differing_flag(row, base) in (None, 'method')
  assert (row.optimisation, row.inversion) == (config.Optimisation(), config.Inversion())  # the defaults


@pytest.mark.parametrize('name', ROWS + BEYOND)
def test_its_head_says_what_the_literature_reports_and_how_many_steps_it_takes(name):
  row = config.from_flagfile(FOLDER / name)
  figures = FIGURES[Benchmark('cifar100', 100, row.num_tasks, row.student, row.optimisation.epochs)].get(row.method)
  if figures:
    assert f'reported {figures.final_accuracy} ± {figures.spread} %' in head(name)
    assert figures.omega is None or f'Omega {figures.omega} %' in head(name)
  assert f'{sum(steps_of_learning(row).values()):,} steps of learning' in head(name)
  inversion = f' and {steps_of_inversion(row):,} of inversion'
  assert (inversion in head(name)) == METHODS[row.method].dreams


@pytest.mark.parametrize('name', TIMED)
def test_its_head_says_how_long_it_takes_by_the_committed_benchmarks(name):
  minutes, days = seconds_by(name, 'h100_bfloat16') / 60, seconds_by(name, 'cpu') / 86400
  assert (
      f'At the speed of experiments/results/benchmark/h100_bfloat16.json {minutes:.0f} minutes on an H100 in bfloat16,'
      f' of cpu.json beside it {days:.1f} days on two CPU cores' in head(name)
  )


def seconds_by(name, benchmark):
  """Seconds of a row's steps by a committed benchmark."""
  row = config.from_flagfile(FOLDER / name)
  timed = json.loads((FOLDER.parent / 'results' / 'benchmark' / f'{benchmark}.json').read_text())
  seconds = {step['step']: step['milliseconds'] / 1000 for step in timed['steps']}
  # A step with synthetic images is counted as ABD's, one of real images alone as that of ABD's first task.
  later = 'abd' if METHODS[row.method].dreams else 'first'
  learning = sum(steps * seconds[later if task else 'first'] for task, steps in steps_of_learning(row).items())
  return learning + steps_of_inversion(row) * seconds['generator']


def test_what_is_published_stands_beside_every_run_of_a_flagfile_with_a_figure():
  counts = {'cifar100': 100, 'tiny_imagenet': 200}
  beside = {}
  for name in FILES:
    row = config.from_flagfile(FOLDER / name)
    classes = row.num_classes or counts.get(row.dataset)
    benchmark = Benchmark(row.dataset, classes, row.num_tasks, row.student, row.optimisation.epochs, row.top_k)
    if row.method in FIGURES.get(benchmark, ()) and row.image_size == 0:
      run = types.SimpleNamespace(method=row.method, config=config.as_dict(row))
      beside[name] = tables._is_as_published(run, benchmark)
  departing = [name for name, is_so in beside.items() if not is_so]
  # 11 methods of the paper and R-DFCIL in 5, 10 and 20 tasks, the authors' switches in each, five rows of ImageNet...
  assert len(beside) >= 3 * (11 + 1 + 1) + 5
  assert departing == [name for name in beside if 'ablate' in name] and len(departing) == 5  # of which none is known


@pytest.mark.parametrize('part', ABLATIONS[1:])
def test_an_ablation_is_abd_less_one_part(part):
  full, ablated = (config.from_flagfile(FOLDER / f'cifar100_10_{name}.flags') for name in ('abd', f'ablate_{part}'))
  assert config.differing_flag(full, ablated) == 'ablate' and ablated.hparams.ablate == part
  assert ablated.workdir != full.workdir
  assert config.differing_flag(full, config.with_values(ablated, {'ablate': 'none'})) is None


@pytest.mark.parametrize('tasks', [5, 10, 20])
def test_the_authors_row_has_their_switches(tasks):
  authors = config.from_flagfile(FOLDER / f'cifar100_{tasks}_abd_authors.flags')
  assert (authors.num_tasks, authors.hparams.finetune_classes) == (tasks, 'all')
  assert authors.optimisation.bn_double_update
  assert (authors.inversion.generator_init, authors.inversion.inversion_steps) == ('warm', 10000)


@pytest.mark.parametrize('name, weight_decay', [
    *((f'cifar100_{tasks}_rdfcil', 5e-4) for tasks in (5, 10, 20)), ('tiny_imagenet_20_rdfcil', 2e-4),
])
def test_the_rows_of_rdfcil_have_its_student_and_its_two_schedules(name, weight_decay):
  row, base = (config.from_flagfile(FOLDER / f'{file}.flags') for file in (name, name.removesuffix('_rdfcil')))
  assert (row.method, row.student, row.head_bias, row.optimisation.weight_decay) == (
      'rdfcil', 'resnet32_icarl', 'auto', weight_decay
  )
  represent, refine = (phase.schedule(row.optimisation) for phase in METHODS['rdfcil'].later)
  assert (represent, refine) == (Schedule(160, 0.1, (80, 120)), Schedule(40, 5e-3))
  assert row.augmentation == config.Augmentation(color_jitter=False)
  assert (row.inversion, row.num_tasks, row.workdir) == (base.inversion, base.num_tasks, base.workdir)


def test_abd_re_run_by_others_has_the_student_and_the_schedule_that_they_gave_it():
  rerun, paper = (config.from_flagfile(FOLDER / f'cifar100_10_{name}.flags') for name in ('abd_rerun', 'abd'))
  assert (rerun.method, rerun.student, rerun.head_bias) == ('abd', 'resnet32_icarl', 'true')
  assert rerun.optimisation == dataclasses.replace(
      paper.optimisation, epochs=200, decay_at=(80, 120), weight_decay=5e-4
  )
  assert rerun.hparams == dataclasses.replace(paper.hparams, finetune_normalise='weighted')
  assert rerun.hparams.finetune_classes == 'seen' and not rerun.augmentation.color_jitter
  assert rerun.inversion == paper.inversion == config.Inversion() and rerun.workdir != paper.workdir
