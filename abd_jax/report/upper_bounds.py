"""Omega: what a run reaches against the upper bound of its benchmark, trained in the same command or stored.

An upper bound is a run of `--method=upper_bound`, each stage trained from scratch on all classes so far. One serves
every method of its seed, and stages are matched by how many classes they have seen: a run of 20 tasks serves 5 and 10
too.
"""

import dataclasses
from pathlib import Path

from abd_jax import config as config_lib
from abd_jax import metrics
from abd_jax.errors import UserError
from abd_jax.results import Results

# What a run and its upper bound must have in common: the schedule and the augmentation, but for what no upper bound
# has, a second phase and a switch of ABD's.
_APART = ('second_epochs', 'second_learning_rate', 'bn_double_update')
_SETTING = ['student', 'top_k', 'image_size'] + [
    leaf.name
    for group in (config_lib.Optimisation(), config_lib.Augmentation())
    for leaf in config_lib.leaves(group) if leaf.name not in _APART
]


def _setting(dataset_name, class_order, flags):
  named = {'dataset': dataset_name, 'num_classes': len(class_order)} | {name: flags[name] for name in _SETTING}
  return named, class_order


def _stages(results):
  """{classes seen: A_n}."""
  return dict(zip(results.classes_seen, results.accuracy_after_task, strict=True))


def _objection(bound, setting, classes_seen):
  """Why `bound` is no upper bound for a run of such a setting, as the end of a sentence; None when it is one."""
  if bound.method != 'upper_bound':
    return f'its method is {bound.method}'
  (flags, order), (its_flags, its_order) = setting, _setting(bound.dataset, bound.class_order, bound.config)
  for name, value in flags.items():
    if its_flags[name] != value:
      return f'its {name} is {its_flags[name]}, not {value}'
  if its_order != order:
    rule = bound.config['class_order']
    return f'it meets the classes in another order, that of seed {bound.seed} and --class_order={rule}'
  missing = [seen for seen in classes_seen if seen not in _stages(bound)]
  if missing:
    return f'it was not trained on {missing[0]} classes'
  return None


def stored(config, dataset, tasks):
  """The stored upper bound of a run.

  Args:
    config: of one method and seed. `upper_bound` names a run's directory or its results.json, `{seed}` standing for the
      seed; where it is empty, upper_bound/seed<k> in the workdir or beside it is taken if it fits.
    dataset: a `data.Dataset`.
    tasks: its `data.TaskSequence`.

  Returns:
    `results.Results`, or None.

  Raises:
    UserError: --upper_bound names what cannot be read, or another benchmark, schedule or class order.
  """
  setting = _setting(dataset.name, tasks.order, config_lib.as_dict(config))
  last = config.stop_after_task or config.num_tasks
  classes_seen = [tasks.seen(task) for task in range(last)]
  if config.upper_bound:
    path = config.upper_bound.replace('{seed}', str(config.seed))
    bound = Results.load(path)
    if objection := _objection(bound, setting, classes_seen):
      which = f'{config.method} with seed {config.seed}'
      raise UserError(f'--upper_bound={path} is no upper bound of {which}: {objection}.')
    return bound
  workdir = Path(config.workdir).expanduser()
  for folder in (workdir, workdir.parent):
    path = folder / 'upper_bound' / f'seed{config.seed}' / 'results.json'
    if path.exists():
      bound = Results.load(path)
      return None if _objection(bound, setting, classes_seen) else bound
  return None


def with_omega(results, bounds):
  """The results with Omega against the first of `bounds` that fits; as they are where none does."""
  setting = _setting(results.dataset, results.class_order, results.config)
  for bound in bounds:
    if _objection(bound, setting, results.classes_seen) is None:
      stages = _stages(bound)
      omega = metrics.omega(results.accuracy_after_task, [stages[seen] for seen in results.classes_seen])
      return dataclasses.replace(results, omega=omega)
  return results
