"""Any accepted layout of a dataset to checked cases: `dataset.discover` chains what the other modules read."""
