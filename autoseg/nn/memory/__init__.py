"""Memory of a training step: traced, modelled, and corrected by what was measured."""
