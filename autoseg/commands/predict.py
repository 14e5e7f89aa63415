"""Images to segmentations, by the ensemble of the trained folds of one model, or of several."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from autoseg.commands.inputs import open_plan
from autoseg.datasets.checks.grids import header_notes
from autoseg.datasets.checks.problems import problem_table
from autoseg.datasets.dataset import Case, Dataset, Problem, images_in
from autoseg.errors import DataError, StateError, UsageError
from autoseg.inference.options import InferenceOptions
from autoseg.lines import LOG
from autoseg.messages import counted, suggest
from autoseg.models.same_training import SEEN, what_is_seen
from autoseg.nn.devices import choose_device
from autoseg.planning.plan import Plan
from autoseg.records import load, to_plain
from autoseg.workspace import FULL, FoldName, Workspace

if TYPE_CHECKING:  # torch is imported when something is segmented
    from autoseg.inference.predict import Prediction
    from autoseg.models.model import Model


@dataclass(frozen=True)
class PredictOptions:
    """Which models predict, on which device, and how."""

    configuration: str | None = None  # of one model; None: the recommended one
    network: str | None = None  # of one model; None: as planned
    models: tuple[str, ...] = ()  # or models to average, as their folders are called: 3d_fullres-unet
    folds: tuple[FoldName, ...] | None = None  # of each model; None: all that are trained, or FULL where it alone is
    unfinished: bool = False  # also use folds that are not trained to the end, as they stand
    device: str = "auto"
    step: float = InferenceOptions.step  # distance of neighbouring tiles as a share of the tile
    mirroring: bool | None = InferenceOptions.mirroring  # average over flips; None: as the plan says
    tile: float | None = InferenceOptions.tile  # longest tile edges as a multiple of the patch's; None: by the device

    def __post_init__(self) -> None:
        if self.models and (self.configuration or self.network):
            raise UsageError("-m cannot be combined with -c or --network", remedy="omit them: -m names whole models")
        self.inference_options()

    def inference_options(self) -> InferenceOptions:
        """How the networks are run over an image. Raises UsageError for tiles that cannot be."""
        return InferenceOptions(step=self.step, mirroring=self.mirroring, tile=self.tile)


class PartlySegmented(DataError):
    """Some images could not be segmented; the others have been."""

    def __init__(self, failed: Sequence[Problem], written: Sequence[Path], out: Path) -> None:
        super().__init__(
            f"{counted(len(failed), 'file')} could not be segmented (listed above); {len(written)} segmentations are "
            f"in {out}",
            remedy="fix them as listed, then repeat the command",
        )
        self.failed, self.written = tuple(failed), tuple(written)


def predict_images(
    workspace: Workspace,
    images: Sequence[Path],
    out: Path,
    options: PredictOptions = PredictOptions(),
) -> list[Path]:
    """Segment images with the ensemble of the trained folds; one label file per case, on the image's own grid.

    What is wrong with single images is listed at the end, after the sound ones have been segmented.

    Returns:
        The label files.

    Raises:
        DataError: an image could not be segmented; the others have been.
        StateError: a model is not trained, or models were trained on different channels, labels or orientations.
        UsageError: there is nothing to segment, or `out` is a file.
    """
    from autoseg.inference.predict import predict_cases

    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file, expected a folder for the segmentations", remedy="choose another name")
    plan = open_plan(workspace, options.network)
    pairs = _models_asked_for(workspace, plan, options)
    found, faults = images_in(images, len(plan.channels), plan.channels, plan.file_names, out)
    models = _open_models(workspace, pairs, options)
    for model in models:
        for note in notes_on(model, plan):
            LOG.info(note)
    trained = models[0].plan
    if trained.file_names not in (None, plan.file_names):  # the model was trained on images named differently
        found, faults = images_in(images, len(trained.channels), trained.channels, trained.file_names, out)
    cases = [Case(case_id, case_id, tuple(map(str, files)), None) for case_id, files in found]
    _spare_references(workspace, cases, out)
    before = {path.name for path in out.iterdir()} if out.is_dir() else set()
    written = predict_cases(models, cases, out, options.inference_options(), faults=faults) if cases else []
    voters = [f"{_voters(model)} of {name} ({network})" for model, (name, network) in zip(models, pairs, strict=True)]
    _say_what_was_written(written, before, voters, out)
    _report(faults, paths := [prediction.path for prediction in written], out)
    return paths


def _models_asked_for(workspace: Workspace, plan: Plan, options: PredictOptions) -> list[tuple[str, str]]:
    """Configuration and network of each model that is to predict."""
    if options.models:
        return _named_models(workspace, options.models)
    name, configuration = plan.configuration(options.configuration)
    return [(name, configuration.network.name)]


def _open_models(workspace: Workspace, pairs: Sequence[tuple[str, str]], options: PredictOptions) -> "list[Model]":
    """Load the folds of each model, given by configuration and network."""
    from autoseg.models.model import open_model

    device, unfinished = choose_device(options.device), options.unfinished
    return [open_model(workspace, *pair, folds=options.folds, device=device, unfinished=unfinished) for pair in pairs]


def _say_what_was_written(
    written: "Sequence[Prediction]", before: Collection[str], voters: Sequence[str], out: Path
) -> None:
    """Say what is odd about the headers, how many segmentations there are, and how many replaced a file."""
    for problem in header_notes([remark for prediction in written for remark in prediction.remarks]):
        LOG.warning(f"warning: {problem.file}: {problem.what} ({problem.remedy})")
    LOG.info(f"{len(written)} segmentations in {out}, by {' and '.join(voters)}")
    if replaced := [prediction for prediction in written if prediction.path.name in before]:
        LOG.info(f"note: {len(replaced)} of them replaced files in {out}")


def _report(faults: Sequence[Problem], written: Sequence[Path], out: Path) -> None:
    """List what is wrong with the images. Raises PartlySegmented where one of them could not be segmented."""
    if faults:
        LOG.info(problem_table(faults))
    if errors := [fault for fault in faults if fault.severity == "error"]:
        raise PartlySegmented(errors, written, out)


def _spare_references(workspace: Workspace, cases: Sequence[Case], out: Path) -> None:
    """Refuse to write a segmentation over a label of the dataset: `-i imagesTr -o labelsTr`. Raises UsageError."""
    from autoseg.inference.predict import output_ending

    if not workspace.dataset.exists():
        return
    dataset = load(Dataset, workspace.dataset)
    labels = {Path(case.label).resolve() for case in (*dataset.cases, *dataset.test_cases) if case.label}
    for case in cases:
        if (path := out / f"{case.id}{output_ending(case)}").resolve() in labels:
            raise UsageError(
                f"{path} is a label of the dataset and would be overwritten", remedy="choose another folder"
            )


def notes_on(model: "Model", plan: Plan) -> list[str]:
    """What a user should know of the folds that predict: which are not finished, which saw all cases, another plan."""
    unfinished = model.unfinished.items()
    notes = [f"note: fold {fold} of {model.name} is not trained to the end: {how}" for fold, how in unfinished]
    notes += [
        f"note: skipping fold {fold} of {model.name}: it is not trained to the end ({how}); --unfinished includes it"
        for fold, how in model.left_out.items()
    ]
    if FULL in model.folds:
        notes.append(
            f"note: {FULL} of {model.name} was trained on all cases: no cross-validation measures its quality, and its "
            "segmentations of training cases look too good"
        )
    name = model.configuration_name
    trained, today = (what_is_seen(to_plain(one), name) for one in (model.plan, plan))
    if differ := [key for key in SEEN if today[key] != trained[key]]:
        notes.append(
            f"note: {model.name} was trained under a different plan than the current one ({', '.join(differ)} differ) "
            "and predicts under its own"
        )
    return notes


def _voters(model: "Model") -> str:
    """What of a model votes: "5 folds", "1 fold", "the model of all cases"."""
    count = sum(fold != FULL for fold in model.folds)
    parts = [f"{counted(count, 'fold')}"] if count else []
    return " and ".join([*parts, *(["the model of all cases"] if FULL in model.folds else [])])


def _named_models(workspace: Workspace, names: Sequence[str]) -> list[tuple[str, str]]:
    """Configuration and network of each named model, each once."""
    known = {f"{configuration}-{network}": (configuration, network) for configuration, network in workspace.models()}
    if missing := [name for name in names if name not in known]:
        remedy = (
            f"there are: {', '.join(known)}" if known else "train first: " + suggest("train", workspace=workspace.root)
        )
        raise StateError(f"{workspace.root} holds no model {missing[0]!r}", remedy=remedy)
    return [known[name] for name in dict.fromkeys(names)]
