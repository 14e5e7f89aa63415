"""The command line: what can be typed, what is refused, and with which exit code."""

import argparse
import importlib
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import autoseg
from autoseg import __version__, cli, environment
from autoseg.cli import main
from autoseg.commands import status
from autoseg.commands.arguments import duration, parse_folds, positive, share, tolerances
from autoseg.commands.check import DatasetReport
from autoseg.commands.evaluate import ScoringOptions
from autoseg.commands.folds import TrainOptions
from autoseg.commands.parser import build_parser
from autoseg.commands.plan import PlanOptions
from autoseg.commands.predict import PredictOptions
from autoseg.datasets.dataset import IntakeOptions, Problem
from autoseg.datasets.splits import Split, Splits
from autoseg.errors import AutosegError, Interrupted, OutOfMemory, Stopped, UsageError
from autoseg.messages import DEFAULT_WORKSPACE
from autoseg.planning.planner import make_plan
from autoseg.records import save
from autoseg.training.history import EpochRow, write_history
from autoseg.workspace import Workspace
from files import nifti
from phantom import tiny_dataset
from synthetic_fingerprints import label_set, uniform
from synthetic_memory import ElementMemory

ROOT = Path(__file__).parents[1]
COMMANDS = (
    "demo", "check", "plan", "floor", "train", "evaluate", "compare", "learning-curve", "report", "predict", "refine",
    "serve", "rank", "export", "info", "import-nnunet", "status", "calibrate", "env",
)  # fmt: skip


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


# ---- single values


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90), ("90", 90), ("10m", 600), ("2h", 7200), ("1h30m", 5400), ("1h30m15s", 5415), ("2h5", 7205),
        ("1.5h", 5400), ("0.5m", 30), ("0.5", 0.5), (" 25s ", 25), ("0h2m", 120), ("2d", 172800), ("1d2h3m4s", 93784),
    ],
)  # fmt: skip
def test_durations(text, seconds):
    assert duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", " ", "s", "h", "0", "0s", "0h0m", "-5s", "5 m", "10min", "1m2h", "1h1d", "1e3", "inf", "nan", "1h2h"]
)
def test_what_is_no_duration(text):
    with pytest.raises(argparse.ArgumentTypeError, match="10m"):
        duration(text)


@pytest.mark.parametrize(
    ("text", "folds"),
    [
        ("all", None), (" all ", None), ("0", (0,)), ("0,2", (0, 2)), ("0 2", (0, 2)), ("0, 2", (0, 2)),
        ("0..4", (0, 1, 2, 3, 4)), ("3..3", (3,)), ("2,0", (2, 0)), ("1,0..2,2", (1, 0, 2)), ("12", (12,)),
    ],
)  # fmt: skip
def test_folds(text, folds):
    assert parse_folds(text) == folds


@pytest.mark.parametrize("text", ["", "x", "0-4", "0:4", "-1", "1.5", "0..", "..4", "0,all", "4..0", "²", "0...4"])
def test_what_names_no_folds(text):
    with pytest.raises(UsageError, match="names no folds"):
        parse_folds(text)


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (positive, {"1": 1, "60": 60}, ["0", "-1", "1.5", "", "x", "1e3"]),
        (share, {"1": 1, "0.5": 0.5, "1e-3": 0.001}, ["0", "-0.5", "1.01", "nan", "inf", "", "x"]),
        (
            tolerances,
            {"2": {"all": 2}, "a=2, b.c=0.5": {"a": 2, "b.c": 0.5}, "3,a=2": {"all": 3, "a": 2}},
            ["", "0", "-1", "a=", "=2", "a=x", "a=1,a=2", "1,2", "a=nan", "a=inf", "a"],
        ),
    ],
)
def test_numbers(kind, good, bad):
    assert {text: kind(text) for text in good} == good
    for text in bad:
        with pytest.raises((argparse.ArgumentTypeError, ValueError)):
            kind(text)


