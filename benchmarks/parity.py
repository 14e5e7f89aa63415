"""Every stage of nnU-Net v2 beside autoseg's under the same plan: how far the results differ.

    python benchmarks/parity.py --data DIR --peer PEER_VENV --out FOLDER
        [--stages preprocess,network,...] [--sets ms_thick,...] [--model NNUNET_MODEL --images IMAGES]

DIR holds the datasets; PEER_VENV is a virtual environment with nnunetv2==2.8.1. The peer plans each dataset itself, in
the memory that SETS lists, and runs each stage with its own code (benchmarks/peer/parity_peer.py). autoseg reads the
peer's plan as `import-nnunet` does, and runs the same stage with the code that plans, trains and predicts otherwise.
Both run on the CPU in float32.

    preprocess  image, segmentation and places of the labels of up to 20 cases
    network     logits of every stage of the same weights
    loss        loss and gradients of the same logits: labels and regions, with and without ignored voxels, per sample
                and per batch
    steps       weights after 20 steps on the same batches
    rates       learning rates of the whole schedule
    patches     statistics of 500 patches, as cut and as augmented, with the interval of their difference
    labels      segmentations of a trained model (`--model`, its folder; `--images`)

Three sets: hippocampus (3-D, 160 cases); ms_thick, 20 volumes with slices 3 to 6 mm thick, made of ms_lesion_mni by
leaving slices out, with spacings that differ from case to case; axon_sem (2-D, 10 images).
"""

import argparse
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
from parity_data import CASES, SETS, PeerSet, Row, read
from parity_training import loss, network, rates, steps
from scipy import stats

from autoseg.dataloading.store import CaseInfo, CaseStore
from autoseg.training.batches import TrainingBatches

PATCHES = 500
FAR = 1e-3  # standard deviations


def preprocess(peer: PeerSet) -> Iterator[Row]:
    names = ",".join(case.id for case in peer.cases[:CASES])
    folder = peer.stage(
        "preprocess", peer.out / "stages" / f"preprocess_{peer.name}", plans=peer.plans(), raw=peer.raw,
        dataset=peer.raw / "dataset.json", configuration=peer.configuration, cases=names,
    )  # fmt: skip
    largest, half, means = 0.0, 0.0, []
    other, outside, voxels, places, lists, beyond = 0, 0, 0, 0, 0, 0
    with tempfile.TemporaryDirectory() as temporary:
        store = CaseStore(Path(temporary))
        for case, ours in peer.prepared():
            theirs = np.load(folder / f"{case.id}.npz")
            assert theirs["data"].shape == ours.image.shape, f"{case.id}: {theirs['data'].shape}, {ours.image.shape}"
            assert ours.target is not None
            difference = np.abs(theirs["data"] - ours.image)
            far = difference > FAR
            beyond, means = beyond + int(far.sum()), [*means, float(difference.mean())]
            largest = max(largest, float(difference[~far].max()))
            differ = theirs["seg"][0] != ours.target
            outside += int((differ & (np.maximum(theirs["seg"][0], 0) == np.maximum(ours.target, 0))).sum())
            other += int((np.maximum(theirs["seg"][0], 0) != np.maximum(ours.target, 0)).sum())
            voxels += ours.target.size
            info = CaseInfo(case.id, "", ours.placement, peer.plan()[0].labels.num_labels)
            store.commit(case.id, ours.image, ours.target, info)
            stored = store.open(case.id)
            half = max(half, float(np.abs(stored.image.astype(np.float32) - ours.image).max()))
            for label, rows in stored.locations.items():
                expected = {tuple(row[1:]) for row in theirs[f"label_{label}"].tolist()}
                found = set(map(tuple, rows.tolist()))
                lists += 1
                places += found == expected if len(expected) < 10_000 else len(found) == 10_000
    data = f"{peer.name}, {len(means)} cases"
    yield "preprocessed voxels", data, "largest difference, standard deviations", "1e-3", f"{largest:.2g}"
    yield "", data, "voxels that differ by more than 1e-3, left out above", "0", f"{beyond}"
    yield "", data, "mean difference", "", f"{np.mean(means):.2g}"
    yield "", data, "largest rounding of the stored copy (float16 where it suffices)", "", f"{half:.2g}"
    yield "", data, "voxels of another label", "0", f"{other} of {voxels}"
    yield "", data, "voxels outside the body for one side alone (-1 and 0)", "", f"{outside}"
    yield "class locations", data, "equal sets (10,000 of those that have more)", "all", f"{places} of {lists}"


