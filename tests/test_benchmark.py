"""The benchmark: its counting by hand, its comparison with a stand-in for the authors' process."""

import contextlib
import json
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from abd_jax import config, files, train
from abd_jax.benchmark import hot_steps, operations, timing
from abd_jax.errors import UserError
from abd_jax.methods import METHODS
from abd_jax.models import make_generator, make_student
from abd_jax.models.generator import UpsampledConv
from abd_jax.parallel import CompiledStep
from tests.documents import shown

SMALL = config.with_values(
    config.Config(),
    dict(dataset='random', num_tasks=10, student='resnet8', image_size=8, batch_size=8, color_jitter=False),
)


def test_operations_of_a_residual_network():
  # ResNet-8 on 8x8x3, a multiplication and an addition each: stages of 64, 16 and 4 pixels.
  stem, stage1 = 64 * 9 * 3 * 16, 64 * 9 * (16 * 16 + 16 * 16)
  stage2, stage3 = 16 * 9 * (16 * 32 + 32 * 32), 4 * 9 * (32 * 64 + 64 * 64)
  expected = 2 * (stem + stage1 + stage2 + stage3 + 64 * 100)
  assert operations.forward_flops(make_student('resnet8', 100), jnp.zeros((1, 8, 8, 3)), train=False) == expected


def test_operations_of_a_generator():
  # 8x8: a stem of 1000 -> 2x2x128; 4x4x128 and 8x8x64 from four taps of 128 a pixel; then 3x3x64 -> 3.
  expected = 2 * (1000 * 512 + 16 * 128 * 4 * 128 + 64 * 64 * 4 * 128 + 64 * 3 * 9 * 64)
  assert operations.forward_flops(make_generator('cifar', (8, 8, 3)), jnp.zeros((1, 1000)), train=False) == expected
  assert operations.forward_flops(UpsampledConv(5), jnp.zeros((1, 2, 2, 3))) == 2 * 16 * 5 * 4 * 3


def test_a_step_is_three_passes_of_what_it_trains():
  flops = operations.step_flops(SMALL)
  student = 8 * operations.forward_flops(make_student('resnet8', 100), jnp.zeros((1, 8, 8, 3)), train=False)
  dreamer = 8 * operations.forward_flops(make_generator('cifar', (8, 8, 3)), jnp.zeros((1, 1000)), train=False)
  assert flops == {'first': 3 * student, 'abd': 8 * student + dreamer, 'generator': 3 * dreamer + 2 * student}


def test_operations_are_counted_however_many_devices_share_a_batch(monkeypatch):
  expected = operations.step_flops(SMALL)
  monkeypatch.setattr(train, 'devices', lambda: jax.devices() * 3)  # which do not divide it
  assert operations.step_flops(SMALL) == expected


def test_median_and_spread():
  of_five = timing.Timing((1.0, 2.0, 3.0, 4.0, 10.0))
  # Quartiles of five figures (exclusive): 1.5, 3, 7; half of 5.5 is 2.75.
  assert of_five.median == 3.0 and of_five.spread == pytest.approx(2.75 / 3)


def test_ratios_are_of_repeats_made_in_turn():
  # Twice, then four times as long: a machine that slowed down for both is in neither.
  compared = timing._compared(timing.Timing((2.0, 12.0)), timing.Timing((1.0, 3.0)), 'by_')
  assert compared == {'by_times_as_fast': 3.0, 'by_least': 2.0, 'by_most': 4.0}


@pytest.fixture
def stand_in(monkeypatch, tmp_path):
  """A process that says every step takes it a second."""
  script = tmp_path / 'authors.py'
  script.write_text(textwrap.dedent('''
      import sys
      print('noise')
      print('answer a stand-in', flush=True)
      for line in sys.stdin:
        print('answer 1.0', flush=True)
  '''))
  popen = timing.subprocess.Popen
  monkeypatch.setattr(timing.subprocess, 'Popen', lambda command, **kw: popen([sys.executable, str(script)], **kw))


def test_all_sides_are_timed_in_turn_and_told_apart(stand_in, small):
  found = timing.run(config.with_values(SMALL, {'seeds': (0, 1)}), repeats=2, seconds=0.01, against='anywhere')
  assert found['authors'] == 'a stand-in' and [row['step'] for row in found['steps']] == list(hot_steps.STEPS)
  for row in found['steps']:
    assert row['authors_milliseconds'] == 1000
    assert row['least'] <= row['times_as_fast'] <= row['most']
    assert row['times_as_fast'] == pytest.approx(1000 / row['milliseconds'], rel=0.7)
    assert row['together_least'] <= row['together_times_as_fast'] <= row['together_most']
    assert row['images_per_second'] == pytest.approx(8 * row['steps_per_second'])
    assert row['share_of_peak'] == pytest.approx(row['flops_per_second'] / found['peak_flops'])
    assert row['together_times_as_fast'] == pytest.approx(row['milliseconds'] / row['together_milliseconds'], rel=0.7)
  assert found['compile_seconds'] > 0
  assert '| abd | ' in timing.markdown_table(found) and 'a stand-in' in timing.markdown_table(found)


