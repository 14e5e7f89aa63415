"""Where models looked for a label in an image: maps on the image's grid, computed tile by tile.

    Asked      a label, or a label at a voxel
    explain    models, an image and its segmentation -> maps

The score that is explained is the sum of the label's logits over the voxels that were given the label, or over the
voxels about a place, whatever label they were given. Logits are those that the tiles' Gaussian weights make of all
tiles, so that a tile counts as much as it had to say at each voxel (`_Scored`). Each tile's map (`nn.saliency`) is that
of its own part of the score. HiResCAM and attention rollout say how much of it came from where: their maps add up, as
the parts do. Grad-CAM and coefficients of gates do not, and are averaged with the weights of the tiles. Maps of folds
are averaged, and those of several models as shares of their largest values. Images are not mirrored. One tile is
computed at a time, and what is held of the maps is a row of tiles; the maps themselves are in a temporary file.
"""

import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import get_args

import numpy as np
import torch
from torch import Tensor

from autoseg.datasets.dataset import LoadedCase
from autoseg.errors import DataError, UsageError
from autoseg.imaging.components import as_slices
from autoseg.imaging.geometry import Axes3, Box
from autoseg.imaging.labels import LabelSet
from autoseg.imaging.placement import Placement
from autoseg.inference.member import EnsembleMember, Preparations
from autoseg.inference.options import InferenceOptions
from autoseg.models.model import Model
from autoseg.nn.label_rows import resampled_rows
from autoseg.nn.rolling_sums import Block
from autoseg.nn.saliency import BOTTLENECK, Method, Saliency, method_for
from autoseg.nn.sliding_window import Image, Network, Tiling, Window, gaussian_importance, stream_logits, windows_of

AROUND = 1  # voxels of the network's grid about a place that count, along each axis
METHODS = get_args(Method)
GATE = "gate"  # how names of maps of gates begin
SIGMA_SHARE = 1 / 8  # of the tiles' weights, as `sliding_window.gaussian_importance` has it


@dataclass(frozen=True)
class Asked:
    """A label whose logits are explained, everywhere or about a voxel of the stored image."""

    label: str
    place: tuple[int, ...] | None = None  # (z, y, x) of the file, from 0; (y, x) of a flat image

    def __str__(self) -> str:
        return self.label if self.place is None else f"{self.label}@{','.join(map(str, self.place))}"


@dataclass(frozen=True)
class How:
    """By which layer of the networks, and how its features are weighted; see `nn.saliency`."""

    stage: str = BOTTLENECK
    method: Method | None = None  # None: as suits the layer

    @property
    def chosen(self) -> Method:
        """The method that is used."""
        return self.method or method_for(self.stage)


@dataclass(frozen=True)
class MadeMap:
    """One map of an image."""

    name: str  # "saliency", or what attention it is of
    model: str  # as its folder is called
    values: np.ndarray  # (Z, Y, X) float32 from 0 to 1, in the cropped box in the plan's axis order
    largest: float  # what 1 stands for; 1 for coefficients of gates, which are as they are
    inside: float | None  # share of its sum in the voxels that were given the label; None: it is 0 everywhere


@dataclass(frozen=True)
class Explained:
    """The maps of one question about one image."""

    asked: Asked
    head: int  # output channel of its label
    voxels: int  # of the image that were given the label
    note: str  # why the maps are 0, or what should be known of them; "": nothing
    box: Box  # that the maps cover, in the axis order of the case; beyond it they are 0
    maps: tuple[MadeMap, ...]


def parse_asked(text: str) -> Asked:
    """What `--saliency LABEL[@Z,Y,X]` asks for.

    Raises:
        UsageError: there is no label, or the place is not two or three whole numbers.

    >>> parse_asked("liver@10,200,180")
    Asked(label='liver', place=(10, 200, 180))
    """
    label, at, place = text.rpartition("@")
    if not at:
        label, place = text, ""
    numbers = tuple(int(n) for n in place.split(",")) if re.fullmatch(r"\d{1,9}(,\d{1,9}){1,2}", place) else None
    if not label.strip() or (at and numbers is None):
        raise UsageError(
            f"--saliency {text!r} names no label and place", remedy="write LABEL or LABEL@Z,Y,X: liver@10,200,180"
        )
    return Asked(label.strip(), numbers)


def head_of(asked: Asked, heads: LabelSet) -> int:
    """The output channel of a label or region. Raises UsageError where there is none of that name."""
    names = list(heads.regions) if heads.has_regions else ["background", *heads.values]
    if asked.label not in names:
        kind = "region" if heads.has_regions else "label"
        raise UsageError(
            f"--saliency {asked.label}: the model has no such {kind}", remedy=f"{kind}s are: {', '.join(names)}"
        )
    return names.index(asked.label)


