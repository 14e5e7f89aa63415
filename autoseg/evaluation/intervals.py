"""How sure a mean over cases is: a bootstrap over patients, whose cases are not independent of each other."""

from collections.abc import Hashable, Sequence

import numpy as np

DRAWS = 2000
SEED = 1234
LEVEL = 0.95


def interval_of_ratio(
    parts: Sequence[float], wholes: Sequence[float], groups: Sequence[Hashable], *, level: float = LEVEL
) -> tuple[float, float] | None:
    """Percentile interval of sum(parts) / sum(wholes), by drawing whole groups with replacement.

    Args:
        parts, wholes: one per case, such as objects that match and objects in either map.
        groups: the patient of each.

    Returns:
        Lower and upper end; None for fewer than two groups.
    """
    order = {group: i for i, group in enumerate(dict.fromkeys(groups))}
    if len(order) < 2:
        return None
    index = np.array([order[group] for group in groups])
    part, whole = (np.bincount(index, weights=np.asarray(values, float)) for values in (parts, wholes))
    drawn = np.random.default_rng(SEED).integers(len(order), size=(DRAWS, len(order)))
    below = whole[drawn].sum(axis=1)
    ratios = part[drawn].sum(axis=1)[below > 0] / below[below > 0]
    low, high = np.quantile(ratios, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def interval_of_mean(
    values: Sequence[float], groups: Sequence[Hashable], *, level: float = LEVEL
) -> tuple[float, float] | None:
    """Percentile interval of a mean, by drawing whole groups with replacement; the same for the same values.

    Args:
        values: one per case.
        groups: the patient of each.

    Returns:
        Lower and upper end; None for fewer than two groups, whose spread nobody knows.
    """
    order = {group: i for i, group in enumerate(dict.fromkeys(groups))}
    if len(order) < 2:
        return None
    index = np.array([order[group] for group in groups])
    sums = np.bincount(index, weights=np.asarray(values, float))
    counts = np.bincount(index)
    drawn = np.random.default_rng(SEED).integers(len(order), size=(DRAWS, len(order)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
