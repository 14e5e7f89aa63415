"""Prediction as processes: on several devices, in shards, stopped by signals and resumed; label files are compared."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from autoseg.evaluation.speeds import SpeedTable
from autoseg.inference.finished import Predictions
from autoseg.records import load
from autoseg.workspace import Workspace
from commands import SHORT, run
from phantom import tiny_dataset

pytestmark = pytest.mark.slow
linux = pytest.mark.skipif(sys.platform != "linux", reason="processes side by side need Linux")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, Workspace]:
    """A workspace with one trained fold, and a folder of twelve images."""
    folder = tmp_path_factory.mktemp("trained")
    data = tiny_dataset(folder / "data", cases=6)
    workspace = Workspace(folder / "workspace")
    run("plan", data, "-w", workspace.root)
    run("train", "-f", "0", "--steps", 24, "-w", workspace.root, *SHORT)
    images = folder / "images"
    images.mkdir()
    for number in range(12):
        source = data / "imagesTr" / f"case_{number % 6:02d}_0000.nii.gz"
        shutil.copy(source, images / f"scan_{number:02d}_0000.nii.gz")
    return images, workspace


@pytest.fixture(scope="module")
def expected(trained, tmp_path_factory) -> dict[str, bytes]:
    """The label files of one plain command."""
    out = tmp_path_factory.mktemp("plain") / "out"
    run("predict", "-i", trained[0], "-o", out, "-w", trained[1].root)
    return label_files(out)


def label_files(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.glob("[!.]*.nii.gz"))}


def command(trained: tuple[Path, Workspace], out: Path, *more: str) -> list[str]:
    images, workspace = trained
    words = ["predict", "-i", str(images), "-o", str(out), "-w", str(workspace.root), *more]
    return [sys.executable, "-m", "autoseg", *words]


@linux
def test_two_devices_make_what_one_makes(trained, expected, tmp_path):
    """CPUs stand in for GPUs: they share the cores."""
    made = subprocess.run(
        command(trained, tmp_path / "out", "--device", "cpu,cpu"), capture_output=True, text=True, check=True
    )
    assert "2 processes on cpu, cpu" in made.stdout
    assert "shard 2/2  shard 2/2: 6 of 12 cases: scan_01, scan_03" in made.stdout
    assert label_files(tmp_path / "out") == expected
    records = sorted((tmp_path / "out").glob("autoseg_predictions*.json"))
    assert [path.name for path in records] == ["autoseg_predictions_1_of_2.json", "autoseg_predictions_2_of_2.json"]
    assert sum(len(load(Predictions, path).cases) for path in records) == 12


@linux
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
@pytest.mark.parametrize("more", [(), ("--device", "cpu,cpu")], ids=["one", "two"])
def test_a_command_that_was_stopped_is_resumed_by_the_one_it_names(trained, expected, tmp_path, number, code, more):
    """The signal comes as soon as the first label file is there; then nothing is half written."""
    out = tmp_path / "out"
    process = subprocess.Popen(
        command(trained, out, *more), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while process.poll() is None and not list(out.glob("[!.]*.nii.gz")):
        os.sched_yield()
    process.send_signal(number)
    _, said = process.communicate(timeout=120)
    before = label_files(out)
    if process.returncode != 0:  # it was not faster than the signal
        assert process.returncode == code
        assert "--resume" in said.splitlines()[-1]
    assert before.items() <= expected.items()
    assert [path.name for path in out.iterdir() if ".part" in path.name] == []
    made = subprocess.run(command(trained, out, *more, "--resume"), capture_output=True, text=True, check=True)
    assert "are verified and kept" in made.stdout
    assert "again" not in made.stdout
    assert label_files(out) == expected


def test_shards_of_jobs_make_what_one_command_makes(trained, expected, tmp_path):
    for number in (3, 1, 2):
        run("predict", "-i", trained[0], "-o", tmp_path, "-w", trained[1].root, "--shard", f"{number}/3")
    assert label_files(tmp_path) == expected


def test_speeds_are_measured_on_held_out_cases_and_said_before_they_are_used(trained, tmp_path, capsys):
    images, workspace = trained
    run("evaluate", "--speeds", "-w", workspace.root)
    shown = capsys.readouterr().out
    table = load(SpeedTable, workspace.speeds("3d_fullres", "unet"))
    assert [speed.name for speed in table.speeds] == ["accurate", "balanced", "fast"]
    assert f"{table.speeds[0].dice.mean:.4f}" in shown
    assert not list(workspace.model("3d_fullres", "unet").glob(".speeds-*"))
    run("predict", "-i", images, "-o", tmp_path / "out", "-w", workspace.root, "--speed", "fast")
    shown = capsys.readouterr().out
    assert f"fast: Dice {table.speeds[2].dice.mean:.4f}" in shown
    path = workspace.speeds("3d_fullres", "unet")
    text = path.read_text()
    path.write_text(text.replace(table.weights["0"], "0" * 64))
    run("predict", "-i", images, "-o", tmp_path / "out", "-w", workspace.root, "--speed", "fast")
    assert "measured with other weights" in capsys.readouterr().out
    path.write_text(text)
