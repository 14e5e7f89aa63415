"""What was trained, as a thing: built from a plan, saved, opened, begun from."""
