"""The form of a results.json, to which one that was edited by hand, or comes from elsewhere, is held."""

import dataclasses

from abd_jax import config as config_lib
from abd_jax.data.tasks import task_sizes
from abd_jax.errors import UserError
from abd_jax.written import is_line, is_of


def objection(said, fields):
  """What in a results.json cannot be, as the end of a sentence; None where all can.

  Args:
    said: its content.
    fields: of `results.Results`, as `dataclasses.fields` gives them.
  """
  if not isinstance(said, dict):
    return 'it is not a JSON object'
  needed = [field.name for field in fields if field.default_factory is dataclasses.MISSING]
  if missing := [name for name in needed if name not in said]:
    return f'it has no {missing[0]}'
  if unknown := sorted(said.keys() - {field.name for field in fields}):
    return f'this version knows no {unknown[0]}'
  for name, (fits, what) in _FORM.items():
    if name in said and not fits(said[name]):
      return f'{name} must be {what}'
  return _contradiction(said)


def _contradiction(said):
  """As `objection`, of values that are each what they must be."""
  learned, classes = len(said['accuracy_after_task']), len(said['class_order'])
  for leaf in config_lib.leaves(config_lib.Config()):
    value = said['config'].get(leaf.name, leaf.value)
    if not is_of(value, type(leaf.field.default)):
      return f'{leaf.name} in config has a value of another kind'
  if learned > said['num_tasks']:
    return f'accuracy_after_task has {learned} tasks, more than the {said["num_tasks"]} of num_tasks'
  try:
    task_sizes(classes, said['num_tasks'], said['config'].get('first_task_classes', 0))
  except UserError as error:
    return str(error).rstrip('.')
  if said.get('class_names') and len(said['class_names']) != classes:
    return f'class_names has {len(said["class_names"])} names for the {classes} classes of class_order'
  for name in ('accuracy_matrix', 'accuracy_matrix_local'):
    if not _is_lower_triangle(said[name], learned):
      return f'{name} must have {learned} rows of {learned}, numbers from 0 to 100 with null above the diagonal'
  if said['final_accuracy'] != said['accuracy_after_task'][-1]:
    return f'final_accuracy is {said["final_accuracy"]}, and the last of accuracy_after_task another'
  for name in ('method', 'student', 'num_tasks', 'seed', 'top_k'):  # of which an earlier version's config may lack some
    if said['config'].get(name, said[name]) != said[name]:
      return f'{name} is {said[name]}, and in config another'
  return None


def _is_number(value):
  return is_of(value, float) and abs(value) < 1e300  # JSON as Python reads it has NaN, and whole numbers of any length


def _is_percentage(value):
  return _is_number(value) and 0 <= value <= 100


def _is_count(value):
  return is_of(value, int) and 0 <= value < 2**63


def _is_text(value):
  return is_of(value, str) and is_line(value)


def _or_null(fits):
  return lambda value: value is None or fits(value)


def _list_of(fits, at_least=0):
  return lambda value: isinstance(value, list) and len(value) >= at_least and all(map(fits, value))


def _dict_of(fits, *needed):
  """Of texts to what `fits`, the names `needed` among them."""
  return lambda value: (
      isinstance(value, dict) and all(name in value for name in needed) and all(map(_is_text, value))
      and all(map(fits, value.values()))
  )


def _is_of_task(value):
  held = {'peak_memory_bytes', 'memory_bytes'}  # of which an earlier version had the first alone
  return (
      isinstance(value, dict) and {'seconds', 'peak_memory_bytes'} <= set(value) <= {'seconds', *held}
      and _dict_of(_is_number)(value['seconds']) and all(_is_count(value[name]) for name in held & set(value))
  )


def _is_flag(value):
  return value is None or isinstance(value, bool | int) or _is_number(value) or _is_text(value) or is_of(value, tuple)


def _is_lower_triangle(rows, size):
  return len(rows) == size and all(
      len(row) == size and all(map(_is_percentage, row[: i + 1])) and all(value is None for value in row[i + 1 :])
      for i, row in enumerate(rows)
  )


def _is_order(value):
  return _list_of(_is_count, at_least=1)(value) and len(set(value)) == len(value)


_FORM = {
    **dict.fromkeys(('method', 'dataset', 'student', 'device'), (_is_text, 'a line of text')),
    **dict.fromkeys(('num_tasks', 'top_k'), (lambda value: _is_count(value) and value > 0, 'a whole number above 0')),
    **dict.fromkeys(('seed', 'peak_memory_bytes'), (_is_count, 'a whole number')),
    **dict.fromkeys(('final_accuracy', 'average_accuracy'), (_is_percentage, 'a number from 0 to 100')),
    **dict.fromkeys(('forgetting', 'backward_transfer', 'omega'), (_or_null(_is_number), 'a number or null')),
    'class_order': (_is_order, 'a list of different classes'),
    'accuracy_after_task': (_list_of(_is_percentage, at_least=1), 'a list of numbers from 0 to 100'),
    **dict.fromkeys(
        ('accuracy_matrix', 'accuracy_matrix_local'), (_list_of(_list_of(_or_null(_is_percentage))), 'rows of numbers'),
    ),
    'memory_held': (
        _dict_of(_is_count, 'parameters', 'images'), 'whole numbers by name, parameters and images among them',
    ),
    'seconds': (_dict_of(_is_number, 'total'), 'numbers by name, total among them'),
    'steps_per_second': (_dict_of(_or_null(_is_number), 'train'), 'numbers by name, train among them'),
    'versions': (_dict_of(_is_text), 'texts by name'),
    'config': (_dict_of(_is_flag), 'values by flag'),
    'synthetic_confidence': (_list_of(_or_null(_is_number)), 'a list of numbers'),
    'class_names': (_list_of(_is_text), 'a list of names'),
    'by_task': (_list_of(_is_of_task), 'a list of what each task took, seconds and peak_memory_bytes'),
}
