"""Is `predict --speed fast` worse than `accurate`? And does `compare` call a null null, and find what was planted?

    autoseg train -f 0..4 -w WORKSPACE
    python benchmarks/compare_speeds.py -w WORKSPACE --out DIR

Every fold segments its held-out cases at the speed; `compare` sets them against those of the workspace. Then, on the
same real segmentations: sides exchanged at random within each patient, 1000 times, which is a null; and the
segmentations of some patients moved by one voxel along x, which is a loss that is known.
"""

import argparse
from pathlib import Path

import nibabel as nib
import numpy as np
from common import autoseg

from autoseg.commands.compare import CompareOptions, compare
from autoseg.commands.sides import open_side, prepared, scored_side
from autoseg.datasets.dataset import Dataset
from autoseg.datasets.splits import Splits
from autoseg.evaluation.paired import sign_flips
from autoseg.lines import show, shown_by
from autoseg.messages import ruled
from autoseg.records import load
from autoseg.workspace import Workspace

EXCHANGES = 1000
SHARES = (0.01, 0.03, 0.1, 0.3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-w", "--workspace", type=Path, default=Path("autoseg_workspace"))
    parser.add_argument("--out", type=Path, required=True, help="folder for the segmentations")
    parser.add_argument("--speed", default="fast")
    parser.add_argument("--folds", type=int, nargs="+", default=None, help="only these")
    options = parser.parse_args()
    workspace = Workspace(options.workspace)
    dataset = load(Dataset, workspace.dataset)
    cases = {case.id: case for case in dataset.cases}
    folder = options.out / options.speed
    for split in load(Splits, workspace.splits).splits:
        if options.folds is not None and split.fold not in options.folds:
            continue
        images = [cases[case].images[0] for case in split.validation]
        how = ("-f", split.fold, "--speed", options.speed, "--resume", "--device", "cpu")
        autoseg("predict", "-w", workspace.root, *how, "-i", *images, "-o", folder)
    with shown_by(show):
        compare(str(workspace.root), str(folder), workspace)
    held_out = {path.name.removesuffix(".nii.gz") for path in folder.glob("*.nii.gz")}
    patients = {case.id: case.patient for case in dataset.cases if case.id in held_out}
    nulls(*(dice_of(workspace, str(side), held_out) for side in (workspace.root, folder)), patients)
    references = Path(next(case.label for case in dataset.cases if case.label)).parent
    table = Path(dataset.root) / "patients.csv"
    table = table if table.exists() else None
    rows = [["moved by a voxel", "patients", "B - A", "95 % interval", "p", "called"]]
    for share in SHARES:
        moved, number = shifted(folder, options.out / f"moved_{share}", patients, share)
        with shown_by(None):
            found = compare(str(folder), str(moved), workspace, CompareOptions(references, patients=table))
        one = found.mean["dice"]
        called = f"{found.better} is better" if found.better else "no difference shown"
        interval = f"{one.low:+.4f} to {one.high:+.4f}"
        rows.append([f"{share:.0%}", str(number), f"{one.difference:+.5f}", interval, f"{one.p:.2g}", called])
    print(ruled(rows))


def dice_of(workspace: Workspace, text: str, of: set[str]) -> dict[str, float]:
    """Case -> mean Dice over labels of one side, of those cases."""
    other = prepared(open_side(str(workspace.root), workspace), None, None, None, workspace)
    side = prepared(open_side(text, workspace), other, None, None, workspace)
    cases = scored_side(side, of).cases
    return {case: float(np.mean([metrics["dice"] for metrics in labels.values()])) for case, labels in cases.items()}


def nulls(a: dict[str, float], b: dict[str, float], patients: dict[str, str]) -> None:
    """Print how often sides that were exchanged at random are called different."""
    generator = np.random.default_rng(0)
    names = sorted({patients[case] for case in b})
    alarms = 0
    for _ in range(EXCHANGES):
        signs = dict(zip(names, generator.choice([-1, 1], len(names)), strict=True))
        values = [signs[patients[case]] * (b[case] - a[case]) for case in b]
        alarms += sign_flips(values, [patients[case] for case in b])[0] <= 0.05
    print(f"\nsides exchanged at random, {EXCHANGES} times: {alarms / EXCHANGES:.1%} called different")


def shifted(folder: Path, out: Path, patients: dict[str, str], share: float) -> tuple[Path, int]:
    """Copies of segmentations, those of a share of the patients moved by one voxel along x; and how many these are."""
    out.mkdir(parents=True, exist_ok=True)
    names = sorted(set(patients.values()))
    chosen = set(np.random.default_rng(1).permutation(names)[: max(1, round(share * len(names)))])
    for path in sorted(folder.glob("*.nii.gz")):
        image = nib.load(path)
        array = np.asarray(image.dataobj)
        moved = patients[path.name.removesuffix(".nii.gz")] in chosen
        nib.save(
            nib.Nifti1Image(np.roll(array, 1, axis=0) if moved else array, image.affine, image.header), out / path.name
        )
    return out, len(chosen)


if __name__ == "__main__":
    main()