def voxel_of(asked: Asked, loaded: LoadedCase) -> Axes3 | None:
    """The voxel of a question, in the axis order of the case; None: it names none.

    Raises:
        DataError: it lies outside the image.
    """
    if asked.place is None:
        return None
    geometry = loaded.geometry
    stored = (0, *asked.place) if geometry.flat and len(asked.place) == 2 else asked.place
    shape = geometry.shape[1:] if geometry.flat else geometry.shape
    if len(stored) != 3 or any(not 0 <= i < size for i, size in zip(stored, geometry.shape, strict=True)):
        axes = "y,x" if geometry.flat else "z,y,x"
        raise DataError(
            f"{loaded.file}: --saliency {asked} names a voxel outside the image, whose shape is {shape}",
            remedy=f"give {axes} of a voxel, counted from 0 in the order of the file",
        )
    return loaded.voxel_from_stored(stored)


def explain(
    models: Sequence[Model],
    loaded: LoadedCase,
    labels: np.ndarray,
    asked: Asked,
    how: How = How(),
    options: InferenceOptions = InferenceOptions(),
    preparations: Preparations | None = None,
) -> Explained:
    """Show where models looked.

    Args:
        labels: (Z, Y, X) class indices of the whole image, in the axis order of `loaded`.
        options: tiles, as the image was segmented; mirroring, --top-k and --skip-empty are not used.
        preparations: in which the image may be prepared already.

    Raises:
        UsageError: no such label, or a network has no such stage. DataError: the place lies outside the image.
    """
    heads = models[0].plan.heads
    head, voxel = head_of(asked, heads), voxel_of(asked, loaded)
    given = np.isin(labels, heads.regions_as_indices[head] if heads.has_regions else (head,))
    unmirrored = replace(options, mirroring=False, even_flips=False, top_k=None, skip_empty=False)
    shared = preparations or Preparations()
    members = [EnsembleMember(model, unmirrored, shared) for model in models]
    box = members[0].prepare(loaded).placement.box  # the same for all
    inside = given[as_slices(box)]
    made: list[MadeMap] = []
    notes: list[str] = []
    for member in members:
        where, note = _where(asked, voxel, given, member.prepare(loaded).placement, member)
        notes += [note] if note and note not in notes else []
        made += _maps_of(member, loaded, where, head, how, inside)
        if not note and not any(one.largest for one in made if one.name == "saliency"):
            notes.append(f"no feature of the {how.stage} speaks for {asked.label}: its map is 0")
    return Explained(asked, head, int(np.count_nonzero(given)), "; ".join(notes), box, _together(made, inside))


def _where(
    asked: Asked, voxel: Axes3 | None, given: np.ndarray, placement: Placement, member: EnsembleMember
) -> tuple[np.ndarray, str]:
    """The voxels (Z, Y, X) bool of the network's grid whose logits are the score, and what should be known of them."""
    nothing = np.zeros(placement.shape, dtype=bool)
    if voxel is None:
        if not given.any():
            return nothing, f"{asked.label} was found nowhere in this image: its map is 0"
        where = placement.to_grid(given.astype(np.uint8), member.model.plan.resampling) > 0
        return where, "" if where.any() else f"{asked.label} is too small for the network's grid: its map is 0"
    if any(not low <= at < high for at, (low, high) in zip(voxel, placement.box, strict=True)):
        return nothing, "the voxel lies in the empty margin, which the network does not see: its map is 0"
    for axis, (at, (low, _)) in enumerate(zip(voxel, placement.box, strict=True)):
        size, cropped = placement.shape[axis], placement.shape_after_crop[axis]
        middle = min(int((at - low + 0.5) * size / cropped), size - 1)
        chosen = np.zeros(size, dtype=bool)
        chosen[max(0, middle - AROUND) : middle + AROUND + 1] = True
        along = chosen.reshape([-1 if i == axis else 1 for i in range(3)])
        nothing = np.broadcast_to(along, placement.shape) & (nothing if axis else True)
    return nothing, "" if given[voxel] else f"the voxel was not given the label {asked.label}"


def _maps_of(
    member: EnsembleMember, loaded: LoadedCase, where: np.ndarray, head: int, how: How, given: np.ndarray
) -> list[MadeMap]:
    """The maps of one model, the mean of its folds."""
    model, seen = member.model, member.seen(loaded)
    folds = [
        Saliency(network, head, how.stage, method=how.method, dtype=model.dtype, device=model.device)
        for network in model.networks
    ]
    names = folds[0].names
    tiling = replace(member.tiling(seen.shape), batch=1, reuse_constant=False)
    image = _Scored(seen, where, tiling)
    sums = [number for number, name in enumerate(names) if _adds_up(name, how)]
    blocks = stream_logits(
        image, [_explaining(fold, image.weights, sums) for fold in folds], tiling, out_channels=len(names),
        device=model.device, whole_rows=True,
    )  # fmt: skip
    values = _in_file((len(names), *given.shape))
    for number, row in enumerate(resampled_rows(_added_up(blocks, sums), member.axes_back(loaded))):
        values[:, number] = row.numpy().clip(0)
    return [_scaled(name, model.name, one, given) for name, one in zip(names, values, strict=True)]


