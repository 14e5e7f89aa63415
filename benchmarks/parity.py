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
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from equal_time import write_for_peer
from scipy import stats

from autoseg.dataloading.store import CaseInfo, CaseStore
from autoseg.datasets.dataset import Case, load_case
from autoseg.models.build import build_plan_loss, build_plan_network
from autoseg.models.nnunet.description import Description
from autoseg.models.nnunet.network import architecture_of, converted
from autoseg.models.nnunet.plan import plan_of
from autoseg.nn.losses import weighted_mean
from autoseg.nn.optimization import OPTIMIZERS, SCHEDULES
from autoseg.planning.plan import Configuration, Plan
from autoseg.preprocessing.prepare import Prepared, prepare
from autoseg.training.batches import TrainingBatches
from autoseg.training.within_memory import TrainingStep

HERE = Path(__file__).parent
CASES, STEPS, PATCHES = 20, 20, 500
FAR = 1e-3  # standard deviations
SETS = {  # number, title, configuration, memory target of the peer's planner in GB, planners
    "hippocampus": (5, "Hippocampus", "3d_fullres", "0.25"),
    "ms_thick": (7, "MSThick", "3d_fullres", "0.25"),
    "axon_sem": (6, "Axons", "2d", "0.25"),
}
REGIONS = {"background": 0, "whole": [1, 2], "second": 2}
LABELS = {"background": 0, "first": 1, "second": 2}
KINDS = {  # name -> labels of dataset.json, order of the regions
    "labels": (LABELS, ""),
    "labels, ignore": (LABELS | {"ignore": 3}, ""),
    "regions": (REGIONS, "[1, 2]"),
    "regions, ignore": (REGIONS | {"ignore": 3}, "[1, 2]"),
}


class PeerSet:
    """One dataset in the peer's folders, planned by the peer."""

    def __init__(self, name: str, options: argparse.Namespace) -> None:
        self.name, self.options = name, options
        self.number, self.title, self.configuration, self.gigabytes = SETS[name]
        self.out = options.out.resolve()
        self.dataset = f"Dataset{self.number:03d}_{self.title}"
        parts = {"nnUNet_raw": "raw", "nnUNet_preprocessed": "preprocessed", "nnUNet_results": "results"}
        self.environment = {variable: str(self.out / part) for variable, part in parts.items()}
        self.environment |= {"nnUNet_compile": "f", "nnUNet_n_proc_DA": "1", "nnUNet_extTrainer": str(HERE / "peer")}
        self.raw, self.planned = self.out / "raw" / self.dataset, self.out / "preprocessed" / self.dataset
        self.prepare()

    def prepare(self) -> None:
        """Write the raw data, measure and plan them; what is there is left alone."""
        if not self.raw.exists():
            WRITERS[self.name](self.options.data, self.raw)
        for planner, plans in (("ExperimentPlanner", "Plain"), ("nnUNetPlannerResEncM", "Residual")):
            if not self.plans(plans).exists():
                if not (self.planned / "dataset_fingerprint.json").exists():
                    self.command("extract_fingerprint", "-d", self.number, "-np", 2)
                self.command(
                    "plan_experiment", "-d", self.number, "-pl", planner, "-gpu_memory_target", self.gigabytes,
                    "-overwrite_plans_name", plans,
                )  # fmt: skip

    def plans(self, name: str = "Plain") -> Path:
        return self.planned / f"{name}.json"

    def command(self, name: str, *arguments: object) -> None:
        self.run(self.options.peer / "bin" / f"nnUNetv2_{name}", *arguments)

    def run(self, *words: object) -> None:
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | self.environment
        subprocess.run([str(word) for word in words], check=True, env=environment, stdout=subprocess.DEVNULL)

    def stage(self, stage: str, folder: Path, **given: object) -> Path:
        """Run a stage of the peer; what it wrote is in the folder."""
        words = [f"{key}={value}" for key, value in given.items()]
        self.run(self.options.peer / "bin" / "python", HERE / "peer" / "parity_peer.py", stage, folder, *words)
        return folder

    def described(self, plans: str = "Plain", **changes: object) -> Description:
        found, dataset = read(self.plans(plans)), read(self.raw / "dataset.json") | changes
        return Description(self.planned, found, dataset, read(self.planned / "dataset_fingerprint.json"))

    def plan(self, plans: str = "Plain", **changes: object) -> tuple[Plan, Configuration]:
        dims = len(read(self.plans(plans))["configurations"][self.configuration]["patch_size"])
        made = plan_of(self.described(plans, **changes), self.configuration, range(dims), 1000)
        return made, made.configurations[self.configuration]

    @cached_property
    def cases(self) -> list[Case]:
        """The training set, sorted."""
        found: dict[str, list[str]] = {}
        for path in sorted((self.raw / "imagesTr").iterdir()):
            found.setdefault(path.name.split(".")[0][: -len("_0000")], []).append(str(path))
        labels = {path.name.split(".")[0]: str(path) for path in (self.raw / "labelsTr").iterdir()}
        return [Case(name, name, tuple(files), labels[name]) for name, files in sorted(found.items())]

    def prepared(self, number: int | None = CASES) -> Iterator[tuple[Case, Prepared]]:
        """The first cases of the training set as autoseg prepares them; None: all."""
        plan, configuration = self.plan()
        for case in self.cases[:number]:
            loaded = load_case(
                case, plan.labels, channels=plan.channels, orientation=plan.orientation, axis_order=plan.axis_order
            )
            yield case, prepare(loaded.image, loaded.target, loaded.spacing, plan, configuration, case.id)


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def write_hippocampus(data: Path, raw: Path) -> None:
    shutil.copytree(data / "hippocampus", raw, ignore=shutil.ignore_patterns("*Ts", "*.csv"))