# ---- what a command passes on


@pytest.fixture
def called(monkeypatch) -> list:
    """Instead of working, the pipeline writes down how it was called."""
    calls: list = []
    for module, name in (
        ("commands.plan", "plan_dataset"),
        ("commands.train", "train_folds"),
        ("commands.evaluate", "cross_validate"),
        ("commands.evaluate", "evaluate_folders"),
        ("commands.predict", "predict_images"),
        ("demo.run", "run"),
    ):
        monkeypatch.setattr(f"autoseg.{module}.{name}", lambda *a, name=name, **k: calls.append((name, a, k)))
    return calls


def test_train_passes_everything_on(called):
    assert run(
        "train", "-w", "w", "-f", "0..1", "4", "-c", "2d", "--network", "swin_unet", "--time-budget", "1h30m",
        "--device", "cuda:1", "--restart", "--set", "training.seed=1", "--set", "training.loss=dice_ce", "--no-report",
    ) == 0  # fmt: skip
    options = TrainOptions(
        folds=(0, 1, 4), configuration="2d", network="swin_unet", epochs=None, time_budget_seconds=5400,
        device="cuda:1", restart=True, settings=("training.seed=1", "training.loss=dice_ce"), report=False,
    )  # fmt: skip
    assert called == [("train_folds", (Workspace(Path("w")), options), {})]


def test_what_train_does_unasked(called):
    assert run("train") == run("train", "-f", "all") == 0
    assert called == [("train_folds", (Workspace(Path("autoseg_workspace")), TrainOptions()), {})] * 2
    assert run("train", "--epochs", 3) == 0
    assert called[2][1][1] == TrainOptions(epochs=3)


def test_plan_passes_everything_on(called):
    assert run(
        "plan", "data", "-w", "w", "-c", "2d,3d_fullres", "--vram", 8, "--rules", "nnunet", "--no-preprocess",
        "--set", "training.seed=1", "--channels", "CT", "--labels", "liver=1,tumour=2", "--regions", "whole=1+2,core=2",
        "--ignore", 255, "--patient-regex", "(p.)", "--skip-bad", "--workers", 3, "--explain", "--time-budget", "2h",
        "--cpu-rate", "0.5",
    ) == 0  # fmt: skip
    ((name, (root, workspace, options), _),) = called
    assert (name, root, workspace) == ("plan_dataset", Path("data"), Workspace(Path("w")))
    assert options == PlanOptions(
        intake=IntakeOptions(
            channels=("CT",), labels={"liver": 1, "tumour": 2}, regions={"whole": (1, 2), "core": (2,)}, ignore=255,
            patient_regex="(p.)",
        ),
        rules="nnunet", vram_gb=8, configurations=("2d", "3d_fullres"), skip_bad=True, settings=("training.seed=1",),
        workers=3, preprocess=False, explain=True, time_budget_seconds=7200.0, cpu_rate=0.5,
    )  # fmt: skip
    assert run("plan", "data") == 0
    assert called[1][1][2] == PlanOptions()


def test_check_ends_with_3_where_there_is_an_error(monkeypatch):
    problem = Problem("a", "a.nii", "is damaged", "repair it")
    for problems, code in (((), 0), ((replace(problem, severity="warning"),), 0), ((problem,), 3)):
        report = DatasetReport(None, problems)
        monkeypatch.setattr("autoseg.commands.check.check_dataset", lambda *_, report=report, **__: report)
        assert run("check", "data") == code


