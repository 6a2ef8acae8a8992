"""The authors' PyTorch weights as Flax variables: arrays in, arrays out.

  python -m abd_jax.interop class.pth model --class_names=names.txt --seen=20

makes a model that `learner.Learner.load` reads, and that learns further classes, of a checkpoint of theirs: `.pth` (the
one thing that needs PyTorch), `.safetensors` or `.npz`.
"""

import json
import re
import struct
import sys
from collections.abc import Mapping

import numpy as np
from absl import flags

from abd_jax import npz
from abd_jax.data.sources import CIFAR100_MEAN, CIFAR100_STD
from abd_jax.errors import UserError
from abd_jax.learner import Learner
from abd_jax.models import STUDENTS, make_student
from abd_jax.models.generator import Generator
from abd_jax.models.resnet import ResNet
from abd_jax.written import path_of


def _conv(weight_OIHW):
  return np.transpose(weight_OIHW, (2, 3, 1, 0))  # to HWIO


def _batch_norm(weights, name):
  """The (params, batch_stats) of the BatchNorm called `name`."""
  params = {'scale': weights[f'{name}.weight'], 'bias': weights[f'{name}.bias']}
  return params, {'mean': weights[f'{name}.running_mean'], 'var': weights[f'{name}.running_var']}


class _Weights(dict):
  """Arrays by name, of a network that a missing one is not of."""

  def __init__(self, state_dict, network):
    super().__init__({name: np.asarray(array) for name, array in state_dict.items()})
    self._network = network

  def __missing__(self, name):
    raise ValueError(f'these are not the weights of {self._network}: {name} is not among them')


def resnet_from_torch(state_dict: Mapping[str, np.ndarray]):
  """A CIFAR ResNet from the names and layouts of the authors' release.

  Args:
    state_dict: array by name: conv1.weight, bn1.*, layer<stage>.<block>.{conv1,bn1,conv2,bn2}.*, last.{weight,bias};
      convolutions OIHW.

  Returns:
    (model, variables): a `ResNet` of the right depth and head, and {'params', 'batch_stats'} for its `apply`.

  Raises:
    ValueError: the names are not those of such a network.
  """
  weights = _Weights(state_dict, 'a CIFAR ResNet')
  blocks = sorted({m.groups() for name in weights if (m := re.match(r'layer(\d)\.(\d+)\.', name))})
  count = len(blocks) // 3
  if not blocks or blocks != [(str(stage), str(block)) for stage in (1, 2, 3) for block in range(count)]:
    raise ValueError(f'these are not the weights of a CIFAR ResNet: {len(blocks)} blocks are not three equal stages')
  params = {
      'conv1': {'kernel': _conv(weights['conv1.weight'])},
      'head': {'kernel': weights['last.weight'].T, 'bias': weights['last.bias']},
  }
  batch_stats = {}
  params['bn1'], batch_stats['bn1'] = _batch_norm(weights, 'bn1')
  for stage, block in blocks:
    ours, theirs = f'layer{stage}_{block}', f'layer{stage}.{block}'
    params[ours], batch_stats[ours] = {}, {}
    for i in (1, 2):
      params[ours][f'conv{i}'] = {'kernel': _conv(weights[f'{theirs}.conv{i}.weight'])}
      params[ours][f'bn{i}'], batch_stats[ours][f'bn{i}'] = _batch_norm(weights, f'{theirs}.bn{i}')
  model = ResNet(blocks_per_stage=count, num_classes=len(weights['last.bias']))
  return model, {'params': params, 'batch_stats': batch_stats}


def generator_from_torch(state_dict: Mapping[str, np.ndarray]):
  """The CIFAR generator from the names and layouts of the authors' release.

  Args:
    state_dict: array by name: l1.0.{weight,bias}, conv_blocks0.0.*, conv_blocks1.{0,1}.*, conv_blocks2.{0,1,3,5}.*;
      convolutions OIHW, the linear layer's rows in CHW order. Images are taken to be square.

  Returns:
    (model, variables): a `Generator` and {'params', 'batch_stats'} for its `apply`.

  Raises:
    ValueError: the names are not those of such a network.
  """
  weights = _Weights(state_dict, 'the CIFAR generator')
  stem_width = len(weights['conv_blocks0.0.weight'])
  side = round((len(weights['l1.0.bias']) / stem_width) ** 0.5)
  by_pixel = np.arange(stem_width * side * side).reshape(stem_width, side, side).transpose(1, 2, 0).ravel()
  params = {'stem': {'kernel': weights['l1.0.weight'][by_pixel].T, 'bias': weights['l1.0.bias'][by_pixel]}}
  batch_stats = {}
  for ours, theirs in {'conv1': 'conv_blocks1.0', 'conv2': 'conv_blocks2.0', 'conv_out': 'conv_blocks2.3'}.items():
    params[ours] = {'kernel': _conv(weights[f'{theirs}.weight']), 'bias': weights[f'{theirs}.bias']}
  for ours, theirs in {'bn0': 'conv_blocks0.0', 'bn1': 'conv_blocks1.1', 'bn2': 'conv_blocks2.1'}.items():
    params[ours], batch_stats[ours] = _batch_norm(weights, theirs)
  last = 'conv_blocks2.5'  # which has no scale
  batch_stats['bn_out'] = {'mean': weights[f'{last}.running_mean'], 'var': weights[f'{last}.running_var']}
  model = Generator(
      image_shape=(4 * side, 4 * side, len(weights['conv_blocks2.3.bias'])),
      stem_width=stem_width,
      stage_widths=(len(weights['conv_blocks1.0.bias']), len(weights['conv_blocks2.0.bias'])),
  )
  return model, {'params': params, 'batch_stats': batch_stats}


