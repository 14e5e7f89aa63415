"""Folds in separate processes: what they share, one per GPU of this machine, as jobs of a cluster."""
