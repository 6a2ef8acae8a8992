"""Compiles the three hot steps for devices that are not there.

For TPUs `pip install libtpu` is needed, for GPUs `pip install -e '.[cuda]'`, and no such device.

  python experiments/compile_for.py --topology=v5e:2x2 --json=compiled.json
  python experiments/compile_for.py --topology=h100
  python experiments/compile_for.py --topology=v5e:2x2 --chips=1 --student=resnet18 --image_size=224 --batch_size=64
"""

import json
import os

os.environ.setdefault('JAX_PLATFORMS', 'cpu')  # before jax is imported: a compiler is there, its device is not

from absl import flags

from abd_jax import config, experiment
from abd_jax.benchmark import compile_for, gpus
from abd_jax.files import check_writable, write_whole

TOPOLOGY = flags.DEFINE_string(
    'topology', 'v5e:2x2',
    f'chips, as TPU\'s compiler names them: v5e:4x4, v4:2x2x1; or a GPU: {", ".join(gpus.BANDWIDTH)}',
)
CHIPS = flags.DEFINE_integer('chips', None, 'so many of them; without it all, of GPUs one')
JSON = flags.DEFINE_string('json', '', 'where the figures go')


def main(settings):
  place = check_writable(JSON.value, '--json=')
  found = compile_for.run(settings, TOPOLOGY.value, CHIPS.value)
  print(compile_for.markdown_table(found))
  if place:
    write_whole(place, json.dumps(found, indent=1) + '\n')


if __name__ == '__main__':
  experiment.launch(config.with_values(config.Config(), dict(dataset='random', num_tasks=10)), main)
