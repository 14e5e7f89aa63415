"""Workspaces whose folds never trained, and what is exported of them: `from exported import workspace_of, changed`.

workspace_of   a planned workspace with checkpoints of random weights, all its records
scored         a cross-validation of it, as `evaluate` keeps it
changed        an exported file with other contents
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from autoseg.datasets.dataset import Case, Dataset
from autoseg.datasets.inputs import FileNames
from autoseg.datasets.splits import Split, Splits
from autoseg.evaluation.crossval import CrossValidation, FoldScores
from autoseg.evaluation.evaluate import CaseScore, summarise
from autoseg.evaluation.metrics import METRICS
from autoseg.evaluation.surfaces import SURFACE_METRICS
from autoseg.models.build import build_plan_network
from autoseg.models.checkpoint import save_checkpoint
from autoseg.models.container import Container, Content, write
from autoseg.planning.foreign_grids import training_grids
from autoseg.planning.plan import Plan
from autoseg.records import save
from autoseg.workspace import FoldName, Workspace
from checkpoints import checkpoint_of
from plans import THREE, plan_of, with_cascade
from synthetic_fingerprints import uniform

IDS = ("brandt_1951", "Mueller-Hans", "patient 0007", "schmidt_b", "schmidt_a")  # whose names must not leave
PATIENTS = ("Brandt", "Mueller", "p0007", "Schmidt", "Schmidt")


def plan_for_tests(**changes: Any) -> Plan:
    """Small networks, a cascade among them; images are named after their cases."""
    grids = training_grids(uniform((2.0, 1.0, 1.0), (12, 20, 24), len(IDS), THREE))
    return replace(with_cascade(plan_of()), file_names=FileNames("suffix", ("",)), grids=grids, **changes)


def workspace_of(
    root: Path,
    plan: Plan | None = None,
    *,
    configurations: Sequence[str] = ("3d_fullres",),
    folds: Sequence[FoldName] = (0, 1),
    **more: Any,
) -> Workspace:
    """A workspace with finished folds of random weights; `more` are fields of their checkpoints."""
    plan, workspace = plan or plan_for_tests(), Workspace(root)
    measured = uniform((2.0, 1.0, 1.0), (12, 20, 24), len(IDS), THREE)
    cases = [
        replace(case, id=name, digest=f"{i:032x}")
        for i, (case, name) in enumerate(zip(measured.cases, IDS, strict=True))
    ]
    notes = (f"cases with equal image and label: {IDS[0]}, {IDS[1]}", "3 of 5 cases have no foreground")
    save(workspace.fingerprint, replace(measured, cases=tuple(sorted(cases, key=lambda c: c.id)), notes=notes))
    rows = [
        Case(i, p, (f"/data/hospital/{i}.nii.gz",), f"/data/hospital/{i}.seg.nii.gz")
        for i, p in zip(IDS, PATIENTS, strict=True)
    ]
    dataset = Dataset(1, "test", "/data/hospital", "plain", ("MR",), THREE, tuple(rows), (), True, None, ())
    save(workspace.dataset, dataset)
    save(workspace.plan, plan)
    splits = tuple(Split(i, tuple(n for n in IDS if n != name), (name,)) for i, name in enumerate(IDS))
    save(workspace.splits, Splits(1, 1234, splits, (), ()))
    for configuration in configurations:
        for fold in folds:
            torch.manual_seed(17 * len(configuration) + (99 if fold == "full" else fold))
            network = build_plan_network(plan, plan.configurations[configuration])
            state = checkpoint_of(
                plan, network, **{"configuration": configuration, "fold": fold, "finished": True, "train": IDS[1:],
                "validation": IDS[:1]} | more,
            )  # fmt: skip
            folder = workspace.fold(configuration, plan.configurations[configuration].network.name, fold)
            folder.mkdir(parents=True, exist_ok=True)
            save_checkpoint(folder / "last.pt", state.to_plain())
    return workspace


def scored(workspace: Workspace, configuration: str = "3d_fullres", network: str = "unet") -> CrossValidation:
    """Dice of 0.5, 0.6, ... by case for the first label, and 0.1 less for the second; written where `evaluate` does."""
    cases = []
    for i, name in enumerate(IDS):
        metrics = dict.fromkeys([*METRICS, *SURFACE_METRICS], 0.5 + i / 10)
        scores = {"label1": metrics, "label2": {key: value - 0.1 for key, value in metrics.items()}}
        cases.append(CaseScore(name, ((9, 1, 0), (1, 9, 0), (0, 1, 9)), scores))
    folds = tuple(FoldScores(i, (case,)) for i, case in enumerate(cases))
    result = CrossValidation(1, configuration, network, folds, 5, summarise(cases))
    save(workspace.crossval(configuration, network), result)
    return result


def contents_of(path: Path) -> dict[str, bytes]:
    """Entry -> bytes of an exported file."""
    with Container(path) as opened:
        return {name: opened.read(name) for name in opened.names}


def changed(path: Path, changes: Mapping[str, bytes | None], out: Path, *, listed: bool = True) -> Path:
    """An exported file with other contents; None removes one.

    Args:
        listed: the manifest lists the new sizes and digests, as somebody would who means it.
    """
    contents = {name: data for name, data in (contents_of(path) | changes).items() if data is not None}
    if listed and "manifest.json" not in changes:
        manifest = json.loads(contents["manifest.json"])
        manifest["files"] = [
            {"name": name, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            for name, data in contents.items()
            if name != "manifest.json"
        ]
        contents["manifest.json"] = json.dumps(manifest).encode()
    stored = {name: name.endswith(".safetensors") for name in contents}
    write(out, [Content(name, [data], len(data), stored[name]) for name, data in contents.items()])
    return out
