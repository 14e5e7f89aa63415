"""The folder of a trained nnU-Net v2 model, opened: its configurations and folds as autoseg's.

    FOLDER/ plans.json dataset.json dataset_fingerprint.json  fold_0/checkpoint_final.pth ... fold_all/

The folder of a dataset, which holds several of these, means all configurations of one trainer and plans. Everything is
read and checked before anything is returned, so that whoever writes can write all of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from autoseg.errors import StateError, UsageError
from autoseg.messages import some
from autoseg.models.build import build_plan_network
from autoseg.models.nnunet.checkpoint import Trained, read_trained
from autoseg.models.nnunet.description import PLANS, describe
from autoseg.models.nnunet.network import architecture_of, converted
from autoseg.models.nnunet.plan import plan_of
from autoseg.models.versions import Checkpoint, Position, RuntimeSettings
from autoseg.planning.plan import Plan
from autoseg.records import to_plain
from autoseg.workspace import FULL, FoldName, fold_order

FINAL, BEST = "checkpoint_final.pth", "checkpoint_best.pth"
EPOCH_STEPS = 250  # of nnU-Net's trainers
PREFERRED = ("3d_fullres", "3d_cascade_fullres", "3d_lowres", "2d")  # which configuration predicts where none is named


@dataclass(frozen=True)
class ImportedModel:
    """One configuration of a model of nnU-Net."""

    plan: Plan  # its own: mirroring and normalisation are of a configuration there
    configuration: str
    weights: dict[FoldName, dict[str, Tensor]]  # of each fold, under autoseg's names
    epochs: dict[FoldName, int]
    notes: tuple[str, ...]  # what a user should know

    @property
    def network(self) -> str:
        return self.plan.configurations[self.configuration].network.name

    def checkpoint(self, fold: FoldName) -> Checkpoint:
        """A finished fold, as a training of autoseg would have left it; its cases are not known."""
        epochs = self.epochs[fold]
        return Checkpoint(
            plan=to_plain(self.plan), configuration=self.configuration, fold=fold, train=(), validation=(),
            contents={}, init_from=None, plugins=(), finished=True,
            position=Position(epoch=epochs, step=epochs * EPOCH_STEPS), history=(),
            runtime=RuntimeSettings("float32", channels_last=False, compiled=False, chain="host", forward_seconds=0.0),
            network=self.weights[fold], optimizer={}, scaler={}, average=None, average_steps=0, plateau=None,
            cooling_since=None, learning_rate_factor=1.0, micro_batches=1, rollbacks=0,
        )  # fmt: skip


def open_nnunet(folder: Path) -> list[ImportedModel]:
    """Read the model in a folder of nnU-Net's results; of a cascade, its previous stage beside it, too.

    Returns:
        Its configurations; the one that predicts by default comes first.

    Raises:
        StateError: it is not such a folder, it cannot be read, or autoseg cannot predict the same.
        UsageError: there is no such folder, or it holds models of several trainers or plans.
    """
    found = [_open_configuration(one) for one in _model_folders(folder)]
    for model in list(found):
        before = model.plan.configurations[model.configuration].cascade_from
        if before is not None and before not in [other.configuration for other in found]:
            found.append(_open_configuration(_previous_folder(folder, model.configuration, before)))
    rank = {name: place for place, name in enumerate(PREFERRED)}
    return sorted(found, key=lambda model: rank.get(model.configuration, len(rank)))


def common_plan(models: Sequence[ImportedModel]) -> Plan:
    """The plan of a workspace with these models: that of the first, with the configurations of all."""
    plan = models[0].plan
    return replace(
        plan, configurations={model.configuration: model.plan.configurations[model.configuration] for model in models}
    )


def _model_folders(folder: Path) -> list[Path]:
    """The folders with plans.json that are meant."""
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder", remedy="name the folder of a trained nnU-Net v2 model")
    if (folder / PLANS).is_file():
        return [folder]
    if (folder.parent / PLANS).is_file() and folder.name.startswith("fold_"):
        raise UsageError(f"{folder} is a fold of a model", remedy=f"name the model: {folder.parent}")
    found = [inner for inner in sorted(folder.iterdir()) if (inner / PLANS).is_file() and _folds(inner)]
    trainers = sorted({inner.name.rpartition("__")[0] for inner in found})
    if len(trainers) > 1:
        raise UsageError(
            f"{folder} holds models of several trainers or plans: {some(trainers)}",
            remedy=f"name the folder of one model, such as {found[0]}",
        )
    if not found:
        describe(folder)  # says what is missing
    return found


def _previous_folder(folder: Path, cascade: str, before: str) -> Path:
    """The folder of a cascade's previous stage, which lies beside its own."""
    there = folder.with_name(f"{folder.resolve().name.rpartition('__')[0]}__{before}")
    if not (there / PLANS).is_file():
        raise StateError(
            f"{folder}: {cascade} refines the segmentation of {before}, which is not beside it: {there} is missing",
            remedy="copy that folder there, too",
        )
    return there


