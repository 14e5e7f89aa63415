"""Folds on a cluster: what --slurm understands, the batch files, and what a job does when it is told to stop.

No cluster is needed: a stand-in for sbatch numbers the batch files that submitit writes, and submitit's local executor
runs jobs as it would on a node.
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import submitit
from submitit.core.utils import DelayedSubmission

from autoseg.cli import main
from autoseg.commands.folds import TrainOptions
from autoseg.errors import UsageError
from autoseg.launch import slurm
from autoseg.launch.jobs import train_arguments
from autoseg.launch.slurm import AutosegJob, SlurmOptions, parse_slurm, require_submitit, submit_folds
from autoseg.models.checkpoint import load_checkpoint
from autoseg.planning.plan import Plan
from autoseg.records import load, save
from autoseg.workspace import Workspace, write_text
from phantom import tiny_dataset
from plans import with_cascade

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="SLURM runs on Linux")


# ---- the option


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("partition=gpu,time=24h", SlurmOptions(sbatch=(("partition", "gpu"),))),
        ("time=90m", SlurmOptions(minutes=90)),
        ("time=1d2h3m,gpus=a100:1,cpus=12", SlurmOptions(minutes=1563, gpus="a100:1", cpus=12)),
        ("gpus=0,folder=/somewhere/else", SlurmOptions(gpus="0", folder=Path("/somewhere/else"))),
        ("mem=64G,exclude=n1,n2,qos=low",
         SlurmOptions(sbatch=(("mem", "64G"), ("exclude", "n1,n2"), ("qos", "low")))),
        ("mail-type=END, account = a b ", SlurmOptions(sbatch=(("mail-type", "END"), ("account", "a b")))),
    ],
)  # fmt: skip
def test_what_slurm_is_told(text, options):
    assert parse_slurm(text) == options


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not KEY=VALUE"),
        ("gpu", "not KEY=VALUE"),
        ("time=24h,=3", "not KEY=VALUE"),
        ("time=24", "not a time limit"),
        ("time=0h", "not a time limit"),
        ("time=1h30", "not a time limit"),
        ("gpus=2", "one GPU"),
        ("cpus=0", "cpus=0"),
        ("array=0-3", "array is set by autoseg"),
        ("time=1h,signal=USR1@60", "signal is set by autoseg"),
    ],
)
def test_what_slurm_cannot_be_told(text, message):
    with pytest.raises(UsageError, match=message):
        parse_slurm(text)


def test_what_is_missing_is_named(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match=r"no sbatch on this machine\n.*login node"):
        require_submitit()
    monkeypatch.setitem(sys.modules, "submitit", None)  # as if it were not installed
    assert main(["train", "--slurm", "partition=gpu", "-w", str(tmp_path)]) == 2
    assert "pip install 'autoseg-med[slurm]'" in capsys.readouterr().err


# ---- what is submitted


SBATCH = """#!/bin/sh
if grep -q 'partition=nowhere' "$1"; then echo 'invalid partition specified: nowhere' >&2; exit 1; fi
echo >> {counter}
echo "Submitted batch job $((100 + $(wc -l < {counter})))"
"""


@pytest.fixture
def cluster(monkeypatch, tmp_path) -> None:
    """A machine with `sbatch`, which numbers jobs from 101, and `srun`, which is only looked for."""
    for name, text in (("sbatch", SBATCH.format(counter=tmp_path / "count")), ("srun", "#!/bin/sh\n")):
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")


@pytest.fixture
def prepared(monkeypatch) -> list[tuple[str, str | None]]:
    """Instead of preprocessing and of bringing a previous stage: who was asked for."""
    asked: list[tuple[str, str | None]] = []
    monkeypatch.setattr(slurm, "preprocess_phase", lambda w, phase: asked.append(("stored", phase.configuration)))
    monkeypatch.setattr(slurm, "bring_previous_stage", lambda w, phase: asked.append(("brought", phase.configuration)))
    return asked


@pytest.fixture(scope="module")
def planned(tmp_path_factory) -> Workspace:
    folder = tmp_path_factory.mktemp("planned")
    workspace = Workspace(folder / "workspace")
    dataset = tiny_dataset(folder / "data", cases=5)
    assert main(["plan", str(dataset), "-w", str(workspace.root), "--no-preprocess"]) == 0
    save(workspace.plan, with_cascade(load(Plan, workspace.plan)))
    return workspace


def batch_lines(folder: Path, job: int) -> set[str]:
    """Options of a batch file, without those that say where logs go."""
    text = (folder / f"{job}_submission.sh").read_text()
    lines = {line.removeprefix("#SBATCH --") for line in text.splitlines() if line.startswith("#SBATCH")}
    return {line for line in lines if not line.startswith(("output=", "error=", "wckey="))}


def submitted(folder: Path, job: str) -> DelayedSubmission:
    return DelayedSubmission.load(folder / f"{job}_submitted.pkl")


COMMON = {
    "cpus-per-task=4", "gpus-per-node=1", "time=1500", "nodes=1", "partition=gpu", "mem=64G", "requeue",
    "open-mode=append", "signal=USR2@120",
}  # fmt: skip


@pytest.mark.thorough
def test_folds_are_an_array_and_evaluate_follows(cluster, prepared, planned, tmp_path, said):
    options = TrainOptions(folds=(0, 1, 2), epochs=3, settings=("training.seed=3",))
    text = f"partition=gpu,time=1d1h,cpus=4,mem=64G,folder={tmp_path / 'logs'}"
    submit_folds(planned, options, parse_slurm(text))
    folder = tmp_path / "logs"
    assert batch_lines(folder, 101) == COMMON | {"array=0-2%3", "job-name='autoseg 3d_fullres 0..2'"}
    after = {"dependency=afterok:101", "kill-on-invalid-dep=yes"}
    assert batch_lines(folder, 102) == COMMON | after | {"job-name='autoseg evaluate'"}
    assert not (folder / "103_submission.sh").exists()
    for fold in (0, 1, 2):
        job = submitted(folder, f"101_{fold}")
        expected = replace(options, configuration="3d_fullres", folds=(fold,), device="cuda")
        assert job.function == AutosegJob()
        assert job.args == (train_arguments(planned, expected),)
        assert (job._timeout_min, job._timeout_countdown) == (1500, 100)
    evaluate = ["evaluate", f"--workspace={planned.root}", "--configuration=3d_fullres", "--network=unet"]
    assert submitted(folder, "102").args == (evaluate,)
    assert prepared == [("stored", "3d_fullres"), ("brought", "3d_fullres")]
    assert said[:2] == ["job 101: 3d_fullres 0..2", "job 102: evaluate, after 101"]
    assert said[2].startswith("watch: squeue -j 101,102; tail -f ")
    assert said[3] == "cancel: scancel 101 102"


@pytest.mark.thorough
def test_a_cascade_waits_for_the_array_of_its_previous_stage(cluster, prepared, planned, tmp_path):
    options = TrainOptions(folds=(2,), configuration="3d_cascade", device="cpu")
    submit_folds(planned, options, parse_slurm(f"gpus=0,folder={tmp_path / 'logs'}"))
    files = [batch_lines(tmp_path / "logs", job) for job in (101, 102, 103, 104)]
    names = ["3d_lowres 0..4", "bring 3d_lowres", "3d_cascade 2", "evaluate"]
    for number, (lines, name) in enumerate(zip(files, names, strict=True)):
        assert f"job-name='autoseg {name}'" in lines
        assert {line for line in lines if "dependency" in line} == (
            {f"dependency=afterok:{100 + number}"} if number else set()
        )
        assert not any("gpus" in line for line in lines)
    assert "array=0-4%5" in files[0]
    assert not any("array" in line for lines in files[1:] for line in lines)
    assert prepared == [("stored", "3d_lowres"), ("stored", "3d_cascade")]
    bring = submitted(tmp_path / "logs", "102")
    assert bring.function is slurm.bring_in_job
    assert bring.args == (planned, options)
    assert submitted(tmp_path / "logs", "103").args == (train_arguments(planned, options),)


def test_what_sbatch_refuses_is_told(cluster, prepared, planned, tmp_path):
    with pytest.raises(UsageError, match=r"sbatch refused 3d_fullres 0(.|\n)*invalid partition specified: nowhere"):
        submit_folds(planned, TrainOptions(folds=(0,)), parse_slurm(f"partition=nowhere,folder={tmp_path}"))


# ---- what a job does


CHILD = """
import signal, sys, time
from pathlib import Path
folder = Path({folder!r})
def end(*_):
    (folder / "saved").touch()
    sys.exit(75)
