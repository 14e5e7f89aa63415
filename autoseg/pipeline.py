"""What a command chains, one function per command. The Python API of autoseg is these functions.

plan_dataset    folder -> checked cases -> fingerprint -> plan -> splits -> preprocessed cases
train_folds     folds -> their held-out predictions
cross_validate  held-out predictions -> scores of every case
score_test_set  the ensemble on held-out test cases, once
predict_images  images -> segmentations of the ensemble
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from autoseg.data.splits import Split, Splits, make_splits, splits_from_nnunet
from autoseg.dataset import Case, Dataset, IntakeOptions, discover, images_in, parse_options
from autoseg.errors import DataError, StateError, UsageError
from autoseg.fingerprint import Fingerprint, measure_case, samples_per_case, summarise
from autoseg.imaging.labels import LabelSet
from autoseg.plan import Plan
from autoseg.planner import describe, make_plan
from autoseg.preprocess import preprocess
from autoseg.problems import check, problem_table, without_bad_cases
from autoseg.records import load, override, save
from autoseg.workspace import Workspace, lock

if TYPE_CHECKING:  # planning must not wait for torch
    import torch

    from autoseg.crossval import CrossValidation, HeldOutScores
    from autoseg.train import FoldResult

FOLDS = 5
PLAN_FIRST = "make a plan first: autoseg plan DATASET"
Say = Callable[[str], None]


@dataclass(frozen=True)
class PlanOptions:
    """What `autoseg plan` can be told."""

    intake: IntakeOptions = field(default_factory=IntakeOptions)
    rules: Literal["autoseg", "nnunet"] = "autoseg"
    vram_gb: float | None = None  # plan for a GPU of this memory; None: for the machine at hand
    configurations: tuple[str, ...] = ()  # to preprocess; empty: the recommended one
    skip_bad: bool = False
    settings: tuple[str, ...] = ()  # key=value, applied to the finished plan
    workers: int | None = None
    seed: int = 1234
    preprocess: bool = True


@dataclass(frozen=True)
class TrainOptions:
    """What `autoseg train` can be told."""

    folds: tuple[int, ...] | None = None  # None: all
    configuration: str | None = None  # None: the recommended one
    epochs: int | None = None
    time_budget_seconds: float | None = None  # per fold, validation included
    device: str = "auto"
    restart: bool = False
    settings: tuple[str, ...] = ()


def check_dataset(root: Path, intake: IntakeOptions, *, workers: int | None = None, say: Say = print) -> int:
    """Say what was understood of a dataset and everything that is wrong with it; 3 if it cannot be planned, else 0."""
    dataset, problems = discover(root, intake)
    problems, _ = check(dataset, known=problems, workers=workers)
    say(describe_dataset(dataset))
    say(problem_table(problems))
    return DataError.exit_code if any(problem.severity == "error" for problem in problems) else 0


def plan_dataset(root: Path, workspace: Workspace, options: PlanOptions = PlanOptions(), say: Say = print) -> Plan:
    """Read a dataset once, decide everything, and preprocess it.

    Raises:
        DataError: the dataset has faults (they are shown together), unless `skip_bad` leaves the bad cases out.
        UsageError: an option does not fit the dataset or the plan.
    """
    with lock(workspace.root / ".plan.lock", f"planning in {workspace.root}"):
        dataset, fingerprint = _examine(root, options, say)
        vram_gb = options.vram_gb or gpu_memory_gb()
        plan = make_plan(
            dataset=dataset.name,
            channels=dataset.channels,
            labels=dataset.labels,
            fingerprint=fingerprint,
            rules=options.rules,
            device="cpu" if vram_gb is None else "gpu",
            vram_gb=vram_gb,
        )
        plan = override(plan, options.settings)
        splits = _split(dataset, fingerprint, workspace, options.seed)
        say(describe(plan))
        for note in splits.notes:
            say(f"note: {note}")
        save(workspace.dataset, dataset)
        save(workspace.fingerprint, fingerprint)
        save(workspace.splits, splits)
        save(workspace.plan, plan)
        if options.preprocess:
            for name in options.configurations or (plan.recommended,):
                store = preprocess(dataset, plan, name, workspace, workers=options.workers)
                say(f"{name}: {len(dataset.cases)} preprocessed cases in {store.folder}")
    return plan


def train_folds(workspace: Workspace, options: TrainOptions = TrainOptions(), say: Say = print) -> "list[FoldResult]":
    """Train folds one after the other, each followed by the prediction of its validation cases.

    A fold that is trained already is left alone; one that was interrupted goes on.
    """
    from autoseg.model import open_model
    from autoseg.predict import predict_cases
    from autoseg.train import train_fold

    dataset, plan, splits = _load(workspace)
    plan = _with_length(override(plan, options.settings), options)
    name, configuration = plan.configuration(options.configuration)
    device = choose_device(options.device)
    preprocess(dataset, plan, name, workspace)
    cases = {case.id: case for case in dataset.cases}
    results = []
    chosen = _chosen(splits, options.folds)
    if options.folds is not None and len(chosen) < len(options.folds):
        say(f"note: there are only {len(splits.splits)} folds, because there are too few patients for {FOLDS}")
    for split in chosen:
        result = train_fold(workspace, plan, name, split, device=device, restart=options.restart)
        results.append(result)
        folder = result.folder / "validation"
        missing = [cases[i] for i in split.validation if not _predicted(folder, cases[i])]
        if result.already_finished and not missing:
            say(f"fold {split.fold}  is trained and validated already ({result.folder}); --restart trains it anew")
            continue
        model = open_model(workspace, name, configuration.network.name, folds=[split.fold], device=device)
        predict_cases(model, missing, folder, title=f"fold {split.fold} validation")
        say(f"fold {split.fold}  {len(split.validation)} validation cases predicted into {folder}")
    return results


def cross_validate(
    workspace: Workspace,
    configuration: str | None = None,
    *,
    csv: Path | None = None,
    workers: int | None = None,
    say: Say = print,
) -> "CrossValidation":
    """Score the held-out predictions of every trained fold, show the tables and write crossval.json."""
    from autoseg.crossval import cross_validate_folds, describe, validation_jobs
    from autoseg.evaluate import write_csv

    dataset, plan, splits = _load(workspace)
    name, chosen = plan.configuration(configuration)
    cases = {case.id: case for case in dataset.cases}
    jobs = {}
    for split in splits.splits:
        folder = workspace.fold(name, chosen.network.name, split.fold)
        if (folder / "last.pt").exists():
            held_out = [cases[i] for i in split.validation]
            jobs[split.fold] = validation_jobs(folder / "validation", held_out, plan.labels)
    if not jobs:
        raise StateError(
            f"no fold of {name} is trained in {workspace.root}", remedy="train first: autoseg train -f 0..4"
        )
    result = cross_validate_folds(name, chosen.network.name, jobs, len(splits.splits), workers=workers)
    save(workspace.crossval, result)
    if csv:
        write_csv(csv, result.cases)
    say(describe(result, plan.labels))
    return result


def score_test_set(
    workspace: Workspace, configuration: str | None = None, *, device: str = "auto", say: Say = print
) -> "HeldOutScores":
    """Predict the dataset's held-out test cases with the ensemble of all folds, score them once, and keep the scores.

    A second call shows what the first one found: a test set that is looked at again and again is none.

    Raises:
        StateError: the dataset has no labelled test cases, or a fold is not trained.
    """
    from autoseg.crossval import HeldOutScores, score_test_cases
    from autoseg.evaluate import summarise, summary_table
    from autoseg.model import open_model
    from autoseg.predict import predict_cases

    dataset, plan, splits = _load(workspace)
    if workspace.test.exists():
        result = load(HeldOutScores, workspace.test)
        say(f"the test set was scored before, with {result.configuration} ({result.network}):")
    else:
        cases = [case for case in dataset.test_cases if case.label is not None]
        if not cases:
            raise StateError(
                f"{dataset.name} has no labelled test cases",
                remedy="give them as imagesTs and labelsTs, or with split=test in a table, and plan again",
            )
        name, chosen = plan.configuration(configuration)
        folds = [split.fold for split in splits.splits]
        model = open_model(workspace, name, chosen.network.name, folds=folds, device=choose_device(device))
        folder = workspace.model(name, chosen.network.name) / "test"
        predict_cases(model, cases, folder, title="test set")
        result = score_test_cases(name, chosen.network.name, folder, cases, model.plan.labels)
        save(workspace.test, result)
    say(summary_table(summarise(result.cases), f"{len(result.cases)} test cases"))
    return result


def predict_images(
    workspace: Workspace,
    images: Sequence[Path],
    out: Path,
    *,
    configuration: str | None = None,
    folds: tuple[int, ...] | None = None,
    device: str = "auto",
    step: float = 0.5,
    mirroring: bool | None = None,
    say: Say = print,
) -> list[Path]:
    """Segment images with the ensemble of the trained folds; one label file per case, on the image's own grid."""
    from autoseg.model import open_model
    from autoseg.predict import PredictOptions, predict_cases

    plan = load(Plan, workspace.plan, remedy=PLAN_FIRST)
    name, chosen = plan.configuration(configuration)
    cases = [
        Case(i, i, tuple(map(str, files)), None) for i, files in images_in(images, len(plan.channels), plan.channels)
    ]
    model = open_model(workspace, name, chosen.network.name, folds=folds, device=choose_device(device))
    written = predict_cases(model, cases, out, PredictOptions(step=step, mirroring=mirroring))
    say(f"{len(written)} segmentations in {out}, by {len(model.folds)} folds of {name} ({chosen.network.name})")
    return [prediction.path for prediction in written]


