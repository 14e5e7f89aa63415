"""What the sections of a report say: their tables, lists and sentences, as plain data for the template.

A section never fails for want of a record: it says what is missing, with the command that makes it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from autoseg.messages import counted, duration, some
from autoseg.planning.request import text
from autoseg.report.data_figures import Figure, constant, data_figures, presence
from autoseg.report.gathered import Gathered, GatheredFold
from autoseg.report.numbers import Outlier, grouped, outliers, quartiles, size_unit
from autoseg.report.svg import plain
from autoseg.report.training_figures import events_of, mean_of, training_figures
from autoseg.training.diagnosis import Finding, diagnose
from autoseg.workspace import FULL

MOST_OUTLIERS = 12
KEY_STEPS = ("1.1", "2.1", "3.3", "3.4", "3.5", "4.1", "5.1", "5.2", "5.7")


@dataclass(frozen=True)
class Table:
    """Rows of text; the first column names the row."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""


@dataclass(frozen=True)
class Gap:
    """What is not there yet, and the command that makes it."""

    what: str
    command: str


@dataclass(frozen=True)
class Section:
    """Content of one section, in the order in which it is shown."""

    facts: tuple[tuple[str, str], ...] = ()
    tables: tuple[Table, ...] = ()
    figures: tuple[Figure, ...] = ()
    notes: tuple[str, ...] = ()  # warnings
    sentences: tuple[str, ...] = ()
    gaps: tuple[Gap, ...] = ()
    folded: tuple[tuple[str, Table], ...] = ()  # title and table of what is shown on request
    more: dict[str, Any] = field(default_factory=dict)


# Data


def data_section(of: Gathered) -> Section:
    """The data: facts, charts, labels, outliers, folds and warnings."""
    plan_again = Gap("the data were not measured", of.command("plan", of.dataset.root if of.dataset else "DATASET"))
    notes = [
        *(of.dataset.notes if of.dataset else ()),
        *(of.fingerprint.notes if of.fingerprint else ()),
        *(of.splits.notes if of.splits else ()),
    ]
    if of.fingerprint is None:
        return Section(facts=_facts(of), notes=tuple(notes), gaps=(plan_again,))
    found = outliers(of.fingerprint)
    tables = [_labels(of)]
    if of.splits:
        tables.append(_folds(of))
    if found:
        tables.append(_groups(found))
    folded = [("Every outlier", _outliers(found))] if found else []
    return Section(
        facts=_facts(of),
        tables=tuple(tables),
        figures=tuple(data_figures(of.fingerprint)),
        notes=tuple(dict.fromkeys(notes)),
        sentences=tuple(_alike(of)),
        folded=tuple(folded),
        more={"outliers": grouped(found)},
    )


def _facts(of: Gathered) -> tuple[tuple[str, str], ...]:
    found = [("data set", of.plan.dataset)]
    if of.dataset is not None:
        patients = len({case.patient for case in of.dataset.cases})
        known = "" if of.dataset.patients_known else " (none are named: each case counts as one)"
        found += [
            ("cases", counted(len(of.dataset.cases), "case") + f", {counted(patients, 'patient')}{known}"),
            ("test cases", str(len(of.dataset.test_cases)) if of.dataset.test_cases else "none"),
            ("layout", of.dataset.layout),
            ("folder", of.dataset.root),
        ]
    found.append(("channels", ", ".join(of.plan.channels)))
    values = of.plan.labels.values
    found.append(("labels", ", ".join(f"{name} = {value}" for name, value in values.items())))
    if of.plan.labels.regions:
        found.append(("regions", ", ".join(of.plan.labels.regions)))
    if of.plan.labels.ignore is not None:
        found.append(("ignored value", str(of.plan.labels.ignore)))
    return tuple(found)


def _alike(of: Gathered) -> list[str]:
    """What is the same in all cases and so has no chart."""
    assert of.fingerprint is not None
    cases = of.fingerprint.cases
    found = []
    if constant({str(axis): [case.spacing[axis] for case in cases] for axis in range(3)}):
        found.append(f"Every case has voxels of {text(cases[0].spacing)} mm (z × y × x).")
    if constant({str(axis): [case.shape[axis] for case in cases] for axis in range(3)}):
        found.append(f"Every image has {text(cases[0].shape)} voxels (z × y × x).")
    return found


