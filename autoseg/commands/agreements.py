"""What `export` compares on a few held-out cases, for the table of agreements that the model carries with it.

    streamed against dense       a case row by row, as `predict` does, and everything at once
    archive against workspace    the same case by a file that was exported, and by the workspace
    ONNX against torch           the same case with the exported network in the place of torch's

One fold is compared, on cases that it held out, without flips. Where nobody says how many cases, there are as many as
two minutes allow, at most two.
"""

import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from autoseg.datasets.dataset import Case, Dataset, LoadedCase, load_case
from autoseg.datasets.splits import Splits
from autoseg.lines import LOG
from autoseg.messages import counted
from autoseg.models.agreements import Agreement
from autoseg.processes import free_memory
from autoseg.records import load
from autoseg.workspace import FULL, FoldName, Workspace

if TYPE_CHECKING:  # torch is imported when something is compared
    from autoseg.models.exporting import ModelToExport
    from autoseg.models.model import Model

CASES = 2  # where nobody says how many
MOST_SECONDS = 120.0  # then, for all of them
MEMORY_SHARE = 0.5  # of the free memory that a case which is held at once may use
WAYS = 3  # each case is computed: streamed, at once, by the file


@dataclass(frozen=True)
class HeldOut:
    """What is compared: one fold of a model, on cases that it did not see."""

    model: "Model"  # of that fold alone
    cases: tuple[Case, ...]

    @property
    def fold(self) -> FoldName:
        return self.model.folds[0]

    def described(self, voxels: int) -> str:
        """What was compared, without the name of a case."""
        kind = "case" if self.fold == FULL else "held-out case"
        which = "the model of all cases" if self.fold == FULL else f"fold {self.fold}"
        return f"{which} of {self.model.name}, {counted(len(self.cases), kind)} of {voxels} voxels, without flips"


def held_out_of(workspace: Workspace, model: "Model", most: int | None) -> HeldOut | None:
    """A fold of a model and the smallest cases that it held out; None, and a note, where nothing can be compared.

    Args:
        most: how many cases; None: as many as MOST_SECONDS allow.
    """
    if most == 0:
        return None
    if not workspace.dataset.exists() or not workspace.splits.exists():
        LOG.info(f"note: {model.name} came without cases: nothing is compared on images")
        return None
    known = {case.id: case for case in load(Dataset, workspace.dataset).cases}
    validation = {split.fold: split.validation for split in load(Splits, workspace.splits).splits}
    for fold in model.folds:
        ids = known if fold == FULL else validation.get(fold, ())
        cases = [known[i] for i in ids if i in known and all(Path(file).exists() for file in known[i].images)]
        if not cases:
            continue
        one = alone(model, fold)
        chosen = _affordable(one, sorted(cases, key=_voxels), most)
        if chosen:
            return HeldOut(one, chosen)
        LOG.info(
            f"note: nothing is compared on images: a case of {model.name} takes too long, or more memory than there "
            "is; --compare N does it on N cases"
        )
        return None
    LOG.info(f"note: the images that {model.name} held out are not where they were: nothing is compared on them")
    return None


def alone(model: "Model", fold: FoldName) -> "Model":
    """One fold of a model, after the same fold of its previous stage, or all of it where it lacks that one."""
    number = model.folds.index(fold)
    previous = model.previous
    if previous is not None and fold in previous.folds:
        previous = alone(previous, fold)
    return replace(model, folds=(fold,), networks=(model.networks[number],), previous=previous)


def compare_streamed(held_out: HeldOut, packed: "Sequence[ModelToExport]") -> list[Agreement]:
    """Segment the cases as `predict` does, at once, and by a file that holds the fold.

    Args:
        packed: the model as it is exported, and after it its previous stage, if it has one.
    """
    from autoseg.inference.dense import UNMIRRORED, Compared, compare, labels_at_once
    from autoseg.inference.member import EnsembleMember, decide
    from autoseg.models.identity import weights_digest

    model = held_out.model
    total, by_file = Compared(0, 0, 0), 0
    with tempfile.TemporaryDirectory() as folder:
        exported = _as_opened(packed, model, Path(folder) / "fold.zip")
        members = [[EnsembleMember(one, UNMIRRORED)] for one in (model, exported)]
        for case in held_out.cases:
            loaded = _loaded(case, model)
            labels, again = (decide(one, loaded) for one in members)
            by_file += int((labels != again).sum())
            total += compare(labels, labels_at_once(model, loaded))
        del exported, members  # whose weights are mapped from the file
    on, weights = held_out.described(total.voxels), weights_digest(model.networks[0])
    dense = "streamed against dense"
    return [
        Agreement(dense, on, "voxels with another label, ties aside", total.differ - total.ties, 0.0, weights),
        Agreement(dense, on, "ties (equal logits) with another label", total.ties, None, weights),
        Agreement("archive against workspace", on, "voxels with another label", by_file, 0.0, weights),
    ]


