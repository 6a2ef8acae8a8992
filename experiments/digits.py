"""The quick start: scikit-learn's real digits, two classes at a time; needs no download.

  python experiments/digits.py --workdir=runs/digits
  python experiments/digits.py --workdir=runs/digits --seeds=0,1,2
"""

from pathlib import Path

from abd_jax import config, experiment

if __name__ == '__main__':
  experiment.launch(config.from_flagfile(Path(__file__).parent / 'flags' / 'digits.flags'))
