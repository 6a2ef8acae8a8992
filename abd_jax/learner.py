"""A classifier in use that learns new classes when the images of the old ones are gone.

  model = Learner(student='resnet20', image_size=32)
  model.learn(images, labels, class_names=('cat', 'dog'))     # u8[N, 32, 32, 3], and for each image 0 or 1
  model.save('model')                                         # weights and names, no image

  model = Learner.load('model')                               # any later day, in another process
  model.learn(new_images, new_labels, class_names=('bird',))
  print(model.predict(new_images).names)
"""

import contextlib
import dataclasses
import hashlib
import json
import tempfile

import jax
import numpy as np

from abd_jax import config as config_lib
from abd_jax import states, train
from abd_jax.classifier import DEFAULTS, Classifier, with_settings
from abd_jax.data.arrays import checked_images, checked_labels, checked_names
from abd_jax.data.sources import Dataset, channel_statistics
from abd_jax.data.tasks import OneTask
from abd_jax.errors import UserError
from abd_jax.export import export
from abd_jax.methods import METHODS
from abd_jax.metrics import top_k_hits
from abd_jax.stopping import StopSignal


@dataclasses.dataclass(frozen=True)
class Predictions:
  """What a model says of N images.

  Attributes:
    labels: i32[N], positions in the model's `class_names`.
    names: the class names themselves, N of them.
    probabilities: f32[N, K], of all K classes learned.
  """

  labels: np.ndarray
  names: tuple[str, ...]
  probabilities: np.ndarray


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """How often a model is right, in percent, all its classes competing.

  Attributes:
    accuracy: over all images.
    accuracy_by_class: {name: over the images of that class}, for the classes that have any.
    num_images: how many there were.
  """

  accuracy: float
  accuracy_by_class: dict[str, float]
  num_images: int


def fit_batch(config, num_images):
  """The config with a batch that a task of so many images can fill, and a learning rate to go with it.

  The gradient of a few images is noisy: at the full rate they would undo what is known. The rate goes down with the
  square root of the batch, as the noise goes up.

  Raises:
    UserError: there are fewer images than devices.
  """
  full = config.optimisation
  devices = jax.device_count()
  batch_size = min(full.batch_size, num_images) // devices * devices
  if not batch_size:
    raise UserError(f'{num_images} images cannot be shared by {devices} devices.')
  learning_rate = full.learning_rate * (batch_size / full.batch_size) ** 0.5
  return config_lib.with_values(config, {'batch_size': batch_size, 'learning_rate': learning_rate})


