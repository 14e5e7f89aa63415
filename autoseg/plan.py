"""What was decided: the plan, as records a person reads and edits in `plan.json`.

Spatial tuples are in array order. `Plan.axis_order` says how stored axes are permuted before anything else: the
coarsest (or the singleton) axis first. Spacings, patches and shapes below are in that permuted order; those of a 2-D
configuration have two entries, (Y, X).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from autoseg.errors import StateError
from autoseg.imaging.labels import LabelSet
from autoseg.records import override

VERSION = 4
LOSS_OPTIONS = ("focal_gamma", "topk_share", "tversky_alpha", "tversky_beta", "boundary_weight")
LENGTHS = ("epochs", "steps", "time_budget_seconds")  # of a training, of which one is given
RANGES: dict[str, tuple[Callable[[float], bool], str]] = {
    "epochs": (lambda value: value >= 1, "1 or more"),
    "steps": (lambda value: value >= 1, "1 or more"),
    "time_budget_seconds": (lambda value: value > 0, "more than 0"),
    "iterations_per_epoch": (lambda value: value >= 1, "1 or more"),
    "learning_rate": (lambda value: value > 0, "more than 0"),
    "weight_average": (lambda value: 0 <= value < 1, "0 to 1, less than 1"),
    "gradient_clip": (lambda value: value > 0, "more than 0"),
    "momentum": (lambda value: 0 <= value < 1, "0 to 1, less than 1"),
    "focal_gamma": (lambda value: value >= 0, "0 or more"),
    "topk_share": (lambda value: 0 < value <= 1, "more than 0, at most 1"),
    "tversky_alpha": (lambda value: value >= 0, "0 or more"),
    "tversky_beta": (lambda value: value > 0, "more than 0"),
    "boundary_weight": (lambda value: value >= 0, "0 or more"),
    "component_weight": (lambda value: 0 <= value <= 2, "0 to 2"),
    "dropout": (lambda value: 0 <= value < 1, "0 to 1, less than 1"),
    "patience": (lambda value: value >= 0, "0 or more"),
}


@dataclass(frozen=True)
class NetworkSpec:
    """One network, one entry per stage from full resolution to the bottleneck."""

    name: str  # a key of autoseg.nn.networks.NETWORKS
    features: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]
    kernel_sizes: tuple[tuple[int, ...], ...]
    blocks: tuple[int, ...]  # convolutions per encoder stage
    decoder_blocks: tuple[int, ...]  # convolutions per decoder stage, one fewer entry
    options: dict[str, Any] = field(default_factory=dict)  # what one architecture alone needs

    @property
    def num_pools(self) -> tuple[int, ...]:
        """How often each axis is halved."""
        return tuple(sum(stride[axis] > 1 for stride in self.strides) for axis in range(len(self.strides[0])))


@dataclass(frozen=True)
class ChannelNormalization:
    """How one channel's intensities become network input; the statistics are those of the dataset's foreground."""

    scheme: Literal["ct", "zscore", "rescale_to_0_1", "rgb_to_0_1", "none"]
    inside_mask: bool = False  # statistics and result inside the nonzero mask only; 0 outside
    mean: float = 0.0
    std: float = 1.0
    p00_5: float = 0.0
    p99_5: float = 0.0


@dataclass(frozen=True)
class Resampling:
    """How arrays change their spacing."""

    image_order: int = 3  # spline order in the resolved axes
    coarse_axis_order: int = 0  # along an axis resampled separately
    anisotropy_threshold: float = 3.0  # an axis this much coarser than the finest is resampled separately
    antialias_factor: float = 1.5  # axes that shrink by more are low-pass filtered first


@dataclass(frozen=True)
class Cost:
    """What a configuration is predicted to need, by the memory model and the device it was planned for."""

    parameters: int  # learnt values of the network
    train_bytes: int  # of the device's memory: the peak of one training step
    predict_bytes: int  # of the device's memory: segmenting an image of the median shape
    tile_batch: int  # tiles that are segmented at a time, as many as the device holds
    host_bytes: int  # of main memory: processes and batches in waiting; cases are held besides where there is room
    disk_bytes: int  # of the preprocessed copy
    flops: int  # floating-point operations of one training step
    seconds_per_step: float | None  # None: this device was never measured (autoseg calibrate)
    flops_per_second: float | None = None  # of a CPU, rounded: the rate that its step was sized by; None: not known


@dataclass(frozen=True)
class Configuration:
    """One way to see the data: spacing, patch and network that fit together."""

    data: str  # which preprocessed copy it reads; equal needs share one
    spacing: tuple[float, ...]  # mm
    median_shape: tuple[float, ...]  # voxels, after resampling
    patch_size: tuple[int, ...]
    batch_size: int
    batch_dice: bool  # Dice sums over the batch, instead of per sample
    network: NetworkSpec
    receptive_field: tuple[int, ...]  # voxels seen by one output voxel
    elements: int  # feature maps of one sample's forward pass, counted by nnU-Net's rule: its proxy of memory
    cascade_from: str | None = None  # the configuration whose segmentation is a further input
    checkpointing: bool = False  # feature maps are computed again in the backward pass, instead of kept
    cost: Cost | None = None  # None: not known (planned by an older version)

    @property
    def dims(self) -> int:
        return len(self.patch_size)


@dataclass(frozen=True)
class Training:
    """The recipe of one fold. `epochs`, `steps`, `time_budget_seconds`: one of them is the length of the schedule."""

    epochs: int | None = 1000
    steps: int | None = None
    time_budget_seconds: float | None = None  # wall time per fold, validation included
    iterations_per_epoch: int = 250
    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = 0.01
    momentum: float | None = None  # of SGD, or beta 1 of AdamW; None: 0.99 or 0.9
    weight_decay: float = 3e-5
    schedule: Literal["poly", "cosine", "one_cycle", "reduce_on_plateau"] = "poly"
    patience: int = 15  # epochs without better validation loss or Dice after which the training cools down; 0: never
    weight_average: float = 0.0  # decay of the exponential moving average of the weights; 0 is off
    gradient_clip: float = 12.0
    loss: Literal["dice_ce", "dice_bce", "dice_focal", "dice_topk", "tversky"] = "dice_ce"
    class_weights: tuple[float, ...] | None = None  # of the cross-entropy, one per head; None weighs all alike
    focal_gamma: float = 2.0  # of dice_focal: how much less voxels weigh that are right already
    topk_share: float = 0.1  # of dice_topk: the hardest voxels of a batch, which alone count
    tversky_alpha: float = 0.3  # of tversky: weight of false positives
    tversky_beta: float = 0.7  # and of false negatives
    boundary_weight: float = 0.0  # of a boundary term beside any loss
    component_weight: float = (
        0.0  # of small connected components in the cross-entropy: (mean size / size) to this power
    )
    dropout: float = 0.0  # share of a stage's feature maps that are left out at random
    deep_supervision: bool = True
    foreground_fraction: float = 0.33  # share of a batch's patches centred on foreground
    case_sampling: Literal["uniform", "presence"] = "uniform"  # presence: cases of rare labels are drawn more often
    class_sampling: Literal["uniform", "inverse_frequency"] = "uniform"  # which label a foreground patch is centred on
    augmentation: str = "default"  # a key of autoseg.augmentation.AUGMENTATIONS
    chain: Literal["auto", "host", "worker", "device"] = "auto"  # what augments, and where; auto: measured at start-up
    mirror_axes: tuple[int, ...] = (0, 1, 2)  # spatial axes of the patch, in permuted order
    test_time_mirroring: bool = True
    autocast: Literal["auto", "bfloat16", "float16", "float32"] = "auto"  # auto: measured at start-up
    workers: int | None = None  # None: chosen from the cores at hand
    seed: int = 1234

    def __post_init__(self) -> None:
        for name, (fits, expected) in RANGES.items():
            value = getattr(self, name)
            if value is not None and not fits(value):
                raise StateError(f"{name} is {value}, expected {expected}", remedy=f"--set training.{name}=...")
        given = [f"{name} is {getattr(self, name)}" for name in LENGTHS if getattr(self, name) is not None]
        if len(given) != 1:
            raise StateError(
                f"a training has one length: {' and '.join(given) or 'neither ' + ' nor '.join(LENGTHS) + ' is given'}",
                remedy="give one of them a value, and null to the others",
            )

    @property
    def total_steps(self) -> int | None:
        """Length in steps; None under a time budget."""
        if self.time_budget_seconds is not None:
            return None
        return self.steps if self.epochs is None else self.epochs * self.iterations_per_epoch

    @property
    def loss_options(self) -> dict[str, float]:
        """What the losses can be told; each takes what it knows."""
        return {name: getattr(self, name) for name in LOSS_OPTIONS}


@dataclass(frozen=True)
class Decision:
    """One automatic decision: the numbered rule, the value it chose and why."""

    step: str  # "3.2 patch size (3d_fullres)"
    value: str
    reason: str


@dataclass(frozen=True)
class Plan:
    """Everything needed to preprocess, train and predict in the same way again."""

    version: int
    dataset: str
    channels: tuple[str, ...]
    labels: LabelSet
    orientation: Literal["canonical", "as_stored"]
    axis_order: tuple[int, int, int]
    normalization: tuple[ChannelNormalization, ...]  # one per channel
    resampling: Resampling
    configurations: dict[str, Configuration]
    recommended: str  # the configuration used when none is named
    training: Training
    rules: Literal["autoseg", "nnunet"]
    preset: Literal["s", "m", "l", "xl"] | None
    device: Literal["cpu", "gpu"]  # what the plan was made for
    vram_gb: float | None
    fingerprint: str  # content hash of the fingerprint it was made from
    decisions: tuple[Decision, ...]

    @property
    def heads(self) -> LabelSet:
        """The labels as the network predicts them: with sigmoid heads when the loss is Dice + BCE."""
        return self.labels.as_regions() if self.training.loss == "dice_bce" else self.labels

    def input_channels(self, configuration: Configuration) -> int:
        """Channels the network of a configuration sees: those of the images, and one per label of a previous stage."""
        return len(self.channels) + (self.labels.num_labels if configuration.cascade_from else 0)

    def configuration(self, name: str | None) -> tuple[str, Configuration]:
        """The named configuration, or the recommended one. Raises StateError naming those that exist."""
        name = name or self.recommended
        if name not in self.configurations:
            raise StateError(
                f"the plan has no configuration {name!r}", remedy=f"it has: {', '.join(self.configurations)}"
            )
        return name, self.configurations[name]

    def with_settings(self, settings: Sequence[str]) -> "Plan":
        """The plan with `a.b=value` settings (see `records.override`). A length takes the place of any other."""
        lengths = [f"training.{name}" for name in LENGTHS]
        given = [setting for setting in settings if setting.partition("=")[0] in lengths]
        others = [f"{name}=null" for name in lengths] if given else []
        return override(self, [*others, *settings])

    @classmethod
    def upgrade(cls, plain: dict[str, Any]) -> dict[str, Any]:
        """Plain data of an older version, as this version writes them."""
        for version, upgrade in enumerate((_upgrade_from_1, _upgrade_from_2, _upgrade_from_3), start=1):
            if plain.get("version") == version:
                plain = upgrade(plain)
        return plain


def _upgrade_from_1(plain: dict[str, Any]) -> dict[str, Any]:
    """Version 2 names the proxy of memory, and adds the cascade, checkpointing, costs, rules, presets and losses."""
    added = {"cascade_from": None, "checkpointing": False, "cost": None}
    configurations = {}
    for name, configuration in plain["configurations"].items():
        kept = {key: value for key, value in configuration.items() if key != "memory_estimate"}
        configurations[name] = kept | {"elements": configuration["memory_estimate"]} | added
    preset = "s" if plain["device"] == "cpu" else None
    training = Training()
    training_options = training.loss_options | {"momentum": training.momentum} | plain["training"]
    return plain | {
        "version": 2, "configurations": configurations, "rules": "autoseg", "preset": preset,
        "training": training_options,
    }  # fmt: skip


def _upgrade_from_2(plain: dict[str, Any]) -> dict[str, Any]:
    """Version 3 adds a length in steps, the end at a plateau, dropout, weights of components, the device chain.

    Trainings go on as they were begun: without an end at a plateau, on the host chain.
    """
    added = {"steps": None, "patience": 0, "component_weight": 0.0, "dropout": 0.0, "chain": "host"}
    return plain | {"version": 3, "training": added | plain["training"]}


def _upgrade_from_3(plain: dict[str, Any]) -> dict[str, Any]:
    """Version 4 has one length of a training; before, a time budget ruled over steps, and steps over epochs."""
    training = dict(plain["training"])
    ruling = next((name for name in reversed(LENGTHS) if training[name] is not None), None)
    training |= {name: None for name in LENGTHS if name != ruling}
    return plain | {"version": 4, "training": training}
