"""Checks of the grids of a case and of a dataset.

    align          the files of a case on one grid, with what is odd about them and the problems of those that are not
    header_notes   what is odd about headers that are read nevertheless, counted over the data set
    odd_grids      cases whose voxel size and extent no unit of length reconciles with the others
    mixed_sizes    files that state their voxel size, among files that do not
    partly_placed  the same for their position in space

`load_case` and `problems.check` share the first; the others compare the cases of a set. A unit that is wrong (metres or
micrometres written as millimetres, inches, centimetres) changes voxel size *and* extent by one factor; honest mixtures
of scanners, crops and slice thicknesses change one of them, or both by less. So the two are looked at together, and the
cases sorted into groups between which there is a gap: that needs no assumption about what is scanned (a whole set in
micrometres is microscopy), and works for six cases as for six hundred.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from autoseg.datasets.pairing import Problem
from autoseg.imaging.alignment import compare_grids
from autoseg.imaging.geometry import NO_PLACE, Geometry, Remark, Volume, orientation_of, reorient_geometry

IMPOSSIBLE = 50.0  # voxel size and extent of all axes, or of one, are off by more than this: an error
ODD = 6.0  # the same for all axes together: a warning (10 is centimetres as millimetres, 25.4 inches)
LARGEST_EXTENT_MM = 10_000.0  # no scanner covers more
NAMED = 3  # cases named one by one in a message about many
UNITS = ((1e6, "nanometres"), (1e3, "metres or micrometres"), (25.4, "inches"), (10.0, "centimetres"))


@dataclass
class Aligned:
    """The files of a case on one grid: that of the first image that has a place, or of the first."""

    reference: str = ""  # the file whose grid it is
    volumes: dict[str, Volume] = field(default_factory=dict)  # by file; those with a problem are not in it
    problems: list[Problem] = field(default_factory=list)
    remarks: list[tuple[str, Remark]] = field(default_factory=list)  # file, what is odd about it although it is used


def align(case_id: str, images: Mapping[str, Volume], label: tuple[str, Volume] | None) -> Aligned:
    """Bring the files of a case onto one grid, as far as that takes no interpolation.

    An array is only ever permuted and reversed, to the order of axes of the image whose grid is kept. Without an image,
    the label is its own reference.
    """
    files = {**images, **({} if label is None else {label[0]: label[1]})}
    aligned = Aligned()
    if not files:
        return aligned
    reference = next((file for file, volume in images.items() if volume.geometry.placed), next(iter(files)))
    grid, aligned.reference = files[reference].geometry, reference
    for file, volume in files.items():
        aligned.remarks += [(file, remark) for remark in volume.geometry.remarks]
        if file == reference:
            aligned.volumes[file] = volume
            continue
        match = compare_grids(volume.geometry, grid, _name_beside(reference, file))
        if not match.usable:
            aligned.problems += [Problem(case_id, file, what, match.remedy) for what in match.differences]
            continue
        aligned.volumes[file] = Volume(np.ascontiguousarray(match.apply(volume.array)), grid)
        if (remark := match.remark()) is not None:
            aligned.remarks.append((file, remark))
    if any(remark.kind == "unplaced" for _, remark in aligned.remarks):  # which covers the others
        aligned.remarks = [noted for noted in aligned.remarks if noted[1].kind != NO_PLACE]
    return aligned


def header_notes(notes: Sequence[tuple[str, str, Remark]]) -> list[Problem]:
    """Warnings about headers: one by one where they are few of a kind, otherwise one with their number.

    Args:
        notes: (case id, file, remark).
    """
    kinds: dict[str, list[tuple[str, str, Remark]]] = {}
    for note in notes:
        kinds.setdefault(note[2].kind, []).append(note)
    problems = []
    for group in kinds.values():
        _, file, remark = group[0]
        if len(group) <= NAMED:
            problems += [Problem(c, f, r.what, r.remedy, "warning") for c, f, r in group]
            continue
        names = ", ".join(Path(f).name for _, f, _ in group[:NAMED])
        what = f"{len(group)} files alike ({names}, ...): {remark.what}"
        problems.append(Problem(None, file, what, remark.remedy, "warning"))
    return problems


def odd_grids(grids: Mapping[str, tuple[str, Geometry]]) -> list[Problem]:
    """Cases whose voxel size and extent are off by one factor from those of most others.

    Args:
        grids: case id -> (its first image, its grid).
    """
    known = {case_id: (file, _canonical(grid)) for case_id, (file, grid) in grids.items() if grid.sized}
    problems: dict[str, Problem] = {}
    for axes, least, severity in (
        ((0, 1, 2), IMPOSSIBLE, "error"), ((0,), IMPOSSIBLE, "error"), ((1,), IMPOSSIBLE, "error"),
        ((2,), IMPOSSIBLE, "error"), ((0, 1, 2), ODD, "warning"),
    ):  # fmt: skip
        for case_id, others, factor in _off(known, axes, least):
            if case_id not in problems:
                problems[case_id] = _odd(case_id, known, others, factor, severity)
    if not problems and known:
        problems |= _huge(known)
    return [problems[case_id] for case_id in sorted(problems)]


def mixed_sizes(grids: Mapping[str, tuple[str, Geometry]]) -> list[Problem]:
    """Images that state their pixel size, among others that do not: those of the rarer kind."""
    return [
        problem
        for flat in (True, False)
        for problem in _mixed_sizes({case_id: found for case_id, found in grids.items() if found[1].flat is flat})
    ]


def partly_placed(grids: Mapping[str, tuple[str, Geometry]]) -> list[Problem]:
    """Volumes without an orientation (left and right unknown), among others that have one; one warning for all."""
    placed = [case_id for case_id, (_, grid) in grids.items() if not grid.flat and grid.placed]
    unplaced = [case_id for case_id, (_, grid) in grids.items() if not grid.flat and not grid.placed]
    if not placed or not unplaced:
        return []
    names = ", ".join(unplaced[:NAMED]) + (", ..." if len(unplaced) > NAMED else "")
    what = (
        f"{len(unplaced)} of {len(placed) + len(unplaced)} cases have no position in space ({names}), the "
        "others do: they may be mirrored or rotated relative to them"
    )
    remedy = "compare some of both kinds in a viewer; write the correct affine into the headers that have none"
    return [Problem(None, grids[unplaced[0]][0], what, remedy, "warning")]


def _mixed_sizes(grids: Mapping[str, tuple[str, Geometry]]) -> list[Problem]:
    sized = [case_id for case_id in grids if grids[case_id][1].sized]
    unsized = [case_id for case_id in grids if not grids[case_id][1].sized]
    if not sized or not unsized:
        return []
    rare, common = (unsized, sized) if len(unsized) <= len(sized) else (sized, unsized)
    example = grids[sized[0]][1]
    stated = f"{sized[0]} states {_edges(example)}"
    said = f"states its voxel size, but {len(common)} others do not ({stated})"
    if rare is unsized:
        said = f"does not state its voxel size, but {len(common)} others do ({stated})"
    remedy = (
        "state it for all, or for none: in the tags or, for a TIFF image, in a .json file of the same name: "
        '{"spacing": [z, y, x]} in mm'
    )
    return [Problem(case_id, grids[case_id][0], said, remedy) for case_id in rare]


def _canonical(grid: Geometry) -> Geometry:
    return reorient_geometry(grid, *orientation_of(grid))


def _off(
    known: Mapping[str, tuple[str, Geometry]], axes: Sequence[int], least: float
) -> list[tuple[str, list[str], float]]:
    """Cases outside the largest group: (case id, that group, factor of voxel size to it).

    Voxel size and extent are geometric means over the axes. Groups are parted where both jump by `least` or more.
    """
    sizes = {}
    for case_id, (_, grid) in known.items():
        used = [a for a in axes if not (grid.flat and a == 0)]
        if used and (len(used) > 1 or grid.shape[used[0]] > 1):
            edges = np.array([grid.spacing[a] for a in used])
            sizes[case_id] = (
                float(np.log(edges).mean()),
                float(np.log(edges * np.array([grid.shape[a] for a in used])).mean()),
            )
    ordered = sorted(sizes, key=lambda case_id: sizes[case_id][0])
    groups: list[list[str]] = []
    for case_id in ordered:
        if groups and sizes[case_id][0] - sizes[groups[-1][-1]][0] < math.log(least):
            groups[-1].append(case_id)
        else:
            groups.append([case_id])
    if len(groups) < 2:
        return []
    most = max(len(group) for group in groups)
    found = []
    for group in groups:
        largest = next((other for other in groups if len(other) == most and other is not group), None)
        if largest is None:  # this one is the largest
            continue
        middle = np.median([sizes[case_id] for case_id in largest], axis=0)
        for case_id in group:
            size, extent = np.array(sizes[case_id]) - middle
            if abs(size) >= math.log(least) and abs(extent) >= math.log(least) and size * extent > 0:
                found.append((case_id, largest, float(np.exp(size))))
    return found


def _odd(
    case_id: str, known: Mapping[str, tuple[str, Geometry]], others: Sequence[str], factor: float, severity: str
) -> Problem:
    file, grid = known[case_id]
    times = f"{_number(factor)} times larger" if factor > 1 else f"{_number(1 / factor)} times smaller"
    typical = known[others[len(others) // 2]][1]
    what = (
        f"voxels of {_edges(grid)}, an image of {_extent(grid)}: {times} than {len(others)} other "
        f"case{'s' * (len(others) != 1)} (such as {others[len(others) // 2]}: {_edges(typical)}, {_extent(typical)})"
    )
    ratio = max(factor, 1 / factor)
    unit = next((name for size, name in UNITS if size / 1.6 <= ratio <= size * 1.6), "")
    guess = f"; it looks like {unit} read as millimetres, or the reverse" if unit else ""
    remedy = f"correct the voxel size in the header of image and label{guess}; or leave the case out"
    if severity == "warning":
        remedy = f"check whether it is correct; if not, {remedy}"
        return Problem(case_id, file, what, remedy, "warning")
    return Problem(case_id, file, what, remedy)


def _huge(known: Mapping[str, tuple[str, Geometry]]) -> dict[str, Problem]:
    """A dataset whose images share an extent that no scanner covers."""
    middle = sorted(known, key=lambda case_id: max(_extents(known[case_id][1])))[len(known) // 2]
    file, grid = known[middle]
    if max(_extents(grid)) <= LARGEST_EXTENT_MM:
        return {}
    what = f"an image of {_extent(grid)}, like most of the dataset: no scanner covers that much"
    remedy = (
        "training uses only ratios and is unaffected, but distances in mm are wrong: correct the unit in all headers"
    )
    return {middle: Problem(None, file, what, remedy, "warning")}


def _extents(grid: Geometry) -> list[float]:
    first = 1 if grid.flat else 0
    return [n * s for n, s in zip(grid.shape, grid.spacing, strict=True)][first:]


def _edges(grid: Geometry) -> str:
    return " x ".join(_number(s) for s in grid.spacing[1 if grid.flat else 0 :]) + " mm"


def _extent(grid: Geometry) -> str:
    return " x ".join(_number(e) for e in _extents(grid)) + " mm"


def _number(value: float) -> str:
    """Three significant digits: 1000, and not 1e+03."""
    return f"{float(f'{value:.3g}'):g}"


def _name_beside(file: str, other: str) -> str:
    """The name of a file, with its folder where the other file has the same name."""
    path = Path(file)
    return path.name if path.name != Path(other).name else f"{path.parent.name}/{path.name}"
