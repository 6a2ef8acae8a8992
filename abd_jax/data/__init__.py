"""Images in, tasks out."""

from abd_jax.data.sources import Dataset, load
from abd_jax.data.tasks import TaskSequence, class_order

__all__ = ['Dataset', 'TaskSequence', 'class_order', 'load']
