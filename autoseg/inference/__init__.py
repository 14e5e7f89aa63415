"""Segment images with the trained folds, and estimate how long that takes."""
