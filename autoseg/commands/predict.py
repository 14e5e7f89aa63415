"""Images to segmentations, by the ensemble of the trained folds of one model, or of several."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from autoseg.commands.decision import open_with_rule
from autoseg.commands.inputs import open_plan
from autoseg.commands.outputs import outputs_of, require_outputs
from autoseg.datasets.checks.grids import header_notes
from autoseg.datasets.checks.problems import problem_table
from autoseg.datasets.dataset import Case, Dataset, Problem, images_in
from autoseg.errors import DataError, StateError, Stopped, UsageError
from autoseg.inference.label_files import Output
from autoseg.inference.options import InferenceOptions, SpeedName, options_at
from autoseg.inference.shards import Shard, parse_shard
from autoseg.lines import LOG
from autoseg.messages import counted, some, suggest
from autoseg.models.same_training import SEEN, what_is_seen
from autoseg.nn.devices import choose_device
from autoseg.planning.plan import Plan
from autoseg.records import load, to_plain
from autoseg.stopping import StopSignals
from autoseg.workspace import FULL, FoldName, Workspace

if TYPE_CHECKING:  # torch is imported when something is segmented
    from autoseg.inference.finished import Ledger
    from autoseg.inference.predict import Prediction
    from autoseg.inference.predictor import ArrayPredictor
    from autoseg.models.decision import Rule
    from autoseg.models.model import Model


@dataclass(frozen=True)
class PredictOptions:
    """Which models predict, on which device, and how."""

    configuration: str | None = None  # of one model; None: the recommended one
    network: str | None = None  # of one model; None: as planned
    models: tuple[str, ...] = ()  # or models to average, as their folders are called (3d_fullres-unet), or model.zip
    folds: tuple[FoldName, ...] | None = None  # of each model; None: all that are trained, or FULL where it alone is
    unfinished: bool = False  # also use folds that are not trained to the end, as they stand
    device: str = "auto"
    speed: SpeedName | None = None  # None: "accurate"; what follows has precedence
    step: float | None = None  # distance of neighbouring tiles as a share of the tile; None: by the speed
    mirroring: bool | None = InferenceOptions.mirroring  # average over flips; None: by the speed
    tile: float | None = InferenceOptions.tile  # longest tile edges as a multiple of the patch's; None: by the device
    top_k: float | None = None  # share of a cascade's tiles to compute, the most worthwhile ones; None: all
    skip_empty: bool = False  # leave out tiles that hold hardly anything
    shard: str | None = None  # "2/8": the second of eight parts of the cases; None: all of them
    decision: bool = True  # apply what evaluate --choose chose
    resume: bool = False  # keep segmentations that are verified to be what would be made
    format: str | None = None  # extension of the segmentations without its dot; None: that of each image
    probabilities: bool = False
    uncertainty: bool = False
    statistics: bool = False
    patients: Path | None = None  # table of case, patient and date
    coco: bool = False  # also write boxes and outlines of all objects to OUT/annotations.json
    saliency: tuple[str, ...] = ()  # labels to explain, each LABEL or LABEL@Z,Y,X
    saliency_stage: str | None = None  # by which layer of the networks; None: the bottleneck
    saliency_method: Literal["grad_cam", "hires_cam"] | None = None  # None: as suits the layer

    def __post_init__(self) -> None:
        exported = [is_exported(name) for name in self.models]
        if self.models and not all(exported) and (self.configuration or self.network):
            raise UsageError("-m cannot be combined with -c or --network", remedy="omit them: -m names whole models")
        if any(exported) and not all(exported):
            raise UsageError(
                "-m names both exported files and models of the workspace", remedy="export these, or name one kind"
            )
        self.inference_options()
        require_outputs(self)
        self.output(Path())
        if self.shard is not None:
            parse_shard(self.shard)

    def inference_options(self) -> InferenceOptions:
        """How the networks are run over an image.

        Raises:
            UsageError: tiles that cannot be.
        """
        options = options_at(self.speed or "accurate")
        if self.step is not None:
            options = replace(options, step=self.step)
        if self.mirroring is not None:
            options = replace(options, mirroring=self.mirroring, even_flips=False)
        return replace(options, tile=self.tile, top_k=self.top_k, skip_empty=self.skip_empty)

    @property
    def way(self) -> str | None:
        """What `evaluate --speeds` calls these options; None where it measures no such combination."""
        chosen = [
            self.speed or "accurate",
            *(["top-k"] if self.top_k else []),
            *(["skip-empty"] if self.skip_empty else []),
        ]
        if len(chosen) == 1:
            return self.speed
        return chosen[1] if len(chosen) == 2 and chosen[0] == "accurate" else None

    def output(self, out: Path) -> Output:
        """Where and in which format segmentations are written."""
        return Output(out, self.format)


def is_exported(name: str) -> bool:
    """Whether -m names a file that `autoseg export` has written, instead of a model of the workspace."""
    return name.lower().endswith(".zip")


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
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file, expected a folder for the segmentations", remedy="choose another name")
    opened = open_exported(workspace, options)
    plan = opened[0].plan if opened else open_plan(workspace, options.network)
    found, faults = images_in(images, len(plan.channels), plan.channels, plan.file_names, out)
    models, rule = open_with_rule(workspace, plan, opened, options)
    trained = models[0].plan
    if trained.file_names not in (None, plan.file_names):  # the model was trained on images named differently
        found, faults = images_in(images, len(trained.channels), trained.channels, trained.file_names, out)
    cases = [Case(case_id, case_id, tuple(map(str, files)), None) for case_id, files in found]
    _spare_references(workspace, cases, out, options)
    if options.shard is not None:
        cases, faults = _part(parse_shard(options.shard), cases, faults)
    if (way := options.way) is not None:
        from autoseg.commands.speeds import say_expected

        say_expected(workspace, models, way, exported_files(workspace, options), top_k=options.top_k)
    before = {path.name for path in out.iterdir()} if out.is_dir() else set()
    written, kept = _predict(workspace, (models, rule), cases, out, options, faults)
    voters = [f"{_voters(one)} of {one.configuration_name} ({one.configuration.network.name})" for one in models]
    _say_what_was_written(written, before, voters, out)
    paths = sorted([*(prediction.path for prediction in written), *kept])
    _report(faults, paths, out)
    return paths


def open_predictor(workspace: Workspace, options: PredictOptions) -> "ArrayPredictor":
    """Load what `predict_images` would segment with, for arrays.

    Raises:
        StateError: a model is not trained, or models were trained on different channels, labels or orientations.
    """
    from autoseg.inference.predictor import ArrayPredictor

    opened = open_exported(workspace, options)
    plan = opened[0].plan if opened else open_plan(workspace, options.network)
    models, rule = open_with_rule(workspace, plan, opened, options)
    return ArrayPredictor(models, options.inference_options(), rule)


def _predict(
    workspace: Workspace,
    ensemble: "tuple[Sequence[Model], Rule]",
    cases: Sequence[Case],
    out: Path,
    options: PredictOptions,
    faults: list[Problem],
) -> "tuple[list[Prediction], list[Path]]":
    """Segment cases and record what is finished; return what was made, and with --resume the files that were kept.

    Raises:
        Stopped, Interrupted: by a signal; what is finished is recorded, and --resume keeps it.
    """
    from autoseg.inference.finished import Ledger, made_by
    from autoseg.inference.predict import predict_cases
    from autoseg.models.build import tile_growth
    from autoseg.models.identity import ensemble_digest

    if not cases:
        return [], []
    models, rule = ensemble
    chosen, training = options.inference_options(), models[0].plan.training
    mirroring = training.test_time_mirroring if chosen.mirroring is None else chosen.mirroring
    axes = training.mirror_axes if mirroring else ()
    outputs = outputs_of(workspace, models, out, options, chosen, exported_files(workspace, options))
    outputs = replace(outputs, ensemble=replace(outputs.ensemble, rule=rule))
    made = made_by(
        rule.digest(ensemble_digest(models)), chosen, axes, tile_growth(models[0].device.type), outputs.extras
    )
    ledger = Ledger(out, made, parse_shard(options.shard) if options.shard else None)
    kept = _finished(ledger, cases, options.output(out)) if options.resume else {}
    todo = [case for case in cases if case.id not in kept]
    try:
        with StopSignals():
            made_now = predict_cases(
                outputs.ensemble, todo, options.output(out), faults=faults, extras=outputs.extras, ledger=ledger
            )  # fmt: skip
            return made_now, [*kept.values()]
    except Stopped as stopped:
        stopped.resumed_with = ("--resume",)
        raise
    finally:
        outputs.finish()


def _finished(ledger: "Ledger", cases: Sequence[Case], output: Output) -> dict[str, Path]:
    """The cases whose segmentations are verified, with their files; says which are made again, and why."""
    for what in ledger.unreadable:
        LOG.info(f"note: {what}: what it recorded is predicted again")
    kept: dict[str, Path] = {}
    again: dict[str, list[str]] = {}
    for case in cases:
        path = output.path(case)
        doubt = ledger.doubt(case, path)
        if doubt is None:
            kept[case.id] = path
        elif doubt:
            again.setdefault(doubt, []).append(case.id)
    LOG.info(f"resuming: {len(kept)} of {len(cases)} segmentations in {output.folder} are verified and kept")
    for reason, ids in again.items():
        LOG.info(f"predicting {counted(len(ids), 'case')} again: {reason}: {some(ids)}")
    return kept


def _part(shard: Shard, cases: Sequence[Case], faults: list[Problem]) -> tuple[list[Case], list[Problem]]:
    """The cases of a shard, which are listed, and the problems it reports: those of no case are the first shard's."""
    chosen = shard.of(cases)
    LOG.info(f"shard {shard}: {len(chosen)} of {counted(len(cases), 'case')}: {some([case.id for case in chosen])}")
    if shard.number == 1 or not faults:
        return chosen, faults
    LOG.info(f"note: {counted(len(faults), 'file')} cannot be used: shard 1/{shard.count} lists them")
    return chosen, []


