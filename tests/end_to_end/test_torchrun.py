"""Two processes as one training, as torchrun starts them, from the command line to the predictions."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from autoseg.cli import main
from autoseg.models.checkpoint import load_checkpoint
from autoseg.workspace import Workspace
from phantom import tiny_dataset

pytestmark = pytest.mark.slow

STEPS = 30
COMMAND = [
    "autoseg", "train", "-f", "0", "--steps", STEPS, "--device", "cpu",
    "--set", "configurations.3d_fullres.batch_size=4", "--set", "configurations.3d_fullres.batch_dice=true",
    "--set", "training.chain=host", "--set", "training.autocast=float32", "--set", "training.workers=0",
    "--set", "training.class_weights=[1,2,3]",
]  # fmt: skip


@pytest.fixture(scope="module")
def planned(tmp_path_factory) -> Workspace:
    folder = tmp_path_factory.mktemp("planned")
    workspace = Workspace(folder / "workspace")
    assert main(["plan", str(tiny_dataset(folder / "data", cases=6)), "-w", str(workspace.root)]) == 0
    return workspace


def start(workspace: Workspace, processes: int, *options: object) -> subprocess.Popen:
    launcher = ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"] if processes > 1 else []
    words = map(str, ["-m", *launcher, *COMMAND, "-w", workspace.root, *options])
    return subprocess.Popen(
        [sys.executable, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def train(planned: Workspace, folder: Path, processes: int, *options: object) -> tuple[list[dict], str]:
    """The history of a fold that was trained by so many processes, and what they said."""
    workspace = Workspace(folder)
    if not folder.exists():
        shutil.copytree(planned.root, folder)
    process = start(workspace, processes, *options)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    rows = (workspace.fold("3d_fullres", "unet", 0) / "history.jsonl").read_text().splitlines()
    return [json.loads(row) for row in rows], output


@pytest.fixture(scope="module")
def alone(planned, tmp_path_factory) -> list[dict]:
    return train(planned, tmp_path_factory.mktemp("alone") / "w", 1)[0]


def curve(history: list[dict], key: str) -> np.ndarray:
    return np.array([row[key] for row in history], dtype=float)


def test_the_same_batches_give_the_same_curve(planned, alone, tmp_path):
    together, output = train(planned, tmp_path / "w", 2)
    assert len(alone) == 15
    for key in ("loss", "validation_loss"):
        np.testing.assert_allclose(curve(together, key), curve(alone, key), atol=2e-3)
    assert np.ptp(curve(alone, "loss")) > 0.1  # there is a curve
    assert len(re.findall("validation cases? predicted", output)) == 1
    other, _ = train(planned, tmp_path / "other", 1, "--set", "training.seed=3")
    assert abs(curve(other, "loss") - curve(alone, "loss")).max() > 0.02  # and others differ


def test_two_processes_go_on_where_one_was_stopped(planned, alone, tmp_path):
    workspace = Workspace(tmp_path / "w")
    shutil.copytree(planned.root, workspace.root)
    process = start(workspace, 1, "--checkpoint-every", "0.2s")
    path = workspace.fold("3d_fullres", "unet", 0) / "last.pt"
    while not (path.exists() and load_checkpoint(path)["position"]["step"] >= 7):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 75, output
    history, output = train(planned, workspace.root, 2)
    assert "resumed after epoch" in output
    np.testing.assert_allclose(curve(history, "loss"), curve(alone, "loss"), atol=2e-3)


def test_a_batch_that_cannot_be_shared_evenly_is_refused(planned, tmp_path):
    workspace = Workspace(tmp_path / "w")
    shutil.copytree(planned.root, workspace.root)
    process = start(workspace, 2, "--set", "configurations.3d_fullres.batch_size=3")
    output, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "2 processes cannot share a batch of 3 samples evenly" in output
    assert "configurations.3d_fullres.batch_size=4" in output
