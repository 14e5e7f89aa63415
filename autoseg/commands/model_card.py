"""The card of a model that is handed on: what it is, how good it was measured to be, where that ends. Markdown.

It is made of the records alone, in words for somebody who was not there. What no record holds (who made the images,
what the model may be used for) is named as missing, so that a person adds it.
"""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from autoseg.evaluation.crossval import CrossValidation
from autoseg.evaluation.evaluate import mean_over_labels
from autoseg.evaluation.intervals import interval_of_mean
from autoseg.messages import counted
from autoseg.models.agreements import Agreement
from autoseg.models.exporting import FoldToExport, ModelToExport
from autoseg.planning.fingerprint import Fingerprint
from autoseg.planning.foreign_grids import FAR, WORTH_A_WORD
from autoseg.planning.plan import Plan
from autoseg.workspace import FULL

FILE = "MODEL.zip"
WORST = 0.05  # share of the cases that a line about the worst describes


@dataclass(frozen=True)
class Described:
    """What a card is made of."""

    models: Sequence[ModelToExport]  # the first is the one described, previous stages among them
    fingerprint: Fingerprint | None  # None: the training data are not known
    scores: Mapping[str, CrossValidation]  # model -> its cross-validation, where there is one
    patients: Mapping[str, str]  # case, as `scores` calls it -> patient; empty: not known
    left_out: Sequence[str]
    agreements: Sequence[Agreement] = ()


def model_card(of: Described) -> str:
    """The card, in Markdown."""
    plan = of.models[0].folds[0].plan
    parts = [
        f"# {plan.dataset}: a segmentation model",
        _what(plan),
        "## Trained on\n\n" + _trained_on(of, plan),
        "## How good it is\n\n" + "\n\n".join(_quality(of, model) for model in of.models),
        "## Limits\n\n" + _limits(of, plan),
        f"## Use\n\n```\n{_typed('info', FILE)}\n{_typed('predict', '-m', FILE, '-i', 'IMAGES', '-o', 'OUT')}\n```",
        "## How it was made\n\n" + "\n".join(f"- {line}" for model in of.models for line in _made(model)),
    ]
    if of.agreements:
        parts.append("## What agrees\n\n" + _agreements(of.agreements))
    if of.left_out:
        parts.append(f"## Not in this file\n\n{_sentence(of.left_out)} left out: they could identify somebody.")
    return "\n\n".join(parts) + "\n"


def _what(plan: Plan) -> str:
    values = ", ".join(f"**{name}** ({value})" for name, value in plan.labels.values.items())
    regions = ""
    if plan.labels.has_regions:
        regions = f" It predicts these regions, which may overlap: {', '.join(plan.labels.regions)}."
    images = "each made of these channels, in this order" if len(plan.channels) > 1 else "of one channel"
    return (
        f"It segments {values} in images {images}: {', '.join(plan.channels)}. Numbers in brackets are the values in "
        f"the label files it writes.{regions}"
    )


def _trained_on(of: Described, plan: Plan) -> str:
    if of.fingerprint is None:
        return "Not known: the model was imported without the cases it was trained on."
    cases = of.fingerprint.cases
    patients = len(set(of.patients.values()))
    people = f" of {counted(patients, 'patient')}" if patients else ""
    spacings, shapes = (np.array([getattr(case, key) for case in cases]) for key in ("spacing", "shape"))
    lines = [
        f"- {counted(len(cases), 'case')}{people}",
        f"- voxels (z, y, x): {_range(spacings, '{:.4g}')} mm",
        f"- images (z, y, x): {_range(shapes, '{:d}')} voxels",
    ]
    for name in plan.labels.values:
        present = [case.class_voxels.get(name, 0) for case in cases]
        pairs = zip(present, cases, strict=True)
        volumes = [voxels * float(np.prod(case.spacing)) / 1000 for voxels, case in pairs if voxels]
        much = f", {min(volumes):.3g} to {max(volumes):.3g} ml" if volumes else ""
        lines.append(f"- {name}: in {len(volumes)} of {counted(len(cases), 'case')}{much}")
    return "\n".join(lines)