signal.signal(signal.SIGTERM, end)
with open(folder / "calls", "a") as file:
    print(*sys.argv[1:], file=file)
if (folder / "saved").exists():
    sys.exit(0)
import os
(folder / "pids.part").write_text(f"{{os.getppid()}} {{os.getpid()}}")
(folder / "pids.part").rename(folder / "pids")
for _ in range(600):
    time.sleep(0.1)
"""


def stand_in(folder: Path, text: str = CHILD) -> AutosegJob:
    """A job whose program is a script instead of autoseg."""
    script = folder / "child.py"
    script.write_text(text.format(folder=str(folder)))
    return AutosegJob((sys.executable, "-S", str(script)))


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.05)


@pytest.mark.thorough
def test_a_job_is_requeued_and_goes_on(tmp_path):
    """Both the job and its child get SLURM's warning; the child is told by SIGTERM, and its second start finishes."""
    executor = submitit.LocalExecutor(tmp_path / "logs", max_num_timeout=3)
    executor.update_parameters(timeout_min=2)
    job = executor.submit(stand_in(tmp_path), ["train", "-f", "0"])
    wait_for((tmp_path / "pids").exists)
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    for pid in reversed(pids):
        os.kill(pid, signal.SIGUSR2)
    wait_for(lambda: job.paths.result_pickle.exists())
    assert job.result() is None
    assert (tmp_path / "calls").read_text() == "train -f 0\n" * 2
    assert "Requeued job" in job.stdout()


