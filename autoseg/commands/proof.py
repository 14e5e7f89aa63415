"""What the records of trained folds show before their predictions are scored: whom they saw, how their curves ended."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from autoseg.datasets.dataset import Dataset
from autoseg.datasets.splits import Splits
from autoseg.errors import StateError
from autoseg.evaluation.overfitting import CurveVerdict, judge_curves
from autoseg.evaluation.unseen import Coverage, FoldEvidence, prove
from autoseg.lines import LOG
from autoseg.messages import suggest
from autoseg.models.begun import begun_of
from autoseg.planning.plan import Plan
from autoseg.preprocessing.sources import plan_again
from autoseg.training.history import read_history
from autoseg.training.validation_budget import inference_of
from autoseg.workspace import FoldName, Workspace


def prove_unseen(
    workspace: Workspace, dataset: Dataset, plan: Plan, name: str, splits: Splits, scored: Sequence[FoldName]
) -> Coverage:
    """Prove that these folds never saw the patients whose cases they hold out, nor did a cascade's previous stage.

    Raises:
        StateError: one did, or a case is held out twice.
    """
    planned = {split.fold: split.validation for split in splits.splits}
    stages = [(name, "")] + [(before, before) for before in (plan.configurations[name].cascade_from,) if before]
    network = plan.configurations[name].network.name
    evidence = [
        found
        for stage, label in stages
        for found in _evidence(workspace, (stage, plan.configurations[stage].network.name), planned, scored, label)
    ]
    tested = {case.id for case in dataset.test_cases} | set(splits.test)
    patients = {case.id: case.patient for case in dataset.cases if case.id not in tested}

    def retrain(found: FoldEvidence) -> str:
        held_out = {patients.get(case) for case in found.held_out}
        own = next(split for split in splits.splits if split.fold == found.fold)
        if held_out & {patients.get(case) for case in own.train}:
            again = plan_again(workspace)
            return f"its folds divide a patient: remove {workspace.splits}, plan again ({again}), retrain all folds"
        stage = found.stage or name
        used = plan.configurations[stage].network.name if found.stage else network
        model: dict[str, Any] = {"workspace": workspace.root, "configuration": stage, "network": used}
        return f"retrain it on the current folds: {suggest('train', '-f', found.fold, '--restart', **model)}"

    return prove(evidence, patients, planned, patients_known=dataset.patients_known, retrain=retrain)


def _evidence(
    workspace: Workspace,
    model: tuple[str, str],
    planned: dict[FoldName, tuple[str, ...]],
    scored: Sequence[FoldName],
    stage: str,
) -> list[FoldEvidence]:
    """What the checkpoints of a model state about the training of some folds."""
    begun, _ = begun_of(workspace, *model)
    return [
        FoldEvidence(fold, planned[fold], begun[fold].basis.train, begun[fold].basis.init_from, stage)
        for fold in scored
        if fold in begun
    ]


def curves_of(folder: Path, plan: Plan, folds: Sequence[FoldName]) -> tuple[CurveVerdict, ...]:
    """How the training of each fold ended."""
    found = []
    for fold in folds:
        try:
            found.append(judge_curves(fold, read_history(folder / f"fold_{fold}"), [*plan.labels.scored]))
        except StateError as error:
            found.append(CurveVerdict(fold, "unknown", f"fold {fold}: not known whether it overfits: {error.what}"))
    return tuple(found)


def note_cheaper(workspace: Workspace, name: str, network: str, folds: Sequence[FoldName]) -> None:
    """Say which folds segmented their held-out cases in a cheaper way than predict does."""
    for fold in folds:
        way = inference_of(workspace.fold(name, network, fold))
        if way and way.cheaper:
            LOG.info(f"note: fold {fold} lacked the time to segment as predict does: {way}; predict may score higher")
