"""Everything that a run compiles, each program built once for all runs that need the same one.

A program is cached by what it depends on, so that runs of several seeds and methods in one process share compilations.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from abd_jax import inversion, states, steps
from abd_jax.data.augment import make_augment, make_normalise
from abd_jax.losses import mask_logits
from abd_jax.methods import METHODS
from abd_jax.methods.interface import Phase
from abd_jax.models import make_generator, make_student
from abd_jax.parallel import CompiledStep, compile_step, compiler_options, default_steps_per_call, repeat

# Steps of the inversion between two lines of figures: what an epoch is to the student.
INVERSION_EPOCH = 100
EVAL_BATCH = 250
PREVIEW_IMAGES = 40


@dataclasses.dataclass(frozen=True)
class Networks:
  """What the networks of a run look like.

  Attributes:
    student, generator: names in `models`; the generator is None for a method that does not dream.
    image_shape: (H, W, C).
    num_classes: of the head.
    mean, std: per channel, what images are standardised by.
    precision: of the activations, 'float32' or 'bfloat16'.
  """

  student: str
  generator: str | None
  image_shape: tuple[int, int, int]
  num_classes: int
  mean: tuple[float, ...]
  std: tuple[float, ...]
  precision: str = 'float32'

  @property
  def classifier(self):
    return make_student(self.student, self.num_classes, self.precision)

  @property
  def dreamer(self):
    return make_generator(self.generator, self.image_shape, self.precision)

  @property
  def normalise(self):
    return make_normalise(self.mean, self.std)


@dataclasses.dataclass(frozen=True)
class Programs:
  """The compiled programs of a run.

  Attributes:
    networks: what is compiled.
    init_student: (key) -> StudentState.
    init_generator: (key) -> GeneratorState.
    optimizer: the student's, to start it afresh.
    learn: by phase, (student, teacher, generator, images, labels, rows, past, seen, learning_rate, root, place, count)
      -> (student, metrics), `count` steps on the rows i32[L, B] of a task's uint8 images and their labels. `place` is
      i32[3], the (task, phase, step) at which the first step's key is found: deriving it outside would be three more
      dispatches a step. Metrics are f32[L], of which the first `count` mean something.
    invert: (generator, teacher, past, root, place, count) -> (generator, metrics), likewise.
    learn_steps, invert_steps: L, the most steps of one call.
    preview: (generator, teacher, past, key) -> (u8[N, H, W, C] synthetic images, i32[N] the teacher's choices, f32[N]
      its confidences).
    evaluate: (variables, images u8[EVAL_BATCH, H, W, C]) -> logits.
  """

  networks: Networks
  init_student: Callable
  init_generator: Callable | None
  optimizer: optax.GradientTransformation
  learn: dict[Phase, CompiledStep]
  invert: CompiledStep | None
  preview: CompiledStep | None
  evaluate: CompiledStep
  learn_steps: int
  invert_steps: int

  def traces(self):
    """How often each step was traced: {name: count}."""
    steps_by_name = {f'learn: {phase.loss.__name__}': step for phase, step in self.learn.items()}
    steps_by_name.update({'invert': self.invert, 'preview': self.preview, 'evaluate': self.evaluate})
    return {name: step.traces for name, step in steps_by_name.items() if step is not None}


def programs_for(config, tasks, dataset):
  """The `Programs` of a run of `config` on a `TaskSequence` of a `Dataset`."""
  method = METHODS[config.method]
  generator = config.inversion.generator if method.dreams else None
  networks = Networks(
      config.student, generator, tasks.image_shape, tasks.num_classes, tuple(dataset.mean), tuple(dataset.std),
      config.precision,
  )
  phases = dict.fromkeys(method.first + method.later)
  longest_epoch = tasks.largest_train_size(cumulative=method.cumulative) // config.optimisation.batch_size
  learn_steps, invert_steps = (
      config.steps_per_call or default_steps_per_call(epoch) for epoch in (longest_epoch, INVERSION_EPOCH)
  )
  invert = {'init_generator': None, 'invert': None, 'preview': None}
  if method.dreams:
    invert = {
        'init_generator': _init_generator(networks, config.inversion),
        'invert': _invert(networks, config.inversion, config.optimisation.batch_size, invert_steps),
        'preview': _preview(networks),
    }
  return Programs(
      networks=networks,
      init_student=_init_student(networks, config.optimisation),
      optimizer=states.student_optimizer(config.optimisation),
      learn={p: _learn(p, networks, config.optimisation, config.augmentation, config.hparams) for p in phases},
      evaluate=_evaluate(dataclasses.replace(networks, generator=None)),
      learn_steps=learn_steps,
      invert_steps=invert_steps,
      **invert,
  )


def clear():
  """Forgets every program, so that the next run traces its own."""
  for build in (_init_student, _init_generator, _learn, _invert, _preview, _evaluate):
    build.cache_clear()


_cached = functools.lru_cache(maxsize=16)


@_cached
def _init_student(networks, optimisation):
  optimizer = states.student_optimizer(optimisation)
  init = functools.partial(states.init_student, networks.classifier, optimizer, networks.image_shape)
  return jax.jit(init, compiler_options=compiler_options(runs_once=True))


@_cached
def _init_generator(networks, hparams):
  init = functools.partial(states.init_generator, networks.dreamer, states.generator_optimizer(hparams))
  return jax.jit(init, compiler_options=compiler_options(runs_once=True))


@_cached
def _learn(phase, networks, optimisation, augmentation, hparams):
  # 1.9: two passes over the same batch leave .81 r + .19 batch.
  rate = 1.9 if optimisation.bn_double_update and phase.second_pass else 1.0
  optimizer = states.student_optimizer(optimisation)
  update = steps.make_student_update(
      networks.classifier, optimizer, phase.loss, hparams=hparams, statistics_rate=rate
  )
  dream = functools.partial(inversion.sample, networks.dreamer) if phase.dreams else None
  step = steps.make_student_step(update, make_augment(augmentation), networks.normalise, dream)

  def learn(student, teacher, generator, images, labels, rows_LB, past, seen, learning_rate, root, place, count):
    task, address, first = place

    def one(student, i):
      rows = rows_LB[i]
      batch = steps.Batch(images[rows], labels[rows], past, seen, learning_rate)
      return step(student, teacher, generator, batch, steps.key_at(root, task, address, first + i))

    return repeat(one, student, len(rows_LB), count)

  return compile_step(learn, donate=(0,))


@_cached
def _invert(networks, hparams, batch_size, steps_per_call):
  update = steps.make_generator_update(
      networks.classifier, networks.dreamer, states.generator_optimizer(hparams), hparams=hparams
  )
  step = steps.make_generator_step(update, batch_size)

  def invert(generator, teacher, past, root, place, count):
    task, address, first = place

    def one(generator, i):
      return step(generator, teacher, past, steps.key_at(root, task, address, first + i))

    return repeat(one, generator, steps_per_call, count)

  return compile_step(invert, donate=(0,))


@_cached
def _preview(networks):
  def preview(generator, teacher, past, key):
    latents = jax.random.normal(key, (PREVIEW_IMAGES, states.LATENT_SIZE))
    images = inversion.sample(networks.dreamer, generator, latents)
    logits = mask_logits(networks.classifier.apply(teacher.variables, images, train=False), 0, past)
    pixels = 255 * (images * jnp.asarray(networks.std) + jnp.asarray(networks.mean))
    pixels = jnp.clip(jnp.round(pixels), 0, 255).astype(jnp.uint8)
    return pixels, jnp.argmax(logits, axis=-1), jnp.max(jax.nn.softmax(logits), axis=-1)

  return compile_step(preview)


@_cached
def _evaluate(networks):
  return compile_step(steps.make_eval_step(networks.classifier, networks.normalise))
