"""A script of one's own, from plan to predict: every command that opens the model asks for the same file."""

import hashlib
import json
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from autoseg.models.checkpoint import load_checkpoint
from autoseg.nn.losses import LOSSES
from autoseg.nn.networks import NETWORKS
from autoseg.plugins import LOADED
from autoseg.workspace import Workspace
from commands import SHORT, copy_of, outcome, run
from phantom import tiny_dataset

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("in_this_process")]

PLUGIN = '''
"""A U-Net under another name, and a loss that is nnU-Net's to a power."""

from pathlib import Path
from typing import Annotated

from torch import nn

from autoseg.nn.losses import LOSSES, dice_ce
from autoseg.nn.networks import NETWORKS, UNet
from autoseg.rules import between


class Mine(UNet):
    pass


class Scaled(nn.Module):
    def __init__(self, loss, scale):
        super().__init__()
        self.loss, self.scale = loss, scale

    def forward(self, logits, target, voxel_weights=None):
        return self.scale * self.loss(logits, target, voxel_weights)


def scaled(*, scale: Annotated[float, between(0.1, 10)] = 2.0, **given):
    return Scaled(dice_ce(**given), scale)


NETWORKS["mine"] = Mine
LOSSES["scaled"] = scaled
'''


def forget() -> None:
    """As in a process that has not seen the plugin."""
    NETWORKS.pop("mine", None)
    LOSSES.pop("scaled", None)
    LOADED.clear()


@pytest.fixture(autouse=True)
def another_process() -> Iterator[None]:
    forget()
    yield
    forget()


@pytest.fixture(scope="module")
def made(tmp_path_factory, in_this_process) -> tuple[Workspace, Path, Path]:
    """A workspace with one trained fold, the plugin it was trained with, and the dataset."""
    folder = tmp_path_factory.mktemp("plugins")
    file = folder / "of my own" / "a loss.py"
    file.parent.mkdir()
    file.write_text(PLUGIN)
    dataset, workspace = tiny_dataset(folder / "data", cases=6), Workspace(folder / "w")
    settings = ["--set", "training.loss=scaled", "--set", "training.loss_options.scale=3"]
    run("plan", dataset, "-w", workspace.root, "--network", "mine", "--plugin", file, *settings)
    run("train", "-f", 0, "--steps", 3, "-w", workspace.root, "--plugin", file, *SHORT)
    forget()
    return workspace, file, dataset


def commands(workspace: Workspace, dataset: Path, out: Path) -> dict[str, list[object]]:
    """Those that open a trained fold."""
    return {
        "train": ["train", "-f", 0, "--steps", 3, "-w", workspace.root, *SHORT],
        "evaluate": ["evaluate", "-w", workspace.root],
        "predict": ["predict", "-i", dataset / "imagesTr", "-o", out, "-w", workspace.root],
    }


def test_a_checkpoint_keeps_name_and_digest_and_no_code(made):
    workspace, _, _ = made
    state = load_checkpoint(workspace.fold("3d_fullres", "mine", 0) / "last.pt")
    assert state["plugins"] == [{"name": "a loss.py", "sha256": hashlib.sha256(PLUGIN.encode()).hexdigest()}]
    assert state["plan"]["training"]["loss_options"] == {"scale": 3}


@pytest.mark.parametrize("command", ["train", "evaluate", "predict"])
def test_with_the_same_file_the_fold_is_opened(made, tmp_path, capsys, command):
    workspace, file, dataset = made
    moved = tmp_path / file.name  # it may lie elsewhere
    moved.write_text(PLUGIN)
    assert outcome(capsys, *commands(workspace, dataset, tmp_path / "out")[command], "--plugin", moved)[0] == 0


@pytest.mark.parametrize("command", ["train", "evaluate", "predict"])
def test_with_another_content_it_is_refused(made, tmp_path, capsys, command):
    workspace, file, dataset = made
    changed = tmp_path / file.name
    changed.write_text(PLUGIN + "\n")
    code, said = outcome(capsys, *commands(workspace, dataset, tmp_path / "out")[command], "--plugin", changed)
    assert code == 4
    assert "was trained with a plugin a loss.py of sha256" in said
    assert "restore the previous file" in said


@pytest.mark.parametrize("command", ["train", "evaluate", "predict"])
def test_without_the_file_the_plan_is_refused_and_says_what_to_type(made, tmp_path, capsys, command):
    workspace, _, dataset = made
    code, said = outcome(capsys, *commands(workspace, dataset, tmp_path / "out")[command])
    assert code == 4
    assert "network.name: expected one of 'unet'," in said
    assert "found 'mine'\n  -> correct the name, or name the file that registers it: --plugin FILE.py" in said


@pytest.mark.parametrize("command", ["train", "evaluate", "predict"])
def test_without_the_file_the_checkpoint_asks_for_it(made, tmp_path, capsys, command):
    """Also where every name is known, by another file or because it changed an entry of the package."""
    workspace, _, dataset = made
    other = tmp_path / "other.py"
    other.write_text(PLUGIN)
    code, said = outcome(capsys, *commands(workspace, dataset, tmp_path / "out")[command], "--plugin", other)
    assert code == 4
    assert "was trained with the plugin a loss.py (sha256" in said
    assert "repeat the command with --plugin 'a loss.py'" in said


def test_no_file_is_run_because_a_workspace_holds_it(made, tmp_path, capsys):
    """Neither beside the checkpoint, nor by a path in plan.json or in the folder the command runs in."""
    workspace, file, dataset = made
    copy = copy_of(workspace, tmp_path / "w")
    trap = f"open({str(tmp_path / 'sprung')!r}, 'w').close()\n" + PLUGIN
    for place in (copy.root, copy.fold("3d_fullres", "mine", 0), copy.plan.parent, tmp_path):
        (place / file.name).write_text(trap)
    for words in commands(copy, dataset, tmp_path / "out").values():
        assert outcome(capsys, *words)[0] == 4
    plain = json.loads(copy.plan.read_text())
    copy.plan.write_text(json.dumps(plain | {"plugins": [str(tmp_path / file.name)]}))
    _, said = outcome(capsys, "status", "-w", copy.root)
    assert not (tmp_path / "sprung").exists()
    assert "plan.json: unknown key 'plugins'" in said


def test_status_suggests_commands_that_name_the_file(made, capsys):
    workspace, file, _ = made
    code, said = outcome(capsys, "status", "-w", workspace.root, "--plugin", file)
    assert code == 0
    assert f"--plugin {shlex.quote(str(file))}" in said
