"""Every setting of the training changes what is learnt."""

import shutil
from pathlib import Path

import pytest
import torch

from autoseg.cli import main
from autoseg.imaging.formats.readers import read_labels, write_labels
from autoseg.models.checkpoint import load_checkpoint
from autoseg.workspace import Workspace
from commands import SHORT, run
from phantom import tiny_dataset

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def planned(tmp_path_factory) -> Workspace:
    folder = tmp_path_factory.mktemp("planned")
    workspace = Workspace(folder / "workspace")
    run("plan", tiny_dataset(folder / "data", cases=6), "-w", workspace.root)
    return workspace


# Left out: case_sampling and class_sampling, tested in test_sampling.py (here every case has every label, of one size);
# component_weight, deep_supervision and patience, which have tests of their own; test_time_mirroring, which acts in
# predict; chain=device, which gives what chain=worker gives (test_batches.py).
CHANGES = [
    "optimizer=sgd",
    "learning_rate=0.01",
    "weight_decay=0.5",
    "schedule=poly",
    "schedule=cosine",
    "schedule=reduce_on_plateau",
    "weight_average=0",
    "gradient_clip=0.001",
    "loss=dice_bce",
    "loss=dice_focal",
    "loss=dice_topk",
    "loss=tversky",
    "loss_options.boundary_weight=0.5",
    "dropout=0.3",
    "chain=worker",
    "momentum=0.5",
    "class_weights=[1,5,9]",
    "foreground_fraction=1",
    "augmentation=none",
    "augmentation=mirror",
    "mirror_axes=[]",
    "autocast=bfloat16",
    "iterations_per_epoch=7",
    "seed=5",
]


def weights_after(source: Workspace, root: Path, *changes: str) -> torch.Tensor:
    """Train fold 3 for six steps in a copy of a planned workspace; all weights in one vector."""
    workspace = Workspace(root)
    shutil.copytree(source.root, workspace.root, ignore=shutil.ignore_patterns("models"))
    settings = [word for change in ("iterations_per_epoch=6", *changes) for word in ("--set", f"training.{change}")]
    run("train", "-f", 3, "--epochs", 1, "-w", workspace.root, *SHORT, *settings)
    state = load_checkpoint(workspace.fold("3d_fullres", "unet", 3) / "last.pt")
    return torch.cat([weight.flatten() for weight in state["average"] or state["network"].values()])


def test_the_weight_of_components_changes_the_weights(tmp_path):
    dataset = tiny_dataset(tmp_path / "data", cases=6)
    for path in (dataset / "labelsTr").iterdir():
        labels = read_labels(path).array
        labels[0, :2, 0] = 1  # beside the blob of label 1, far from it
        write_labels(path, labels, path)
    source = Workspace(tmp_path / "workspace")
    run("plan", dataset, "-w", source.root)
    base, changed = (weights_after(source, tmp_path / w, f"component_weight={w}") for w in ("0", "0.5"))
    assert not torch.equal(base, changed)


def test_every_training_setting_changes_the_weights(planned, tmp_path):
    source = planned
    base = weights_after(source, tmp_path / "base")
    prepared_by_a_worker = weights_after(source, tmp_path / "workers", "workers=1")
    assert torch.equal(prepared_by_a_worker, base)
    found = {change: weights_after(source, tmp_path / str(n), change) for n, change in enumerate(CHANGES)}
    assert [change for change, weights in found.items() if torch.equal(weights, base)] == []


@pytest.mark.parametrize(
    ("loss", "option"),
    [
        ("dice_focal", "loss_options.focal_gamma=1"),
        ("dice_topk", "loss_options.topk_share=0.5"),
        ("tversky", "loss_options.tversky_alpha=0.6"),
        ("tversky", "loss_options.tversky_beta=0.4"),
    ],
)
def test_every_option_of_a_loss_changes_the_weights(planned, tmp_path, loss, option):
    source = planned
    usual = weights_after(source, tmp_path / "usual", f"loss={loss}")
    assert not torch.equal(usual, weights_after(source, tmp_path / "changed", f"loss={loss}", option))


def test_deep_supervision_changes_the_weights(tmp_path):
    source = Workspace(tmp_path / "planned")
    run("plan", tiny_dataset(tmp_path / "data", cases=5, shape=(32, 32, 32), spacing=(1, 1, 1)), "-w", source.root)
    with_it = weights_after(source, tmp_path / "with")
    assert not torch.equal(with_it, weights_after(source, tmp_path / "without", "deep_supervision=false"))


def test_class_weights_that_do_not_fit_the_heads_are_refused(planned, tmp_path, capsys):
    source = planned
    shutil.copytree(source.root, tmp_path / "w", ignore=shutil.ignore_patterns("models"))
    settings = ["--set", "training.loss=dice_bce", "--set", "training.class_weights=[1,1,1]"]
    assert main(["train", "-f", "0", "--epochs", "1", "-w", str(tmp_path / "w"), *settings]) == 2
    assert "2 heads" in capsys.readouterr().err
