"""One page about a workspace: data, plan, training, how good it is, its best and worst cases, its provenance."""
