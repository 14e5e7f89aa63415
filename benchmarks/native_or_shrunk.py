"""Native patches against an image 4 times smaller, where what is sought is small and rare; filters for shrinking.

    python benchmarks/native_or_shrunk.py --data DIR [--seconds 180] [--seeds 0,1] [--sides native,lanczos,...]
    python benchmarks/native_or_shrunk.py --data DIR --wall 4m [--at-once] [--sides native,lanczos]
    python benchmarks/native_or_shrunk.py --data DIR --ceiling

DIR holds `nuclei`: public fluorescence images with every nucleus outlined. The data set: mosaics of 1024 x 1024 pixels,
each of 16 fields of 256 x 256, as a scanned plate is stitched. What is sought are the smallest objects alone, nuclei of
12 to 60 pixels (4 to 9 pixels across): fragments and micronuclei, which are counted among thousands of normal nuclei
that look like them but for their size. That is realistic in what matters here: real optics and noise, outlines by
experts, a target of a thousandth of the pixels, and look-alikes everywhere. Every field is in one mosaic alone.

Sides, all with the planner's own choices for their spacing and folds of three minutes, and trained for the same time:
for as many steps as the planner expects of it on its reference machine, so that other work on this one favours nobody.
Patches and batches are alike, so that this is as many steps on every side. With `--wall`, every fold gets the same wall
time on this machine, in which it also segments its held-out mosaics, as `train --time-budget` does; with `--at-once`
the sides run side by side, so that other programs slow all of them alike:

    native           at the images' own pixels
    gaussian, ...    at pixels 4 times as wide, each filter of `resampling.filter`

Half of the mosaics train, the others are segmented; segmentations of all sides are brought back to the images' pixels
by `train` itself, and scored there: Dice per mosaic, and the share of objects of which at least one pixel is found.
Differences from native are paired by mosaic; seeds are averaged first.

`--ceiling` trains nothing. It prints what a perfect network at the wider pixels could reach, whose segmentation is the
reference itself, resampled as a target and brought back; and what each filter leaves of the images: the contrast of the
objects against the ground around them, and the deviation of that ground, both in shares of what they were.
"""

import argparse
import json
import os
import shutil
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from common import autoseg, dice_per_case, steps_done
from PIL import Image
from scipy import ndimage

from autoseg.evaluation.intervals import interval_of_mean
from autoseg.imaging.low_pass import LowPass
from autoseg.imaging.resample import resample_image, resample_labels
from autoseg.planning.fingerprint import Fingerprint
from autoseg.planning.pace import pace
from autoseg.planning.plan import Plan
from autoseg.planning.planner import Wishes, make_plan
from autoseg.records import load, save
from autoseg.workspace import Workspace

SIDES = ("native", "gaussian", "hamming_sinc", "lanczos", "none")
FIELD, ROWS = 256, 4  # pixels of a field, fields along an edge of a mosaic
SMALL = (12, 60)  # pixels of the objects that are sought
PLANNED = 180  # seconds of a fold that steps are sized for
WIDER = 4  # times: pixels of the shrunk sides


def write_mosaics(nuclei: Path, folder: Path) -> tuple[list[str], list[str]]:
    """Write the data set; ids of the mosaics that train and of those held out. The same mosaics at every call."""
    fields = []
    for path in sorted((nuclei / "labels").glob("*.png")):
        objects = np.asarray(Image.open(path))
        if min(objects.shape) >= FIELD:
            image = np.asarray(Image.open(nuclei / "images" / path.name).convert("L"))
            fields.append((image[:FIELD, :FIELD], sought(objects)[:FIELD, :FIELD]))
    order = np.random.default_rng(0).permutation(len(fields))
    count = len(fields) // ROWS**2
    names = [f"mosaic_{i:02d}" for i in range(count)]
    train, held_out = names[::2], names[1::2]
    if folder.exists():
        return train, held_out
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    pixels = objects_found = 0
    for i, name in enumerate(names):
        chosen = [fields[j] for j in order[i * ROWS**2 : (i + 1) * ROWS**2]]
        for kind, part in (("images", 0), ("labels", 1)):
            rows = [np.hstack([field[part] for field in chosen[r * ROWS : (r + 1) * ROWS]]) for r in range(ROWS)]
            Image.fromarray(np.vstack(rows)).save(folder / kind / f"{name}.png")
            if part:
                pixels += int(np.vstack(rows).sum())
                objects_found += ndimage.label(np.vstack(rows), np.ones((3, 3)))[1]
    (folder / "splits_final.json").write_text(json.dumps([{"train": train, "val": held_out}]))
    share = pixels / (count * (ROWS * FIELD) ** 2)
    print(f"{count} mosaics of {ROWS * FIELD} x {ROWS * FIELD}: {objects_found} objects, {share:.4%} of all pixels")
    return train, held_out


