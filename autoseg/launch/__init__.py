"""Folds in processes of their own: what they share, one per GPU of this machine, as jobs of a cluster."""
