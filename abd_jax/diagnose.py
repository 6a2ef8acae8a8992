"""Looks into finished runs: what the last task has made of old images, new ones and synthetic ones.

  python -m abd_jax.diagnose runs/two_tasks/abd/seed0
  python -m abd_jax.diagnose --audit --data_dir=~/data runs/two_tasks

writes `diagnostics.json` into each run's folder, and pictures into its `diagnostics/`. Real images are test images, but
for --audit, which holds synthetic images against the training images of the old classes.

diagnostics.json, whose figures are defined in `diagnostics`; n is the last task learned, all features are penultimate
ones in eval mode, and what needs synthetic images or a teacher is null where the method has none:

  flags                what the run was told
  after_task           n
  populations          images a population: real_old (of tasks before n), real_new (of task n), synthetic (as the student
                       saw them in task n), the figures of mid, mmd and tsne being of their features under the student
  mid, mmd             of real_old_real_new, real_old_synthetic, real_new_synthetic; the first named is the reference,
                       and all three squared MMD have the same kernel
  mmd_bandwidth        its sigma, the median distance between any two images of the three populations
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
"""

import dataclasses
import json
import math
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from abd_jax import checkpoint, diagnostics, figures, states
from abd_jax import config as config_lib
from abd_jax.data import TaskSequence, load
from abd_jax.errors import UserError
from abd_jax.methods import METHODS
from abd_jax.methods.interface import OWN
from abd_jax.networks import networks_for
from abd_jax.parallel import compile_step
from abd_jax.programs import EVAL_BATCH, features, in_batches, synthesis
from abd_jax.results import Results
from abd_jax.steps import Address, key_at, make_feature_step

POPULATIONS = ('real_old', 'real_new', 'synthetic')
_PAIRS = (('real_old', 'real_new'), ('real_old', 'synthetic'), ('real_new', 'synthetic'))
_TSNE_IMAGES = 200
_AUDIT_COLUMNS = 10


@dataclasses.dataclass(frozen=True)
class FinishedRun:
  """What a finished run has left.

  Attributes:
    config: its `config.Config`.
    flags: {flag: value} of it, as results.json has them.
    workdir: its folder.
    dataset, tasks: what it learned from, as a `data.Dataset` and a `TaskSequence`.
    last: the number of the last task learned, from 0; there is one before.
    student, teacher: `states.TeacherState`s; the teacher is None for a method without.
    generator: what it dreamed with in the last task, or None.
    lines: of metrics.jsonl.
  """

  config: config_lib.Config
  flags: dict
  workdir: Path
  dataset: Any
  tasks: TaskSequence
  last: int
  student: states.TeacherState
  teacher: states.TeacherState | None
  generator: Any
  lines: list

  @property
  def method(self):
    return METHODS[self.config.method]

  @property
  def networks(self):
    """As one device needs them."""
    return dataclasses.replace(networks_for(self.config, self.tasks, self.dataset), axis=None)

  @property
  def class_names(self):
    """By class position."""
    return [self.dataset.class_names[label] for label in self.tasks.order]


def read_run(workdir, data_dir=''):
  """The `FinishedRun` in a folder.

  Args:
    workdir: where `train.run` wrote.
    data_dir: in the place of the run's own, where it is not empty.

  Raises:
    UserError: there is no finished run of two tasks or more.
  """
  workdir = Path(workdir).expanduser()
  results = Results.load(workdir / 'results.json')
  config = config_lib.from_flagfile(workdir / 'flags.txt')
  last = len(results.accuracy_after_task) - 1
  if not last:
    raise UserError(f'{workdir} has learned one task: a diagnosis needs old classes and new ones.')
  end, during = None, {}
  for record, held in checkpoint.saved(workdir):
    end = end or (record, held)
    if record['task'] == last and 'teacher' in held:
      during = held
      break
  if (end[0]['task'], end[0]['phase'], end[0]['step']) != (last + 1, 0, 0):
    raise UserError(f'{workdir} holds a run that goes on beyond its results.json: let it finish first.')
  dataset = load(config.dataset, data_dir or config.data_dir, config.verify_checksum)
  tasks = TaskSequence(
      dataset, config.num_tasks, num_classes=config.num_classes, seed=config.seed, image_size=config.image_size
  )
  frozen = lambda state: states.TeacherState(state['params'], state['batch_stats'])  # noqa: E731
  generator = during.get('generator')
  if generator is not None and config.inversion.inversion == 'images':
    generator = states.ImageSetState(generator['images'], None)
  elif generator is not None:
    generator = states.GeneratorState(generator['params'], generator['batch_stats'], None)
  lines = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
  teacher = frozen(during['teacher']) if during else None
  student = frozen(end[1]['student'])
  return FinishedRun(
      config, results.config, workdir, dataset, tasks, last, student, teacher, generator, lines
  )


