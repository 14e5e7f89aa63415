"""--json: one document on stdout and nothing else, for results and for errors, with the same exit codes."""

import json
import math
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from autoseg import cli
from autoseg.cli import main
from autoseg.commands.answers import Answer, Outcome, as_json
from autoseg.commands.parser import COMMANDS, build_parser
from autoseg.errors import DataError, Interrupted, Misuse
from exported import scored, workspace_of
from files import nifti
from phantom import tiny_dataset

TAKE_IT = (
    *("check", "plan", "evaluate", "compare", "learning-curve", "report", "predict", "rank", "export", "info"),
    *("status", "env", "floor"),
)


@dataclass(frozen=True)
class Record:
    path: Path
    values: tuple[float, ...]
    by_fold: dict[object, set[str]]


def answered(capsys, *arguments: object) -> tuple[int, dict, str]:
    """Exit code, document, and what was printed for people."""
    code = main([str(argument) for argument in (*arguments, "--json")])
    said = capsys.readouterr()
    document = json.loads(said.out)
    assert document["exit_code"] == code
    return code, document, said.err


def test_records_become_plain_data():
    record = Record(Path("a/b"), (1.5, math.nan, math.inf), {0: {"b", "a"}, "full": set()})
    assert as_json(record) == {"path": "a/b", "values": [1.5, None, None], "by_fold": {"0": ["a", "b"], "full": []}}
    assert as_json([np.int64(3), np.float32(0.5), True, None, "x"]) == [3, 0.5, True, None, "x"]
    with pytest.raises(TypeError, match="object"):
        as_json(object())


def test_every_command_that_reports_takes_it():
    parser = build_parser()
    positional = {
        "check": ["d"],
        "plan": ["d"],
        "info": ["p"],
        "compare": ["a", "b"],
        "predict": ["-i", "a", "-o", "b"],
    }
    for command in COMMANDS:
        try:
            options = parser.parse_args([command, *positional.get(command, []), "--json"])
        except Misuse:
            assert command not in TAKE_IT
        else:
            assert command in TAKE_IT
            assert options.json is True


@pytest.mark.thorough
def test_check_plan_and_status(tmp_path, capsys, in_this_process):
    dataset = tiny_dataset(tmp_path / "data", cases=5)
    code, document, said = answered(capsys, "check", dataset)
    assert (code, document["command"], "error" in document) == (0, "check", False)
    assert [case["id"] for case in document["result"]["dataset"]["cases"]] == [f"case_0{i}" for i in range(5)]
    assert "5 cases of 5 patients" in said
    code, document, _ = answered(capsys, "status", "-w", tmp_path / "w")
    assert document["result"]["dataset"] is None
    code, document, said = answered(
        capsys, "plan", dataset, "-w", tmp_path / "w", "--no-preprocess", "--cpu-rate", "reference"
    )
    assert code == 0
    assert document["result"]["recommended"] in document["result"]["configurations"]
    assert "next: autoseg train" in said
    code, document, _ = answered(capsys, "status", "-w", tmp_path / "w")
    result = document["result"]
    assert (code, result["cases"], result["folds"]) == (0, 5, 5)
    assert result["next"].startswith("autoseg train")
    assert [fold["state"] for fold in result["models"][0]["folds"]] == ["not trained"] * 5


def test_a_dataset_with_faults_has_a_result_and_code_3(tmp_path, capsys, in_this_process):
    dataset = tiny_dataset(tmp_path / "data", cases=5)
    next((dataset / "labelsTr").iterdir()).write_bytes(b"no image")
    code, document, _ = answered(capsys, "check", dataset)
    assert code == 3
    assert "error" not in document
    assert [problem["severity"] for problem in document["result"]["problems"]].count("error") == 1


def test_evaluate_predict_info_and_env(tmp_path, capsys, in_this_process):
    workspace = workspace_of(tmp_path / "w")
    scored(workspace)
    image = np.random.default_rng(0).integers(0, 200, (12, 20, 24)).astype(np.int16)
    nifti(tmp_path / "images/a.nii", image, np.diag([-1.0, -1, 2, 1]))
    predict = ("predict", "-i", tmp_path / "images", "-o", tmp_path / "out", "-w", workspace.root, "--device", "cpu")
    code, document, said = answered(capsys, *predict)
    assert (code, document["result"]) == (0, {"files": [str(tmp_path / "out/a.nii")], "failed": []})
    assert "1 segmentations in" in said
    (tmp_path / "images/b.nii").write_bytes(b"torn")
    code, document, _ = answered(capsys, *predict)
    assert code == 3
    assert document["error"]["kind"] == "PartlySegmented"
    assert [problem["file"] for problem in document["result"]["failed"]] == [str(tmp_path / "images/b.nii")]
    assert document["result"]["files"] == [str(tmp_path / "out/a.nii")]
    evaluate = ("evaluate", "--predictions", tmp_path / "out", "--references", tmp_path / "out", "--labels", "a=1,b=2")
    code, document, _ = answered(capsys, *evaluate, "--workers", 0)
    assert document["result"]["cases"][0]["case"] == "a"
    code, document, _ = answered(capsys, "info", workspace.root)
    assert document["result"]["kind"] == "workspace"
    code, document, said = answered(capsys, "env")
    assert document["result"]["libraries"]["numpy"] == np.__version__
    assert "autoseg " in said


