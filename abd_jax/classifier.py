"""What a learner knows: a classifier with the names of its classes, as it is kept between tasks and on disk."""

import dataclasses
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from abd_jax import config as config_lib
from abd_jax import model_files, programs, states
from abd_jax.addresses import Address, key_at
from abd_jax.config import Config
from abd_jax.data.arrays import checked_names
from abd_jax.errors import UserError
from abd_jax.methods import METHODS
from abd_jax.methods.interface import OWN
from abd_jax.models import make_generator, make_student
from abd_jax.networks import Networks, check_head
from abd_jax.parallel import put
from abd_jax.results import versions

# The head has so many classes, then twice as many: programs are traced anew at every doubling only.
FIRST_CAPACITY = 16
PREDICT_BATCH = 64
# What a model stays with once it is made.
FIXED = ('student', 'image_size')
_UNGROUPED = ('method', *FIXED, 'seed', 'precision', 'steps_per_call', 'checkpoint_seconds')

DEFAULTS = config_lib.with_values(
    Config(),
    dict(
        method='dream', student='resnet20', image_size=32, epochs=100, decay_at=(50, 75, 90), inversion_steps=2000,
        inversion_batch_size=128,
    ),
)


def setting_names():
  """What a model can be told: the flags of its training, in the order of the config."""
  groups = [getattr(DEFAULTS, field.name) for field in dataclasses.fields(DEFAULTS)]
  grouped = {leaf.name for group in groups if dataclasses.is_dataclass(group) for leaf in config_lib.leaves(group)}
  return tuple(leaf.name for leaf in config_lib.leaves(DEFAULTS) if leaf.name in grouped or leaf.name in _UNGROUPED)


def method_names():
  """The methods that carry nothing but the classifier from task to task."""
  return [
      name for name, method in METHODS.items()
      if not (method.cumulative or method.coreset or method.readout)
      and (not method.own or method.renews_own or method.own_is_head)
  ]


def with_settings(config, settings):
  """The config with settings replaced by name.

  Raises:
    UserError: there is no such setting, or a value is out of its range.
  """
  unknown = set(settings) - set(setting_names())
  if unknown:
    raise UserError(f'A model has no setting called {", ".join(sorted(unknown))}.')
  config = config_lib.with_values(config, settings)
  if config.method not in method_names():
    raise UserError(
        f'method={config.method} is not one of {", ".join(method_names())}, which carry nothing but the classifier.'
    )
  if config.image_size < 1:
    raise UserError('image_size must be the pixels of a side.')
  if config.inversion.generator_init != 'fresh':
    raise UserError('generator_init must be fresh: a saved model holds no generator.')
  check_head(METHODS[config.method], config.student, make_student(config.student, 1))
  if METHODS[config.method].dreams and config.inversion.inversion == 'generator':
    try:
      make_generator(config.inversion.generator, (config.image_size, config.image_size, 3))
    except ValueError as error:
      raise UserError(f'image_size={config.image_size}: {error}.') from None
  return config


def capacity_for(num_classes):
  """How many classes a head has that is to hold so many."""
  capacity = FIRST_CAPACITY
  while capacity < num_classes:
    capacity *= 2
  return capacity


def grow_head(variables, networks, key):
  """The variables with a head of as many classes as the networks'; what is there already stays, bit for bit.

  Args:
    variables: {'params', 'batch_stats'} of NumPy arrays.
    networks: the `networks.Networks` with the larger head.
    key: of the weights of classes yet to come.
  """
  params = variables['params']
  size, classes = params['head']['kernel'].shape
  if classes == networks.num_classes:
    return variables
  fresh = {'head': networks.classifier.init(key, jnp.zeros((1, size)), method='classify')['params']['head']}
  if networks.own:
    fresh[OWN] = networks.make_init_own()(key)
  append = lambda old, new: np.concatenate([old, new[..., old.shape[-1] :]], axis=-1)
  grown = {name: jax.tree.map(append, dict(params[name]), dict(leaf)) for name, leaf in fresh.items()}
  return {**variables, 'params': {**params, **grown}}


