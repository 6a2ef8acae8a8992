"""Compiling for accelerators that are not there: on this machine's own device, and by TPU's compiler where it is."""

import importlib.util
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import jax
import pytest

from abd_jax import config, parallel, programs
from abd_jax.benchmark import compile_for, hot_steps
from abd_jax.errors import UserError
from tests.documents import ROOT, shown

SMALL = dict(
    dataset='random', num_tasks=10, student='resnet8', image_size=8, batch_size=8, color_jitter=False, steps_per_call=2
)


def test_steps_are_compiled_for_the_devices_named(monkeypatch):
  monkeypatch.setattr(compile_for, 'chips', lambda topology, count: tuple(jax.devices()[:1]))
  found = compile_for.run(config.with_values(config.Config(), SMALL), 'anything', 1)
  assert [row['step'] for row in found['steps']] == list(hot_steps.STEPS) and found['chips'] == 1
  first, abd, generator = found['steps']
  # The teacher and the generator are held besides the student; Adam holds two copies of the generator.
  assert 0 < first['argument_bytes'] < abd['argument_bytes'] < generator['argument_bytes']
  assert all(row['temporary_bytes'] > 0 and row['compile_seconds'] > 0 for row in found['steps'])
  assert compile_for.markdown_table(found, found).count('| float32 | abd | ') == 2
  # Nothing of it is left to those who run here.
  assert programs._learn.cache_info().currsize == 0 and parallel._mesh() is None


def test_what_is_compiled_is_for_the_platform_named_and_says_what_its_compiler_says():
  lowered = []

  class Step:
    """A `CompiledStep` and all that its `jitted` leads to."""

    def trace(self, *arguments):
      return self

    def lower(self, lowering_platforms):
      lowered.append(lowering_platforms)
      return self

    def compile(self):
      return self

    def memory_analysis(self):
      return SimpleNamespace(argument_size_in_bytes=1, temp_size_in_bytes=2, output_size_in_bytes=4)

    def as_text(self):
      return '"estimated_cycles":"7"'

    jitted = property(lambda self: self)

  with parallel.compiled_for([SimpleNamespace(platform='tpu')]):
    row = compile_for._compiled('abd', hot_steps.Hot(Step(), 1, None, lambda step: ()))
  assert lowered == [('tpu',)]
  assert (row['argument_bytes'], row['temporary_bytes'], row['cycles']) == (1, 2, 7)


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


def test_the_readme_has_what_was_compiled():
  files = (f'experiments/results/benchmark/tpu_v5e{kind}_compiled.json' for kind in ('', '_4', '_bfloat16'))
  assert shown('compiled') == compile_for.markdown_table(*(json.loads((ROOT / file).read_text()) for file in files))


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


@pytest.mark.skipif(not importlib.util.find_spec('libtpu'), reason="TPU's compiler is missing: pip install libtpu")
@pytest.mark.parametrize('chips', [1, 4])
def test_tpus_compiler_takes_every_hot_step(chips, tmp_path):
  out = tmp_path / 'compiled.json'
  said = [f'--{name}={value}'.lower() for name, value in SMALL.items()]
  process = subprocess.run(
      [sys.executable, 'experiments/compile_for.py', '--topology=v5e:2x2', f'--chips={chips}', f'--json={out}', *said],
      cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=400,
  )
  assert process.returncode == 0, process.stderr
  found = json.loads(out.read_text())
  assert found['device'].startswith('TPU v5') and found['chips'] == chips
  assert all(row['cycles'] > 1e4 and row['temporary_bytes'] > 0 for row in found['steps'])