@pytest.fixture
def requeued() -> Iterator[list[int]]:
    """Stands for submitit's handler of the warning; signal handlers are put back afterwards."""
    asked: list[int] = []
    numbers = (signal.SIGUSR2, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    signal.signal(signal.SIGUSR2, lambda number, _: asked.append(number))
    yield asked
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def signalling(*numbers: int) -> str:
    """A child that sends its job these signals; it ends as told, after the last of them."""
    sends = "\n".join(f"os.kill(os.getppid(), {number})\ntime.sleep(0.1)" for number in map(int, numbers))
    return f"import os, signal, sys, time\nsignal.signal(15, lambda *_: sys.exit(75))\n{sends}\ntime.sleep(60)"


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("text", "code", "requeues"),
    [
        ("pass", None, 0),
        ("raise SystemExit(6)", 6, 0),
        ("import os; os.kill(os.getpid(), 9)", 137, 0),
        ("raise SystemExit(75)", 75, 1),  # it stopped by itself, and goes on
        (signalling(signal.SIGUSR2), 75, 1),
        (signalling(signal.SIGUSR2).replace("signal.signal(15", "(15"), 75, 1),  # it cannot save yet: still starting
        (signalling(signal.SIGTERM), 75, 0),  # cancelled, or requeued by SLURM
        (signalling(signal.SIGUSR2).replace("sys.exit(75)", "os._exit(0)"), None, 0),  # it had just finished
    ],
)
def test_only_what_can_go_on_is_requeued(tmp_path, monkeypatch, requeued, text, code, requeues):
    monkeypatch.setattr(slurm, "PATIENCE_SECONDS", 0.2)
    monkeypatch.setattr(slurm, "POLL_SECONDS", 0.05)
    try:
        stand_in(tmp_path, text.replace("{", "{{").replace("}", "}}"))([])
        ended = None
    except SystemExit as error:
        ended = error.code
    assert ended == code
    assert requeued == [signal.SIGUSR2] * requeues


