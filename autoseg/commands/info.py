"""What a file or a folder of autoseg is: an exported model, a workspace, a checkpoint. Nothing in it is executed.

A plugin that a model needs is named, not asked for: only who predicts with the model needs to name the file.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from autoseg.commands.decision import decision_of
from autoseg.errors import StateError, UsageError
from autoseg.evaluation.crossval import CrossValidation
from autoseg.messages import counted, some
from autoseg.models.agreements import VERSION, Agreement, Agreements, known_agreements
from autoseg.models.decision import Decision
from autoseg.models.manifest import AGREEMENTS, ArchivedModel
from autoseg.planning.plan import Plan
from autoseg.records import load
from autoseg.workspace import FULL, FoldName, Workspace, begun_folds

if TYPE_CHECKING:
    from autoseg.evaluation.speeds import SpeedTable
    from autoseg.models.archive import Archive

R = TypeVar("R")
SPEEDS, EXPECTED_DICE = "speeds.json", "expected_dice.json"  # beside a model's folds
MOST_LINES = 25
MOST_MODELS = 4  # that are described
MOST_AGREEMENTS = 6


@dataclass(frozen=True)
class FoldInfo:
    """One trained network."""

    fold: FoldName
    epochs: int
    steps: int
    cases: int  # that it was trained on
    finished: bool
    plugins: tuple[dict[str, str], ...] = ()  # name and sha256 of each Python file that it needs


@dataclass(frozen=True)
class Learnt:
    """How well the Dice of a label is expected where there is no reference, on held-out cases."""

    mean_error: float
    coverage: float  # share of the cases whose Dice was within the interval


@dataclass(frozen=True)
class ModelInfo:
    """One configuration with one network, and its folds."""

    configuration: str
    network: str
    spacing: tuple[float, ...]  # mm
    patch_size: tuple[int, ...]
    folds: tuple[FoldInfo, ...]
    parameters: int | None = None  # None: not known without building it
    previous: str | None = None
    dice: dict[str, float | None] | None = None  # label or region -> mean of the cross-validation; None: not evaluated
    scored_cases: int = 0
    agreements: tuple[Agreement, ...] = ()
    speeds: "SpeedTable | None" = None  # None: not measured
    expected_dice: dict[str, Learnt] | None = None  # label, or their "mean" -> how well it is; None: not learnt
    decision: tuple[str, ...] = ()  # what predict applies beside the weights, in words

    def lines(self, name: str, *, detailed: bool) -> list[str]:
        """A few lines; of one model alone, a line for each fold, too."""
        spacing, patch = " × ".join(f"{edge:.4g}" for edge in self.spacing), " × ".join(map(str, self.patch_size))
        size = f", {self.parameters / 1e6:.3g} M parameters" if self.parameters else ""
        stage = f", after {self.previous}" if self.previous else ""
        lines = [f"{name}{stage}: {_folds(self.folds)}{size}, voxels of {spacing} mm, patch {patch}"]
        if self.dice is None:
            lines.append("  not evaluated")
        else:
            dice = [f"{label} {'-' if mean is None else f'{mean:.3f}'}" for label, mean in self.dice.items()]
            lines.append(f"  Dice of {counted(self.scored_cases, 'held-out case')}: {some(dice, 8)}")
        lines += [f"  {line}" for line in self.decision[:3]]
        needed = {(one["name"], one["sha256"]) for fold in self.folds for one in fold.plugins}
        lines += [f"  needs --plugin {plugin} of sha256 {sha256[:12]}" for plugin, sha256 in sorted(needed)][:3]
        if detailed:
            for fold in self.folds[:6]:
                end = "" if fold.finished else ", not trained to the end"
                length = f"{counted(fold.epochs, 'epoch')}, {counted(fold.steps, 'step')}"
                lines.append(f"  {_fold_name(fold.fold)}: {length} on {counted(fold.cases, 'case')}{end}")
            lines += _measured(self.speeds, self.expected_dice)
            rows = Agreements(VERSION, self.agreements).worst()
            lines += [f"  {row}" for row in rows if row.limit is not None or row.value][:MOST_AGREEMENTS]
        return lines


@dataclass(frozen=True)
class Info:
    """What something is."""

    kind: Literal["exported model", "workspace", "checkpoint"]
    path: Path
    dataset: str
    channels: tuple[str, ...]
    labels: dict[str, int]
    regions: dict[str, tuple[int, ...]]
    predicts: tuple[str, ...]  # the models that segment by default
    models: dict[str, ModelInfo]
    size: int | None = None  # bytes
    identity: str | None = None  # digest of what an exported model holds
    case_ids_kept: bool | None = None
    made_with: dict[str, str] | None = None

    def describe(self) -> str:
        """In MOST_LINES lines at most."""
        lines = [
            f"{self.path}: {_a(self.kind)} of {self.dataset}" + (f", {_megabytes(self.size)}" if self.size else "")
        ]
        lines.append(f"channels: {some(self.channels, 12)}")
        many = f" ({len(self.labels)})" if len(self.labels) > 9 else ""
        lines.append(f"labels{many}: {some([f'{name}={value}' for name, value in self.labels.items()], 12)}")
        if self.regions:
            lines.append(f"regions: {some(self.regions, 12)}")
        if len(self.models) > 1:
            lines.append(f"models: {some(self.models)}; by default {' and '.join(self.predicts)} predict{_s(self)}")
        shown = list(self.models.items())[:MOST_MODELS]
        for name, model in shown:
            lines += model.lines(name, detailed=len(shown) == 1)
        if len(self.models) > len(shown):
            lines.append(f"and {counted(len(self.models) - len(shown), 'other model')}")
        if self.made_with:
            lines.append("made with " + ", ".join(f"{name} {version}" for name, version in self.made_with.items()))
        if self.case_ids_kept:
            lines.append("names of cases are in it")
        if self.identity:
            lines.append(f"identity {self.identity}; every file has the sha256 that the manifest lists")
        return "\n".join(lines[:MOST_LINES])


def _s(info: Info) -> str:
    return "s" if len(info.predicts) == 1 else " together"


def _a(kind: str) -> str:
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


def _fold_name(fold: FoldName) -> str:
    return FULL if fold == FULL else f"fold {fold}"


def _folds(folds: Sequence[FoldInfo]) -> str:
    """ "folds 0, 1, 2", "fold 0", "full", "no trained fold"."""
    numbers = [fold.fold for fold in folds if fold.fold != FULL]
    parts = [f"fold{'s' * (len(numbers) > 1)} {some(numbers, 9)}"] if numbers else []
    parts += [FULL] if len(numbers) < len(folds) else []
    return " and ".join(parts) or "no trained fold"


def info(path: Path) -> Info:
    """What an exported model, a workspace or a checkpoint is.

    Raises:
        StateError: it cannot be read, or an archive is refused.
        UsageError: there is nothing, or it is none of these.
    """
    if not path.exists():
        raise UsageError(f"{path} does not exist", remedy="name an exported model, a workspace or a checkpoint")
    if path.is_dir():
        return _of_folder(path)
    return _of_archive(path) if path.suffix.lower() == ".zip" else _of_checkpoint(path)


def _of_archive(path: Path) -> Info:
    from autoseg.models.archive import open_archive

    archive = open_archive(path)
    manifest = archive.manifest
    models = {}
    for name, model in manifest.models.items():
        models[name] = _archived(model, name, archive)
    return Info(
        kind="exported model",
        path=path,
        dataset=manifest.dataset,
        channels=manifest.channels,
        labels=manifest.labels,
        regions=manifest.regions,
        predicts=manifest.predicts,
        models=models,
        size=archive.container.size,
        identity=archive.identity,
        case_ids_kept=manifest.case_ids_kept,
        made_with=manifest.made_with,
    )


def _archived(model: ArchivedModel, name: str, archive: "Archive") -> ModelInfo:
    def measured(record_type: type[R], file: str) -> R | None:
        path = f"models/{name}/{file}"
        return archive.record(record_type, path) if archive.has(path) else None

    scores, agreements = measured(CrossValidation, "crossval.json"), measured(Agreements, AGREEMENTS)
    folds = []
    for fold in model.folds:
        plugins = tuple({"name": one.name, "sha256": one.sha256} for one in fold.plugins)
        folds.append(FoldInfo(fold.fold, fold.epochs, fold.steps, fold.cases, True, plugins))
    return ModelInfo(
        model.configuration, model.network, model.spacing, model.patch_size, tuple(folds), model.parameters,
        model.previous, _dice(scores), len(scores.cases) if scores else 0,
        agreements.rows if agreements else (), *_records_of(measured), _decided(measured(Decision, "decision.json")),
    )  # fmt: skip


def _decided(decision: Decision | None) -> tuple[str, ...]:
    return () if decision is None else tuple(decision.in_short())


def _records_of(measured: "Callable[[Any, str], Any]") -> "tuple[SpeedTable | None, dict[str, Learnt] | None]":
    """Speeds and how well Dice is expected, read by a function of record type and file name."""
    from autoseg.evaluation.expected_dice import ExpectedDiceRecord
    from autoseg.evaluation.speeds import SpeedTable

    record = measured(ExpectedDiceRecord, EXPECTED_DICE)
    lines = {} if record is None else record.labels | ({"mean": record.mean} if record.mean else {})
    learnt = {label: Learnt(line.mean_error, line.measured_coverage) for label, line in lines.items()}
    return measured(SpeedTable, SPEEDS), None if record is None else learnt


def _measured(speeds: "SpeedTable | None", learnt: Mapping[str, Learnt] | None) -> list[str]:
    """Lines about what was measured beside the scores."""
    lines = []
    if speeds is not None:
        ways = [f"{way.name} {way.dice.mean:.4f} in {way.seconds_per_case:.3g} s" for way in speeds.speeds if way.dice]
        where = f"{counted(speeds.cases, 'held-out case')}, {speeds.device}"
        lines.append(f"  Dice and time per case: {', '.join(ways)} ({where})")
    if learnt:
        shown = [
            f"{label} {one.mean_error:.3f} off, {one.coverage:.0%} in the interval" for label, one in learnt.items()
        ]
        lines.append(f"  expected Dice: {some(shown, 4)}")
    return lines


def _dice(scores: CrossValidation | None) -> dict[str, float | None] | None:
    return None if scores is None else {label: found["dice"].mean for label, found in scores.summary.items()}


def _of_folder(path: Path) -> Info:
    """A workspace, or the newest checkpoint of a fold's folder."""
    workspace = Workspace(path)
    if not workspace.plan.exists():
        if (path / "last.pt").exists():
            return _of_checkpoint(path / "last.pt")
        what = f"{path} is neither a workspace nor the folder of a fold"
        raise UsageError(what, remedy="name an exported model, a workspace or a checkpoint")
    plan = load(Plan, workspace.plan)
    planned = [(name, configuration.network.name) for name, configuration in plan.configurations.items()]
    models = {}
    for name, network in dict.fromkeys([*workspace.models(), *planned]):
        folder = workspace.model(name, network)
        if name not in plan.configurations or not (begun := begun_folds(folder)):
            continue
        crossval = workspace.crossval(name, network)
        scores = load(CrossValidation, crossval) if crossval.exists() else None
        folds = tuple(_fold_of(_checkpoint(file / "last.pt")) for file in begun.values())
        speeds, learnt = _records_of(partial(_in_folder, folder))
        chosen = plan.configurations[name]
        models[f"{name}-{network}"] = ModelInfo(
            name, network, chosen.spacing, chosen.patch_size, folds, previous=chosen.cascade_from, dice=_dice(scores),
            scored_cases=len(scores.cases) if scores else 0, agreements=known_agreements(folder / AGREEMENTS).rows,
            speeds=speeds, expected_dice=learnt, decision=_decided(decision_of(workspace, name, network)),
        )  # fmt: skip
    recommended = f"{plan.recommended}-{plan.configurations[plan.recommended].network.name}"
    return Info(
        "workspace", path, plan.dataset, plan.channels, plan.labels.values, plan.labels.regions, (recommended,), models
    )


