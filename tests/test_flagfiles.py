"""One flagfile, one row of the paper's tables: all there, all read, their heads true."""

import re
from pathlib import Path

import numpy as np
import pytest

from abd_jax import config, data
from abd_jax.data.streams import Streams
from abd_jax.methods import METHODS
from abd_jax.published import ABLATIONS, FIGURES, REPLAY, Benchmark

FOLDER = Path(__file__).parent.parent / 'experiments' / 'flags'
FILES = sorted(path.name for path in FOLDER.glob('*.flags'))
ROWS = [name for name in FILES if re.fullmatch(r'cifar100_\d+_(?!ablate_).*(?<!authors)\.flags', name)]


# 500 training images of each of 100 classes: all that decides how many steps a run makes.
LABELS_OF_CIFAR100 = data.Dataset(
    'cifar100', np.zeros((0, 32, 32, 3)), np.arange(50000) % 100, None, None, tuple(map(str, range(100))), (), ()
)


def head(name):
  """The comment that a flagfile begins with, in one line."""
  lines = (FOLDER / name).read_text().splitlines()
  return ' '.join(line.removeprefix('# ') for line in lines if line.startswith('# '))


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
  # Flagfiles name one another from the root of the repository.
  monkeypatch.chdir(FOLDER.parent.parent)


@pytest.mark.parametrize('name', FILES)
def test_every_flagfile_is_read(name):
  assert (FOLDER / name).read_text().startswith('# ')
  config.from_flagfile(FOLDER / name)


def test_every_row_of_the_tables_has_one():
  methods = [name for name in REPLAY if name.isidentifier() and name != 'REMIX']
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


@pytest.mark.parametrize('name', ROWS)
def test_its_head_says_what_the_literature_reports_and_how_many_steps_it_takes(name):
  row = config.from_flagfile(FOLDER / name)
  figures = FIGURES[Benchmark('cifar100', 100, row.num_tasks)].get(row.method)
  if figures:
    assert f'reported {figures.final_accuracy} ± {figures.spread} %' in head(name)
    assert figures.omega is None or f'Omega {figures.omega} %' in head(name)
  tasks = data.TaskSequence(LABELS_OF_CIFAR100, row.num_tasks)
  sizes = [size for _, _, size in Streams(tasks, METHODS[row.method], row.memory, row.seed).sizes]
  steps = sum(size // row.optimisation.batch_size * row.optimisation.epochs for size in sizes)
  assert f'{steps:,} steps of learning' in head(name)
  inversion = f'{row.inversion.inversion_steps * (row.num_tasks - 1):,} of inversion'
  assert (inversion in head(name)) == METHODS[row.method].dreams


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
