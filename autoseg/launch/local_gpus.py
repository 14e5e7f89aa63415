"""Folds at the same time on the GPUs of one machine: `autoseg train -f 0..4 --gpus all`.

The parent prepares what the folds share, then starts a child per GPU, `autoseg train -f K` with the same options, and
the next fold on the GPU that becomes free. It never initialises CUDA itself. A fold that fails is reported with its
last lines; the others continue.

Children write straight into `models/<model>/fold_<k>.output.txt`, which the parent follows and shows line by line. So
nothing breaks if the parent is killed, and what a child said last is on disk. SIGINT, SIGTERM and SIGUSR1 are passed
on, children save and end, and the parent ends after them with their exit code. Children have process groups of
their own, or Ctrl-C on a terminal would reach them twice. Should the parent die, even by SIGKILL, the kernel sends them
SIGTERM (PR_SET_PDEATHSIG, which only Linux has): they save, too, and end.
"""

import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from autoseg.commands.inputs import load_records
from autoseg.commands.train import TrainOptions
from autoseg.errors import AutosegError, Interrupted, Stopped, UsageError
from autoseg.launch.jobs import (
    bring_previous_stage,
    folds_text,
    preprocess_phase,
    split_into_phases,
    train_arguments,
)
from autoseg.lines import LOG
from autoseg.messages import aligned, counted, duration, suggest
from autoseg.stopping import StopSignals
from autoseg.training.diagnosis import diagnose
from autoseg.training.history import read_history
from autoseg.training.logger import warning_of_fold
from autoseg.workspace import FoldName, Workspace, set_aside_since

POLL_SECONDS = 0.2
TAIL_LINES = 20
PR_SET_PDEATHSIG = 1  # linux/prctl.h
STOPPED = (Stopped.exit_code, Interrupted.exit_code)


@dataclass(frozen=True)
class FoldJob:
    """One fold, to be trained by a process of its own."""

    fold: FoldName
    command: Sequence[str]
    output: Path  # all that the process says is appended here


@dataclass(frozen=True)
class FoldEnd:
    """How the process of a fold ended."""

    fold: FoldName
    gpu: str | None  # None: it was never started
    code: int  # exit code; minus the signal that killed it; a code of STOPPED where it can resume
    seconds: float


def train_on_gpus(workspace: Workspace, options: TrainOptions, gpus: str) -> None:
    """Train folds side by side, one per GPU; a cascade first trains the missing folds of its previous stage.

    Args:
        gpus: "all", or numbers such as "0,2", counted among the GPUs this process may see.

    Raises:
        UsageError: there are no such GPUs.
        Stopped, Interrupted: a signal ended it; the message names the command that resumes.
        AutosegError: a fold failed; with the exit code of the first that did.
    """
    devices = choose_gpus(gpus, options.device)
    with StopSignals(options.stop_after_seconds) as stop:
        for phase in split_into_phases(workspace, options):
            preprocess_phase(workspace, phase)
            bring_previous_stage(workspace, phase)
            with stop.deferred():
                _train_phase(workspace, phase, devices, stop)


def _train_phase(workspace: Workspace, phase: TrainOptions, gpus: Sequence[str], stop: StopSignals) -> None:
    """Train the folds of a phase, whose shared parts are there, show a table of them, and raise if one is missing."""
    plan = load_records(workspace, phase.network)[1]
    _, configuration = plan.configuration(phase.configuration)
    model = workspace.model(str(phase.configuration), configuration.network.name)
    jobs = [
        FoldJob(fold, fold_command(workspace, phase, fold), model / f"fold_{fold}.output.txt")
        for fold in phase.folds or ()
    ]
    LOG.info(f"{phase.configuration}: {counted(len(jobs), 'fold')} on GPU {', '.join(gpus)}")
    began = time.time()
    ends = run_folds(jobs, gpus, stop)
    LOG.info(table(ends, model))
    for line in warnings(ends, model, (str(phase.configuration), configuration.network.name), list(plan.labels.scored)):
        LOG.info(line)
    replaced = [fold for fold in phase.folds or () if set_aside_since(model / f"fold_{fold}", began)]
    _require_success(ends, phase, replaced if phase.restart else None)


