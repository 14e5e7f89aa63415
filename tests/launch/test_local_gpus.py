"""Folds side by side, with stand-ins for GPUs and trainings: who begins when and where, what is passed on and told."""

import os
import signal
import subprocess
import sys
import time
import types
import typing
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import psutil
import pytest

from autoseg.cli import main
from autoseg.commands.folds import TrainOptions
from autoseg.errors import AutosegError, Interrupted, Stopped, UsageError
from autoseg.launch import local_gpus
from autoseg.launch.jobs import (
    folds_text,
    train_arguments,
)
from autoseg.launch.local_gpus import FoldEnd, FoldJob, choose_gpus, fold_command, run_folds, share_cores
from autoseg.lines import shown_by
from autoseg.stopping import StopSignals
from autoseg.training.history import EpochRow, write_history
from autoseg.workspace import FULL, FoldName, Workspace
from fleets import Told, with_gpus

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="folds side by side need Linux")


# ---- the command of a fold


@pytest.fixture
def parsed(monkeypatch) -> Callable[[list[str]], tuple[Workspace, TrainOptions]]:
    """What a command line makes `autoseg train` do: its workspace and its options."""
    seen = []
    for name in ("commands.train.train_folds", "launch.local_gpus.train_on_gpus"):
        monkeypatch.setattr(f"autoseg.{name}", lambda workspace, options, *_: seen.append((workspace, options)))

    def parse(arguments: list[str]) -> tuple[Workspace, TrainOptions]:
        assert main(arguments) == 0
        return seen.pop()

    return parse


def other_than(field) -> object:
    """A value of a field's type that is not its default."""
    kind = typing.get_type_hints(TrainOptions)[field.name]
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        (kind,) = (choice for choice in typing.get_args(kind) if choice is not type(None))
    values = {
        int: 7, float: 95.5, str: "cuda:1", Path: Path("some where/last.pt"), bool: not field.default,
        tuple[FoldName, ...]: (0, 2, FULL), tuple[str, ...]: ("training.class_weights=[1, 2]", "training.seed=-1"),
    }  # fmt: skip
    return values[kind]


@pytest.mark.parametrize("field", fields(TrainOptions), ids=lambda field: field.name)
def test_every_option_is_carried_over_to_the_command_of_a_fold(field, parsed):
    workspace, options = Workspace(Path("a workspace")), replace(TrainOptions(), **{field.name: other_than(field)})
    assert options != TrainOptions()
    assert parsed(train_arguments(workspace, options)) == (workspace, options)


def test_a_child_is_told_what_its_parent_was(parsed):
    typed = (
        "train -w w -f 0..4 -c 3d_lowres --time-budget 1h --restart --stop-after 2h --set training.seed=3 --gpus 0,2"
        " --no-report"
    )
    workspace, options = parsed(typed.split())
    assert options.folds == (0, 1, 2, 3, 4)
    command = fold_command(workspace, options, 3)
    assert command[:3] == [sys.executable, "-m", "autoseg"]
    # the time of the whole command is kept by the parent; the one GPU that a child sees must be used
    assert parsed(command[3:]) == (workspace, replace(options, folds=(3,), device="cuda", stop_after_seconds=None))


def test_an_option_at_its_default_is_not_repeated():
    assert train_arguments(Workspace(Path("w")), TrainOptions()) == ["train", "--workspace=w"]


@pytest.mark.parametrize(
    ("folds", "text"),
    [
        ((2,), "2"),
        ((0, 1), "0,1"),
        ((0, 1, 2), "0..2"),
        ((0, 2, 3), "0,2,3"),
        ((2, 1, 0), "2,1,0"),
        ((FULL,), "full"),
        ((0, 1, FULL), "0,1,full"),
    ],
)
def test_folds_are_written_as_they_are_typed(folds, text):
    assert folds_text(folds) == text


def row(epoch: int, pseudo_dice: tuple[float | None, ...] | None) -> EpochRow:
    return EpochRow(
        epoch=epoch, step=epoch, seconds=1.0, loss=0.5, training_dice=(0.5,), pseudo_dice=pseudo_dice,
        learning_rate=0.01, skipped=0, progress=0.5,
    )  # fmt: skip


def test_the_model_of_all_cases_is_a_fold_of_the_fleet(tmp_path):
    options = TrainOptions(configuration="2d", folds=(FULL,), epochs=2)
    assert "--folds=full" in fold_command(Workspace(tmp_path), options, FULL)
    write_history(tmp_path / "fold_full", [row(2, None)])
    assert local_gpus.table([FoldEnd(FULL, "0", 0, 61.0)], tmp_path).splitlines()[1].split() == [
        "full", "0", "1m01s", "2", "-", "trained",
    ]  # fmt: skip


