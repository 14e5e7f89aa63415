"""`autoseg learning-curve`: how Dice grows with the number of patients, and what twice as many would bring.

Every share is trained in a place of its own, `WORKSPACE/learning_curve/share_25/models/...`, by the plan and on the
preprocessed cases of the workspace; the folds in `models/` are not touched. A share that is trained is left alone. All
patients are what the fold itself trains on: where that is trained in the same way, it is taken.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from autoseg.commands.folds import Epochs, Folds, TrainOptions
from autoseg.commands.plan import label_volumes
from autoseg.datasets.shares import nested_shares
from autoseg.datasets.splits import Split, Splits
from autoseg.errors import StateError, UsageError
from autoseg.lines import LOG
from autoseg.messages import counted, duration, suggest
from autoseg.planning.fingerprint import Fingerprint
from autoseg.planning.plan import Training
from autoseg.planning.plan_fields import Seconds, Steps
from autoseg.records import load, save
from autoseg.rules import check_fields
from autoseg.workspace import FULL, FoldName, Workspace, aside_name

if TYPE_CHECKING:
    from autoseg.evaluation.learning_curve import LearningCurve, ShareResult

SHARES = (12.0, 25.0, 50.0, 100.0)
LEAST_SHARES = 3  # a power law has three numbers


@dataclass(frozen=True)
class LearningCurveOptions:
    """The options of `autoseg learning-curve` and of `autoseg.learning_curve`, and their defaults."""

    folds: tuple[FoldName, ...] | None = (0,)  # None: all partitions
    shares: tuple[float, ...] = SHARES  # percent of the patients
    configuration: str | None = None  # None: the recommended one
    network: str | None = None  # None: the one of plan.json
    epochs: Epochs | None = None  # length of each training, whatever its share; at most one of these three
    steps: Steps | None = None
    time_budget_seconds: Seconds | None = None
    device: str = "auto"
    restart: bool = False
    stop_after_seconds: Seconds | None = None
    settings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_fields(self)
        if any(not 0 < share <= 100 for share in self.shares):
            raise UsageError(
                f"shares are percent of the patients, found {_typed(self.shares)}", remedy="--shares 25,50,100"
            )
        if len(set(self.shares)) < LEAST_SHARES:
            what = f"a power law needs {LEAST_SHARES} shares at least, found {_typed(self.shares)}"
            raise UsageError(what, remedy=f"--shares {_typed(SHARES)}")

    @property
    def training(self) -> TrainOptions:
        """The same options for the trainings."""
        return TrainOptions(
            self.folds, self.configuration, self.network, self.epochs, self.steps, self.time_budget_seconds,
            self.device, stop_after_seconds=self.stop_after_seconds, settings=self.settings,
        )  # fmt: skip


@dataclass(frozen=True)
class _Training:
    """One training on a share of a fold's patients."""

    share: float
    folds: Folds  # whose workspace holds its models
    split: Split
    patients: int


def learning_curve(workspace: Workspace, options: LearningCurveOptions = LearningCurveOptions()) -> "LearningCurve":
    """Train what is missing, score the held-out cases, fit and show the curve, and write learning_curve.json.

    Raises:
        StateError: nothing is planned, a share was trained in another way, or two shares hold the same patients.
        UsageError: a cascade, or a fold that holds no case out.
        Stopped: by a signal, or after the time that was set; the same command resumes.
    """
    from autoseg.commands.train import train_prepared
    from autoseg.evaluation.learning_curve import learning_curve
    from autoseg.evaluation.learning_curve_text import describe

    shared = Folds.open(workspace, options.training)
    name, configuration = shared.plan.configuration(options.configuration)
    if configuration.cascade_from:
        raise UsageError(
            f"{name} is a cascade: its previous stage would have to be trained on each share, too",
            remedy=f"take the curve of -c {configuration.cascade_from}, or of another configuration",
        )
    chosen = shared.chosen(options.folds)
    if FULL in [split.fold for split in chosen]:
        raise UsageError("fold full holds no case out: there is no Dice", remedy="name other folds: -f 0")
    shared.require_sources()
    trainings = [one for split in chosen for one in _trainings(shared, name, split, options)]
    length = _length(shared.plan.training)
    LOG.info(
        f"{counted(len(trainings), 'training')} of {length} each, on "
        + ", ".join(f"{one.share:g} % ({counted(one.patients, 'patient')})" for one in trainings[: len(options.shares)])
    )
    if options.restart:
        _set_aside(name, trainings)
    train_prepared(_announced(shared, name, trainings), name, options.training)
    patients = {case.id: case.patient for case in shared.dataset.cases}
    found = learning_curve(
        name, configuration.network.name, length, [_result(name, one) for one in trainings],
        list(shared.plan.labels.scored), patients, patients_known=shared.dataset.patients_known,
    )  # fmt: skip
    save(workspace.learning_curve, found)
    LOG.info(describe(found))
    return found


