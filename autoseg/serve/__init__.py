"""A page on this machine: images are opened, segmented, looked at, corrected by clicks, and saved."""
