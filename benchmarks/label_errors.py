"""Labels corrupted in 5 % of the training cases, and how many of them `autoseg rank` puts first.

    python benchmarks/label_errors.py DATASET -o FOLDER [--time-budget 90s | --steps 500] [-c 2d]   corrupt, plan, train
                                                                              five folds, rank
    python benchmarks/label_errors.py DATASET -o FOLDER --no-training         corrupt and stop
    python benchmarks/label_errors.py DATASET -o FOLDER --trained             of folds that are trained there already
    python benchmarks/label_errors.py DATASET -o FOLDER --references WORKSPACE [--repeats 40]

The copy has the images of the dataset (nnU-Net's layout) as links, and its labels, of which a share is corrupted in
five ways by turns: shifted by 2 voxels along an axis, two labels swapped (of a single label: turned upside down), a
quarter of its slices erased, dilated by a voxel, the label of another patient. FOLDER/corrupted.json says which and
how. The folds are trained on the corrupted labels, too, as in life.

With --references, no fold is trained: those of a workspace that was trained on the right labels look at their held-out
cases once (without flips), and the references are corrupted afterwards, again and again with other cases. That flatters
the ranking, because the training never saw the errors; it shows which kinds are found, and what the score adds to Dice.
"""

import argparse
import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
from common import autoseg
from scipy import ndimage

from autoseg.datasets.dataset import Dataset, load_case
from autoseg.datasets.splits import Splits
from autoseg.models.model import open_model
from autoseg.nn.devices import choose_device
from autoseg.records import load
from autoseg.workspace import Workspace

SHIFT, DILATION, ERASED = 2, 1, 1 / 4  # voxels, voxels, share of the slices


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--share", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--time-budget", default="90s")
    parser.add_argument("--steps", type=int, help="of each fold, instead of a time")
    parser.add_argument("-c", "--configuration", help="default: the recommended one")
    parser.add_argument("--no-training", action="store_true")
    parser.add_argument("--trained", action="store_true")
    parser.add_argument("--references", type=Path, metavar="WORKSPACE")
    parser.add_argument("--repeats", type=int, default=40)
    options = parser.parse_args()
    if options.references:
        only_references(options)
        return
    copy, workspace, ranking = options.out / "dataset", options.out / "workspace", options.out / "ranking.csv"
    which = ["-c", options.configuration] if options.configuration else []
    if not options.trained:
        corrupted = corrupt(options.dataset, copy, options.share, np.random.default_rng(options.seed))
        (options.out / "corrupted.json").write_text(json.dumps(corrupted, indent=1))
    if options.no_training:
        return
    if not options.trained:
        length = ["--steps", options.steps] if options.steps else ["--time-budget", options.time_budget]
        autoseg("plan", copy, "-w", workspace, "--time-budget", options.time_budget)
        autoseg("train", "-w", workspace, *length, *which)
    autoseg("rank", "-w", workspace, "--csv", ranking, *which)
    corrupted = json.loads((options.out / "corrupted.json").read_text())
    with open(ranking, newline="", encoding="utf-8") as file:
        rows = [*csv.DictReader(file)]
    dice: dict[str, list[float]] = {}
    for row in rows:
        dice.setdefault(row["case"], []).append(float(row["dice"] or 0))
    orders = {"score": [*dict.fromkeys(row["case"] for row in rows)]}
    orders["1 - mean Dice"] = sorted(dice, key=lambda case: float(np.mean(dice[case])))
    for name, order in orders.items():
        places = {case: order.index(case) + 1 for case in corrupted}
        print(f"{name}: {shares(places, len(order))}; places {sorted(places.values())}")
        found = sum(place <= len(places) for place in places.values())
        print(f"  of the first {len(places)}, {found} are corrupted: precision and recall {found / len(places):.1%}")
        for case, place in sorted(places.items(), key=lambda pair: pair[1]):
            print(f"  {place:4d}  {case}: {corrupted[case]}")


def shares(places: dict[str, int], cases: int) -> str:
    """Share of the corrupted cases among the first 5 % and the first 10 % of an order."""
    found = [np.mean([place <= round(share * cases) for place in places.values()]) for share in (0.05, 0.10)]
    return f"{found[0]:.1%} among the first 5 %, {found[1]:.1%} among the first 10 %"


def only_references(options: argparse.Namespace) -> None:
    """Look at held-out cases once, then corrupt their references again and again."""
    from autoseg.evaluation.label_errors import SureLabels, examined
    from autoseg.inference.member import EnsembleMember, Preparations, decide
    from autoseg.inference.options import InferenceOptions

    workspace = Workspace(options.references)
    dataset, splits = load(Dataset, workspace.dataset), load(Splits, workspace.splits)
    (name, network), *_ = workspace.models()
    known, looks = {case.id: case for case in dataset.cases}, {}
    for split in splits.splits:
        model = open_model(workspace, name, network, folds=[split.fold], device=choose_device("cpu"))
        plan, shared = model.plan, Preparations()
        member = EnsembleMember(model, InferenceOptions(mirroring=False), shared)
        for case in (known[case_id] for case_id in split.validation):
            loaded = load_case(
                case, plan.labels, channels=plan.channels, orientation=plan.orientation, axis_order=plan.axis_order
            )
            placement = member.prepare(loaded).placement
            sure = SureLabels(plan.heads, placement.shape_after_crop)
            decided = decide([member], loaded, consumers=[sure])
            shared.forget()
            looks[case.id] = (case, str(split.fold), loaded, placement.uncrop(sure.sure), decided)
        print(f"fold {split.fold}: {len(split.validation)} cases", flush=True)

    def judged(case_id: str, target: np.ndarray) -> tuple[float, float]:
        case, fold, loaded, sure, decided = looks[case_id]
        found = examined(case, fold, replace(loaded, target=target), sure, decided, plan.labels).doubtful
        return found.score, 1 - float(np.mean([label.dice or 0 for label in found.labels.values()]))

    right = {case_id: judged(case_id, look[2].target) for case_id, look in looks.items()}
    chance = np.random.default_rng(options.seed)
    ids, kinds = [*looks], [*KINDS]
    count = max(1, round(options.share * len(ids)))
    measures = ("score", "1 - mean Dice")
    places: dict[str, dict[str, list[int]]] = {measure: {kind: [] for kind in kinds} for measure in measures}
    for _ in range(options.repeats):
        chosen = {ids[i]: kinds[n % len(kinds)] for n, i in enumerate(chance.choice(len(ids), count, replace=False))}
        values = dict(right)
        for case_id, kind in chosen.items():
            target, other = looks[case_id][2].target, looks[ids[chance.integers(len(ids))]][2].target
            changed = other_patient(target, other) if kind == "other patient" else KINDS[kind](target, chance)
            values[case_id] = judged(case_id, changed)
        for number, measure in enumerate(measures):
            order = sorted(ids, key=lambda case_id, number=number: -values[case_id][number])
            for case_id, kind in chosen.items():
                places[measure][kind].append(order.index(case_id) + 1)
    for measure, of_kinds in places.items():
        for kind, found in [*of_kinds.items(), ("all", [place for some in of_kinds.values() for place in some])]:
            print(f"{measure}, {kind} ({len(found)}): {shares(dict(enumerate(found)), len(ids))}")


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
