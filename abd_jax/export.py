"""A classifier as a program that needs no abd_jax: StableHLO with its weights, through `jax.export`."""

import json

import jax
import jax.numpy as jnp

from abd_jax.files import writing
from abd_jax.models import convolution
from abd_jax.written import path_of

PROGRAM = 'predict.stablehlo'
PLATFORMS = ('cpu', 'cuda', 'tpu')


def export(networks, variables, class_names, path):
  """Writes the classifier to a directory: predict.stablehlo, and classes.json with the names in its output's order.

    exported = jax.export.deserialize((path / 'predict.stablehlo').read_bytes())
    probabilities = exported.call(images)                   # u8[N, H, W, C] -> f32[N, K], any N

  Args:
    networks: the `networks.Networks`.
    variables: {'params', 'batch_stats'}; they become constants of the program.
    class_names: of the K classes learned.
    path: the directory, created if need be.

  Raises:
    UserError: the directory cannot be written.
  """
  model, normalise = networks.classifier, networks.normalise

  def predict(images):
    logits = model.apply(variables, normalise(images.astype(jnp.float32)), train=False)
    return jax.nn.softmax(logits[:, : len(class_names)])

  shape = (*jax.export.symbolic_shape('batch'), *networks.image_shape)
  with convolution.portable():
    exported = jax.export.export(jax.jit(predict), platforms=PLATFORMS)(jax.ShapeDtypeStruct(shape, jnp.uint8))
  said = {'classes': class_names, 'input': ['batch', *networks.image_shape], 'type': 'uint8', 'platforms': PLATFORMS}
  path = check_writable(path)
  with writing(path):
    (path / PROGRAM).write_bytes(exported.serialize())
    (path / 'classes.json').write_text(json.dumps(said, indent=1) + '\n')


def check_writable(path):
  """The directory of a program, made where it is not there.

  Raises:
    UserError: it cannot be written.
  """
  path = path_of(path)
  with writing(path):
    path.mkdir(parents=True, exist_ok=True)
    (path / PROGRAM).open('ab').close()
  return path
