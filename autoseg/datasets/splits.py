"""Which cases train and which validate, in each fold: by patient, stratified, and stable when new cases arrive.

All cases of a patient are in the same fold: two scans of one person look alike, so testing on one after training on the
other proves nothing. Folds are balanced in their number of cases, in which labels occur, and in how large these are:
the best of many seeded random assignments, each improved by moving and exchanging patients while that helps.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np

from autoseg.errors import DataError
from autoseg.messages import some
from autoseg.rules import anything, between, entries, exactly, file_name
from autoseg.workspace import FULL, FoldName

VERSION = 1
CaseId = Annotated[str, file_name()]
CANDIDATES = 20
EXCHANGED_AT_ONCE = 128  # patients considered in one step of the improvement, so that thousands stay quick
STEPS = 400  # of the improvement of one candidate, at most
SIZE_SCALE = 0.5  # cases; against label terms measured in standard deviations of chance: equal sizes come first


@dataclass(frozen=True)
class Split:
    """One fold: case ids, sorted."""

    fold: Annotated[int, between(0, 9999)] | Literal["full"]  # a workspace.FoldName
    train: Annotated[tuple[CaseId, ...], entries(0, distinct=True)]
    validation: Annotated[tuple[CaseId, ...], entries(0, distinct=True)]


@dataclass(frozen=True)
class Splits:
    """All folds of a dataset, and notes about them for the user."""

    version: Annotated[int, exactly(VERSION, f"{VERSION}, the version of splits that this autoseg reads")]
    seed: Annotated[int, between(0, 2**32 - 1)]
    splits: Annotated[tuple[Split, ...], entries(1)]
    test: tuple[CaseId, ...]  # held out: in no fold
    notes: tuple[Annotated[str, anything("any text")], ...]
    group: Annotated[str, anything("any text")] | None = None  # the column of which each fold leaves one value out


def make_splits(
    patients: Mapping[str, str],
    label_volumes: Mapping[str, Sequence[float]],
    *,
    folds: int = 5,
    seed: int,
    existing: Splits | None = None,
    candidates: int = CANDIDATES,
    test: Collection[str] = (),
) -> Splits:
    """Divide the cases into folds by patient.

    Args:
        patients: case id -> patient.
        label_volumes: case id -> volume of each label (any unit, 0 = absent); the same number of labels for every case.
        folds: how many; with fewer patients, as many folds as patients. A single patient gives one fold that validates
            on its own training cases: it shows that the pipeline runs, nothing about new patients; a note explains it.
        seed: the same seed and the same cases give the same folds, in whatever order they come.
        existing: folds made earlier; `folds` and `seed` are then ignored. Their cases stay where they are, a known
            patient's new cases join the patient, new patients go where they balance the folds best. Where `existing`
            is not a partition (made by hand, say one 80:20 split), new cases only train.
        candidates: random assignments tried.
        test: cases to hold out; their patients' other cases are held out with them.

    Raises:
        DataError: there is no case to divide.
    """
    held_out = {patients[case] for case in test if case in patients}
    held_out |= {patients[case] for case in (existing.test if existing else ()) if case in patients}
    cases = sorted(case for case in patients if patients[case] not in held_out)
    outside = tuple(sorted((set(test) | set(existing.test if existing else ()) | set(patients)) - set(cases)))
    if not cases:
        raise DataError("there is no labelled case to make folds from", remedy="add labelled cases to the dataset")
    if existing is not None and not _only_one_patient(existing):
        return _extend(existing, patients, cases, outside, label_volumes, candidates)

    members = _members(cases, patients)
    notes = []
    if len(members) == 1:
        only = next(iter(members))
        notes.append(
            f"WARNING: all cases are of one patient ({only}). The only fold trains and validates on the same cases: "
            "its scores say nothing about other patients."
        )
        return Splits(VERSION, seed, (Split(0, tuple(cases), tuple(cases)),), outside, tuple(notes))
    if len(members) < folds:
        notes.append(f"{len(members)} patients are too few for {folds} folds: {len(members)} folds, one patient each.")
        folds = len(members)
    assignment = _assign(members, {}, label_volumes, folds, seed, candidates)
    return Splits(VERSION, seed, _as_splits(assignment, cases, patients, folds), outside, tuple(notes))


def splits_from_nnunet(
    folds: Sequence[Mapping[str, Sequence[str]]], patients: Mapping[str, str], *, file: str = "splits_final.json"
) -> Splits:
    """Read nnU-Net's list of {"train": [...], "val": [...]} and check it against the patients.

    A patient on both sides of a fold is reported in the notes, not repaired: the user may need exactly these folds.

    Raises:
        DataError: a fold without train or val, a case the data set does not have, a case on both sides of a fold.
    """
    splits = []
    for number, fold in enumerate(folds):
        if set(fold) != {"train", "val"} or not fold["train"] or not fold["val"]:
            raise DataError(
                f"{file}: fold {number} needs two lists, 'train' and 'val', found {sorted(fold) or 'nothing'}",
                remedy="repair the file, or remove it to get new folds",
            )
        both = sorted(set(fold["train"]) & set(fold["val"]))
        unknown = sorted((set(fold["train"]) | set(fold["val"])) - set(patients))
        for wrong, problem in ((both, "in both train and val"), (unknown, "not in the dataset")):
            if wrong:
                raise DataError(
                    f"{file}: fold {number} has {len(wrong)} cases that are {problem}: {some(wrong)}",
                    remedy="repair the file, or remove it to get new folds",
                )
        splits.append(Split(number, tuple(sorted(set(fold["train"]))), tuple(sorted(set(fold["val"])))))
    used = {case for split in splits for case in (*split.train, *split.validation)}
    notes = [f"The folds are those of {file}."]
    if unused := sorted(set(patients) - used):
        notes.append(f"{len(unused)} cases are in no fold of {file}: {some(unused)}")
    found = Splits(VERSION, 0, tuple(splits), (), ())
    return Splits(VERSION, 0, tuple(splits), (), (*notes, *leakage_notes(found, patients)))


def leaking_patients(splits: Splits, patients: Mapping[str, str]) -> dict[FoldName, tuple[str, ...]]:
    """Patients with cases on both sides of a fold: fold -> patients; folds without any are left out."""
    found: dict[FoldName, tuple[str, ...]] = {}
    for split in splits.splits:
        train, validation = ({patients[c] for c in side if c in patients} for side in (split.train, split.validation))
        if both := sorted(train & validation):
            found[split.fold] = tuple(both)
    return found


def leakage_notes(splits: Splits, patients: Mapping[str, str]) -> tuple[str, ...]:
    """One sentence per fold that trains and validates on the same patient."""
    return tuple(
        f"WARNING: fold {fold} trains and validates on the same {len(both)} patients, its scores are too high: "
        f"{some(both)}"
        for fold, both in leaking_patients(splits, patients).items()
    )


def _extend(
    existing: Splits,
    patients: Mapping[str, str],
    cases: list[str],
    outside: tuple[str, ...],
    label_volumes: Mapping[str, Sequence[float]],
    candidates: int,
) -> Splits:
    """Existing folds with gone cases removed and new ones added."""
    present, notes = set(cases), []
    known = {case for split in existing.splits for case in (*split.train, *split.validation)}
    if gone := sorted(known - present - set(outside)):
        notes.append(f"{len(gone)} cases of the folds are no longer in the dataset: {some(gone)}")
    kept = [
        Split(s.fold, *(tuple(case for case in side if case in present) for side in (s.train, s.validation)))
        for s in existing.splits
    ]
    for split in kept:
        if not split.train or not split.validation:
            notes.append(
                f"WARNING: fold {split.fold} has lost all its {'validation' if split.train else 'training'} cases."
            )
    new = [case for case in cases if case not in known]
    home = _homes(kept)
    if new and home is None:
        notes.append(f"{len(new)} new cases only train: the folds are not a partition of the cases: {some(new)}")
        kept = [Split(s.fold, tuple(sorted((*s.train, *new))), s.validation) for s in kept]
    elif new and home is not None:
        locked = {}
        for patient, members in _members([c for c in cases if c in home], patients).items():
            locked[patient] = Counter(home[case] for case in members).most_common(1)[0][0]
        assignment = _assign(_members(cases, patients), locked, label_volumes, len(kept), existing.seed, candidates)
        home |= {case: assignment[patients[case]] for case in new}
        numbers = {s.fold for s in kept}
        kept = [
            Split(f, tuple(c for c in cases if home[c] != f), tuple(c for c in cases if home[c] == f))
            for f in sorted(numbers)
        ]
    found = Splits(VERSION, existing.seed, tuple(kept), outside, ())
    earlier = tuple(note for note in existing.notes if not note.startswith("WARNING: fold"))
    return Splits(VERSION, existing.seed, found.splits, outside, (*earlier, *notes, *leakage_notes(found, patients)))


def _only_one_patient(splits: Splits) -> bool:
    """Whether this is the provisional fold of a single patient, replaced as soon as there are more."""
    return len(splits.splits) == 1 and splits.splits[0].train == splits.splits[0].validation


def _homes(splits: Sequence[Split]) -> dict[str, int] | None:
    """Case -> the fold that validates it, if the folds are a partition: numbered from 0, all others train."""
    home = {case: split.fold for split in splits if split.fold != FULL for case in split.validation}
    partition = len(splits) > 1 and [split.fold for split in splits] == list(range(len(splits)))
    partition &= all(set(split.train) == {c for c in home if home[c] != split.fold} for split in splits)
    partition &= len(home) == sum(len(split.validation) for split in splits)
    return home if partition else None


def _members(cases: Sequence[str], patients: Mapping[str, str]) -> dict[str, list[str]]:
    """Patient -> cases, patients and cases sorted."""
    members: dict[str, list[str]] = {patient: [] for patient in sorted({patients[case] for case in cases})}
    for case in sorted(cases):
        members[patients[case]].append(case)
    return members


def _as_splits(
    assignment: Mapping[str, int], cases: Sequence[str], patients: Mapping[str, str], folds: int
) -> tuple[Split, ...]:
    sides = [
        [tuple(c for c in cases if (assignment[patients[c]] == fold) == inside) for inside in (False, True)]
        for fold in range(folds)
    ]
    return tuple(Split(fold, *pair) for fold, pair in enumerate(sides))


def _assign(
    members: Mapping[str, Sequence[str]],
    locked: Mapping[str, int],
    label_volumes: Mapping[str, Sequence[float]],
    folds: int,
    seed: int,
    candidates: int,
) -> dict[str, int]:
    """Patient -> fold: the best of `candidates` improved random assignments; `locked` patients stay where they are."""
    names = list(members)
    features = _features(members, label_volumes, folds)
    free = np.array([name not in locked for name in names])
    start = np.array([locked.get(name, -1) for name in names])
    best, best_cost = start, np.inf
    for child in np.random.SeedSequence(seed).spawn(candidates if free.any() else 1):
        generator = np.random.default_rng(child)
        assignment = _random_assignment(features[:, 0], start, folds, generator)
        cost = _improve(assignment, features, free, folds, generator)
        if cost < best_cost - 1e-9:
            best, best_cost = assignment, cost
    return dict(zip(names, best.tolist(), strict=True))


def _features(
    members: Mapping[str, Sequence[str]], label_volumes: Mapping[str, Sequence[float]], folds: int
) -> np.ndarray:
    """The features to balance over the folds, summed over a patient's cases: (patients, 1 + 3 labels).

    Column 0 counts cases. Then, per label: presence, volume, and rank of the volume among those present (so that
    one giant does not count as many of ordinary size). These are centred on their mean over all cases, so that a fold's
    sum is 0 when its mean is that of the data set, however many cases it has; and divided by the spread that chance
    would give it.
    """
    cases = [case for group in members.values() for case in group]
    volumes = np.array([label_volumes[case] for case in cases], dtype=np.float64).reshape(len(cases), -1)
    present = (volumes > 0).astype(np.float64)
    ranks = np.argsort(np.argsort(volumes, axis=0, kind="stable"), axis=0) + 1.0 - (volumes <= 0).sum(axis=0)
    ranks *= present / np.maximum(present.sum(axis=0), 1)
    labels = np.concatenate([present, volumes, ranks], axis=1)
    labels -= labels.mean(axis=0)
    chance = labels.std(axis=0) * np.sqrt(len(cases) / folds)
    labels /= np.where(chance > 1e-9 * np.abs(labels).max(axis=0, initial=0.0) + 1e-300, chance, np.inf)
    per_case = np.concatenate([np.full((len(cases), 1), 1 / SIZE_SCALE), labels], axis=1)
    starts = np.cumsum([0, *(len(group) for group in members.values())])[:-1]
    return np.add.reduceat(per_case, starts, axis=0)


def _random_assignment(sizes: np.ndarray, start: np.ndarray, folds: int, generator: np.random.Generator) -> np.ndarray:
    """Give the free patients (-1 in `start`) in random order, large ones first, to the fold with the fewest cases."""
    assignment = start.copy()
    load = np.bincount(start[start >= 0], weights=sizes[start >= 0], minlength=folds)
    order = generator.permutation(np.flatnonzero(start < 0))
    for patient in order[np.argsort(-sizes[order], kind="stable")]:
        lightest = np.flatnonzero(load <= load.min() + 1e-9)
        assignment[patient] = generator.choice(lightest)
        load[assignment[patient]] += sizes[patient]
    return assignment


def _improve(
    assignment: np.ndarray, features: np.ndarray, free: np.ndarray, folds: int, generator: np.random.Generator
) -> float:
    """Move or exchange free patients, in place, while that lowers the cost; return the cost.

    The cost is the sum over folds and features of (sum in the fold - fair share)^2. With r the excess of a fold, giving
    a patient x from fold f to g changes it by 2 (r_g - r_f).x + 2 |x|^2; exchanging patients is giving the difference.
    """
    movable = np.flatnonzero(free)
    fair = features.sum(axis=0) / folds
    excess = np.stack([features[assignment == fold].sum(axis=0) for fold in range(folds)]) - fair
    fruitless = 0
    for _ in range(STEPS):
        chosen = movable
        if len(movable) > EXCHANGED_AT_ONCE:
            chosen = generator.choice(movable, EXCHANGED_AT_ONCE, replace=False)
        if not len(chosen):
            break
        x, home = features[chosen], assignment[chosen]
        projection = x @ excess.T  # (patients, folds)
        own = projection[np.arange(len(x)), home]
        square = np.einsum("ij,ij->i", x, x)
        move = 2 * (projection - own[:, None]) + 2 * square[:, None]
        move[np.arange(len(x)), home] = 0
        counts = np.bincount(assignment, minlength=folds)
        move[counts[home] == 1] = 0  # a fold keeps its last patient
        across = projection[:, home]  # [a, b]: x_a . r(fold of b)
        distance = square[:, None] + square[None, :] - 2 * x @ x.T
        exchange = 2 * (across + across.T - own[:, None] - own[None, :]) + 2 * distance
        exchange[home[:, None] == home[None, :]] = 0
        if min(move.min(), exchange.min()) > -1e-9:
            fruitless += 1
            if len(chosen) == len(movable) or fruitless == 10:
                break
            continue
        if move.min() < exchange.min():
            a, fold = np.unravel_index(move.argmin(), move.shape)
            changes = [(chosen[a], fold)]
        else:
            a, b = np.unravel_index(exchange.argmin(), exchange.shape)
            changes = [(chosen[a], home[b]), (chosen[b], home[a])]
        for patient, fold in changes:
            excess[assignment[patient]] -= features[patient]
            excess[fold] += features[patient]
            assignment[patient] = fold
    return float((excess**2).sum())