def _folds(folder: Path) -> list[tuple[FoldName, Path]]:
    """Folds of a model and their folders, by number, FULL last."""
    numbers: dict[FoldName, Path] = {}
    for inner in folder.glob("fold_*"):
        number = inner.name.removeprefix("fold_")
        if number == "all" or (number.isascii() and number.isdecimal()):
            numbers[FULL if number == "all" else int(number)] = inner
    return [(fold, numbers[fold]) for fold in sorted(numbers, key=fold_order)]


def _open_configuration(folder: Path) -> ImportedModel:
    """Read one model's folder."""
    trained, notes = _read_folds(folder)
    first, described = next(iter(trained.values())), describe(folder)
    for one in trained.values():
        for what in ("configuration", "mirror_axes"):
            if getattr(one, what) != getattr(first, what):
                raise described.refused(
                    str(one.path.relative_to(folder)),
                    f"{what} is {getattr(one, what)}, in {first.path.parent.name} it is {getattr(first, what)}",
                    "import folds of one training",
                )
    name = first.configuration
    if first.trainer != "nnUNetTrainer":
        notes.append(
            f"{folder.name}: its trainer, {first.trainer}, is not nnU-Net's own: if it builds another network than its "
            "plans say, or changes the prediction, that is not imported; compare a few segmentations"
        )
    plan = plan_of(described, name, first.mirror_axes, first.epochs)
    if before := plan.configurations[name].cascade_from:
        notes.append(
            f"{name}: the segmentation of {before} is resampled by autoseg's rule, which leaves no gap where three "
            "labels meet"
        )
    architecture = architecture_of(described, name)
    with torch.device("meta"):
        template = build_plan_network(plan, plan.configurations[name]).state_dict()
    weights = {fold: converted(one.weights, architecture, template, one.path) for fold, one in trained.items()}
    return ImportedModel(plan, name, weights, {fold: one.epochs for fold, one in trained.items()}, tuple(notes))


def _read_folds(folder: Path) -> tuple[dict[FoldName, Trained], list[str]]:
    """The folds that were trained to the end, or have a best checkpoint; and which are not used, and why."""
    trained: dict[FoldName, Trained] = {}
    notes: list[str] = []
    for fold, inner in _folds(folder):
        files = [inner / name for name in (FINAL, BEST) if (inner / name).is_file()]
        if not files:
            notes.append(f"{folder.name}: {inner.name} has neither {FINAL} nor {BEST} and is not imported")
            continue
        if files[0].name == BEST:
            notes.append(f"{folder.name}: {inner.name} has no {FINAL}: {BEST} is imported")
        trained[fold] = read_trained(files[0])
    if not trained:
        describe(folder)
        raise StateError(
            f"{folder} holds no trained fold" + (f": {'; '.join(notes)}" if notes else ""),
            remedy=f"copy fold_0/{FINAL} there, too",
        )
    return trained, notes
