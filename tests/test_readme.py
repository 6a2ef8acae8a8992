"""What the documents show is what is there."""

import json
import re
import subprocess
import sys

import pytest

from abd_jax import methods
from abd_jax.errors import UserError
from abd_jax.methods.interface import Method, Phase
from abd_jax.report import command as report
from abd_jax.results import Results
from tests.documents import ROOT, shown


@pytest.mark.parametrize('mark, folder', [
    ('results', '.'), ('coreset 100', 'mini_coreset_100'), ('250 epochs', 'mini_250_epochs')
])
def test_its_tables_are_the_reports(capsys, mark, folder):
  assert report.main([str(path) for path in sorted((ROOT / 'experiments' / 'results' / folder).glob('*.json'))]) == 0
  assert shown(mark).strip() == capsys.readouterr().out.strip()


@pytest.mark.parametrize('document', ['README.md', 'experiments/README.md'])
def test_its_links_lead_somewhere(document):
  links = re.findall(r'\]\(([^)\s]+)\)', (ROOT / document).read_text())
  for link in (link for link in links if not link.startswith('https://')):
    path, _, section = link.partition('#')
    target = (ROOT / document).parent / path if path else ROOT / document
    assert target.exists(), link
    if section:
      heads = re.findall(r'^#+ (.*)$', target.read_text().lower(), re.MULTILINE)
      assert section in [re.sub(r'[^a-z0-9 -]', '', head).replace(' ', '-') for head in heads], link


def test_every_module_has_its_place_in_what_is_said_of_the_build():
  said = (ROOT / 'README.md').read_text().split('## How it is built')[1].split('\n## ')[0]
  package = ROOT / 'abd_jax'
  modules = {path.name for folder in ('.', 'report', 'benchmark') for path in (package / folder).glob('[a-z]*.py')}
  packages = {path.parent.name + '/' for path in package.glob('*/__init__.py')}
  assert set(re.findall(r'`([a-z_]+(?:\.py|/))`', said)) - {'abd.py', 'templates/'} == modules | packages


def test_its_method_runs_from_outside_the_package(tmp_path):
  program = shown('method').removeprefix('```python\n').split('```')[0]
  assert len(program.splitlines()) < 100
  script = tmp_path / 'logit_matching.py'
  script.write_text(program)
  process = subprocess.run(
      [
          sys.executable, script, '--flagfile=experiments/flags/digits.flags', '--method=logit_matching', '--seeds=0',
          f'--workdir={tmp_path / "runs"}', '--num_classes=4', '--num_tasks=2', '--epochs=1', '--decay_at=',
          '--inversion_steps=2',
      ],
      cwd=ROOT, capture_output=True, text=True, timeout=300,
  )
  assert process.returncode == 0, process.stderr
  assert '| logit_matching | synthetic | 0 |' in process.stdout
  results = Results.load(tmp_path / 'runs' / 'logit_matching' / 'seed0')
  assert results.method == 'logit_matching' and len(results.accuracy_after_task) == 2
  assert (tmp_path / 'runs' / 'logit_matching' / 'seed0' / 'synthetic_task2.png').exists()


def test_a_method_registered_again_is_replaced_and_the_packages_own_are_not(monkeypatch):
  monkeypatch.setattr(methods, 'METHODS', dict(methods.METHODS))
  first, second = Method('mine', (), ()), Method('mine', (), (), cumulative=True)
  methods.register(first)
  methods.register(second)
  assert methods.METHODS['mine'] is second
  with pytest.raises(UserError, match='There is a method called abd already: choose another name.'):
    methods.register(Method('abd', (), ()))


@pytest.mark.parametrize('wrong, sentence', [
    (Method('mine', Phase('learn', None), ()), r'mine: first is a tuple of phases, \(Phase\(...\),\)\.'),
    (Method('mine', (Phase('learn', None),), (Phase('learn', None),), closes=print), 'no phase has dreams=True'),
])
def test_a_method_that_would_fail_after_its_first_task_is_refused_before(wrong, sentence):
  with pytest.raises(UserError, match=sentence):
    methods.register(wrong)


def test_its_many_tasks_are_the_committed_ones():
  said = shown('scale')
  runs = json.loads((ROOT / 'experiments' / 'results' / 'scale' / 'cpu.json').read_text())['runs']
  for run in (run for run in runs if run['tasks'] > 5):
    pairs = [
        ', then '.join(f'{run[f"{kind}_seconds_{part}"]:.2f}' for part in ('early', 'late'))
        for kind in ('train', 'inversion', 'eval')
    ]
    held = [f'{run["memory_bytes"][task] / 1e6:.0f}' for task in (9, -1)]
    assert '| ' + ' | '.join([str(run['tasks']), *pairs, *held]) + ' |\n' in said


def test_its_faults_are_the_committed_ones():
  said = shown('faults').replace('\n', ' ')
  report = json.loads((ROOT / 'experiments' / 'results' / 'faults' / 'faults.json').read_text())
  assert f'{report["tried"]} faults tried, {report["survived"]} survived' in said
  signals = sum(n['tried'] for fault, n in report['faults'].items() if 'SIG' in fault)
  assert f'{signals} kills and SIGTERMs' in said
  lost, stopping = report['work_lost_by_a_kill'], report['from_sigterm_to_the_end']
  assert f'{lost["median"]:.1f} s of work in the median' in said
  assert f'{lost["worst"]:.1f} s at worst' in said
  assert f'{stopping["worst"]:.1f} s at most' in said
  places = report['resumed_in']
  assert f'{places["inversion"]} times in an inversion, {places["between phases"]} times between phases and' in said
  assert f'{places["learning"]} times in learning' in said and len(places) == 3
