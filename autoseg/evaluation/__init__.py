"""Metrics of a case, of two folders, and of all folds together."""
