"""The demo: a synthetic dataset, every command on it, and the result."""