def _announced(shared: Folds, name: str, trainings: Sequence[_Training]) -> Iterator[tuple[Folds, Split]]:
    """What is to be trained, each announced when it is its turn; before the first, cases are preprocessed."""
    shared.preprocess(name)
    for one in trainings:
        LOG.info(f"{one.share:g} % of the patients of fold {one.split.fold}: {counted(one.patients, 'patient')}")
        yield one.folds, one.split


def _set_aside(name: str, trainings: Sequence[_Training]) -> None:
    """Rename the folders of these trainings, so that all of them begin from scratch, also if they are interrupted."""
    for one in trainings:
        folder = one.folds.folder(name, one.split.fold)
        if folder.exists():
            folder.rename(folder.with_name(aside_name(folder)))


def _trainings(shared: Folds, name: str, split: Split, options: LearningCurveOptions) -> list[_Training]:
    """The trainings of a fold, the smallest share first.

    Raises:
        StateError: two shares hold the same patients, or one was trained in another way.
    """
    patients = {case.id: case.patient for case in shared.dataset.cases}
    volumes = label_volumes(shared.dataset, load(Fingerprint, shared.workspace.fingerprint))
    shares = sorted(set(options.shares))
    cases = nested_shares(split.train, patients, volumes, shares, seed=shared.splits.seed)
    found: list[_Training] = []
    for share in shares:
        number = len({patients[case] for case in cases[share]})
        if found and found[-1].patients == number:
            raise StateError(
                f"{found[-1].share:g} % and {share:g} % of the patients of fold {split.fold} are the same "
                f"{counted(number, 'patient')}",
                remedy="name shares that are further apart: --shares 25,50,100",
            )
        part = Split(split.fold, cases[share], split.validation)
        of_share = shared.workspace.of_share(f"{share:g}")
        if share == 100 and not options.restart and _same_as_fold(shared, name, split, of_share):
            of_share = shared.workspace
        folds = replace(shared, workspace=of_share, splits=Splits(1, shared.splits.seed, (part,), (), ()))
        if not options.restart:
            _require_same(folds, name, part, share)
        found.append(_Training(share, folds, part, number))
    return found


def _same_as_fold(shared: Folds, name: str, split: Split, of_share: Workspace) -> bool:
    """Whether the fold itself is the training on all patients: finished, in the same way, its cases segmented."""
    from autoseg.models.begun import read_begun, standing

    network = shared.plan.configurations[name].network.name
    begun = None if of_share.fold(name, network, split.fold).exists() else read_begun(shared.folder(name, split.fold))
    if begun is None or not begun.finished or shared.unpredicted(name, split):
        return False
    found = standing(begun, shared.plan, name, split, shared.workspace)
    if found.refused or found.options:
        return False
    LOG.info(f"100 %: fold {split.fold} is trained in the same way and is taken ({begun.folder})")
    return True


def _require_same(folds: Folds, name: str, split: Split, share: float) -> None:
    """Raise StateError where a share was trained in another way than it would be now."""
    from autoseg.models.begun import read_begun, standing

    begun = read_begun(folds.folder(name, split.fold))
    if begun is None:
        return
    found = standing(begun, folds.plan, name, split, folds.workspace)
    why = found.refused or (f"it was trained with {' '.join(found.options)}" if found.options else "")
    if why:
        again = suggest("learning-curve", "--restart", workspace=folds.workspace.root)
        raise StateError(
            f"{share:g} % of fold {split.fold} ({begun.folder}): {why}",
            remedy=f"use the same options as then, or retrain all shares: {again}",
        )


def _result(name: str, one: _Training) -> "ShareResult":
    """Dice of the held-out cases after one training, of the labels that each of them holds."""
    from autoseg.evaluation.crossval import validation_jobs
    from autoseg.evaluation.evaluate import score_cases
    from autoseg.evaluation.learning_curve import ShareResult
    from autoseg.models.begun import read_begun

    folder = one.folds.folder(name, one.split.fold)
    jobs = validation_jobs(folder / "validation", one.folds.cases(one.split), one.folds.plan.labels)
    dice = {
        score.case: {
            label: float(value)
            for label, metrics in score.scores.items()
            if metrics["recall"] is not None and (value := metrics["dice"]) is not None
        }
        for score in score_cases([replace(job, surfaces=False) for job in jobs])
    }
    begun = read_begun(folder)
    where = folder.relative_to(one.folds.workspace.root).as_posix()
    fold = one.split.fold
    assert begun is not None
    assert fold != FULL
    return ShareResult(one.share, fold, one.patients, len(one.split.train), begun.step, where, dice)


def _length(training: Training) -> str:
    """How long every training is, in words."""
    if training.time_budget_seconds is not None:
        return f"{duration(training.time_budget_seconds)} (validation included)"
    return counted(training.total_steps or 0, "step")


def _typed(shares: Sequence[float]) -> str:
    return ",".join(f"{share:g}" for share in shares)
