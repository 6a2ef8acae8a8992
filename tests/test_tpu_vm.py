"""The TPU VM script against a stand-in for gcloud that plays two workers on this machine."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Runs what it is told on two workers, each with a home of its own, and writes down how it was called.
GCLOUD = '''#!/usr/bin/env bash
echo "$@" | head -1 >> "$STAND_IN/calls"
for worker in 0 1; do
  export HOME=$STAND_IN/worker$worker
  mkdir -p "$HOME"
  for argument in "$@"; do
    case $argument in
      --command=*) bash -c "${argument#--command=}" || exit 1 ;;
      *.tar.gz) cp "$argument" "$HOME/" ;;
    esac
  done
done
'''
# Stands for making an environment, of which the test needs but the trace.
PYTHON = '''#!/usr/bin/env bash
echo made >> "$HOME/environments"
mkdir -p "$3/bin" && touch "$3/bin/activate"
printf '#!/usr/bin/env bash\\nexit ${PIP_FAILS:-0}\\n' > "$3/bin/python" && chmod +x "$3/bin/python"
'''


@pytest.fixture
def launch(tmp_path):
  bin_folder = tmp_path / 'bin'
  bin_folder.mkdir()
  for name, text in (('gcloud', GCLOUD), ('python3.11', PYTHON)):
    (bin_folder / name).write_text(text)
    (bin_folder / name).chmod(0o755)

  def run(*arguments, **environment):
    environment = os.environ | {'PATH': f'{bin_folder}:{os.environ["PATH"]}', 'STAND_IN': str(tmp_path)} | environment
    command = ['experiments/tpu_vm.sh', *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)

  return run


def test_every_worker_runs_the_command_in_an_environment_made_once(launch, tmp_path):
  command = ['bash', '-c', 'ls; printf "%s|" "$@"', 'name', 'two words']
  for _ in range(2):
    process = launch('slice', 'here-1a', *command)
    assert process.returncode == 0, process.stderr
  # On each of the two workers, the checkout unpacked and the words unbroken.
  assert process.stdout.count('two words|--distributed=auto|') == 2
  assert process.stdout.count('requirements-tpu.txt') == 2
  assert [(tmp_path / f'worker{i}' / 'environments').read_text() for i in (0, 1)] == ['made\n', 'made\n']
  calls = (tmp_path / 'calls').read_text()
  assert calls.count('tpu-vm scp') == 2 and calls.count('tpu-vm ssh slice') == 4


def test_an_environment_that_failed_is_made_again(launch, tmp_path):
  assert launch('slice', 'here-1a', 'echo', 'ran', PIP_FAILS='1').returncode != 0
  process = launch('slice', 'here-1a', 'echo', 'ran')
  assert process.returncode == 0 and process.stdout.count('ran --distributed=auto') == 2
  assert (tmp_path / 'worker0' / 'environments').read_text() == 'made\nmade\n'


def test_a_command_that_fails_and_a_missing_one_say_so(launch):
  assert launch('slice', 'here-1a', 'false').returncode != 0
  process = launch('slice', 'here-1a')
  assert process.returncode == 2 and 'usage' in process.stderr
