"""What the documents show between two marks, to be held against the files that it was made from."""

from pathlib import Path

ROOT = Path(__file__).parent.parent


def shown(mark):
  """The text between <!-- mark --> and <!-- /mark -->, which stands once in README.md or experiments/README.md."""
  parts = [(ROOT / place / 'README.md').read_text().split(f'<!-- {mark} -->\n') for place in ('.', 'experiments')]
  [inside] = [part for first, *rest in parts for part in rest]
  return inside.split(f'<!-- /{mark} -->')[0]
