"""What `autoseg demo` runs: a synthetic dataset (`phantom`), every command on it, and a picture of the result."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from autoseg.demo.phantom import LABELS
from autoseg.demo.phantom import write_dataset as write_dataset
from autoseg.demo.picture import picture
from autoseg.errors import StateError
from autoseg.imaging.formats.readers import read_image, read_labels
from autoseg.imaging.labels import LabelSet
from autoseg.messages import suggest
from autoseg.workspace import Workspace

FOLDS = 5
STEPS_PER_FOLD = 260
PRESET: Literal["s"] = "s"  # the recipe of a CPU, also where there is a GPU: the demo is the same everywhere
SETTINGS = ("training.autotune=false", "training.learning_rate=0.004")  # a short training takes a higher rate
DICE_TO_REACH = 0.8  # mean over the labels of the held-out cases
LABEL_DICE_TO_REACH = 0.7  # of each label; benchmarks/README.md, section 4, shows what three seeds reach
LABEL_SET = LabelSet({name: value for name, value in LABELS.items() if value})


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

    _set_aside(out)
    dataset, segmentations = out / "dataset", out / "segmentations"
    workspace = Workspace(out / "workspace")
    settings: tuple[str, ...] = (f"training.seed={seed}",)
    if time_budget_seconds is None:
        training = TrainOptions(steps=STEPS_PER_FOLD, report=False)
        settings = (*SETTINGS, *settings)
    else:
        training = TrainOptions(time_budget_seconds=time_budget_seconds, report=False)
    announce = _Announced(_commands(out, settings, time_budget_seconds))

    announce()
    write_dataset(dataset)
    announce()
    plan_dataset(dataset, workspace, PlanOptions(preset=PRESET, cpu_rate="reference", settings=settings))
    announce()
    train_folds(workspace, training)
    announce()
    cross_validate(workspace)
    announce()
    predicted = predict_images(workspace, [dataset / "imagesTs"], segmentations)
    announce()
    dice = evaluate_folders(segmentations, dataset / "labelsTs", workspace).mean_dice or 0.0
    name, drawn = _draw_one(out, [path.name for path in predicted])
    print(f"\npicture of {name}: {drawn}\n\ncommands run, in {announce.seconds():.0f} s:")
    print("\n".join(f"  {command}" for command in announce.commands))
    summary = summarise(score_cases(pair_folders(segmentations, dataset / "labelsTs", LABEL_SET), workers=0))
    passed, verdict = _judged(dice, {label: metrics["dice"].mean or 0.0 for label, metrics in summary.items()})
    print(f"\n{verdict}")
    if workspace.report.exists():
        print(f"report, to open in a browser: {workspace.report}")
    return 0 if passed else 1


class _Announced:
    """Commands, each printed before it runs, with how far the demo is."""

    def __init__(self, commands: Sequence[str]) -> None:
        self.commands = commands
        self._done = 0
        self._began = time.perf_counter()

    def seconds(self) -> float:
        """Since the beginning."""
        return time.perf_counter() - self._began

    def __call__(self) -> None:
        """Print the next command."""
        self._done += 1
        command = self.commands[self._done - 1]
        print(f"\n[{self._done} of {len(self.commands)}, {self.seconds():.0f} s] $ {command}", flush=True)


def _draw_one(out: Path, names: Sequence[str]) -> tuple[str, Path]:
    """Draw the first case whose reference shows most labels: its name, and the picture's file."""
    references = {name: read_labels(out / "dataset" / "labelsTs" / name) for name in names}
    name = max(references, key=lambda name: len(np.unique(references[name].array)))
    image = read_image(out / "dataset" / "imagesTs" / name.replace(".nii.gz", "_0000.nii.gz"))
    path = out / "segmentation.png"
    picture(image, references[name], read_labels(out / "segmentations" / name), path, names=tuple(LABELS)[1:])
    return name, path


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
            raise StateError(f"{out} is not empty and is not a demo folder", remedy="choose another folder with --out")
        aside = out.resolve().with_name(f"{out.resolve().name}.before-{time.strftime('%Y%m%d-%H%M%S')}")
        out.rename(aside)
        print(f"renamed the previous demo in {out} to {aside}")


def _judged(dice: float, by_label: Mapping[str, float]) -> tuple[bool, str]:
    """Whether the mean Dice and that of each label are as stated, and the sentence that says so."""
    passed = dice >= DICE_TO_REACH and all(value >= LABEL_DICE_TO_REACH for value in by_label.values())
    shown = ", ".join(f"{label} {value:.3f}" for label, value in by_label.items())
    return passed, (
        f"Dice of the ensemble on the held-out cases: mean {dice:.3f}, expected at least {DICE_TO_REACH}; {shown}, "
        f"expected at least {LABEL_DICE_TO_REACH} each: {'reached' if passed else 'MISSED'}"
    )
