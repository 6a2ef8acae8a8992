"""Everything that one run compiles, built once for all its tasks, and shared by runs that differ in the seed alone."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from abd_jax import inversion, states, steps
from abd_jax.config import Config, with_values
from abd_jax.data.augment import make_augment, make_normalise
from abd_jax.losses import mask_logits
from abd_jax.methods import METHODS
from abd_jax.models import make_generator, make_student
from abd_jax.parallel import CompiledStep, compile_step

EVAL_BATCH = 250
PREVIEW_IMAGES = 40


@dataclasses.dataclass(frozen=True)
class Programs:
  """The compiled programs of a run.

  Attributes:
    init_student: (key) -> StudentState.
    init_generator: (key) -> GeneratorState.
    optimizer: the student's, to start it afresh.
    learn: by phase, (student, teacher, generator, images, labels, rows, past, seen, learning_rate, key) ->
      (student, metrics), on the rows `rows` i32[B] of a task's uint8 images and their labels.
    invert: (generator, teacher, past, key) -> (generator, metrics).
    preview: (generator, teacher, past, key) -> (u8[N, H, W, C] synthetic images, i32[N] the teacher's choices, f32[N]
      its confidences).
    evaluate: (variables, images u8[EVAL_BATCH, H, W, C]) -> logits.
  """

  init_student: Callable
  init_generator: Callable
  optimizer: optax.GradientTransformation
  learn: dict[Any, CompiledStep]
  invert: CompiledStep
  preview: CompiledStep
  evaluate: CompiledStep

  def traces(self):
    """How often each step was traced: {name: count}."""
    counts = {f'learn {i}: {phase.loss.__name__}': step.traces for i, (phase, step) in enumerate(self.learn.items())}
    return {**counts, 'invert': self.invert.traces, 'evaluate': self.evaluate.traces}


def programs_for(config, image_shape, num_classes, mean, std):
  """The `Programs` of a run; runs that differ only in seed, directories and tasks share theirs."""
  same = {name: getattr(Config(), name) for name in (
      'dataset', 'data_dir', 'verify_checksum', 'workdir', 'num_tasks', 'num_classes', 'stop_after_task', 'image_size',
      'seed', 'seeds', 'checkpoint_seconds', 'resume')}
  return _programs(with_values(config, same), tuple(image_shape), num_classes, tuple(mean), tuple(std))


@functools.lru_cache(maxsize=4)
def _programs(config, image_shape, num_classes, mean, std):
  method = METHODS[config.method]
  model = make_student(config.student, num_classes)
  normalise = make_normalise(mean, std)
  augment = make_augment(config.augmentation)
  optimizer = states.student_optimizer(config.optimisation)
  dreamer = make_generator(config.inversion.generator, image_shape) if method.dreams else None
  generator_optimizer = states.generator_optimizer(config.inversion)

  def dream(generator, latents):
    return inversion.sample(dreamer, generator, latents)

  def learn(phase):
    # 1.9: two passes over the same batch leave .81 r + .19 batch. The first task has one pass in the authors' code too.
    rate = 1.9 if config.optimisation.bn_double_update and phase.dreams else 1.0
    update = steps.make_student_update(model, optimizer, phase.loss, hparams=config.hparams, statistics_rate=rate)
    step = steps.make_student_step(update, augment, normalise, dream if phase.dreams else None)

    def on_task(student, teacher, generator, images, labels, rows, past, seen, learning_rate, key):
      batch = steps.Batch(images[rows], labels[rows], past, seen, learning_rate)
      return step(student, teacher, generator, batch, key)

    return compile_step(on_task, donate=(0,))

  update = steps.make_generator_update(model, dreamer, generator_optimizer, hparams=config.inversion)

  def preview(generator, teacher, past, key):
    images = dream(generator, jax.random.normal(key, (PREVIEW_IMAGES, states.LATENT_SIZE)))
    logits = mask_logits(model.apply(teacher.variables, images, train=False), 0, past)
    pixels = jnp.clip(jnp.round(255 * (images * jnp.asarray(std) + jnp.asarray(mean))), 0, 255).astype(jnp.uint8)
    return pixels, jnp.argmax(logits, axis=-1), jnp.max(jax.nn.softmax(logits), axis=-1)

  return Programs(
      init_student=jax.jit(lambda key: states.init_student(model, optimizer, image_shape, key)),
      init_generator=jax.jit(lambda key: states.init_generator(dreamer, generator_optimizer, key)),
      optimizer=optimizer,
      learn={phase: learn(phase) for phase in dict.fromkeys(method.first + method.later)},
      invert=compile_step(steps.make_generator_step(update, config.optimisation.batch_size), donate=(0,)),
      preview=compile_step(preview),
      evaluate=compile_step(steps.make_eval_step(model, normalise)),
  )
