"""Polygons to masks and masks to polygons, in one slice.

    inside      one polygon -> mask, by the centres of pixels
    rasterise   polygons -> mask; nested polygons are holes, and islands in holes
    trace       mask -> polygons, one for each part, its holes joined to it by cuts of no width
    edges       mask -> the edges of its pixels as closed lines, outer ones and those of holes apart

Points are (x, y) in pixels: the centre of pixel [row, column] is (column, row). `rasterise(trace(mask))` is the mask,
exactly: the outlines run half-way between the centres of pixels inside and outside.
"""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

Polygon = np.ndarray  # (n, 2) float, (x, y) of its corners; the last is joined to the first
CROSSINGS = 2**20  # of a polygon with rows, computed at once


def rasterise(polygons: Sequence[Polygon], shape: tuple[int, int]) -> np.ndarray:
    """Fill polygons that belong to one structure.

    A polygon inside another one is a hole, a third one inside that hole is filled again (even-odd). Polygons that
    overlap in part are united. A pixel belongs to a polygon if its centre does.

    Returns:
        (rows, columns) bool.
    """
    filled = np.zeros(shape, dtype=bool)
    masks = [mask for polygon in polygons if (mask := inside(polygon, shape)).any()]
    for mask in sorted(masks, key=lambda one: -int(one.sum())):
        common = mask & filled
        nested = not common.any() or np.array_equal(common, mask)
        filled = filled ^ mask if nested else filled | mask
    return filled


def trace(mask: np.ndarray) -> list[Polygon]:
    """Outline the parts of a mask (rows, columns); pixels that touch at corners alone are parts of their own.

    Returns:
        One polygon per part, without crossings: a part with holes is cut open along a line from each hole to its
        outside (a keyhole), which every program that fills polygons understands.
    """
    parts, count = ndimage.label(mask)
    polygons = []
    for part, box in zip(range(1, count + 1), ndimage.find_objects(parts), strict=True):
        if box is None:
            continue
        loops = _loops(parts[box] == part)
        loops.sort(key=lambda loop: -abs(_area(loop)))
        outer, *holes = loops
        for hole in sorted(holes, key=lambda loop: -float(loop[:, 0].max())):
            outer = _joined(outer, hole)
        polygons.append(outer + np.array([box[1].start, box[0].start], dtype=np.float64))
    return polygons


def edges(mask: np.ndarray) -> tuple[list[Polygon], list[Polygon]]:
    """Follow the edges of the pixels of a mask (rows, columns); pixels that touch at corners alone are parts apart.

    Returns:
        Outer lines, and lines around holes: (n, 2) corners of pixels, the top left corner of pixel [0, 0] being (0, 0).
        The signed areas of the first less those of the second are the number of pixels.
    """
    outer: list[Polygon] = []
    holes: list[Polygon] = []
    for loop in _loops(mask, corners=True):
        (outer if _area(loop) > 0 else holes).append(loop)
    return outer, holes


def inside(polygon: Polygon, shape: tuple[int, int]) -> np.ndarray:
    """Fill one polygon (even-odd): the pixels whose centres are inside.

    Of centres on its line, those on left and upper edges are inside and those on right and lower edges are not, so that
    polygons that share an edge share no pixel. Memory is bounded by the shape, whatever the polygon.

    Returns:
        (rows, columns) bool.
    """
    start = np.asarray(polygon, dtype=np.float64)
    stop = np.roll(start, -1, axis=0)
    low, high = np.minimum(start[:, 1], stop[:, 1]), np.maximum(start[:, 1], stop[:, 1])
    first = np.clip(np.ceil(low), 0, shape[0]).astype(np.int64)  # rows with low <= y < high
    last = np.clip(np.ceil(high), 0, shape[0]).astype(np.int64)
    toggles = np.zeros((shape[0], shape[1] + 1), dtype=bool)
    total = np.cumsum(last - first)
    done = 0
    while done < len(start):  # a part of the edges at a time: each crosses no more than all rows
        before = int(total[done - 1]) if done else 0
        upto = max(done + 1, int(np.searchsorted(total, before + CROSSINGS, side="right")))
        _toggle(toggles, start[done:upto], stop[done:upto], first[done:upto], last[done:upto])
        done = upto
    return np.logical_xor.accumulate(toggles, axis=1)[:, :-1]