def _quality(of: Described, model: ModelToExport) -> str:
    result = of.scores.get(model.name)
    if result is None:
        return f"{model.name}: not measured. No cross-validation was made before it was exported."
    count = len(result.cases)
    lines = [
        f"{model.name}: cross-validation of {counted(count, 'case')} in {counted(len(result.folds), 'fold')}"
        + (f" of {result.planned_folds}" if len(result.folds) < result.planned_folds else "")
        + ". Each case was segmented by a network that was not trained on it, or on another case of the same patient.",
        "",
        "| label | mean Dice | 95 % interval of the mean | worst 5 % of the cases | cases |",
        "|---|---|---|---|---|",
    ]
    for label in result.summary:
        known = [(one.case, dice) for one in result.cases if (dice := one.scores[label]["dice"]) is not None]
        if not known:
            lines.append(f"| {label} | - | - | - | 0 |")
            continue
        values = [dice for _, dice in known]
        found = interval_of_mean(values, [of.patients.get(case, case) for case, _ in known])
        ends = f"{found[0]:.3f} to {found[1]:.3f}" if found else "-"
        worst = float(np.quantile(values, WORST))
        lines.append(f"| {label} | {np.mean(values):.3f} | {ends} | below {worst:.3f} | {len(values)} |")
    mean = mean_over_labels(result.summary)
    lines += ["", "Dice is 1 where a segmentation equals the reference, and 0 where they share no voxel."]
    lines[-1] += f" Mean over the labels: {mean:.3f}." if mean is not None else ""
    return "\n".join(lines)


def _limits(of: Described, plan: Plan) -> str:
    lines = [
        "It was measured on the data it was trained with. Images of another scanner, protocol, population or disease "
        "may be segmented worse; measure it on images of your own before you rely on it.",
        f"Images whose voxels are more than {FAR:g} times larger or smaller than those it was trained on are refused, "
        f"and from a factor of {WORTH_A_WORD:g} along one axis there is a warning.",
        "It always gives an answer: a segmentation does not say whether the image shows what the model knows.",
    ]
    counts = {name: _cases_with(of, name) for name in plan.labels.values} if of.fingerprint else {}
    rare = [name for name, count in counts.items() if 0 < count < 10]
    absent = [name for name, count in counts.items() if not count]
    if rare:
        lines.append(f"Few cases show {', '.join(rare)}: what was measured of it says little.")
    if absent:
        lines.append(f"No case shows {', '.join(absent)}: the model cannot segment it.")
    if any(fold.fold == FULL for model in of.models for fold in model.folds):
        lines.append("One network was trained on all cases: nothing measures it.")
    if not of.patients:
        lines.append("Which cases are of one patient is not known: the scores may be too high.")
    lines.append(
        "It is not a medical device. The records do not say who made the images and references, nor under which "
        "licence: ask whoever gave you this file."
    )
    return "\n".join(f"- {line}" for line in lines)


def _made(model: ModelToExport) -> list[str]:
    configuration = model.configuration
    spacing = " × ".join(f"{edge:.4g}" for edge in configuration.spacing)
    patch = " × ".join(map(str, configuration.patch_size))
    parameters = sum(parameter.numel() for parameter in model.folds[0].network.parameters())
    stage = f", which refines the segmentation of {model.previous}" if model.previous else ""
    lines = [
        f"{model.name}: {configuration.network.name} of {parameters / 1e6:.3g} M parameters{stage}; voxels of "
        f"{spacing} mm, patches of {patch}",
        *(_fold(model, fold) for fold in model.folds),
    ]
    plugins = {(one["name"], one["sha256"]) for fold in model.folds for one in fold.plugins}
    lines += [f"{model.name} needs the plugin {name}, sha256 {digest}" for name, digest in sorted(plugins)]
    return lines


def _agreements(rows: Sequence[Agreement]) -> str:
    lines = [
        "The same was computed in two ways before it was exported:",
        "",
        "| what | measure | value | at most | on |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        limit = "-" if row.limit is None else f"{row.limit:g}" + ("" if row.holds else " (NOT KEPT)")
        lines.append(f"| {row.what} | {row.measure} | {row.shown} | {limit} | {row.on} |")
    return "\n".join(lines)


def _fold(model: ModelToExport, fold: FoldToExport) -> str:
    length = f"{counted(fold.epochs, 'epoch')}, {counted(fold.steps, 'step')}"
    cases = f"{counted(fold.cases, 'case')}, " if fold.cases else ""
    return f"{model.name}, fold {fold.fold}: {cases}{length}"


def _typed(*words: str) -> str:
    """A command as somebody else types it, who has neither this workspace nor its plugins."""
    return shlex.join(["autoseg", *words])


def _cases_with(of: Described, label: str) -> int:
    cases = of.fingerprint.cases if of.fingerprint else ()
    return sum(case.class_voxels.get(label, 0) > 0 for case in cases)


def _range(values: np.ndarray, form: str) -> str:
    """ "3 × 0.7 × 0.7 to 5 × 1 × 1", or one of them where they are equal."""
    ends = [" × ".join(form.format(one.item()) for one in end) for end in (values.min(axis=0), values.max(axis=0))]
    return ends[0] if ends[0] == ends[1] else " to ".join(ends)


def _sentence(parts: Sequence[str]) -> str:
    text = ", ".join(parts)
    return text[:1].upper() + text[1:] + (" were" if len(parts) > 1 or text.endswith("s") else " was")