def test_steps_that_pmap_maps_are_compiled_where_they_are_called(small, monkeypatch):
  ahead = []
  monkeypatch.setattr(CompiledStep, 'compile_ahead', lambda step, *args: ahead.append(step))
  mapped = timing.Ours(config.with_values(SMALL, {'parallel': 'pmap'}))
  assert mapped.compile_seconds > 0 and all(mapped.seconds(name, 1) > 0 for name in hot_steps.STEPS) and not ahead


@pytest.mark.parametrize('mark, file', [
    ('benchmark', 'cpu'), ('benchmark H100', 'h100_bfloat16'), ('H100 before', 'h100_before'),
    ('H100 before, bfloat16', 'h100_bfloat16_before'),
])
def test_the_documents_tables_are_the_committed_ones(mark, file):
  found = json.loads(Path(f'experiments/results/benchmark/{file}.json').read_text())
  assert shown(mark) == timing.markdown_table(found)


def test_what_has_no_such_steps_or_no_such_place_is_a_sentence(tmp_path):
  for flag, value in (('method', 'base'), ('inversion', 'images')):
    with pytest.raises(UserError, match=f'--{flag}={value} trains no generator'):
      hot_steps.prepared(config.with_values(SMALL, {flag: value}))
  with pytest.raises(UserError, match=r'--json=.*x\.json cannot be written: No such file or directory\.'):
    files.check_writable(tmp_path / 'nowhere' / 'x.json', '--json=')
  assert files.check_writable('', '--json=') is None
  assert files.check_writable(str(tmp_path / 'x.json'), '--json=') == tmp_path / 'x.json'
  (tmp_path / 'x.json').write_text('of before')
  files.check_writable(str(tmp_path / 'x.json'), '--json=')
  assert (tmp_path / 'x.json').read_text() == 'of before'


def test_a_step_s_time_is_a_share_of_whole_calls(monkeypatch):
  ours, calls = timing.Ours.__new__(timing.Ours), []
  ours._runs, ours._hot = 3, {'abd': SimpleNamespace(length=4)}
  ours._call = lambda name, number: calls.append(number)
  clock = iter((10.0, 22.0))
  monkeypatch.setattr(timing.time, 'perf_counter', lambda: next(clock))
  # 30 steps are three calls of 4 steps of 3 runs: 36, in 12 s.
  assert ours.seconds('abd', 30) == pytest.approx(12 / 36) and calls == [0, 4, 8]


def test_a_contestant_is_asked_for_as_many_steps_as_fill_the_time():
  asked = []
  slow = SimpleNamespace(seconds=lambda name, count: asked.append(count) or 0.5)
  timing.measure([slow], 2, 2.0)
  assert asked == 3 * [2, 4, 4]  # two to warm up


def test_the_peak_counts_a_multiplication_and_an_addition(monkeypatch):
  clock = iter(range(100))
  monkeypatch.setattr(operations.time, 'perf_counter', lambda: float(next(clock)))
  assert operations.matmul_peak('bfloat16', 8) == 2 * 8**3


def test_the_hot_steps_are_those_of_a_first_and_of_a_later_task():
  tasks, programs = hot_steps.prepared(SMALL)
  assert hot_steps.random_dataset(SMALL).image_shape == tasks.image_shape == (8, 8, 3)
  student, generator = SimpleNamespace(params=0, batch_stats=0), object()
  hot = hot_steps.hot_steps(SMALL, tasks, programs, student, generator, None, None)
  _, _, *first = hot['first'].others(0)
  _, _, *later = hot['abd'].others(0)
  assert first[:2] == [None, None] and first[5:7] == [0, 10]
  assert later[0] is not None and later[1] is generator and later[5:7] == [10, 20]
  phases = METHODS['abd']
  assert hot['first'].step is programs.learn[phases.first[0]] and hot['abd'].step is programs.learn[phases.later[0]]


def test_a_checkout_that_cannot_be_run_is_a_sentence():
  with pytest.raises(UserError, match='could not be run'):
    timing.Authors('/nowhere', SMALL)


def test_a_process_that_ends_between_its_steps_is_a_sentence(monkeypatch):
  popen = timing.subprocess.Popen
  command = [sys.executable, '-c', "print('answer a stand-in')"]
  monkeypatch.setattr(timing.subprocess, 'Popen', lambda _, **kw: popen(command, **kw))
  authors = timing.Authors('anywhere', SMALL)
  authors._process.wait()
  with pytest.raises(UserError, match='could not be run'):
    authors.seconds('abd', 1)
  with contextlib.suppress(BrokenPipeError):
    authors.close()
