"""Everything a run can be told, once: frozen dataclasses whose fields are the command-line flags.

A field's name is its flag's, its default the flag's default, its metadata the help and the range. `define_flags` and
`config_from_flags` are the only places that know absl flags.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from abd_jax import flagfiles
from abd_jax.errors import UserError
from abd_jax.methods import METHODS
from abd_jax.methods.abd import ABLATIONS
from abd_jax.models import GENERATORS, STUDENTS
from abd_jax.written import check_kind


def _field(default, text, *, choices=None, at_least=None, above=None, identity=True):
  """A field that is a flag. `identity` says whether a run of another value is another run."""
  metadata = {'help': text, 'choices': choices, 'at_least': at_least, 'above': above, 'identity': identity}
  return dataclasses.field(default=default, metadata=metadata)


class _Plain:
  """Keeps NumPy's numbers as Python's and lists as tuples, as flags have them: configs are hashed and written."""

  def __post_init__(self):
    for field in dataclasses.fields(self):
      object.__setattr__(self, field.name, _plain(getattr(self, field.name)))


def _plain(value):
  if isinstance(value, np.generic | np.ndarray):
    value = value.tolist()
  return tuple(map(_plain, value)) if isinstance(value, list | tuple) else value


@dataclasses.dataclass(frozen=True)
class Optimisation(_Plain):
  """How the student is trained: SGD with momentum, fresh for each task."""

  epochs: int = _field(250, 'passes over the images of each task', at_least=1)
  decay_at: tuple[int, ...] = _field((100, 150, 200), 'the learning rate is divided by 10 after these epochs')
  batch_size: int = _field(128, 'real images a step, and as many synthetic ones', at_least=1)
  learning_rate: float = _field(0.1, 'of the first epoch', above=0)
  momentum: float = _field(0.9, 'of SGD, without Nesterov', at_least=0)
  second_epochs: int = _field(0, 'passes of the second phase; 0: as many as --epochs in e2e and bic, a quarter of it in'
                              ' rdfcil', at_least=0)
  second_learning_rate: float = _field(0.0, 'of the second phase; 0: a hundredth of --learning_rate in e2e and bic,'
                                       ' where it decays as in the first, a twentieth in rdfcil, where it stays',
                                       at_least=0)
  weight_decay: float = _field(2e-4, 'on every parameter that moves; 0 for dgr, whatever this says', at_least=0)
  bn_double_update: bool = _field(
      False, 'ABD\'s running statistics move to .81 r + .19 batch a step, as in the authors\' code, where a second'
      ' forward pass on the same batch moves them twice')


@dataclasses.dataclass(frozen=True)
class Augmentation(_Plain):
  """What happens to real training images, in this order."""

  resized_crop: bool = _field(False, 'a random part of 8 to 100 % of the area, its sides within 3:4, in full size')
  color_jitter: bool = _field(True, 'brightness by U(1 +- 63/255) and contrast by U(0.2, 1.8), in random order')
  flip: bool = _field(True, 'mirror an image with probability one half')
  crop_padding: int = _field(4, 'black border in pixels from which the image is cropped again; 0: no crop', at_least=0)


@dataclasses.dataclass(frozen=True)
class Inversion(_Plain):
  """How the frozen classifier is inverted (Eq. 1-7)."""

  inversion: str = _field('generator', 'generator: one learns to make images; images: a set of them is optimised before'
                          ' the task and dropped after it, as in DeepInversion', choices=('generator', 'images'))
  synthetic_images: int = _field(1024, 'of --inversion=images, rounded up to whole batches', at_least=1)
  image_steps: int = _field(1000, 'of --inversion=images, for each batch of its images', at_least=1)
  image_learning_rate: float = _field(0.05, 'of --inversion=images, of Adam', above=0)
  image_jitter: int = _field(2, 'of --inversion=images: images are shifted by up to so many pixels, all of a batch by'
                             ' as many while they are made, each by its own when it is learned from', at_least=0)
  image_flip: bool = _field(True, 'of --inversion=images: and mirrored with probability one half, in the same way')
  generator: str = _field('auto', 'auto: by image size', choices=('auto', *GENERATORS))
  generator_init: str = _field('fresh', 'fresh: a new generator each task; warm: one generator and one Adam for all'
                               ' tasks, as in the authors\' code', choices=('fresh', 'warm'))
  inversion_steps: int = _field(5000, 'steps of generator training before each task but the first', at_least=1)
  inversion_batch_size: int = _field(0, 'synthetic images a step of the generator; 0: as --batch_size', at_least=0)
  generator_learning_rate: float = _field(1e-3, 'of Adam', above=0)
  content_weight: float = _field(1.0, 'of Eq. 3', at_least=0)
  content_temperature: float = _field(1000.0, 'tau of Eq. 3', above=0)
  diversity_weight: float = _field(1.0, 'of Eq. 1', at_least=0)
  statistics_weight: float = _field(50.0, 'of Eq. 5', at_least=0)
  smoothness_weight: float = _field(1e-3, 'of Eq. 6', at_least=0)
  blur_sigma: float = _field(2**0.5, 'of the Gaussian of Eq. 6, in pixels', above=0)


@dataclasses.dataclass(frozen=True)
class Hyperparameters(_Plain):
  """What the losses of the methods are weighted by."""

  finetune_weight: float = _field(1.0, 'of Eq. 14', at_least=0)
  finetune_classes: str = _field('seen', 'classes in the softmax of Eq. 14 and of ABD\'s first task; all: also those'
                                 ' not met yet, as in the authors\' code', choices=('seen', 'all'))
  finetune_normalise: str = _field('mean', 'mean over rows, or weighted: divided by the sum of the balance weights',
                                   choices=('mean', 'weighted'))
  local_ce_weight: bool = _field(True, 'balance weight on Eq. 11, as in the authors\' code; false: as printed')
  distillation: str = _field('importance', 'importance: Eq. 13; features: Eq. 12; softmax: softened predictions',
                             choices=('importance', 'features', 'softmax'))
  distillation_weight: float = _field(0.1, 'of the distillation of ABD and lwf_synthetic', at_least=0)
  ablate: str = _field('none', 'a row of Table 3, of ABD: balance: no weights for balance; local_ce: cross-entropy over'
                       ' all classes seen in the place of Eq. 11; real_distillation, synthetic_distillation: only the'
                       ' other rows are distilled; finetune: no Eq. 14', choices=('none', *ABLATIONS))
  kd_weight: float = _field(1.0, 'of the softened predictions in the other methods', at_least=0)
  kd_temperature: float = _field(2.0, 'of the softened predictions', above=0)
  ce_weight: float = _field(0.5, 'of the cross-entropies of rdfcil', at_least=0)
  hkd_weight: float = _field(0.15, 'of the past logits that rdfcil holds on synthetic images', at_least=0)
  rkd_weight: float = _field(0.5, 'of the angles between features that rdfcil holds on real images', at_least=0)
  phase2_batch_stats: str = _field('frozen', 'BatchNorm in the second phase of e2e, bic and rdfcil; updated: in train'
                                   ' mode, as in ABD\'s authors\' code of the first two', choices=('frozen', 'updated'))
  bic_evaluation: str = _field('corrected', 'logits evaluated; raw: without the bias layers, as in the authors\' code',
                               choices=('corrected', 'raw'))


@dataclasses.dataclass(frozen=True)
class Config(_Plain):
  """One run: a method on a benchmark with a seed."""

  method: str = _field('abd', 'one or several, with commas', choices=METHODS)  # the table itself: it can grow,
  dataset: str = _field('digits', 'digits, cifar100, tiny_imagenet, imagenet, or npz:PATH')
  data_dir: str = _field('~/data', 'where data sets are looked for, and downloaded to', identity=False)
  verify_checksum: bool = _field(True, 'refuse an archive whose SHA-256 is not the distributed one', identity=False)
  workdir: str = _field('runs', 'everything the run writes', identity=False)
  num_tasks: int = _field(5, 'the classes are split evenly over the tasks', at_least=1)
  first_task_classes: int = _field(0, 'classes of the first task, the others being split evenly over the other tasks;'
                                   ' 0: as many as any', at_least=0)
  class_order: str = _field('auto', 'the order in which classes are met: seed: Python\'s shuffle of the seed;'
                            ' numpy1993: NumPy\'s shuffle of seed 1993, whatever the seed; labels: as the data set'
                            ' numbers them; auto: numpy1993 for ImageNet, else seed',
                            choices=('auto', 'seed', 'numpy1993', 'labels'))
  num_classes: int = _field(0, 'the first so many classes of the order; 0: all', at_least=0)
  stop_after_task: int = _field(0, 'end the run after so many tasks; 0: all', at_least=0, identity=False)
  image_size: int = _field(0, 'images are area-averaged down to so many pixels a side; 0: native', at_least=0)
  seed: int = _field(0, 'of class order, unless --class_order fixes it, initialisation and data order', at_least=0)
  seeds: tuple[int, ...] = _field((), 'several, with commas: one run each', identity=False)
  seeds_in: str = _field('auto', 'several seeds of a method: one_program: trained at once, each step one of all; turns:'
                         ' one after the other; auto: one_program on a GPU, turns elsewhere',
                         choices=('auto', 'one_program', 'turns'), identity=False)
  memory: int = _field(2000, 'old images that a method with a coreset keeps at most', at_least=1)
  student: str = _field('resnet32', 'the classifier', choices=STUDENTS)  # as can this one
  head_bias: str = _field('auto', 'whether the classifier\'s head has a bias; auto: those of iCaRL\'s kind have none',
                          choices=('auto', 'true', 'false'))
  top_k: int = _field(1, 'a prediction counts when the label is among so many of the highest logits', at_least=1)
  upper_bound: str = _field('', 'for Omega, the directory or results.json of a run of upper_bound; {seed} stands for'
                            ' the seed; empty: upper_bound/seed<k> in the workdir or beside it, where there is one',
                            identity=False)
  precision: str = _field('float32', 'of activations; parameters, statistics, losses and inversion terms are float32',
                          choices=('float32', 'bfloat16'))
  parallel: str = _field('jit', 'how several devices share a batch: jit: XLA finds the collectives; pmap: the step is'
                         ' mapped over the devices', choices=('jit', 'pmap'), identity=False)
  distributed: str = _field('', 'several processes make one run: auto (TPU VMs, Slurm), or HOST:PORT,COUNT,INDEX;'
                            ' empty: one process', identity=False)
  steps_per_call: int = _field(0, 'steps that the device makes without asking the host; 0: 1 on CPU, elsewhere an'
                               ' epoch, or 100 of the inversion', at_least=0, identity=False)
  compilation_cache: str = _field('', 'a folder that keeps compilations for later processes; empty: none',
                                  identity=False)
  on_nan: str = _field('stop', 'when a loss or a state is not finite: stop: end with a sentence; rollback: back to the'
                       ' last checkpoint, three times at most, and on with other draws', choices=('stop', 'rollback'),
                       identity=False)
  debug_nans: bool = _field(False, 'find the operation that first gave no number, slowly (jax_debug_nans)',
                            identity=False)
  tensorboard: bool = _field(False, 'write event files for TensorBoard into the workdir too', identity=False)
  checkpoint_seconds: float = _field(60.0, 'at most so long between two checkpoints', at_least=0, identity=False)
  resume: str = _field('auto', 'auto: go on where the workdir\'s run stopped; never: refuse a workdir in use',
                       choices=('auto', 'never'), identity=False)
  optimisation: Optimisation = Optimisation()
  augmentation: Augmentation = Augmentation()
  inversion: Inversion = Inversion()
  hparams: Hyperparameters = Hyperparameters()

  def __post_init__(self):
    super().__post_init__()
    for leaf in leaves(self):
      _check(leaf)
    if len(set(self.seeds)) < len(self.seeds):
      raise UserError(f'--seeds={text_of(self.seeds)} names a seed twice.')
    if self.stop_after_task > self.num_tasks:
      raise UserError(f'--stop_after_task={self.stop_after_task} is more than --num_tasks={self.num_tasks}.')
    # The method is one name here: launching splits a list into runs.
    names = self.method.split(',')
    for name in names:
      _check_choice('method', name, METHODS)
    if len(set(names)) < len(names):
      raise UserError(f'--method={self.method} names a method twice.')


@dataclasses.dataclass(frozen=True)
class Leaf:
  """One flag of a config: its field and its value there."""

  field: dataclasses.Field
  value: Any

  @property
  def name(self):
    return self.field.name


def leaves(config):
  """The flags of a config in the order of their definition, groups flattened: a list of `Leaf`."""
  found = []
  for field in dataclasses.fields(config):
    value = getattr(config, field.name)
    found += leaves(value) if dataclasses.is_dataclass(value) else [Leaf(field, value)]
  return found


def with_values(config, values):
  """The config with leaves replaced by name, in whatever group they are.

  Raises:
    UserError: a name is not a leaf's, or a value is out of its range.
  """
  unknown = set(values) - {leaf.name for leaf in leaves(config)}
  if unknown:
    raise UserError(f'There is no flag called {", ".join(sorted(unknown))}.')
  changes = {}
  for field in dataclasses.fields(config):
    value = getattr(config, field.name)
    if dataclasses.is_dataclass(value):
      inside = {leaf.name: values[leaf.name] for leaf in leaves(value) if leaf.name in values}
      changes[field.name] = with_values(value, inside) if inside else value
    elif field.name in values:
      changes[field.name] = values[field.name]
  return dataclasses.replace(config, **changes)


def incidental_flags():
  """The names of flags that make no other run: where it writes, how fast it is."""
  return {leaf.name for leaf in leaves(Config()) if not leaf.field.metadata['identity']}


def differing_flag(config, other):
  """The name of a flag that makes the two different runs, or None."""
  incidental = incidental_flags()
  for ours, theirs in zip(leaves(config), leaves(other), strict=True):
    if ours.name not in incidental and ours.value != theirs.value:
      return ours.name
  return None


def _check_choice(name, value, choices):
  if value not in choices:
    more = '; --plugin=FILE brings your own' if choices is METHODS or choices is STUDENTS else ''
    raise UserError(f'--{name}={value} is not one of {", ".join(choices)}{more}.')


def _check(leaf):
  metadata, kind = leaf.field.metadata, type(leaf.field.default)
  check_kind(leaf.value, kind, f'--{leaf.name}=')
  whole = {int: (leaf.value,), tuple: leaf.value}.get(kind, ())
  if any(value >= 2**31 for value in whole):  # arrays hold them in 32 bits
    raise UserError(f'--{leaf.name}={text_of(leaf.value)} must be below 2147483648.')
  if kind is tuple and min(whole, default=0) < 0:
    raise UserError(f'--{leaf.name}={text_of(leaf.value)} must be at least 0.')
  if metadata['choices'] and leaf.name != 'method':
    _check_choice(leaf.name, leaf.value, metadata['choices'])
  if kind is float and not abs(leaf.value) <= sys.float_info.max:  # a whole number may be larger than any float
    raise UserError(f'--{leaf.name}={leaf.value} must be a finite number.')
  if metadata['at_least'] is not None and not leaf.value >= metadata['at_least']:
    raise UserError(f'--{leaf.name}={leaf.value} must be at least {metadata["at_least"]}.')
  if metadata['above'] is not None and not leaf.value > metadata['above']:
    raise UserError(f'--{leaf.name}={leaf.value} must be above {metadata["above"]}.')


def _tuple_of_int(name, text):
  try:
    return tuple(int(part) for part in text.split(',') if part.strip())
  except ValueError:
    raise UserError(f'--{name}={text} must be whole numbers with commas between them.') from None


def text_of(value):
  """A flag's value as it is written on the command line."""
  if isinstance(value, tuple | list):
    return ','.join(str(item) for item in value)
  return str(value).lower() if isinstance(value, bool) else str(value)