# ---- which GPUs


@pytest.mark.parametrize(
    ("count", "visible", "asked", "chosen"),
    [
        (4, None, "all", ["0", "1", "2", "3"]),
        (4, None, "2,0", ["2", "0"]),
        (4, None, "1,1", ["1"]),
        (2, "5,3", "all", ["5", "3"]),
        (2, "5,3", "1", ["3"]),  # counted among those that may be seen
        (1, "5,9", "all", ["5"]),  # 9 does not exist
        (2, "GPU-a, GPU-b", "0,1", ["GPU-a", "GPU-b"]),
    ],
)
def test_gpus_are_found_among_the_visible_ones(monkeypatch, count, visible, asked, chosen):
    with_gpus(monkeypatch, count, visible)
    assert choose_gpus(asked) == choose_gpus(asked, "cuda") == chosen


@pytest.mark.parametrize(
    ("count", "visible", "asked", "device", "message"),
    [
        (0, None, "all", "auto", "there is no CUDA device\n.*omit --gpus"),
        (0, "", "all", "auto", "CUDA_VISIBLE_DEVICES"),
        (2, None, "2", "auto", "no GPU 2\n.*0 to 1"),
        (2, None, "0..1", "auto", "names no GPUs"),
        (2, None, "", "auto", "names no GPUs"),
        (2, None, "all", "cpu", "--device cpu exclude each other"),
        (2, None, "all", "cuda:1", "--device cuda:1 exclude each other"),
    ],
)
def test_gpus_that_cannot_be_had_are_refused(monkeypatch, count, visible, asked, device, message):
    with_gpus(monkeypatch, count, visible)
    with pytest.raises(UsageError, match=message):
        choose_gpus(asked, device)


def test_the_command_line_says_that_there_is_no_gpu(monkeypatch, tmp_path, capsys):
    with_gpus(monkeypatch, 0, None)
    assert main(["train", "--gpus", "all", "-w", str(tmp_path)]) == 2
    assert "there is no CUDA device" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["train", "--gpus", "all", "--slurm", "partition=gpu"])
    assert "not allowed with" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("cores", "parts", "shares"),
    [
        (range(8), 2, [{0, 1, 2, 3}, {4, 5, 6, 7}]),
        ((1, 3, 5, 7, 9), 2, [{1, 3}, {5, 7, 9}]),
        (range(3), 3, [{0}, {1}, {2}]),
        (range(2), 3, []),
    ],
)
def test_cores_are_shared(monkeypatch, cores, parts, shares):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(cores))
    assert share_cores(parts) == shares


# ---- children


OBEDIENT = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: end(75)); signal.signal(signal.SIGUSR1, lambda *_: end(75))
signal.signal(signal.SIGINT, lambda *_: end(130))
def end(code):
    print("saved", flush=True)
    sys.exit(code)
"""


def job(folder: Path, fold: int, script: str) -> FoldJob:
    return FoldJob(fold, [sys.executable, "-S", "-c", script], folder / f"fold_{fold}.output.txt")


def run_deferred(jobs, gpus, said) -> list[FoldEnd]:
    """`run_folds` with the signals deferred, as a command has it; the request itself is swallowed."""
    stop = StopSignals()
    with stop, stop.deferred(), shown_by(said):
        ends = run_folds(jobs, gpus, stop)
        stop.received = None
    return ends


@pytest.mark.thorough
def test_the_next_fold_begins_on_the_gpu_that_becomes_free(tmp_path):
    """Fold 0 holds GPU a until fold 3 has begun: b trains 1, then 2, then 3."""
    wait = """
import os, time
print('sees', os.environ['CUDA_VISIBLE_DEVICES'])
while not os.path.exists({!r}):
    time.sleep(0.02)
