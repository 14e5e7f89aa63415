"""The request for a plan, checked, and the list of decisions as a table."""

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

from autoseg.errors import StateError, UsageError
from autoseg.imaging.labels import LabelSet
from autoseg.messages import aligned
from autoseg.planning.budget import Budget, Preset
from autoseg.planning.cost import Memory
from autoseg.planning.fingerprint import Fingerprint
from autoseg.planning.pace import Pace
from autoseg.planning.plan import Decision, Plan

if TYPE_CHECKING:  # the table of networks is imported when a network is planned
    from autoseg.nn.networks.layout import Layout

Rules = Literal["autoseg", "nnunet"]
Orientation = Literal["canonical", "as_stored"]


@dataclass(frozen=True)
class Wishes:
    """What a person may ask of a plan. None, and what is left out, is decided by the rules.

    Overrides are in the axis order of the images; the plan permutes them.
    """

    rules: Rules = "autoseg"
    preset: Preset | None = None  # s for a CPU; m, l and xl for residual encoders on GPUs of 8, 24 and 40 GB
    network: str | None = None  # a key of `NETWORKS`; None: the preset's, or the plain U-Net
    device: Literal["cpu", "gpu"] = "cpu"
    vram_gb: float | None = None  # a GPU of this memory, whatever the device; None: 8 for a GPU, or the preset's
    patch_size: Sequence[int] | None = None  # voxels of the 3-D configurations (Z, Y, X), or of 2d (its two axes)
    spacing: Sequence[float] | None = None  # mm (Z, Y, X), of the target
    batch_size: int | None = None  # of all configurations
    orientation: Orientation = "canonical"


@dataclass(frozen=True)
class Request:
    """The inputs of a plan; `decisions`, and what would change them, are added while it is made.

    Overrides are None where the rules decide: `patch_size` voxels (2 or 3 entries), `spacing` mm (3 entries).
    """

    channels: tuple[str, ...]
    labels: LabelSet
    fingerprint: Fingerprint
    rules: Rules
    preset: Preset | None
    network: str
    budget: Budget
    memory: Memory
    pace: Pace | None = None  # of the CPU planned for; None: not known, or a GPU
    orientation: Orientation = "canonical"
    patch_size: tuple[int, ...] | None = None
    spacing: tuple[float, ...] | None = None
    batch_size: int | None = None
    decisions: list[Decision] = field(default_factory=list)
    changes: list[Decision] = field(default_factory=list)

    @property
    def ours(self) -> bool:
        """Whether autoseg's own rules apply, which nnU-Net does not have."""
        return self.rules == "autoseg"

    @property
    def layout(self) -> "Layout":
        """The planner's facts about the network."""
        from autoseg.nn.networks import layout_of

        return layout_of(self.network)

    @property
    def device(self) -> Literal["cpu", "gpu"]:
        """The device that is planned for."""
        return "cpu" if self.budget.gigabytes is None else "gpu"

    @property
    def by_memory(self) -> bool:
        """Whether bytes limit a plan; otherwise feature-map elements do."""
        return self.ours and self.device == "gpu"

    @property
    def table_entries(self) -> int:
        """Entries of the label table, as nnU-Net counts them: background, labels or regions, ignore."""
        return 1 + (len(self.labels.regions) or self.labels.num_labels) + (self.labels.ignore is not None)

    def decide(self, step: str, value: object, reason: str) -> None:
        """Record one decision."""
        self.decisions.append(Decision(step, text(value), reason))

    def change(self, what: str, value: object, reason: str) -> None:
        """Record what would change a decision. These come last in a plan, as section 6."""
        self.changes.append(Decision(f"6.{len(self.changes) + 1} {what}", text(value), reason))


def validate(asked: Request) -> None:
    """Refuse a request for which no plan can be made.

    Raises:
        UsageError: an override of the wrong length, or not positive, or a network that cannot predict such labels.
        StateError: the fingerprint is empty, or was made for other channels or labels.
    """
    found, patch, spacing = asked.fingerprint, asked.patch_size, asked.spacing
    if not found.cases:
        raise StateError("the fingerprint contains no case", remedy="plan the dataset again")
    if asked.channels != found.channels or tuple(asked.labels.values) != found.labels:
        raise StateError(
            f"the fingerprint is for channels {found.channels} and labels {found.labels}, not for "
            f"{asked.channels} and {tuple(asked.labels.values)}",
            remedy="plan the dataset again",
        )
    if patch is not None and (len(patch) not in (2, 3) or any(edge < 1 for edge in patch)):
        raise UsageError(f"the patch size {patch} is not 2 or 3 positive numbers", remedy="write 64,64,64 or 256,256")
    if spacing is not None and (len(spacing) != 3 or not all(0 < s < math.inf for s in spacing)):
        raise UsageError(f"the spacing {spacing} is not 3 positive numbers", remedy="write it in mm: 2,1,1")
    if asked.batch_size is not None and asked.batch_size < 1:
        raise UsageError(f"the batch size {asked.batch_size} is not positive", remedy="use 2 or more")
    if asked.labels.has_regions and asked.layout.predicts == "labels":
        raise UsageError(
            f"the network {asked.network} predicts one label per voxel, but the labels form overlapping regions",
            remedy="plan another network, such as --network unet, or a dataset without regions",
        )


def describe(plan: Plan, width: int = 150) -> str:
    """Format all decisions of a plan as an aligned table: numbered step, value, reason."""
    first = max((len(decision.step) for decision in plan.decisions), default=0)
    second = min(36, max((len(decision.value) for decision in plan.decisions), default=0))
    third = max(30, width - first - second - 4)
    rows: list[tuple[str, ...]] = []
    for decision in plan.decisions:
        values, reasons = textwrap.wrap(decision.value, max(1, second)), textwrap.wrap(decision.reason, third)
        height = max(1, len(values), len(reasons))
        columns = [[*column, *[""] * (height - len(column))] for column in ([decision.step], values, reasons)]
        rows += zip(*columns, strict=True)
    return "\n".join(aligned(rows, least=(first, second)))


def text(value: object) -> str:
    """Format a value for decisions: sequences with crosses, numbers to four digits."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return " × ".join(map(text, value))
    if isinstance(value, (float, np.floating)):
        return f"{value:.4g}"
    return str(value)
