"""A corrected copy of a dataset: what is mended, how, and the list of what was changed. The original stays as it is."""
