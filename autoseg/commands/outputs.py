"""What `predict` writes beside segmentations: which extras an ensemble gets, and how it is taken apart for them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from autoseg.commands.expected_dice import expected_dice_of
from autoseg.datasets.tables import scans_of_patients
from autoseg.errors import UsageError
from autoseg.imaging.formats.coco_output import folder_to_coco
from autoseg.imaging.formats.readers import READERS
from autoseg.imaging.labels import LabelSet
from autoseg.inference.label_files import DICOM
from autoseg.inference.options import InferenceOptions
from autoseg.lines import LOG
from autoseg.messages import counted
from autoseg.workspace import Workspace, write_text

if TYPE_CHECKING:  # torch is imported when something is segmented
    from autoseg.inference.ensemble import Ensemble
    from autoseg.inference.extras import CaseReport, ProbabilityOutput
    from autoseg.inference.saliency_files import SaliencyOutput
    from autoseg.models.model import Model

ITK_SNAP = "itksnap_labels.txt"
OUTLINES = "annotations.json"
SHOWN = 3  # cases whose expected Dice is shown, the lowest


class Asked(Protocol):
    """The options of `predict` that say what is written."""

    @property
    def format(self) -> str | None: ...
    @property
    def probabilities(self) -> bool: ...
    @property
    def uncertainty(self) -> bool: ...
    @property
    def statistics(self) -> bool: ...
    @property
    def patients(self) -> Path | None: ...
    @property
    def coco(self) -> bool: ...
    @property
    def saliency(self) -> tuple[str, ...]: ...
    @property
    def saliency_stage(self) -> str | None: ...
    @property
    def saliency_method(self) -> Literal["grad_cam", "hires_cam"] | None: ...


@dataclass(frozen=True)
class Outputs:
    """An ensemble as it is run, what is made of every case, and what follows when all cases are done."""

    ensemble: "Ensemble"
    extras: "tuple[ProbabilityOutput | CaseReport | SaliencyOutput, ...]"
    finish: Callable[[], None]


def require_outputs(asked: Asked) -> None:
    """Refuse options of outputs that cannot be. Raises UsageError."""
    if asked.patients is not None and not (asked.statistics or asked.uncertainty):
        raise UsageError("--patients orders the statistics of scans, which are not written", remedy="add --statistics")
    if (asked.saliency_stage or asked.saliency_method) and not asked.saliency:
        option = "--saliency-stage" if asked.saliency_stage else "--saliency-method"
        raise UsageError(f"{option} says how a label is explained, and none is named", remedy="add --saliency LABEL")
    if asked.saliency:
        from autoseg.inference.saliency import parse_asked

        for text in asked.saliency:
            parse_asked(text)


def outputs_of(
    workspace: Workspace,
    models: "Sequence[Model]",
    out: Path,
    asked: Asked,
    options: InferenceOptions,
    exported: Sequence[Path] = (),
) -> Outputs:
    """Prepare what was asked for.

    The members of the ensemble are its models; for uncertainty its folds, or every flip of each fold where there is one
    fold, or where the expected Dice is judged by flips.

    Args:
        exported: the files that hold the models; none: they are of the workspace.

    Raises:
        DataError: the table of patients cannot be read.
        UsageError: outlines of objects are asked for, and the models separate none.
    """
    from autoseg.inference.ensemble import split
    from autoseg.inference.extras import CaseReport, ProbabilityOutput

    labels = models[0].plan.labels
    if asked.coco:
        _require_objects(labels)
    record = None
    ensemble = split(models, options, by="models")
    if asked.uncertainty:
        record, why = expected_dice_of(workspace, models, options, exported)
        if why:
            LOG.info(f"note: {why}")
        by_flips = record.score == "pairwise_dice" if record else sum(len(model.folds) for model in models) == 1
        ensemble = split(models, options, by="flips" if by_flips else "folds")
        if len(ensemble.models) == 1:
            LOG.info("note: one fold without mirroring has nothing to disagree with: the disagreement is 0 everywhere")
    extras: list[ProbabilityOutput | CaseReport | SaliencyOutput] = []
    if asked.probabilities:
        extras.append(ProbabilityOutput(out, ensemble))
    if asked.uncertainty or asked.statistics:
        patients = scans_of_patients(asked.patients) if asked.patients else None
        expected = record.expected if record else None
        extras.append(CaseReport(out, ensemble, uncertainty=asked.uncertainty, expected=expected, patients=patients))
    if asked.saliency:
        extras.append(_saliency(out, models, asked, options))

    def finish() -> None:
        for extra in extras:
            extra.close()
            if isinstance(extra, CaseReport):
                extra.collect()
                _show_poorest(extra)
        if asked.coco and out.is_dir():
            LOG.info(f"{OUTLINES}: {counted(write_outlines(out, labels), 'object')}")
        if asked.format is not None and _opened_by_itk_snap(asked.format) and out.is_dir():
            write_label_file(out, models[0].plan.labels)

    return Outputs(ensemble, tuple(extras), finish)


def _require_objects(labels: LabelSet) -> None:
    if not labels.things:
        raise UsageError(
            "--coco writes outlines of single objects, and the model separates none",
            remedy="omit it, or plan with --instances",
        )


def _saliency(out: Path, models: "Sequence[Model]", asked: Asked, options: InferenceOptions) -> "SaliencyOutput":
    """What explains labels, by the models as they are: not taken apart."""
    from autoseg.inference.saliency import How, parse_asked
    from autoseg.inference.saliency_files import SaliencyOutput

    how = How(asked.saliency_stage or How.stage, asked.saliency_method)
    return SaliencyOutput(out, models, [parse_asked(text) for text in asked.saliency], how, options)


def _opened_by_itk_snap(format: str) -> bool:
    return format not in DICOM and READERS[f".{format}"].family != "natural"


def _show_poorest(report: "CaseReport") -> None:
    """Show which cases of a run are expected to be the poorest."""
    poorest = sorted(report.of_cases.items(), key=lambda item: item[1].dice)[:SHOWN]
    for case, found in poorest:
        LOG.info(f"expected Dice of {case}: {found.dice:.2f} ({found.low:.2f} to {found.high:.2f})")
    if len(report.of_cases) > len(poorest):
        LOG.info(f"... the lowest of {len(report.of_cases)}; all are in statistics.csv")


def write_outlines(out: Path, labels: LabelSet) -> int:
    """Write boxes and outlines of the objects of all segmentations in a folder as COCO JSON. Returns their number."""
    (name, *_), names = labels.things, {thing.core: name for name, thing in labels.things.items()}
    return folder_to_coco(out, out / OUTLINES, name=name, names=names, divisor=labels.divisor)


def write_label_file(out: Path, labels: LabelSet) -> None:
    """Write names and colours of labels for ITK-SNAP."""
    from autoseg.imaging.formats.segments import itk_snap_labels, segments_of

    write_text(out / ITK_SNAP, itk_snap_labels(segments_of(labels)))
