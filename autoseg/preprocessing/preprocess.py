"""Crop, normalise, resample: cases as read to cases as the network sees them.

The same `prepare` serves training and prediction, so both see the same image. The order is nnU-Net v2's: crop to the
nonzero region, normalise, resample. Cases are committed one by one and a restart does only what is missing.
"""

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from autoseg.dataloading.store import CaseInfo, CaseStore
from autoseg.datasets.dataset import Case, Dataset, LoadedCase, load_case
from autoseg.errors import DataError, OutOfMemory, StateError
from autoseg.imaging.components import Box, bounding_box, nonzero_mask
from autoseg.imaging.geometry import Axes3, Vector3, axes3
from autoseg.imaging.labels import OUTSIDE
from autoseg.imaging.normalize import normalize
from autoseg.imaging.resample import require_possible, resample_image, resample_labels
from autoseg.messages import ANY_DATASET, suggest
from autoseg.planning.plan import Configuration, Plan, Resampling
from autoseg.processes import free_memory, map_in_processes
from autoseg.records import to_plain
from autoseg.workspace import Workspace, lock


@dataclass(frozen=True)
class Prepared:
    """A case as the network sees it, and what is needed to come back. Spatial tuples are in permuted order."""

    image: np.ndarray  # (C, Z, Y, X) float32, normalised, at the configuration's spacing
    target: np.ndarray | None  # (Z, Y, X) int16 class indices, OUTSIDE where the body ends
    spacing: Vector3  # mm, of the case itself
    target_spacing: Vector3  # mm, after resampling
    box: Box  # of the crop, in the uncropped array
    shape_before_crop: Axes3
    shape_after_crop: Axes3


def prepare(
    image: np.ndarray,
    target: np.ndarray | None,
    spacing: Vector3,
    plan: Plan,
    configuration: Configuration,
    name: str = "the image",
) -> Prepared:
    """Crop, normalise and resample one case.

    Args:
        image: (C, Z, Y, X) float32 in the plan's axis order.
        target: (Z, Y, X) class indices, or None.
        spacing: mm, (Z, Y, X) in the same order.
        name: of its file, for messages.

    Raises:
        DataError: at the configuration's spacing, nothing would be left of an axis, or absurdly many voxels come out.
        OutOfMemory: what comes out exceeds the free memory.
    """
    inside = nonzero_mask(image)
    box = bounding_box(inside)
    window = tuple(slice(start, stop) for start, stop in box)
    cropped, inside = image[(slice(None), *window)], inside[window]
    cropped_target = None
    if target is not None:
        cropped_target = target[window].astype(np.int16)
        cropped_target[~inside & (cropped_target == 0)] = OUTSIDE
    channels = [
        normalize(
            channel, n.scheme, mask=inside if n.inside_mask else None,
            mean=n.mean, std=n.std, p00_5=n.p00_5, p99_5=n.p99_5,
        )
        for channel, n in zip(cropped, plan.normalization, strict=True)
    ]  # fmt: skip
    wanted = spacing_for(configuration, spacing)
    shape = require_possible(cropped.shape[1:], spacing, wanted, name)
    _require_memory(shape, len(image) + 1 + (plan.heads.num_heads if target is None else 0), name)
    rules = plan.resampling
    resampled = resample_image(
        np.stack(channels), spacing, wanted, shape, order=rules.image_order,
        coarse_axis_order=rules.coarse_axis_order, anisotropy_threshold=rules.anisotropy_threshold,
        antialias_factor=rules.antialias_factor,
    )  # fmt: skip
    if cropped_target is not None:
        cropped_target = resample_target(cropped_target, spacing, wanted, shape, rules)
    return Prepared(resampled, cropped_target, spacing, wanted, box, axes3(image.shape[1:]), axes3(cropped.shape[1:]))


def resample_target(
    indices: np.ndarray, spacing: Vector3, wanted: Vector3, shape: Axes3, rules: Resampling
) -> np.ndarray:
    """Resample cropped class indices (Z, Y, X) to `shape`, as the plan's rules say. Spacings in mm."""
    return resample_labels(
        indices, spacing, wanted, shape,
        coarse_axis_order=rules.coarse_axis_order, anisotropy_threshold=rules.anisotropy_threshold,
    )  # fmt: skip


