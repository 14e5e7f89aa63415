"""Images to segmentations, by the ensemble of the trained folds of one model, or of several."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from autoseg.commands.inputs import Say, open_plan
from autoseg.datasets.checks.grids import header_notes
from autoseg.datasets.checks.problems import problem_table
from autoseg.datasets.dataset import Case, Dataset, Problem, images_in
from autoseg.errors import DataError, StateError, UsageError
from autoseg.messages import counted, suggest
from autoseg.models.same_training import SEEN, what_is_seen
from autoseg.nn.devices import choose_device
from autoseg.planning.plan import Plan
from autoseg.records import load, to_plain
from autoseg.workspace import FULL, FoldName, Workspace

if TYPE_CHECKING:  # torch is imported when something is segmented
    from autoseg.inference.predict import Prediction
    from autoseg.models.model import Model


class PartlySegmented(DataError):
    """Some images could not be segmented; the others have been."""

    def __init__(self, failed: Sequence[Problem], written: Sequence[Path], out: Path) -> None:
        super().__init__(
            f"{counted(len(failed), 'file')} could not be segmented (listed above); {len(written)} segmentations are "
            f"in {out}",
            remedy="repair them as the list says, then repeat the command",
        )
        self.failed, self.written = tuple(failed), tuple(written)


def predict_images(
    workspace: Workspace,
    images: Sequence[Path],
    out: Path,
    *,
    configuration: str | None = None,
    network: str | None = None,
    models: Sequence[str] = (),
    folds: tuple[FoldName, ...] | None = None,
    device: str = "auto",
    step: float = 0.5,
    mirroring: bool | None = None,
    unfinished: bool = False,
    tile: float | None = None,
    say: Say = print,
) -> list[Path]:
    """Segment images with the ensemble of the trained folds; one label file per case, on the image's own grid.

    Args:
        configuration, network: of one model; None: as recommended, as planned.
        models: or models to average, as their folders are called: 3d_fullres-unet.
        folds: of each model; None: all partitions that are trained, or FULL where it alone is.
        tile: longest edges of tiles as a multiple of the training patch's; None: as suits the device.
        unfinished: also use folds that are not trained to the end, as they stand.

    What is wrong with single images is listed at the end, after the sound ones have been segmented.

    Raises:
        DataError: an image could not be segmented; the others have been.
        StateError: a model is not trained, or models were trained on different channels, labels or orientations.
        UsageError: models are given in both ways, there is nothing to segment, or `out` is a file.
    """
    from autoseg.inference.predict import PredictOptions, predict_cases
    from autoseg.models.model import open_model

    if models and (configuration or network):
        raise UsageError("-m names whole models: -c and --network say the same again", remedy="leave them out")
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file, expected a folder for the segmentations", remedy="choose another name")
    plan = open_plan(workspace, network, say)
    name, chosen = plan.configuration(configuration)
    pairs = _named_models(workspace, models) if models else [(name, chosen.network.name)]
    found, faults = images_in(images, len(plan.channels), plan.channels, plan.file_names, out)
    chosen_device = choose_device(device)
    opened = [open_model(workspace, *pair, folds=folds, device=chosen_device, unfinished=unfinished) for pair in pairs]
    for model in opened:
        for note in notes_on(model, plan):
            say(note)
    trained = opened[0].plan
    if trained.file_names not in (None, plan.file_names):  # the model was trained on images called otherwise
        found, faults = images_in(images, len(trained.channels), trained.channels, trained.file_names, out)
    cases = [Case(case_id, case_id, tuple(map(str, files)), None) for case_id, files in found]
    _spare_references(workspace, cases, out)
    before = {path.name for path in out.iterdir()} if out.is_dir() else set()
    options = PredictOptions(step=step, mirroring=mirroring, tile=tile)
    written = predict_cases(opened, cases, out, options, faults=faults) if cases else []
    voters = [f"{_voters(model)} of {pair[0]} ({pair[1]})" for model, pair in zip(opened, pairs, strict=True)]
    _say_what_was_written(written, before, voters, out, say)
    _report(faults, paths := [prediction.path for prediction in written], out, say)
    return paths


def _say_what_was_written(
    written: "Sequence[Prediction]", before: Collection[str], voters: Sequence[str], out: Path, say: Say
) -> None:
    """Say what is odd about the headers, how many segmentations there are, and how many replaced a file."""
    for problem in header_notes([remark for prediction in written for remark in prediction.remarks]):
        say(f"warning: {problem.file}: {problem.what} ({problem.remedy})")
    say(f"{len(written)} segmentations in {out}, by {' and '.join(voters)}")
    if replaced := [prediction for prediction in written if prediction.path.name in before]:
        say(f"note: {len(replaced)} of them take the place of files that were in {out} before")


def _report(faults: Sequence[Problem], written: Sequence[Path], out: Path, say: Say) -> None:
    """List what is wrong with the images. Raises PartlySegmented where one of them could not be segmented."""
    if faults:
        say(problem_table(faults))
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
                f"{path} is a label of the dataset, and would be overwritten", remedy="choose another folder"
            )


def notes_on(model: "Model", plan: Plan) -> list[str]:
    """What a user should know of the folds that predict: which are not finished, which saw all cases, another plan."""
    unfinished = model.unfinished.items()
    notes = [f"note: fold {fold} of {model.name} is not trained to the end: {how}" for fold, how in unfinished]
    notes += [
        f"note: fold {fold} of {model.name} is left out, because it is not trained to the end ({how}); --unfinished "
        "takes it in"
        for fold, how in model.left_out.items()
    ]
    if FULL in model.folds:
        notes.append(
            f"note: {FULL} of {model.name} was trained on all cases: no cross-validation tells what it is worth, and "
            "of its training cases its segmentations are too good"
        )
    name = model.configuration_name
    trained, today = (what_is_seen(to_plain(one), name) for one in (model.plan, plan))
    if differ := [key for key in SEEN if today[key] != trained[key]]:
        notes.append(
            f"note: {model.name} was trained under another plan than that of today ({', '.join(differ)} differ); it "
            "predicts by the one it was trained under"
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