"""
    may_end = [tmp_path / f"end_{fold}" for fold in range(4)]
    jobs = [job(tmp_path, fold, wait.format(str(path))) for fold, path in enumerate(may_end)]
    told = Told()
    for fold in (1, 2, 3):
        told.when(f"fold {fold}  started", may_end[fold].touch)
    told.when("fold 3  started", may_end[0].touch)
    ends = run_deferred(jobs, ["a", "b"], told)
    assert [(end.fold, end.gpu, end.code) for end in ends] == [(0, "a", 0), (1, "b", 0), (2, "b", 0), (3, "b", 0)]
    assert [line.partition(",")[0] for line in told if "started" in line] == [
        "fold 0  started on GPU a", "fold 1  started on GPU b", "fold 2  started on GPU b", "fold 3  started on GPU b",
    ]  # fmt: skip
    assert {line for line in told if "sees" in line} == {f"fold {n}  sees {'abbb'[n]}" for n in range(4)}


def test_what_children_say_is_shown_and_kept(tmp_path):
    script = "import sys; print('fold 0  epoch 1'); print('to stderr', file=sys.stderr); print('half a line', end='')"
    (tmp_path / "fold_0.output.txt").write_text("of an earlier run\n")
    told = Told()
    run_deferred([job(tmp_path, 0, script)], ["a"], told)
    assert sorted(told[1:]) == ["fold 0  epoch 1", "fold 0  half a line", "fold 0  to stderr"]
    kept = (tmp_path / "fold_0.output.txt").read_text()
    assert kept.startswith("of an earlier run\n")
    assert {"to stderr", "half a line"} <= set(kept.splitlines()) or "half a lineto stderr" in kept


@pytest.mark.thorough
def test_a_fold_that_fails_is_reported_while_the_others_go_on(tmp_path):
    fails = "import sys\nfor n in range(30): print('line', n)\nsys.exit(6)"
    told = Told()
    jobs = [
        job(tmp_path, 0, fails),
        job(tmp_path, 1, "print('fine')"),
        job(tmp_path, 2, "import os; os.kill(os.getpid(), 9)"),
    ]
    ends = run_deferred(jobs, ["a"], told)
    assert [end.code for end in ends] == [6, 0, -9]
    first = next(n for n, line in enumerate(told) if line.startswith("fold 0  failed on GPU a: failed, exit code 6"))
    assert told[first + 1 : first + 21] == [f"    line {n}" for n in range(10, 30)]
    assert "fold 1  fine" in told[first + 21 :]
    assert any("SIGKILL: probably the system ran out of memory" in line for line in told)
    with pytest.raises(
        AutosegError, match=r"fold 0,2 of 2d failed.*\n.*the same command keeps finished folds"
    ) as raised:
        local_gpus._require_success(ends, TrainOptions(configuration="2d"))
    assert raised.value.exit_code == 6
    local_gpus._require_success(ends[1:2], TrainOptions(configuration="2d"))


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("number", "code", "error"),
    [(signal.SIGTERM, 75, Stopped), (signal.SIGUSR1, 75, Stopped), (signal.SIGINT, 130, Interrupted)],
)
def test_signals_are_passed_on_and_nothing_begins_after_them(tmp_path, number, code, error):
    told = Told()
    script = f"{OBEDIENT}\nprint('ready', os.getpgid(0) == os.getpid(), flush=True)\ntime.sleep(60)"
    both_ready = iter((lambda: None, lambda: os.kill(os.getpid(), number)))
    for fold in (0, 1):
        told.when(f"fold {fold}  ready True", lambda: next(both_ready)())
    slow = script.replace("def end(code):", "def end(code):\n    time.sleep(1)")  # a is free long before b
    jobs = [job(tmp_path, 0, script), job(tmp_path, 1, slow), job(tmp_path, 2, script)]
    ends = run_deferred(jobs, ["a", "b"], told)
    assert [(end.gpu, end.code) for end in ends] == [("a", code), ("b", code), (None, code)]
    assert {"fold 0  saved", "fold 1  saved"} <= set(told)
    with pytest.raises(Stopped, match=r"fold 0\.\.2 of 2d was stopped") as raised:
        local_gpus._require_success(ends, TrainOptions(configuration="2d"))
    assert type(raised.value) is error
    assert raised.value.remedy == ""
    with pytest.raises(Stopped, match="fold 2: still needs --restart"):
        local_gpus._require_success(ends, TrainOptions(configuration="2d", restart=True))
    with pytest.raises(
        Stopped, match="fold 1,2: still needs --restart"
    ):  # 1 was stopped before its old self was set aside
        local_gpus._require_success(ends, TrainOptions(configuration="2d", restart=True), replaced=[0])


@pytest.mark.thorough
def test_a_child_that_was_still_starting_is_stopped_and_not_failed(tmp_path):
    told = Told()
    told.when("fold 0  ready", lambda: os.kill(os.getpid(), signal.SIGTERM))
    ends = run_deferred([job(tmp_path, 0, "import time; print('ready', flush=True); time.sleep(60)")], ["a"], told)
    assert [end.code for end in ends] == [75]


def test_a_fold_that_stops_by_itself_does_not_hold_up_the_others(tmp_path):
    jobs = [job(tmp_path, 0, "raise SystemExit(75)"), job(tmp_path, 1, "print('fine')")]
    ends = run_deferred(jobs, ["a"], Told())
    assert [end.code for end in ends] == [75, 0]
    with pytest.raises(Stopped, match="fold 0 of 2d was stopped"):
        local_gpus._require_success(ends, TrainOptions(configuration="2d"))


@pytest.mark.thorough
def test_the_time_of_the_command_stops_all_folds(tmp_path):
    script = f"{OBEDIENT}\nprint('ready', flush=True)\ntime.sleep(60)"
    told, stop = Told(), StopSignals(1000)
    told.when("fold 0  ready", lambda: setattr(stop, "after_seconds", 0))
    with stop, stop.deferred(), shown_by(told):
        ends = run_folds([job(tmp_path, fold, script) for fold in range(2)], ["a"], stop)
    assert [(end.gpu, end.code) for end in ends] == [("a", 75), (None, 75)]


@pytest.mark.thorough
def test_a_second_interrupt_is_passed_on_too(tmp_path):
    """The child saves nothing any more after the second; it would sleep on after the first."""
    script = """