def _in_folder(folder: Path, record_type: type[R], file: str) -> R | None:
    return load(record_type, folder / file) if (folder / file).exists() else None


def _checkpoint(path: Path) -> Any:
    from autoseg.models.versions import read_checkpoint

    return read_checkpoint(path, mapped=True)


def _fold_of(state: Any) -> FoldInfo:
    """What a checkpoint states about its fold."""
    position = state.position
    return FoldInfo(state.fold, position.epoch, position.step, len(state.train), state.finished, state.plugins)


def _of_checkpoint(path: Path) -> Info:
    """One fold. Its plan is read as plain data: it may name what only a plugin knows."""
    state = _checkpoint(path)
    plan, name = state.plan, state.configuration
    try:
        chosen = plan["configurations"][name]
        labels: Mapping[str, Any] = plan["labels"]
        network = chosen["network"]["name"]
        parameters = sum(tensor.numel() for tensor in state.network.values())
        model = ModelInfo(
            name, network, tuple(chosen["spacing"]), tuple(chosen["patch_size"]), (_fold_of(state),), parameters,
            chosen.get("cascade_from"),
        )  # fmt: skip
        regions = {name: tuple(values) for name, values in labels.get("regions", {}).items()}
        return Info(
            "checkpoint", path, plan["dataset"], tuple(plan["channels"]), dict(labels["values"]), regions,
            (f"{name}-{network}",), {f"{name}-{network}": model}, path.stat().st_size,
        )  # fmt: skip
    except (KeyError, TypeError, AttributeError) as error:
        raise StateError(f"{path} holds a plan that cannot be read: {error!r}", remedy="name another file") from None
