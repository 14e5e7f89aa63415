"""What `planner.py` is built from: numbers, arithmetic and single rules.

decisions.py   what a plan is asked for, and the list of what was decided
space.py       spacing and axis order
budget.py      what a training step may cost, and the recipe that suits it
topology.py    patch and network: pooling, kernels, feature-map elements
sparsity.py    what the components of the labels say about a plan
laterality.py  what mirroring would undo
"""
