"""How good segmentations are: metrics of a case, of folders, of all folds together."""
