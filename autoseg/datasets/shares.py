"""Nested shares of patients: each is balanced as folds are, and a smaller one lies within every larger one.

The patients are put in an order by halving: the folds' own division (`splits.make_splits`) makes two halves that are
alike in cases and labels, each half is halved again, and so on. The first patients of that order are a share of any
size; halves, quarters and eighths are balanced best.
"""

from collections.abc import Mapping, Sequence

from autoseg.datasets.splits import make_splits

CANDIDATES = 5  # random assignments tried for each half


def nested_shares(
    cases: Sequence[str],
    patients: Mapping[str, str],
    label_volumes: Mapping[str, Sequence[float]],
    shares: Sequence[float],
    *,
    seed: int,
) -> dict[float, tuple[str, ...]]:
    """Choose the cases of each share of the patients.

    Args:
        cases: to choose from, such as those a fold trains on.
        patients: case -> patient.
        label_volumes: case -> volume of each label, as for `make_splits`.
        shares: percent of the patients, above 0 and at most 100; a share holds one patient at least.
        seed: the same seed and the same cases give the same shares.

    Returns:
        Share -> its cases, sorted.
    """
    members: dict[str, list[str]] = {}
    for case in sorted(cases):
        members.setdefault(patients[case], []).append(case)
    sizes = {share: max(1, min(len(members), round(share / 100 * len(members)))) for share in shares}
    order = _halved(sorted(members), members, label_volumes, set(sizes.values()), seed)
    return {
        share: tuple(sorted(case for patient in order[:size] for case in members[patient]))
        for share, size in sizes.items()
    }


def _halved(
    names: list[str],
    members: Mapping[str, Sequence[str]],
    label_volumes: Mapping[str, Sequence[float]],
    cuts: set[int],
    seed: int,
) -> list[str]:
    """The patients in an order whose first `cut` are a balanced part of them, for every cut."""
    if len(names) < 2 or not any(0 < cut < len(names) for cut in cuts):
        return names
    owner = {case: name for name in names for case in members[name]}
    splits = make_splits(
        owner, {case: label_volumes[case] for case in owner}, folds=2, seed=seed, candidates=CANDIDATES
    ).splits
    halves = [list(dict.fromkeys(owner[case] for case in split.validation)) for split in splits]
    first, second = sorted(halves, key=len, reverse=True)
    later = {cut - len(first) for cut in cuts}
    return [
        *_halved(first, members, label_volumes, cuts, seed), *_halved(second, members, label_volumes, later, seed)
    ]  # fmt: skip