@pytest.mark.thorough
def test_a_warning_after_sigterm_requeues(tmp_path, monkeypatch, requeued):
    monkeypatch.setattr(slurm, "POLL_SECONDS", 0.05)
    later = f"import os, time\ntime.sleep(1)\nos.kill({os.getpid()}, {int(signal.SIGUSR2)})"
    text = f"import os, subprocess, sys, signal, time\nsubprocess.Popen([sys.executable, '-S', '-c', {later!r}])\n"
    job = stand_in(tmp_path, (text + signalling(signal.SIGTERM)).replace("{", "{{").replace("}", "}}"))
    with pytest.raises(SystemExit, match="75"):
        job([])
    assert requeued == [signal.SIGUSR2]


@pytest.mark.thorough
@pytest.mark.parametrize(("count", "passed"), [("0", "train --restart -f 0\n"), ("2", "train -f 0\n")])
def test_a_requeued_job_does_not_restart_the_fold(tmp_path, monkeypatch, requeued, count, passed):
    monkeypatch.setenv("SLURM_RESTART_COUNT", count)
    (tmp_path / "saved").touch()
    stand_in(tmp_path)(["train", "--restart", "-f", "0"])
    assert (tmp_path / "calls").read_text() == passed


@pytest.mark.slow
def test_a_fold_is_trained_by_a_job(planned, tmp_path):
    """Warned in the middle, requeued, finished, and predicted."""
    settings = ("training.iterations_per_epoch=12", "training.workers=0", "training.autocast=float32")
    options = TrainOptions(folds=(1,), epochs=40, device="cpu", settings=settings)  # seconds, wherever: it must be met
    executor = submitit.LocalExecutor(tmp_path / "logs", max_num_timeout=3)
    executor.update_parameters(timeout_min=10)
    job = executor.submit(AutosegJob(), train_arguments(planned, options))
    folder = planned.fold("3d_fullres", "unet", 1)
    try:
        wait_for((folder / "last.pt").exists, 300)
        (task,) = psutil.Process(int(job.job_id)).children()
        task.send_signal(signal.SIGUSR2)
        wait_for(lambda: job.paths.result_pickle.exists(), 300)
    finally:
        for process in psutil.Process(int(job.job_id)).children(recursive=True):
            process.kill()
    assert job.result() is None
    assert "resume with: autoseg train" in job.stderr()
    assert load_checkpoint(folder / "last.pt")["finished"]
    assert len(list((folder / "validation").glob("*.nii.gz"))) == 1


@pytest.mark.parametrize(("aside", "done"), [("19991231-235959", False), ("20990101-000000", True)])
def test_a_requeued_job_still_restarts_a_fold_that_was_not_set_aside_before(tmp_path, aside, done):
    """A folder says whether it was done since the job was submitted."""
    model = tmp_path / "models" / "2d-unet"
    (model / f"fold_0.before-{aside}").mkdir(parents=True)
    write_text(model / "fold_0" / "last.pt", "")
    told = ["train", f"--workspace={tmp_path}", "--configuration=2d", "--folds=0", "--restart"]
    assert slurm.restarted(told, time.time()) == done
    assert slurm.restarted(["train", "--restart", "-f", "0"], time.time())  # which fold is not known
    (model / "fold_0" / "last.pt").unlink()
    assert slurm.restarted(told, time.time())  # there is nothing to set aside
