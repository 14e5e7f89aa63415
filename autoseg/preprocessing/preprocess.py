"""Preprocess all cases of a dataset with `prepare` into the store of one configuration.

Cases are committed one by one, and a restart processes only those that are missing.
"""

import hashlib
import json
import os
from pathlib import Path

import numpy as np

from autoseg.dataloading.store import CaseInfo, CaseStore
from autoseg.datasets.dataset import Case, Dataset, LoadedCase, load_case
from autoseg.errors import DataError, StateError
from autoseg.imaging.formats.readers import files_of
from autoseg.messages import ANY_DATASET, suggest
from autoseg.planning.plan import Configuration, Plan
from autoseg.preprocessing.prepare import prepare
from autoseg.processes import map_in_processes
from autoseg.records import to_plain
from autoseg.workspace import Workspace, lock


def preprocess(
    dataset: Dataset, plan: Plan, configuration_name: str, workspace: Workspace, *, workers: int | None = None
) -> CaseStore:
    """Preprocess every training case of the dataset into the store of one configuration.

    Cases that are stored already, from the same files and with the same settings, are kept. Of several processes that
    need the same store, one does the work, and the others wait.

    Raises:
        DataError: a case cannot be read or contains non-finite values.
        StateError: there is no such configuration, or it cannot read the copy it shares with another.
        StorageError: the disk is full.
    """
    name, configuration = plan.configuration(configuration_name)
    data, copied = plan.configuration(configuration.data)  # whose copy it reads: usually its own
    if configuration.spacing[-2:] != copied.spacing[-2:]:
        raise StateError(
            f"{name} reads the preprocessed copy of {data}, but its slices have another spacing",
            remedy=f"give it a copy of its own: --set configurations.{name}.data={name}",
        )
    store = CaseStore(workspace.preprocessed(data))
    settings = _settings_hash(plan, copied)
    keys = {case.id: _key(case, settings) for case in dataset.cases}
    with lock(store.folder / ".lock", f"preprocessing into {store.folder}", wait=True):
        missing = set(store.complete([case.id for case in dataset.cases], keys))
        todo = [case for case in dataset.cases if case.id in missing]
        map_in_processes(
            _store_case, [(case, keys[case.id], plan, copied, store.folder) for case in todo],
            workers=workers, title=f"preprocess {copied.data}",
        )  # fmt: skip
        for stale in set(store.ids()) - set(keys):
            store.discard(stale)
        store.seal()
    return store


def _store_case(job: tuple[Case, str, Plan, Configuration, Path]) -> None:
    case, key, plan, configuration, folder = job
    loaded = load_case(
        case, plan.labels, channels=plan.channels, orientation=plan.orientation, axis_order=plan.axis_order
    )
    prepared = prepare(loaded.image, loaded.target, loaded.spacing, plan, configuration, name=loaded.file)
    assert prepared.target is not None
    info = CaseInfo(
        id=case.id,
        key=key,
        placement=prepared.placement,
        num_labels=plan.labels.num_labels,
        ignore_index=plan.labels.ignore_index,
        content=content_of(loaded),
    )
    CaseStore(folder).commit(case.id, prepared.image, prepared.target, info)


def content_of(loaded: LoadedCase) -> tuple[str, str]:
    """Digests of a case's image and label as read: equal for equal voxels, wherever they are stored.

    They do not depend on compression, file names or the origin.
    """
    assert loaded.target is not None
    grid = json.dumps([loaded.image.shape, [f"{edge:.5g}" for edge in loaded.spacing]]).encode()
    image, label = (
        hashlib.sha256(grid + np.ascontiguousarray(array).tobytes()).hexdigest()
        for array in (loaded.image, loaded.target.astype(np.int32))
    )
    return image, label


def _settings_hash(plan: Plan, configuration: Configuration) -> str:
    labels = to_plain(plan.labels)
    if not labels["colours"]:
        del labels["colours"]  # copies made before digests existed stay valid
    if not labels["things"]:
        del labels["things"], labels["divisor"]  # nor did things
    resampling = to_plain(plan.resampling)
    if resampling["filter"] == "gaussian":
        del resampling["filter"]  # nor did filters
    settings = [plan.orientation, plan.axis_order, plan.normalization]
    plain = [labels, *(to_plain(s) for s in settings), resampling, configuration.dims, configuration.spacing]
    text = json.dumps(plain, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _key(case: Case, settings: str) -> str:
    """Hash of what decides a stored case: the settings, and size and time of its files."""
    assert case.label is not None
    stats: dict[str, os.stat_result] = {}
    for path in (*case.images, case.label):
        try:
            stats |= {str(file): file.stat() for file in files_of(path)}
        except OSError as error:
            raise DataError(
                f"{path} of case {case.id} cannot be found: {error.strerror or error}",
                remedy="move the dataset back to where it was planned, or plan it again: "
                + suggest("plan", ANY_DATASET),
            ) from None
    files = [(path, stat.st_size, stat.st_mtime_ns) for path, stat in stats.items()]
    return hashlib.sha256(json.dumps([settings, files]).encode()).hexdigest()
