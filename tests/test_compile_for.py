"""Compiling for devices that are not there: on this machine's own in their place, and by their compilers if at hand."""

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import jax
import pytest

from abd_jax import config, parallel, programs
from abd_jax.benchmark import compile_for, gpus, hot_steps
from abd_jax.errors import UserError
from tests.documents import ROOT, shown

SMALL = dict(
    dataset='random', num_tasks=10, student='resnet8', image_size=8, batch_size=8, color_jitter=False, steps_per_call=2
)


def test_steps_are_compiled_for_the_devices_named(monkeypatch, small):
  monkeypatch.setattr(compile_for, 'chips', lambda topology, count: tuple(jax.devices()[:1]))
  found = compile_for.run(config.with_values(config.Config(), SMALL), 'anything', 1)
  assert [row['step'] for row in found['steps']] == list(hot_steps.STEPS) and found['chips'] == 1
  first, abd, generator = found['steps']
  # The teacher and the generator are held besides the student; Adam holds two copies of the generator.
  assert 0 < first['argument_bytes'] < abd['argument_bytes'] < generator['argument_bytes']
  assert all(row['temporary_bytes'] > 0 and row['compile_seconds'] > 0 for row in found['steps'])
  assert compile_for.markdown_table(found, found).count('| float32 | abd | ') == 2
  assert compile_for.markdown_table(found, {**found, 'seeds': 3}).count('| float32 | 3 | abd | ') == 1
  # Nothing of it is left to those who run here.
  assert programs._learn.cache_info().currsize == 0 and parallel._mesh() is None


def test_what_is_compiled_is_for_the_platform_named_and_says_what_its_compiler_says(monkeypatch):
  lowered, asked = [], []

  class Step:
    """A `CompiledStep` and all that its `jitted` leads to."""

    def of_several(self, count):
      asked.append(count)
      return self

    def trace(self, *arguments):
      asked.append(arguments)
      return self

    def lower(self, lowering_platforms):
      lowered.append(lowering_platforms)
      return self

    def compile(self):
      return self

    def memory_analysis(self):
      return SimpleNamespace(argument_size_in_bytes=1, temp_size_in_bytes=2, output_size_in_bytes=4)

    def as_text(self):
      return '\nENTRY %main (p: f32[]) -> f32[] {\n  %p = f32[] copy(%p), x={"estimated_cycles":"7"}\n}\n'

    jitted = property(lambda self: self)

  told = []
  monkeypatch.setattr(compile_for, '_told_of_gpus', lambda: told.append(len(lowered)) or contextlib.nullcontext())
  with parallel.compiled_for([SimpleNamespace(platform='tpu')]):
    row = compile_for._compiled(hot_steps.Hot(Step(), 1, None, lambda step: ()), 'v5e:2x2')
  assert (row['argument_bytes'], row['temporary_bytes'], row['cycles']) == (1, 2, 7)
  with parallel.compiled_for([SimpleNamespace(platform='gpu')]):
    row = compile_for._compiled(hot_steps.Hot(Step(), 1, 'state', lambda step: ('place',)), 'h100', seeds=3)
  assert (row['temporary_bytes'], row['kernels'], row['moved_bytes']) == (2, 1, 8)
  assert lowered == [('tpu',), ('cuda',)] and told == [1] and asked == [(None,), 3, (('state',) * 3, ('place',) * 3)]


def test_programs_of_before_are_not_those_of_other_devices(monkeypatch):
  monkeypatch.setattr(compile_for, 'chips', lambda topology, count: tuple(jax.devices()[:1]))
  cleared = []
  monkeypatch.setattr(compile_for.programs, 'clear', lambda: cleared.append('cleared'))
  monkeypatch.setattr(compile_for, '_hot_steps', lambda config: cleared.append('built') or {})
  native_size = config.with_values(config.Config(), {**SMALL, 'image_size': 0})
  assert compile_for.run(native_size, 'anything')['image_size'] == 32
  assert cleared == ['cleared', 'built', 'cleared']


def test_within_programs_are_for_others():
  assert parallel.devices() == tuple(jax.devices())
  with parallel.compiled_for(jax.devices()[:1]):
    assert parallel._mesh().size == 1
  assert parallel._mesh() is None


