"""What can be wrong with a dataset: every fault of every case, collected once (`problems`)."""
