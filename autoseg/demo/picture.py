"""A picture of one case: three orthogonal slices with the contours of reference and segmentation."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from autoseg.imaging.geometry import Vector3, Volume, to_canonical
from autoseg.workspace import write_atomically

BROAD, THIN = 3.2, 0.9  # widths of contours
# Okabe and Ito's palette, which people with any form of colour blindness tell apart
COLOURS = ("#E69F00", "#56B4E9", "#F0E442", "#CC79A7", "#009E73", "#D55E00", "#0072B2")


def picture(image: Volume, reference: Volume, segmentation: Volume, path: Path, *, names: Sequence[str]) -> None:
    """Draw three orthogonal slices of the first channel with both contours of every label, as a PNG.

    The slices are those that show the most: along each axis, the largest sum over labels of the root of the area
    relative to the label's largest one. Contours are of one colour per label, broad for the reference, thin and white
    for the segmentation.

    Args:
        image: (C, Z, Y, X), in any orientation; the grey window is that of abdominal CT, or the 1st to 99th percentile
            where no value is below -500.
        reference: (Z, Y, X) label values, on the same grid.
        segmentation: the same.
        path: the PNG file to write.
        names: of the label values 1, 2, 3, ...

    Raises:
        StorageError: the disk refuses.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    image, reference, segmentation = to_canonical(image), to_canonical(reference), to_canonical(segmentation)
    grey, spacing = image.array[0], image.geometry.spacing
    figure = Figure(figsize=(11, 4.4), facecolor="black")  # a solved layout would not be the same in every run
    figure.subplots_adjust(left=0.01, right=0.99, top=0.93, bottom=0.14, wspace=0.03)
    panels = figure.subplots(1, 3, width_ratios=[grey.shape[a] * spacing[a] for a in (2, 2, 1)])
    masks = (reference.array, segmentation.array)
    for axis, (panel, title) in enumerate(zip(panels, ("axial", "coronal", "sagittal"), strict=True)):
        _draw_slice(panel, axis, grey, spacing, masks, range(1, len(names) + 1))
        panel.set_title(title, color="white", fontsize=10)
        panel.set_axis_off()
        if axis > 0:
            panel.invert_yaxis()  # superior above
    handles = [Line2D([], [], color=COLOURS[i % len(COLOURS)], lw=BROAD, label=name) for i, name in enumerate(names)]
    handles.append(Line2D([], [], color="white", lw=THIN, label="segmentation"))
    figure.legend(
        handles=handles, loc="lower center", ncols=len(handles), labelcolor="white", frameon=False,
        title="reference (broad) and segmentation (thin)", title_fontproperties={"size": 9},
    ).get_title().set_color("white")  # fmt: skip
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=110))


def _draw_slice(
    panel: Any, axis: int, grey: np.ndarray, spacing: Vector3, masks: tuple[np.ndarray, np.ndarray], labels: range
) -> None:
    """Draw the slice of `grey` that shows the most, with the contours of reference and segmentation."""
    low, high = (-160, 240) if grey.min() < -500 else np.percentile(grey, [1, 99])
    index = _richest_slice(masks[0], axis, labels)
    rows, columns = (a for a in range(3) if a != axis)
    extent = (0, grey.shape[columns] * spacing[columns], grey.shape[rows] * spacing[rows], 0)
    panel.imshow(grey.take(index, axis), cmap="gray", vmin=low, vmax=high, extent=extent, interpolation="nearest")
    y = (np.arange(grey.shape[rows]) + 0.5) * spacing[rows]
    x = (np.arange(grey.shape[columns]) + 0.5) * spacing[columns]
    for label in labels:
        colours = (COLOURS[(label - 1) % len(COLOURS)], "white")
        for array, colour, width in zip(masks, colours, (BROAD, THIN), strict=True):
            mask = array.take(index, axis) == label
            if mask.any() and not mask.all():
                panel.contour(x, y, mask, levels=[0.5], colors=colour, linewidths=width)


def _richest_slice(reference: np.ndarray, axis: int, labels: Sequence[int]) -> int:
    """Index of the slice with the largest sum over labels of the root of their relative areas."""
    others = tuple(a for a in range(3) if a != axis)
    areas = np.array([(reference == label).sum(axis=others) for label in labels], dtype=float)
    if not areas.any():
        return reference.shape[axis] // 2
    return int(np.sqrt(areas / np.maximum(areas.max(axis=1, keepdims=True), 1)).sum(axis=0).argmax())