def sought(objects: np.ndarray) -> np.ndarray:
    """1 where an object of the wanted size is, of a map with a number per object."""
    sizes = np.bincount(objects.ravel())
    sizes[0] = 0
    return ((sizes >= SMALL[0]) & (sizes <= SMALL[1]))[objects].astype(np.uint8)


def plan(side: str, data: Path, workspace: Path, seconds: float | None, seed: int) -> None:
    """Plan a side: the planner's own way, at its spacing. One that is planned already is left alone, and resumed.

    Args:
        seconds: of training, on the planner's reference machine; None: the length is named when it is trained.
    """
    if workspace.exists():
        return
    measured = data.parent / "planned"
    if not measured.exists():
        rate = ["--cpu-rate", "reference", "--labels", "small=1", "--time-budget", f"{PLANNED}s"]
        autoseg("plan", data, *rate, "--no-preprocess", "-w", measured)
    shutil.copytree(measured, workspace)
    own, found = Workspace(workspace), load(Fingerprint, Workspace(workspace).fingerprint)
    first = load(Plan, own.plan)
    z, y, x = next(iter(found.cases)).spacing
    chosen = first if side == "native" else make_plan(
        dataset=first.dataset, channels=first.channels, labels=first.labels, fingerprint=found,
        wishes=Wishes(spacing=(z, y * WIDER, x * WIDER)), pace=pace(None, PLANNED),
    )  # fmt: skip
    step = chosen.configurations[chosen.recommended].cost.seconds_per_step
    settings = [f"training.seed={seed}"]
    settings += [] if seconds is None else [f"training.steps={round(seconds / step)}", "training.autotune=false"]
    settings += [] if side == "native" else [f"resampling.filter={side}"]
    save(own.plan, replace(chosen, file_names=first.file_names, grids=first.grids).with_settings(settings))


def scores(workspace: Path, data: Path, held_out: list[str]) -> dict[str, tuple[float, int, int, int]]:
    """Of each held-out mosaic: Dice, objects found, objects, and components that touch no object."""
    table = workspace / "scores.csv"
    autoseg("evaluate", "-w", workspace, "--csv", table)
    dice = dice_per_case(table)["small"]
    (folder,) = workspace.glob("models/*/fold_0/validation")
    found = {}
    for name in held_out:
        reference = np.asarray(Image.open(data / "labels" / f"{name}.png")) > 0
        segmentation = np.asarray(Image.open(folder / f"{name}.png")) > 0
        objects, count = ndimage.label(reference, np.ones((3, 3)))
        hit = len(set(np.unique(objects[segmentation])) - {0})
        parts, many = ndimage.label(segmentation, np.ones((3, 3)))
        false = many - len(set(np.unique(parts[reference])) - {0})
        found[name] = (dice.get(name, np.nan), hit, count, false)
    return found


