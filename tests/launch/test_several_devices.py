"""A process per device: which devices, what each is given, and what becomes of faults. CPUs stand in for GPUs."""

import os
import signal
import sys
import typing
from dataclasses import fields, replace
from pathlib import Path

import pytest

from autoseg.cli import main
from autoseg.commands.predict import PredictOptions
from autoseg.errors import AutosegError, DataError, Stopped, UsageError
from autoseg.inference.shards import Shard
from autoseg.launch import several_devices
from autoseg.launch.local_gpus import FoldEnd
from autoseg.launch.several_devices import devices_of, part_command, predict_on_devices
from autoseg.lines import shown_by
from autoseg.workspace import Workspace
from fleets import Told, with_gpus

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes side by side need Linux")


@pytest.mark.parametrize(
    ("text", "devices"),
    [("cuda:0,cuda:1", ["cuda:0", "cuda:1"]), ("cpu, cpu", ["cpu", "cpu"]), ("all", ["cuda:0", "cuda:1", "cuda:2"])],
)
def test_devices_as_they_are_typed(monkeypatch, text, devices):
    with_gpus(monkeypatch, 3, None)
    assert devices_of(text) == devices


@pytest.mark.parametrize(
    ("text", "what"), [("all", "there is no CUDA device"), ("cpu,", "names no devices"), (",", "names no devices")]
)
def test_devices_that_cannot_be_had_are_refused(monkeypatch, tmp_path, capsys, text, what):
    with_gpus(monkeypatch, 0, None)
    with pytest.raises(UsageError, match=what):
        devices_of(text)
    command = ["predict", "-i", str(tmp_path), "-o", str(tmp_path / "out"), "-w", str(tmp_path), "--device", text]
    assert main(command) == 2
    assert what in capsys.readouterr().err


# ---- the command of a part


def other_than(field) -> object:
    """A value of a field's type that is not its default."""
    hint = typing.get_type_hints(PredictOptions)[field.name]
    named = {
        "speed": "balanced", "shard": "2/8", "models": ("3d_fullres-unet", "2d-unet"), "folds": (0, 2, "full"),
        "mirroring": False, "step": 0.25, "tile": 1.5, "top_k": 0.5,
        "format": "nii.gz", "patients": Path("a table.csv"), "saliency": ("liver", "kidney@1,2,3"),
        "saliency_method": "grad_cam",
    }  # fmt: skip
    return named.get(field.name, True if hint is bool else "other")


@pytest.mark.parametrize("field", fields(PredictOptions), ids=lambda field: field.name)
def test_every_option_is_carried_over_to_a_part(field, monkeypatch):
    seen = []
    monkeypatch.setattr("autoseg.commands.predict.predict_images", lambda *given: seen.append(given))
    workspace, out = Workspace(Path("a workspace")), Path("some out")
    given = {field.name: other_than(field)} | ({"statistics": True} if field.name == "patients" else {})
    given |= {"saliency": ("liver",)} if field.name in ("saliency_stage", "saliency_method") else {}
    options = replace(PredictOptions(), **given)
    images = [Path("in put"), Path("-b.nii")]
    command = part_command(workspace, images, out, options)
    assert command[:3] == [sys.executable, "-m", "autoseg"]
    assert main(command[3:]) == 0
    assert seen == [(workspace, [Path("in put"), Path("./-b.nii")], out, options)]


# ---- processes


STAND_IN = """
import pathlib, sys, time
words = dict(word.lstrip("-").split("=") for word in sys.argv[1:] if "=" in word)
out = pathlib.Path(words["out"])
print("on", words["device"], flush=True)
{body}
(out / words["shard"].replace("/", "_")).touch()
"""


@pytest.fixture
def stand_in(monkeypatch, tmp_path):
    """Instead of autoseg, processes run a few lines of Python."""
    (tmp_path / "out").mkdir()

    def use(body: str = "") -> None:
        script = tmp_path / "part.py"
        script.write_text(STAND_IN.format(body=body))
        real = several_devices.part_command
        monkeypatch.setattr(
            several_devices, "part_command", lambda *given: [sys.executable, "-S", str(script), *real(*given)[3:]]
        )

    return use


def predict(tmp_path: Path, told: Told, **options: object) -> None:
    chosen = PredictOptions(**options)
    with shown_by(told):
        predict_on_devices(Workspace(tmp_path), [tmp_path], tmp_path / "out", chosen, ["cpu", "cuda:7"])


def test_every_device_has_a_part_of_its_own(stand_in, tmp_path):
    stand_in()
    told = Told()
    predict(tmp_path, told)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["1_2", "2_2"]
    assert told[0] == "2 processes on cpu, cuda:7"
    assert {"shard 1/2  on cpu", "shard 2/2  on cuda:7"} <= set(told)
    assert any(line.startswith("shard 2/2  started on cuda:7, process") for line in told)


def test_the_shard_of_a_job_is_divided_once_more(stand_in, tmp_path):
    stand_in()
    predict(tmp_path, Told(), shard="2/3")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["2_6", "5_6"]
    assert Shard(2, 6).of(range(12)) + Shard(5, 6).of(range(12)) == [1, 7, 4, 10]
    assert sorted([1, 7, 4, 10]) == Shard(2, 3).of(range(12))


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("code", "error", "what", "exit_code"),
    [
        (3, DataError, "listed above", 3),
        (6, AutosegError, "shard 1/2: failed, exit code 6", 6),
        (5, AutosegError, "--resume", 5),
    ],
)
def test_a_part_that_fails_does_not_end_the_others(stand_in, tmp_path, code, error, what, exit_code):
    stand_in(f"if words['device'] == 'cpu': sys.exit({code})")
    with pytest.raises(error, match=what) as caught:
        predict(tmp_path, Told())
    assert caught.value.exit_code == exit_code
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["2_2"]


def test_faults_of_images_do_not_hide_another_failure():
    ends = [FoldEnd(1, "a", 3, 1.0), FoldEnd(2, "b", -9, 1.0)]
    with pytest.raises(AutosegError, match=r"shard 2/2: killed by SIGKILL") as caught:
        several_devices._require_success(ends, [Shard(1, 2), Shard(2, 2)])
    assert caught.value.exit_code == 1
    several_devices._require_success([FoldEnd(1, "a", 0, 1.0)], [Shard(1, 1)])


@pytest.mark.thorough
def test_a_signal_is_passed_on_and_the_command_that_resumes_is_known(stand_in, tmp_path):
    stand_in(
        "import signal; signal.signal(signal.SIGTERM, lambda *_: sys.exit(75)); print('ready', flush=True); "
        "time.sleep(60)"
    )
    told = Told()
    ready = iter((lambda: None, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    for part in ("1/2", "2/2"):
        told.when(f"shard {part}  ready", lambda: next(ready)())
    with pytest.raises(Stopped, match="stopped by SIGTERM") as caught:
        predict(tmp_path, told)
    assert caught.value.resumed_with == ("--resume",)
    assert not any((tmp_path / "out").iterdir())