def _scaled(name: str, model: str, values: np.ndarray, given: np.ndarray) -> MadeMap:
    """A map from 0 to 1, in place; coefficients of gates are so already."""
    largest = 1.0 if name.startswith(GATE) else max(float(plane.max()) for plane in values)
    total = within = 0.0
    for plane, inside in zip(values, given, strict=True):
        if largest > 0:
            plane /= largest
        total += float(plane.sum(dtype=np.float64))
        within += float(plane[inside].sum(dtype=np.float64))
    return MadeMap(name, model, values, largest, within / total if total > 0 else None)


def _together(made: Sequence[MadeMap], given: np.ndarray) -> tuple[MadeMap, ...]:
    """The mean of the models' saliency first; then their attention maps."""
    own = [one for one in made if one.name == "saliency"]
    others = tuple(one for one in made if one.name != "saliency")
    if len(own) == 1:
        return (own[0], *others)
    for plane, *more in zip(*(one.values for one in own), strict=True):
        for other in more:
            plane += other
    mean = _scaled("saliency", " and ".join(one.model for one in own), own[0].values, given)
    return (replace(mean, largest=max(one.largest for one in own)), *others)


def _adds_up(name: str, how: How) -> bool:
    """Whether maps of tiles are parts of a sum; otherwise they are averaged."""
    return how.chosen == "hires_cam" if name == "saliency" else not name.startswith(GATE)


def _explaining(fold: Saliency, weights: Tensor, sums: Sequence[int]) -> Network:
    """A fold as a function of tiles (B, C + 1, *tile) whose last channel says which voxels count.

    Tiles are averaged with weights; those maps that add up are divided by the weights first: see `_added_up`.
    """
    importance = gaussian_importance(tuple(weights.shape))

    def maps(tiles: Tensor) -> Tensor:
        found = fold(tiles[:, :-1], tiles[:, -1:] * weights.to(tiles.device))
        found[:, sums] /= importance.to(tiles.device)
        return found

    return maps


def _added_up(blocks: Iterator[Block], sums: Sequence[int]) -> Iterator[Block]:
    """Make sums over the tiles of some of the maps of blocks, in place, of their means."""
    for block in blocks:
        block.logits[sums] *= block.covered
        yield block


class _Scored:
    """An image with a further channel: by how much a voxel's logit counts in the score, over the sum of its weights.

    A tile's own weight of the voxel, `weights` (*tile), makes of it the tile's share of the logit: over all tiles that
    see a voxel, shares add up to 1.
    """

    def __init__(self, image: Image, where: np.ndarray, tiling: Tiling) -> None:
        self._image, self._where = image, where
        self.shape = (image.shape[0] + 1, *image.shape[1:])
        windows = windows_of(image.shape[1:], tiling)
        tile = (1,) * (3 - len(tiling.tile)) + tuple(tiling.tile)
        self._sums = [_sums(windows, axis, tile[axis], size) for axis, size in enumerate(image.shape[1:])]
        weights = torch.ones(())
        for edge in tiling.tile:
            weights = weights[..., None] * torch.from_numpy(_bell(edge))
        self.weights = weights.float()

    def __getitem__(self, index: tuple[slice, slice]) -> np.ndarray:
        channels, rows = index
        z, y, x = self._sums
        sums = z[rows, None, None] * y[:, None] * x
        score = np.where(self._where[rows], 1 / sums, 0).astype(np.float32)
        return np.concatenate([np.asarray(self._image[:, rows]), score[None]])[channels]


def _bell(edge: int) -> np.ndarray:
    """The Gaussian weights along one axis of a tile, float64; without a smallest value, so that they multiply."""
    return np.exp(-0.5 * ((np.arange(edge) - edge // 2) / (edge * SIGMA_SHARE)) ** 2)


def _sums(windows: Sequence[Window], axis: int, edge: int, size: int) -> np.ndarray:
    """The sum of the tiles' weights at each voxel along one axis, float64."""
    total, bell = np.zeros(size), _bell(edge)
    for start in sorted({window[axis] for window in windows}):
        low, high = max(start, 0), min(start + edge, size)
        total[low:high] += bell[low - start : high - start]
    return total


def _in_file(shape: Sequence[int]) -> np.ndarray:
    """Zeros, float32, in a temporary file that is gone with the last array that is mapped from it."""
    with tempfile.TemporaryFile() as file:
        return np.memmap(file, dtype=np.float32, mode="w+", shape=tuple(shape))