def spacing_for(configuration: Configuration, spacing: Vector3) -> Vector3:
    """Spacing a case is resampled to: a 2-D configuration keeps the case's own distance between slices."""
    if configuration.dims == 2:
        return (spacing[0], *configuration.spacing)  # type: ignore[return-value]
    return configuration.spacing  # type: ignore[return-value]


def _require_memory(shape: Axes3, arrays: int, name: str) -> None:
    """Refuse what cannot be held: so many float32 arrays of a shape. A lower bound of what resampling takes."""
    needed, free = 4 * arrays * math.prod(shape), free_memory()
    if needed > free:
        raise OutOfMemory(
            f"{name}: at the plan's spacing it has {shape} voxels, which take {needed / 1e9:.3g} GB or more, "
            f"{free / 1e9:.3g} GB are free",
            remedy="use a machine with more memory, or a configuration of lower resolution",
        )


def preprocess(
    dataset: Dataset, plan: Plan, configuration_name: str, workspace: Workspace, *, workers: int | None = None
) -> CaseStore:
    """Bring every training case of the dataset into the store of one configuration.

    Cases that are stored already, from the same files and under the same settings, are left alone. Of several processes
    that want the same store, one does the work, and the others wait.

    Raises:
        DataError: a case cannot be read or holds non-finite values.
        StateError: there is no such configuration, or it cannot read the copy it shares with another.
        StorageError: the disk is full.
    """
    name, wanted = plan.configuration(configuration_name)
    _, configuration = plan.configuration(wanted.data)  # whose copy it reads: mostly its own
    if wanted.spacing[-2:] != configuration.spacing[-2:]:
        raise StateError(
            f"{name} reads the preprocessed copy of {wanted.data}, but its slices have another spacing",
            remedy=f"give it a copy of its own: --set configurations.{name}.data={name}",
        )
    store = CaseStore(workspace.preprocessed(wanted.data))
    settings = _settings_hash(plan, configuration)
    keys = {case.id: _key(case, settings) for case in dataset.cases}
    with lock(store.folder / ".lock", f"preprocessing into {store.folder}", wait=True):
        missing = set(store.complete([case.id for case in dataset.cases], keys))
        todo = [case for case in dataset.cases if case.id in missing]
        map_in_processes(
            _store_case, [(case, keys[case.id], plan, configuration, store.folder) for case in todo],
            workers=workers, title=f"preprocess {configuration.data}",
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
        spacing=prepared.spacing,
        box=prepared.box,
        shape_before_crop=prepared.shape_before_crop,
        shape_after_crop=prepared.shape_after_crop,
        num_labels=plan.labels.num_labels,
        ignore_index=plan.labels.ignore_index,
        content=content_of(loaded),
    )
    CaseStore(folder).commit(case.id, prepared.image, prepared.target, info)


def content_of(loaded: LoadedCase) -> tuple[str, str]:
    """Digests of a case's image and of its label as they were read: equal for equal voxels, wherever they are stored.

    Of what is compressed or named in another way, or has another origin, the digests are the same.
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
        del labels["colours"]  # copies made before there were any stay valid
    settings = [plan.orientation, plan.axis_order, plan.normalization, plan.resampling]
    plain = [labels, *(to_plain(s) for s in settings), configuration.dims, configuration.spacing]
    text = json.dumps(plain, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _key(case: Case, settings: str) -> str:
    """Hash of what decides a stored case: the settings, and size and time of its files."""
    assert case.label is not None
    stats = {}
    for path in (*case.images, case.label):
        try:
            stats[path] = Path(path).stat()
        except OSError as error:
            raise DataError(
                f"{path} of case {case.id} cannot be found: {error.strerror or error}",
                remedy="bring the dataset back to where it was planned, or plan it again: "
                + suggest("plan", ANY_DATASET),
            ) from None
    files = [(path, stat.st_size, stat.st_mtime_ns) for path, stat in stats.items()]
    return hashlib.sha256(json.dumps([settings, files]).encode()).hexdigest()
