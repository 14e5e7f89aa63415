"""Instances of nuclei on a held-out fifth: classical floor, what perfect masks allow, StarDist, Cellpose, autoseg.

    python benchmarks/nuclei_peers.py --data DIR/nuclei --out FOLDER [--floor] [--ceilings]
        [--stardist PYTHON] [--cellpose PYTHON] [--minutes 15] [--threads 2] [--maps NAME=FOLDER ...]

Held out is every fifth image of the sorted names, beginning with the first: 85 of 425. `FOLDER/dataset` is the same
data set with `splits_final.json`, so that fold 0 of `autoseg plan FOLDER/dataset --instances nuclei` is this split.

- `--floor`: `autoseg floor` on this split; its numbers are tuned on 40 of the 340 training images.
- `--ceilings`: the reference masks themselves, cut into objects by connected components, by the distance watershed of
  the floor (its best numbers on the training images), and by a border of one pixel whose cores are grown back.
- `--stardist`, `--cellpose`: a Python with stardist==0.9.2, csbdeep, tensorflow-cpu, or with cellpose<4; trained from
  scratch on the training images for `--minutes` of its training loop (peer/instances_peer.py has the settings).
- `--maps`: folders of instance maps of the held-out images, such as `models/*/fold_0/validation` of a workspace, as a
  row each: `--maps "autoseg, seed 0=WORKSPACE/models/2d-unet/fold_0/validation"`.

Every row is scored by the same functions, pooled over images. Finished rows stand in `FOLDER/rows`; they are not
repeated.
"""

import argparse
import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np

from autoseg.commands.floor import read_objects
from autoseg.datasets.dataset import Case
from autoseg.datasets.splits import Split, Splits
from autoseg.evaluation.classical import Classical, ObjectRecipe
from autoseg.evaluation.floor import Loaded, object_floor
from autoseg.evaluation.object_scores import SHOWN, ObjectCounts, count_objects, summarise_objects
from autoseg.imaging.formats.readers import read_labels, stem_of
from autoseg.imaging.labels import LabelSet, Thing
from autoseg.imaging.objects import grow_objects, split_objects

HERE = Path(__file__).parent
NUCLEI = LabelSet({"nuclei core": 1, "nuclei border": 2}, things={"nuclei": Thing(1, 2)})
BORDER = 1.0  # pixels


def held_out_of(names: list[str]) -> list[str]:
    """Every fifth of the sorted names."""
    return sorted(names)[::5]


def prepare(data: Path, out: Path) -> tuple[dict[str, Case], dict[str, list[str]]]:
    """A copy of the data with its split, for autoseg and for the peers."""
    copy = out / "dataset"
    if not (copy / "splits_final.json").exists():
        for folder in ("images", "labels"):
            shutil.copytree(data / folder, copy / folder, dirs_exist_ok=True)
        names = [path.stem for path in (copy / "images").iterdir()]
        held_out = held_out_of(names)
        train = sorted(set(names) - set(held_out))
        (out / "split.json").write_text(json.dumps({"train": train, "held_out": held_out}), encoding="utf-8")
        (copy / "splits_final.json").write_text(json.dumps([{"train": train, "val": held_out}]), encoding="utf-8")
    cases = {
        path.stem: Case(path.stem, path.stem, (str(path),), str(copy / "labels" / path.name))
        for path in sorted((copy / "images").iterdir())
    }
    return cases, json.loads((out / "split.json").read_text(encoding="utf-8"))


def row(counts: list[ObjectCounts], **about: object) -> dict:
    """A row of the table: every image counts as a patient."""
    return about | {"scores": asdict(summarise_objects(counts, range(len(counts))))}


def counted(reference: np.ndarray, found: np.ndarray) -> ObjectCounts:
    return count_objects(NUCLEI, reference, found)["nuclei"]


def ceilings(read: Callable[[str], Loaded], split: dict[str, list[str]]) -> dict[str, dict]:
    """What perfect masks allow, without and with their borders."""
    grid = [
        ObjectRecipe("otsu_watershed", fill=False, smoothing=0.0, radius_mm=r, rounding=s, apart=a, smallest=0.0)
        for r, s, a in product((5.0, 9.0, None), (0.1, 0.2, 0.3), (0.6, 0.9, 1.2))
    ]

    def watershed(case: str, recipes: list[ObjectRecipe]) -> list[ObjectCounts]:
        loaded = read(case)
        mask = Classical((loaded.reference > 0)[None].astype(np.float32), loaded.spacing)
        return [counted(loaded.reference, mask.objects(recipe)) for recipe in recipes]

    tried = [watershed(case, grid) for case in split["train"][::10]]
    worth = [summarise_objects([one[i] for one in tried]).average_precision["0.5"] for i in range(len(grid))]
    best = grid[int(np.argmax(worth))]
    components = ObjectRecipe("otsu_components", fill=False, smoothing=0.0, smallest=0.0, radius_mm=1.0)
    found: dict[str, list[ObjectCounts]] = {"components": [], "watershed": [], "border": []}
    for case in split["held_out"]:
        one, other = watershed(case, [components, best])
        found["components"].append(one)
        found["watershed"].append(other)
        loaded = read(case)
        grown = grow_objects(split_objects(loaded.reference, BORDER, loaded.spacing), loaded.spacing)[0]
        found["border"].append(counted(loaded.reference, grown))
    names = {
        "components": "reference masks, connected components", "watershed": "reference masks, distance watershed",
        "border": "reference masks, border and cores",
    }  # fmt: skip
    return {f"ceiling_{key}": row(counts, name=names[key]) for key, counts in found.items()}