import signal, sys, time
count = 0
def on(*_):
    global count
    count += 1
    print('interrupt', count, flush=True)
    if count == 2: sys.exit(130)
signal.signal(signal.SIGINT, on); signal.signal(signal.SIGTERM, signal.SIG_IGN)
print('ready', flush=True)
for _ in range(600): time.sleep(0.1)
"""
    told = Told()
    told.when("fold 0  ready", lambda: os.kill(os.getpid(), signal.SIGINT))
    told.when("fold 0  interrupt 1", lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        run_deferred([job(tmp_path, 0, script)], ["a"], told)
    assert (tmp_path / "fold_0.output.txt").read_text().splitlines()[-1] == "interrupt 2"


@pytest.mark.thorough
def test_no_child_outlives_its_parent(tmp_path):
    """A parent that is killed by SIGKILL can pass nothing on; its children save and end all the same."""
    script = f"{OBEDIENT}\nprint('ready', os.getpid(), flush=True)\ntime.sleep(60)"
    parent = f"""
from pathlib import Path
from autoseg.launch.local_gpus import FoldJob, run_folds
from autoseg.stopping import StopSignals
import sys
command, folder = [sys.executable, "-S", "-c", {script!r}], Path({str(tmp_path)!r})
jobs = [FoldJob(n, command, folder / f"fold_{{n}}.output.txt") for n in (0, 1)]
run_folds(jobs, ["a", "b"], StopSignals())
"""
    outputs = [tmp_path / f"fold_{n}.output.txt" for n in (0, 1)]
    process = subprocess.Popen([sys.executable, "-c", parent])
    wait_for(lambda: all(path.exists() and path.read_text().endswith("\n") for path in outputs))
    children = [int(path.read_text().split()[1]) for path in outputs]
    assert all(psutil.Process(pid).ppid() == process.pid for pid in children)
    process.kill()
    process.wait()
    wait_for(lambda: not any(is_running(pid) for pid in children))
    assert [path.read_text().splitlines()[-1] for path in outputs] == ["saved", "saved"]


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_for(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.05)


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core cannot be shared")
def test_children_keep_to_their_share_of_the_cores(tmp_path):
    script = "import os; print('cores', *sorted(os.sched_getaffinity(0)))"
    told = Told()
    run_deferred([job(tmp_path, n, script) for n in range(2)], ["a", "b"], told)
    seen = {line for line in told if "cores" in line}
    assert seen == {f"fold {n}  cores {' '.join(map(str, sorted(s)))}" for n, s in enumerate(share_cores(2))}


def test_the_table_says_how_far_each_fold_came(tmp_path):
    write_history(tmp_path / "fold_0", [row(1, (0.1, None, None)), row(12, (0.5, None, 0.75))])
    ends = [FoldEnd(0, "1", 0, 3725.2), FoldEnd(1, "GPU-a", -11, 61.0), FoldEnd(2, None, 75, 60.0)]
    header, *lines = local_gpus.table(ends, tmp_path).splitlines()
    assert header == "fold    GPU     time  epoch  pseudo Dice"
    assert lines[0] == "   0      1    1h02m     12        0.625  trained"
    assert [line.split(maxsplit=5) for line in lines] == [
        ["0", "1", "1h02m", "12", "0.625", "trained"],
        ["1", "GPU-a", "1m01s", "-", "-", "killed by SIGSEGV"],
        ["2", "-", "1m00s", "-", "-", "not begun"],
    ]
