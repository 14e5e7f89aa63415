"""`autoseg serve`: what it opens from a workspace, what it says, and how it refuses."""

import builtins
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest

from autoseg.cli import main
from autoseg.commands.arguments import nbytes
from autoseg.commands.parser import build_parser
from autoseg.commands.serve import ServeOptions, open_server, require_extra, serve
from autoseg.datasets.dataset import Dataset
from autoseg.errors import StateError, StorageError, UsageError
from autoseg.planning.prompted import with_prompts
from autoseg.records import load, save
from autoseg.serve.client import Client
from autoseg.serve.server import Server
from exported import plan_for_tests, workspace_of
from files import nifti
from served import SHAPE, Program
from tiny import image, label

PROMPTED = "3d_fullres_prompts"


@pytest.fixture
def plain(tmp_path):
    """A workspace without a model that takes prompts."""
    return workspace_of(tmp_path / "w", folds=(0,))


@pytest.fixture
def prompted(tmp_path):
    plan, _ = with_prompts(plan_for_tests(), "3d_fullres")
    return workspace_of(tmp_path / "p", plan, configurations=("3d_fullres", PROMPTED), folds=(0, 1))


def test_the_model_with_prompts_is_found_beside_the_one_that_segments(prompted, said):
    with open_server(prompted, ServeOptions(port=0)) as server:
        about = Program(server.start()).json("GET", "/api/about")
    assert (about["models"], about["prompts"], about["no_prompts"]) == (["3d_fullres-unet"], True, "")
    assert f"segments: 3d_fullres-unet; corrects: {PROMPTED}-unet" in said


def test_named_itself_it_does_both(prompted, said):
    with open_server(prompted, ServeOptions(configuration=PROMPTED, folds=(1,), port=0)) as server:
        assert Program(server.start()).json("GET", "/api/about")["models"] == [f"{PROMPTED}-unet"]
    assert f"segments: {PROMPTED}-unet; corrects: {PROMPTED}-unet" in said


def test_without_one_the_command_that_trains_it_is_named(plain, said):
    with open_server(plain, ServeOptions(port=0)) as server:
        about = Program(server.start()).json("GET", "/api/about")
    assert not about["prompts"]
    assert f"autoseg train --prompts -c 3d_fullres --network unet -w {plain.root}" in about["no_prompts"]
    assert "does not hold images/ next to labels/" in about["no_training_set"]  # the dataset of the workspace is gone


def test_the_data_set_of_the_workspace_is_added_to(plain, tmp_path, said):
    root = tmp_path / "set"
    nifti(root / "images" / "a.nii.gz", image(1))
    nifti(root / "labels" / "a.nii.gz", label(1))
    save(plain.dataset, replace(load(Dataset, plain.dataset), root=str(root)))
    with open_server(plain, ServeOptions(port=0)) as server:
        assert Program(server.start()).json("GET", "/api/about")["training_set"] == "set"
    with pytest.raises(StateError, match="does not hold images/"):
        open_server(plain, ServeOptions(port=0, training_set=tmp_path / "w"))


def test_a_port_in_use_is_reported_with_another_one(plain, said):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(StorageError) as refused:
            open_server(plain, ServeOptions(port=taken.getsockname()[1]))
    assert "--port" in refused.value.remedy


def test_a_folder_that_is_not_there_is_refused(plain, tmp_path):
    with pytest.raises(UsageError, match="is not a folder"):
        open_server(plain, ServeOptions(folder=tmp_path / "none"))


def test_nothing_trained_is_reported_before_a_port_is_opened(tmp_path, said):
    workspace = workspace_of(tmp_path / "w", configurations=())
    with pytest.raises(StateError, match="train"):
        open_server(workspace, ServeOptions(port=0))


def test_without_the_extra_the_installation_is_named(monkeypatch):
    real = builtins.__import__

    def without(name, *rest):
        if name.partition(".")[0] == "uvicorn":
            raise ImportError(name="uvicorn")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UsageError) as refused:
        require_extra()
    assert refused.value.remedy == "pip install 'autoseg-med[serve]'"
    assert "uvicorn is not installed" in refused.value.what


def test_the_command_prints_the_address_and_ends_by_ctrl_c(plain, monkeypatch, tmp_path, capsys):
    opened, seen = [], []
    monkeypatch.setattr("webbrowser.open", opened.append)
    real = Server.run

    def interrupted(server):
        thread = threading.Thread(target=real, args=(server,), daemon=True)
        thread.start()
        server._thread = thread  # as `start` notes it
        while not server._server.started:
            thread.join(0.01)
        seen.append(urllib.request.urlopen(server.address).read())
        page = Path(opened[0].removeprefix("file://"))
        assert server.address in page.read_text()
        assert page.stat().st_mode & 0o077 == 0, "others read the token"
        raise KeyboardInterrupt

    monkeypatch.setattr(Server, "run", interrupted)
    folder = tmp_path / "images"
    nifti(folder / "a.nii.gz", image(1))
    words = ["--folder", str(folder), "--training-set", str(tmp_path / "w"), "--max-upload", "500MB", "--speed", "fast"]
    assert main(["serve", "-w", str(plain.root), "--port", "0", *words]) == 4
    assert main(["serve", "-w", str(plain.root), "--port", "0", *words[:2], "-f", "0", "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert "open http://127.0.0.1:" in printed
    assert "?token=" in printed
    assert "ended; uploaded files are removed" in printed
    assert b"<title>autoseg</title>" in seen[0]
    assert not Path(opened[0].removeprefix("file://")).exists()
    opened.clear()
    monkeypatch.setattr(Server, "run", lambda server: (_ for _ in ()).throw(KeyboardInterrupt))
    serve(plain, ServeOptions(port=0, browser=False))
    assert opened == []


@pytest.mark.thorough
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_uploads_are_removed_whatever_ends_the_server(plain, tmp_path, number):
    words = ["serve", "-w", str(plain.root), "--port", "0", "--no-browser"]
    there = os.environ | {"TMPDIR": str(tmp_path / "tmp"), "PYTHONPATH": str(Path(__file__).parents[2])}
    (tmp_path / "tmp").mkdir()
    server = subprocess.Popen([sys.executable, "-m", "autoseg", *words], stdout=subprocess.PIPE, text=True, env=there)
    address = next(line.split()[1] for line in server.stdout if line.startswith("open "))
    Client(address).open(nifti(tmp_path / "a.nii.gz", image(1, SHAPE)))
    assert [*(tmp_path / "tmp").rglob("a.nii.gz")]
    server.send_signal(number)
    assert server.wait(60) == 0
    assert [*(tmp_path / "tmp").glob("autoseg-serve-*")] == []


def test_options_are_parsed():
    found = build_parser().parse_args(
        ["serve", "--no-browser", "-c", "2d", "--network", "unet", "--max-upload", "1.5GB"]
    )
    assert (found.no_browser, found.max_upload, found.port) == (True, 1_500_000_000, 8765)
    assert build_parser().parse_args(["serve"]).max_upload == 2 * 10**9
    assert [nbytes(text) for text in ("5", "500MB", "2 GB", "1kB")] == [5, 500_000_000, 2 * 10**9, 1000]
    for text in ("0", "GB", "-1", "1e9", "2XB"):
        with pytest.raises(Exception, match="is not a size"):
            nbytes(text)
