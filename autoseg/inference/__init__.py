"""Images to segmentations of the trained folds, and how long that takes."""
