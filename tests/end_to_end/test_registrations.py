"""One function and one line: each table takes an entry from outside the package, and the commands train with it.

Nothing but the table is touched, and three steps are trained. Options of a loss or network are its own keywords.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from autoseg.augmentation.presets import AUGMENTATIONS
from autoseg.dataloading import sampling
from autoseg.evaluation.metrics import METRICS
from autoseg.imaging.formats import readers
from autoseg.imaging.formats.readers import READERS, Reader
from autoseg.imaging.formats.signatures import StoredVoxels
from autoseg.imaging.geometry import Geometry
from autoseg.imaging.normalize import NORMALIZERS, scheme_for
from autoseg.models.checkpoint import load_checkpoint
from autoseg.nn.losses import LOSSES
from autoseg.nn.networks import NETWORKS
from autoseg.nn.networks.layout import Layout
from autoseg.rules import between
from autoseg.workspace import Workspace
from commands import SHORT, copy_of, outcome, run
from phantom import tiny_dataset

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("in_this_process")]
MODEL = "3d_fullres"


@pytest.fixture(scope="module")
def planned(tmp_path_factory, in_this_process) -> Workspace:
    folder = tmp_path_factory.mktemp("registrations")
    workspace = Workspace(folder / "planned")
    run("plan", tiny_dataset(folder / "data", cases=6), "-w", workspace.root)
    return workspace


def trained(workspace: Workspace, *settings: str, network: str = "unet") -> dict:
    """The checkpoint after three steps of fold 0 under these settings."""
    words = [word for setting in settings for word in ("--set", setting)]
    run("train", "-f", 0, "--steps", 3, "--network", network, "-w", workspace.root, *SHORT, *words)
    state = load_checkpoint(workspace.fold(MODEL, network, 0) / "last.pt")
    assert state["finished"]
    assert state["position"]["step"] == 3
    return state


class Pointwise(nn.Module):
    """A network of two layers that look at one voxel at a time, `width` features between them."""

    layout = Layout(blocks=(1,), decoder_blocks=1)

    def __init__(
        self, *, in_channels, out_channels, features, strides, kernel_sizes, blocks, decoder_blocks,
        width: Annotated[int, between(1, 64)] = 4,
    ):  # fmt: skip
        super().__init__()
        self.deep_supervision = True
        convolution = nn.Conv3d if len(strides[0]) == 3 else nn.Conv2d
        self.layers = nn.Sequential(convolution(in_channels, width, 1), nn.ReLU(), convolution(width, out_channels, 1))

    def forward(self, image: Tensor) -> list[Tensor]:
        return [self.layers(image)]


def test_a_network_is_one_class_and_one_line(planned, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(NETWORKS, "pointwise", Pointwise)
    workspace = copy_of(planned, tmp_path / "w")
    run("plan", planned.root.parent / "data", "-w", workspace.root, "--network", "pointwise")
    spec = json.loads(workspace.plan.read_text())["configurations"][MODEL]["network"]
    assert set(spec["blocks"]) == set(spec["decoder_blocks"]) == {1}  # of its layout
    width = f"configurations.{MODEL}.network.options.width"
    weights = trained(workspace, f"{width}=7", network="pointwise")["network"]
    assert weights["layers.0.weight"].shape[0] == 7
    code, said = outcome(capsys, "train", "-f", 0, "-w", workspace.root, "--set", f"{width}=65")
    assert code == 2
    assert "network.options.width: expected 1 to 64, found 65" in said


class Squared(nn.Module):
    """Mean squared distance of softmax probabilities from the target, to a power."""

    def __init__(self, power: float, scaled: list[float]) -> None:
        super().__init__()
        self.power, self.scaled = power, scaled

    def forward(self, logits: Tensor, target: Tensor, voxel_weights: Tensor | None = None) -> Tensor:
        self.scaled.append(self.power)
        wanted = nn.functional.one_hot(target.long(), logits.shape[1]).movedim(-1, 1)
        return ((logits.float().softmax(1) - wanted) ** 2).mean() ** self.power


def test_a_loss_is_one_function_and_one_line(planned, tmp_path, monkeypatch, capsys):
    seen: list[float] = []

    def squared(
        *, regions, ignore_index, class_weights, batch_dice, power: Annotated[float, between(0.5, 2)] = 1.0
    ) -> nn.Module:
        return Squared(power, seen)

    workspace = copy_of(planned, tmp_path / "w")
    unknown = outcome(capsys, "train", "-f", 0, "-w", workspace.root, "--set", "training.loss=squared")
    assert unknown[0] == 2
    assert "'dice_ce', 'dice_bce', 'dice_focal', 'dice_topk', 'tversky', 'mask_classification', found" in unknown[1]
    assert "found 'squared'" in unknown[1]
    monkeypatch.setitem(LOSSES, "squared", squared)
    state = trained(workspace, "training.loss=squared", "training.loss_options.power=0.5")
    assert set(seen) == {0.5}
    assert state["plan"]["training"]["loss_options"] == {"power": 0.5}
    code, said = outcome(
        capsys, "train", "-f", 0, "--steps", 3, "-w", workspace.root, *SHORT, "--set", "training.loss=squared"
    )
    assert code == 4  # another value of an option is another training
    assert "training.loss_options.power 0.5 then, 1.0 now" in said


def test_an_augmentation_is_one_record_and_one_line(planned, tmp_path, monkeypatch):
    monkeypatch.setitem(AUGMENTATIONS, "noisy", replace(AUGMENTATIONS["none"], noise=1.0))
    plain = trained(copy_of(planned, tmp_path / "plain"), "training.augmentation=none")
    noisy = trained(copy_of(planned, tmp_path / "noisy"), "training.augmentation=noisy")
    assert any(not torch.equal(plain["network"][name], noisy["network"][name]) for name in plain["network"])


def test_a_sampling_rule_is_one_function_and_one_line(planned, tmp_path, monkeypatch):
    table = getattr(sampling, "SAMPLERS", None)
    if table is None:
        pytest.skip("autoseg.dataloading.sampling has no table SAMPLERS yet")
    asked = []

    def first_alone(label_voxels: np.ndarray) -> np.ndarray:
        asked.append(label_voxels.shape)
        return np.where(np.arange(len(label_voxels)) == 0, 1.0, 1e-9)

    monkeypatch.setitem(table["case"], "first", first_alone)
    trained(copy_of(planned, tmp_path / "w"), "training.case_sampling=first")
    assert (5, 2) in asked  # five cases to train on, two labels


def test_a_normalisation_is_one_function_and_one_line(planned, tmp_path, monkeypatch):
    monkeypatch.setitem(NORMALIZERS, "halved", lambda channel, mask, statistics: channel.astype(np.float32) / 2)
    if scheme_for("halved") != "halved":
        pytest.skip("a channel cannot be called after an entry of NORMALIZERS yet")
    workspace = Workspace(tmp_path / "w")
    run("plan", planned.root.parent / "data", "-w", workspace.root, "--channels", "halved")
    assert json.loads(workspace.plan.read_text())["normalization"][0]["scheme"] == "halved"
    (stored,) = (workspace.preprocessed(MODEL)).glob("case_00.image.npy")
    assert 20 < np.load(stored).max() < 128  # of 0 to 255
    trained(workspace)


def load_voxels(path: Path) -> StoredVoxels:
    with np.load(path) as file:
        values = file["values"]
        return StoredVoxels(values, Geometry(tuple(values.shape[1:]), tuple(map(float, file["spacing"]))))


def write_voxels(path: Path, labels: np.ndarray, geometry: Geometry, like: Path | None) -> None:
    with open(path, "wb") as file:
        np.savez(file, values=labels[None], spacing=geometry.spacing)


def test_a_format_is_four_functions_and_one_line(tmp_path, monkeypatch):
    dataset = tiny_dataset(tmp_path / "data", cases=6)
    voxels = Reader(
        "voxels", lambda path: load_voxels(path).geometry, load_voxels, load_voxels, write_voxels, any_content=True
    )  # which NumPy writes as a ZIP archive: no other format may be one
    files = [(path, readers.read_image(path)) for path in sorted(dataset.rglob("*.nii.gz"))]
    monkeypatch.setitem(READERS, ".vox", voxels)
    for path, volume in files:
        is_label = path.parent.name == "labelsTr"
        array = volume.array.astype(np.uint8 if is_label else np.float32)
        write_voxels(path.with_name(path.name.replace(".nii.gz", ".vox")), array[0], volume.geometry, None)
        path.unlink()
    about = json.loads((dataset / "dataset.json").read_text())
    (dataset / "dataset.json").write_text(json.dumps(about | {"file_ending": ".vox"}))
    workspace = Workspace(tmp_path / "w")
    run("check", dataset)
    run("plan", dataset, "-w", workspace.root)
    trained(workspace)
    written = sorted((workspace.fold(MODEL, "unet", 0) / "validation").glob("*.vox"))
    assert written  # segmentations come in the format of the images
    run("evaluate", "-w", workspace.root)


def test_a_metric_is_one_function_and_one_line(planned, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(METRICS, "wrong", lambda counts: float(counts.fp + counts.fn))
    workspace = copy_of(planned, tmp_path / "w")
    trained(workspace)
    code, said = outcome(capsys, "evaluate", "-w", workspace.root)
    assert code == 0
    header, *rows = (line.split() for line in said.splitlines() if line.startswith(("all cases", "organ_1 ")))
    assert header[2:] == ["dice", "iou", "recall", "precision", "wrong", "hd95", "nsd", "cases"]
    assert ["organ_1", "wrong"] in [row[:2] for row in rows]  # and in the table of the folds