def evaluate_folders(
    predictions: Path,
    references: Path,
    workspace: Workspace,
    *,
    labels: str | None = None,
    csv: Path | None = None,
    workers: int | None = None,
    say: Say = print,
) -> float | None:
    """Compare two folders of label files, show the tables and return the mean Dice over labels."""
    from autoseg.evaluate import (
        confusion_table,
        labels_found,
        mean_over_labels,
        pair_folders,
        score_cases,
        summarise,
        summary_table,
        total_confusion,
        write_csv,
    )

    if labels is not None:
        label_set = LabelSet(parse_options(labels=labels).labels or {})
    elif workspace.plan.exists():
        label_set = load(Plan, workspace.plan).labels
    else:
        label_set = labels_found(references)
    scores = score_cases(pair_folders(predictions, references, label_set), workers=workers)
    summary = summarise(scores)
    say(summary_table(summary, f"{len(scores)} cases"))
    say("\n" + confusion_table(total_confusion(scores), ["background", *label_set.values]))
    if csv:
        write_csv(csv, scores)
    return mean_over_labels(summary)


def choose_device(name: str) -> "torch.device":
    """The device of that name; "auto" takes CUDA, then Apple's MPS, then the CPU.

    Raises:
        UsageError: there is no such device here.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(
            f"--device {name} cannot be used here: {str(error).splitlines()[0]}", remedy="use --device cpu, or auto"
        ) from None
    return device


def gpu_memory_gb() -> float | None:
    """Memory in GB of the first CUDA device, or None without one. torch is asked only where a driver is installed."""
    if shutil.which("nvidia-smi") is None:
        return None
    import torch

    return torch.cuda.get_device_properties(0).total_memory / 1e9 if torch.cuda.is_available() else None


def describe_dataset(dataset: Dataset) -> str:
    """What was understood of a dataset, in a few lines."""
    patients = len({case.patient for case in dataset.cases})
    lines = [
        f"{dataset.name}: {len(dataset.cases)} cases of {patients} patients, {len(dataset.test_cases)} test cases "
        f"({dataset.layout} layout)",
        f"channels: {', '.join(dataset.channels)}",
        "labels: " + ", ".join(f"{name}={value}" for name, value in dataset.labels.values.items()),
    ]
    if dataset.labels.has_regions:
        lines.append("regions: " + ", ".join(f"{n}={'+'.join(map(str, v))}" for n, v in dataset.labels.regions.items()))
    return "\n".join([*lines, *(f"note: {note}" for note in dataset.notes)])


def _examine(root: Path, options: PlanOptions, say: Say) -> tuple[Dataset, Fingerprint]:
    """Check and measure a dataset, reading every file once."""
    dataset, problems = discover(root, options.intake)
    measure = partial(measure_case, labels=dataset.labels, samples=samples_per_case(len(dataset.cases)))
    problems, measured = check(dataset, measure, known=problems, workers=options.workers)
    say(describe_dataset(dataset))
    if problems:
        say(problem_table(problems))
    errors = [p for p in problems if p.severity == "error"]
    if errors and not options.skip_bad:
        raise DataError(
            f"{root} has {len(errors)} errors (listed above)",
            remedy="repair them, or leave the faulty cases out with --skip-bad",
        )
    dataset = without_bad_cases(dataset, problems)
    kept = {case.id: measured[case.id] for case in dataset.cases}
    return dataset, summarise(kept, channels=dataset.channels, labels=dataset.labels)


def _split(dataset: Dataset, fingerprint: Fingerprint, workspace: Workspace, seed: int) -> Splits:
    """The folds: those the dataset brings along, otherwise ours; cases known from before keep their fold."""
    patients = {case.id: case.patient for case in dataset.cases}
    if dataset.splits is not None:
        return splits_from_nnunet([{"train": s.train, "val": s.validation} for s in dataset.splits], patients)
    existing = load(Splits, workspace.splits) if workspace.splits.exists() else None
    volumes = {
        case.id: [case.class_voxels.get(name, 0) * _voxel_mm3(case.spacing) for name in dataset.labels.values]
        for case in fingerprint.cases
    }
    return make_splits(patients, volumes, folds=FOLDS, seed=seed, existing=existing)


def _voxel_mm3(spacing: Sequence[float]) -> float:
    z, y, x = spacing
    return z * y * x


def _load(workspace: Workspace) -> tuple[Dataset, Plan, Splits]:
    return (
        load(Dataset, workspace.dataset, remedy=PLAN_FIRST),
        load(Plan, workspace.plan, remedy=PLAN_FIRST),
        load(Splits, workspace.splits, remedy=PLAN_FIRST),
    )


def _with_length(plan: Plan, options: TrainOptions) -> Plan:
    """The plan with the epochs or the time budget that was asked for; one excludes the other."""
    if options.epochs is not None:
        training = replace(plan.training, epochs=options.epochs, time_budget_seconds=None)
    elif options.time_budget_seconds is not None:
        training = replace(plan.training, epochs=None, time_budget_seconds=options.time_budget_seconds)
    else:
        return plan
    return replace(plan, training=training)


def _chosen(splits: Splits, folds: Sequence[int] | None) -> list[Split]:
    existing = {split.fold: split for split in splits.splits}
    wanted = list(existing) if folds is None else list(folds)
    missing = [fold for fold in wanted if fold not in existing]
    if missing and set(wanted) & set(existing) and len(existing) < FOLDS:
        return [existing[fold] for fold in wanted if fold in existing]  # fewer patients than folds: what exists
    if missing:
        raise UsageError(f"there is no fold {missing[0]}", remedy=f"the folds are {', '.join(map(str, existing))}")
    return [existing[fold] for fold in wanted]


def _predicted(folder: Path, case: Case) -> bool:
    from autoseg.predict import output_ending

    return (folder / f"{case.id}{output_ending(case)}").exists()