def synthetic_images(run, count):
  """f32[count, H, W, C] in the classifier's pixel space, as the last task's student saw them; None without a teacher
  to make them."""
  replays = any(phase.replays for phase in run.method.later)
  if run.teacher is None or not (run.method.dreams or replays):
    return None
  image_set = run.config.inversion if run.config.inversion.inversion == 'images' else None
  draw, dream = synthesis(run.networks, run.method.dreams, replays, image_set)
  sample = compile_step(lambda generator, teacher, place: dream(generator, teacher, draw(key_at(place), EVAL_BATCH)))
  images = []
  for i in range(math.ceil(count / EVAL_BATCH)):
    place = np.array([run.config.seed, run.last, Address.PREVIEW, 1 + i], np.int32)  # 0 is the run's own picture
    images.append(np.asarray(sample(run.generator, run.teacher, place)))
  return np.concatenate(images)[:count]


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
  look = lambda state: np.concatenate([in_batches(real, state.variables, images) for images, _ in test])  # noqa: E731
  seen_by_student = look(run.student)
  seen_by_teacher = None if run.teacher is None else look(run.teacher)
  populations = {
      'real_old': seen_by_student[_some(rng, np.flatnonzero(labels < past), count)],
      'real_new': seen_by_student[_some(rng, np.flatnonzero(labels >= past), count)],
  }
  images = synthetic_images(run, count)
  if images is not None:
    populations['synthetic'] = in_batches(dreamed, run.student.variables, images)

  logits = _logits(run, run.student, seen_by_student, seen)
  predictions, confidences = logits.argmax(axis=1), np.asarray(jax.nn.softmax(logits)).max(axis=1)
  said = {
      'flags': run.flags,
      'after_task': run.last + 1,
      'populations': {name: len(populations[name]) if name in populations else None for name in POPULATIONS},
      **_distances(populations),
      'confusion_by_task': diagnostics.confusion_by_task(predictions, labels, run.tasks.task_of_class[:seen]),
      'calibration': diagnostics.calibration(confidences, predictions == labels),
      'synthetic': None if images is None else _in_synthetic(run, in_batches(dreamed, run.teacher.variables, images)),
      'inversion_terms': diagnostics.inversion_terms(run.lines, run.last + 1) or None,
      'feature_drift': None,
  }
  if run.teacher is not None:
    drift = diagnostics.feature_drift(seen_by_teacher, seen_by_student, labels, past)
    said['feature_drift'] = dict(zip(run.class_names, drift, strict=False))
  picture = None
  if audit and images is not None:
    rows = _some(rng, np.flatnonzero(labels < past), count)
    held_out = np.concatenate([np.asarray(its) for its, _ in test[: run.last]])
    said['memorisation'], picture = _audit(run, real, images, held_out[rows], rng)
  return _rounded(said), picture


def _distances(populations):
  """mid, mmd and what goes with them, and tsne."""
  bandwidth = diagnostics.median_distance(*populations.values())
  distances = {'mid': {}, 'mmd': {}}
  for pair in _PAIRS:
    known = all(name in populations for name in pair)
    first, second = map(populations.get, pair)
    mid, dead = diagnostics.mean_image_distance(first, second) if known else (None, None)
    if pair == _PAIRS[0]:
      distances['dead_features'] = dead
    distances['mid']['_'.join(pair)] = mid
    distances['mmd']['_'.join(pair)] = (
        diagnostics.maximum_mean_discrepancy(first, second, bandwidth) if known else None
    )
  points = diagnostics.embed(*[population[:_TSNE_IMAGES] for population in populations.values()])
  tsne = {name: np.round(rows.astype(float), 2).tolist() for name, rows in zip(populations, points, strict=True)}
  return {**distances, 'mmd_bandwidth': bandwidth, 'tsne': {name: tsne.get(name) for name in POPULATIONS}}


def _in_synthetic(run, features_ND):
  """What the teacher sees in synthetic images, by the names of the classes."""
  past = run.tasks.past(run.last)
  logits = _logits(run, run.teacher, features_ND, past)
  confidences = np.asarray(jax.nn.softmax(logits)).max(axis=1)
  shares, means = diagnostics.class_frequencies(logits.argmax(axis=1), confidences, past)
  named = lambda figures_K: dict(zip(run.class_names, figures_K, strict=False))  # noqa: E731
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
  checkpoint.write_whole(run.workdir / 'diagnostics.json', f'{{\n{lines}\n}}\n')
  folder = run.workdir / 'diagnostics'
  figures.save(figures.draw_distances([[[said]]], 'mid'), folder, 'mid')
  figures.save(figures.draw_distances([[[said]]], 'mmd'), folder, 'mmd')
  figures.save(figures.draw_tsne([[[said]]]), folder, 'tsne')
  figures.save(figures.draw_confusion(said), folder, 'confusion')
  if picture:
    figures.draw_memorisation(picture).savefig(run.workdir / 'memorisation.png', bbox_inches='tight')


def runs_below(path):
  """The folders of runs at a path: itself, or those with <method>/seed<k>/ somewhere below.

  Raises:
    UserError: there are none.
  """
  path = Path(path).expanduser()
  if (path / 'results.json').exists():
    return [path]
  found = sorted(file.parent for file in path.glob('**/seed*/results.json'))
  if not found:
    raise UserError(f'{path} holds no results.json of a finished run.')
  return found


def _define_flags():
  script = {'module_name': sys.argv[0]}
  flags.DEFINE_string('data_dir', '', 'where the data set lies; empty: where the run found it', **script)
  flags.DEFINE_integer('images', 1000, 'of a population at most', lower_bound=2, **script)
  flags.DEFINE_boolean('audit', False, 'hold synthetic images against the training images that they stand for', **script)


def _diagnose_all(arguments):
  if not arguments:
    raise UserError('An argument is needed: python -m abd_jax.diagnose RUN_DIR...')
  for folder in [folder for path in arguments for folder in runs_below(path)]:
    run = read_run(folder, flags.FLAGS.data_dir)
    said, picture = diagnose(run, flags.FLAGS.images, flags.FLAGS.audit)
    write(run, said, picture)
    print(f'{folder / "diagnostics.json"}: {_sentence(said)}', flush=True)


def _sentence(said):
  known = {pair.replace('_real', ' to real').replace('_syn', ' to syn'): mid for pair, mid in said['mid'].items()}
  return 'MID ' + ', '.join(f'{pair} {mid:.2f}' for pair, mid in known.items() if mid is not None)


if __name__ == '__main__':
  from abd_jax import experiment

  experiment.start(_define_flags, _diagnose_all)
