"""Hyperparameter selection as in the paper's Appendix D: cross-validation, before later tasks and test images exist.

A fold's data set is made of training images of the first half of the tasks alone: a part of each class stands in as
test images, the rest trains. Every (values, fold) is a run in a folder of its own, so that a stopped sweep goes on.
"""

import dataclasses
import functools
import itertools
import json
from pathlib import Path

import numpy as np

from abd_jax import config as config_lib
from abd_jax import processes, train
from abd_jax.data import Dataset, TaskSequence
from abd_jax.errors import UserError
from abd_jax.files import write_whole
from abd_jax.stopping import StopSignal
from abd_jax.workdir import check_workdir

# Appendix D, in the order of its table.
GRIDS = {
    'content_weight': (0.1, 1.0, 10.0),
    'diversity_weight': (0.1, 1.0, 10.0),
    'statistics_weight': (1.0, 10.0, 50.0, 100.0),
    'smoothness_weight': (1e-4, 1e-3, 1e-2, 1e-1, 1.0),
    'content_temperature': (1.0, 10.0, 100.0, 1e3, 1e4),
    'distillation_weight': (1e-2, 1e-1, 1.0),
    'finetune_weight': (1e-2, 1e-1, 1.0),
}


@dataclasses.dataclass(frozen=True)
class Trial:
  """One setting on every fold.

  Attributes:
    values: {flag: value}, what the setting changes in the sweep's config.
    final_accuracies, average_accuracies: % on held-out training images, a figure a fold.
  """

  values: dict
  final_accuracies: tuple[float, ...]
  average_accuracies: tuple[float, ...]

  @property
  def score(self):
    """What a value is chosen by: the mean final accuracy."""
    return float(np.mean(self.final_accuracies))


def folds_of(dataset: Dataset, tasks: TaskSequence, num_folds, seed):
  """A `Dataset` a fold, of training images of the first half of the tasks; of an odd number the smaller half.

  Each class is dealt evenly over the folds. Labels are the classes' places in the whole run's order, in which a run of
  half as many tasks meets them too.

  Raises:
    UserError: half of the tasks are not two, or a class has fewer images than there are folds.
  """
  half = tasks.num_tasks // 2
  if half < 2:
    raise UserError(f'--num_tasks={tasks.num_tasks}: a sweep learns half of the tasks, which must be two at least.')
  met = tasks.order[: tasks.seen(half - 1)]
  rng = np.random.default_rng((seed, num_folds))
  fold_of_row, label_of_row = (np.full(len(dataset.train_labels), -1) for _ in range(2))
  for new, old in enumerate(met):
    rows = rng.permutation(np.flatnonzero(dataset.train_labels == old))
    if len(rows) < num_folds:
      raise UserError(f'--folds={num_folds}: class {dataset.class_names[old]} has {len(rows)} training images.')
    fold_of_row[rows], label_of_row[rows] = np.arange(len(rows)) % num_folds, new
  class_names = tuple(dataset.class_names[old] for old in met)
  found = []
  for fold in range(num_folds):
    held, rest = fold_of_row == fold, (fold_of_row >= 0) & (fold_of_row != fold)
    found.append(Dataset(
        f'{dataset.name}, fold {fold + 1} of {num_folds}', dataset.train_images[rest], label_of_row[rest],
        dataset.train_images[held], label_of_row[held], class_names, dataset.mean, dataset.std,
        class_order=tuple(range(len(met))),
    ))
  return found


# Of the whole sequence of tasks, of which a sweep learns a half.
_SPLIT = ('num_tasks', 'num_classes', 'first_task_classes', 'stop_after_task')


def grids_of(names, own=()):
  """The grids to sweep.

  Args:
    names: of the paper's grids.
    own: texts NAME=VALUE,VALUE,...: grids for any flag that is a number, those of the split apart.

  Returns:
    {flag: values}.

  Raises:
    UserError: a name is no grid's, or a text no grid.
  """
  if unknown := [name for name in names if name not in GRIDS]:
    known = ', '.join(GRIDS)
    raise UserError(f'--hyperparameters={unknown[0]} is not one of {known}; --grid={unknown[0]}=... makes a grid.')
  grids = {name: GRIDS[name] for name in names}
  told = config_lib.as_dict(config_lib.Config())
  for text in own:
    name, _, values = text.partition('=')
    kind = type(told.get(name))
    if kind not in (int, float) or name in _SPLIT:
      raise UserError(f'--grid={text}: {name} is no flag that takes a number and can be swept.')
    try:
      grids[name] = tuple(kind(value) for value in values.split(','))
    except ValueError:
      raise UserError(f'--grid={text} is not written NAME=VALUE,VALUE,...') from None
  if not grids:
    raise UserError('--hyperparameters names none, and there is no --grid.')
  return grids