def ceiling(data: Path, names: list[str]) -> None:
    """Print what references, and images by each filter, keep of the objects when they are shrunk and brought back."""
    native, wide = (1.0, 1.0, 1.0), (1.0, WIDER, WIDER)
    full, small = (1, ROWS * FIELD, ROWS * FIELD), (1, ROWS * FIELD // WIDER, ROWS * FIELD // WIDER)
    rules = {"coarse_axis_order": 0, "anisotropy_threshold": 9.0}
    dice, recall = [], []
    kept: dict[str, list[tuple[float, float]]] = {side: [] for side in SIDES}
    for name in names:
        reference = np.asarray(Image.open(data / "labels" / f"{name}.png")).astype(np.int16)[None]
        image = np.asarray(Image.open(data / "images" / f"{name}.png")).astype(np.float32)[None]
        back = resample_labels(resample_labels(reference, native, wide, small, **rules), wide, native, full, **rules)
        objects, count = ndimage.label(reference, np.ones((3, 3, 3)))
        dice.append(2 * np.sum(back & reference) / (back.sum() + reference.sum()))
        recall.append(len(set(np.unique(objects[back > 0])) - {0}) / count)
        around = ndimage.binary_dilation(reference, iterations=8) & ~ndimage.binary_dilation(reference, iterations=3)
        ground = around & (image < np.median(image[around]) + 3 * image[around].std())
        for side in SIDES:
            shown = image
            if side != "native":
                filtered = LowPass(side, 1.5)
                less = resample_image(image[None], native, wide, small, order=3, **rules, low_pass=filtered)
                shown = resample_image(less, wide, native, full, order=1, **rules, low_pass=filtered)[0]
            kept[side].append((shown[reference > 0].mean() - shown[ground].mean(), shown[ground].std()))
    print(f"\na perfect segmentation at {WIDER} times wider pixels: Dice {interval(dice)}, found {interval(recall)}")
    print("\n| filter | contrast of objects | deviation of the ground |\n|---|---|---|")
    whole = np.array(kept["native"])
    for side in SIDES[1:]:
        contrast, deviation = (np.array(kept[side]) / whole).T
        print(f"| {side} | {interval(contrast)} | {interval(deviation)} |")


def interval(values: Sequence[float]) -> str:
    """Mean of one value per mosaic, with its interval."""
    low, high = interval_of_mean(values, range(len(values)))
    return f"{np.mean(values):.3f} ({low:.3f} to {high:.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=180.0, help="of training per side, on the reference machine")
    parser.add_argument("--wall", metavar="TIME", help="wall time of each fold instead, with its validation: 4m")
    parser.add_argument("--at-once", action="store_true", help="all sides of a seed side by side, a thread each")
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--sides", default=",".join(SIDES))
    parser.add_argument("--ceiling", action="store_true", help="train nothing: what wider pixels can hold at all")
    parser.add_argument("--out", type=Path, default=Path("native_or_shrunk_run"))
    options = parser.parse_args()
    data = options.out / "data"
    train, held_out = write_mosaics(options.data / "nuclei", data)
    if options.ceiling:
        ceiling(data, [*train, *held_out])
        return
    results = options.out / "results.json"
    known = json.loads(results.read_text()) if results.exists() else {}
    sides = options.sides.split(",")
    if options.at_once:
        os.environ["OMP_NUM_THREADS"] = "1"
    for seed in map(int, options.seeds.split(",")):
        due = [side for side in sides if f"{side} {seed}" not in known]
        for side in due:
            plan(side, data, options.out / f"{side}_{seed}", None if options.wall else options.seconds, seed)
        with ThreadPoolExecutor(len(sides) if options.at_once else 1) as pool:
            one = partial(run, data=data, held_out=held_out, wall=options.wall)
            runs = pool.map(one, [options.out / f"{side}_{seed}" for side in due])
            for side, found in zip(due, runs, strict=True):
                known[f"{side} {seed}"] = found
                results.write_text(json.dumps(known))
        report(known, held_out)


def run(workspace: Path, data: Path, held_out: list[str], wall: str | None) -> dict:
    """Train a side that is planned, segment its held-out mosaics and score them."""
    cpu, began = os.times(), time.perf_counter()
    autoseg("train", "-f", "0", "-w", workspace, *(["--time-budget", wall] if wall else []))
    used, seconds = os.times(), time.perf_counter() - began
    (fold,) = workspace.glob("models/*/fold_0")
    return {
        "cases": scores(workspace, data, held_out),
        "steps": steps_done(fold),
        "seconds": seconds,  # the processor's are those of all sides that ran side by side
        "cpu_seconds": used.children_user + used.children_system - cpu.children_user - cpu.children_system,
    }


def report(known: dict, held_out: list[str]) -> None:
    """Print the table of all sides that were run, seeds averaged."""
    sides = [side for side in SIDES if any(key.split()[0] == side for key in known)]
    runs = {side: [run for key, run in known.items() if key.split()[0] == side] for side in sides}
    values = {}
    for side in sides:
        cases = [[run["cases"][name] for run in runs[side]] for name in held_out]
        dice = np.array([np.nanmean([c[0] for c in case]) for case in cases])
        recall = np.array([np.mean([c[1] / c[2] for c in case]) for case in cases])
        false = np.array([np.mean([c[3] for c in case]) for case in cases])
        values[side] = (dice, recall, false)
    print("\n| side | seeds | steps | s | CPU s | Dice | found | false per mosaic | Dice against native | found |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for side in sides:
        dice, recall, false = values[side]
        row = [side, str(len(runs[side])), f"{np.mean([run['steps'] for run in runs[side]]):.0f}"]
        row += [f"{np.mean([run[key] for run in runs[side]]):.0f}" for key in ("seconds", "cpu_seconds")]
        row += [f"{dice.mean():.3f}", f"{recall.mean():.3f}", f"{false.mean():.1f}"]
        for mine, reference in zip((dice, recall), values.get("native", (dice, recall, false))[:2], strict=True):
            low, high = interval_of_mean(mine - reference, held_out)
            row.append(f"{np.mean(mine - reference):+.3f} ({low:+.3f} to {high:+.3f})")
        print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
