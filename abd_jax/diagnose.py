"""Looks into finished runs: what the last task has made of old images, new ones and synthetic ones.

  python -m abd_jax.diagnose runs/two_tasks/abd/seed0
  python -m abd_jax.diagnose --audit --data_dir=~/data runs/two_tasks

writes `diagnostics.json` into each run's folder, and pictures into its `diagnostics/`. Real images are test images, but
for --audit, which holds synthetic images against the training images of the old classes.

diagnostics.json, whose figures are defined in `diagnostics`; n is the last task learned, all features are penultimate
ones in eval mode, and what needs synthetic images or a teacher is null where the method has none:

  flags                what the run was told
  after_task           n
  populations          images a population: real_old (of tasks before n), real_new (of task n), synthetic (as the
                       student saw them in task n); mid, mmd and tsne are of their features under the student
  mid, mmd             of real_old_real_new, real_old_synthetic, real_new_synthetic; the first named is the reference,
                       and all three squared MMD have the same kernel
  mmd_bandwidth        sigma of that kernel, the median distance between any two images of the three populations
  under_teacher        mid and mmd of the same images under the teacher: how far apart they were before task n
  dead_features        features without variance over real_old, which MID leaves out
  tsne                 [x, y] of up to 200 images of each population
  confusion_by_task    share of the test images of task i (row) predicted as a class of task j
  calibration          ece and bins over the test images of all tasks, confidence and accuracy as shares of 1
  synthetic            class_frequencies: the teacher's choices as shares of 1; confidence: its mean softmax in them
  inversion_terms      of the inversion before task n, a line for every 100 steps
  feature_drift        for each old class the distance between its mean test feature under the teacher and under the
                       student, as a share of the norm of the former
  memorisation         with --audit, in pixels (root mean square differences on [0, 1]) and in features (of the teacher,
                       Euclidean): medians and shares of `diagnostics.memorisation`; and memorisation.png
  stored_images        with --stored, see `stored_images.search`: training images found in checkpoints and .npz files
"""

import dataclasses
import json
import math
import sys

import jax
import numpy as np
from absl import flags

from abd_jax import diagnostics, figures, stored_images
from abd_jax.errors import UserError
from abd_jax.files import write_whole, writing
from abd_jax.finished import read_run, synthetic_images
from abd_jax.methods.interface import OWN
from abd_jax.metrics_log import inversion_terms
from abd_jax.parallel import compile_step
from abd_jax.programs import features, in_batches
from abd_jax.results import runs_below
from abd_jax.steps import make_feature_step

POPULATIONS = ('real_old', 'real_new', 'synthetic')
_PAIRS = (('real_old', 'real_new'), ('real_old', 'synthetic'), ('real_new', 'synthetic'))
_TSNE_IMAGES = 200
_AUDIT_COLUMNS = 10


def _logits(run, state, features_ND, seen):
  """f32[N, seen]: as an evaluation reads them."""
  network = {name: value for name, value in state.params.items() if name != OWN}
  logits_NK = run.networks.classifier.apply({'params': network}, features_ND, method='classify')
  if run.method.readout and OWN in state.params:
    tasks = np.asarray(run.tasks.task_of_class)
    logits_NK = run.method.readout(logits_NK, state.params[OWN], tasks, run.config.hparams)
  return np.asarray(logits_NK)[:, :seen]


def _some(rng, rows, count):
  """At most `count` of the rows, drawn without repetition."""
  return rng.permutation(rows)[:count]


