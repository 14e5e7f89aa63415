"""Stored cases to training batches. Knows arrays and case ids; knows no plan and no network."""
