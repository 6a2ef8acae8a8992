"""metrics.jsonl, and what is read out of it."""

import itertools
import json
from pathlib import Path

from abd_jax import processes
from abd_jax.files import write_whole, writing
from abd_jax.written import is_of


class MetricsLog:
  """metrics.jsonl: a line of figures an epoch, each at a place in the run, so that a resumed run repeats none.

  Both of its writers raise `UserError` where the disk refuses.
  """

  def __init__(self, path, *mirrors):
    """`mirrors` have `rewind(lines)`, told what is kept of the log, as dicts, and `add(line)`, each that is written."""
    self._path, self._mirrors = Path(path), mirrors

  def read(self):
    """The lines as dicts, to the first that is none of ours: mostly one that the process died over while it wrote."""
    found = []
    for content in self._path.read_bytes().splitlines() if self._path.exists() else ():
      try:
        line = json.loads(content)
      except (ValueError, RecursionError):
        break
      if not _is_ours(line):
        break
      found.append(line)
    return found

  def rewind(self, place):
    """Drops the lines after `place`, a tuple (task, phase, step)."""
    if not processes.is_first():
      return
    kept = list(itertools.takewhile(lambda line: tuple(line['at']) <= place, self.read()))
    write_whole(self._path, ''.join(json.dumps(line) + '\n' for line in kept))
    for mirror in self._mirrors:
      mirror.rewind(kept)

  def write(self, place, **figures):
    if not processes.is_first():
      return
    with writing(self._path), self._path.open('a') as file:
      file.write(json.dumps({'at': place, **figures}) + '\n')
    for mirror in self._mirrors:
      mirror.add({'at': place, **figures})

  def close(self):
    for mirror in self._mirrors:
      mirror.close()


def _is_ours(line):
  """Whether it has a place in the run, and numbers where it has a phase's figures."""
  if not isinstance(line, dict) or not is_of(line.get('at'), tuple) or len(line['at']) != 3:
    return False
  if 'phase' not in line:
    return True
  figures = figures_of(line).values()
  return is_of(line['phase'], str) and is_of(line.get('task'), int) and all(is_of(value, float) for value in figures)


class StepCounter:
  """Counts the steps of a whole run, all its phases together, along the lines of its metrics.jsonl."""

  def __init__(self):
    self._phase, self._before, self._last = None, 0, 0

  def at(self, line):
    """How many steps the run had made when it wrote this line, the next of a phase."""
    task, phase, step = line['at']
    if (task, phase) != self._phase:
      self._phase, self._before = (task, phase), self._last
    self._last = self._before + step
    return self._last


def figures_of(line):
  """{name: value} of what a phase's line of metrics.jsonl measured."""
  return {name: value for name, value in line.items() if name not in ('at', 'task', 'phase', 'epoch', 'steps')}


def inversion_terms(lines, task):
  """The terms of Eq. 7 over an inversion.

  Args:
    lines: of metrics.jsonl, each a dict.
    task: the number of the task that the inversion came before, from 1.

  Returns:
    [{'step', 'loss', 'content', 'diversity', 'statistics', 'smoothness'}]: unweighted, means over the steps since the
    line before; `loss` is their weighted sum.
  """
  of_task = [line for line in lines if line.get('task') == task and line.get('phase') == 'inversion']
  return [{'step': line['at'][2], **figures_of(line)} for line in of_task]
