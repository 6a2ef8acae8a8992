"""Checkpoints of the authors' code: read from every format, turned into models that go on learning."""

import json
import struct
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from abd_jax import interop
from abd_jax.errors import UserError
from abd_jax.learner import Learner
from tests import golden_figures

ROOT = Path(__file__).parent.parent
FLAT = dict(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), image_size=8)


@pytest.fixture(scope='module')
def weights():
  """A ResNet-8 of five classes, as their code names its arrays when several devices trained it."""
  teacher = golden_figures.below(golden_figures.load('golden_resnet8'), 'teacher/')
  return {f'module.{name}': array for name, array in teacher.items()}


def write_npz(path, arrays):
  np.savez(path, **arrays)


def write_safetensors(path, arrays):
  header, data = {'__metadata__': {'format': 'pt'}}, b''
  for name, array in arrays.items():
    said = {'float32': 'F32', 'int64': 'I64'}[str(array.dtype)]
    header[name] = {'dtype': said, 'shape': array.shape, 'data_offsets': [len(data), len(data) + array.nbytes]}
    data += np.ascontiguousarray(array).tobytes()
  text = json.dumps(header).encode()
  path.write_bytes(struct.pack('<Q', len(text)) + text + data)


def write_torch(path, arrays):
  torch = pytest.importorskip('torch', reason='PyTorch, which writes .pth, is not installed')
  torch.save({name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}, path)


@pytest.mark.parametrize('name, write', [
    ('class.npz', write_npz), ('class.safetensors', write_safetensors), ('class.pth', write_torch),
])
def test_every_format_gives_the_same_arrays(tmp_path, weights, name, write):
  write(tmp_path / name, weights)
  arrays = interop.read_arrays(tmp_path / name)
  assert {f'module.{name}' for name in arrays} == set(weights)
  for key, array in arrays.items():
    np.testing.assert_array_equal(array, weights[f'module.{key}'])


@pytest.fixture(scope='module')
def imported(weights, tmp_path_factory):
  """The directory that the command makes of the first four classes."""
  folder = tmp_path_factory.mktemp('imported')
  write_npz(folder / 'class.npz', weights)
  (folder / 'names.txt').write_bytes(b'\xef\xbb\xbfapple\r\nbear\r\nbee\r\nbowl\r\n\r\n')  # as editors on Windows do
  command = (
      sys.executable, '-m', 'abd_jax.interop', folder / 'class.npz', folder / 'model', '--image_size=8',
      f'--class_names={folder / "names.txt"}', '--mean=0.5,0.5,0.5', '--std=0.25,0.25,0.25',
  )
  process = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, timeout=120)
  assert process.returncode == 0, process.stderr
  assert 'holds resnet8 with 4 classes' in process.stdout
  return folder / 'model'


def test_an_imported_model_says_what_its_network_says(imported, weights):
  model = Learner.load(imported)
  assert model.class_names == ('apple', 'bear', 'bee', 'bowl')
  images = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3)).astype(np.uint8)
  stripped = {name.removeprefix('module.'): array for name, array in weights.items()}
  network, variables = interop.resnet_from_torch(stripped)
  logits = network.apply(variables, (images / 255 - 0.5).astype(np.float32) / 0.25, train=False)
  expected = jax.nn.softmax(logits[:, :4])
  np.testing.assert_allclose(model.predict(images).probabilities, expected, rtol=2e-4, atol=1e-6)


def test_without_pytorch_a_sentence_says_what_else_serves(tmp_path, monkeypatch):
  (tmp_path / 'class.pth').touch()
  monkeypatch.setitem(sys.modules, 'torch', None)
  with pytest.raises(UserError, match='needs PyTorch to be read .*safetensors or .npz'):
    interop.read_arrays(tmp_path / 'class.pth')


# Of nine floats, none of which follow.
PROMISE = b'{"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 36]}}'


@pytest.mark.parametrize('name, content, sentence', [
    ('class.bin', b'', 'is not one of .pth, .pt, .safetensors, .npz'),
    ('class.npz', b'PK\x03\x04', 'cannot be read as an npz file'),
    ('class.safetensors', b'', 'cannot be read as safetensors'),
    ('class.safetensors', struct.pack('<Q', 2) + b'[]', 'cannot be read as safetensors'),
    ('class.safetensors', struct.pack('<Q', len(PROMISE)) + PROMISE, 'cannot reshape array of size 0'),
])
def test_damaged_checkpoints_are_refused_by_a_sentence(tmp_path, name, content, sentence):
  (tmp_path / name).write_bytes(content)
  with pytest.raises(UserError, match=sentence):
    interop.read_arrays(tmp_path / name)
  with pytest.raises(UserError, match='There is no file'):
    interop.read_arrays(tmp_path / 'none.npz')


@pytest.mark.parametrize('change, names, sentence', [
    (lambda w: {'conv1.weight': w['conv1.weight']}, 5, 'These are not the weights of a CIFAR ResNet: 0 blocks'),
    (lambda w: w, 6, 'The head has 5 classes, fewer than the 6 class names'),
    (lambda w: {**w, 'conv1.weight': w['conv1.weight'][:, :1]}, 5, 'has params/conv1/kernel float32\\[3, 3, 3, 16\\]'),
    (lambda w: w | {n.replace('.0.', f'.{i}.'): a for n, a in w.items() for i in (1,) if n.startswith('layer')}, 5,
     'A ResNet of 14 layers is not one of'),
])
def test_weights_of_another_network_are_refused_by_a_sentence(weights, change, names, sentence):
  stripped = {name.removeprefix('module.'): array for name, array in weights.items()}
  with pytest.raises(UserError, match=sentence):
    interop.learner_from_torch(change(stripped), [f'class{i}' for i in range(names)], **FLAT)