def maps_of(folder: Path, read: Callable[[str], Loaded], split: dict[str, list[str]], **about: object) -> dict:
    """Score a folder of instance maps; every held-out image must have one."""
    files = {stem_of(path): path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")}
    if missing := [case for case in split["held_out"] if case not in files]:
        raise SystemExit(f"{folder} lacks {len(missing)} of the held-out images, such as {missing[0]}")
    return row([counted(read(case).reference, read_labels(files[case]).array) for case in split["held_out"]], **about)


def run_peer(peer: str, python: Path, out: Path, options: argparse.Namespace) -> dict:
    """Train a peer and let it segment; what it wrote about its run."""
    folder = out / peer
    if not (folder / "run.json").exists():
        words = [python, HERE / "peer" / "instances_peer.py", peer, out / "dataset", out / "split.json", folder]
        length = ["--minutes", options.minutes, "--threads", options.threads]
        subprocess.run([str(word) for word in (*words, *length)], check=True)
    return json.loads((folder / "run.json").read_text(encoding="utf-8"))


def table(rows: list[dict]) -> str:
    lines = [
        "| | AP 0.5 (95 % over images) | " + " | ".join(f"AP {t:g}" for t in SHOWN[1:]) + " | AP 0.5-0.95 | PQ "
        "| split, merged | trained, s | steps |",
        "|---|---|" + "---|" * (len(SHOWN) + 4),
    ]
    for one in rows:
        scores = one["scores"]
        low, high = scores["interval"]
        average = scores["average_precision"]
        lines.append(
            f"| {one['name']} | {average['0.5']:.3f} ({low:.3f} to {high:.3f}) | "
            + " | ".join(f"{average[f'{t:g}']:.3f}" for t in SHOWN[1:])
            + f" | {scores['mean_average_precision']:.3f} | {scores['pq']:.3f} | {scores['splits']}, "
            f"{scores['merges']} | {one.get('training_seconds') or 0:.0f} | {one.get('steps', '-')} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--floor", action="store_true")
    parser.add_argument("--ceilings", action="store_true")
    parser.add_argument("--stardist", type=Path, default=None)
    parser.add_argument("--cellpose", type=Path, default=None)
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--maps", action="append", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--workers", type=int, default=None)
    options = parser.parse_args()
    out = options.out.resolve()
    (out / "rows").mkdir(parents=True, exist_ok=True)
    cases, split = prepare(options.data, out)
    read = partial(read_objects, cases, NUCLEI, ("image",), "nuclei")

    def keep(key: str, made: dict) -> None:
        (out / "rows" / f"{key}.json").write_text(json.dumps(made, indent=1, default=float), encoding="utf-8")

    for peer in ("stardist", "cellpose"):
        if python := getattr(options, peer):
            run = run_peer(peer, python, out, options)
            keep(f"peer_{peer}", maps_of(out / peer / "maps", read, split, **run))
    if options.ceilings and not (out / "rows" / "ceiling_border.json").exists():
        for key, made in ceilings(read, split).items():
            keep(key, made)
    if options.floor and not (out / "rows" / "floor_chosen.json").exists():
        folds = Splits(1, 0, (Split(0, tuple(split["train"]), tuple(split["held_out"])),), (), ())
        for method, found in object_floor(read, folds, {}, workers=options.workers).items():
            keep(f"floor_{method}", {"name": f"floor: {method}", "scores": asdict(found.scores),
                                     "recipe": asdict(found.recipes["0"])})  # fmt: skip
    for given in options.maps:
        name, _, folder = given.rpartition("=")
        keep("z_" + "".join(c if c.isalnum() else "_" for c in name), maps_of(Path(folder), read, split, name=name))
    rows = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((out / "rows").glob("*.json"))]
    print("\n" + table(rows))


if __name__ == "__main__":
    main()
