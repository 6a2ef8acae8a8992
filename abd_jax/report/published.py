"""What the literature reports, to stand beside our own figures; and the order in which the paper lists methods.

Sources: Smith et al., Always Be Dreaming, ICCV 2021 (https://arxiv.org/abs/2106.09701), Tables 1, 2, 4 and A to E;
R-DFCIL, ECCV 2022; REMIX, 2026. "Re-run by others" is ABD with the student of R-DFCIL and 200 epochs.
"""

import dataclasses

from abd_jax.methods import abd


@dataclasses.dataclass(frozen=True)
class Benchmark:
  """Where a figure was measured; runs of ours stand beside it when all of this is theirs too, and the flags in `FLAGS`.

  Attributes:
    dataset, num_classes, num_tasks, student, epochs, top_k: as in results.json and its config.
  """

  dataset: str
  num_classes: int
  num_tasks: int
  student: str = 'resnet32'
  epochs: int = 250
  top_k: int = 1


@dataclasses.dataclass(frozen=True)
class Figures:
  """Percentages: final accuracy A_N with its standard deviation, and Omega."""

  final_accuracy: float
  spread: float | None = None
  omega: float | None = None


# What others measured with another student and schedule than the paper's, whose benchmarks they stand in too.
RERUN = 'abd, re-run by others (resnet32_icarl, 200 epochs)'
RDFCIL = 'R-DFCIL (resnet32_icarl, 160 + 40 epochs)'

# What each method replays, in the paper's order: Tables 1 and A, then 2 and B. What others published follows.
REPLAY = {
    'upper_bound': 'none',
    'base': 'none',
    'lwf': 'none',
    'lwf_mc': 'none',
    'dgr': 'generator',
    'lwf_synthetic': 'synthetic',
    'deep_inversion': 'synthetic',
    'abd': 'synthetic',
    'rdfcil': 'synthetic',
    'dream': 'synthetic',
    'rehearsal': 'coreset',
    'lwf_coreset': 'coreset',
    'e2e': 'coreset',
    'bic': 'coreset',
    RERUN: 'synthetic',
    RDFCIL: 'synthetic',
    'REMIX': 'class statistics',
}

# Table 3's order. Of its figures only the prose is known: plain cross-entropy halves the accuracy, removing the
# fine-tuning hurts most, the two halves of the distillation hurt alike.
ABLATIONS = ('none', *abd.ABLATIONS)

_CIFAR100 = {  # A_N, its standard deviation, Omega; for 5, 10 and 20 tasks
    'upper_bound': ((69.9, 0.2), (69.9, 0.2), (69.9, 0.2)),
    'base': ((16.4, 0.4, 48.9), (8.8, 0.1, 32.1), (4.4, 0.3, 19.7)),
    'lwf': ((17.0, 0.1), (9.2, 0.0), (4.7, 0.1)),
    'lwf_mc': ((32.5, 1.0), (17.1, 0.1), (7.7, 0.5)),
    'dgr': ((14.4, 0.4, 45.5), (8.1, 0.1, 30.5), (4.1, 0.3, 19.0)),
    'deep_inversion': ((18.8, 0.3), (10.9, 0.6), (5.7, 0.3)),
    'abd': ((43.9, 0.9, 78.6), (33.7, 1.2, 69.6), (20.0, 1.4, 52.5)),
    'rehearsal': ((34.0, 0.2, 73.4), (24.0, 1.0, 64.6), (14.9, 0.7, 51.4)),
    'lwf_coreset': ((39.4, 0.3, 79.0), (27.4, 0.8, 69.4), (16.6, 0.4, 54.2)),
    'e2e': ((47.4, 0.8), (38.4, 1.3), (32.7, 1.9)),
    'bic': ((53.7, 0.4, 87.5), (45.9, 1.8, 81.9), (37.5, 3.2, 71.7)),
    RERUN: ((47.4, 0.5), (36.2, 0.9), (22.3, 0.7)),
    RDFCIL: ((50.5, 0.4), (42.4, 0.7), (30.8, 0.1)),
    'REMIX': ((52.9,), (45.4,), (33.1,)),
}
_TINY_IMAGENET = {
    RERUN: ((30.8,), (23.2,), (14.6,)),
    RDFCIL: ((35.3,), (29.1,), (24.9,)),
}
_IMAGENET100 = {'upper_bound': 89.8, 'lwf': 19.4, 'abd': 71.5, 'rehearsal': 78.9, 'lwf_coreset': 84.8}  # top-5


# The values that flags had, where it was not the default alone: the paper's figures are those of runs by its text and
# by its authors' code, wherever the two differ.
_PAPER = {
    'inversion_steps': (5000, 10000), 'color_jitter': (True, False), 'finetune_classes': ('seen', 'all'),
    'finetune_weight': (1.0, 0.1), 'local_ce_weight': (True, False), 'bn_double_update': (False, True),
    'generator_init': ('fresh', 'warm'), 'phase2_batch_stats': ('frozen', 'updated'),
    'bic_evaluation': ('corrected', 'raw'),
}
_PAPER_ON_IMAGENET = {
    **_PAPER, 'inversion_steps': (10000, 50000), 'color_jitter': (False,), 'resized_crop': (True,),
    'crop_padding': (0,), 'decay_at': ([30, 60, 80, 90],), 'weight_decay': (1e-4,),
}
_RDFCIL = {
    'decay_at': ([80, 120],), 'second_epochs': (40,), 'second_learning_rate': (5e-3,), 'color_jitter': (False,),
}
_RERUN = {
    'decay_at': ([80, 120],), 'head_bias': ('true',), 'finetune_normalise': ('weighted',), 'color_jitter': (False,),
}


def _published():
  """({Benchmark: {method: Figures}}, {Benchmark: {flag: values}})."""
  found, flags = {}, {}
  for i, num_tasks in enumerate((5, 10, 20)):
    for dataset, classes, table, weight_decay in (
        ('cifar100', 100, _CIFAR100, 5e-4), ('tiny_imagenet', 200, _TINY_IMAGENET, 2e-4)
    ):
      paper = Benchmark(dataset, classes, num_tasks)
      found[paper] = {name: Figures(*row[i]) for name, row in table.items()}
      # R-DFCIL's own student and schedules: 160 epochs and 40 of a second phase, or 200 of one.
      theirs, rerun = (Benchmark(dataset, classes, num_tasks, 'resnet32_icarl', epochs) for epochs in (160, 200))
      found[theirs] = {'rdfcil': Figures(*table[RDFCIL][i])}
      found[rerun] = {'abd': Figures(*table[RERUN][i])}
      flags[paper] = _PAPER
      flags[theirs], flags[rerun] = ({**told, 'weight_decay': (weight_decay,)} for told in (_RDFCIL, _RERUN))
    found[Benchmark('cifar100', 100, num_tasks, 'resnet32_icarl', 160)]['upper_bound'] = Figures(70.6)
  found[Benchmark('tiny_imagenet', 200, 20)]['upper_bound'] = Figures(55.5)
  imagenet = Benchmark('imagenet', 100, 10, 'resnet18', 100, top_k=5)
  found[imagenet] = {name: Figures(accuracy) for name, accuracy in _IMAGENET100.items()}
  flags[imagenet] = _PAPER_ON_IMAGENET
  return found, flags


FIGURES: dict[Benchmark, dict[str, Figures]]
FLAGS: dict[Benchmark, dict[str, tuple]]
FIGURES, FLAGS = _published()
