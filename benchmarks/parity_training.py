"""The stages of parity.py that train: networks, losses, optimiser steps and learning rates of both sides."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from parity_data import PeerSet, Row

from autoseg.models.build import build_plan_loss, build_plan_network
from autoseg.models.nnunet.network import architecture_of, converted
from autoseg.nn.losses import weighted_mean
from autoseg.nn.optimization import OPTIMIZERS, SCHEDULES
from autoseg.training.within_memory import TrainingStep

STEPS = 20
REGIONS = {"background": 0, "whole": [1, 2], "second": 2}
LABELS = {"background": 0, "first": 1, "second": 2}
KINDS = {  # name -> labels of dataset.json, order of the regions
    "labels": (LABELS, ""),
    "labels, ignore": (LABELS | {"ignore": 3}, ""),
    "regions": (REGIONS, "[1, 2]"),
    "regions, ignore": (REGIONS | {"ignore": 3}, "[1, 2]"),
}


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
