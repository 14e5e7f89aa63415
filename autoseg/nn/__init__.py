"""Networks, losses, the arithmetic of a step, the memory model, tiles. Torch and numpy alone; independent of files and
plans.
"""