def test_predict_passes_everything_on(called):
    assert run("predict", "-i", "a", "b", "-o", "out", "-w", "w") == 0
    assert run(
        "predict", "-i", "a", "-o", "out", "-c", "2d", "-f", "0,2", "--device", "cpu", "--step", 0.25, "--no-mirroring",
        "--tile", 1.5,
    ) == 0  # fmt: skip
    paths = (Workspace(Path("w")), [Path("a"), Path("b")], Path("out"))
    assert called[0] == ("predict_images", (*paths, PredictOptions()), {})
    assert called[1][1][3] == PredictOptions(
        configuration="2d", folds=(0, 2), device="cpu", step=0.25, mirroring=False, tile=1.5
    )
    assert run("predict", "-i", "a", "-o", "out", "-m", "3d_fullres-unet", "2d-swin_unet", "--unfinished") == 0
    assert called[2][1][3] == PredictOptions(models=("3d_fullres-unet", "2d-swin_unet"), unfinished=True)
    assert run("predict", "-i", "a", "-o", "out", "--network", "swin_unet") == 0
    assert called[3][1][3] == PredictOptions(network="swin_unet")


def test_evaluate_has_two_tasks(called):
    typed = ("evaluate", "-w", "w", "-c", "2d", "--network", "swin_unet", "--csv", "s.csv", "--workers", 2)
    assert run(*typed, "--no-report", "--poor", 0.3) == 0
    assert run(
        "evaluate", "--predictions", "p", "--references", "r", "--labels", "liver=1", "--tolerance", "3,liver=2",
        "--tubes", "vessel,airway",
    ) == 0  # fmt: skip
    chosen = ScoringOptions("swin_unet", csv=Path("s.csv"), poor=0.3, workers=2, report=False)
    assert called == [
        (
            "cross_validate",
            (Workspace(Path("w")), "2d", chosen),
            {},
        ),
        (
            "evaluate_folders",
            (Path("p"), Path("r"), Workspace(Path("autoseg_workspace"))),
            {
                "intake": IntakeOptions(labels={"liver": 1}),
                "csv": None,
                "workers": None,
                "measures": ({"all": 3.0, "liver": 2.0}, "vessel,airway"),
                "model": None,
            },
        ),
    ]