def read_arrays(path):
  """{name: array} of a checkpoint: .pth or .pt (needs PyTorch), .safetensors, .npz. Nothing in it is executed.

  Raises:
    UserError: it cannot be read as one, or PyTorch is missing.
  """
  path = path_of(path)
  readers = {
      '.pth': _read_torch, '.pt': _read_torch, '.safetensors': _read_safetensors,
      '.npz': lambda path: npz.read(path, path),
  }
  if path.suffix not in readers:
    raise UserError(f'{path} is not one of {", ".join(readers)}.')
  if not path.is_file():
    raise UserError(f'There is no file {path}.')
  arrays = readers[path.suffix](path)
  # What a network trained on several devices puts before its names.
  return {name.removeprefix('module.'): array for name, array in arrays.items()}


def _read_torch(path):
  try:
    import torch
  except ImportError:
    raise UserError(
        f'{path} needs PyTorch to be read (pip install torch); a .safetensors or .npz file of the same arrays needs'
        ' nothing.'
    ) from None
  try:
    found = torch.load(path, map_location='cpu', weights_only=True)
    found = found.get('state_dict', found)
    return {name: tensor.detach().numpy() for name, tensor in found.items() if isinstance(tensor, torch.Tensor)}
  except Exception as error:  # PyTorch raises whatever it meets in a file that is none of its own
    raise UserError(f'{path} cannot be read as a PyTorch state dict: {str(error).splitlines()[0]}.') from None


_SAFETENSORS = {'F64': '<f8', 'F32': '<f4', 'F16': '<f2', 'I64': '<i8', 'I32': '<i4'}


def _read_safetensors(path):
  """A length in 8 bytes, so many of JSON that say where each array lies, and the arrays."""
  content = path.read_bytes()
  try:
    (length,) = struct.unpack_from('<Q', content)
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    header.pop('__metadata__', None)
    arrays = {}
    for name, said in header.items():
      start, stop = said['data_offsets']
      flat = np.frombuffer(data[start:stop], _SAFETENSORS[said['dtype']])
      arrays[name] = flat.reshape(said['shape'])
    return arrays
  except Exception as error:  # whatever it is that was no header
    raise UserError(f'{path} cannot be read as safetensors: {error!r}.') from None


def learner_from_torch(state_dict, class_names, mean=CIFAR100_MEAN, std=CIFAR100_STD, **settings):
  """A `learner.Learner` that knows what a CIFAR ResNet of the authors' release knows.

  Args:
    state_dict: as for `resnet_from_torch`.
    class_names: of the classes learned, in the order of the head's first rows.
    mean, std: per channel on [0, 1], what its images were standardised by.
    **settings: as in `learner.Learner`, the student apart.

  Raises:
    UserError: the weights are not of a network known here, or the head has fewer classes.
  """
  try:
    model, variables = resnet_from_torch(state_dict)
  except ValueError as error:
    sentence = str(error)
    raise UserError(f'{sentence[0].upper()}{sentence[1:]}.') from None
  students = [name for name in STUDENTS if make_student(name, model.num_classes) == model]
  if not students:
    raise UserError(f'A ResNet of {6 * model.blocks_per_stage + 2} layers is not one of {", ".join(STUDENTS)}.')
  return Learner.from_variables(variables, class_names, mean, std, student=students[0], **settings)


def _define_flags():
  script = {'module_name': sys.argv[0]}
  flags.DEFINE_integer('seen', 0, 'rows of the head that are learned; 0: all that have names', lower_bound=0, **script)
  flags.DEFINE_string('class_names', '', 'a file of names, one a line, in the head\'s order; else class0 ...', **script)
  flags.DEFINE_integer('image_size', 32, 'pixels a side', lower_bound=1, **script)
  flags.DEFINE_list('mean', list(map(str, CIFAR100_MEAN)), 'per channel on [0, 1], what standardised images', **script)
  flags.DEFINE_list('std', list(map(str, CIFAR100_STD)), 'likewise', **script)


def _import(arguments):
  """The model directory `arguments[1]` of the checkpoint `arguments[0]`."""
  if len(arguments) != 2:
    raise UserError('Two arguments are needed: python -m abd_jax.interop CHECKPOINT MODEL_DIR.')
  checkpoint, path = arguments
  asked = flags.FLAGS
  weights = read_arrays(checkpoint)
  names = [f'class{i}' for i in range(np.size(weights.get('last.bias', ())))]
  if asked.class_names:
    try:
      names = path_of(asked.class_names, '--class_names=').read_text('utf-8-sig').rstrip().splitlines()
    except (OSError, UnicodeDecodeError) as error:
      raise UserError(f'--class_names={asked.class_names} cannot be read: {error}.') from None
  seen = asked.seen or len(names)
  if len(names) < seen:
    raise UserError(f'--seen={asked.seen} is more than the {len(names)} classes that there are names for.')
  try:
    mean, std = (tuple(map(float, figures)) for figures in (asked.mean, asked.std))
  except ValueError as error:
    raise UserError(f'--mean and --std must be numbers with commas between them: {error}.') from None
  model = learner_from_torch(weights, names[:seen], mean, std, image_size=asked.image_size)
  model.save(path)
  print(f'{path} holds {model.classifier.config.student} with {seen} classes.')


if __name__ == '__main__':
  from abd_jax import experiment

  experiment.start(_define_flags, _import)
