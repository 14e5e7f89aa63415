"""Charts of a dataset: spacing, size, intensities, which labels occur and how large they are."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from autoseg.messages import counted
from autoseg.planning.fingerprint import Fingerprint
from autoseg.report.numbers import size_unit
from autoseg.report.svg import INK, ON_FIRST, chart, colour, inline, logarithmic

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BINS = 24
WIDE = 30.0  # largest over smallest value from which an axis is logarithmic
MOST_LABELS = 30  # of one chart; of more, those in the fewest cases are drawn
ROW = 0.26  # inches per label


@dataclass(frozen=True)
class Figure:
    """One chart with its caption."""

    title: str
    caption: str
    svg: Markup


def data_figures(fingerprint: Fingerprint) -> list[Figure]:
    """The charts of a dataset; what is equal in all cases has none."""
    cases = fingerprint.cases
    axes = list(enumerate("zyx"))[1 if all(case.shape[0] == 1 for case in cases) else 0 :]
    spacings = {name: [case.spacing[i] for case in cases] for i, name in axes}
    extents = {name: [case.shape[i] for case in cases] for i, name in axes}
    found = [
        _histogram("spacing", "Spacing", "mm per voxel, along each axis", "spacing, mm", spacings),
        _histogram("extent", "Image size", "voxels along each axis", "extent, voxels", extents),
    ]
    if all(case.intensities for case in cases):
        medians = {
            channel: [case.intensities[i].median for case in cases] for i, channel in enumerate(fingerprint.channels)
        }
        tops = {
            channel: [case.intensities[i].p99_5 for case in cases] for i, channel in enumerate(fingerprint.channels)
        }
        found += [
            _histogram("intensity", "Intensity", "median of each image", "median intensity", medians),
            _histogram("brightest", "Brightest voxels", "99.5th percentile of each image", "99.5th percentile", tops),
        ]
    return [*filter(None, found), _presence(fingerprint), *filter(None, [_label_sizes(fingerprint)])]


def constant(values: Mapping[str, Sequence[float]]) -> bool:
    """Whether each of several measurements is the same in all cases."""
    return all(max(one) - min(one) <= 1e-6 * max(abs(max(one)), 1e-9) for one in values.values())


def bins_of(values: Sequence[float]) -> tuple[np.ndarray, bool]:
    """Edges of the bins of a histogram, and whether they are spaced logarithmically."""
    low, high = min(values), max(values)
    if low > 0 and high / low >= WIDE:
        return np.geomspace(low, high * (1 + 1e-9), BINS + 1), True
    if low == high:
        low, high = low - 0.5, high + 0.5
    whole = all(float(value).is_integer() for value in values)
    if whole and high - low < BINS:
        return np.arange(low - 0.5, high + 1.5), False
    return np.linspace(low, high, BINS + 1), False


def _histogram(name: str, title: str, what: str, label: str, series: Mapping[str, Sequence[float]]) -> Figure | None:
    """Outlines of one histogram per series on common bins; None where nothing varies."""
    if constant(series):
        return None
    edges, log = bins_of([value for values in series.values() for value in values])
    with chart() as (figure, axes):
        for i, (key, values) in enumerate(series.items()):
            counts, _ = np.histogram(values, edges)
            drawn: dict[str, Any] = {"edgecolor": colour(i), "facecolor": colour(i), "linewidth": 1.3}
            axes.stairs(counts, edges, fill=True, alpha=0.14, **drawn)
            axes.stairs(counts, edges, label=key, color=colour(i), linewidth=1.3)
        if log:
            axes.set_xscale("log")
            logarithmic(axes.xaxis)
        axes.set_xlabel(label + (" (logarithmic)" if log else ""))
        axes.set_ylabel("cases")
        if len(series) > 1:
            axes.legend(labelcolor=INK, ncols=min(len(series), 4), loc="best")
        caption = f"{what[:1].upper()}{what[1:]}; {counted(len(next(iter(series.values()))), 'case')}."
        return Figure(title, caption, inline(figure, name, f"{title}: {what}"))


def presence(fingerprint: Fingerprint) -> dict[str, int]:
    """Label -> cases that have it, those in the fewest cases first."""
    counts = {label: sum(c.class_voxels.get(label, 0) > 0 for c in fingerprint.cases) for label in fingerprint.labels}
    return dict(sorted(counts.items(), key=lambda item: item[1]))


def _presence(fingerprint: Fingerprint) -> Figure:
    counts, total = presence(fingerprint), len(fingerprint.cases)
    drawn = list(counts.items())[:MOST_LABELS][::-1]
    drawn.sort(key=lambda item: -fingerprint.labels.index(item[0]))
    with chart(height=max(1.2, 0.75 + ROW * len(drawn))) as (figure, axes):
        places = range(len(drawn))
        axes.barh(places, [100 * count / total for _, count in drawn], color=colour(0), height=0.62)
        for place, (_, count) in zip(places, drawn, strict=True):
            inside = count > total / 2
            axes.text(
                100 * count / total + (-1.5 if inside else 1.5), place, f"{count} of {total}", va="center",
                ha="right" if inside else "left", fontsize=8, color=ON_FIRST if inside else INK,
            )  # fmt: skip
        name_rows(axes, [label for label, _ in drawn])
        axes.set_xlim(0, 100)
        axes.set_xlabel("cases with the label, %")
        axes.grid(axis="y", visible=False)
        left_out = "" if len(counts) == len(drawn) else f" The {len(drawn)} rarest of {len(counts)} labels."
        caption = f"In how many cases each label occurs.{left_out}"
        return Figure("Label presence", caption, inline(figure, "presence", "Cases with each label"))


def _label_sizes(fingerprint: Fingerprint) -> Figure | None:
    """One box per label; None where no case has any."""
    unit, scale = size_unit(fingerprint.cases)
    sizes = {
        label: [
            voxels * math.prod(case.spacing) * scale
            for case in fingerprint.cases
            if (voxels := case.class_voxels.get(label, 0)) > 0
        ]
        for label in presence(fingerprint)
    }
    drawn = {label: values for label, values in list(sizes.items())[:MOST_LABELS] if values}
    if not drawn:
        return None
    names = sorted(drawn, key=fingerprint.labels.index, reverse=True)
    values = [value for one in drawn.values() for value in one]
    with chart(height=max(1.4, 0.85 + 1.3 * ROW * len(names))) as (figure, axes):
        boxes(axes, [drawn[name] for name in names], [fingerprint.labels.index(name) for name in names])
        name_rows(axes, names)
        log = max(values) / min(values) >= WIDE
        if log:
            axes.set_xscale("log")
            logarithmic(axes.xaxis)
        axes.set_xlabel(f"size of the label in a case, {unit}" + (" (logarithmic)" if log else ""))
        caption = "Boxes from the first to the third quartile, whiskers to 1.5 times their distance; a point per case."
        return Figure("Label size", caption, inline(figure, "labelsize", "Size of each label"))


def boxes(axes: "Axes", groups: Sequence[Sequence[float]], colours: Sequence[int], *, points: int = 300) -> None:
    """Draw horizontal boxes with their values as points, at 0, 1, 2, ... from below.

    Args:
        groups: values of each box.
        colours: of each box, by position in the palette.
        points: at most so many are drawn per box, an even selection by value.
    """
    random = np.random.default_rng(0)
    for place, (values, index) in enumerate(zip(groups, colours, strict=True)):
        ordered = np.sort(np.asarray(values, float))
        shown = ordered[np.linspace(0, len(ordered) - 1, min(points, len(ordered))).round().astype(int)]
        jitter = place + random.uniform(-0.24, 0.24, len(shown))
        axes.plot(shown, jitter, ".", color=colour(index), markersize=3.6, alpha=0.55, markeredgewidth=0)
        axes.boxplot(
            [ordered], positions=[place], orientation="horizontal", widths=0.56, showfliers=False, manage_ticks=False,
            boxprops={"color": colour(index), "linewidth": 1.2}, medianprops={"color": INK, "linewidth": 1.8},
            whiskerprops={"color": colour(index), "linewidth": 1.2}, capprops={"color": colour(index)},
        )  # fmt: skip


def name_rows(axes: "Axes", names: Sequence[str]) -> None:
    """Put a name beside each row of a horizontal chart, cut where it is long."""
    axes.set_yticks(range(len(names)), [shortened(name) for name in names])
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.grid(axis="y", visible=False)


def shortened(name: str, most: int = 22) -> str:
    """A name that fits beside a chart."""
    return name if len(name) <= most else name[: most - 1] + "…"