def _toggle(toggles: np.ndarray, start: Polygon, stop: Polygon, first: np.ndarray, last: np.ndarray) -> None:
    """Mark, in each row that an edge crosses, the first column right of the crossing."""
    (x0, y0), (x1, y1) = start.T, stop.T
    counts = last - first
    edge = np.repeat(np.arange(len(start)), counts)
    rows = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts) + first[edge]
    share = (rows - y0[edge]) / (y1[edge] - y0[edge])
    x = x0[edge] + share * (x1[edge] - x0[edge])
    columns = np.clip(np.ceil(x - 1e-9), 0, toggles.shape[1] - 1).astype(np.int64)
    places, times = np.unique(rows * toggles.shape[1] + columns, return_counts=True)
    toggles.reshape(-1)[places[times % 2 == 1]] ^= True


def _loops(mask: np.ndarray, *, corners: bool = False) -> list[Polygon]:
    """Closed outlines of a mask, through the middles between pixels, straight runs as one edge.

    Each pixel edge between inside and outside is an arrow with the inside on its right; at a corner where two pixels
    touch diagonally, the outline turns so that they stay apart. The corners of the outline are then cut off: it runs
    through the middles of the pixel edges; with `corners` it runs along the edges.
    """
    padded = np.pad(mask, 1)
    following: dict[tuple[int, int, int], tuple[int, int, int]] = {}
    arrows: dict[tuple[int, int, int], None] = {}
    for direction, (dr, dc) in enumerate(_SIDES):  # right along the top, down the right side, left, up
        outside = np.roll(padded, (-dr, -dc), axis=(0, 1))
        for r, c in zip(*(axis.tolist() for axis in np.nonzero(padded & ~outside)), strict=True):
            arrows[(r, c, direction)] = None
    for r, c, direction in arrows:
        ahead_r, ahead_c = _AHEAD[direction]
        side_r, side_c = _SIDES[direction]
        if not padded[r + ahead_r, c + ahead_c]:
            following[(r, c, direction)] = (r, c, (direction + 1) % 4)  # turn right around the same pixel
        elif not padded[r + ahead_r + side_r, c + ahead_c + side_c]:
            following[(r, c, direction)] = (r + ahead_r, c + ahead_c, direction)  # straight ahead
        else:  # turn left onto the pixel diagonally ahead, which shares an edge with the one ahead
            following[(r, c, direction)] = (r + ahead_r + side_r, c + ahead_c + side_c, (direction - 1) % 4)
    loops = []
    while arrows:
        start = next(iter(arrows))
        points, now = [], start
        while now in arrows:
            del arrows[now]
            r, c, direction = now
            (side_r, side_c), (corner_r, corner_c) = _SIDES[direction], _CORNERS[direction]
            middle = (c - 1 + side_c / 2, r - 1 + side_r / 2)
            points.append((c - 1 + corner_c, r - 1 + corner_r) if corners else middle)
            now = following[now]
        loops.append(_without_straight(np.array(points)))
    return loops


_SIDES = ((-1, 0), (0, 1), (1, 0), (0, -1))  # where the outside is: above, right, below, left
_CORNERS = ((0, 0), (0, 1), (1, 1), (1, 0))  # (row, column) of the pixel's corner where the outline begins that side
_AHEAD = ((0, 1), (1, 0), (0, -1), (-1, 0))  # where the outline goes along that side


def _without_straight(points: Polygon) -> Polygon:
    """Leave out points on a straight line between their neighbours."""
    before, after = np.roll(points, 1, axis=0), np.roll(points, -1, axis=0)
    a, b = points - before, after - points
    return points[np.abs(a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]) > 1e-12]


def _area(loop: Polygon) -> float:
    x, y = loop.T
    return float(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2


def _joined(outer: Polygon, hole: Polygon) -> Polygon:
    """One polygon of an outline and a hole in it: cut from the hole's rightmost point to the nearest edge on its right.

    The outline may contain holes that were joined before: those further right.
    """
    start = int(hole[:, 0].argmax())
    x, y = hole[start]
    a, b = outer, np.roll(outer, -1, axis=0)
    low, high = np.minimum(a[:, 1], b[:, 1]), np.maximum(a[:, 1], b[:, 1])
    crossing = (low <= y) & (y <= high)
    level = np.where(high > low, high - low, 1.0)
    share = np.where(a[:, 1] <= b[:, 1], y - low, high - y) / level
    there = np.where(high > low, a[:, 0] + share * (b[:, 0] - a[:, 0]), np.minimum(a[:, 0], b[:, 0]))
    reached = np.where(crossing & (there >= x), there, np.inf)
    edge = int(reached.argmin())
    bridge = np.array([[reached[edge], y]])
    loop = np.concatenate([hole[start:], hole[: start + 1]])
    return np.concatenate([outer[: edge + 1], bridge, loop, bridge, outer[edge + 1 :]])
