"""The authors' PyTorch weights as Flax variables: arrays in, arrays out, no PyTorch needed."""

import re
from collections.abc import Mapping

import numpy as np

from abd_jax.models.generator import Generator
from abd_jax.models.resnet import ResNet


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
  side = int(round((len(weights['l1.0.bias']) / stem_width) ** 0.5))
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
