"""What a training notices about itself, from the command line: plateaus, overfitting, collapse, steps that fail."""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from autoseg.cli import main
from autoseg.dataloading.store import StoredCase
from autoseg.errors import StorageError
from autoseg.imaging.formats.readers import read_labels, write_labels
from autoseg.models import checkpoint
from autoseg.models.checkpoint import load_checkpoint
from autoseg.training import budget as budget_clock
from autoseg.training import setup, train, within_memory
from autoseg.workspace import Workspace
from commands import SHORT, run
from phantom import tiny_dataset

pytestmark = pytest.mark.slow


def plan(folder: Path, **dataset) -> Workspace:
    workspace = Workspace(folder / "workspace")
    run("plan", tiny_dataset(folder / "data", cases=6, **dataset), "-w", workspace.root)
    return workspace


@pytest.fixture(scope="module")
def planned(tmp_path_factory) -> Workspace:
    return plan(tmp_path_factory.mktemp("planned"))


@pytest.fixture
def workspace(planned, tmp_path) -> Workspace:
    shutil.copytree(planned.root, tmp_path / "w")
    return Workspace(tmp_path / "w")


def history(workspace: Workspace) -> list[dict]:
    rows = (workspace.fold("3d_fullres", "unet", 0) / "history.jsonl").read_text().splitlines()
    return [json.loads(row) for row in rows]


def test_a_planted_plateau_ends_on_time(workspace, capsys):
    """A rate too low to learn anything: the first epoch is the best, two more are waited for, then it cools down."""
    flat = ("--set", "training.learning_rate=1e-12", "--set", "training.patience=2", "--set", "training.weight_decay=0")
    run("train", "-f", 0, "--epochs", 40, "-w", workspace.root, *SHORT, *flat)
    rows = history(workspace)
    assert len(rows) == 4  # the cool-down, a tenth of three epochs, ends within the fourth
    assert rows[-1]["step"] == math.ceil(3.3 * 12)
    assert rows[-1]["progress"] == 1
    assert rows[-1]["learning_rate"] < rows[2]["learning_rate"] / 2
    output = capsys.readouterr().out
    assert "no better validation loss or pseudo Dice in 2 epochs: cooling down the learning rate" in output
    assert load_checkpoint(workspace.fold("3d_fullres", "unet", 0) / "last.pt")["finished"]


def test_the_cases_are_read_into_memory_once(workspace, monkeypatch):
    """Not for the chains that are measured, nor for the samples that are watched."""
    real, read = StoredCase.in_memory, []
    monkeypatch.setattr(StoredCase, "in_memory", lambda case: read.append(case.info.id) or real(case))
    run("train", "-f", 0, "--epochs", 1, "-w", workspace.root, *SHORT, "--set", "training.chain=auto")
    assert len(read) == len(set(read)) == 5


def test_samples_are_mixed_on_demand(workspace, capsys):
    mixing = ("--set", "training.augmentation=sparse")
    command = ["train", "-f", "0", "--epochs", "1", "-w", str(workspace.root), *SHORT, *mixing]
    assert main(command) == 2
    assert "training.chain=host does not support what the plan asks for" in capsys.readouterr().err
    losses = []
    for augmentation in ("sparse", "default"):
        chosen = ("--set", f"training.augmentation={augmentation}", "--set", "training.chain=worker", "--restart")
        run("train", "-f", 0, "--epochs", 1, "-w", workspace.root, *SHORT, *chosen)
        losses.append(history(workspace)[0]["loss"])
    assert losses[0] != losses[1]


def test_a_clean_run_is_not_blamed_and_learns(workspace, capsys):
    run("train", "-f", 0, "--epochs", 10, "-w", workspace.root, *SHORT)
    assert "--restart" not in capsys.readouterr().out
    assert np.mean(history(workspace)[-1]["pseudo_dice"]) > 0.6
    folder = workspace.fold("3d_fullres", "unet", 0)
    assert (folder / "progress.png").read_bytes()[:4] == b"\x89PNG"


def relabelled(folder: Path, change: Callable[[np.ndarray, np.random.Generator], np.ndarray]) -> Workspace:
    """Plan a dataset whose label maps were changed."""
    dataset = tiny_dataset(folder / "data", cases=6)
    for number, path in enumerate(sorted((dataset / "labelsTr").iterdir())):
        write_labels(path, change(read_labels(path).array, np.random.default_rng(number)), path)
    workspace = Workspace(folder / "workspace")
    run("plan", dataset, "-w", workspace.root)
    return workspace


