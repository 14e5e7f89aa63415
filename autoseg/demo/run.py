"""What `autoseg demo` shows: a synthetic dataset, the whole pipeline on it, and a picture of the result.

`write_dataset` (of phantom.py) makes the data; `picture` draws three slices of a case, with the contours of its
reference and of its segmentation.
"""

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from autoseg.demo.phantom import LABELS
from autoseg.demo.phantom import write_dataset as write_dataset
from autoseg.errors import StateError
from autoseg.imaging.formats.readers import read_image, read_labels
from autoseg.imaging.geometry import Volume, to_canonical
from autoseg.imaging.labels import LabelSet
from autoseg.messages import suggest
from autoseg.workspace import Workspace, write_atomically

FOLDS = 5
STEPS_PER_FOLD = 260
PRESET: Literal["s"] = "s"  # the recipe of a CPU, also where there is a GPU: the demo is the same everywhere
SETTINGS = ("training.autotune=false", "training.learning_rate=0.004")  # a short training takes a higher rate
DICE_TO_REACH = 0.8  # mean over the labels of the held-out cases
LABEL_DICE_TO_REACH = 0.7  # of each label; benchmarks/README.md, section 4, shows what three seeds reach
LABEL_SET = LabelSet({name: value for name, value in LABELS.items() if value})

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
    figure = Figure(figsize=(11, 4.4), facecolor="black")  # a solved layout would not be the same in every run
    figure.subplots_adjust(left=0.01, right=0.99, top=0.93, bottom=0.14, wspace=0.03)
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
        handles=handles, loc="lower center", ncols=len(handles), labelcolor="white", frameon=False,
        title="reference (broad) and segmentation (thin)", title_fontproperties={"size": 9},
    ).get_title().set_color("white")  # fmt: skip
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=110))


def _richest_slice(reference: np.ndarray, axis: int, labels: Sequence[int]) -> int:
    others = tuple(a for a in range(3) if a != axis)
    areas = np.array([(reference == label).sum(axis=others) for label in labels], dtype=float)
    if not areas.any():
        return reference.shape[axis] // 2
    return int(np.sqrt(areas / np.maximum(areas.max(axis=1, keepdims=True), 1)).sum(axis=0).argmax())


def run(out: Path, *, time_budget_seconds: float | None = None, seed: int = 0) -> int:
    """Write the synthetic dataset, take it through every command, and check what comes out.

    Nothing that is timed decides what comes out: a fixed number of steps, a plan that is the same on every machine,
    float32, one layout and one augmentation chain. A slow or busy machine takes longer and reaches the same.

    Args:
        out: folder for the dataset, the workspace, the segmentations and the picture; an older demo there is renamed.
        time_budget_seconds: of each fold, instead of STEPS_PER_FOLD; the result then depends on the machine.
        seed: of the trainings.

    Returns:
        0 if the ensemble reaches DICE_TO_REACH on the held-out cases, and LABEL_DICE_TO_REACH for each label; else 1.

    Raises:
        StateError: `out` holds something that is not a demo.
    """
    from autoseg.commands.evaluate import cross_validate, evaluate_folders
    from autoseg.commands.folds import TrainOptions
    from autoseg.commands.plan import PlanOptions, plan_dataset
    from autoseg.commands.predict import predict_images
    from autoseg.commands.train import train_folds
    from autoseg.evaluation.evaluate import pair_folders, score_cases, summarise

    began = time.perf_counter()
    _set_aside(out)
    dataset, segmentations, picture_path = out / "dataset", out / "segmentations", out / "segmentation.png"
    images, labels = dataset / "imagesTs", dataset / "labelsTs"
    workspace = Workspace(out / "workspace")
    settings: tuple[str, ...] = (f"training.seed={seed}",)
    if time_budget_seconds is None:
        training = TrainOptions(steps=STEPS_PER_FOLD)
        settings = (*SETTINGS, *settings)
    else:
        training = TrainOptions(time_budget_seconds=time_budget_seconds)
    commands = _commands(out, settings, time_budget_seconds)

    def announce(number: int) -> None:
        elapsed = time.perf_counter() - began
        print(f"\n[{number} of {len(commands)}, {elapsed:.0f} s] $ {commands[number - 1]}")
        sys.stdout.flush()

    announce(1)
    write_dataset(dataset)
    announce(2)
    plan_dataset(dataset, workspace, PlanOptions(preset=PRESET, cpu_rate="reference", settings=settings))
    announce(3)
    train_folds(workspace, training)
    announce(4)
    cross_validate(workspace)
    announce(5)
    predicted = predict_images(workspace, [images], segmentations)
    announce(6)
    dice = evaluate_folders(segmentations, labels, workspace).mean_dice or 0.0
    references = {path.name: read_labels(labels / path.name) for path in predicted}
    name = max(references, key=lambda name: len(np.unique(references[name].array)))  # the first that shows every label
    picture(
        read_image(images / name.replace(".nii.gz", "_0000.nii.gz")),
        references[name],
        read_labels(segmentations / name),
        picture_path,
    )
    print(f"\npicture of {name}: {picture_path}\n\nwhat was run, in {time.perf_counter() - began:.0f} s:")
    print("\n".join(f"  {command}" for command in commands))
    summary = summarise(score_cases(pair_folders(segmentations, labels, LABEL_SET), workers=0))
    passed, verdict = _judged(dice, {label: metrics["dice"].mean or 0.0 for label, metrics in summary.items()})
    print(f"\n{verdict}")
    return 0 if passed else 1