def diagnose(run, count=1000, audit=False):
  """The figures of a `FinishedRun`, and what the picture of its audit shows.

  Args:
    run: a `FinishedRun`.
    count: images of a population at most.
    audit: whether synthetic images are held against the training images.

  Returns:
    (what diagnostics.json says, {'pixels', 'features'} as `figures.draw_memorisation` takes them or None).
  """
  past, seen = run.tasks.past(run.last), run.tasks.seen(run.last)
  networks = dataclasses.replace(run.networks, generator=None)
  real = features(networks)
  dreamed = compile_step(make_feature_step(networks.classifier, lambda images: images))
  rng = np.random.default_rng(run.config.seed)

  test = [run.tasks.test(task) for task in range(run.last + 1)]
  labels = np.concatenate([its_labels for _, its_labels in test])
  look = lambda state: np.concatenate([in_batches(real, state.variables, images) for images, _ in test])
  seen_by_student = look(run.student)
  seen_by_teacher = None if run.teacher is None else look(run.teacher)
  rows = [_some(rng, np.flatnonzero(side), count) for side in (labels < past, labels >= past)]
  images = synthetic_images(run, count)

  def populations_of(state, seen_by_it):
    synthetic = [] if images is None else [in_batches(dreamed, state.variables, images)]
    return dict(zip(POPULATIONS, [seen_by_it[r] for r in rows] + synthetic, strict=False))

  populations = populations_of(run.student, seen_by_student)

  logits = _logits(run, run.student, seen_by_student, seen)
  predictions, confidences = logits.argmax(axis=1), np.asarray(jax.nn.softmax(logits)).max(axis=1)
  said = {
      'flags': run.flags,
      'after_task': run.last + 1,
      'populations': {name: len(populations[name]) if name in populations else None for name in POPULATIONS},
      **_distances(populations),
      'under_teacher': None,
      'tsne': _tsne(populations),
      'confusion_by_task': diagnostics.confusion_by_task(predictions, labels, run.tasks.task_of_class[:seen]),
      'calibration': diagnostics.calibration(confidences, predictions == labels),
      'synthetic': None if images is None else _in_synthetic(run, in_batches(dreamed, run.teacher.variables, images)),
      'inversion_terms': inversion_terms(run.lines, run.last + 1) or None,
      'feature_drift': None,
  }
  if run.teacher is not None:
    drift = diagnostics.feature_drift(seen_by_teacher, seen_by_student, labels, past)
    said['feature_drift'] = dict(zip(run.class_names, drift, strict=False))
    under_teacher = _distances(populations_of(run.teacher, seen_by_teacher))
    said['under_teacher'] = {name: under_teacher[name] for name in ('mid', 'mmd')}
  picture = None
  if audit and images is not None:
    held_out = np.concatenate([np.asarray(its) for its, _ in test[: run.last]])[rows[0]]
    said['memorisation'], picture = _audit(run, real, images, held_out, rng)
  return _rounded(said), picture


def _distances(populations):
  """mid, mmd and what goes with them."""
  bandwidth = diagnostics.median_distance(*populations.values())
  said = {'mid': {}, 'mmd': {}, 'mmd_bandwidth': bandwidth, 'dead_features': None}
  for pair in _PAIRS:
    name, (first, second) = '_'.join(pair), map(populations.get, pair)
    said['mid'][name] = said['mmd'][name] = None
    if first is not None and second is not None:
      said['mid'][name], dead = diagnostics.mean_image_distance(first, second)
      said['mmd'][name] = diagnostics.maximum_mean_discrepancy(first, second, bandwidth)
      if pair == _PAIRS[0]:
        said['dead_features'] = dead
  return said


def _tsne(populations):
  """Two decimals of each point, None for a population that is not there."""
  points = diagnostics.embed(*[population[:_TSNE_IMAGES] for population in populations.values()])
  decimals = [np.round(points_N2.astype(float), 2).tolist() for points_N2 in points]
  return dict.fromkeys(POPULATIONS) | dict(zip(populations, decimals, strict=True))


def _in_synthetic(run, features_ND):
  """What the teacher sees in synthetic images, by the names of the classes."""
  past = run.tasks.past(run.last)
  logits = _logits(run, run.teacher, features_ND, past)
  confidences = np.asarray(jax.nn.softmax(logits)).max(axis=1)
  shares, means = diagnostics.class_frequencies(logits.argmax(axis=1), confidences, past)
  named = lambda figures_K: dict(zip(run.class_names, figures_K, strict=False))
  return {'class_frequencies': named(shares), 'confidence': named(means)}


