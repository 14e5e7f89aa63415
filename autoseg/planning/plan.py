"""The plan, as records that people read and edit in `plan.json`.

Spatial tuples are in array order. `Plan.axis_order` permutes the stored axes before anything else: the
coarsest (or the singleton) axis first. Spacings, patches and shapes below are in that permuted order; those of a 2-D
configuration have two entries, (Y, X).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from autoseg.augmentation.presets import AUGMENTATIONS
from autoseg.dataloading.sampling import SAMPLERS
from autoseg.datasets.inputs import FileNames
from autoseg.errors import StateError
from autoseg.imaging.labels import LabelSet
from autoseg.imaging.low_pass import FILTERS
from autoseg.imaging.normalize import NORMALIZERS, ForegroundStatistics, Intensity
from autoseg.imaging.prompts import prompt_channels
from autoseg.messages import ANY_DATASET, suggest
from autoseg.planning.agreement import check_plan
from autoseg.planning.plan_fields import (
    Axis,
    Blocks,
    ConfigurationName,
    Count,
    Decay,
    Edge,
    Features,
    Kernel,
    Millimetres,
    Options,
    Order,
    Ratio,
    Samples,
    Seconds,
    Share,
    Steps,
    Stride,
    Text,
    Voxels,
    Weight,
)
from autoseg.planning.tables import (
    LOSSES,
    NETWORKS,
    OPTIMIZERS,
    SCHEDULES,
    check_loss_options,
    check_network_options,
    loss_traits,
)
from autoseg.records import override
from autoseg.rules import (
    MAX_COUNT,
    MAX_EPOCHS,
    MAX_GIGABYTES,
    MAX_WORKERS,
    FieldError,
    above,
    at_least,
    between,
    check_fields,
    check_same_length,
    entries,
    exactly,
    in_entries,
    one_of,
    shown,
)

VERSION = 1
LENGTHS = ("epochs", "steps", "time_budget_seconds")  # of a training, exactly one of which is given


@dataclass(frozen=True)
class NetworkSpec:
    """One network, one entry per stage from full resolution to the bottleneck."""

    name: Annotated[str, one_of(NETWORKS)]
    features: Annotated[tuple[Features, ...], entries(2, 16)]
    strides: tuple[Annotated[tuple[Stride, ...], entries(2, 3)], ...]
    kernel_sizes: tuple[Annotated[tuple[Kernel, ...], entries(2, 3)], ...]
    blocks: tuple[Blocks, ...]  # convolutions per encoder stage
    decoder_blocks: tuple[Blocks, ...]  # convolutions per decoder stage, one fewer entry
    options: Options = field(default_factory=dict)  # keywords of the network's class

    def __post_init__(self) -> None:
        check_fields(self)
        stages = len(self.features)
        check_same_length(self, ("strides", "kernel_sizes", "blocks"), stages, "one per entry of features")
        check_same_length(self, ("decoder_blocks",), stages - 1, "one fewer than features")
        for name in ("strides", "kernel_sizes"):
            for i, along in enumerate(getattr(self, name)):
                if len(along) != len(self.strides[0]):
                    raise FieldError(
                        f"{name}[{i}]: expected {in_entries(len(self.strides[0]))}, as strides[0], found {along}"
                    )
        check_network_options(self.name, self.options, "options")

    @property
    def dims(self) -> int:
        return len(self.strides[0])

    @property
    def num_pools(self) -> tuple[int, ...]:
        """How many times each axis is halved."""
        return tuple(sum(stride[axis] > 1 for stride in self.strides) for axis in range(len(self.strides[0])))


@dataclass(frozen=True)
class Scheme:
    """The normalisation of one channel by its name; a record of its own so that it comes first in `plan.json`."""

    scheme: Annotated[str, one_of(NORMALIZERS)]
    inside_mask: bool = False  # statistics and result inside the nonzero mask only; 0 outside


@dataclass(frozen=True)
class ChannelNormalization(ForegroundStatistics, Scheme):
    """How one channel's intensities become network input; the statistics are those of the dataset's foreground."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.p00_5 > self.p99_5:
            raise FieldError(f"p00_5: expected at most p99_5, which is {self.p99_5:g}, found {self.p00_5:g}")
        if self.scheme == "ct" and self.std == 0 and self.p00_5 < self.p99_5:
            raise FieldError("std: expected more than 0, because ct divides by it, found 0.0")


