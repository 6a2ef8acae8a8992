"""A small run hurt in every way, behind `experiments/faults.py`."""
