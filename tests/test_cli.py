"""What a user meets at the prompt: sentences, exit statuses, and a run from a flagfile."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from abd_jax import config, experiment
from abd_jax.config import with_values
from abd_jax.errors import UserError

ROOT = Path(__file__).parent.parent


def run(*command):
  return subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_ctrl_c_and_a_reader_that_has_gone_end_without_a_traceback(tmp_path):
  command = [sys.executable, 'experiments/digits.py', '--method=base', f'--workdir={tmp_path / "run"}']
  before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests are in the background
  process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
  signal.signal(signal.SIGINT, before)
  for line in process.stdout:
    if 'step' in line:
      break
  process.send_signal(signal.SIGINT)
  _, said = process.communicate(timeout=60)
  assert said == 'Interrupted. A run goes on from its last checkpoint when its command is given again.\n'
  assert process.returncode == 130
  program = "from abd_jax import experiment\nexperiment.start(lambda: None, lambda _: print(100_000 * 'dog '))"
  process = subprocess.Popen(
      [sys.executable, '-c', program], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
  )
  process.stdout.close()
  assert process.stderr.read() == '' and process.wait(timeout=60) == 1
  process.stderr.close()


def test_help_lists_the_flags():
  process = run('experiments/digits.py', '--help')
  assert '--inversion_steps' in process.stdout and 'steps of generator training before each task' in process.stdout


def test_another_runs_workdir_is_refused_before_any_training(tmp_path):
  other = tmp_path / 'base' / 'seed1'
  other.mkdir(parents=True)
  (other / 'flags.txt').write_text('--learning_rate=0.5\n')
  process = run('experiments/digits.py', f'--workdir={tmp_path}', '--method=base', '--seeds=0,1')
  assert process.returncode == 2 and f'--workdir={other} holds a run with --' in process.stderr
  assert 'step' not in process.stdout


@pytest.mark.parametrize('changes, said', [
    (dict(epochs=30), '--decay_at=100,150,200: --epochs=30 come to none of them'),
    (dict(epochs=9, decay_at=(9,)), '--decay_at=9: --epochs=9 come to none of them'),
    (dict(epochs=101), ''), (dict(epochs=30, decay_at=()), ''),
])
def test_a_schedule_that_never_decays_is_said(changes, said, tmp_path, monkeypatch, capsys):
  def train(*args):
    raise UserError('Training begins.')

  monkeypatch.setattr(experiment, '_train', train)
  settings = with_values(config.Config(), {'method': 'base', 'student': 'resnet8', 'workdir': str(tmp_path), **changes})
  with pytest.raises(UserError, match='Training begins.'):
    experiment.run_all(settings)
  assert capsys.readouterr().out == (said and f'{said}, and the learning rate stays as it is.\n')


def test_an_archive_that_is_not_the_distributed_one(tmp_path):
  pytest.importorskip('tensorflow_datasets')
  (tmp_path / 'cifar-100-binary.tar.gz').write_bytes(b'half of it')
  process = run('experiments/cifar100.py', f'--data_dir={tmp_path}', '--flagfile=experiments/flags/cifar100_mini.flags')
  assert process.returncode == 2 and 'SHA-256' in process.stderr and 'Traceback' not in process.stderr


def test_a_comparison_ends_in_a_table_and_pictures(tmp_path):
  process = run(
      'experiments/digits.py', f'--workdir={tmp_path}', '--method=abd,base', '--num_classes=4', '--num_tasks=2',
      '--epochs=1', '--inversion_steps=2', '--decay_at=',
  )
  assert process.returncode == 0, process.stderr
  assert '| abd | synthetic | 0 |' in process.stdout and '| base | none | 0 |' in process.stdout
  assert (tmp_path / 'abd' / 'seed0' / 'synthetic_task2.png').stat().st_size > 1000
  assert (tmp_path / 'base' / 'seed0' / 'results.json').exists()
  assert '<h1>2 runs compared</h1>' in (tmp_path / 'report.html').read_text()
  assert '<h1>base on digits, seed 0</h1>' in (tmp_path / 'base' / 'seed0' / 'report.html').read_text()
  base = tmp_path / 'base' / 'seed0' / 'results.json'
  table = run('-m', 'abd_jax.report', str(tmp_path / 'abd' / 'seed0'), str(base))
  assert table.returncode == 0 and '| base | none | 0 |' in table.stdout
  assert run('-m', 'abd_jax.report', str(tmp_path)).stdout == table.stdout
  nothing = run('-m', 'abd_jax.report', str(tmp_path / 'abd' / 'seed0' / 'checkpoints'))
  assert nothing.returncode == 2 and 'holds no results.json of a finished run.' in nothing.stderr


def test_importing_and_training_from_arrays_needs_none_of_the_lazy_packages(tmp_path):
  program = f"""
import sys
for name in ('tensorflow_datasets', 'sklearn', 'PIL', 'matplotlib', 'tensorflow', 'torch', 'tensorboardX', 'jinja2'):
  sys.modules[name] = None  # importing it now raises
import numpy as np
from abd_jax import config, data, train
from abd_jax.data.sources import Dataset
images = np.zeros((8, 8, 8, 1), np.uint8)
labels = np.arange(8) % 2
dataset = Dataset('mine', images, labels, images, labels, ('a', 'b'), (0.5,), (0.5,))
c = dict(method='abd', num_tasks=2, student='resnet8', epochs=1, batch_size=4, inversion_steps=1)
c = config.with_values(config.Config(), c)
print(train.run(c, {str(tmp_path)!r}, dataset).final_accuracy)
"""
  process = run('-c', program)
  assert process.returncode == 0, process.stderr