@dataclasses.dataclass(frozen=True)
class Sweep:
  """What is tried.

  Attributes:
    config: of one method and seed; hyperparameters that are not being varied stay as they are here.
    grids: {flag: values}.
    num_folds: how many parts the training images are dealt into.
    full: every combination instead of one hyperparameter at a time.
  """

  config: config_lib.Config
  grids: dict
  num_folds: int = 3
  full: bool = False

  def settings(self):
    """[{flag: value}], a row of the table each."""
    if self.full:
      return [dict(zip(self.grids, values, strict=True)) for values in itertools.product(*self.grids.values())]
    return [{name: value} for name, values in self.grids.items() for value in values]

  def changes(self, setting):
    """What a setting changes in the config: its own value is one run, whichever hyperparameter it belongs to."""
    told = config_lib.as_dict(self.config)
    return {name: value for name, value in setting.items() if value != told[name]}

  def run(self, dataset):
    """Trains every setting on every fold, or loads what is finished; everything is in <workdir>/sweep/<method>/seed<k>.

    Args:
      dataset: a `data.Dataset`; its test images are not touched.

    Returns:
      [Trial], one for each of the distinct settings.

    Raises:
      UserError: something the user can mend, before anything is trained.
      Preempted: SIGTERM came; the same call goes on.
    """
    config = self.config
    tasks = TaskSequence.of(config, dataset)
    workdir = Path(config.workdir).expanduser() / 'sweep' / config.method / f'seed{config.seed}'
    folds, runs = folds_of(dataset, tasks, self.num_folds, config.seed), []
    for changes in _distinct(self.changes(setting) for setting in self.settings()):
      name = ','.join(f'{flag}={config_lib.text_of(value)}' for flag, value in changes.items()) or 'as_told'
      for i, fold in enumerate(folds):
        folder = workdir / name / f'fold{i + 1}'
        values = dict(changes, num_tasks=config.num_tasks // 2, num_classes=0, class_order='auto', stop_after_task=0)
        one = config_lib.with_values(config, dict(values, dataset=fold.name, workdir=str(folder)))
        train.tasks_for(one, fold)
        processes.on_first(functools.partial(check_workdir, one, folder))
        runs.append((changes, one, folder, fold))
    with StopSignal() as stop:
      results = [train.run(one, folder, fold, stop) for _, one, folder, fold in runs]
    trials = []
    for start in range(0, len(runs), self.num_folds):
      part = results[start : start + self.num_folds]
      figures = (tuple(r.final_accuracy for r in part), tuple(r.average_accuracy for r in part))
      trials.append(Trial(runs[start][0], *figures))
    if processes.is_first():
      write_whole(workdir / 'sweep.json', json.dumps(self._as_json(trials), indent=1) + '\n')
    return trials

  def _as_json(self, trials):
    sweep = {'grids': self.grids, 'num_folds': self.num_folds, 'full': self.full}
    found = [dataclasses.asdict(trial) for trial in trials]
    return {**sweep, 'trials': found, 'chosen': self.chosen(trials), 'config': config_lib.as_dict(self.config)}

  def _trial(self, setting, trials):
    return next(trial for trial in trials if trial.values == self.changes(setting))

  def chosen(self, trials):
    """{flag: value}: the best value of each hyperparameter, or the best combination; of equals the config's own."""
    groups = [self.settings()] if self.full else [[{name: v} for v in values] for name, values in self.grids.items()]
    best = {}
    for settings in groups:
      best |= max(settings, key=lambda setting: (self._trial(setting, trials).score, -len(self.changes(setting))))
    return best

  def markdown_table(self, trials):
    """A row a setting: mean and population standard deviation over the folds, the chosen marked."""
    config, chosen = self.config, self.chosen(trials)
    text = (
        f'**{config.dataset}**, {config.method}, seed {config.seed}: tasks 1 to {config.num_tasks // 2} of'
        f' {config.num_tasks}, {self.num_folds}-fold cross-validation on training images; ± over folds\n\n'
        '| hyperparameter | value | final accuracy % | average accuracy % | chosen |\n|---|---|---|---|---|\n'
    )
    for setting in self.settings():
      trial = self._trial(setting, trials)
      cells = [
          ', '.join(setting),
          ', '.join(config_lib.text_of(value) for value in setting.values()),
          f'{trial.score:.1f} ± {np.std(trial.final_accuracies):.1f}',
          f'{np.mean(trial.average_accuracies):.1f} ± {np.std(trial.average_accuracies):.1f}',
          'yes' if setting.items() <= chosen.items() else '',
      ]
      text += '| ' + ' | '.join(cells) + ' |\n'
    return text


def _distinct(items):
  """The items without repetition, in order."""
  found = []
  for item in items:
    if item not in found:
      found.append(item)
  return found
