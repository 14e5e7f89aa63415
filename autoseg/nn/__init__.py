"""Networks, losses, the arithmetic of a step, tiles. Needs torch and numpy alone; knows no files and no plans."""