def write_axons(data: Path, raw: Path) -> None:
    write_for_peer(data / "axon_sem", raw)


def write_thick(data: Path, raw: Path) -> None:
    """Volumes of few thick slices: every third to sixth slice of a third of each head, at spacings that vary."""
    images = sorted((data / "ms_lesion_mni" / "images").glob("*_0000.nii.gz"))
    for folder in ("imagesTr", "labelsTr"):
        (raw / folder).mkdir(parents=True)
    for number in range(CASES):
        source = images[number % len(images)]
        name, every, first = source.name.split("_0000")[0], 3 + number % 4, 20 + 5 * (number // 3)
        zoom = (1.0, 1.1, 0.8, 0.95)[number % 4]
        keep = (slice(None), slice(30, 190), slice(first, first + 100, every))
        files = [(source.with_name(f"{name}_{c:04d}.nii.gz"), f"imagesTr/case{number:02d}_{c:04d}") for c in range(4)]
        files += [(data / "ms_lesion_mni" / "labels" / f"{name}.nii.gz", f"labelsTr/case{number:02d}")]
        for file, target in files:
            array = np.asarray(nib.load(file).dataobj)[keep]
            affine = np.diag([zoom, zoom, float(every), 1.0])
            nib.save(nib.Nifti1Image(array.astype(np.float32 if "images" in target else np.uint8), affine),
                     raw / f"{target}.nii.gz")  # fmt: skip
    channels = {str(n): name for n, name in enumerate(("FLAIR", "T1", "T1Gd", "T2"))}
    description = {
        "channel_names": channels, "labels": {"background": 0, "lesion": 1}, "numTraining": CASES,
        "file_ending": ".nii.gz",
    }  # fmt: skip
    (raw / "dataset.json").write_text(json.dumps(description), encoding="utf-8")


WRITERS = {"hippocampus": write_hippocampus, "ms_thick": write_thick, "axon_sem": write_axons}

Row = tuple[str, str, str, str, str]  # stage, data, figure, goal, reached


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


def network(peer: PeerSet) -> Iterator[Row]:
    for plans in ("Plain", "Residual"):
        plan, configuration = peer.plan(plans)
        folder = peer.stage(
            "network", peer.out / "stages" / f"network_{peer.name}_{plans}", plans=peer.plans(plans),
            configuration=peer.configuration, channels=len(plan.channels), heads=plan.heads.num_heads,
        )  # fmt: skip
        ours = imported(peer, plans, folder / "network.pt")
        ours.eval()
        given = np.load(folder / "network.npz")
        with torch.inference_mode():
            logits = ours(torch.from_numpy(given["image"]))
        pairs = [(given[f"stage_{i}"], each.numpy()) for i, each in enumerate(logits)]
        largest = max(float(np.abs(theirs - mine).max()) for theirs, mine in pairs)
        size = " x ".join(map(str, configuration.patch_size))
        data = f"{peer.name}, {configuration.network.name}, patch {size}, {len(pairs)} stages"
        yield (
            "logits",
            data,
            "largest difference",
            "1e-4",
            f"{largest:.2g} (logits up to {np.abs(pairs[0][0]).max():.2g})",
        )


def imported(peer: PeerSet, plans: str, weights: Path) -> torch.nn.Module:
    """autoseg's network of a plan with the weights of nnU-Net's."""
    plan, configuration = peer.plan(plans)
    made = build_plan_network(plan, configuration)
    theirs = torch.load(weights, weights_only=True)
    architecture = architecture_of(peer.described(plans), peer.configuration)
    made.load_state_dict(converted(theirs, architecture, made.state_dict(), weights))
    return made


def loss(peer: PeerSet) -> Iterator[Row]:
    rng = np.random.default_rng(3)
    for kind, (labels, order) in KINDS.items():
        for batch_dice in (False, True):
            changes = {"labels": labels} | ({"regions_class_order": json.loads(order)} if order else {})
            plan, configuration = peer.plan(**changes)
            configuration = replace(configuration, batch_dice=batch_dice)
            heads, patch = plan.heads.num_heads, configuration.patch_size
            folder = peer.out / "stages" / f"loss_{peer.name}_{kind.replace(', ', '_')}_{int(batch_dice)}"
            folder.mkdir(parents=True, exist_ok=True)
            steps = [np.cumprod(along)[:-1] for along in zip(*configuration.network.strides, strict=True)]
            shapes = [tuple(p // s[i] for p, s in zip(patch, steps, strict=True)) for i in range(len(steps[0]))]
            logits = [rng.normal(0, 2, (3, heads, *shape)).astype(np.float32) for shape in shapes]
            seg = rng.integers(0, 4 if "ignore" in kind else 3, (3, *patch)).astype(np.int16)
            np.savez(folder / "given.npz", seg=seg, **{f"l{i}": each for i, each in enumerate(logits)})
            peer.stage(
                "loss", folder, plans=peer.plans(), dataset=peer.raw / "dataset.json", labels=json.dumps(labels),
                configuration=peer.configuration, order=order, batch_dice=int(batch_dice),
            )  # fmt: skip
            theirs = np.load(folder / "loss.npz")
            data = f"{kind}, Dice per {'batch' if batch_dice else 'sample'}"
            criterion = build_plan_loss(plan, configuration)
            yield from _compared_loss(criterion, logits, seg, theirs, data, "1e-5")
            if order and "ignore" in kind:  # nnU-Net then adds up the regions, and divides by the voxels alone
                criterion.loss.voxel_term = lambda entropy, weight, heads=heads: heads * weighted_mean(entropy, weight)
                more = f"{data}, cross-entropy times {heads}"
                yield from _compared_loss(criterion, logits, seg, theirs, more, "1e-5")


def _compared_loss(criterion, logits, seg: np.ndarray, theirs, data: str, goal: str) -> Iterator[Row]:
    mine = [torch.from_numpy(each).requires_grad_() for each in logits]
    value = criterion(mine, torch.from_numpy(seg.astype(np.int64)))
    value.backward()
    found = float(value.detach())
    gradients = [0 * given if e.grad is None else e.grad.numpy() for e, given in zip(mine, logits, strict=True)]
    far = [
        np.abs(e - theirs[f"g{i}"]).max() / max(np.abs(theirs[f"g{i}"]).max(), 1e-12) for i, e in enumerate(gradients)
    ]
    yield "loss", data, "difference", goal, f"{abs(found - float(theirs['loss'])):.2g} (of {found:.4f})"
    yield "gradients", data, "largest difference, as a share of the stage's largest", goal, f"{max(far):.2g}"


def steps(peer: PeerSet) -> Iterator[Row]:
    plan, configuration = peer.plan()
    rng, batch = np.random.default_rng(4), configuration.batch_size
    images, segmentations = [], []
    cases = [prepared for _, prepared in peer.prepared()]
    for _ in range(STEPS * batch):
        one = cases[rng.integers(len(cases))]
        assert one.target is not None
        image, seg = patch_of(one.image, one.target, configuration.patch_size, rng)
        images.append(image)
        segmentations.append(np.maximum(seg, 0))
    folder = peer.out / "stages" / f"steps_{peer.name}"
    folder.mkdir(parents=True, exist_ok=True)
    image = np.stack(images).reshape(STEPS, batch, *images[0].shape).astype(np.float32)
    seg = np.stack(segmentations).reshape(STEPS, batch, *segmentations[0].shape).astype(np.int16)
    np.savez(folder / "batches.npz", image=image, seg=seg)
    peer.stage(
        "steps", folder, plans=peer.plans(), dataset=peer.raw / "dataset.json", configuration=peer.configuration,
        channels=len(plan.channels),
    )  # fmt: skip
    ours, training = imported(peer, "Plain", folder / "before.pt"), plan.training
    optimizer = OPTIMIZERS[training.optimizer](ours.parameters(), training.learning_rate, training.weight_decay)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    step = TrainingStep(
        ours, build_plan_loss(plan, configuration), optimizer, scaler, "float32", training.gradient_clip
    )
    losses = [
        step({"image": torch.from_numpy(a), "target": torch.from_numpy(b)}) for a, b in zip(image, seg, strict=True)
    ]
    theirs = imported(peer, "Plain", folder / "after.pt").state_dict()
    before = imported(peer, "Plain", folder / "before.pt").state_dict()
    mine = ours.state_dict()
    far = max(float((mine[name] - theirs[name]).abs().max()) for name in theirs)
    moved = max(float((before[name] - theirs[name]).abs().max()) for name in theirs)
    lost = np.abs(np.array(losses) - np.load(folder / "steps.npz")["losses"]).max()
    data = f"{peer.name}, {STEPS} steps of batch {batch}"
    yield "weights after training steps", data, "largest difference", "1e-4", f"{far:.2g} (moved by up to {moved:.2g})"
    yield "", data, "largest difference of the loss", "", f"{lost:.2g} (from {losses[0]:.3f} to {losses[-1]:.3f})"


def patch_of(image: np.ndarray, seg: np.ndarray, size: tuple[int, ...], rng: np.random.Generator) -> tuple:
    """A patch anywhere in a case, padded where the case is smaller; a slice where the patch is flat."""
    if len(size) == 2:
        z = int(rng.integers(image.shape[1]))
        image, seg = image[:, z], seg[z]
    pads = [max(s - n, 0) for n, s in zip(seg.shape, size, strict=True)]
    image = np.pad(image, [(0, 0), *((p // 2, p - p // 2) for p in pads)])
    seg = np.pad(seg, [(p // 2, p - p // 2) for p in pads], constant_values=-1)
    lower = [int(rng.integers(0, n - s + 1)) for n, s in zip(seg.shape, size, strict=True)]
    cut = tuple(slice(first, first + s) for first, s in zip(lower, size, strict=True))
    return image[(slice(None), *cut)], seg[cut]


def rates(peer: PeerSet) -> Iterator[Row]:
    folder = peer.stage(
        "rates", peer.out / "stages" / "rates", plans=peer.plans(), dataset=peer.raw / "dataset.json",
        configuration=peer.configuration,
    )  # fmt: skip
    theirs = np.load(folder / "rates.npz")["rates"]
    training = peer.plan()[0].training
    at = [training.learning_rate * SCHEDULES[training.schedule](n / len(theirs)) for n in range(len(theirs) + 1)]
    far = float(np.abs(np.array(at[:-1]) - theirs).max())
    yield "learning rate", "1000 epochs, at the first step of each", "largest difference", "0", f"{far:.2g}"
    within = float(np.abs(np.diff(at)).max())
    yield "", "within an epoch, where autoseg's falls at every step", "largest difference", "", f"{within:.2g}"


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