def compare_onnx(held_out: HeldOut, file: Path) -> list[Agreement]:
    """Segment the cases with an exported network, and with torch in float32.

    Args:
        file: of the fold's network.
    """
    from autoseg.inference.dense import UNMIRRORED, Compared, compare, labels_at_once
    from autoseg.inference.member import EnsembleMember, decide
    from autoseg.models.identity import weights_digest
    from autoseg.models.onnx import TOLERANCE, WHAT, OnnxNetwork

    torch_model = replace(held_out.model, dtype="float32")
    member = EnsembleMember(replace(torch_model, networks=(OnnxNetwork(file),)), UNMIRRORED)
    total = Compared(0, 0, 0)
    for case in held_out.cases:
        loaded = _loaded(case, torch_model)
        total += compare(decide([member], loaded), labels_at_once(torch_model, loaded), tie=2 * TOLERANCE)
    on, weights = held_out.described(total.voxels), weights_digest(torch_model.networks[0])
    return [
        Agreement(WHAT, on, "voxels with another label, ties aside", total.differ - total.ties, 0.0, weights),
        Agreement(WHAT, on, "ties (equal logits) with another label", total.ties, None, weights),
    ]


def _loaded(case: Case, model: "Model") -> LoadedCase:
    plan = model.plan
    return load_case(case, None, channels=plan.channels, orientation=plan.orientation, axis_order=plan.axis_order)


def _as_opened(packed: "Sequence[ModelToExport]", model: "Model", path: Path) -> "Model":
    """The fold of a model (and of its previous stage) as it is when it was exported and opened."""
    import torch

    from autoseg.models.exporting import About, write_archive
    from autoseg.models.opening import open_models

    folds: dict[str, tuple[FoldName, ...]] = {model.name: model.folds}
    if model.previous is not None:
        folds[model.previous.name] = model.previous.folds
    parts = [replace(one, folds=tuple(f for f in one.folds if f.fold in folds[one.name]), records={}) for one in packed]
    write_archive(path, parts, About((model.name,), "", None))
    (opened,) = open_models(path, device=torch.device("cpu"))
    return opened


def _affordable(model: "Model", cases: Sequence[Case], most: int | None) -> tuple[Case, ...]:
    """The first cases, as many as were asked for, or as many as time and memory allow."""
    from autoseg.inference.dense import bytes_needed, tiles_of

    seconds = 0.0 if most is not None else _forward_seconds(model)
    chosen: list[Case] = []
    spent = 0.0
    for case in cases[: CASES if most is None else most]:
        shape, grid = _extent(case, model)
        spent += WAYS * seconds * tiles_of(model, grid)
        if bytes_needed(model, shape, grid) > MEMORY_SHARE * free_memory() or spent > MOST_SECONDS:
            break
        chosen.append(case)
    return tuple(chosen)


def _forward_seconds(model: "Model") -> float:
    """Seconds that a tile takes here, measured on one of zeros."""
    import torch

    shape = (1, model.plan.input_channels(model.configuration), *model.configuration.patch_size)
    began = time.perf_counter()
    with torch.inference_mode():
        model.networks[0](torch.zeros(shape))
    return time.perf_counter() - began


def _voxels(case: Case) -> int:
    from autoseg.imaging.formats.readers import read_geometry

    return math.prod(read_geometry(Path(case.images[0])).shape)


def _extent(case: Case, model: "Model") -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shape of an image (Z, Y, X), and of its grid if nothing is cropped, both in the plan's axis order, about."""
    from autoseg.imaging.formats.readers import read_geometry
    from autoseg.preprocessing.prepare import target_spacing

    geometry, order = read_geometry(Path(case.images[0])), model.plan.axis_order
    shape, spacing = (tuple(of[axis] for axis in order) for of in (geometry.shape, geometry.spacing))
    target = target_spacing(model.configuration, spacing)  # type: ignore[arg-type]
    grid = tuple(max(1, round(n * old / new)) for n, old, new in zip(shape, spacing, target, strict=True))
    return shape, grid  # type: ignore[return-value]
