"""Everything that a run compiles, each program built once for all runs that need the same one.

A program is cached by what it depends on, so that runs of several seeds and methods in one process share compilations.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from abd_jax import inversion, states, steps
from abd_jax.addresses import key_at
from abd_jax.data.augment import make_augment
from abd_jax.data.streams import Streams
from abd_jax.losses import mask_logits
from abd_jax.methods import METHODS
from abd_jax.methods.interface import OWN, Phase
from abd_jax.models import folding, vae
from abd_jax.networks import Networks, networks_for
from abd_jax.parallel import (
  CompiledStep,
  compile_on_host,
  compile_once,
  compile_step,
  default_steps_per_call,
  platform,
  repeat,
)

# Steps of the inversion between two lines of figures: what an epoch is to the student.
INVERSION_EPOCH = 100
EVAL_BATCH = 250
# Activations take memory by the pixel: above so many of them an evaluation's batches are smaller.
_LARGE_PIXELS, _LARGE_EVAL_BATCH = 96 * 96, 50
PREVIEW_IMAGES = 40


@dataclasses.dataclass(frozen=True)
class Programs:
  """The compiled programs of a run.

  Attributes:
    networks: what is compiled.
    init_student: (place) -> StudentState; a place is i32[4], the (seed, task, address, step) that its key is found at:
      deriving the key outside would be more dispatches.
    init_generator: (place) -> GeneratorState; an ImageSetState with --inversion=images, here and below.
    renew: (student, place) -> student as a later task begins, for a method that has something for one task alone; else
      None.
    begin_epoch: (states.Tally) -> Tally, for a method that counts labels; else None.
    restart: (student) -> student, its momentum as before the first step.
    freeze: (student) -> TeacherState, a copy.
    learn: by phase, (student, place, count, teacher, generator, images, labels, rows, past, seen, learning_rate,
      before) -> (student, metrics), `count` steps on the rows i32[L, B] of uint8 images and their labels, the first of
      them at `place`. `before` is the student as the phase found it, for one that looks back. Metrics are f32[L], of
      which the first `count` mean something.
    invert: (generator, place, count, teacher, past) -> (generator, metrics), likewise.
    learn_steps, invert_steps: L, the most steps of one call.
    inversion_steps: of a task.
    preview: (generator, teacher, past, place) -> (u8[N, H, W, C] synthetic images, i32[N] the teacher's choices, f32[N]
      its confidences).
    evaluate: (variables, images u8[N, H, W, C]) -> logits; `in_batches` gives all batches one size.
    features: likewise -> penultimate features; None for a method that looks at none between its phases.
    synthetic_features: (student, teacher, generator, place) -> (f32[N, D] the student's, f32[N, D] the teacher's) of
      EVAL_BATCH synthetic images; None for a method that does not close its tasks.
  """

  networks: Networks
  init_student: CompiledStep
  init_generator: CompiledStep | None
  renew: CompiledStep | None
  begin_epoch: CompiledStep | None
  restart: CompiledStep
  freeze: CompiledStep
  learn: dict[Phase, CompiledStep]
  invert: CompiledStep | None
  preview: CompiledStep | None
  evaluate: CompiledStep
  features: CompiledStep | None
  synthetic_features: CompiledStep | None
  learn_steps: int
  invert_steps: int
  inversion_steps: int

  def traces(self):
    """How often each step was traced: {name: count}."""
    steps_by_name = {f'learn: {phase.loss.__name__}': step for phase, step in self.learn.items()}
    steps_by_name.update(
        invert=self.invert, preview=self.preview, evaluate=self.evaluate, features=self.features,
        synthetic_features=self.synthetic_features,
    )
    return {name: step.traces for name, step in steps_by_name.items() if step is not None}


def inversion_batch(config):
  """Synthetic images a step of the inversion."""
  return config.inversion.inversion_batch_size or config.optimisation.batch_size


def inversion_steps(config):
  """Steps of the inversion before a task."""
  hparams = config.inversion
  if hparams.inversion == 'generator':
    return hparams.inversion_steps
  return math.ceil(hparams.synthetic_images / inversion_batch(config)) * hparams.image_steps


def programs_for(config, tasks, dataset):
  """The `Programs` of a run of `config` on a `TaskSequence` of a `Dataset`."""
  method = METHODS[config.method]
  networks = networks_for(config, tasks, dataset)
  optimisation = config.optimisation
  if method.weight_decay is not None:
    optimisation = dataclasses.replace(optimisation, weight_decay=method.weight_decay)
  evaluated = dataclasses.replace(networks, generator=None, axis=None)
  of_images = config.inversion if method.dreams and config.inversion.inversion == 'images' else None
  phases = dict.fromkeys(method.first + method.later)
  longest_epoch = Streams(tasks, method, config.memory, config.seed).longest() // optimisation.batch_size
  augmentation = config.augmentation
  if dataset.streamed:
    # Photographs are cropped as they are decoded. One step a call, whose images alone are in the host's memory then.
    augmentation, longest_epoch = dataclasses.replace(augmentation, resized_crop=False), 1
  learn_steps, invert_steps = (
      config.steps_per_call or default_steps_per_call(epoch) for epoch in (longest_epoch, INVERSION_EPOCH)
  )
  invert = {'init_generator': None, 'invert': None, 'preview': None}
  if method.dreams:
    settings = networks, config.inversion, inversion_batch(config)
    invert_with = _invert_images if of_images else _invert
    invert = {
        'init_generator': _init_image_set(*settings) if of_images else _init_generator(networks, config.inversion),
        'invert': invert_with(*settings, invert_steps, method.inverts),
        'preview': _preview(networks, of_images),
    }
  return Programs(
      networks=networks,
      init_student=_init_student(networks, optimisation),
      renew=_renew(networks, optimisation, method.renews_own) if method.renews_own or method.tallies else None,
      begin_epoch=_begin_epoch() if method.tallies else None,
      restart=_restart(optimisation),
      freeze=_freeze(),
      learn={p: _learn(p, networks, optimisation, augmentation, config.hparams, of_images) for p in phases},
      evaluate=_evaluate(evaluated, method.readout, config.hparams),
      features=features(evaluated) if method.closes or (method.coreset and method.coreset.rank) else None,
      synthetic_features=_synthetic_features(networks, of_images) if method.closes else None,
      learn_steps=learn_steps,
      invert_steps=invert_steps,
      inversion_steps=inversion_steps(config),
      **invert,
  )


def clear():
  """Forgets every program, so that the next run traces its own."""
  for build in _builders:
    build.cache_clear()


def eval_batch(image_shape):
  """How many images of (H, W, C) an evaluation looks at at once."""
  height, width, _ = image_shape
  return _LARGE_EVAL_BATCH if height * width > _LARGE_PIXELS else EVAL_BATCH


def in_batches(program, variables, images, size=None):
  """f32[M, ...]: what `evaluate` or `features` says of u8[M, H, W, C], in batches of one size, the last padded."""
  size = size or eval_batch(images.shape[1:])
  found = []
  for start in range(0, len(images), size):
    part = np.asarray(images[start : start + size])
    padded = np.pad(part, ((0, size - len(part)), (0, 0), (0, 0), (0, 0)))
    found.append(np.asarray(program(variables, padded))[: len(part)])
  return np.concatenate(found)


_builders: list = []


def _cached(build):
  """Keeps what is built, by what it is built of, until `clear`."""
  _builders.append(functools.lru_cache(maxsize=16)(build))
  return _builders[-1]


@_cached
def _init_student(networks, optimisation):
  optimizer = states.student_optimizer(optimisation)
  init = functools.partial(
      states.init_student, networks.classifier, optimizer, networks.image_shape, own=networks.make_init_own(),
      tallied=networks.tallied,
  )
  return compile_on_host(lambda place: init(key_at(place)))


@_cached
def _renew(networks, optimisation, own):
  optimizer, init_own = states.student_optimizer(optimisation), networks.make_init_own() if own else None

  def renew(student, place):
    return states.renewed(student, optimizer, key_at(place), init_own, networks.tallied)

  return compile_once(renew)


@_cached
def _begin_epoch():
  return compile_once(states.begin_epoch)


@_cached
def _init_generator(networks, hparams):
  init = functools.partial(states.init_generator, networks.dreamer, states.generator_optimizer(hparams))
  return compile_on_host(lambda place: init(key_at(place)))


@_cached
def _init_image_set(networks, hparams, batch_size):
  count = math.ceil(hparams.synthetic_images / batch_size) * batch_size
  optimizer = states.image_optimizer(hparams)
  init = functools.partial(states.init_image_set, optimizer, count, batch_size, networks.image_shape)
  return compile_once(lambda place: init(key_at(place)))


@_cached
def _restart(optimisation):
  optimizer = states.student_optimizer(optimisation)
  return compile_once(lambda student: student.replace(opt_state=optimizer.init(student.params)))


@_cached
def _freeze():
  return compile_once(states.freeze)


@_cached
def _learn(phase, networks, optimisation, augmentation, hparams, of_images):
  # 1.9: two passes over the same batch leave .81 r + .19 batch.
  rate = 1.9 if optimisation.bn_double_update and phase.second_pass else 1.0
  optimizer = states.student_optimizer(optimisation)
  update = steps.make_student_update(
      networks.classifier,
      optimizer,
      phase.loss,
      hparams=hparams,
      statistics_rate=rate,
      axis=networks.axis,
      trains=phase.trains,
      train_mode=not phase.frozen_statistics or hparams.phase2_batch_stats == 'updated',
      tasks=networks.task_of_class,
      apart=phase.apart,
  )
  draw, dream = synthesis(networks, phase.dreams, phase.replays, of_images)
  step = steps.make_student_step(update, make_augment(augmentation), networks.normalise, dream, networks.axis, draw)

  def frozen(state):
    # Elsewhere XLA has an offset and a ReLU behind a convolution for nothing, or nothing to have them for.
    folds = state is not None and platform() == 'gpu' and getattr(networks.classifier, 'foldable', False)
    return folding.fold(networks.classifier, state, networks.image_shape) if folds else state

  def learn(student, place, count, teacher, generator, images, labels, rows_LB, past, seen, learning_rate, before):
    teacher, before = frozen(teacher), frozen(before)

    def one(student, i):
      rows = rows_LB[i]
      batch = steps.Batch(images[rows], labels[rows], past, seen, learning_rate)
      return step(student, teacher, generator, batch, key_at(place, i), before)

    return repeat(one, student, len(rows_LB), count)

  return compile_step(learn, donate=(0,), axis=networks.axis)


def synthesis(networks, dreams=True, replays=False, of_images=None):
  """How a step comes by synthetic images.

  Args:
    networks: a `Networks`.
    dreams, replays: as in `methods.interface.Phase`.
    of_images: the config.Inversion of --inversion=images, else None.

  Returns:
    draw: (key, N) -> drawn [N, ...]; dream: (generator, teacher, drawn) -> f32[N, H, W, C], None without such images.
  """
  if replays:
    model = vae.VAE(networks.image_shape)

    def replay(generator, teacher, latents):
      del generator
      return model.apply({'params': teacher.params[OWN]['vae']}, latents, method='sample')

    return lambda key, count: jax.random.normal(key, (count, vae.LATENT_SIZE)), replay
  if dreams and of_images:
    return (
        lambda key, count: jax.random.uniform(key, (count, 4)),
        lambda generator, teacher, draws: inversion.sample_images(generator, draws, of_images),
    )
  sample = lambda generator, teacher, latents: inversion.sample(networks.dreamer, generator, latents)
  return steps.normal_latents, sample if dreams else None


@_cached
def _invert(networks, hparams, batch_size, steps_per_call, loss):
  update = steps.make_generator_update(
      networks.classifier, networks.dreamer, states.generator_optimizer(hparams), hparams=hparams,
      axis=networks.axis, loss=loss,
  )
  step = steps.make_generator_step(update, batch_size, networks.axis)

  def invert(generator, place, count, teacher, past):
    def one(generator, i):
      return step(generator, teacher, past, key_at(place, i))

    return repeat(one, generator, steps_per_call, count)

  return compile_step(invert, donate=(0,), axis=networks.axis)


@_cached
def _invert_images(networks, hparams, batch_size, steps_per_call, loss):
  step = steps.make_image_step(
      networks.classifier, states.image_optimizer(hparams), batch_size, hparams=hparams, axis=networks.axis, loss=loss
  )

  def invert(image_set, place, count, teacher, past):
    def one(image_set, i):
      return step(image_set, teacher, past, key_at(place, i), place[3] + i)

    return repeat(one, image_set, steps_per_call, count)

  return compile_step(invert, donate=(0,), axis=networks.axis)


@_cached
def _preview(networks, of_images):
  draw, dream = synthesis(networks, of_images=of_images)

  def preview(generator, teacher, past, place):
    images = dream(generator, teacher, draw(key_at(place), PREVIEW_IMAGES))
    logits = mask_logits(networks.classifier.apply(teacher.variables, images, train=False), 0, past)
    pixels = 255 * (images * jnp.asarray(networks.std) + jnp.asarray(networks.mean))
    pixels = jnp.clip(jnp.round(pixels), 0, 255).astype(jnp.uint8)
    return pixels, jnp.argmax(logits, axis=-1), jnp.max(jax.nn.softmax(logits), axis=-1)

  return compile_step(preview)


@_cached
def _evaluate(networks, readout=None, hparams=None):
  read = None
  if readout is not None:
    tasks = jnp.asarray(networks.task_of_class)
    read = lambda logits, own: readout(logits, own, tasks, hparams)
  return compile_step(steps.make_eval_step(networks.classifier, networks.normalise, read))


@_cached
def features(networks):
  """The `Programs.features` of networks whose generator is None; it needs no head among the variables."""
  return compile_step(steps.make_feature_step(networks.classifier, networks.normalise))


@_cached
def _synthetic_features(networks, of_images):
  draw, dream = synthesis(networks, of_images=of_images)

  def look(student, teacher, generator, place):
    images = dream(generator, teacher, draw(key_at(place), EVAL_BATCH))
    of = lambda state: networks.classifier.apply(state.variables, images, train=False, method='features')
    return of(student), of(teacher)

  return compile_step(look)
