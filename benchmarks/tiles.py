"""Tiles larger than the training patch: time, Dice and label agreement of the validation cases of a short fold.

    python benchmarks/tiles.py --data DIR [--steps 500] [--growths 1 1.25 1.5 2] [--sets hippocampus axon_sem thick]
        [--out FOLDER]

DIR holds `hippocampus` and `axon_sem`. `thick` is made here: the demo's synthetic CT with four slices averaged to one,
so that its voxels are four times as deep as they are wide. Of each set fold 0 is trained for so many steps (what is
trained already is left alone), then its held-out cases are segmented with tiles of up to so many times the patch's
edges, once with all mirrorings and tiles half a tile apart. Instance normalisation sees a whole tile, so that its size
changes the result: the Dice that is lost or gained is given with the standard error over cases, and the agreement is
the share of all voxels that keep their label. Seconds are those of the processor, with one thread, which other
processes on the machine hardly change.
"""

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import nibabel
import numpy as np
import torch
from common import autoseg

from autoseg.datasets.dataset import Case, Dataset
from autoseg.datasets.splits import Splits
from autoseg.demo.phantom import write_dataset
from autoseg.evaluation.evaluate import ScoreJob, score_cases
from autoseg.imaging.formats.readers import read_labels
from autoseg.inference.options import InferenceOptions
from autoseg.inference.predict import predict_cases
from autoseg.models.model import Model, open_model
from autoseg.records import load
from autoseg.workspace import Workspace

SLICES = 4  # of the phantom, that make one thick slice
INTAKE = {"axon_sem": ["--labels", "myelin=1,axon=2"]}


def write_thick(folder: Path, cases: int = 24) -> Path:
    """Write the demo's data with thick slices, along the last axis of NIfTI's canonical orientation."""
    thin, thick = folder / "thin", folder / "thick"
    write_dataset(thin, cases=cases)
    for source in sorted(thin.glob("*/*.nii.gz")):
        image = nibabel.as_closest_canonical(nibabel.load(source))
        array = np.asarray(image.dataobj)
        kept = array.shape[2] // SLICES * SLICES
        slices = array[:, :, :kept].reshape(*array.shape[:2], -1, SLICES)
        merged = slices[..., SLICES // 2] if "labels" in source.parent.name else slices.mean(-1).round()
        affine = image.affine.copy()
        affine[:3, 2] *= SLICES
        target = thick / source.parent.name / source.name
        target.parent.mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(merged.astype(np.int16), affine), target)
    for name in ("dataset.json", "patients.csv"):
        (thick / name).write_bytes((thin / name).read_bytes())
    return thick


def trained(dataset: Path, workspace: Workspace, steps: int, intake: Sequence[str]) -> tuple[Model, list[Case]]:
    """Fold 0 of a data set after so many steps, and the cases it held out."""
    if not workspace.plan.exists():
        autoseg("plan", dataset, *intake, "-w", workspace.root)
    chosen = ["--set", "training.autocast=float32", "--set", "training.chain=worker"]
    autoseg("train", "-f", "0", "--steps", steps, *chosen, "-w", workspace.root)
    plan = json.loads(workspace.plan.read_text(encoding="utf-8"))
    name = plan["recommended"]
    network = plan["configurations"][name]["network"]["name"]
    model = open_model(workspace, name, network, folds=[0], device=torch.device("cpu"))
    held_out = set(load(Splits, workspace.splits).splits[0].validation)
    return model, [case for case in load(Dataset, workspace.dataset).cases if case.id in held_out]


def segment(model: Model, cases: Sequence[Case], folder: Path, growth: float) -> tuple[float, list[Path]]:
    """Segment the cases with tiles of at most this growth; seconds of the processor, and what was written."""
    began = time.process_time()
    made = predict_cases([model], cases, folder, InferenceOptions(tile=growth))
    return time.process_time() - began, [prediction.path for prediction in made]


def dice_of_cases(model: Model, cases: Sequence[Case], paths: Sequence[Path]) -> list[float]:
    """Mean Dice over the labels of each case that have one."""
    jobs = [ScoreJob(c.id, Path(c.label or ""), path, model.plan.labels) for c, path in zip(cases, paths, strict=True)]
    known = [[s["dice"] for s in score.scores.values()] for score in score_cases(jobs, workers=0)]
    return [statistics.mean(d for d in case if d is not None) for case in known]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--growths", type=float, nargs="+", default=[1.0, 1.25, 1.5, 2.0])
    parser.add_argument("--sets", nargs="+", default=["hippocampus", "axon_sem", "thick"])
    parser.add_argument("--out", type=Path, default=Path("tiles_run"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = ["| data | tiles up to | seconds | mean Dice | lost or gained | voxels that keep their label |"]
    rows.append("|---|---|---|---|---|---|")
    for name in options.sets:
        workspace = Workspace(options.out / name)
        dataset = options.data / name
        if name == "thick" and not workspace.plan.exists():
            dataset = write_thick(options.out)
        model, cases = trained(dataset, workspace, options.steps, INTAKE.get(name, []))
        before: tuple[list[float], list[Path]] | None = None
        for growth in options.growths:
            seconds, paths = segment(model, cases, options.out / f"{name}_{growth:g}", growth)
            dice = dice_of_cases(model, cases, paths)
            before = before or (dice, paths)
            gains = [a - b for a, b in zip(dice, before[0], strict=True)]
            error = statistics.stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else 0.0
            pairs = [(read_labels(a).array, read_labels(b).array) for a, b in zip(paths, before[1], strict=True)]
            same = sum(int((a == b).sum()) for a, b in pairs) / sum(a.size for a, _ in pairs)
            rows.append(
                f"| {name}, {len(cases)} cases | {growth:g} | {seconds:.1f} | {statistics.mean(dice):.4f} | "
                f"{statistics.mean(gains):+.4f} ± {error:.4f} | {same:.5f} |"
            )
            print(rows[-1], flush=True)
    print("\n" + "\n".join(rows))


if __name__ == "__main__":
    main()
