"""Limits on the cost of a training step, with its recipe: all numbers that determine the size of a plan.

An element is one number of a feature map: the convolution outputs of one forward pass, summed over the network
(`topology.feature_map_elements`) and over the batch. It is a proxy for time on a CPU, and for memory in nnU-Net v2's
rules. autoseg's own rules for a GPU count bytes instead (`planning/cost.py`), and use all limits here but the elements.
"""

from dataclasses import dataclass, replace
from typing import Literal

from autoseg.planning.plan import Training

Preset = Literal["s", "m", "l", "xl"]

HEADROOM = 0.95  # of the device's memory: the share a plan is predicted to use at most


@dataclass(frozen=True)
class Budget:
    """Limits of a plan. Dicts are keyed by the dimensions of a configuration, 2 or 3."""

    network: str  # unless another is requested
    base_features: int
    max_features: dict[int, int]
    elements: dict[int, float]  # of one training step: the batch grows up to this
    patch_elements: dict[int, float]  # of one sample: the patch is shrunk down to this
    max_batch: dict[int, int | None]
    coverage: float  # a batch holds at most this share of the dataset's voxels
    training: Training
    gigabytes: float | None = None  # of GPU memory that the elements stand for; None: the budget is time on a CPU
    compact_patch: bool = False  # shrink the axis that is longest in mm, rather than the one that covers most
    trim_patch: bool = False  # round patches down to what their axes are divided by, rather than pad them up
    mirror_fixed_order: bool = True  # mirror even along axes on which the labels always keep their order
    min_batch: int = 2
    min_edge: int = 4  # voxels at the bottleneck

    def scaled(self, gigabytes: float) -> "Budget":
        """The same budget for a GPU with this much memory."""
        assert self.gigabytes is not None
        factor = gigabytes / self.gigabytes
        return replace(
            self,
            gigabytes=gigabytes,
            elements={dims: count * factor for dims, count in self.elements.items()},
            patch_elements={dims: count * factor for dims, count in self.patch_elements.items()},
        )


# nnU-Net v2's plain planner: a sample of 560e6 elements, of which two make a step; 85e6 and a batch of 12 for slices,
# whose patch shrinks only if not even two fit.
GPU = Budget(
    network="unet",
    base_features=32,
    max_features={3: 320, 2: 512},
    elements={3: 560e6 * 2, 2: 85e6 * 12},
    patch_elements={3: 560e6, 2: 85e6 * 12 / 2},
    max_batch={3: None, 2: None},
    coverage=0.05,
    gigabytes=8.0,
    training=Training(
        epochs=1000,
        patience=50,  # slow curves stagnate for a while: after 15 epochs they still have up to 0.03 Dice to gain
        iterations_per_epoch=250,
        optimizer="sgd",
        learning_rate=0.01,
        weight_decay=3e-5,
        schedule="poly",
        augmentation="default",
    ),
)


def _residual_encoder(gigabytes: float, elements3: float, elements2: float) -> Budget:
    """nnU-Net v2's residual-encoder presets: other reference elements, and batches that may hold the whole dataset."""
    return replace(
        GPU,
        network="residual_unet",
        elements={3: elements3 * 2, 2: elements2 * 12},
        patch_elements={3: elements3, 2: elements2},
        coverage=1.0,
        gigabytes=gigabytes,
    )


# An element costs 9 multiply-adds per channel in 2-D and 27 in 3-D: three times as many elements take the same time.
CPU = Budget(
    network="unet",
    base_features=16,
    max_features={3: 128, 2: 128},
    elements={3: 20e6, 2: 40e6},
    patch_elements={3: 20e6 / 2, 2: 40e6 / 2},
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


PRESETS: dict[str, Budget] = {
    "s": CPU,
    "m": _residual_encoder(8.0, 680e6, 135e6),
    "l": _residual_encoder(24.0, 2.1e9, 380e6),
    "xl": _residual_encoder(40.0, 3.6e9, 560e6),
}


def limited_batch(
    budget: Budget, dims: int, affordable: int, patch_voxels: int, dataset_voxels: float
) -> tuple[int, str]:
    """How many of the affordable samples a step uses, and which limits reduce that (nnU-Net v2's rule).

    Voxels count one channel.
    """
    batch, reason = affordable, ""
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