def _commands(out: Path, settings: Sequence[str], time_budget_seconds: float | None) -> list[str]:
    """What a user would type to do what the demo does."""
    dataset, segmentations, where = out / "dataset", out / "segmentations", out / "workspace"
    images, labels = dataset / "imagesTs", dataset / "labelsTs"
    steps = ("--steps", STEPS_PER_FOLD)
    length = steps if time_budget_seconds is None else ("--time-budget", f"{time_budget_seconds:g}s")
    chosen = [part for setting in settings for part in ("--set", setting)]
    return [
        suggest("demo", "--data-only", "-o", out, workspace=None),
        suggest("plan", dataset, "--preset", PRESET, "--cpu-rate", "reference", *chosen, workspace=where),
        suggest("train", "-f", f"0..{FOLDS - 1}", *length, workspace=where),
        suggest("evaluate", workspace=where),
        suggest("predict", "-i", images, "-o", segmentations, workspace=where),
        suggest("evaluate", "--predictions", segmentations, "--references", labels, workspace=where),
    ]


def _set_aside(out: Path) -> None:
    """Rename an older demo. Raises StateError where the folder holds something else."""
    if out.exists() and not out.is_dir():
        raise StateError(f"{out} is a file", remedy="choose a folder with --out")
    if out.exists() and any(out.iterdir()):
        if not (out / "dataset" / "dataset.json").exists():
            raise StateError(f"{out} is not empty and holds no demo", remedy="choose another folder with --out")
        aside = out.resolve().with_name(f"{out.resolve().name}.before-{time.strftime('%Y%m%d-%H%M%S')}")
        out.rename(aside)
        print(f"the demo that was in {out} is kept as {aside}")


def _judged(dice: float, by_label: Mapping[str, float]) -> tuple[bool, str]:
    """Whether the mean Dice and that of each label are as stated, and the sentence that says so."""
    passed = dice >= DICE_TO_REACH and all(value >= LABEL_DICE_TO_REACH for value in by_label.values())
    shown = ", ".join(f"{label} {value:.3f}" for label, value in by_label.items())
    return passed, (
        f"Dice of the ensemble on the held-out cases: mean {dice:.3f}, expected at least {DICE_TO_REACH}; {shown}, "
        f"expected at least {LABEL_DICE_TO_REACH} each: {'reached' if passed else 'MISSED'}"
    )