def test_errors_of_a_user(tmp_path, capsys):
    code, document, said = answered(capsys, "predict", "-i", "a", "-o", "b", "-w", tmp_path)
    assert code == 4
    assert document["command"] == "predict"
    assert document["error"]["kind"] == "StateError"
    assert "plan.json does not exist" in document["error"]["what"]
    assert f"-w {tmp_path}" in document["error"]["remedy"]
    assert said.startswith("error: ")


@pytest.mark.parametrize(
    ("arguments", "command", "what"),
    [
        (["status", "--fast"], "status", "unrecognized arguments: --fast"), (["statsu"], None, "invalid choice"),
        (["predict", "-i", "a"], "predict", "-o/--out"), (["train"], "train", "unrecognized arguments: --json"),
        ([], None, "COMMAND"),
    ],
)  # fmt: skip
def test_command_lines_that_cannot_be_parsed(capsys, arguments, command, what):
    code, document, said = answered(capsys, *arguments)
    assert (code, document["command"], document["error"]["kind"]) == (2, command, "UsageError")
    assert what in document["error"]["what"]
    assert "usage: autoseg" in said
    with pytest.raises(SystemExit, match="2"):  # without --json as ever
        main(["statsu"])


@pytest.mark.parametrize(
    ("error", "code", "kind"),
    [
        (Interrupted("stopped"), 130, "Interrupted"), (KeyboardInterrupt(), 130, "KeyboardInterrupt"),
        (MemoryError("no memory"), 6, "OutOfMemory"), (DataError("bad", remedy="fix it"), 3, "DataError"),
    ],
)  # fmt: skip
def test_other_ends(capsys, monkeypatch, error, code, kind):
    def fail(options):
        print("noise")
        raise error

    monkeypatch.setitem(cli.RUN, "status", fail)
    found, document, said = answered(capsys, "status")
    assert (found, document["error"]["kind"]) == (code, kind)
    assert "noise" in said


def test_a_bug_has_a_document_and_a_traceback(capsys, monkeypatch):
    monkeypatch.setitem(cli.RUN, "status", lambda options: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        main(["status", "--json"])
    assert json.loads(capsys.readouterr().out)["error"]["kind"] == "ZeroDivisionError"


def test_a_record_with_surrogates_is_printed():
    text = Outcome("check", 0, Answer("\udcff").result).document()
    assert json.loads(text)["result"] == "\udcff"


NOISY = """
import os, subprocess, sys
from autoseg import cli
from autoseg.commands.answers import Answer

def noisy(options):
    print("printed")
    os.write(1, b"written\\n")
    subprocess.run([sys.executable, "-c", "print('by another process')"])
    return Answer({"a": "ä"})

cli.RUN["status"] = noisy
sys.exit(cli.main(["status", "--json"]))
"""


def test_nothing_else_is_on_stdout_whoever_prints_it():
    done = subprocess.run([sys.executable, "-c", NOISY], capture_output=True)
    assert json.loads(done.stdout) == {"command": "status", "exit_code": 0, "result": {"a": "ä"}}
    for text in (b"printed", b"written", b"by another process"):
        assert text in done.stderr


def test_a_workspace_without_its_option_is_recognised(tmp_path, capsys):
    with pytest.raises(Misuse):
        main(["status", str(tmp_path)])
    assert f"-w {tmp_path}" in capsys.readouterr().err
    with pytest.raises(Misuse):
        main(["status", str(tmp_path / "missing")])
    assert "in front of it" not in capsys.readouterr().err
    with pytest.raises(Misuse):
        main(["env", str(tmp_path)])  # a command that has no workspace
    assert "in front of it" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (["statsu"], "status"), (["learning-curves"], "learning-curve"),
        (["train", "--time-bugdet", "5m"], "--time-budget"), (["train", "--epoch=3"], "--epochs"),
        (["evaluate", "--choose", "modle"], "model"), (["zzz"], ""), (["train", "-q"], ""),
        (["compare", "a", "b", "c"], ""),
    ],
)  # fmt: skip
def test_what_was_probably_meant_is_named(typed, meant, capsys):
    with pytest.raises(Misuse) as caught:
        main(typed)
    assert caught.value.remedy.startswith(f"did you mean {meant}? autoseg ") == bool(meant)
    assert (f"  -> did you mean {meant}?\n" in capsys.readouterr().err) == bool(meant)
