"""What a run takes, from what a step takes."""

import json
from pathlib import Path

import pytest

from abd_jax import config
from abd_jax.benchmark import cost
from abd_jax.benchmark.hot_steps import STEPS
from abd_jax.benchmark.operations import step_flops
from abd_jax.errors import UserError
from tests.documents import shown


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch, request):
  monkeypatch.chdir(request.config.rootpath)  # where flagfiles name one another from


def settings(name):
  return config.from_flagfile(f'experiments/flags/{name}_abd.flags')


@pytest.mark.parametrize('name, first, generator', [
    # 100 / 10 classes of 500 images are 5,000 a task: 39 batches of 128, 250 times. 5,000 steps before each of 9 tasks.
    ('cifar100_10', 39 * 250, 9 * 5000),
    ('cifar100_5', 78 * 250, 4 * 5000),
    # 200 / 20 classes of 500: 39 batches again, 19 times 5,000 steps.
    ('tiny_imagenet_20', 39 * 250, 19 * 5000),
    # A tenth of 1,281,167 images is 128,116: 1,000 batches, 100 times; a hundredth 12,811: 100 batches.
    ('imagenet1000_10', 1000 * 100, 9 * 10000),
    ('imagenet100_10', 100 * 100, 9 * 10000),
])
def test_steps_of_a_run(name, first, generator):
  run = settings(name)
  assert cost.steps_of(run) == {'first': first, 'abd': (run.num_tasks - 1) * first, 'generator': generator}


def test_a_first_task_of_its_own_size_has_its_own_steps():
  half_first = config.with_values(settings('cifar100_10'), {'num_tasks': 6, 'first_task_classes': 50})
  # 25,000 images are 195 batches, and after them five tasks of 39.
  assert cost.steps_of(half_first) == {'first': 195 * 250, 'abd': 5 * 39 * 250, 'generator': 5 * 5000}
  assert cost.flops_of(half_first)['first'] == 5 * cost.flops_of(settings('cifar100_10'))['first']


def test_seconds_are_steps_times_what_was_timed():
  run = settings('cifar100_10')
  flops = step_flops(config.Config(dataset='random', num_tasks=10))
  # As many operations a second as make a step take 2, 3 and 5 seconds.
  taken = dict(zip(STEPS, (2.0, 3.0, 5.0), strict=True))
  found = {'steps': [{'step': name, 'flops_per_second': flops[name] / taken[name]} for name in STEPS]}
  assert cost.seconds_of(run, found) == pytest.approx(2 * 9750 + 3 * 9 * 9750 + 5 * 45000)


def test_an_image_of_twice_the_side_takes_four_times_as_long():
  found = {'steps': [{'step': name, 'flops_per_second': 1e9} for name in STEPS]}
  tiny = config.with_values(settings('tiny_imagenet_20'), {'num_tasks': 10, 'num_classes': 100, 'generator': 'cifar'})
  ratio = cost.seconds_of(tiny, found) / cost.seconds_of(settings('cifar100_10'), found)
  assert ratio == pytest.approx(4, rel=0.02)  # but for head and latents


@pytest.mark.parametrize('mark, file', [('cost', 'cpu'), ('cost H100', 'h100_bfloat16')])
def test_the_readmes_tables_are_the_commands(mark, file):
  names = [f'{name}_abd' for name in ('cifar100_10', 'tiny_imagenet_20', 'imagenet100_10', 'imagenet1000_10')]
  found = json.loads(Path(f'experiments/results/benchmark/{file}.json').read_text())
  configs = {name: config.from_flagfile(f'experiments/flags/{name}.flags') for name in names}
  assert shown(mark) == cost.markdown(configs, found)


@pytest.mark.parametrize('text', [
    '{}', '[1]', '{"steps": 3}', '{"steps": [1]}', 'no JSON', '[' * 100000,
    Path('experiments/results/benchmark/tpu_v5e_compiled.json'),  # has steps, and no times
    lambda found: found['steps'][1].update(flops_per_second=0),
    lambda found: found['steps'][2].update(flops_per_second='fast'),
    lambda found: found['steps'].pop(),
    lambda found: found.pop('batch_size'),
    lambda found: found.update(device=None),
])
def test_another_file_in_the_place_of_a_benchmark_is_refused(text, tmp_path):
  committed = Path('experiments/results/benchmark/cpu.json')
  found = cost.read(committed)
  if callable(text):
    text(found)
    text = json.dumps(found)
  path = tmp_path / 'benchmark.json'
  path.write_text(text.read_text() if isinstance(text, Path) else text)
  with pytest.raises(UserError, match=r'^--benchmark=.*benchmark.json is not what experiments/benchmark.py'):
    cost.read(path)


@pytest.mark.parametrize('place', ['', '/nowhere/benchmark.json'])
def test_a_benchmark_that_is_not_there_is_refused(place):
  with pytest.raises(UserError, match='^--benchmark=.* cannot be read: '):
    cost.read(place)


def test_other_runs_are_refused():
  with pytest.raises(UserError, match='digits is not a run of abd on one of cifar100, tiny_imagenet, imagenet.'):
    cost.markdown({'digits': config.Config(dataset='digits')}, {**dict.fromkeys(
        ('ours', 'device', 'student', 'image_size', 'batch_size')), 'steps': []})