def _labels(of: Gathered) -> Table:
    assert of.fingerprint is not None
    unit, scale = size_unit(of.fingerprint.cases)
    counts, total = presence(of.fingerprint), len(of.fingerprint.cases)
    rows = []
    for label in of.fingerprint.labels:
        sizes = [
            voxels * math.prod(case.spacing) * scale
            for case in of.fingerprint.cases
            if (voxels := case.class_voxels.get(label, 0)) > 0
        ]
        pieces = [case.components[label].count for case in of.fingerprint.cases if label in case.components]
        if not sizes:
            rows.append((label, f"0 of {total}", "-", "-", "-"))
            continue
        low, median, high = quartiles(sizes)
        shown = (f"{median:.3g} ({low:.3g} to {high:.3g})", f"{min(sizes):.3g} to {max(sizes):.3g}")
        rows.append((label, f"{counts[label]} of {total}", *shown, f"{np.median(pieces):.0f} ({max(pieces)})"))
    header = ("label", "cases", f"median size, {unit} (quartiles)", "range", "components: median (most)")
    return Table(header, tuple(rows), "Labels")


def _folds(of: Gathered) -> Table:
    assert of.splits is not None
    rows = []
    for split in of.splits.splits:
        patients = len({of.patients.get(case, case) for case in split.validation})
        shared = {of.patients.get(c, c) for c in split.train} & {of.patients.get(c, c) for c in split.validation}
        rows.append(
            (f"fold {split.fold}", str(len(split.train)), str(len(split.validation)), str(patients), str(len(shared)))
        )
    header = ("fold", "cases trained on", "cases held out", "patients held out", "patients on both sides")
    return Table(header, tuple(rows), "Folds")


def _groups(found: Sequence[Outlier]) -> Table:
    """Outliers by measurement: how many, how far, which."""
    rows = []
    for group in grouped(found)[:MOST_OUTLIERS]:
        low, high = group.values
        values = (
            _amount(low, group.cases[0].unit)
            if low == high
            else f"{plain(low)} to {_amount(high, group.cases[0].unit)}"
        )
        median = _amount(group.cases[0].median, group.cases[0].unit)
        names = some([one.case for one in group.cases], 3)
        rows.append((group.what, "above" if group.above else "below", str(len(group.cases)), values, median, names))
    cases = len({one.case for one in found})
    title = f"Outliers: {counted(cases, 'case')} unlike the others (modified z-score above 3.5)"
    return Table(
        ("measurement", "side", "cases", "their values", "median of all", "the most unlike"), tuple(rows), title
    )


def _amount(value: float, unit: str) -> str:
    return f"{plain(value)} {unit}".strip()


def _outliers(found: Sequence[Outlier]) -> Table:
    rows = [
        (one.case, one.what, _amount(one.value, one.unit), _amount(one.median, one.unit),
         f"{one.score:+.1f}")
        for one in found
    ]  # fmt: skip
    return Table(("case", "measurement", "value", "median", "z-score"), tuple(rows))


# Plan


def plan_section(of: Gathered) -> Section:
    """The plan: configurations with their memory, the network, and every decision with its reason."""
    plan = of.plan
    rows = []
    for name, one in plan.configurations.items():
        cost = one.cost
        memory = ("?",) * 5
        if cost is not None:
            memory = (
                f"{cost.parameters / 1e6:.3g} M", _gigabytes(cost.train_bytes), _gigabytes(cost.predict_bytes),
                _gigabytes(cost.host_bytes), _gigabytes(cost.disk_bytes),
            )  # fmt: skip
        mark = " (recommended)" if name == plan.recommended else ""
        rows.append(
            (name + mark, text(one.spacing), text(one.patch_size), str(one.batch_size), one.network.name, *memory)
        )
    header = (
        "configuration", "spacing, mm", "patch, voxels", "batch", "network", "parameters",
        "training" if plan.device == "cpu" else "training, GPU", "prediction", "main memory", "disk",
    )  # fmt: skip
    budget = f", planned for {plan.vram_gb:g} GB" if plan.vram_gb else ""
    tables = [
        Table(header, tuple(rows), f"Configurations and their predicted memory on a {plan.device.upper()}{budget}")
    ]
    if of.configuration in plan.configurations:
        tables.append(_stages(of))
    key = [d for d in plan.decisions if d.step.split()[0] in KEY_STEPS and _concerns(d.step, of.configuration)]
    tables.append(_decisions(key, "Decisions to review"))
    every = _decisions(plan.decisions, "")
    return Section(
        tables=tuple(tables),
        folded=((f"All {len(plan.decisions)} decisions, with their reasons", every),),
    )


def _concerns(step: str, configuration: str) -> bool:
    """Whether a decision is about all configurations, or about this one."""
    return "(" not in step or f"({configuration})" in step or not step[0].isdigit() or step.startswith("2.1")


def _decisions(decisions: Sequence[Any], title: str) -> Table:
    return Table(("rule", "decided", "because"), tuple((d.step, d.value, d.reason) for d in decisions), title)