def choose_gpus(gpus: str, device: str = "auto") -> list[str]:
    """The values of CUDA_VISIBLE_DEVICES, one for each GPU asked for; CUDA is not initialised.

    Raises:
        UsageError: there are no such GPUs, or `device` says something else.
    """
    import torch

    remedy = "train the folds one after the other: omit --gpus"
    if sys.platform != "linux":
        raise UsageError(f"--gpus works on Linux, this is {sys.platform}", remedy=remedy)
    if device not in ("auto", "cuda"):
        raise UsageError(f"--gpus {gpus} and --device {device} exclude each other", remedy="leave one of them out")
    count = torch.cuda.device_count()  # asks NVML, which leaves CUDA alone
    if count == 0:
        hidden = " among those in CUDA_VISIBLE_DEVICES" if "CUDA_VISIBLE_DEVICES" in os.environ else ""
        raise UsageError(
            f"--gpus {gpus}: there is no CUDA device{hidden}", remedy=f"{remedy} (see {suggest('env', workspace=None)})"
        )
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(count)))).split(",")[:count]
    if gpus != "all" and not re.fullmatch(r"\d+(,\d+)*", gpus):
        raise UsageError(f"--gpus {gpus!r} names no GPUs", remedy="write all, or numbers such as 0,2")
    numbers = range(count) if gpus == "all" else dict.fromkeys(map(int, gpus.split(",")))
    if missing := [number for number in numbers if number >= count]:
        raise UsageError(f"there is no GPU {missing[0]}", remedy=f"--gpus takes 0 to {count - 1}, or all")
    return [visible[number].strip() for number in numbers]


def fold_command(workspace: Workspace, phase: TrainOptions, fold: FoldName) -> list[str]:
    """What trains one fold of a phase on the one GPU its process sees; without a usable GPU it fails, and says so.

    `--stop-after` is left out: it is meant for the whole command, and its time is kept by the parent.
    """
    options = replace(phase, folds=(fold,), device="cuda", stop_after_seconds=None)
    return [sys.executable, "-m", "autoseg", *train_arguments(workspace, options)]


def run_folds(jobs: Sequence[FoldJob], gpus: Sequence[str], stop: StopSignals) -> list[FoldEnd]:
    """Run jobs in order, at most one on each GPU at a time, until all have ended or were asked to stop.

    Must be called from the main thread: the kernel ties children to the thread that started them.

    Args:
        gpus: values of CUDA_VISIBLE_DEVICES.
        stop: whose requests are deferred. The running jobs get the same signal, and no other begins.

    Returns:
        An entry per job, in their order.
    """
    waiting, free = deque(jobs), deque(gpus)
    running: list[_Child] = []
    ends: dict[FoldName, FoldEnd] = {}
    cores = dict(zip(gpus, share_cores(min(len(gpus), len(jobs))), strict=False))
    sent: int | None = None  # the signal that the children were sent
    try:
        while running or (waiting and not stop.due):
            while waiting and free and not stop.due:
                child = _Child(waiting.popleft(), free.popleft(), cores)
                running.append(child)
                LOG.info(f"fold {child.job.fold}  started on GPU {child.gpu}, process {child.process.pid}")
            time.sleep(POLL_SECONDS)
            if stop.due and sent is None:
                sent = stop.to_pass_on
                name = signal.Signals(sent).name
                LOG.info(f"sent {name} to {counted(len(running), 'fold')}; waiting for them to save and exit")
                for child in running:
                    child.process.send_signal(sent)
            for child in list(running):
                if end := child.follow(sent):
                    ends[end.fold] = end
                    running.remove(child)
                    free.append(child.gpu)
    except KeyboardInterrupt:  # the second Ctrl-C: the children wait no longer, either
        for child in running:
            child.process.send_signal(signal.SIGINT)
        raise
    finally:
        for child in running:
            child.process.terminate()
        for child in running:
            child.process.wait()
    for job in waiting:
        ends[job.fold] = FoldEnd(job.fold, None, _stopped_code(stop.received), 0.0)
    return [ends[job.fold] for job in jobs]


class _Child:
    """The process of a fold, and how much of its output was shown."""

    def __init__(self, job: FoldJob, gpu: str, cores: dict[str, set[int]]) -> None:
        self.job = job
        self.gpu = gpu
        self.began = time.monotonic()
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        job.output.parent.mkdir(parents=True, exist_ok=True)
        with open(job.output, "ab") as output:
            self.shown = output.tell()  # bytes
            self.process = subprocess.Popen(
                job.command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, process_group=0,
                env=os.environ | {"CUDA_VISIBLE_DEVICES": gpu, "PYTHONUNBUFFERED": "1"},
                preexec_fn=bound_to_parent(cores.get(gpu)),
            )  # fmt: skip

    def follow(self, sent: int | None) -> FoldEnd | None:
        """Show the new output, and how the process ended, once it has; `sent`: a signal it was sent."""
        code = self.process.poll()
        with open(self.job.output, "rb") as output:
            output.seek(self.shown)
            new = output.read()
        if code is None:
            new = new[: new.rfind(b"\n") + 1]  # a line that is not complete is shown when it is
        self.shown += len(new)
        prefix = f"fold {self.job.fold}  "
        for line in new.decode(errors="replace").splitlines():
            self.tail.append(line)
            LOG.info(prefix + line.removeprefix(prefix))
        if code is None:
            return None
        if sent is not None and code == -sent:  # it was still starting, and had nothing to save
            code = _stopped_code(sent)
        end = FoldEnd(self.job.fold, self.gpu, code, time.monotonic() - self.began)
        if code not in (0, *STOPPED):
            LOG.info(f"{prefix}failed on GPU {self.gpu}: {_how_ended(end)}; last lines of {self.job.output}:")
            for line in self.tail:
                LOG.info(f"    {line}")
        return end


