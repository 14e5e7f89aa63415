"""Datasets from Python: checked, corrected, planned."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from autoseg.api.keywords import (
    File,
    Labels,
    Names,
    Regions,
    Say,
    Settings,
    as_path,
    checked,
    in_workspace,
    intake_of,
    options_of,
)

if TYPE_CHECKING:  # imported when they are made
    from autoseg.commands.check import DatasetReport
    from autoseg.commands.fix import FixReport
    from autoseg.evaluation.floor import Floor
    from autoseg.planning.plan import Plan


@checked
def check_dataset(
    dataset: File,
    *,
    channels: Names | None = None,
    labels: Labels | None = None,
    regions: Regions | None = None,
    ignore: int | None = None,
    patient_regex: str | None = None,
    instances: Names | None = None,
    divisor: int | None = None,
    workers: int | None = None,
    say: Say | None = print,
) -> "DatasetReport":
    """Say what is understood of a dataset and everything that is wrong with it.

    Args:
        dataset: folder of images and labels, or a CSV/TSV that lists them.
        channels: what the channels are: ["T1", "FLAIR"] or "T1,FLAIR".
        labels: names and values: {"liver": 1, "tumour": 2} or "liver=1,tumour=2".
        regions: unions of labels that are predicted as one: {"whole": [1, 2]} or "whole=1+2".
        ignore: label value of voxels that nobody annotated.
        patient_regex: its first group, found in the case id, names the patient.
        instances: kinds of objects that are separated: ["nuclei"]; each object has its own number in label files.
        divisor: with labels and instances: objects are stored as value x divisor + number; None: 1000.
        workers: processes; 0: none but this one; None: as cores and memory allow.
        say: what shows a line; None: nothing is shown.

    Returns:
        `dataset` (cases, channels, labels), `problems`, and `usable`: whether it can be planned as it is.

    Raises:
        AutosegError: there is no such dataset, no layout fits, or an option does not fit it.

    Example:
        >>> report = autoseg.check_dataset("data")
        >>> [problem.what for problem in report.errors]
    """
    from autoseg.commands.check import check_dataset

    intake = intake_of(channels, labels, regions, ignore, patient_regex, instances, divisor)
    return check_dataset(as_path(dataset), intake, workers=workers)


@checked
def fix_dataset(
    dataset: File,
    out: File,
    *,
    mapping: Mapping[int, int] | None = None,
    non_finite_to: float | None = None,
    channels: Names | None = None,
    labels: Labels | None = None,
    regions: Regions | None = None,
    ignore: int | None = None,
    patient_regex: str | None = None,
    instances: Names | None = None,
    divisor: int | None = None,
    workers: int | None = None,
    say: Say | None = print,
) -> "FixReport":
    """Write a corrected copy of a dataset and list every change; the dataset itself is never written.

    Args:
        dataset, channels, labels, regions, ignore, patient_regex, instances, divisor, workers, say:
            as for `check_dataset`.
        out: a new folder for the copy.
        mapping: value in label files -> the value to write instead: {255: 1}.
        non_finite_to: the value for NaN and infinity in images; None: such cases are left out.

    Returns:
        `folder`, `changes`, `problems` of the copy, and `complete`: whether it is sound and holds every case.

    Raises:
        AutosegError: no layout fits, no sound case remains, `out` is not empty, or there is no room.

    Example:
        >>> fixed = autoseg.fix_dataset("data", "data_fixed")
        >>> [change.what_was for change in fixed.changes]
    """
    from autoseg.commands.fix import fix_dataset

    intake = intake_of(channels, labels, regions, ignore, patient_regex, instances, divisor)
    return fix_dataset(
        as_path(dataset), as_path(out), intake, mapping=mapping, non_finite_to=non_finite_to, workers=workers,
    )  # fmt: skip


@checked
def plan_dataset(
    dataset: File,
    workspace: File,
    *,
    preset: Literal["s", "m", "l", "xl"] | None = None,
    network: str | None = None,
    vram_gb: float | None = None,
    time_budget_seconds: float | None = None,
    rules: Literal["autoseg", "nnunet"] = "autoseg",
    configurations: Names = (),
    settings: Settings = (),
    cpu_rate: Literal["measured", "reference"] | float = "measured",
    explain: bool = False,
    skip_bad: bool = False,
    preprocess: bool = True,
    group: str | None = None,
    seed: int = 1234,
    channels: Names | None = None,
    labels: Labels | None = None,
    regions: Regions | None = None,
    ignore: int | None = None,
    patient_regex: str | None = None,
    instances: Names | None = None,
    divisor: int | None = None,
    workers: int | None = None,
    say: Say | None = print,
) -> "Plan":
    """Measure a dataset, decide everything, and preprocess it into a workspace.

    Args:
        dataset, channels, labels, regions, ignore, patient_regex, instances, divisor, workers, say:
            as for `check_dataset`.
        workspace: folder where everything is kept from now on.
        preset: "s": CPU; "m", "l", "xl": residual encoders for 8, 24, 40 GB; None: plain U-Net for this machine.
        network: architecture, such as "attention_unet"; None: the preset's.
        vram_gb: plan for a GPU of this memory; None: for this machine.
        time_budget_seconds: wall time of a fold; None: the recipe's epochs, sized for an hour.
        rules: "nnunet": its rules alone.
        configurations: to preprocess: ["2d", "3d_fullres"]; none named: the recommended one.
        settings: changes of the finished plan: {"training.learning_rate": 0.001}.
        cpu_rate: of the CPU planned for: "measured" here, "reference" (the same plan everywhere), or times that.
        explain: show every decision with its reason.
        skip_bad: leave faulty cases out instead of refusing the dataset.
        preprocess: False: decide only.
        group: a column of the table of patients, such as "site": each fold leaves one of its values out.
        seed: of the folds' partition.

    Returns:
        The plan: `recommended`, `configurations`, `training`, `decisions`, as in the workspace's plan.json.

    Raises:
        AutosegError: the dataset has faults (they are shown), or an option does not fit it.

    Example:
        >>> plan = autoseg.plan_dataset("data", workspace="ws", vram_gb=8, preset="m")
        >>> plan.configurations[plan.recommended].patch_size
    """
    from autoseg.commands.plan import PlanOptions, plan_dataset

    given = locals() | {"intake": intake_of(channels, labels, regions, ignore, patient_regex, instances, divisor)}
    return plan_dataset(as_path(dataset), in_workspace(workspace), options_of(PlanOptions, given))


@checked
def measure_floor(
    dataset: File | None = None,
    workspace: File = "autoseg_workspace",
    *,
    tune: int = 40,
    skip_bad: bool = False,
    channels: Names | None = None,
    labels: Labels | None = None,
    regions: Regions | None = None,
    ignore: int | None = None,
    patient_regex: str | None = None,
    instances: Names | None = None,
    divisor: int | None = None,
    workers: int | None = None,
    say: Say | None = print,
) -> "Floor":
    """Score thresholds, superpixels and a watershed on held-out cases: what a dataset reaches without a network.

    Args:
        dataset: a folder or a table; None: that of the workspace, with its folds, labels and trained models.
        workspace: if it was planned for the dataset, its folds are taken.
        tune: the numbers of each method are chosen on at most so many training images.
        skip_bad: leave faulty cases out instead of stopping.
        channels, labels, regions, ignore, patient_regex, instances, divisor, workers, say:
            as for `check_dataset`.

    Returns:
        `objects[thing][method]` with `scores` (`average_precision`, `interval`, `pq`, `splits`, `merges`) and
        `recipes`, or `labels[method]` with `dice[label]`; the method "chosen" is the one that training images prefer;
        `networks`: trained models beside it, each with its `verdict`.

    Raises:
        AutosegError: the dataset has faults, or none is named and nothing is planned.

    Example:
        >>> floor = autoseg.measure_floor("nuclei", instances="nuclei")
        >>> floor.objects["nuclei"]["chosen"].scores.average_precision["0.5"]
    """
    from autoseg.commands.floor import FloorOptions, measure_floor

    given = locals() | {"intake": intake_of(channels, labels, regions, ignore, patient_regex, instances, divisor)}
    root = None if dataset is None else as_path(dataset)
    return measure_floor(root, in_workspace(workspace), options_of(FloorOptions, given))