# ---- what is refused


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["paint"],
        ["train", "--epochs", "0"],
        ["train", "--epochs", "3", "--time-budget", "1h"],
        ["train", "--time-budget", "soon"],
        ["train", "--time", "1h"],  # no abbreviations: they would change their meaning with every new option
        ["plan"],
        ["plan", "data", "--rules", "mine"],
        ["plan", "data", "--cpu-rate", "fast"],
        ["plan", "data", "--cpu-rate", "0"],
        ["predict", "-o", "out"],
        ["predict", "-i", "a"],
        ["predict", "-i", "a", "-o", "out", "--step", "0"],
        ["predict", "-i", "a", "-o", "out", "--step", "1.5"],
        ["status", "--device", "cpu"],
    ],
    ids=" ".join,
)
def test_what_the_parser_refuses(arguments, called, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: autoseg" in capsys.readouterr().err
    assert called == []


def test_wrong_usage_ends_with_2(tmp_path, capsys):
    assert run("train", "-f", "4..0", "-w", tmp_path) == 2
    assert capsys.readouterr().err == "error: -f '4..0' names no folds\n  -> write 0, 0,2, 0..4, all or full\n"
    assert run("evaluate", "--predictions", tmp_path) == 2
    assert run("evaluate", "--references", tmp_path) == 2
    assert run("plan", tmp_path / "nowhere", "-w", tmp_path / "w") == 2
    assert run("predict", "-i", tmp_path, "-o", tmp_path, "-w", planned(tmp_path)) == 2  # no image there


def planned(folder: Path) -> Path:
    """A workspace where a plan was made, and nothing more."""
    workspace = Workspace(folder / "planned")
    labels = label_set(3)
    found = uniform((2.0, 1.0, 1.0), (12, 20, 24), 4, labels)
    made = make_plan(dataset="tiny", channels=("MR",), labels=labels, fingerprint=found, memory=ElementMemory())
    save(workspace.plan, made)
    folds = tuple(Split(fold, tuple("abcd".replace("abcd"[fold], "")), ("abcd"[fold],)) for fold in range(4))
    save(workspace.splits, Splits(1, 1234, folds, (), ()))
    return workspace.root


def test_bad_data_end_with_3(tmp_path, capsys):
    dataset = tiny_dataset(tmp_path / "data", cases=2)
    assert run("check", dataset, "--workers", 0) == 0
    capsys.readouterr()
    nifti(dataset / "labelsTr" / "case_01.nii.gz", np.zeros((2, 2, 2), np.uint8))
    assert run("check", dataset, "--workers", 0) == 3
    assert "case_01" in capsys.readouterr().out
    assert run("plan", dataset, "-w", tmp_path / "w", "--workers", 0) == 3
    assert not (tmp_path / "w" / "plan.json").exists()
    assert run("plan", tmp_path / "w", "-w", tmp_path / "other") == 3  # a folder without a dataset
    (tmp_path / "empty").mkdir()
    for pair in (("empty", "nowhere"), ("nowhere", "empty")):
        predictions, references = (tmp_path / name for name in pair)
        code = run("evaluate", "--predictions", predictions, "--references", references, "-w", tmp_path / "none")
        assert code == 3


@pytest.mark.parametrize("command", [["train"], ["evaluate"], ["predict", "-i", "x", "-o", "out"]], ids=lambda c: c[0])
def test_a_missing_workspace_ends_with_4(command, tmp_path, capsys):
    assert run(*command, "-w", tmp_path / "none") == 4
    told = capsys.readouterr().err
    assert str(tmp_path / "none") in told
    assert "autoseg plan DATASET" in told
    assert not (tmp_path / "none").exists()


def test_an_untrained_model_ends_with_4(tmp_path, capsys):
    nifti(tmp_path / "image.nii.gz")
    assert run("predict", "-i", tmp_path / "image.nii.gz", "-o", tmp_path / "out", "-w", planned(tmp_path)) == 4
    assert "autoseg train" in capsys.readouterr().err


@pytest.mark.thorough
def test_an_unknown_configuration_ends_with_4(tmp_path, capsys):
    dataset = tiny_dataset(tmp_path / "data", cases=2)
    assert run("plan", dataset, "-w", tmp_path / "w", "-c", "4d", "--workers", 0) == 4
    assert "it has: 2d, 3d_fullres" in capsys.readouterr().err


def test_a_file_that_cannot_be_written_ends_with_5(tmp_path):
    nifti(tmp_path / "labels" / "a.nii", np.ones((1, 2, 2), np.uint8))
    (tmp_path / "file").touch()
    code = run(
        "evaluate", "--predictions", tmp_path / "labels", "--references", tmp_path / "labels", "--workers", 0,
        "-w", tmp_path / "none", "--csv", tmp_path / "file" / "scores.csv",
    )  # fmt: skip
    assert code == 5


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OutOfMemory("the memory is full", remedy="buy some"), 6),
        (AutosegError("something else"), 2),
        (KeyboardInterrupt(), 130),
    ],
)
def test_other_exit_codes(error, code, monkeypatch, capsys):
    def fail(_):
        raise error

    monkeypatch.setattr(status, "status_of", fail)
    assert run("status") == code
    told = capsys.readouterr()
    assert told.out == ""
    if isinstance(error, AutosegError):
        assert told.err == f"error: {error}\n"


@pytest.mark.parametrize(("error", "code"), [(Stopped("stopped by SIGTERM"), 75), (Interrupted("Ctrl-C"), 130)])
def test_what_was_stopped_says_how_to_go_on(error, code, monkeypatch, capsys):
    def fail(*_):
        raise error

    monkeypatch.setattr("autoseg.commands.train.train_folds", fail)
    assert run("train", "-f", "0,1", "--epochs", 3, "--restart", "-w", "my folder") == code
    assert capsys.readouterr().err == f"{error}\n  -> resume with: autoseg train -f 0,1 --epochs 3 -w 'my folder'\n"