def models_asked_for(workspace: Workspace, plan: Plan, options: PredictOptions) -> list[tuple[str, str]]:
    """Configuration and network of each model that is to predict."""
    if options.models:
        return _named_models(workspace, options.models)
    name, configuration = plan.configuration(options.configuration)
    return [(name, configuration.network.name)]


def exported_files(workspace: Workspace, options: PredictOptions) -> list[Path]:
    """The exported files that predict, each once: those that -m names, or the one in place of a workspace."""
    files = [Path(name).expanduser() for name in options.models if is_exported(name)]
    if not files and is_exported(workspace.root.name) and not workspace.root.is_dir():
        files = [workspace.root]
    return list(dict.fromkeys(files))


def open_exported(workspace: Workspace, options: PredictOptions) -> "list[Model]":
    """Load the models of exported files: of those that -m names, or of one that is named in place of a workspace.

    Says what a user should know of them. Empty where no such file is named.

    Raises:
        StateError: a file is refused, or models of several files do not fit together.
    """
    files = exported_files(workspace, options)
    names = [name for name in options.models if not is_exported(name)]  # of models in a file that is the workspace
    if not files:
        return []
    from autoseg.models.model import require_common
    from autoseg.models.opening import open_models

    device = choose_device(options.device)
    found = {
        path: open_models(
            path, names=names, configuration=options.configuration, network=options.network, folds=options.folds,
            device=device,
        )
        for path in files
    }  # fmt: skip
    require_common({f"{model.name} of {path}": model.plan for path, models in found.items() for model in models})
    opened = [model for models in found.values() for model in models]
    _say_notes(opened, opened[0].plan)
    return opened


