"""Augmentation: its numbers (`presets`), and the chain that draws and applies it, on tensors or on host arrays."""
