"""Networks, losses, sliding windows, checkpoints. Needs torch and numpy alone; knows no image files and no plans."""