def test_a_restart_that_was_stopped_before_it_began_is_still_due(monkeypatch, capsys):
    stopped = Stopped("stopped by SIGTERM")
    stopped.restart_due = True
    monkeypatch.setattr("autoseg.commands.train.train_folds", lambda *_: (_ for _ in ()).throw(stopped))
    assert run("train", "-f", "0", "--restart") == 75
    assert "resume with: autoseg train -f 0 --restart\n" in capsys.readouterr().err


def test_a_fault_of_the_code_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(status, "status_of", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run("status")


# ---- the parser as a whole, in a process of its own


def python(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True)


def test_help_lists_every_command_and_loads_no_torch():
    code = "import sys, autoseg.cli as c\ntry: c.main(['--help'])\nfinally: print(*sys.modules, file=sys.stderr)"
    result = python("-c", code)
    assert result.returncode == 0, result.stderr
    listed = {line.split()[0] for line in result.stdout.splitlines() if line.startswith("    ") and line[4] != " "}
    assert listed == set(COMMANDS)
    loaded = set(result.stderr.split())
    assert "autoseg.cli" in loaded
    assert not loaded & {
        "torch",
        "numpy",
        "scipy",
        "SimpleITK",
        "nibabel",
        "tqdm",
        "psutil",
        "autoseg.datasets.dataset",
    }


@pytest.mark.thorough
def test_python_m_autoseg_is_autoseg():
    result = python("-m", "autoseg", "--version")
    assert (result.returncode, result.stdout) == (0, f"autoseg {__version__}\n")
    assert python("-m", "autoseg", "train", "-f", "x").returncode == 2


def test_every_command_explains_its_options():
    parser = build_parser()
    (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    assert tuple(commands.choices) == COMMANDS
    for name, command in commands.choices.items():
        for action in command._actions:
            assert action.help, f"autoseg {name} {action.dest}"
            if action.default not in (None, False, [], argparse.SUPPRESS):
                assert "default" in action.help, f"autoseg {name} {action.dest} has a default that it does not tell"


def test_a_closed_pipe_is_no_error(monkeypatch):
    """`autoseg status | head -1`: the reader has gone, and nobody wants to hear of it."""

    def gone(_):
        raise BrokenPipeError

    monkeypatch.setattr(status, "status_of", gone)
    reading, writing = os.pipe()
    with open(writing, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert run("status") == 0
        stream.write("goes nowhere")
    assert os.read(reading, 100) == b""
    os.close(reading)


# ---- status


def row_of(epoch: int, dice: tuple[float | None, ...]) -> EpochRow:
    """A row after 5 steps an epoch."""
    return EpochRow(
        epoch=epoch, step=5 * epoch, seconds=1.0, loss=0.5, training_dice=dice, validation_loss=0.5, pseudo_dice=dice,
        learning_rate=0.01, skipped=0, progress=0.5,
    )  # fmt: skip


def test_status_says_where_a_workspace_stands(tmp_path, capsys):
    assert run("status", "-w", tmp_path / "none") == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"next: autoseg plan DATASET -w {tmp_path / 'none'}"
    root = planned(tmp_path)
    workspace = Workspace(root)
    for fold, validated in ((0, True), (1, False)):
        folder = workspace.fold("3d_fullres", "unet", fold)
        (folder / "validation").mkdir(parents=True)
        (folder / "validation" / ".b.part").touch()
        write_history(folder, [row_of(1, (0.0, 0.0)), row_of(2, (0.5, None))])
        if validated:
            (folder / "validation" / "a.nii.gz").touch()
    assert run("status", "-w", root) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{root}: tiny, 4 cases, 4 folds, planned for cpu"
    start = lines.index("3d_fullres-unet (recommended)")
    assert lines[start + 1 : start + 4] == [
        "  fold 0: epoch 2, step 10, pseudo Dice 0.500; trained and validated",
        "  fold 1: epoch 2, step 10, pseudo Dice 0.500; 0 of 1 validation cases predicted",
        "  fold 2: not trained",
    ]
    assert lines[-1] == f"next: autoseg train -f 1,2,3 -w {root}"
    assert parse_folds(" ".join(build_parser().parse_args(lines[-1].split()[2:]).folds)) == (1, 2, 3)
    for fold in range(4):
        folder = workspace.fold("3d_fullres", "unet", fold)
        (folder / "validation").mkdir(parents=True, exist_ok=True)
        write_history(folder, [row_of(2, (None, None))])
        (folder / "validation" / "a.nii.gz").touch()
    assert status.status(workspace).splitlines()[-1] == f"next: autoseg evaluate -w {root}"
    workspace.crossval("3d_fullres", "unet").write_text("{}")
    assert "next: autoseg predict" in status.status(workspace).splitlines()[-1]
    later = workspace.crossval("3d_fullres", "unet").stat().st_mtime + 60
    os.utime(folder / "validation" / "a.nii.gz", (later, later))  # segmented again since it was scored
    assert status.status(workspace).splitlines()[-1] == f"next: autoseg evaluate -w {root}"


def test_env_names_versions_and_memory(capsys):
    assert run("env") == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"autoseg {__version__}, Python {sys.version_info.major}.{sys.version_info.minor}")
    for library in ("torch", "numpy", "SimpleITK", "batchgenerators"):
        assert f"\n  {library} " in shown
    assert "is not installed" not in shown
    assert "GiB free" in shown


def test_the_default_workspace_is_not_committed():
    ignored = (ROOT / ".gitignore").read_text().split()
    assert f"{DEFAULT_WORKSPACE}/" in ignored


@pytest.mark.parametrize(
    "error",
    [MemoryError("600 GB"), torch.OutOfMemoryError("600 GB"), RuntimeError("CUDNN_STATUS_ALLOC_FAILED, 600 GB")],
)
def test_memory_that_runs_out_has_an_exit_code_of_its_own(error, monkeypatch, capsys):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(environment, "environment", fail)
    assert cli.main(["env"]) == 6
    assert "600 GB" in capsys.readouterr().err


def test_other_errors_keep_their_traceback(monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("a bug")

    monkeypatch.setattr(environment, "environment", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        cli.main(["env"])


@pytest.mark.thorough
def test_the_python_interface_is_what_the_commands_call_loaded_late():
    for name, module in autoseg.PUBLIC.items():
        assert getattr(autoseg, name) is getattr(importlib.import_module(module), name)
        assert name in dir(autoseg)
    with pytest.raises(AttributeError, match=r"plan_datasets.*plan_dataset"):
        autoseg.plan_datasets  # noqa: B018
    code = "import sys, autoseg, autoseg.nn.networks.unet; sys.exit('autoseg.datasets' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_what_calibrate_measures_is_what_later_plans_count_on(monkeypatch, tmp_path, capsys):
    from autoseg.nn import rate
    from autoseg.nn.memory import calibration

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert not calibration.load_terms("cpu").measured
    name = calibration.device_name(torch.device("cpu"))
    terms = replace(calibration.DEFAULT_TERMS, device=name, measured=True, workspace_bytes=123, flops_per_second=1e9)
    monkeypatch.setattr(calibration, "calibrate", lambda device: terms)
    found = rate.CpuRate(2e11, 3e11, "float32", name, torch.__version__, calibrated=True)
    monkeypatch.setattr(rate, "calibrate_rate", lambda: found)
    assert run("calibrate", "--device", "cpu") == 0
    assert str(tmp_path / "autoseg" / "calibration.json") in capsys.readouterr().out
    assert calibration.load_terms("cpu") == terms
    assert rate.known_rate() == found
    monkeypatch.setattr(calibration, "TRIALS", {"cuda": ()})
    assert run("calibrate", "--device", "cpu") == 2
    assert "--vram" in capsys.readouterr().err