@dataclass(frozen=True)
class Resampling:
    """How arrays change their spacing."""

    image_order: Order = 3  # spline order in the resolved axes
    coarse_axis_order: Order = 0  # along an axis resampled separately
    anisotropy_threshold: Ratio = 3.0  # axes this much coarser are resampled separately
    antialias_factor: Ratio = 1.5  # axes that shrink by more are low-pass filtered first
    filter: Annotated[str, one_of(FILTERS)] = "gaussian"  # of these axes

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class Cost:
    """Predicted cost of a configuration, by the memory model and the device it was planned for."""

    parameters: Count  # trainable values of the network
    train_bytes: Count  # of the device's memory: the peak of one training step
    predict_bytes: Count  # of the device's memory: segmenting an image of the median shape
    tile_batch: Samples  # tiles per forward pass, as many as fit the device
    host_bytes: Count  # of main memory: processes and queued batches; cases are cached in addition where there is room
    disk_bytes: Count  # of the preprocessed copy
    flops: Count  # floating-point operations of one training step
    seconds_per_step: Seconds | None  # None: this device was never measured
    flops_per_second: Annotated[float, above(0, MAX_COUNT)] | None = None  # of a CPU, rounded: it sized the step

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class PromptInput:
    """The further input of a network that is corrected by prompts (`imaging.prompts`)."""

    continues: ConfigurationName  # whose trained folds it begins with; alike but for this input
    radius_mm: Millimetres  # of the balls that stand for clicks

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class Configuration:
    """Spacing, patch and network that belong together."""

    data: ConfigurationName  # the configuration whose preprocessed copy it reads; equal needs share one
    spacing: tuple[Millimetres, ...]
    median_shape: tuple[Annotated[float, at_least(0.5, 2**31)], ...]  # voxels, after resampling
    patch_size: Annotated[tuple[Edge, ...], entries(2, 3)]
    batch_size: Samples
    batch_dice: bool  # Dice sums over the batch, instead of per sample
    network: NetworkSpec
    receptive_field: tuple[Voxels, ...]  # voxels seen by one output voxel
    elements: Count  # feature maps of one sample's forward pass, in_entries by nnU-Net's rule: its proxy of memory
    cascade_from: ConfigurationName | None = None  # the configuration whose segmentation is a further input
    checkpointing: bool = False  # feature maps are recomputed in the backward pass instead of kept
    cost: Cost | None = None  # None: not known
    prompts: PromptInput | None = None  # None: the network sees no prompts

    def __post_init__(self) -> None:
        check_fields(self)

    def check_agreement(self) -> None:
        """Raise FieldError where fields contradict each other."""
        if self.network.dims != self.dims:
            raise FieldError(
                f"patch_size: expected {in_entries(self.network.dims)}, as network.strides, "
                f"found {shown(self.patch_size)}"
            )
        names = ("spacing", "median_shape", "receptive_field")
        check_same_length(self, names, self.dims, f"one per axis of patch_size {list(self.patch_size)}")

    @property
    def dims(self) -> int:
        return len(self.patch_size)


@dataclass(frozen=True)
class Training:
    """The recipe of one fold. `epochs`, `steps`, `time_budget_seconds`: one of them is the length of the schedule."""

    epochs: Annotated[int, at_least(1, MAX_EPOCHS)] | None = 1000
    steps: Steps | None = None
    time_budget_seconds: Seconds | None = None  # wall time per fold, validation included
    iterations_per_epoch: Steps = 250
    optimizer: Annotated[str, one_of(OPTIMIZERS)] = "sgd"
    learning_rate: Annotated[float, above(0, 100)] = 0.01
    momentum: Decay | None = None  # of SGD, or beta 1 of AdamW; None: 0.99 or 0.9
    weight_decay: Annotated[float, between(0, 10)] = 3e-5
    schedule: Annotated[str, one_of(SCHEDULES)] = "poly"
    patience: Annotated[int, at_least(0, MAX_EPOCHS)] = 15  # epochs without better validation before the end; 0: never
    weight_average: Decay = 0.0  # decay of the exponential moving average of the weights; 0 is off
    gradient_clip: Annotated[float, above(0, 1e9)] = 12.0
    loss: Annotated[str, one_of(LOSSES)] = "dice_ce"
    loss_options: Options = field(default_factory=dict)  # keywords of the loss's function
    class_weights: tuple[Weight, ...] | None = None  # of the cross-entropy, one per head; None weighs all equally
    # of small connected components in the cross-entropy: (mean size / size) to this power
    component_weight: Annotated[float, between(0, 2)] = 0.0
    dropout: Decay = 0.0  # share of a stage's feature maps that are dropped at random
    deep_supervision: bool = True
    foreground_fraction: Share = 0.33  # share of a batch's patches centred on foreground
    # how often each case is drawn; presence: cases of rare labels more often
    case_sampling: Annotated[str, one_of(SAMPLERS["case"])] = "uniform"
    # which label a foreground patch is centred on
    class_sampling: Annotated[str, one_of(SAMPLERS["class"])] = "uniform"
    augmentation: Annotated[str, one_of(AUGMENTATIONS)] = "default"
    chain: Literal["auto", "host", "worker", "device"] = "auto"  # what augments, and where; auto: measured at start-up
    # spatial axes of the patch, in permuted order
    mirror_axes: Annotated[tuple[Axis, ...], entries(0, 3, distinct=True)] = (0, 1, 2)
    test_time_mirroring: bool = True
    autocast: Literal["auto", "bfloat16", "float16", "float32"] = "auto"  # auto: measured at start-up
    autotune: bool = True  # time dtype, layout, compiling and chain at start-up; off: the same choices on every machine
    workers: Annotated[int, at_least(0, MAX_WORKERS)] | None = None  # None: chosen from the cores at hand
    seed: Annotated[int, between(0, 2**32 - 1)] = 1234

    def __post_init__(self) -> None:
        check_fields(self)
        check_loss_options(self.loss, self.loss_options, "loss_options")
        if self.class_weights is not None and not any(self.class_weights):
            raise FieldError(f"class_weights: expected one weight above 0 or more, found {list(self.class_weights)}")
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

    def heads(self, labels: LabelSet) -> LabelSet:
        """Labels as the network predicts them: with sigmoid heads where the loss predicts regions."""
        return labels.as_regions() if loss_traits(self.loss).predicts == "regions" else labels