def test_the_cycles_are_those_of_the_loop():
  text = (
      'HloModule jit\n\n%body (a: f32[]) -> f32[] {\n  x = {"estimated_cycles":"70"}\n  y = {"estimated_cycles":"50"}\n'
      '}\n\nENTRY %main (a: f32[]) -> f32[] {\n  z = {"estimated_cycles":"90"}\n}\n'
  )
  assert compile_for._cycles(text) == 120
  assert compile_for._cycles(text.split('\n\n')[2]) == 90


# As XLA writes programs for GPUs, but for what stands behind the operands.
PROGRAM = """HloModule jit_learn

%fused (a: f32[8,4], b: pred[8,4]) -> f32[8,4] {
  %a = f32[8,4]{1,0} parameter(0)
  %b = pred[8,4]{1,0} parameter(1)
  ROOT %c = f32[8,4]{1,0} select(%b, %a, %a)
}

%body (carried: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %carried = (s32[], f32[8,4]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%carried), index=0
  %x = f32[8,4]{1,0} get-tuple-element(%carried), index=1
  %half = bf16[8,4]{1,0} copy(%x), metadata={op_name="copy(%i)"}
  %conv = (f32[8,4]{1,0}, u8[64]{0}) custom-call(%half, /*index=1*/%x), custom_call_target="__cudnn$convForward"
  %y = f32[8,4]{1,0} get-tuple-element(%conv), index=0
  %mask = pred[8,4]{1,0} fusion(%y), kind=kLoop, calls=%fused
  %begun = f32[8,4]{1,0} all-reduce-start(%y), to_apply=%sum
  %done = f32[8,4]{1,0} all-reduce-done(%begun)
  ROOT %out = (s32[], f32[8,4]{1,0}) tuple(%i, %done)
}

ENTRY %main (p: f32[8,4]) -> f32[8,4] {
  %p = f32[8,4]{1,0} parameter(0)
  ROOT %loop = f32[8,4]{1,0} while(%p), condition=%never, body=%body
}
"""


def test_what_a_gpu_would_launch_is_counted():
  # copy: 128 + 64; convolution: 64 + 128 + 128 + 64; mask: 128 + 32; reduction: 128 + 128.
  assert gpus.launches(PROGRAM) == (4, 192 + 384 + 160 + 256)
  # A loop outside of which more is launched, none of it large; and no loop at all.
  copies = ''.join(f'  %c{i} = f32[]{{}} copy(%c)\n' for i in range(9))
  assert gpus.launches(PROGRAM.replace('  ROOT %loop', copies + '  ROOT %loop')) == (4, 992)
  whole = PROGRAM[: PROGRAM.index('%body')] + PROGRAM[PROGRAM.index('ENTRY') :]
  whole = whole.replace('while(%p), condition=%never, body=%body', 'fusion(%p), kind=kLoop, calls=%fused')
  assert gpus.launches(whole) == (1, 256)


@pytest.mark.parametrize('mark, kinds', [
    ('compiled', ('tpu_v5e', 'tpu_v5e_4', 'tpu_v5e_bfloat16')),
    ('compiled for GPUs', ('gpu_h100', 'gpu_h100_bfloat16')),
    ('compiled before', ('gpu_h100_before', 'gpu_h100_bfloat16_before')),
    ('compiled for three seeds', ('gpu_h100_three_seeds',)),
])
def test_the_readme_has_what_was_compiled(mark, kinds):
  files = (f'experiments/results/benchmark/{kind}_compiled.json' for kind in kinds)
  assert shown(mark) == compile_for.markdown_table(*(json.loads((ROOT / file).read_text()) for file in files))


def test_what_a_run_would_take_is_what_its_steps_do():
  found = json.loads((ROOT / 'experiments/results/benchmark/gpu_h100_compiled.json').read_text())
  each = {row['step']: row['bandwidth_milliseconds'] / 60e3 for row in found['steps']}
  minutes = 9750 * each['first'] + 87750 * each['abd'] + 45000 * each['generator']
  assert f'({minutes:.1f} minutes for' in (ROOT / 'experiments/README.md').read_text()


def test_what_several_seeds_launch_and_move_is_against_as_many_runs():
  one, three = (
      json.loads((ROOT / f'experiments/results/benchmark/gpu_h100{kind}_compiled.json').read_text())['steps']
      for kind in ('', '_three_seeds')
  )
  said = []
  for name in ('kernels', 'moved_bytes'):
    times = [together[name] / (3 * alone[name]) for alone, together in zip(one, three, strict=True)]
    said.append(f'{min(times):.2f} to {max(times):.2f} times')
  text = ' '.join((ROOT / 'experiments/README.md').read_text().split())
  assert f'launch {said[0]} what three runs in turns do and move {said[1]} as much' in text


