"""Networks, losses, sliding windows, checkpoints. Needs torch and numpy alone; knows no image files and no plans.

networks.py       the table of networks, each in a module of its own: unet, residual_unet, attention_unet,
                  unet_plusplus, deeplab, segformer, swin_unet, transunet, fcn, built of blocks and attention
losses.py         the table of losses, deep supervision; their arithmetic is in heads and boundary
optimization.py   optimisers, schedules, plateaus, averages of weights
training_step.py  the arithmetic of one step
memory.py         memory of a step, traced (live_bytes); calibration.py: what a trace cannot see
rate.py           how fast a CPU trains, measured
precision.py      dtype, layout, compiling: what is fast, and right
augment.py        augmentation of a batch on the device (deform, mixing)
ranks.py          several processes, one training
transfer.py       weights that fit another network
sliding_window.py tiles over a whole image
checkpoint.py     state to file and back, safely
"""
