"""The pure bodies of every compiled step.

A `make_*` function closes over what never changes in a run; what a step is given is traced, the class counts included,
so one compilation serves all tasks.
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from abd_jax import inversion
from abd_jax.losses import classes_between, mask_logits
from abd_jax.methods.interface import OWN, Rows, View, network, stack_rows
from abd_jax.models import folding
from abd_jax.parallel import keep_split, mean_over, split_rows
from abd_jax.states import LATENT_SIZE, Tally


@flax.struct.dataclass
class Batch:
  """What varies from one student step to the next.

  Attributes:
    images: u8[B, H, W, C], real images.
    labels: i32[B], their classes in the order in which the run meets them.
    past: i32[], classes of the earlier tasks.
    seen: i32[], classes of the tasks so far.
    learning_rate: f32[].
  """

  images: Any
  labels: Any
  past: Any
  seen: Any
  learning_rate: Any


def make_student_update(
    model, optimizer, loss, *, hparams, statistics_rate=1.0, axis=None, trains=network, train_mode=True, tasks=None,
    apart=False,
):
  """The learning step on images that are already augmented, normalised and dreamed.

  One forward pass of the student over real and synthetic rows together, or one over each; one of the teacher over both.

  Args:
    model: the classifier's Linen module, student and teacher alike.
    optimizer: an optax transformation without a learning rate.
    loss, trains, apart: as in `methods.interface.Phase`.
    hparams: config.Hyperparameters.
    statistics_rate: running statistics move by so many times what a train-mode pass moves them; 1.9 has the effect of
      two passes over the same batch (.81 r + .19 batch).
    axis: the mapped axis along which devices share a batch, or None.
    train_mode: BatchNorm uses the batch's statistics and moves the running ones; else it uses those and leaves them.
    tasks: the task of each class of the head, for losses that look at it.

  Returns:
    update(student, teacher, batch, synthetic_images, key, before) -> (student, metrics); the images of the `Batch` are
    f32[B, H, W, C] here. `teacher`, `synthetic_images`, `key` (for what the loss draws) and `before` (a TeacherState,
    the student as the phase found it) may be None.
  """
  tasks = None if tasks is None else jnp.asarray(tasks)

  def update(student, teacher, batch, synthetic_images, key=None, before=None):
    num_real = len(batch.labels)
    images = keep_split(stack_rows(batch.images, synthetic_images), axis)
    rows = _frozen_rows(model, teacher, before, images, batch.labels, batch.past)

    def objective(params):
      features, batch_stats = _features(
          model, params, student.batch_stats, [num_real] if apart else [], images, train_mode, axis
      )
      both = rows.replace(features=features, logits=_classify(model, params, features))
      view = View(
          real=jax.tree.map(lambda leaf: leaf[:num_real], both),
          synthetic=None if synthetic_images is None else jax.tree.map(lambda leaf: leaf[num_real:], both),
          both=both,
          past=batch.past,
          seen=batch.seen,
          num_classes=both.logits.shape[-1],
          axis=axis,
          head=lambda features: _classify(model, params, features),
          teacher_head=None if teacher is None else lambda features: _classify(model, teacher.params, features),
          own=params.get(OWN),
          tasks=tasks,
          noise=lambda size: _noise(key, num_real, both.labels, size, axis),
          met=student.tally and student.tally.before_epoch,
      )
      total, metrics = loss(view, hparams)
      return total, (metrics, batch_stats)

    gradients, (metrics, batch_stats) = jax.grad(objective, has_aux=True)(student.params)
    gradients, metrics = mean_over((gradients, metrics), axis)
    moving = _moving(model, student.params, trains(student.params, batch.past, tasks), batch.seen)
    params, opt_state = _descended(student, optimizer, gradients, moving, batch.learning_rate)
    if statistics_rate != 1.0:
      move = lambda old, new: old + statistics_rate * (new - old)
      batch_stats = jax.tree.map(move, student.batch_stats, batch_stats)
    tally = student.tally and _counted(student.tally, rows.labels, axis)
    return student.replace(params=params, batch_stats=batch_stats, opt_state=opt_state, tally=tally), metrics

  return update


def _classify(model, params, features_ND):
  """f32[N, K]: the head alone."""
  return model.apply({'params': params}, features_ND, method='classify')


def _frozen_rows(model, teacher, before, images, labels, past):
  """`Rows` without what the student makes of them: labels, and what teacher and `before` say, where there are such."""
  teacher_features = teacher_logits = before_logits = None
  if teacher is not None:
    teacher_features = folding.apply(model, teacher, images, method='features')
    teacher_logits = _classify(model, teacher.params, teacher_features)
  if len(images) > len(labels):  # synthetic rows follow: the teacher names them
    choice = jnp.argmax(mask_logits(teacher_logits[len(labels):], 0, past), axis=-1)
    labels = jnp.concatenate([labels, choice.astype(labels.dtype)])
  if before is not None:
    before_logits = folding.apply(model, before, images)
  return Rows(labels, None, None, teacher_features, teacher_logits, before_logits, images)


def _features(model, params, batch_stats, splits, images, train_mode, axis):
  """f32[N, D] of the student, and the running statistics after the pass, or after one over each part."""
  found = []
  for part in jnp.split(images, splits) if splits else [images]:
    features, updates = model.apply(
        {'params': params, 'batch_stats': batch_stats}, keep_split(part, axis), train=train_mode, method='features',
        mutable=['batch_stats'],
    )
    batch_stats = updates.get('batch_stats', batch_stats)
    found.append(features)
  return jnp.concatenate(found), batch_stats


def _moving(model, params, trained, seen):
  """The tree of parameters with True, or bool arrays, for what moves and decays."""
  moving = jax.tree.broadcast(trained, params)
  if model.head_grows:
    rows = classes_between(model.num_classes, 0, seen)
    moving['head'] = jax.tree.map(lambda moves: rows if moves is True else moves, moving['head'])
  return moving


def _descended(student, optimizer, gradients, moving, learning_rate):
  """(params, opt_state) after a step; `moving` is a tree of True, or bool arrays, for what moves and decays."""
  keep = lambda moves, x: x if moves is True else jnp.where(moves, x, 0)
  # What does not move has no gradient and no decay either, so that its momentum stays zero; nor does it follow the
  # momentum that a phase before may have left.
  gradients, decaying = (jax.tree.map(keep, moving, tree) for tree in (gradients, student.params))
  direction, opt_state = optimizer.update(gradients, student.opt_state, decaying)
  direction = jax.tree.map(keep, moving, direction)
  return optax.apply_updates(student.params, jax.tree.map(lambda d: -learning_rate * d, direction)), opt_state


def _counted(tally, labels, axis):
  """The tally after a step on i32[N] labels."""
  counts_K = jnp.sum(jax.nn.one_hot(labels, len(tally.so_far), dtype=jnp.int32), axis=0)
  counts_K = counts_K if axis is None else jax.lax.psum(counts_K, axis)
  return Tally(tally.so_far + counts_K, tally.before_epoch)


def _noise(key, num_real, labels, size, axis):
  """f32[N, size]: standard normal rows for the real and the synthetic images, each drawn for the whole batch."""
  devices = 1 if axis is None else jax.lax.axis_size(axis)
  keys = jax.random.split(key, len(labels) // num_real)
  return jnp.concatenate([split_rows(jax.random.normal(k, (num_real * devices, size)), axis) for k in keys])


def normal_latents(key, count):
  """f32[count, Z]: what a generator makes images from."""
  return jax.random.normal(key, (count, LATENT_SIZE))


def make_student_step(update, augment, normalise, dream=None, axis=None, draw=normal_latents):
  """One step of learning, from uint8 images.

  Args:
    update: from `make_student_update`.
    augment: (u8[B, H, W, C], key) -> f32 images in [0, 255].
    normalise: f32 images in [0, 255] -> f32 in the classifier's pixel space.
    dream: (generator, teacher, drawn [B, ...]) -> f32[B, H, W, C], or None for a phase of real images
      alone.
    axis: as in `make_student_update`.
    draw: (key, B) -> [B, ...], what the images are made from.

  Returns:
    step(student, teacher, generator, batch, key, before) -> (student, metrics).
  """

  def step(student, teacher, generator, batch, key, before=None):
    augment_key, latent_key, loss_key = jax.random.split(key, 3)
    # What is random is drawn for the whole batch before it is split: the figures do not depend on how many share it.
    real = split_rows(normalise(augment(batch.images, augment_key)), axis)
    synthetic = None
    if dream is not None:
      synthetic = dream(generator, teacher, split_rows(draw(latent_key, len(batch.labels)), axis))
    batch = batch.replace(images=real, labels=split_rows(batch.labels, axis))
    return update(student, teacher, batch, synthetic, loss_key, before)

  return step


def make_generator_update(model, generator_model, optimizer, *, hparams, axis=None, loss=inversion.inversion_loss):
  """One step of training the generator against the frozen teacher, by Eq. 7 or another loss.

  Args:
    model, generator_model: the Linen modules of teacher and generator.
    optimizer: an optax transformation.
    hparams: a config.Inversion.
    axis: as in `make_student_update`.
    loss: called as `inversion.inversion_loss` is.

  Returns:
    update(generator, teacher, latents f32[N, Z], past) -> (generator, metrics).
  """

  def update(generator, teacher, latents_NZ, past):
    def objective(params):
      variables = {'params': params, 'batch_stats': generator.batch_stats}
      images, updates = generator_model.apply(variables, latents_NZ, train=True, mutable=['batch_stats'])
      value, metrics = loss(model, teacher.variables, images, past, hparams, axis)
      return value, (metrics, updates['batch_stats'])

    gradients, (metrics, batch_stats) = jax.grad(objective, has_aux=True)(generator.params)
    gradients, metrics = mean_over((gradients, metrics), axis)
    updates, opt_state = optimizer.update(gradients, generator.opt_state, generator.params)
    params = optax.apply_updates(generator.params, updates)
    return generator.replace(params=params, batch_stats=batch_stats, opt_state=opt_state), metrics

  return update


def make_generator_step(update, batch_size, axis=None):
  """step(generator, teacher, past, key) -> (generator, metrics), on latents drawn from the key."""

  def step(generator, teacher, past, key):
    return update(generator, teacher, split_rows(normal_latents(key, batch_size), axis), past)

  return step


def make_image_step(model, optimizer, batch_size, *, hparams, axis=None, loss=inversion.inversion_loss):
  """One step of optimising images themselves against the frozen teacher, by Eq. 7 or another loss, without a generator.

  This is DeepInversion (Yin et al., CVPR 2020, https://arxiv.org/abs/1912.08795) with the terms of the paper.

  Args:
    model: the teacher's Linen module.
    optimizer: an optax transformation, begun anew with each batch.
    batch_size: images a step; their number is a multiple of it.
    hparams: a config.Inversion.
    axis: as in `make_student_update`.
    loss: called as `inversion.inversion_loss` is.

  Returns:
    step(image_set, teacher, past, key, number) -> (image_set, metrics); `number` is the step's within the task, which
    tells the batch whose turn it is.
  """

  def step(image_set, teacher, past, key, number):
    batch, within = number // hparams.image_steps, number % hparams.image_steps
    images = jax.lax.dynamic_slice_in_dim(image_set.images, batch * batch_size, batch_size)
    begin = lambda new, old: jnp.where(within == 0, new, old)
    opt_state = jax.tree.map(begin, optimizer.init(images), image_set.opt_state)
    draws_N3 = jnp.broadcast_to(jax.random.uniform(key, (3,)), (batch_size, 3))  # all of a batch move alike

    def objective(images):
      rows = split_rows(inversion.moved(images, draws_N3, hparams), axis)
      return loss(model, teacher.variables, rows, past, hparams, axis)

    gradients, metrics = mean_over(jax.grad(objective, has_aux=True)(images), axis)
    updates, opt_state = optimizer.update(gradients, opt_state, images)
    images = optax.apply_updates(images, updates)
    images = jax.lax.dynamic_update_slice_in_dim(image_set.images, images, batch * batch_size, 0)
    return image_set.replace(images=images, opt_state=opt_state), metrics

  return step


def make_eval_step(model, normalise, readout=None):
  """step(variables, images u8[N, H, W, C]) -> logits f32[N, K] in eval mode, classes not met yet included.

  `readout`: (logits, the method's own parameters) -> logits, or None.
  """

  def step(variables, images):
    logits = model.apply(variables, normalise(images.astype(jnp.float32)), train=False)
    return logits if readout is None else readout(logits, variables['params'][OWN])

  return step


def make_feature_step(model, normalise):
  """step(variables, images u8[N, H, W, C]) -> f32[N, D], the penultimate features in eval mode."""

  def step(variables, images):
    return model.apply(variables, normalise(images.astype(jnp.float32)), train=False, method='features')

  return step