def define_flags(defaults=Config(), flag_values=flags.FLAGS, names=None):
  """Defines a flag for every leaf of `Config`, or those of `names`, with the values in `defaults` as its defaults."""
  for leaf in leaves(defaults):
    if names is not None and leaf.name not in names:
      continue
    text = leaf.field.metadata['help']
    if leaf.field.metadata['choices']:
      text += f' (one of {", ".join(leaf.field.metadata["choices"])})'
    # By the type of the default: bool before int, of which it is a subclass.
    kinds = {bool: flags.DEFINE_boolean, int: flags.DEFINE_integer, float: flags.DEFINE_float}
    define = kinds.get(type(leaf.value), flags.DEFINE_string)
    default = text_of(leaf.value) if define is flags.DEFINE_string else leaf.value
    # Under the script's own name, which is what --help lists.
    define(leaf.name, default, text, flag_values=flag_values, module_name=sys.argv[0])


def config_from_flags(defaults=Config(), flag_values=flags.FLAGS):
  """The config that the parsed flags describe.

  Raises:
    UserError: a value is out of its range.
  """
  return with_values(defaults, {leaf.name: _value(leaf, flag_values) for leaf in leaves(defaults)})


def given_on_command_line(defaults, flag_values):
  """{leaf's name: value} of the defined flags that were given a value, be it the default's.

  Raises:
    UserError: a value is not of the flag's kind.
  """
  given = [leaf for leaf in leaves(defaults) if leaf.name in flag_values and flag_values[leaf.name].present]
  return {leaf.name: _value(leaf, flag_values) for leaf in given}


def _value(leaf, flag_values):
  value = flag_values[leaf.name].value
  return _tuple_of_int(leaf.name, value) if isinstance(leaf.value, tuple) else value


def to_flagfile(config):
  """The config as the text of a flagfile that replays it."""
  return ''.join(f'--{leaf.name}={text_of(leaf.value)}\n' for leaf in leaves(config))


def from_flagfile(path):
  """The config that a flagfile written by `to_flagfile` describes.

  Raises:
    UserError: the file cannot be read as one.
  """
  flagfiles.check([f'--flagfile={Path(path)}'])
  flag_values = flags.FlagValues()
  define_flags(flag_values=flag_values)
  try:
    _, *rest = flag_values(['', f'--flagfile={Path(path)}'])
  except flags.Error as error:
    raise UserError(f'{path} is not a flagfile of this version: {error}.') from None
  if rest:
    raise UserError(f'{path} is not a flagfile: {rest[0]} is not written --name=value.')
  return config_from_flags(flag_values=flag_values)


def as_dict(config):
  """{flag: value} as JSON knows it, for results.json."""
  return {leaf.name: list(leaf.value) if isinstance(leaf.value, tuple) else leaf.value for leaf in leaves(config)}