def test_gpus_are_told_to_the_compiler(monkeypatch):
  asked = []

  def describe(**kwargs):
    asked.append(kwargs)
    return SimpleNamespace(devices=['gpu'] * int(kwargs['topology'].split('x')[-1]))

  monkeypatch.setattr(compile_for.topologies, 'get_topology_desc', describe)
  for name, bandwidth in gpus.BANDWIDTH.items():
    assert len(compile_for.chips(name)) == 1 and len(compile_for.chips(name, 4)) == 4
    assert asked[-1]['platform'] == 'cuda' and f'memory_bandwidth: {bandwidth} ' in asked[-1]['target_config']
  with pytest.raises(UserError, match='--chips=0 is not from 1 to the 1 of --topology=h100'):
    compile_for.chips('h100', 0)

  def refuse(**kwargs):
    raise NotImplementedError('topology not implemented for cuda')

  monkeypatch.setattr(compile_for.topologies, 'get_topology_desc', refuse)
  with pytest.raises(UserError, match=r"topology not implemented for cuda\. It takes `pip install -e '\.\[cuda\]'`"):
    compile_for.chips('h100')


def test_what_cannot_be_compiled_for_is_a_sentence(monkeypatch):
  monkeypatch.delenv('TPU_SKIP_MDS_QUERY', raising=False)
  for kind in (RuntimeError, ImportError, NotImplementedError, ValueError):
    def refuse(kind=kind, **kwargs):
      assert os.environ['TPU_SKIP_MDS_QUERY'] == '1'
      raise kind('no such thing.\nand a trace')

    monkeypatch.setattr(compile_for.topologies, 'get_topology_desc', refuse)
    with pytest.raises(UserError, match=r'--topology=v9 cannot be compiled for: no such thing\. It takes'):
      compile_for.chips('v9')
  two = type('Topology', (), {'devices': ['a', 'b']})
  monkeypatch.setattr(compile_for.topologies, 'get_topology_desc', lambda **kwargs: two)
  assert compile_for.chips('v9', 1) == ('a',) and compile_for.chips('v9') == ('a', 'b')
  for count in (0, 3):
    with pytest.raises(UserError, match=f'--chips={count} is not from 1 to the 2 of'):
      compile_for.chips('v9', count)
  with pytest.raises(UserError, match='--parallel=pmap'):
    compile_for.run(config.with_values(config.Config(), {**SMALL, 'parallel': 'pmap'}), 'v9')


def _compiled_in_a_process(topology, chips, folder):
  out = folder / 'compiled.json'
  said = [f'--{name}={value}'.lower() for name, value in SMALL.items()]
  where = [f'--topology={topology}', f'--chips={chips}', f'--json={out}']
  process = subprocess.run(
      [sys.executable, 'experiments/compile_for.py', *where, *said],
      cwd=ROOT, env=os.environ | {'JAX_DISABLE_MOST_OPTIMIZATIONS': '0'}, capture_output=True, text=True, timeout=400,
  )
  assert process.returncode == 0, process.stderr
  found = json.loads(out.read_text())
  assert found['chips'] == chips
  return found


@pytest.mark.skipif(not importlib.util.find_spec('jax_cuda13_plugin'), reason="GPUs' compiler is missing: '.[cuda]'")
@pytest.mark.parametrize('chips', [1, 4])
def test_gpus_compiler_takes_every_hot_step(chips, tmp_path):
  found = _compiled_in_a_process('h100', chips, tmp_path)
  assert found['device'].startswith('NVIDIA H100')
  assert all(100 < row['kernels'] < 1000 and row['moved_bytes'] > row['temporary_bytes'] > 0 for row in found['steps'])


@pytest.mark.skipif(not importlib.util.find_spec('libtpu'), reason="TPU's compiler is missing: pip install libtpu")
@pytest.mark.parametrize('chips', [1, 4])
def test_tpus_compiler_takes_every_hot_step(chips, tmp_path):
  found = _compiled_in_a_process('v5e:2x2', chips, tmp_path)
  assert found['device'].startswith('TPU v5')
  assert all(row['cycles'] > 1e4 and row['temporary_bytes'] > 0 for row in found['steps'])
