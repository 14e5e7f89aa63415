"""What `planner.py` is built from: numbers, arithmetic and single rules.

decisions.py   what a plan is asked for, and the list of what was decided
space.py       spacing and axis order
budget.py      what a training step may cost, and the recipe that suits it
architectures.py  what the planner knows of networks
topology.py    patch and network: pooling, kernels, feature-map elements
configurations.py  patch, network and batch of each configuration
cost.py        memory, disk and time of a configuration, predicted
recipe.py      how folds are trained
pace.py        how fast a CPU trains, and for how long
sparsity.py    what the components of the labels say about a plan
laterality.py  what mirroring would undo
grids.py       images unlike those a plan was made for
overview.py    a plan in 25 lines
table.py       the configurations, as a table
"""