class Learner:
  """A classifier that learns class after class and keeps no image."""

  def __init__(self, student='resnet20', image_size=32, **settings):
    """A model that knows no class yet.

    Args:
      student: the network, a name in `models.STUDENTS`.
      image_size: pixels a side of the images it sees.
      **settings: any of `classifier.setting_names()`: what the flags of those names say.

    Raises:
      UserError: there is no such setting, or a value is out of its range.
    """
    self._classifier = Classifier(with_settings(DEFAULTS, dict(student=student, image_size=image_size, **settings)))

  @classmethod
  def load(cls, path, **settings):
    """The model saved in a directory.

    Args:
      path: the directory.
      **settings: values for its next tasks in the place of those it was saved with; student and image_size stay.

    Raises:
      UserError: there is no model, it is damaged, or a setting is not one or cannot be changed.
    """
    return cls._of(Classifier.load(path, settings))

  @classmethod
  def from_variables(cls, variables, class_names, mean, std, **settings):
    """A model whose first classes were learned elsewhere.

    Args:
      variables: {'params', 'batch_stats'} of the student, its head's first rows those of `class_names`.
      class_names: the classes it knows.
      mean, std: per channel on [0, 1], what its images are standardised by.
      **settings: as in the constructor, the student among them. The method is `abd` where it is not said: `dream` keeps
        something of each class since it was new.

    Raises:
      UserError: the variables are not such a student's.
    """
    config, names = cls(**{'method': 'abd', **settings})._classifier.config, checked_names(class_names)
    variables = jax.tree.map(lambda array: np.array(array, np.float32), dict(variables))
    if 'kernel' not in variables.get('params', {}).get('head', {}):
      raise UserError('The variables have no params/head/kernel, so they are no classifier\'s.')
    rows = variables['params']['head']['kernel'].shape[-1]
    if rows < len(names):
      raise UserError(f'The head has {rows} classes, fewer than the {len(names)} class names.')
    head = jax.tree.map(lambda rows: rows[..., : len(names)], variables['params']['head'])
    variables = {**variables, 'params': {**variables['params'], 'head': head}}
    known = Classifier(config, (names,), tuple(map(float, mean)), tuple(map(float, std)), variables).of_method()
    return cls._of(known.grown(len(names)).checked())

  @classmethod
  def _of(cls, classifier):
    model = cls.__new__(cls)
    model._classifier = classifier
    return model

  @property
  def classifier(self):
    """The `classifier.Classifier`: config, class names by task, mean and std, variables."""
    return self._classifier

  @property
  def class_names(self):
    """The classes it knows, in the order in which it learned them."""
    return self._classifier.class_names

  def learn(self, images, labels, class_names, workdir=None):
    """Learns new classes and holds on to those it knows.

    The first task's images also decide how all later ones are standardised. A call that fails changes nothing.

    Args:
      images: u8[N, H, W, C] in [0, 255], H = W = the model's image_size.
      labels: for each image the position of its class in `class_names`, or the name itself.
      class_names: the new classes, each with at least one image.
      workdir: keeps the figures, a picture of what the generator makes of the old classes, and checkpoints from which
        the same call goes on if it was stopped; None for a temporary one.

    Raises:
      UserError: images, labels or names are not such; a class is known already.
      Preempted: SIGTERM came, and `workdir` holds what is needed to go on.
    """
    known = self._classifier
    names = checked_names(class_names, known.class_names)
    images = checked_images(images, known.config.image_size, len(known.mean) or None)
    labels = checked_labels(labels, names, len(images))
    missing = sorted(set(range(len(names))) - set(labels.tolist()))
    if missing:
      raise UserError(f'There is no image of {", ".join(names[i] for i in missing)}.')
    past, seen = len(known.class_names), len(known.class_names) + len(names)
    mean, std = (known.mean, known.std) if known.tasks else channel_statistics(images)
    config = _announced(known.config, fit_batch(known.config, len(images)), len(images))
    student = None
    if known.tasks:
      variables = known.grown(seen).variables
      optimizer = states.student_optimizer(config.optimisation)
      student = states.StudentState(**variables, opt_state=optimizer.init(variables['params']))
    after = Classifier(known.config, (*known.tasks, names), mean, std)
    task = OneTask(images, labels + past, past, seen, after.networks().num_classes)
    source = 'images' if workdir is None else f'images:{_fingerprint(images, labels, names, known)}'
    dataset = Dataset(source, images, labels, images[:0], labels[:0], after.class_names, mean, std)
    with contextlib.ExitStack() as stack:
      # What a temporary folder holds is of no use to a later call, so SIGTERM is not waited for.
      stop = None if workdir else StopSignal()
      folder = workdir or stack.enter_context(tempfile.TemporaryDirectory(prefix='abd_jax_'))
      config = dataclasses.replace(config, dataset=source, workdir=str(folder))
      learned = train.learn_task(config, folder, dataset, task, len(known.tasks), student, stop)
    after = dataclasses.replace(after, variables=jax.tree.map(np.array, learned.variables))
    if not METHODS[known.config.method].own_is_head:
      after = dataclasses.replace(after, variables=after.network_variables)  # the rest is made new for each task
    self._classifier = after

  def predict(self, images):
    """`Predictions` of u8[N, H, W, C] images.

    Raises:
      UserError: the images are not such, or nothing was learned yet.
    """
    logits_NK = self._logits(images)
    labels = logits_NK.argmax(axis=-1).astype(np.int32)
    powers = np.exp(logits_NK - logits_NK.max(axis=-1, keepdims=True))
    names = tuple(self.class_names[i] for i in labels)
    return Predictions(labels, names, powers / powers.sum(axis=-1, keepdims=True))

  def evaluate(self, images, labels):
    """The `Evaluation` on u8[N, H, W, C] images and their labels: positions in the model's `class_names`, or names.

    Raises:
      UserError: there are none, they are not such, or nothing was learned yet.
    """
    logits_NK = self._logits(images)
    labels = checked_labels(labels, self.class_names, len(logits_NK))
    if not len(labels):
      raise UserError('There are no images to evaluate the model on.')
    hits = top_k_hits(logits_NK, labels, range(len(self.class_names)))
    by_class = {name: float(100 * hits[labels == i].mean()) for i, name in enumerate(self.class_names) if i in labels}
    return Evaluation(float(100 * hits.mean()), by_class, len(labels))

  def save(self, path):
    """Saves the model as a directory, in the place of the model it may hold: all that later tasks need, and no image.

    Raises:
      UserError: the directory cannot be written, or holds something else.
    """
    self._classifier.save(path)

  def export(self, path):
    """Writes a program that predicts without abd_jax, see `export.export`.

    Raises:
      UserError: the directory cannot be written, or nothing was learned yet.
    """
    known = self._that_knows()
    export(known.networks(), known.network_variables, known.class_names, path)

  def _that_knows(self):
    if not self._classifier.tasks:
      raise UserError('The model knows no class yet: let it learn some first.')
    return self._classifier

  def _logits(self, images):
    """f32[N, K]: the logits of the K classes learned."""
    known = self._that_knows()
    images = checked_images(images, *known.image_shape[1:])
    if not len(images):
      return np.zeros((0, len(known.class_names)), np.float32)
    return known.logits(images)


def _announced(full, fitted, num_images):
  """The fitted config, after saying how it differs from the full one."""
  before, now = full.optimisation, fitted.optimisation
  if now.batch_size < before.batch_size:
    print(
        f'With {num_images} images the batch is reduced from {before.batch_size} to {now.batch_size}, and the learning'
        f' rate from {before.learning_rate:g} to {now.learning_rate:.2g}.', flush=True,
    )
  return fitted


def _fingerprint(images, labels, names, known):
  """What tells one lesson from another: a stopped one goes on with the same images from the same model alone."""
  digest = hashlib.sha256(json.dumps([images.shape, known.tasks, names]).encode())
  for array in (images, labels, *jax.tree.leaves(known.variables)):
    digest.update(np.ascontiguousarray(array))
  return digest.hexdigest()[:16]
