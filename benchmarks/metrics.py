"""autoseg's metrics beside those of other libraries: how far values differ, and how long they take.

    python benchmarks/metrics.py --peer PYTHON [--only oracles|speed] [--labels 32] [--shape 140 512 512]

PYTHON is that of an environment with surface-distance==0.1, monai==1.6.1 and panoptica==2.1.7
(benchmarks/peer/metrics_peer.py runs there). Arrays are made here, by formulas and a fixed seed.

oracles  pairs of masks (ellipsoids, thick slices, blobs, moved cubes, a flat image) and of instance maps. A row per
         library and metric: the largest difference over all cases. Where a definition differs, so do the values, and
         the row says why.
speed    every label of a large volume, one process, one thread: all of autoseg's metrics (voxel counts, surfaces,
         boundaries, lesions) against MONAI's Dice, IoU, confusion matrix, HD, HD95, ASSD and surface Dice. Seconds are
         those of the processor, so that other work on the machine matters less; wall time is beside them.
"""

import argparse
import json
import math
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
from scipy import ndimage

from autoseg.evaluation.label_scores import LabelJob, label_scores
from autoseg.evaluation.metrics import confusion_matrix
from autoseg.evaluation.objects import (
    detected,
    object_overlaps,
    panoptic_quality,
    recognition_quality,
    segmentation_quality,
)

PEER = Path(__file__).parent / "peer" / "metrics_peer.py"
EQUAL = 1e-4
SAME = "the same definition"
DIFFERENT = {
    ("monai", "hd"): "between centres of voxels that have a face neighbour outside",
    ("monai", "hd95"): "the same voxels, each counts alike; interpolated",
    ("monai", "assd"): "the same voxels, each counts alike",
}
Pair = tuple[np.ndarray, np.ndarray, tuple[float, float, float]]


def ellipsoid(centre: tuple, radii: tuple, shape: tuple = (64, 64, 64)) -> np.ndarray:
    """A mask (Z, Y, X); all in voxels."""
    axes = np.ogrid[tuple(slice(extent) for extent in shape)]
    return sum(((axis - c) / r) ** 2 for axis, c, r in zip(axes, centre, radii, strict=True)) <= 1


def masks() -> dict[str, Pair]:
    """Pairs of masks; tests/evaluation/test_surfaces.py uses the first three."""
    rng = np.random.default_rng(16)
    blobs = [ndimage.gaussian_filter(rng.standard_normal((24, 30, 36)), 2.0) > 0.05 for _ in range(2)]
    thick, cube, flat = (20, 64, 64), np.zeros((20, 20, 20), bool), np.zeros((1, 64, 64), bool)
    cube[5:13, 4:12, 6:14] = True
    flat[0] = ellipsoid((0, 30, 30), (1, 20, 12), (1, 64, 64))[0]
    moved = np.roll(flat, (3, 1), axis=(1, 2))
    noise = [rng.random((12, 14, 16)) > 0.7 for _ in range(2)]
    return {
        "ellipsoids": (ellipsoid((32, 32, 32), (20, 16, 12)), ellipsoid((33, 33, 34), (19, 17, 12)), (1.0, 1.0, 1.0)),
        "thick slices": (
            ellipsoid((10, 32, 32), (5, 16, 20), thick), ellipsoid((11, 32, 34), (5, 18, 19), thick), (5.0, 0.8, 0.7),
        ),
        "blobs": (*blobs, (2.5, 0.8, 1.1)),
        "balls": (ellipsoid((32, 32, 32), (20,) * 3), ellipsoid((32, 32, 32), (26,) * 3), (1.0, 1.0, 1.0)),
        "cubes": (cube, np.roll(cube, 2, axis=2), (2.0, 1.0, 0.5)),
        "noise": (*noise, (1.0, 1.0, 1.0)),
        "flat image": (flat, moved, (1.0, 0.5, 0.8)),
    }  # fmt: skip


def instances() -> dict[str, Pair]:
    """Pairs of instance maps: cells in a volume, lesions that are missed, split, merged and invented."""
    rng = np.random.default_rng(17)
    found = {}
    for name, shape, count in (("cells", (1, 200, 200), 60), ("lesions", (30, 60, 60), 25)):
        reference, segmentation = np.zeros((2, *shape), np.int32)
        for number in range(1, count + 1):
            centre, radii = rng.uniform(0, shape), rng.uniform(3, 9, size=3)
            reference[ellipsoid(centre, radii, shape)] = number
            if rng.random() < 0.8:
                moved, sized = centre + rng.normal(0, 1.5, 3), radii * rng.uniform(0.8, 1.2, 3)
                segmentation[ellipsoid(moved, sized, shape)] = number
        segmentation[segmentation % 7 == 3] += 1  # merged with the next one
        found[name] = reference, segmentation, (1.0, 1.0, 1.0)
    return found


