"""What the documents show is what is there."""

import builtins
import json
import re
import subprocess
import sys

import pytest

from abd_jax import methods, plugins
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


@pytest.fixture(scope='module')
def with_its_method(tmp_path_factory):
  """A function that runs a command with the method of the README as a plugin: (arguments) -> what it printed."""
  program = shown('method').removeprefix('```python\n').split('```')[0]
  assert len(program.splitlines()) < 100
  plugin = tmp_path_factory.mktemp('plugin') / 'logit_matching.py'
  plugin.write_text(program)

  def run(*command):
    command = [sys.executable, *map(str, command), f'--plugin={plugin}']
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr
    return process.stdout

  return run


_SHORT = ('--num_classes=4', '--epochs=1', '--decay_at=', '--inversion_steps=2')


def test_its_method_runs_from_outside_the_package_and_is_diagnosed(with_its_method, tmp_path):
  flags = '--method=logit_matching', '--seeds=0', '--num_tasks=2', f'--workdir={tmp_path}', *_SHORT
  assert '| logit_matching | synthetic | 0 |' in with_its_method('experiments/digits.py', *flags)
  run = tmp_path / 'logit_matching' / 'seed0'
  results = Results.load(run)
  assert results.method == 'logit_matching' and len(results.accuracy_after_task) == 2
  assert (run / 'synthetic_task2.png').exists()
  assert 'MID real_old to real_new' in with_its_method('-m', 'abd_jax.diagnose', '--images=20', tmp_path)
  assert (run / 'diagnostics.json').exists()
  assert '| logit_matching | synthetic | 0 |' in with_its_method('-m', 'abd_jax.report', tmp_path)


def test_its_methods_hyperparameters_are_swept(with_its_method, tmp_path):
  flags = '--flagfile=experiments/flags/digits.flags', '--method=logit_matching', f'--workdir={tmp_path}', *_SHORT
  grid = '--num_tasks=4', '--folds=2', '--hyperparameters=', '--grid=distillation_weight=0.1,1'
  table = with_its_method('experiments/sweep.py', *flags, *grid)
  assert table.count('| distillation_weight | ') == 2


def test_a_plugin_that_is_none_is_refused(tmp_path):
  for path, sentence in (
      (tmp_path / 'mine.py', 'mine.py is no Python file: it is to be one that registers methods of your own.'),
      (ROOT / 'README.md', 'README.md is no Python file: it is to be one that registers methods of your own.'),
  ):
    with pytest.raises(UserError) as refusal:
      plugins.load(path)
    assert str(refusal.value).startswith(f'--plugin={path.parent}') and str(refusal.value).endswith(sentence)


def test_a_plugin_is_run_once(tmp_path, monkeypatch):
  plugin = tmp_path / 'a_plugin_of_tests.py'
  plugin.write_text('import builtins\nbuiltins.runs_of_plugin = getattr(builtins, "runs_of_plugin", 0) + 1\n')
  monkeypatch.setattr(builtins, 'runs_of_plugin', 0, raising=False)
  for path in (plugin, str(plugin), tmp_path / '.' / plugin.name):
    plugins.load(path)
  assert builtins.runs_of_plugin == 1


def test_a_plugin_hides_no_package_and_imports_what_lies_beside_it(tmp_path, monkeypatch):
  monkeypatch.setattr(sys, 'path', [*sys.path])
  monkeypatch.setattr(builtins, 'met', [], raising=False)
  (tmp_path / 'beside_the_plugin.py').write_text('NAME = "beside"')
  (tmp_path / 'json.py').write_text('import builtins, beside_the_plugin\nbuiltins.met.append(beside_the_plugin.NAME)')
  plugins.load(tmp_path / 'json.py')
  assert builtins.met == ['beside'] and sys.modules['json'] is json


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
    *((Method(name, (), ()), 'is no name for a method') for name in ('..', 'a/b', '', 'sweep', 'a b', '-a')),
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


def test_what_is_said_of_the_h100_is_in_its_files():
  results = ROOT / 'experiments' / 'results'
  seconds = json.loads((results / 'cifar100_10_abd_seed0.json').read_text())['seconds']
  at_first = seconds['total'] - sum(seconds[name] for name in ('train', 'inversion', 'eval', 'compile'))
  steps = json.loads((results / 'benchmark' / 'h100_bfloat16.json').read_text())['steps']
  first, abd, generator = (f'{step["milliseconds"]:.1f}' for step in steps)
  profiled = json.loads((results / 'benchmark' / 'h100_before_profile.json').read_text())['steps']
  [before] = [step for step in profiled if (step['step'], step['precision']) == ('abd', 'bfloat16')]
  of_16 = sum(part['microseconds'] for name, part in before['parts'].items() if name.endswith(' 16 channels'))
  for document, said in {
      'README.md': [f'--precision=bfloat16`): {seconds["total"] / 60:.1f} minutes,'],
      'experiments/README.md': [
          f'took {seconds["total"]:.0f} seconds: {seconds["train"]:.0f} of learning, {seconds["inversion"]:.0f} of'
          f' inversion, {seconds["eval"]:.0f} of evaluation, {seconds["compile"]:.0f} in which a step waited for its'
          ' compilation, and'
          f' {at_first:.0f} before',
          f'it takes {abd}, those of the first task and of the generator {first} and {generator}',
          f'of the {before["busy_microseconds"] / 1000:.1f} ms in which', f'took {of_16 / 1000:.1f} (`',
      ],
  }.items():
    text = ' '.join((ROOT / document).read_text().split())
    assert all(part in text for part in said), (document, said)
