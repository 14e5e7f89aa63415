"""nnU-Net's checkpoints: the numbers it logs are read, anything that could run code is refused and does not run."""

import os
import pickle
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from autoseg.errors import StateError
from autoseg.models.nnunet.checkpoint import read_trained
from nnunet_models import Net, held


def saved(path: Path, **changes: object) -> Path:
    torch.save(held(Net()) | changes, path)
    return path


def test_a_checkpoint_with_the_numbers_of_numpy_is_read(tmp_path):
    found = read_trained(saved(tmp_path / "a.pth"))
    assert (found.configuration, found.trainer, found.mirror_axes, found.epochs) == (
        "3d_fullres", "nnUNetTrainer", (0, 1, 2), 3,
    )  # fmt: skip
    weight = Net().encoder.stages[0][0].convs[0].conv.weight
    torch.testing.assert_close(found.weights["encoder.stages.0.0.convs.0.conv.weight"], weight.detach(), rtol=0, atol=0)


def test_names_of_numpy_1_are_read_too(tmp_path):
    """numpy 1 called the module `numpy.core`; the archive is changed as bytes, its checksums with it."""
    source, target = saved(tmp_path / "a.pth"), tmp_path / "b.pth"
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for entry in old.infolist():
            data = old.read(entry)
            if entry.filename.endswith("data.pkl"):
                assert b"numpy._core.multiarray" in data
                data = data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
            new.writestr(entry.filename, data)
    assert read_trained(target).epochs == 3


def test_axes_stored_as_numbers_of_numpy_are_numbers(tmp_path):
    axes = (np.int64(2), np.int64(0))
    assert read_trained(saved(tmp_path / "a.pth", inference_allowed_mirroring_axes=axes)).mirror_axes == (0, 2)


def test_no_mirroring_is_no_axis(tmp_path):
    assert read_trained(saved(tmp_path / "a.pth", inference_allowed_mirroring_axes=None)).mirror_axes == ()


class Runs:
    """Unpickled, it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(tmp_path):
    trace = tmp_path / "ran"
    path = saved(tmp_path / "a.pth", logging=Runs(trace))
    with pytest.raises(StateError, match=r"a\.pth is refused: besides data it would load posix\.mkdir, which may run"):
        read_trained(path)
    assert not trace.exists()
    torch.load(path, weights_only=False)  # the file is as dangerous as it looks
    assert trace.exists()


@pytest.mark.parametrize("name", ["builtins.eval", "numpy.load", "torch.hub.load"])
def test_functions_near_the_allowed_ones_are_refused(tmp_path, name):
    class Calls:
        def __reduce__(self) -> tuple:
            module, _, function = name.rpartition(".")
            return getattr(__import__(module, fromlist=["x"]), function), ("1",)

    with pytest.raises(StateError, match="besides data it would load") as refused:
        read_trained(saved(tmp_path / "a.pth", logging=Calls()))
    assert name.rpartition(".")[2] in refused.value.what


def test_a_plain_pickle_is_refused(tmp_path):
    trace = tmp_path / "ran"
    (tmp_path / "a.pth").write_bytes(pickle.dumps(Runs(trace)))
    with pytest.raises(StateError, match=r"a\.pth cannot be read as a checkpoint"):
        read_trained(tmp_path / "a.pth")
    assert not trace.exists()


def test_compressed_archives_are_refused(tmp_path):
    source, target = saved(tmp_path / "a.pth"), tmp_path / "b.pth"
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    with pytest.raises(StateError, match="compressed"):
        read_trained(target)


def test_damage_is_found(tmp_path):
    path = saved(tmp_path / "a.pth")
    cut, flipped = tmp_path / "cut.pth", tmp_path / "flipped.pth"
    cut.write_bytes(path.read_bytes()[:-300])
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    flipped.write_bytes(content)
    for damaged in (cut, flipped, tmp_path / "missing.pth"):
        with pytest.raises(StateError, match=f"{damaged.name} cannot be read as a checkpoint"):
            read_trained(damaged)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"init_args": None}, "init_args names no configuration"),
        ({"network_weights": {"a": 1}}, "network_weights holds no tensors"),
        ({"inference_allowed_mirroring_axes": "012"}, "expected numbers of axes"),
    ],
)
def test_what_is_not_nnunets_is_refused(tmp_path, changes, reason):
    with pytest.raises(StateError, match=reason):
        read_trained(saved(tmp_path / "a.pth", **changes))


def test_the_file_is_left_alone(tmp_path):
    path = saved(tmp_path / "a.pth")
    before = path.read_bytes()
    read_trained(path)
    assert path.read_bytes() == before
    shutil.rmtree(tmp_path)
