"""Images to segmentations with the trained folds, and an estimate of how long that takes."""