def patches(peer: PeerSet) -> Iterator[Row]:
    """Patches of all cases, so the peer's are preprocessed by the peer and ours by autoseg."""
    plan, configuration = peer.plan()
    if not (peer.planned / read(peer.plans())["configurations"][peer.configuration]["data_identifier"]).exists():
        peer.command("preprocess", "-d", peer.number, "-plans_name", "Plain", "-c", peer.configuration, "-np", 2)
    with tempfile.TemporaryDirectory() as temporary:
        store = CaseStore(Path(temporary))
        for case, ours in peer.prepared(None):
            assert ours.target is not None
            info = CaseInfo(case.id, "", ours.placement, plan.labels.num_labels)
            store.commit(case.id, ours.image, ours.target, info)
        for augmented in (False, True):
            folder = peer.stage(
                "patches", peer.out / "stages" / f"patches_{peer.name}_{int(augmented)}", plans=peer.plans(),
                dataset=peer.raw / "dataset.json", configuration=peer.configuration, number=PATCHES,
                augmented=int(augmented),
            )  # fmt: skip
            theirs = np.load(folder / "patches.npz")
            chosen = plan if augmented else plan.with_settings(["training.augmentation=none"])
            batches = TrainingBatches(store, [case.id for case in peer.cases], chosen, configuration)
            stream = batches.batches("host", in_memory=True)
            made = [stream.sample(index)[1:] for index in range(PATCHES)]
            images, segs = np.stack([image for image, _ in made]), np.stack([seg for _, seg in made])
            yield from compared(theirs, images, segs, f"{peer.name}, {'augmented' if augmented else 'as cut'}")


def compared(theirs, images: np.ndarray, segs: np.ndarray, data: str) -> Iterator[Row]:
    """One row per statistic: both means, and the 95 % interval of their difference over patches."""
    found = {"share of foreground": [(seg > 0).mean(axis=tuple(range(1, seg.ndim))) for seg in (theirs["seg"], segs)]}
    for label in range(1, int(segs.max()) + 1):
        found[f"patches with label {label}"] = [
            (seg == label).any(axis=tuple(range(1, seg.ndim))).astype(float) for seg in (theirs["seg"], segs)
        ]
    flat = [each.reshape(len(each), -1) for each in (theirs["image"], images)]
    found |= {
        "mean intensity": [each.mean(axis=1) for each in flat],
        "its deviation": [each.std(axis=1) for each in flat],
    }
    for share in (1, 50, 99):
        found[f"percentile {share}"] = [np.percentile(each, share, axis=1) for each in flat]
    for name, (peer, ours) in found.items():
        test = stats.ttest_ind(ours, peer, equal_var=False)
        low, high = test.confidence_interval()
        reached = f"{peer.mean():.3f} and {ours.mean():.3f}, difference {low:+.3f} to {high:+.3f}"
        yield f"{PATCHES} patches", data, name, "0 inside", reached


def labels(peer: PeerSet) -> Iterator[Row]:
    """autoseg through its commands; the stock predictor with its sums in float32, and as it is."""
    from autoseg.cli import main

    model, images, out = peer.options.model, peer.options.images, peer.out / "labels"
    if model is None or images is None:
        return
    folds = ",".join(sorted(path.name.removeprefix("fold_") for path in model.glob("fold_*")))
    shutil.rmtree(out, ignore_errors=True)
    assert main(["import-nnunet", str(model), str(out / "model")]) == 0
    words = ["predict", "-w", out / "model", "-i", images, "-o", out / "ours", "--device", "cpu"]
    assert main([str(word) for word in words]) == 0
    for kind, name in ((1, "its sums in float32"), (0, "as it is (sums in float16)")):
        peer.stage("labels", out / f"peer_{kind}", model=model, images=images, folds=folds, float=kind)
        voxels, differ, foreground = 0, 0, 0
        for path in sorted((out / "ours").glob("*.nii.gz")):
            ours, theirs = (np.asarray(nib.load(p).dataobj) for p in (path, out / f"peer_{kind}" / path.name))
            voxels, differ = voxels + ours.size, differ + int((ours != theirs).sum())
            foreground += int(((ours > 0) | (theirs > 0)).sum())
        agree = 100 * (1 - differ / voxels)
        data = f"{len(list((out / 'ours').glob('*.nii.gz')))} cases of {model.name}, nnU-Net {name}"
        reached = f"{agree:.4f} % ({differ} of {voxels} voxels differ; {foreground} are foreground)"
        yield "segmentations", data, "agreement of voxels", "99.9 %", reached


STAGES = {  # name -> function, sets it is run on
    "preprocess": (preprocess, tuple(SETS)),
    "network": (network, tuple(SETS)),
    "loss": (loss, ("hippocampus",)),
    "steps": (steps, ("hippocampus", "axon_sem")),
    "rates": (rates, ("hippocampus",)),
    "patches": (patches, ("hippocampus",)),
    "labels": (labels, ("hippocampus",)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--peer", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--stages", default=",".join(STAGES))
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--model", type=Path)
    parser.add_argument("--images", type=Path)
    options = parser.parse_args()
    print("| stage | data | figure | goal | reached |\n|---|---|---|---|---|", flush=True)
    for stage in options.stages.split(","):
        run, sets = STAGES[stage]
        for name in (name for name in sets if name in options.sets.split(",")):
            for row in run(PeerSet(name, options)):
                print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