def open_models_for(
    workspace: Workspace, plan: Plan, pairs: Sequence[tuple[str, str]], options: PredictOptions
) -> "list[Model]":
    """Load the folds of each model, given by configuration and network, and say what a user should know of them."""
    from autoseg.models.model import open_model

    device, unfinished = choose_device(options.device), options.unfinished
    models = [open_model(workspace, *pair, folds=options.folds, device=device, unfinished=unfinished) for pair in pairs]
    _say_notes(models, plan)
    return models


def _say_notes(models: "Sequence[Model]", plan: Plan) -> None:
    for model in models:
        for note in notes_on(model, plan):
            LOG.info(note)


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


def _spare_references(workspace: Workspace, cases: Sequence[Case], out: Path, options: PredictOptions) -> None:
    """Refuse to write a segmentation over a label of the dataset: `-i imagesTr -o labelsTr`. Raises UsageError."""
    paths = [path for case in cases if (path := options.output(out).path(case)).exists()]
    if not paths or not workspace.dataset.exists():
        return
    dataset = load(Dataset, workspace.dataset)
    labels = {Path(case.label).resolve() for case in (*dataset.cases, *dataset.test_cases) if case.label}
    if over := [path for path in paths if path.resolve() in labels]:
        raise UsageError(
            f"{over[0]} is a label of the dataset and would be overwritten", remedy="choose another folder"
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
