"""Every held-out case through the networks of its own fold, once: counted for each ensemble that is considered.

What is counted is kept in the folder of the first model, `margins/<ensemble>/<case>.npz`, with a key of what it was
made of, so that choosing again takes seconds.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from autoseg.datasets.dataset import Case, load_case
from autoseg.evaluation.held_out import described_options
from autoseg.evaluation.margins import HALF, REACH, STEP, MarginCounter, MarginTable
from autoseg.imaging.components import as_slices
from autoseg.inference.member import EnsembleMember, Preparations, decide
from autoseg.inference.options import InferenceOptions
from autoseg.models.identity import fold_digests

if TYPE_CHECKING:
    from collections.abc import Iterator

    from autoseg.models.model import Model

Ensembles = Mapping[str, tuple[int, ...]]  # name -> numbers of its models


def tables_of_cases(
    models: "Sequence[Model]", cases: Sequence[Case], ensembles: Ensembles, folder: Path
) -> "Iterator[tuple[str, dict[str, MarginTable]]]":
    """Case id and, by ensemble, the counted logits of each held-out case.

    Args:
        models: of the one fold that holds the cases out.
        folder: where tables are kept: `margins`.

    Raises:
        DataError: an image or a label cannot be read.
    """
    options = InferenceOptions()
    digests = [
        f"{model.name} {sorted(fold_digests(model).values())} {described_options(model, options)}" for model in models
    ]
    shared = Preparations()
    members = [EnsembleMember(model, options, shared) for model in models]
    for case in cases:
        state = _state(case)
        keys = {name: _key([digests[number] for number in own], state) for name, own in ensembles.items()}
        paths = {name: folder / name / f"{case.id}.npz" for name in ensembles}
        found = {name: table for name in ensembles if (table := MarginTable.load(paths[name], keys[name]))}
        if len(found) < len(ensembles):
            missing = {name: own for name, own in ensembles.items() if name not in found}
            made = _count(members, case, missing)
            for name, table in made.items():
                table.save(paths[name], keys[name])
            found |= made
            shared.forget()
        yield case.id, found


def _count(members: Sequence[EnsembleMember], case: Case, ensembles: Ensembles) -> dict[str, MarginTable]:
    """Run the models over one case and count what each ensemble would decide by."""
    plan = members[0].model.plan
    loaded = load_case(
        case, plan.labels, channels=plan.channels, orientation=plan.orientation, axis_order=plan.axis_order
    )
    assert loaded.target is not None, "held-out cases have a label"
    used = sorted({number for own in ensembles.values() for number in own})
    running = [members[number] for number in used]
    classes = plan.labels.num_labels + 1
    inside = loaded.target[as_slices(running[0].prepare(loaded).placement.box)]
    outside = _by_class(loaded.target, classes) - _by_class(inside, classes)
    counters = {
        name: MarginCounter(plan.heads, inside, {used.index(number): number for number in own}, outside)
        for name, own in ensembles.items()
    }
    decide(running, loaded, [*counters.values()])
    return {name: counter.result() for name, counter in counters.items()}


def _by_class(target: np.ndarray, classes: int) -> np.ndarray:
    """Voxels (C,) of each class; those that are not annotated are not counted."""
    return np.bincount(target[(target >= 0) & (target < classes)].astype(np.int64), minlength=classes)


def _state(case: Case) -> str:
    """Files of a case with their sizes and times."""
    files = [Path(file) for file in (*case.images, *([case.label] if case.label else []))]
    return "\n".join(f"{file} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files)


def _key(digests: Sequence[str], state: str) -> str:
    text = "\n".join([f"{STEP} {REACH} {HALF}", *digests, state])
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
