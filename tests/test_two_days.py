"""The demonstration with photographs deleted in between; what it calls is tested where it is."""

import importlib.util
import json
from pathlib import Path

import pytest
from absl import flags

from abd_jax.errors import UserError

SCRIPT = Path(__file__).parent.parent / 'experiments' / 'two_days.py'


@pytest.fixture
def script(monkeypatch):
  """The script as a module, whose lessons and questions are recorded: (class folders shown, flags)."""
  spec = importlib.util.spec_from_file_location('two_days', SCRIPT)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  module.calls = []

  def folder_py(model, what, *more):
    model.mkdir(exist_ok=True)
    folder = Path(what.split('=')[1])
    shown = {path.name: len(list(path.iterdir())) for path in sorted(folder.iterdir())}
    module.calls.append((what.split('=')[0], model.name, shown, more))
    share = {'first': 25, 'second': 75}.get(folder.name)
    return f'0: 1.0 %\n{share} % of {sum(shown.values())} images are named rightly.\n'

  monkeypatch.setattr(module, 'folder_py', folder_py)
  return module


def ask(script, *arguments):
  asked = flags.FlagValues()
  script.define_flags(asked)
  asked(['two_days.py', *arguments])
  script.run(['--epochs=1'], asked)


def test_each_lesson_is_shown_its_own_classes_alone(script, tmp_path):
  ask(script, '--classes=4', f'--workdir={tmp_path / "days"}', f'--json={tmp_path / "said.json"}')
  lessons = [call[1:] for call in script.calls if call[0] == '--train_dir']
  assert [(model, list(shown), more) for model, shown, more in lessons] == [
      ('model', ['0', '1'], ('--epochs=1',)),
      ('dream', ['2', '3'], ('--epochs=1', '--method=dream')),
      ('abd', ['2', '3'], ('--epochs=1', '--method=abd')),
      ('base', ['2', '3'], ('--epochs=1', '--method=base')),
  ]
  assert not (tmp_path / 'days' / 'photos').exists()
  asked = [(model, shown) for what, model, shown, _ in script.calls if what == '--test_dir']
  assert [model for model, _ in asked] == ['model', 'dream', 'dream', 'abd', 'abd', 'base', 'base']
  sizes = [sum(shown.values()) for _, shown in asked[1:3]]
  said = json.loads((tmp_path / 'said.json').read_text())
  assert said['classes'] == {'first': ['0', '1'], 'second': ['2', '3']} and said['flags'] == ['--epochs=1']
  assert said['accuracy']['after the first day'] == {'first': 25}
  both = round((25 * sizes[0] + 75 * sizes[1]) / sum(sizes), 2)
  assert said['accuracy']['abd'] == {'first': 25, 'second': 75, 'both': both}


def test_a_workdir_with_something_in_it_is_left_alone(script, tmp_path):
  with pytest.raises(UserError, match='exists: name a new one'):
    ask(script, f'--workdir={tmp_path}')
  assert not script.calls


@pytest.mark.parametrize('arguments, sentence', [
    (('--classes=50',), '--classes=50 is more than the 10 of digits.'),
    (('--json={where}/none/a.json',), '--json={where}/none/a.json cannot be written: No such file or directory.'),
])
def test_what_cannot_be_done_is_said_before_anything_is_taught(script, tmp_path, arguments, sentence):
  with pytest.raises(UserError) as refusal:
    ask(script, f'--workdir={tmp_path / "days"}', *(argument.format(where=tmp_path) for argument in arguments))
  assert str(refusal.value) == sentence.format(where=tmp_path)
  assert not script.calls and not (tmp_path / 'days').exists()