@dataclass(frozen=True)
class Decision:
    """One automatic decision: the numbered rule, the value it chose and why."""

    step: Text  # "3.2 patch size (3d_fullres)"
    value: Text
    reason: Text


@dataclass(frozen=True)
class IntensityRange:
    """Range of one channel over the images a plan was made for: of percentiles of whole images."""

    p00_5: tuple[Intensity, Intensity]  # smallest and largest over the images
    median: tuple[Intensity, Intensity]
    p99_5: tuple[Intensity, Intensity]
    widest: Annotated[float, at_least(0, 1e39)]  # from p00_5 to p99_5, of the image where it is largest


@dataclass(frozen=True)
class TrainingGrids:
    """Range of the cases a plan was made for, in their canonical order of axes (Z, Y, X), before `axis_order`."""

    spacing_min: tuple[Millimetres, Millimetres, Millimetres]
    spacing_max: tuple[Millimetres, Millimetres, Millimetres]
    shape_min: tuple[Voxels, Voxels, Voxels]  # voxels
    shape_max: tuple[Voxels, Voxels, Voxels]
    intensities: tuple[IntensityRange, ...] = ()  # one per channel; empty: not known

    def __post_init__(self) -> None:
        for name, low, high in (
            ("spacing", self.spacing_min, self.spacing_max), ("shape", self.shape_min, self.shape_max)
        ):  # fmt: skip
            if not all(0 < a <= b for a, b in zip(low, high, strict=True)):
                raise StateError(
                    f"{name}_min is {low}, {name}_max is {high}: expected numbers above 0, none above its maximum",
                    remedy=f"plan the dataset again: {suggest('plan', ANY_DATASET)}",
                )


@dataclass(frozen=True)
class Plan:
    """Everything needed to repeat preprocessing, training and prediction."""

    version: Annotated[int, exactly(VERSION, f"{VERSION}, the version of plans that this autoseg reads and writes")]
    dataset: Text
    channels: Annotated[tuple[Text, ...], entries(1)]
    labels: LabelSet
    orientation: Literal["canonical", "as_stored"]
    axis_order: Annotated[tuple[Axis, Axis, Axis], entries(3, 3, distinct=True)]
    normalization: tuple[ChannelNormalization, ...]  # one per channel
    resampling: Resampling
    configurations: Annotated[dict[ConfigurationName, Configuration], entries(1)]
    recommended: ConfigurationName  # the configuration used by default
    training: Training
    rules: Literal["autoseg", "nnunet"]
    preset: Literal["s", "m", "l", "xl"] | None
    device: Literal["cpu", "gpu"]  # what the plan was made for
    vram_gb: Annotated[float, above(0, MAX_GIGABYTES)] | None
    fingerprint: Text  # content hash of the fingerprint it was made from
    decisions: tuple[Decision, ...]
    file_names: FileNames | None = None  # how the images of a case are named, also those to segment
    grids: TrainingGrids | None = None  # None: not known

    REMEDY_FOR_OTHER_VERSIONS: ClassVar[str] = f"plan again: {suggest('plan', ANY_DATASET)}"

    def __post_init__(self) -> None:
        check_fields(self)

    def check_agreement(self) -> None:
        """Raise FieldError where fields contradict each other."""
        check_plan(self)

    @property
    def heads(self) -> LabelSet:
        """The labels as the network predicts them: with sigmoid heads where the loss predicts regions."""
        return self.training.heads(self.labels)

    def input_channels(self, configuration: Configuration) -> int:
        """Channels of a configuration's network: those of the images, and of a previous stage or of prompts."""
        labels = self.labels.num_labels
        return self.image_channels(configuration) + (prompt_channels(labels) if configuration.prompts else 0)

    def image_channels(self, configuration: Configuration) -> int:
        """Channels that a network is given to segment automatically: those of images, one per label of a previous
        stage."""
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
        """The plan with `a.b=value` settings (see `records.override`). A length replaces any other."""
        lengths = [f"training.{name}" for name in LENGTHS]
        given = [setting for setting in settings if setting.partition("=")[0] in lengths]
        others = [f"{name}=null" for name in lengths] if given else []
        return override(self, [*others, *settings])
