"""What `autoseg demo` shows: a synthetic dataset, the whole pipeline on it, and a picture of the result.

`write_dataset` (of phantom.py) makes the data; `picture` draws three slices of a case with the contours of its reference and
its segmentation.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from autoseg.imaging.geometry import Volume, to_canonical
from autoseg.phantom import LABELS
from autoseg.phantom import write_dataset as write_dataset
from autoseg.workspace import write_atomically

# Okabe and Ito's palette, which people with any form of colour blindness tell apart
COLOURS = ("#E69F00", "#56B4E9", "#F0E442", "#CC79A7", "#009E73", "#D55E00", "#0072B2")


def picture(
    image: Volume, reference: Volume, segmentation: Volume, path: Path, *, names: Sequence[str] = tuple(LABELS)[1:]
) -> None:
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
    grey = image.array[0]
    low, high = (-160, 240) if grey.min() < -500 else np.percentile(grey, [1, 99])
    spacing = image.geometry.spacing
    labels = range(1, len(names) + 1)
    figure = Figure(figsize=(11, 4.4), facecolor="black", layout="constrained")
    panels = figure.subplots(1, 3, width_ratios=[grey.shape[a] * spacing[a] for a in (2, 2, 1)])
    for axis, (panel, title) in enumerate(zip(panels, ("axial", "coronal", "sagittal"), strict=True)):
        index = _richest_slice(reference.array, axis, labels)
        rows, columns = (a for a in range(3) if a != axis)
        height, width = grey.shape[rows] * spacing[rows], grey.shape[columns] * spacing[columns]
        panel.imshow(
            grey.take(index, axis),
            cmap="gray",
            vmin=low,
            vmax=high,
            extent=(0, width, height, 0),
            interpolation="nearest",
        )
        y = (np.arange(grey.shape[rows]) + 0.5) * spacing[rows]
        x = (np.arange(grey.shape[columns]) + 0.5) * spacing[columns]
        for label in labels:
            colour = COLOURS[(label - 1) % len(COLOURS)]
            for volume, style in ((reference, (colour, 3.2)), (segmentation, ("white", 0.9))):
                mask = volume.array.take(index, axis) == label
                if mask.any() and not mask.all():
                    panel.contour(x, y, mask, levels=[0.5], colors=style[0], linewidths=style[1])
        panel.set_title(title, color="white", fontsize=10)
        panel.set_axis_off()
        if axis > 0:
            panel.invert_yaxis()  # superior above
    handles = [Line2D([], [], color=COLOURS[i % len(COLOURS)], lw=3.2, label=name) for i, name in enumerate(names)]
    handles.append(Line2D([], [], color="white", lw=0.9, label="segmentation"))
    figure.legend(
        handles=handles, loc="outside lower center", ncols=len(handles), labelcolor="white", frameon=False,
        title="reference (broad) and segmentation (thin)", title_fontproperties={"size": 9},
    ).get_title().set_color("white")  # fmt: skip
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=110))


def _richest_slice(reference: np.ndarray, axis: int, labels: Sequence[int]) -> int:
    others = tuple(a for a in range(3) if a != axis)
    areas = np.array([(reference == label).sum(axis=others) for label in labels], dtype=float)
    if not areas.any():
        return reference.shape[axis] // 2
    return int(np.sqrt(areas / np.maximum(areas.max(axis=1, keepdims=True), 1)).sum(axis=0).argmax())
