"""Folder -> checked cases -> fingerprint -> plan -> splits -> preprocessed cases."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from autoseg.commands.check import describe_dataset, understood
from autoseg.commands.replan import (
    Replanning,
    folds_after,
    options_again,
    require_own_folder,
    require_related,
    with_kept_prompts,
    with_kept_statistics,
)  # fmt: skip
from autoseg.commands.status import next_command
from autoseg.datasets.checks.duplicates import as_one_patient
from autoseg.datasets.checks.problems import check, problem_table, without_bad_cases
from autoseg.datasets.dataset import Dataset, IntakeOptions, discover
from autoseg.datasets.fixing.copying import refuse_unfinished
from autoseg.datasets.group_folds import folds_by_group
from autoseg.datasets.splits import Splits, make_splits, splits_from_nnunet
from autoseg.errors import DataError, UsageError
from autoseg.lines import LOG, rewritten
from autoseg.messages import complete, counted, suggest
from autoseg.nn.devices import gpu_memory_gb
from autoseg.planning.fingerprint import Fingerprint, measure_case, samples_per_case, summarise
from autoseg.planning.foreign_grids import training_grids
from autoseg.planning.overview import overview
from autoseg.planning.pace import REFERENCE, Pace, pace
from autoseg.planning.plan import Plan
from autoseg.planning.plan_fields import Seconds
from autoseg.planning.planner import Wishes, describe, make_plan
from autoseg.planning.table import summary
from autoseg.preprocessing.preprocess import preprocess
from autoseg.preprocessing.sources import measure
from autoseg.records import load, save
from autoseg.rules import MAX_GIGABYTES, MAX_WORKERS, FieldError, above, at_least, check_fields
from autoseg.workspace import Workspace, lock

FOLDS = 5
Gigabytes = Annotated[float, above(0, MAX_GIGABYTES)]
Workers = Annotated[int, at_least(0, MAX_WORKERS)]
MAX_CPU_RATE = 1e6


@dataclass(frozen=True)
class PlanOptions:
    """The options of `autoseg plan` and of `autoseg.plan_dataset`, and their defaults."""

    intake: IntakeOptions = field(default_factory=IntakeOptions)
    rules: Literal["autoseg", "nnunet"] = "autoseg"
    preset: Literal["s", "m", "l", "xl"] | None = None
    network: str | None = None  # None: the preset's
    vram_gb: Gigabytes | None = None  # plan for a GPU of this memory; None: for the machine at hand
    time_budget_seconds: Seconds | None = None  # wall time of a fold; None: the recipe's epochs, sized for an hour
    # of a CPU: measured here, that of the reference machine (the same plans on every machine), or a multiple of it
    cpu_rate: Literal["measured", "reference"] | float = "measured"
    explain: bool = False  # show every decision
    configurations: tuple[str, ...] = ()  # to preprocess; empty: the recommended one
    skip_bad: bool = False
    settings: tuple[str, ...] = ()  # key=value, applied to the finished plan
    workers: Workers | None = None
    group: str | None = None  # a column of the table of patients: each fold leaves one of its values out
    seed: int = 1234
    preprocess: bool = True

    def __post_init__(self) -> None:
        check_fields(self)
        if not isinstance(self.cpu_rate, str) and not 0 < self.cpu_rate <= MAX_CPU_RATE:
            raise FieldError(f"cpu_rate: expected more than 0, at most {MAX_CPU_RATE:g}, found {self.cpu_rate}")


def plan_dataset(root: Path, workspace: Workspace, options: PlanOptions = PlanOptions()) -> Plan:
    """Read a dataset once, decide everything, and preprocess it.

    Raises:
        DataError: the dataset has faults (they are shown together), unless `skip_bad` leaves the bad cases out.
        UsageError: an option does not fit the dataset or the plan, or the workspace is a folder of data.
    """
    require_own_folder(workspace, Path(root))

    # problems and notes do not know the workspace
    completed = rewritten(lambda text: complete(text, workspace.root))
    with lock(workspace.root / ".plan.lock", f"planning in {workspace.root}"), completed:
        return _plan_and_keep(root, workspace, options)


def _plan_and_keep(root: Path, workspace: Workspace, options: PlanOptions) -> Plan:
    """Examine, decide, store and show all of it; see `plan_dataset`."""
    replanning = Replanning(workspace)
    dataset, fingerprint = _examine(root, options)
    require_related(workspace, dataset)
    plan = with_kept_prompts(with_kept_statistics(_decide(dataset, fingerprint, options), workspace), workspace)
    budget = options.time_budget_seconds
    length = () if budget is None else (f"training.time_budget_seconds={budget:g}",)
    plan = plan.with_settings((*length, *options.settings))
    for name in options.configurations:
        plan.configuration(name)  # refused before anything is stored
    splits = _split(dataset, fingerprint, workspace, options)
    save(workspace.sources, measure(dataset, _as_typed(options), workers=options.workers))
    save(workspace.dataset, dataset)
    save(workspace.fingerprint, fingerprint)
    for path, record in ((workspace.splits, splits), (workspace.plan, plan)):
        replanning.keep(path)
        save(path, record)
    if options.explain:
        LOG.info("\n".join([describe(plan), "", summary(plan), "", *(f"note: {note}" for note in splits.notes)]))
    else:
        LOG.info(_at_a_glance(dataset, plan, splits, workspace))
    for note in replanning.kept():
        LOG.info(note)
    if options.preprocess:
        names = options.configurations or (plan.recommended,)
        stores = [preprocess(dataset, plan, name, workspace, workers=options.workers) for name in names]
        folder = stores[0].folder if len(stores) == 1 else workspace.root / "preprocessed"
        LOG.info(f"{', '.join(names)}: {counted(len(dataset.cases), 'preprocessed case')} in {folder}")
    for line in folds_after(workspace, dataset, plan, splits):
        LOG.info(line)
    begun = bool(workspace.models())  # folds that `train` may refuse without the options they were begun with
    LOG.info(f"next: {next_command(workspace) if begun else suggest('train', workspace=workspace.root)}")
    return plan


def _decide(dataset: Dataset, fingerprint: Fingerprint, options: PlanOptions) -> Plan:
    """The plan for the machine that was asked for, or for the one at hand."""
    vram_gb = options.vram_gb
    if vram_gb is None and options.preset is None:
        vram_gb = gpu_memory_gb()
    plan = make_plan(
        dataset=dataset.name,
        channels=dataset.channels,
        labels=dataset.labels,
        fingerprint=fingerprint,
        wishes=Wishes(
            rules=options.rules,
            preset=options.preset,
            network=options.network,
            device="cpu" if vram_gb is None else "gpu",
            vram_gb=vram_gb,
        ),
        pace=_pace(options) if vram_gb is None and options.preset in (None, "s") else None,
    )
    return replace(plan, file_names=dataset.file_names, grids=training_grids(fingerprint))


def _at_a_glance(dataset: Dataset, plan: Plan, splits: Splits, workspace: Workspace) -> str:
    """What a person should see of a plan."""
    sizes = [len(split.validation) for split in splits.splits]
    patients = len({case.patient for case in dataset.cases})
    held = f"{min(sizes)} to {max(sizes)}" if min(sizes) < max(sizes) else str(sizes[0])
    by = f"leave one {splits.group} out" if splits.group else "by patient"
    return overview(
        plan,
        understood(dataset),
        [*dataset.notes, *splits.notes],
        folds=f"{len(sizes)} {by} ({patients}), each holds {held} case{'s' * (held != '1')} out",
        last=[
            f"all {len(plan.decisions)} decisions, with their reasons: in {workspace.plan}; --explain prints them",
        ],
    )


def _pace(options: PlanOptions) -> Pace:
    """How fast the CPU planned for trains; measured where that was not done before."""
    seconds = options.time_budget_seconds
    if options.cpu_rate == "reference":
        return pace(None, seconds)
    if options.cpu_rate != "measured":
        times = options.cpu_rate
        rates = {dims: rate * times for dims, rate in REFERENCE.items()}
        return pace(rates, seconds, f"given: {times:g} times the reference machine's")
    from autoseg.nn.rate import known_rate

    rate = known_rate()
    return pace(rate.by_dims, seconds, rate.describe())


def _as_typed(options: PlanOptions) -> tuple[str, ...]:
    """The options as they are typed, but for those that only say how the work is done."""
    return options_again(
        options.intake,
        (
            ("--rules", options.rules if options.rules != "autoseg" else None), ("--preset", options.preset),
            ("--network", options.network), ("--vram", options.vram_gb), ("--skip-bad", options.skip_bad),
            ("--group", options.group),
            ("--time-budget", options.time_budget_seconds),
            ("--cpu-rate", options.cpu_rate if options.cpu_rate != "measured" else None),
            ("--configurations", ",".join(options.configurations) or None), ("--set", options.settings),
        ),
    )  # fmt: skip


def _examine(root: Path, options: PlanOptions) -> tuple[Dataset, Fingerprint]:
    """Check and measure a dataset, reading every file once."""
    refuse_unfinished(root)
    dataset, problems = discover(root, options.intake)
    measure = partial(measure_case, labels=dataset.labels, samples=samples_per_case(len(dataset.cases)))
    problems, measured = check(dataset, measure, known=problems, workers=options.workers)
    dataset = as_one_patient(dataset, problems)
    errors = [p for p in problems if p.severity == "error"]
    if errors or options.explain:  # otherwise the plan begins with it
        LOG.info(describe_dataset(dataset))
    if problems:
        LOG.info(problem_table(problems))
    if errors and not options.skip_bad:
        lasting = any(problem.stays for problem in errors)  # leaving cases out would be refused
        raise DataError(
            f"{root} has {counted(len(errors), 'error')} (listed above)",
            remedy="fix them" if lasting else "fix them, or leave the faulty cases out with --skip-bad",
        )
    known = len(dataset.notes)
    dataset = without_bad_cases(dataset, problems)
    for note in dataset.notes[known:] if options.explain else ():
        LOG.info(f"note: {note}")
    kept = {case.id: measured[case.id] for case in dataset.cases}
    fingerprint = summarise(kept, channels=dataset.channels, labels=dataset.labels)
    return dataset, replace(fingerprint, objects=dataset.objects)


def _split(dataset: Dataset, fingerprint: Fingerprint, workspace: Workspace, options: PlanOptions) -> Splits:
    """The folds: those the dataset brings along, otherwise ours; cases known from before keep their fold.

    Folds that left one group out do so again, also without `--group`: new cases join their group.
    """
    patients = {case.id: case.patient for case in dataset.cases}
    if dataset.splits is not None:
        if options.group is not None:
            raise UsageError(
                f"--group {options.group}: the dataset brings its own folds along",
                remedy="remove splits_final.json, or the columns fold and split, to make others",
            )
        folds = [{"train": s.train, "val": s.validation} for s in dataset.splits]
        return splits_from_nnunet(folds, patients, file="the dataset")
    existing = load(Splits, workspace.splits) if workspace.splits.exists() else None
    if group := options.group or (existing.group if existing else None):
        return folds_by_group(dataset.columns, group, patients, seed=options.seed, existing=existing)
    volumes = label_volumes(dataset, fingerprint)
    return make_splits(patients, volumes, folds=FOLDS, seed=options.seed, existing=existing)


def label_volumes(dataset: Dataset, fingerprint: Fingerprint) -> dict[str, list[float]]:
    """Case -> mm3 of each label: what folds and shares of patients are balanced by."""
    return {
        case.id: [case.class_voxels.get(name, 0) * _voxel_mm3(case.spacing) for name in dataset.labels.values]
        for case in fingerprint.cases
    }


def _voxel_mm3(spacing: Sequence[float]) -> float:
    z, y, x = spacing
    return z * y * x
