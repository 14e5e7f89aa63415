"""A corrected copy of a dataset: what is repaired, how, and the list of changes. The original is never written."""
