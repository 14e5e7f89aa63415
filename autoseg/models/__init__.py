"""Trained models: built from a plan, saved, opened, and used to initialise others."""
