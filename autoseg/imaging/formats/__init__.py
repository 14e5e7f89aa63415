"""Image files: one module per family, and the table of formats that are read and written (`readers`)."""
