"""Regions written one over another: which order preserves every label, and which loses some.

A region is a union of labels with one head. To write a label map, each region in turn writes its value where it was
found, over those before it. For a voxel of label v, a perfect network then writes the value
of the last region that contains v. The voxel must be in the same regions as before, or what was found is lost.
"""

import json
from collections.abc import Mapping, Sequence

from autoseg.errors import UsageError

Regions = Mapping[str, Sequence[int]]  # name -> label values it contains


def refuse_lost_labels(regions: Regions, written: Sequence[int], *, as_option: bool = False) -> None:
    """Refuse values to write (one per region, in order) that take a voxel out of its regions, or into others.

    Args:
        as_option: the regions came with `--regions`, and not in a dataset.json.

    Raises:
        UsageError: a label is lost; the message names it, and the order that works.
    """
    for value in sorted({value for union in regions.values() for value in union}):
        inside = [name for name, union in regions.items() if value in union]
        last = inside[-1]
        result = written[[*regions].index(last)]
        after = [name for name, union in regions.items() if result in union]
        if after != inside:
            raise UsageError(
                f"the regions cannot be written in this order: where {_and(inside)} {_are(inside)} found (label "
                f"{value}), {last} writes {result} last, which belongs to {_and(after) if after else 'no region'}",
                remedy=order_that_works(regions, as_option=as_option),
            )


def order_that_works(regions: Regions, *, as_option: bool = False) -> str:
    """Suggest an order of the regions, largest first, and the value each writes; or the region that is missing."""
    order = sorted(regions, key=lambda name: -len(set(regions[name])))
    values = []
    for i, name in enumerate(order):
        later = {value for inner in order[i + 1 :] for value in regions[inner]}
        own = [value for value in regions[name] if value not in later]
        if not own:
            return f"{name} has no label of its own: remove it, or give its outer part a label"
        values.append(min(own, key=lambda value: sum(value in union for union in regions.values())))
    ordered = {name: list(regions[name]) for name in order}
    for value in sorted({value for union in regions.values() for value in union}):
        inside = {name for name in order if value in regions[name]}
        last = max(inside, key=order.index)
        result = values[order.index(last)]
        if inside != {name for name in order if result in regions[name]}:
            return (
                f"no order works, because the label {value} is in {_and(sorted(inside))} and no region covers "
                f"both: add one that contains {value} alone"
            )
    if as_option:
        option = ",".join(f"{name}={'+'.join(map(str, union))}" for name, union in ordered.items())
        return f'write the outermost first: --regions "{option}"'
    return f'write the outermost first: "labels": {json.dumps(ordered)}, "regions_class_order": {values}'


def never_written(regions: Regions, written: Sequence[int]) -> dict[int, int]:
    """Label values that no segmentation will contain -> the value written instead."""
    values = sorted({value for union in regions.values() for value in union})
    last = {value: [name for name, union in regions.items() if value in union][-1] for value in values}
    result = {value: written[[*regions].index(name)] for value, name in last.items()}
    return {value: other for value, other in result.items() if value != other}


def _and(names: Sequence[str]) -> str:
    return " and ".join(names)


def _are(names: Sequence[str]) -> str:
    return "are" if len(names) > 1 else "is"