def bound_to_parent(cores: set[int] | None = None) -> Callable[[], None]:
    """What a child does before it becomes another program: ask for SIGTERM at its parent's death, keep to some cores.

    To be passed as `preexec_fn`. The child ignores SIGUSR2, which a cluster sends to all processes of a job.
    """
    parent, libc = os.getpid(), ctypes.CDLL(None)

    def prepare() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:  # it died meanwhile
            os._exit(Stopped.exit_code)
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        if cores:
            os.sched_setaffinity(0, cores)

    return prepare


def share_cores(parts: int) -> list[set[int]]:
    """Divide the cores of this process, which so many children share: workers and threads are counted from them.

    Nothing is divided, and the list is empty, where there are fewer cores than children.
    """
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < parts:
        return []
    bounds = [part * len(cores) // parts for part in range(parts + 1)]
    return [set(cores[start:stop]) for start, stop in pairwise(bounds)]


def _stopped_code(number: int | None) -> int:
    return Interrupted.exit_code if number == signal.SIGINT else Stopped.exit_code


def _how_ended(end: FoldEnd) -> str:
    if end.gpu is None:
        return "not begun"
    if end.code == 0:
        return "trained"
    if end.code in STOPPED:
        return "stopped, saved"
    if end.code == -signal.SIGKILL:
        return "killed by SIGKILL: probably the system ran out of memory"
    return f"killed by {signal.Signals(-end.code).name}" if end.code < 0 else f"failed, exit code {end.code}"


def table(ends: Sequence[FoldEnd], model: Path) -> str:
    """A line for each fold: where it was trained, how long, how far, and how that ended.

    Args:
        model: folder of the folds, whose histories are read.
    """
    rows = [("fold", "GPU", "time", "epoch", "pseudo Dice", "")]
    for end in ends:
        epoch = mean = "-"
        if history := read_history(model / f"fold_{end.fold}"):
            dice = history[-1].mean_dice
            epoch, mean = str(history[-1].epoch), "-" if dice is None else f"{dice:.3f}"
        rows.append((str(end.fold), end.gpu or "-", duration(end.seconds), epoch, mean, _how_ended(end)))
    return "\n".join(aligned(rows, right=range(5), least=(4, 5, 7)))


def warnings(ends: Sequence[FoldEnd], folder: Path, model: tuple[str, str], labels: Sequence[str]) -> list[str]:
    """What is wrong with folds as they stand, and what to try.

    Args:
        folder: of the folds, whose histories are read.
        model: their configuration and network.
    """
    histories = {end.fold: read_history(folder / f"fold_{end.fold}") for end in ends}
    return [warning_of_fold(f, fold, *model) for fold, rows in histories.items() for f in diagnose(rows, labels)]


def _require_success(ends: Sequence[FoldEnd], phase: TrainOptions, replaced: Sequence[FoldName] | None = None) -> None:
    """Raise an error that names the folds of a phase that are not trained, if there are any.

    Args:
        replaced: folds whose old training was set aside; None: all that were started.
    """
    stopped = [end.fold for end in ends if end.code in STOPPED]
    failed = [end for end in ends if end.code not in (0, *STOPPED)]
    told = []
    if failed:
        told.append(f"fold {folds_text([end.fold for end in failed])} of {phase.configuration} failed, see above")
    if stopped:
        told.append(f"fold {folds_text(stopped)} of {phase.configuration} was stopped and can be resumed")
        untouched = [
            end.fold
            for end in ends
            if end.gpu is None or (end.code in STOPPED and replaced is not None and end.fold not in replaced)
        ]
        remedy = f"fold {folds_text(untouched)}: still needs --restart" if untouched and phase.restart else ""
        interrupted = any(end.code == Interrupted.exit_code for end in ends)
        raise (Interrupted if interrupted else Stopped)("; ".join(told), remedy=remedy)
    if failed:
        again = "the same command without --restart" if phase.restart else "the same command"
        error = AutosegError(told[0], remedy=f"fix the cause and rerun: {again} keeps finished folds")
        error.exit_code = max(failed[0].code, 1)
        raise error
