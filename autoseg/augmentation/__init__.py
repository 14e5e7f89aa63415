"""Augmentation: its numbers (`presets`), and the chains that draw and apply it, on tensors or on host arrays."""
