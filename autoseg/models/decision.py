"""What was chosen on held-out cases for a model, with the reasons: `decision.json` in its folder.

`evaluate --choose` writes it, `predict` applies it, `export` carries it and `info` shows it. It names which models
predict, what is added to the logit of each label before the largest wins, and how components of the label map are
corrected. Everything that was tried is listed, with its figures, whether it was accepted or not.

A decision holds for the weights that it was chosen with. Where others predict, it is not applied.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

import numpy as np

from autoseg.errors import StateError
from autoseg.imaging.corrections import Correction
from autoseg.imaging.dense_crf import DenseCrf
from autoseg.imaging.labels import LabelSet
from autoseg.messages import counted
from autoseg.records import to_plain
from autoseg.rules import anything, at_least, between, entries, exactly

VERSION = 1
MOST = 50.0  # of an offset; beyond, a label is everywhere or nowhere
Text = Annotated[str, anything("any text")]
Number = Annotated[float, anything("any finite number")]
Count = Annotated[int, at_least(0, 10**12)]


@dataclass(frozen=True)
class ComponentRule:
    """How the components of one label or region are corrected."""

    keep_largest: bool = False
    min_volume: Annotated[float, at_least(0, 1e15)] = 0.0  # mm³, or voxels where images state no size
    fill_holes: bool = False

    def __str__(self) -> str:
        parts = ["only the largest component"] if self.keep_largest else []
        parts += [f"no component below {self.min_volume:.4g} mm³"] if self.min_volume else []
        parts += ["holes filled"] if self.fill_holes else []
        return ", ".join(parts) or "as it is"


@dataclass(frozen=True)
class Rule:
    """From logits to a label map."""

    offsets: dict[Text, Annotated[float, between(-MOST, MOST)]] = field(default_factory=dict)  # label -> added to logit
    components: dict[Text, ComponentRule] = field(default_factory=dict)  # label or region -> correction
    crf: DenseCrf | None = None  # how boundaries are refined, before components are corrected

    @property
    def is_plain(self) -> bool:
        """Whether the largest logit decides and nothing is corrected."""
        return not any(self.offsets.values()) and not self.components and self.crf is None

    def logit_offsets(self, heads: LabelSet) -> np.ndarray | None:
        """What is added to each logit, (K,) float32; None where nothing is."""
        if not any(self.offsets.values()):
            return None
        names = list(heads.regions) if heads.has_regions else ["", *heads.values]
        return np.array([self.offsets.get(name, 0.0) for name in names], dtype=np.float32)

    def corrections(self, labels: LabelSet, voxel_volume: float) -> list[Correction]:
        """What is done to the components of a label map whose voxels have this volume, in mm³."""
        return [
            correction_of(labels, name, rule, voxel_volume)
            for name, rule in self.components.items()
            if name in labels.scored
        ]

    def digest(self, of_models: str) -> str:
        """What identifies segmentations of models, given by their digest, that decide by this rule."""
        if self.is_plain:
            return of_models
        plain = {key: value for key, value in to_plain(self).items() if key != "crf" or value is not None}
        return hashlib.sha256(f"{of_models}\n{json.dumps(plain, sort_keys=True)}".encode()).hexdigest()

    def lines(self) -> list[str]:
        """In words, a line per label."""
        lines = [f"{name}: logit {offset:+g}" for name, offset in self.offsets.items() if offset]
        lines += [f"boundaries refined by a {self.crf}"] if self.crf else []
        return lines + [f"{name}: {rule}" for name, rule in self.components.items()]


PLAIN = Rule()


def correction_of(labels: LabelSet, name: str, rule: ComponentRule, voxel_volume: float) -> Correction:
    """A rule for one label or region, as class indices and voxels.

    Where a component of a region is removed, the region around it remains: the smallest that is written before.
    """
    indices = labels.scored[name]
    own, around = indices[0], 0
    if labels.has_regions:
        written = dict(zip(labels.regions, labels.region_indices, strict=True))
        own = written[name]
        for other, value in written.items():
            if other == name:
                break
            if set(labels.scored[other]) > set(indices):
                around = value
    return Correction(
        indices, own, around, rule.keep_largest, rule.min_volume / voxel_volume if rule.min_volume else 0.0,
        rule.fill_holes,
    )  # fmt: skip


@dataclass(frozen=True)
class Choice:
    """One thing that was tried on held-out cases."""

    what: Literal["model", "threshold", "recall", "components", "crf"]
    label: Text  # or region; empty: all
    candidate: Text  # in words
    accepted: bool
    reason: Text
    metric: Text = "Dice"  # what before, after and the change are
    before: Number | None = None
    after: Number | None = None  # out of fold: the candidate was chosen on the other folds
    change: Number | None = None  # paired, case by case
    low: Number | None = None  # interval of the change, over patients
    high: Number | None = None
    level: Annotated[float, between(0, 1)] = 0.95  # of the interval: 95 % shared by all that was tried alike
    cases: Count = 0
    cost: Number | None = None  # change of the mean Dice where another metric is improved


@dataclass(frozen=True)
class Decision:
    """Which models predict, how labels are decided, and why."""

    version: Annotated[int, exactly(VERSION, f"{VERSION}, the version of decisions that this autoseg reads")]
    predicts: Annotated[tuple[Text, ...], entries(1, 2, distinct=True)]  # models, as their folders are called
    weights: dict[Text, dict[Text, Text]]  # model -> fold -> digest of its weights
    rule: Rule
    chosen_for: Text = ""  # the model that was asked for, which need not be among those that predict
    choices: tuple[Choice, ...] = ()
    cases: Count = 0
    patients: Count = 0
    folds: tuple[Text, ...] = ()
    dice_before: Number | None = None  # mean over labels, held-out cases, one model as it is
    dice_after: Number | None = None  # with all that was accepted together

    def check_agreement(self) -> None:
        """Raise StateError where a model that predicts has no weights."""
        if unknown := [name for name in self.predicts if name not in self.weights]:
            raise StateError(f"predicts: there are no weights of {unknown[0]!r}")

    def other_weights(self, digests: Mapping[str, Mapping[str, str]]) -> str:
        """The first model and fold that this was not chosen with, in words; empty if there is none.

        Args:
            digests: model -> fold -> digest, of those that are about to predict.
        """
        for name, folds in digests.items():
            for fold, digest in folds.items():
                if self.weights.get(name, {}).get(fold) != digest:
                    return f"fold {fold} of {name}"
        return ""

    def in_short(self) -> list[str]:
        """What applies, and how much was tried, a line."""
        accepted = sum(choice.accepted for choice in self.choices)
        applied = self.lines()
        words = "; ".join(applied) if applied else "the largest logit decides, nothing is corrected"
        return [f"decision ({accepted} of {counted(len(self.choices), 'choice')} accepted): {words}"]

    def lines(self) -> list[str]:
        """What applies, a line each."""
        lines = [f"predict with {' and '.join(self.predicts)}"] if self.predicts != (self.chosen_for,) else []
        return lines + self.rule.lines()