@dataclasses.dataclass(frozen=True)
class Classifier:
  """A classifier between two tasks.

  Attributes:
    config: a `config.Config`: its network, and how its next task is learned.
    tasks: the class names of each task learned.
    mean, std: per channel on [0, 1], what images are standardised by; empty before the first task.
    variables: {'params', 'batch_stats'} of NumPy arrays; None before the first task.
  """

  config: Config
  tasks: tuple[tuple[str, ...], ...] = ()
  mean: tuple[float, ...] = ()
  std: tuple[float, ...] = ()
  variables: Any = None

  @property
  def class_names(self):
    """The classes, in the order in which they were learned."""
    return tuple(name for names in self.tasks for name in names)

  @property
  def image_shape(self):
    """(H, W, C) of its images; C is 0 before the first task."""
    return self.config.image_size, self.config.image_size, len(self.mean)

  def networks(self, num_classes=None):
    """The `networks.Networks` of it, or of one that holds so many classes."""
    capacity = capacity_for(num_classes or len(self.class_names))
    method = METHODS[self.config.method]
    return Networks(
        self.config.student, None, self.image_shape, capacity, self.mean, self.std, self.config.precision,
        own=method.own if method.own_is_head else None,
    )

  @property
  def network_variables(self):
    """The variables of the network alone, without what the method keeps in its head."""
    params = {name: leaf for name, leaf in self.variables['params'].items() if name != OWN}
    return {**self.variables, 'params': params}

  def logits(self, images):
    """f32[N, K]: the logits of the K classes learned, of u8[N, H, W, C] images.

    The sums of a matrix product are ordered by its shape. So batches have one size, and the head is taken a block of
    classes at a time: one that has grown gives the old classes the same logits, bit for bit.
    """
    # Whose features are those of any head.
    networks = dataclasses.replace(self.networks(), num_classes=FIRST_CAPACITY, own=None)
    params = {name: leaf for name, leaf in self.network_variables['params'].items() if name != 'head'}
    program, head = programs.features(networks), self.variables['params']['head']
    starts = range(0, head['kernel'].shape[-1], FIRST_CAPACITY)
    blocks = [np.ascontiguousarray(head['kernel'][:, start : start + FIRST_CAPACITY]) for start in starts]

    def predict(body, images):
      features_ND = np.asarray(program(body, images))
      return np.concatenate([features_ND @ block for block in blocks], axis=-1) + head.get('bias', 0)

    body = put({'params': params, 'batch_stats': self.variables['batch_stats']})
    return programs.in_batches(predict, body, images, PREDICT_BATCH)[:, : len(self.class_names)]

  def grown(self, num_classes):
    """The same with a head that holds so many classes."""
    key = key_at((self.config.seed, len(self.tasks), Address.STUDENT_INIT, 0))
    variables = grow_head(self.variables, self.networks(num_classes), key)
    return dataclasses.replace(self, variables=variables)

  def fresh_variables(self, key):
    """The variables of one that is as large and has learned nothing."""
    networks, optimizer = self.networks(), states.student_optimizer(self.config.optimisation)
    init_own = networks.make_init_own()
    return states.init_student(networks.classifier, optimizer, self.image_shape, key, init_own).variables

  def of_method(self):
    """The same without the parameters that another method has left in the head.

    Raises:
      UserError: its method keeps something of every class there, and these were learned by another.
    """
    if not self.tasks or METHODS[self.config.method].own_is_head == (OWN in self.variables['params']):
      return self
    if OWN in self.variables['params']:
      return dataclasses.replace(self, variables=self.network_variables)
    raise UserError(
        f'method={self.config.method} keeps something of each class since it was new, and these classes were learned'
        ' otherwise: choose another method.'
    )

  def checked(self):
    """Itself, if what it says of itself fits together.

    Raises:
      UserError: the weights are not the network's, or the names or figures make no sense.
    """
    checked_names(self.class_names)
    finite = np.isfinite([*self.mean, *self.std]).all()
    if not finite or len(self.mean) != len(self.std) or not all(spread > 0 for spread in self.std):
      raise UserError('Mean and std must be as many numbers as images have channels, each std above 0.')
    like = jax.eval_shape(lambda: self.fresh_variables(jax.random.key(0)))
    expected, found = _shapes(like), _shapes(self.variables)
    for path in sorted(expected.keys() | found.keys()):
      if expected.get(path) != found.get(path):
        raise UserError(
            f'{self.config.student} has {path} {expected.get(path, "nowhere")}, and these weights have'
            f' {found.get(path, "none")}.'
        )
    for path, array in flax.traverse_util.flatten_dict(self.variables, sep='/').items():
      if not np.isfinite(array).all():
        raise UserError(f'The weights {path} are not all finite numbers.')
    return self

  def save(self, path):
    """Saves it as a directory, in the place of the model it may hold: all that later tasks need, and no image.

    Raises:
      UserError: the directory cannot be written, or holds something else.
    """
    settings = config_lib.as_dict(self.config)
    description = {
        'tasks': self.tasks,
        'preprocessing': {'image_size': self.config.image_size, 'mean': self.mean, 'std': self.std},
        'config': {name: settings[name] for name in setting_names()},
        'versions': versions(),
    }
    arrays = flax.traverse_util.flatten_dict(self.variables, sep='/') if self.tasks else {}
    model_files.write(path, description, arrays)

  @classmethod
  def load(cls, path, settings):
    """What `save` wrote, with settings replaced by name; those in `FIXED` stay.

    Raises:
      UserError: there is no model, it is damaged, or a setting is not one or cannot be changed.
    """
    description, arrays = model_files.read(path)
    try:
      saved = {name: tuple(v) if isinstance(v, list) else v for name, v in description['config'].items()}
      fixed = {name: saved[name] for name in FIXED}
      classifier = cls(with_settings(DEFAULTS, saved))
      if description['tasks']:
        mean, std = (tuple(map(float, description['preprocessing'][key])) for key in ('mean', 'std'))
        tasks = tuple(map(checked_names, description['tasks']))
        variables = flax.traverse_util.unflatten_dict(arrays, sep='/')
        classifier = cls(classifier.config, tasks, mean, std, variables).checked()
    except UserError as error:
      raise UserError(f'{path} is not a model of this version: {error}') from None
    except (AttributeError, KeyError, TypeError, ValueError) as error:
      raise UserError(f'{path} is not a model of this version: its description is not one ({error!r}).') from None
    for name, value in fixed.items():
      if settings.get(name, value) != value:
        raise UserError(f'{path} is a model of {name}={value}, which cannot be changed to {settings[name]}.')
    return dataclasses.replace(classifier, config=with_settings(classifier.config, settings)).of_method()


def _shapes(tree):
  """{path: 'float32[3, 3, 16, 16]'} of the arrays in a tree of dicts."""
  flat = flax.traverse_util.flatten_dict(tree, sep='/')
  return {path: f'{leaf.dtype}{list(leaf.shape)}' for path, leaf in flat.items()}
