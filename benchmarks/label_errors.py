"""Labels corrupted in 5 % of the training cases, and how many of them `autoseg rank` puts first.

    python benchmarks/label_errors.py DATASET -o FOLDER [--time-budget 90s]   corrupt, plan, train five folds, rank
    python benchmarks/label_errors.py DATASET -o FOLDER --no-training         corrupt and stop
    python benchmarks/label_errors.py DATASET -o FOLDER --trained             of folds that are trained there already

The copy has the images of the dataset (nnU-Net's layout) as links, and its labels, of which a share is corrupted in
five ways by turns: shifted by 2 voxels along an axis, two labels swapped (of a single label: turned upside down), a
quarter of its slices erased, dilated by a voxel, the label of another patient. FOLDER/corrupted.json says which and
how. The folds are trained on the corrupted labels, too, as in life.
"""

import argparse
import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
from common import autoseg
from scipy import ndimage

SHIFT, DILATION, ERASED = 2, 1, 1 / 4  # voxels, voxels, share of the slices


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--share", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--time-budget", default="90s")
    parser.add_argument("--no-training", action="store_true")
    parser.add_argument("--trained", action="store_true")
    options = parser.parse_args()
    copy, workspace, ranking = options.out / "dataset", options.out / "workspace", options.out / "ranking.csv"
    if not options.trained:
        corrupted = corrupt(options.dataset, copy, options.share, np.random.default_rng(options.seed))
        (options.out / "corrupted.json").write_text(json.dumps(corrupted, indent=1))
    if options.no_training:
        return
    if not options.trained:
        autoseg("plan", copy, "-w", workspace, "--time-budget", options.time_budget)
        autoseg("train", "-w", workspace, "--time-budget", options.time_budget)
    autoseg("rank", "-w", workspace, "--csv", ranking)


def corrupt(dataset: Path, copy: Path, share: float, chance: np.random.Generator) -> dict[str, str]:
    """Write the copy; return which cases were corrupted -> how."""
    (copy / "labelsTr").mkdir(parents=True)
    (copy / "imagesTr").symlink_to((dataset / "imagesTr").resolve())
    for name in ("dataset.json", "patients.csv"):
        if (dataset / name).exists():
            shutil.copy(dataset / name, copy)
    paths = sorted((dataset / "labelsTr").glob("*.nii.gz"))
    chosen = sorted(chance.choice(len(paths), max(1, round(share * len(paths))), replace=False))
    kinds = [*KINDS]
    found = {}
    for number, path in enumerate(paths):
        if number not in chosen:
            shutil.copy(path, copy / "labelsTr")
            continue
        kind = kinds[len(found) % len(kinds)]
        image = nibabel.load(path)
        label = np.asarray(image.dataobj).astype(np.uint8)
        others = [other for other in paths if abs(paths.index(other) - number) > 2]
        other = np.asarray(nibabel.load(others[chance.integers(len(others))]).dataobj).astype(np.uint8)
        changed = KINDS[kind](label, chance) if kind != "other patient" else other_patient(label, other)
        dice = 2 * ((label == changed) & (label > 0)).sum() / ((label > 0).sum() + (changed > 0).sum())
        nibabel.save(nibabel.Nifti1Image(changed, image.affine), copy / "labelsTr" / path.name)
        found[path.name.removesuffix(".nii.gz")] = f"{kind}, Dice with the right label {dice:.2f}"
        print(f"{path.name}: {found[path.name.removesuffix('.nii.gz')]}")
    return found


def shifted(label: np.ndarray, chance: np.random.Generator) -> np.ndarray:
    move = [0, 0, 0]
    move[chance.integers(3)] = SHIFT * chance.choice((-1, 1))
    return ndimage.shift(label, move, order=0)


def swapped(label: np.ndarray, chance: np.random.Generator) -> np.ndarray:
    values = np.unique(label[label > 0])
    if len(values) < 2:
        return label[:, ::-1]
    a, b = chance.choice(values, 2, replace=False)
    return np.where(label == a, b, np.where(label == b, a, label)).astype(label.dtype)


def erased(label: np.ndarray, chance: np.random.Generator) -> np.ndarray:
    occupied = np.flatnonzero(label.any(axis=(0, 2)))
    count = max(1, round(ERASED * len(occupied)))
    start = chance.integers(len(occupied) - count + 1)
    changed = label.copy()
    changed[:, occupied[start : start + count]] = 0
    return changed


def dilated(label: np.ndarray, chance: np.random.Generator) -> np.ndarray:
    distance, nearest = ndimage.distance_transform_edt(label == 0, return_indices=True)
    return np.where(distance <= DILATION, label[tuple(nearest)], 0).astype(label.dtype)


def other_patient(label: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Another label, its centre where that of the label is."""
    centre = [np.array(ndimage.center_of_mass(array > 0)).round().astype(int) for array in (label, other)]
    changed = np.zeros_like(label)
    at = np.argwhere(other > 0)
    to = at - centre[1] + centre[0]
    inside = ((to >= 0) & (to < label.shape)).all(axis=1)
    changed[tuple(to[inside].T)] = other[tuple(at[inside].T)]
    return changed


KINDS = {"shifted": shifted, "swapped": swapped, "erased": erased, "dilated": dilated, "other patient": None}

if __name__ == "__main__":
    main()
