"""What a checkpoint holds: there and back through a file, and what is refused, with the command that helps."""

import re
import shlex
from pathlib import Path

import pytest
import torch

from autoseg.commands.parser import build_parser
from autoseg.errors import StateError
from autoseg.models.checkpoint import save_checkpoint
from autoseg.models.versions import CHECKPOINT_VERSION, Checkpoint, Position, from_scratch, read_checkpoint
from autoseg.nn.optimization import Plateau
from autoseg.workspace import Workspace
from checkpoints import RUNTIME, checkpoint_of

FULL_OF_VALUES = checkpoint_of(
    None,
    plan={"version": 1, "training": {"seed": 3}},
    fold="full",
    contents={"a": ("1", "2")},
    init_from="/models/old",
    plugins=({"name": "mine.py", "sha256": "00"},),
    finished=True,
    position=Position(2, 40, 1.5, 4, 0.5, -2.0, 1, 1),
    history=({"epoch": 1, "loss": None, "pseudo_dice": [0.5, None]},),
    network={"weight": torch.arange(3.0)},
    optimizer={"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": [{"lr": 0.1, "betas": (0.9, 0.99)}]},
    scaler={"scale": 2.0},
    average=[torch.zeros(3)],
    average_steps=7,
    plateau=Plateau(3, averages=(0.5, None), bests=(0.4, None), waited=2),
    cooling_since=0.25,
    learning_rate_factor=0.5,
    micro_batches=2,
    rollbacks=1,
)


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("kept", [FULL_OF_VALUES, checkpoint_of(None)], ids=["full", "fresh"])
def test_there_and_back_through_a_file(tmp_path, kept, mapped):
    save_checkpoint(tmp_path / "last.pt", kept.to_plain())
    read = read_checkpoint(tmp_path / "last.pt", mapped=mapped)
    for name in ("network", "optimizer", "average"):
        torch.testing.assert_close(getattr(read, name), getattr(kept, name), rtol=0, atol=0)
    same = {name: value for name, value in vars(kept).items() if name not in ("network", "optimizer", "average")}
    assert {name: getattr(read, name) for name in same} == same
    assert type(read.position) is Position
    assert type(read.history) is type(read.train) is tuple


def refused(change, folder: Path) -> StateError:
    """The refusal of a plain checkpoint with changed entries (DROP: left out), read from a fold's folder."""
    plain = {key: value for key, value in (checkpoint_of(None).to_plain() | change).items() if value != "DROP"}
    with pytest.raises(StateError) as caught:
        Checkpoint.from_plain(plain, folder / "last.pt")
    return caught.value


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"version": 4}, "{path} is a checkpoint of version 4, this autoseg reads version 1"),
        ({"version": "1"}, "{path} is a checkpoint of version '1', this autoseg reads version 1"),
        ({"version": 4, "contents": "DROP", "more": 1}, "{path} is a checkpoint of version 4"),  # that comes first
        ({"rollbacks": "DROP"}, "{path}: missing key 'rollbacks'"),
        ({"dtype": "float32"}, "{path}: unknown key 'dtype'"),
        ({"network": [1.0]}, "{path}: network: expected a dict, found a list"),
        ({"average": {}}, "{path}: average: expected a list, found a dict"),
        ({"fold": "none"}, "{path}: fold: expected"),
        ({"train": "a"}, "{path}: train: expected a list"),
        ({"finished": 1}, "{path}: finished: expected a value of type bool"),
        ({"position": {"epoch": 1, "turn": 2}}, "{path}: position: unknown key 'turn'"),
        ({"runtime": {"dtype": "float32"}}, "{path}: runtime: missing key 'channels_last'"),
        ({"plateau": {"average": 0.5}}, "{path}: plateau: unknown key 'average'"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_command_that_helps(tmp_path, change, said):
    folder = Workspace(tmp_path / "my work").fold("3d_fullres", "unet", 2)
    error = refused(change, folder)
    assert error.what.startswith(said.format(path=folder / "last.pt"))
    assert error.exit_code == 4
    (command,) = re.findall(r"retrain from scratch: (.*) \(the old folder is renamed\)", error.remedy)
    typed = build_parser().parse_args(shlex.split(command)[1:])
    assert (typed.command, typed.folds, typed.configuration, typed.network) == ("train", ["2"], "3d_fullres", "unet")
    assert typed.restart
    assert typed.workspace == tmp_path / "my work"


def test_files_of_others_are_no_checkpoints(tmp_path):
    for plain in ({"weight": torch.ones(1)}, [1], torch.ones(2), {}):
        with pytest.raises(StateError, match=r"last\.pt is not a checkpoint of autoseg: it states no version"):
            Checkpoint.from_plain(plain, tmp_path / "last.pt")


def test_outside_of_a_workspace_there_is_no_command_to_name():
    assert from_scratch(Path("models/elsewhere/last.pt")) == "train that model from scratch with this autoseg"
    assert from_scratch(Path("last.pt")) == "train that model from scratch with this autoseg"
    assert "train -f full --restart -c 2d --network fcn" in from_scratch(Path("w/models/2d-fcn/fold_full/last.pt"))


def test_the_version_of_the_first_release():
    assert CHECKPOINT_VERSION == checkpoint_of(None).version == 1
    assert checkpoint_of(None).to_plain()["runtime"]["dtype"] == RUNTIME.dtype