def _audit(run, real, synthetic, held_out, rng):
  """The synthetic images against the training images of the old classes, in pixels and in the teacher's features."""
  training = np.concatenate([np.asarray(run.tasks.train(task)[0]) for task in range(run.last)])
  networks = run.networks
  pixels = 255 * (synthetic * np.asarray(networks.std, np.float32) + np.asarray(networks.mean, np.float32))
  pixels = np.clip(np.round(pixels), 0, 255).astype(np.uint8)
  sample = _some(rng, np.arange(len(training)), len(held_out))

  def flat(images):
    return images.reshape(len(images), -1).astype(np.float32) / (255 * math.sqrt(images[0].size))

  def seen(images):
    return in_batches(real, run.teacher.variables, images)

  said, picture = {}, {}
  for name, of in (('pixels', flat), ('features', seen)):
    dreams_MD, training_ND = of(pixels), of(training)
    said[name], rows, others = diagnostics.memorisation(dreams_MD, of(held_out), training_ND, sample)
    closest = np.argsort(np.linalg.norm(dreams_MD - training_ND[rows], axis=1))[:_AUDIT_COLUMNS]
    picture[name] = pixels[closest], training[rows[closest]], training[others[closest]]
  return said, picture


def _rounded(tree):
  """Five digits of every number, None where there is none, for JSON."""
  if isinstance(tree, dict):
    return {name: _rounded(value) for name, value in tree.items()}
  if isinstance(tree, list | tuple | np.ndarray):
    return [_rounded(value) for value in tree]
  if isinstance(tree, float | np.floating):
    return float(f'{tree:.5g}') if math.isfinite(tree) else None
  return tree


def write(run, said, picture=None):
  """diagnostics.json and the pictures, into the run's folder."""
  lines = ',\n'.join(f' {json.dumps(name)}: {json.dumps(value)}' for name, value in said.items())
  write_whole(run.workdir / 'diagnostics.json', f'{{\n{lines}\n}}\n')
  folder = run.workdir / 'diagnostics'
  figures.save(figures.draw_distances([[[said]]], 'mid'), folder, 'mid')
  figures.save(figures.draw_distances([[[said]]], 'mmd'), folder, 'mmd')
  figures.save(figures.draw_tsne([[[said]]]), folder, 'tsne')
  figures.save(figures.draw_confusion(said), folder, 'confusion')
  if picture:
    figures.draw_memorisation(picture).savefig(run.workdir / 'memorisation.png', bbox_inches='tight')


def _define_flags():
  script = {'module_name': sys.argv[0]}
  flags.DEFINE_string('data_dir', '', 'where the data set lies; empty: where the run found it', **script)
  flags.DEFINE_integer('images', 1000, 'of a population at most', lower_bound=2, **script)
  flags.DEFINE_boolean('stored', False, 'search all that the run keeps for its training images', **script)
  flags.DEFINE_boolean('audit', False, 'hold synthetic images against training images of the old classes', **script)


def _diagnose_all(arguments):
  if not arguments:
    raise UserError('An argument is needed: python -m abd_jax.diagnose RUN_DIR...')
  for folder in [folder for path in arguments for folder in runs_below(path)]:
    run = read_run(folder, flags.FLAGS.data_dir)
    with writing(folder):  # before the work
      (run.workdir / 'diagnostics').mkdir(exist_ok=True)
    said, picture = diagnose(run, flags.FLAGS.images, flags.FLAGS.audit)
    if flags.FLAGS.stored:
      said['stored_images'] = stored_images.search(run)
    write(run, said, picture)
    print(f'{folder / "diagnostics.json"}: {_sentence(said)}', flush=True)


def _sentence(said):
  known = {pair.replace('_real', ' to real').replace('_syn', ' to syn'): mid for pair, mid in said['mid'].items()}
  mid = 'MID ' + ', '.join(f'{pair} {mid:.2f}' for pair, mid in known.items() if mid is not None)
  return f'{mid}; {stored_images.sentence(said["stored_images"])}' if 'stored_images' in said else mid


if __name__ == '__main__':
  from abd_jax import experiment

  experiment.start(_define_flags, _diagnose_all)
