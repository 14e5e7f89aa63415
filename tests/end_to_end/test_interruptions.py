"""Nothing is lost: a training that is killed, stopped or broken off goes on as if nothing had happened."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from autoseg.models.checkpoint import load_checkpoint
from autoseg.workspace import Workspace
from commands import copy_of, run
from phantom import tiny_dataset

pytestmark = pytest.mark.slow

STEPS = 60
COMMAND = [
    "train", "-f", "0", "--steps", STEPS, "--checkpoint-every", "0.3s", "--set", "training.iterations_per_epoch=25",
    "--set", "training.chain=host", "--set", "training.autocast=float32",
]  # fmt: skip
TIMES = ("seconds", "epoch_seconds", "forward_seconds")  # differ from run to run


@pytest.fixture(scope="module")
def planned(tmp_path_factory) -> Workspace:
    folder = tmp_path_factory.mktemp("planned")
    workspace = Workspace(folder / "workspace")
    run("plan", tiny_dataset(folder / "data", cases=6), "-w", workspace.root)
    return workspace


def start(workspace: Workspace, *options: object) -> subprocess.Popen:
    words = map(str, [*COMMAND, "-w", workspace.root, *options])
    return subprocess.Popen(
        [sys.executable, "-m", "autoseg", *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def finish(workspace: Workspace, *options: object) -> str:
    process = start(workspace, *options)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def fold_of(workspace: Workspace) -> Path:
    return workspace.fold("3d_fullres", "unet", 0)


def wait_until_trained(workspace: Workspace, process: subprocess.Popen, step: int) -> None:
    """Wait until a checkpoint of that step or a later one is there."""
    while process.poll() is None:
        path = fold_of(workspace) / "last.pt"
        if path.exists() and load_checkpoint(path)["position"]["step"] >= step:
            return
        time.sleep(0.05)
    pytest.fail(f"it ended before step {step}: {process.communicate()[0]}")


def without_times(value):
    if isinstance(value, dict):
        return {key: without_times(item) for key, item in value.items() if key not in TIMES}
    if isinstance(value, list):
        return [without_times(item) for item in value]
    return value.tolist() if isinstance(value, torch.Tensor) else value


def outcome(workspace: Workspace) -> dict:
    """Everything of a finished fold that must not depend on how it came about: weights, optimiser, log."""
    state = load_checkpoint(fold_of(workspace) / "last.pt")
    assert state["finished"]
    state["plan"]["training"]["workers"] = None
    return without_times(state)


@pytest.fixture(scope="module")
def uninterrupted(planned, tmp_path_factory) -> dict:
    workspace = copy_of(planned, tmp_path_factory.mktemp("uninterrupted") / "w")
    finish(workspace, "--set", "training.workers=0")
    result = outcome(workspace)
    assert [row["step"] for row in result["history"]][-1] == STEPS
    assert len(result["history"]) == 20
    return result


def test_the_comparison_notices_a_difference(planned, uninterrupted, tmp_path):
    workspace = copy_of(planned, tmp_path / "w")
    finish(workspace, "--set", "training.workers=0", "--set", "training.seed=7")
    other = outcome(workspace)
    for key in ("network", "optimizer", "average", "history"):
        assert other[key] != uninterrupted[key], key


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_killed_in_the_middle_it_ends_as_if_it_had_not_been(planned, uninterrupted, tmp_path, workers):
    workspace = copy_of(planned, tmp_path / "w")
    options = ("--set", f"training.workers={workers}")
    for step in (4, 20):
        process = start(workspace, *options)
        wait_until_trained(workspace, process, step)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    resumed_at = load_checkpoint(fold_of(workspace) / "last.pt")["position"]
    assert 20 <= resumed_at["step"] < STEPS
    output = finish(workspace, *options)
    assert f"resumed after epoch {resumed_at['epoch']}, step {resumed_at['step']}" in output
    assert outcome(workspace) == uninterrupted


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130)], ids=str
)
def test_asked_to_stop_it_saves_and_says_how_to_go_on(planned, uninterrupted, tmp_path, number, code):
    workspace = copy_of(planned, tmp_path / "w")
    process = start(workspace, "--checkpoint-every", "1h", "--set", "training.workers=1")
    wait_until_trained(workspace, process, 6)  # an epoch is over
    os.killpg(process.pid, number)  # batch systems and terminals send it to the workers, too
    output, _ = process.communicate(timeout=60)
    assert process.returncode == code, output
    saved = load_checkpoint(fold_of(workspace) / "last.pt")["position"]["step"]
    assert f"saved after step {saved}" in output
    assert f"resume with: autoseg train -f 0 --steps {STEPS}" in output
    assert "Traceback" not in output
    finish(workspace, "--set", "training.workers=1")
    assert outcome(workspace) == uninterrupted


def test_it_stops_after_the_time_that_was_set(planned, uninterrupted, tmp_path):
    workspace = copy_of(planned, tmp_path / "w")
    runs = 0
    while True:
        process = start(workspace, "--stop-after", "6s", "--set", "training.workers=0")
        output, _ = process.communicate(timeout=300)
        runs += 1
        if process.returncode == 0:
            break
        assert process.returncode == 75, output
        assert "stopped after 6 s, as requested" in output
        assert runs < 50, "it does not come forward"
    assert outcome(workspace) == uninterrupted


def test_a_damaged_checkpoint_costs_no_more_than_the_time_since_the_one_before(planned, uninterrupted, tmp_path):
    workspace = copy_of(planned, tmp_path / "w")
    process = start(workspace, "--set", "training.workers=0")
    wait_until_trained(workspace, process, 12)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    newest = fold_of(workspace) / "last.pt"
    newest.write_bytes(newest.read_bytes()[:1000])
    output = finish(workspace, "--set", "training.workers=0")
    assert "it is renamed, and the previous checkpoint is used" in output or "was to replace it is used" in output
    assert outcome(workspace) == uninterrupted


def test_two_processes_do_not_train_the_same_fold(planned, tmp_path):
    workspace = copy_of(planned, tmp_path / "w")
    first = start(workspace)
    wait_until_trained(workspace, first, 0)
    second = start(workspace)
    output, _ = second.communicate(timeout=60)
    assert second.returncode == 4
    assert "another process is training" in output
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()


def test_different_folds_are_trained_side_by_side(planned, tmp_path):
    """From the very beginning: all of them find that the cases are still to be preprocessed."""
    workspace = copy_of(planned, tmp_path / "w")
    shutil.rmtree(workspace.root / "preprocessed")
    short = ("--steps", 2, "--set", "training.workers=0")
    processes = [start(workspace, "-f", fold, *short) for fold in range(3)]
    for process in processes:
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output
    for fold in range(3):
        assert load_checkpoint(workspace.fold("3d_fullres", "unet", fold) / "last.pt")["finished"]
