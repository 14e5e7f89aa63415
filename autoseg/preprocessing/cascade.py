"""Segmentations of the previous stage on the grid of the cases that a cascade is trained on.

A cascade sees the image at full resolution together with the segmentation of the whole image by a coarser
configuration. In training that must be no better than in prediction: each case uses the segmentation by the fold that
did not train on it (nnU-Net's cascade). `prepare_previous` resamples these files to the grid of the store;
`open_previous` verifies before training that all exist and match the files they come from.

    preprocessed/<cascade>-<network>/<case>.npy   (Z, Y, X) class indices without OUTSIDE, on the grid of the store
                                     <case>.json  PreviousInfo, written last: a case without it does not exist
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from autoseg.dataloading.store import CaseInfo, CaseStore
from autoseg.datasets.dataset import Case, load_case
from autoseg.errors import StateError
from autoseg.messages import suggest
from autoseg.planning.plan import Configuration, Plan
from autoseg.processes import map_in_processes
from autoseg.records import load, save
from autoseg.workspace import Workspace, lock, sha256, write_atomically

VERSION = 1


@dataclass(frozen=True)
class PreviousInfo:
    """What the segmentation of a case was made from."""

    version: int
    source: str  # the label file, relative to the workspace
    sha256: str  # of its bytes
    key: str  # of the stored case, whose grid it was resampled to


def prepare_previous(
    workspace: Workspace,
    plan: Plan,
    name: str,
    cases: Sequence[Case],
    sources: Mapping[str, Path],
    *,
    workers: int | None = None,
) -> list[str]:
    """Resample the previous stage's segmentation of every case to the grid of the store that a cascade reads.

    Segmentations that exist, from the same file and on the same grid, are kept.

    Args:
        name: of the cascade's configuration, whose data are preprocessed.
        sources: case id -> label file of the previous stage, by the fold that held the case out.

    Returns:
        Ids of the cases that had an older segmentation, which was replaced.

    Raises:
        StateError: a case has no segmentation because no fold holds it out.
    """
    configuration = plan.configurations[name]
    if without := [case.id for case in cases if case.id not in sources]:
        raise StateError(
            f"{name} needs a segmentation of {without[0]} by a fold of {configuration.cascade_from} that did not train "
            "on it, but no fold holds it out",
            remedy="use splits that hold out every case once (splits.json)",
        )
    folder = workspace.previous_stage(name, configuration.network.name)
    store = CaseStore(workspace.preprocessed(configuration.data))
    with lock(folder / ".lock", f"preparing {folder}", wait=True):
        wanted = {case.id: _info(workspace, sources[case.id], store.info(case.id)) for case in cases}
        known = {case.id: _known(folder, case.id) for case in cases}
        todo = [case for case in cases if known[case.id] != wanted[case.id]]
        jobs = [(case, workspace.root, wanted[case.id], store.info(case.id), folder, plan, name) for case in todo]
        map_in_processes(_prepare_case, jobs, title=f"{configuration.cascade_from} for {name}", workers=workers)
    return [case.id for case in todo if known[case.id] is not None]


def open_previous(
    workspace: Workspace, name: str, configuration: Configuration, case_ids: Sequence[str]
) -> Path | None:
    """The folder with the previous stage's segmentations of some cases; None for a configuration that is not a cascade.

    Raises:
        StateError: one is missing, or its case or its label file have changed since it was made.
    """
    if configuration.cascade_from is None:
        return None
    folder = workspace.previous_stage(name, configuration.network.name)
    store = CaseStore(workspace.preprocessed(configuration.data))
    for case_id in case_ids:
        known = _known(folder, case_id)
        if known is None:
            problem = f"{name} has no segmentation of {case_id} by {configuration.cascade_from}"
        elif known != _info(workspace, workspace.root / known.source, store.info(case_id)):
            problem = f"{folder / case_id}.npy is out of date: {known.source} or the preprocessed case has changed"
        else:
            continue
        network = configuration.network.name
        raise StateError(
            problem,
            remedy="to make it again: "
            + suggest("train", workspace=workspace.root, configuration=name, network=network),
        )
    return folder


def previous_digest(folder: Path, case_id: str) -> str:
    """sha256 of the label file that a case's segmentation in `folder` was made from; "" where there is none."""
    known = _known(folder, case_id)
    return known.sha256 if known else ""


def _prepare_case(job: tuple[Case, Path, PreviousInfo, CaseInfo, Path, Plan, str]) -> None:
    case, root, wanted, info, folder, plan, name = job
    # The file has the grid of the case's image and is read in its place, so that the image need not be read.
    source = Case(case.id, case.patient, (str(root / wanted.source),), str(root / wanted.source))
    loaded = load_case(
        source, plan.labels, channels=plan.channels, orientation=plan.orientation, axis_order=plan.axis_order
    )
    assert loaded.target is not None
    if loaded.target.shape != info.placement.shape_before_crop:
        raise StateError(
            f"{wanted.source} has {loaded.target.shape} voxels, the image of {case.id} "
            f"{info.placement.shape_before_crop}",
            remedy="delete it, then predict it again: "
            + suggest("train", workspace=root, configuration=plan.configurations[name].cascade_from),
        )
    indices = info.placement.to_grid(loaded.target, plan.resampling).astype(info.target_dtype)
    marker = folder / f"{case.id}.json"
    marker.unlink(missing_ok=True)
    write_atomically(folder / f"{case.id}.npy", lambda file: np.save(file, indices))
    save(marker, wanted)


def _info(workspace: Workspace, source: Path, info: CaseInfo) -> PreviousInfo:
    """What a segmentation would be made from now."""
    digest = sha256(source) if source.exists() else ""
    return PreviousInfo(VERSION, source.relative_to(workspace.root).as_posix(), digest, info.key)


def _known(folder: Path, case_id: str) -> PreviousInfo | None:
    """What the existing segmentation was made from, or None where there is none."""
    if not (folder / f"{case_id}.npy").exists():
        return None
    try:
        return load(PreviousInfo, folder / f"{case_id}.json")
    except StateError:  # missing, damaged or of another version
        return None
