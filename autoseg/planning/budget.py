"""What a training step may cost, and the recipe that suits it: every number a plan's size depends on, in one place.

An element is one number of a feature map: the convolution outputs of one forward pass, summed over the network
(`topology.feature_map_elements`) and over the batch. It stands for memory on a GPU and for time on a CPU.
"""

from dataclasses import dataclass, replace

from autoseg.plan import Training

GIGABYTES = 8.0  # of GPU memory, that the elements of `GPU` stand for


@dataclass(frozen=True)
class Budget:
    """Limits of a plan. Dicts are keyed by the dimensions of a configuration, 2 or 3."""

    base_features: int
    max_features: dict[int, int]
    elements: dict[int, float]  # of one training step
    max_batch: dict[int, int | None]
    coverage: float  # a batch holds at most this share of the dataset's voxels
    training: Training
    compact_patch: bool = False  # shrink the axis that is longest in mm, rather than the one that covers most
    trim_patch: bool = False  # round patches down to what their axes are divided by, rather than pad them up
    mirror_fixed_order: bool = True  # mirror even along axes on which the labels always keep their order
    min_batch: int = 2
    min_edge: int = 4  # voxels at the bottleneck

    def scaled(self, factor: float) -> "Budget":
        """The budget for so many times the elements."""
        return replace(self, elements={dims: count * factor for dims, count in self.elements.items()})


# nnU-Net v2's plain planner at GIGABYTES: 560e6 elements per sample at a batch of 2, 85e6 at a batch of 12.
GPU = Budget(
    base_features=32,
    max_features={3: 320, 2: 512},
    elements={3: 560e6 * 2, 2: 85e6 * 12},
    max_batch={3: None, 2: None},
    coverage=0.05,
    training=Training(
        epochs=1000,
        iterations_per_epoch=250,
        optimizer="sgd",
        learning_rate=0.01,
        weight_decay=3e-5,
        schedule="poly",
        augmentation="default",
    ),
)

# An element costs 9 multiply-adds per channel in 2-D and 27 in 3-D: three times as many elements take the same time.
CPU = Budget(
    base_features=16,
    max_features={3: 128, 2: 128},
    elements={3: 20e6, 2: 40e6},
    max_batch={3: 2, 2: 8},
    coverage=1.0,
    compact_patch=True,
    trim_patch=True,
    mirror_fixed_order=False,
    training=Training(
        epochs=60,
        iterations_per_epoch=50,
        optimizer="adamw",
        learning_rate=2e-3,
        weight_decay=1e-2,
        schedule="one_cycle",
        weight_average=0.99,
        augmentation="default",
    ),
)


def affordable_batch(
    budget: Budget, dims: int, elements: int, patch_voxels: int, dataset_voxels: float
) -> tuple[int, str]:
    """How many samples a step takes, and why: those the budget pays for, within its limits (nnU-Net v2's rule).

    `elements` are those of one sample; voxels count one channel.
    """
    affordable = round(budget.elements[dims] / elements)
    reason = f"{budget.elements[dims]:.3g} elements a step pay for {affordable}"
    batch = affordable
    covering = round(dataset_voxels * budget.coverage / patch_voxels)
    if covering < batch:
        batch = covering
        reason += f", {budget.coverage:.0%} of the dataset's voxels fill {covering}"
    most = budget.max_batch[dims]
    if most is not None and most < batch:
        batch = most
        reason += f", at most {most}"
    if batch < budget.min_batch:
        batch = budget.min_batch
        reason += f", at least {budget.min_batch}"
    return batch, reason
