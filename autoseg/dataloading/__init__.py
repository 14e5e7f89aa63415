"""Stored cases to training batches. Works on arrays and case ids; independent of plans and networks."""