def _stages(of: Gathered) -> Table:
    configuration = of.plan.configurations[of.configuration]
    network = configuration.network
    extent = list(configuration.patch_size)
    rows = []
    for stage, (features, stride, kernel, blocks) in enumerate(
        zip(network.features, network.strides, network.kernel_sizes, network.blocks, strict=True)
    ):
        extent = [edge // step for edge, step in zip(extent, stride, strict=True)]
        rows.append((str(stage), text(extent), str(features), text(stride), text(kernel), str(blocks)))
    title = f"Stages of the encoder of {of.configuration}, {network.name}"
    return Table(("stage", "feature map", "features", "stride", "kernel", "blocks"), tuple(rows), title)


def _gigabytes(nbytes: int) -> str:
    return f"{nbytes / 1e9:.3g} GB" if nbytes >= 1e8 else f"{nbytes / 1e6:.3g} MB"


# Training


def training_section(of: Gathered) -> Section:
    """The training: a row per fold with its verdict, curves, and what happened when."""
    names = list(of.plan.labels.scored)
    gaps = []
    begun = {fold.fold for fold in of.folds}
    missing = [split.fold for split in of.splits.splits if split.fold not in begun] if of.splits else []
    unfinished = [fold for fold in of.folds if not fold.finished and not fold.live]
    if missing:
        what = f"{counted(len(missing), 'fold')} not trained: {', '.join(map(str, missing))}"
        gaps.append(Gap(what, of.command("train", "-f", ",".join(map(str, missing)))))
    for fold in unfinished:
        gaps.append(Gap(f"fold {fold.fold} is not trained to the end", of.command("train", "-f", fold.fold)))
    known = [fold for fold in of.folds if fold.history]
    if not known:
        return Section(gaps=tuple(gaps))
    findings = {fold.fold: diagnose(fold.history, names) for fold in known}
    rows = [_fold_row(of, fold, findings[fold.fold]) for fold in known]
    header = ("fold", "state", "epochs", "steps", "time", "validation Dice", "training − validation", "verdict")
    events = sorted((event for fold in known for event in events_of(fold, names)), key=lambda e: (str(e.fold), e.epoch))
    log = Table(
        ("fold", "epoch", "done", "what"),
        tuple((f"fold {e.fold}", str(e.epoch), f"{e.progress:.0%}", e.what) for e in events),
    )
    notes = [
        f"fold {fold}: {finding.what}. Try: {finding.remedy}" for fold, all_ in findings.items() for finding in all_
    ]
    return Section(
        tables=(Table(header, tuple(rows), "Folds"),),
        figures=tuple(training_figures(known, names)),
        notes=tuple(notes),
        sentences=(overfitting(known, findings),),
        gaps=tuple(gaps),
        folded=(("Events", log),) if events else (),
    )


def _fold_row(of: Gathered, fold: GatheredFold, findings: Sequence[Finding]) -> tuple[str, ...]:
    last = fold.history[-1]
    gap = gap_of(fold)
    held_out = next((len(s.validation) for s in of.splits.splits if s.fold == fold.fold), 0) if of.splits else 0
    state = f"{last.progress:.0%}, training now" if fold.live else f"stopped at {last.progress:.0%}"
    if fold.finished:
        state = "trained" if fold.fold == FULL or fold.segmented >= held_out else "trained, not validated"
    verdict = ", ".join(dict.fromkeys(one.kind for one in findings)) or "sound"
    return (
        f"fold {fold.fold}", state, str(last.epoch), str(last.step), duration(last.seconds),
        "-" if last.mean_dice is None else f"{last.mean_dice:.3f}", "-" if gap is None else f"{gap:+.3f}", verdict,
    )  # fmt: skip


def gap_of(fold: GatheredFold) -> float | None:
    """How much better the last epoch is on training patches than on validation patches, in mean Dice."""
    last = fold.history[-1]
    training, validation = mean_of(last.training_dice), last.mean_dice
    return None if training is None or validation is None else training - validation


def overfitting(folds: Sequence[GatheredFold], findings: dict[Any, list[Finding]]) -> str:
    """Whether folds overfit, in one sentence or two."""
    overfit = [fold for fold, found in findings.items() if any(one.kind == "overfit" for one in found)]
    gaps = [gap for fold in folds if (gap := gap_of(fold)) is not None]
    seen = f"Training patches score {min(gaps):+.3f} to {max(gaps):+.3f} against validation patches" if gaps else ""
    if len(gaps) == 1:
        seen = f"Training patches score {gaps[0]:+.3f} against validation patches"
    if overfit:
        return f"Overfitting: fold {', '.join(map(str, overfit))}. {seen}; details are below."
    if not gaps:
        return "No case is held out, so overfitting cannot be judged."
    return f"No sign of overfitting. {seen}; sound trainings have 0.01 to 0.1."
