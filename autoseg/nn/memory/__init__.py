"""Memory of a training step: traced, put together, corrected by what was measured."""