def large(shape: tuple[int, int, int], labels: int) -> Pair:
    """Label maps of organs of many sizes, and the same organs moved, swollen or shrunk by a voxel or two."""
    rng = np.random.default_rng(18)
    reference, segmentation = np.zeros((2, *shape), np.uint8)
    rows = max(1, round(math.sqrt(labels / 2)))
    columns = -(-labels // rows)
    for i in range(labels):
        cell = np.array([shape[0], shape[1] / rows, shape[2] / columns])
        centre, room = (np.array([0, i // columns, i % columns]) + 0.5) * cell, 0.45 * cell
        radii = room * rng.uniform(0.3, 1.0, size=3)
        reference[ellipsoid(tuple(centre), tuple(radii), shape)] = i + 1
        moved, sized = centre + rng.integers(-2, 3, size=3), radii + rng.uniform(-1, 1, size=3)
        segmentation[ellipsoid(tuple(moved), tuple(sized), shape)] = i + 1
    return reference, segmentation, (3.0, 0.8, 0.8)


def own_scores(pair: Pair, labels: int) -> dict[str, dict[str, float | None]]:
    """Every metric of every label, as `autoseg evaluate` measures them."""
    reference, segmentation, spacing = pair
    names = {str(i): (i,) for i in range(1, labels + 1)}
    confusion = confusion_matrix(reference, segmentation, labels + 1)
    job = LabelJob(reference, segmentation, confusion, spacing, math.prod(spacing) / 1000, dict.fromkeys(names, 1.0))
    return label_scores(job, names)


def own_instances(pair: Pair) -> dict[str, float]:
    """What the peer measures of instance maps."""
    overlaps, values = object_overlaps(pair[0], pair[1]), {}
    for threshold in (0.1, 0.5, 0.7):
        found = detected(overlaps, threshold)
        values |= {f"{key} at {threshold}": float(getattr(found, key)) for key in ("tp", "fp", "fn")}
        values |= {
            f"rq at {threshold}": recognition_quality(found),
            f"sq at {threshold}": segmentation_quality(found),
            f"pq at {threshold}": panoptic_quality(found),
        }
    return values


def asked(python: str, what: str, folder: Path) -> dict:
    """Run the peer."""
    done = subprocess.run([python, str(PEER), what, str(folder)], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def write(folder: Path, kind: str, cases: dict[str, Pair]) -> None:
    """Arrays for the peer."""
    (folder / kind).mkdir(parents=True)
    for name, (reference, segmentation, spacing) in cases.items():
        np.savez(folder / kind / name, reference=reference, segmentation=segmentation, spacing=np.array(spacing))


def oracles(python: str, folder: Path, full: bool) -> bool:
    """Print the table; returns whether everything with the same definition agrees."""
    pairs, maps = masks(), instances()
    write(folder, "masks", pairs)
    write(folder, "instances", maps)
    own = {name: own_scores((a.astype(np.uint8), b.astype(np.uint8), s), 1)["1"] for name, (a, b, s) in pairs.items()}
    own |= {name: own_instances(pair) for name, pair in maps.items()}
    print("| oracle | metric | cases | largest difference | |\n|---|---|---|---|---|")
    good = True
    for library in ("surface-distance", "monai", "panoptica"):
        answer = asked(python, library, folder)
        values = answer["values"]
        for metric in next(iter(values.values())):
            gaps = {name: abs(own[name][metric] - found[metric]) for name, found in values.items()}
            worst = max(gaps, key=gaps.__getitem__)
            why = DIFFERENT.get((library, metric))
            good &= why is not None or gaps[worst] <= EQUAL
            verdict = why or (SAME if gaps[worst] <= EQUAL else "DISAGREES")
            at = f"{gaps[worst]:.1e}" + (f" ({worst})" if gaps[worst] > EQUAL else "")
            print(f"| {library} {answer['version']} | {metric} | {len(gaps)} | {at} | {verdict} |")
        if full:
            print(json.dumps(values, indent=1))
    return good


def speed(python: str, folder: Path, shape: tuple[int, int, int], labels: int) -> None:
    """Print the seconds of both."""
    pair = large(shape, labels)
    write(folder, "large", {"large": pair})
    began, wall = time.process_time(), time.perf_counter()
    own = own_scores(pair, labels)
    seconds, wall = time.process_time() - began, time.perf_counter() - wall
    peer = asked(python, "speed", folder)
    gap = max(abs(own[label]["dice"] - found["dice"]) for label, found in peer["values"].items())
    print(f"\n{labels} labels, {' x '.join(map(str, shape))} voxels (Z, Y, X); one thread\n")
    print("| library | metrics per label | CPU seconds | wall seconds |\n|---|---|---|---|")
    print(f"| autoseg | {sum(v is not None for v in own['1'].values())} | {seconds:.1f} | {wall:.1f} |")
    found = f"{len(peer['values']['1'])} | {peer['cpu_seconds']:.1f} | {peer['seconds']:.1f}"
    print(f"| MONAI {peer['version']} | {found} |")
    print(f"\nratio {seconds / peer['cpu_seconds']:.3f} of the CPU time; largest difference of Dice {gap:.1e}")


def main() -> None:
    """Run both parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", required=True, metavar="PYTHON")
    parser.add_argument("--only", choices=("oracles", "speed"))
    parser.add_argument("--labels", type=int, default=32)
    parser.add_argument("--shape", type=int, nargs=3, default=(140, 512, 512))
    parser.add_argument("--values", action="store_true", help="also print every value of the oracles")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        good = options.only == "speed" or oracles(options.peer, Path(folder), options.values)
        if options.only != "oracles":
            speed(options.peer, Path(folder), tuple(options.shape), options.labels)
    raise SystemExit(0 if good else 1)


if __name__ == "__main__":
    main()
