"""Image files: one module per family, and the table of what is read and written by what (`readers`)."""
