"""Times the three hot steps at the paper's sizes (ResNet-32, batch 128, 32x32 pixels).

  python experiments/benchmark.py --json=benchmark.json
  python experiments/benchmark.py --seeds=0,1,2                        # beside three runs in one program
  python experiments/benchmark.py --against=AlwaysBeDreaming-DFCIL     # a checkout; needs PyTorch
"""

import json

from absl import flags

from abd_jax import config, experiment
from abd_jax.benchmark import timing
from abd_jax.files import check_writable, write_whole

JSON = flags.DEFINE_string('json', '', 'where the figures go')
AGAINST = flags.DEFINE_string('against', '', 'a checkout of the authors\' PyTorch code, to be timed in turn')
REPEATS = flags.DEFINE_integer('repeats', 9, 'figures a step', lower_bound=1)
SECONDS = flags.DEFINE_float('seconds', 2.0, 'how long each of them is measured', lower_bound=0.0)


def main(settings):
  place = check_writable(JSON.value, '--json=')
  found = timing.run(settings, REPEATS.value, SECONDS.value, AGAINST.value)
  print(timing.markdown_table(found))
  if place:
    write_whole(place, json.dumps(found, indent=1) + '\n')


if __name__ == '__main__':
  experiment.launch(config.with_values(config.Config(), dict(dataset='random', num_tasks=10)), main)