def test_a_planted_collapse_is_named(tmp_path, capsys):
    """Of the second label three voxels are left, where nothing in the image tells; the first one is learnt."""

    def hide(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        labels = np.where(labels == 2, 0, labels)
        z, y, x = (int(rng.integers(2, edge - 4)) for edge in labels.shape)
        labels[z, y, x : x + 3] = 2
        return labels

    workspace = relabelled(tmp_path, hide)
    capsys.readouterr()
    run("train", "-f", 0, "--epochs", 12, "-w", workspace.root, *SHORT, "--set", "training.patience=0")
    output = capsys.readouterr().out
    first, second = history(workspace)[-1]["pseudo_dice"]
    assert first > 0.5
    assert second < 0.05
    assert output.count("collapses: organ_2") == 2  # at once, and at the end
    assert "collapses: organ_1" not in output
    assert "--set" in output


def test_a_planted_overfit_is_named(tmp_path, capsys):
    """Labels that stand anywhere but where the image says: a network can only learn them by heart."""
    workspace = relabelled(tmp_path, lambda labels, rng: np.roll(labels, rng.integers(4, 12, 3), axis=(0, 1, 2)))
    by_heart = ("--set", "training.augmentation=none", "--set", "training.patience=0")
    run("train", "-f", 0, "--epochs", 25, "-w", workspace.root, *SHORT, *by_heart)
    last = history(workspace)[-1]
    assert np.mean(last["training_dice"]) > np.mean(last["pseudo_dice"]) + 0.3
    assert "overfit" in capsys.readouterr().out


# ---- steps that fail


def failing(monkeypatch, fails) -> list[str]:
    """Let the loss of calls number n be NaN where `fails(n, dtype, learning rate)`; returns the dtypes of all calls."""
    real, seen = within_memory.TrainingStep.__call__, []

    def step(self, batch, **options):
        seen.append(self.dtype)
        if fails(len(seen), self.dtype, self.optimizer.param_groups[0]["lr"]):
            return math.nan
        return real(self, batch, **options)

    monkeypatch.setattr(within_memory.TrainingStep, "__call__", step)
    return seen


def test_a_step_without_a_finite_loss_is_left_out_and_its_cases_named(workspace, monkeypatch, capsys):
    failing(monkeypatch, lambda n, *_: n == 7)
    run("train", "-f", 0, "--epochs", 2, "-w", workspace.root, *SHORT)
    output = capsys.readouterr().out
    assert output.count("non-finite loss") == 1
    assert "step 7: non-finite loss, step skipped (cases case_0" in output
    assert [row["skipped"] for row in history(workspace)] == [1, 0]


def test_after_ten_in_a_row_it_goes_back_and_on_in_float32(workspace, monkeypatch, capsys):
    """Steps 16 to 25 fail. The epoch that ends among them, at step 24, leaves no checkpoint to go back to."""
    half = ["--set", "training.autocast=bfloat16"]
    seen = failing(monkeypatch, lambda n, dtype, _: dtype == "bfloat16" and n > 15)
    run("train", "-f", 0, "--epochs", 3, "-w", workspace.root, *SHORT, *half)
    assert "10 non-finite losses in a row: restored step 12, now in float32" in capsys.readouterr().out
    assert seen == ["bfloat16"] * 25 + ["float32"] * 24  # from the end of the first epoch, step 12
    state = load_checkpoint(workspace.fold("3d_fullres", "unet", 0) / "last.pt")
    assert state["runtime"]["dtype"] == "float32"
    assert state["rollbacks"] == 1
    assert [row["step"] for row in state["history"]] == [12, 24, 36]
    assert [row["step"] for row in history(workspace)] == [12, 24, 36]
    assert all(torch.isfinite(weight).all() for weight in state["network"].values())


def test_in_float32_the_learning_rate_is_halved(workspace, monkeypatch, capsys):
    rates = []

    def fails(n, dtype, rate):
        rates.append(rate)
        return 15 < n <= 25

    failing(monkeypatch, fails)
    run("train", "-f", 0, "--epochs", 3, "-w", workspace.root, *SHORT)
    assert "restored step 12, now with half the learning rate" in capsys.readouterr().out
    assert rates[25] == pytest.approx(rates[12] / 2)  # step 13, for the second time


def test_it_gives_up_when_going_back_does_not_help(workspace, monkeypatch, capsys):
    """Steps 16 to 25, then 13 to 22 twice; each time the learning rate is half of what it was."""
    rates = []

    def fails(n, dtype, rate):
        rates.append(rate)
        return n > 15

    failing(monkeypatch, fails)
    code = main(["train", "-f", "0", "--epochs", "3", "-w", str(workspace.root), *SHORT])
    assert code == 2
    error = capsys.readouterr().err
    assert "even after 2 returns to an earlier checkpoint" in error
    assert "case_0" in error
    assert [rates[25], rates[35]] == pytest.approx([rates[12] / 2, rates[12] / 4])


def test_a_budget_without_time_to_train_is_refused(workspace, capsys):
    assert main(["train", "-f", "0", "--time-budget", "0.001s", "-w", str(workspace.root), *SHORT]) == 2
    assert "the time budget of 0 s leaves no time to train" in capsys.readouterr().err


class Calls:
    """A clock that moves two seconds whenever it is read."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        self.now += 2.0
        return self.now


@pytest.mark.parametrize(
    ("forward", "cheaper", "said"),
    [
        (0.001, False, "validation takes about"),
        (1e4, True, "validation overruns the budget, to about"),  # never refused
    ],
)
def test_no_budget_is_refused_for_its_validation(workspace, monkeypatch, capsys, forward, cheaper, said):
    """Of 600 s training has 400 at least, however long the validation takes; evaluate, too, says what was cheaper."""
    for module in (setup, train):
        monkeypatch.setattr(module, "forward_seconds", lambda *_: [forward] * 3)
    monkeypatch.setattr(budget_clock, "time", Calls())
    run("train", "-f", 0, "--time-budget", "600s", "-w", workspace.root, *SHORT, "--set", "training.patience=0")
    assert said in capsys.readouterr().out
    folder = workspace.fold("3d_fullres", "unet", 0)
    assert len(list((folder / "validation").iterdir())) == 1
    assert history(workspace)[-1]["seconds"] >= 400
    way = json.loads((folder / "inference.json").read_text())
    assert (way["cheaper"], way["mirror_axes"] == []) == (cheaper, cheaper)
    run("evaluate", "-w", workspace.root)
    assert ("fold 0 lacked the time to segment as predict does: without mirroring" in capsys.readouterr().out) == (
        cheaper
    )


def test_a_budget_that_ran_out_while_nobody_trained_ends_with_one_step(workspace, monkeypatch):
    """As if it had been killed right before its end, and started again after it."""
    budget = ["train", "-f", "0", "--time-budget", "15s", "-w", str(workspace.root), *SHORT]
    real = train.step_within_memory

    def interrupted(fold, batch):
        if fold.clock.progress(0) > 0.5:
            fold.state.position = replace(fold.state.position, seconds=100.0)
            train.save(fold, finished=False)
            raise KeyboardInterrupt
        return real(fold, batch)

    with monkeypatch.context() as patch:
        patch.setattr(train, "step_within_memory", interrupted)
        assert main(budget) == 130
    before = load_checkpoint(workspace.fold("3d_fullres", "unet", 0) / "last.pt")["position"]["step"]
    assert main(budget) == 0
    state = load_checkpoint(workspace.fold("3d_fullres", "unet", 0) / "last.pt")
    assert state["finished"]
    assert state["position"]["step"] == before + 1
    assert list((workspace.fold("3d_fullres", "unet", 0) / "validation").iterdir())


def test_new_weights_are_not_scored_by_old_predictions(workspace):
    run("train", "-f", 0, "--epochs", 1, "-w", workspace.root, *SHORT)
    folder = workspace.fold("3d_fullres", "unet", 0)
    (prediction,) = (folder / "validation").iterdir()
    good = prediction.read_bytes()
    prediction.write_bytes(b"of other weights")
    for name in ("last.pt", "previous.pt", "checkpoints.sha256"):
        (folder / name).unlink()
    run("train", "-f", 0, "--epochs", 1, "-w", workspace.root, *SHORT)
    assert prediction.read_bytes() == good


def test_a_disk_that_is_full_for_a_moment_costs_nothing(workspace, monkeypatch, capsys):
    """The checkpoint of epoch 1 cannot be written; the next step writes its own, without waiting for epoch 2."""
    real, steps = checkpoint.save_generation, []

    def save(folder, state):
        steps.append(state["position"]["step"])
        if len(steps) == 2:
            raise StorageError("the disk is full")
        real(folder, state)

    monkeypatch.setattr(checkpoint, "save_generation", save)
    run("train", "-f", 0, "--epochs", 3, "-w", workspace.root, *SHORT)
    each = steps[-1] // 3
    assert steps[:2] == [0, each]
    assert each < steps[2] < 2 * each
    assert steps[3:] == [2 * each, 3 * each]
    assert capsys.readouterr().out.count("fold 0  the disk is full; retrying") == 1
    assert load_checkpoint(workspace.fold("3d_fullres", "unet", 0) / "last.pt")["finished"]


def test_out_of_memory_costs_speed_alone(workspace, monkeypatch, capsys):
    """A network that takes one sample at a time, in steps and when it is looked at."""
    real = train.train

    def refuse(_, images):
        if len(images[0]) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")

    def train_in_little_memory(fold, checkpoint_seconds):
        fold.network.register_forward_pre_hook(refuse)
        real(fold, checkpoint_seconds)

    monkeypatch.setattr(train, "train", train_in_little_memory)
    run("train", "-f", 0, "--epochs", 2, "-w", workspace.root, *SHORT)
    assert capsys.readouterr().out.count("out of memory: from now on, each batch is split into 2 micro-batches") == 1
    state = load_checkpoint(workspace.fold("3d_fullres", "unet", 0) / "last.pt")
    assert state["micro_batches"] == 2
    assert state["history"][-1]["loss"] < state["history"][0]["loss"]
