"""Folds on a cluster: `autoseg train -f 0..4 --slurm partition=gpu,time=24h` submits them as an array of SLURM.

submitit writes the batch files and requeues jobs. Each job runs the same `autoseg train -f K` that a person would type,
as a child. Before the time limit, or before it makes room for another job, the child is asked to stop: it saves, exits
75, and the job goes back to the queue, where the same command resumes from the checkpoint. After all folds
`autoseg evaluate` runs. For a cascade the folds of the previous stage that are missing are an array of their own; a job
in between brings their segmentations to the cascade's grid.

The submitting machine preprocesses first. Logs, batch files and submitit's own files lie in WORKSPACE/slurm, which all
machines must see under the same path.
"""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoseg.commands.inputs import load_records
from autoseg.commands.train import TrainOptions
from autoseg.errors import Stopped, UsageError
from autoseg.launch.jobs import (
    bring_previous_stage,
    folds_text,
    preprocess_phase,
    split_into_phases,
    train_arguments,
)
from autoseg.launch.local_gpus import bound_to_parent
from autoseg.lines import LOG, show, shown_by
from autoseg.messages import suggest
from autoseg.workspace import FULL, Workspace, set_aside_since

if TYPE_CHECKING:
    import submitit

MINUTES = {"d": 24 * 60, "h": 60, "m": 1}
OURS = {"array", "dependency", "error", "job-name", "nodes", "ntasks", "ntasks-per-node", "open-mode", "output"}
OURS |= {"requeue", "signal"}  # options of sbatch that cannot be chosen: the chain of jobs depends on them
REQUEUES = 100  # at a time limit; preemptions are not counted
WARNING_SECONDS = 120  # between the signal and the time limit
POLL_SECONDS = 0.5
PATIENCE_SECONDS = 600  # after SIGTERM, for what SLURM decides


@dataclass(frozen=True)
class SlurmOptions:
    """Options of `--slurm`."""

    minutes: int = 24 * 60  # limit of one job; a fold that needs longer is requeued
    gpus: str = "1"  # "0", "1", or with a type "a100:1"
    cpus: int = 8
    folder: Path | None = None  # None: WORKSPACE/slurm
    sbatch: tuple[tuple[str, str], ...] = ()  # any other option of sbatch: ("partition", "gpu")


def parse_slurm(text: str) -> SlurmOptions:
    """Options of "partition=gpu,time=24h,cpus=8,exclude=a,b"; what follows a comma without a name is more of a value.

    Raises:
        UsageError: a value does not fit, or names what cannot be chosen.
    """
    pairs: dict[str, str] = {}
    name = ""
    for part in text.split(","):
        key, equals, value = part.partition("=")
        name = key.strip() if equals else name
        if not re.fullmatch(r"[a-z][a-z-]*", name):
            raise UsageError(f"--slurm {text!r}: {part!r} is not KEY=VALUE", remedy="write partition=gpu,time=24h")
        pairs[name] = value.strip() if equals else f"{pairs[name]},{part.strip()}"
    if refused := OURS & set(pairs):
        raise UsageError(f"--slurm: {min(refused)} is set by autoseg itself", remedy="omit it")
    gpus, cpus = pairs.pop("gpus", "1"), pairs.pop("cpus", "8")
    if not re.fullmatch(r"0|([\w.-]+:)?1", gpus):
        raise UsageError(f"--slurm gpus={gpus}, but a fold trains on one GPU", remedy="write gpus=1, gpus=a100:1 or 0")
    if not re.fullmatch(r"[1-9]\d*", cpus):
        raise UsageError(f"--slurm cpus={cpus} is not a number of cores", remedy="write a whole number, e.g. cpus=8")
    time_limit, folder = pairs.pop("time", "24h"), pairs.pop("folder", None)
    return SlurmOptions(
        minutes=_minutes(time_limit), gpus=gpus, cpus=int(cpus), folder=Path(folder) if folder else None,
        sbatch=tuple(pairs.items()),
    )  # fmt: skip


def _minutes(text: str) -> int:
    """Minutes of "24h", "1d12h" or "90m"."""
    parts = re.findall(r"(\d+)([dhm])", text)
    if not parts or "".join(number + unit for number, unit in parts) != text or not any(int(n) for n, _ in parts):
        raise UsageError(f"--slurm time={text} is not a time limit", remedy="write 90m, 24h or 1d12h")
    return sum(int(number) * MINUTES[unit] for number, unit in parts)


def submit_folds(workspace: Workspace, options: TrainOptions, slurm: SlurmOptions) -> None:
    """Preprocess here, submit the folds as an array and what follows from them, and show what to watch.

    Raises:
        UsageError: submitit is not installed, this machine submits no jobs, or sbatch refuses.
    """
    require_submitit()
    workspace = Workspace(workspace.root.resolve())
    phases = split_into_phases(workspace, options)
    for phase in phases:
        preprocess_phase(workspace, phase)
    if len(phases) == 1:
        bring_previous_stage(workspace, phases[0])
    chain = _Chain((slurm.folder or workspace.root / "slurm").resolve(), slurm)
    for number, phase in enumerate(phases):
        if number > 0:
            chain.submit(f"bring {phases[0].configuration}", bring_in_job, [(workspace, phase)])
        if slurm.gpus != "0" and phase.device == "auto":
            phase = replace(phase, device="cuda")  # or it would train on the CPU where a GPU fails
        folds = phase.folds or ()
        commands = [(train_arguments(workspace, replace(phase, folds=(fold,))),) for fold in folds]
        chain.submit(f"{phase.configuration} {folds_text(folds)}", AutosegJob(submitted=time.time()), commands)
    if phases[-1].folds != (FULL,):  # which holds nothing out
        name, configuration = load_records(workspace, options.network)[1].configuration(options.configuration)
        model = [f"--configuration={name}", f"--network={configuration.network.name}"]
        model += [] if options.report else ["--no-report"]
        chain.submit("evaluate", AutosegJob(), [(["evaluate", f"--workspace={workspace.root}", *model],)])
    ids = ",".join(chain.ids)
    watch = suggest("status", workspace=workspace.root)
    LOG.info(f"watch: squeue -j {ids}; tail -f {shlex.quote(str(chain.folder))}/*_log.out; {watch}")
    LOG.info(f"cancel: scancel {ids.replace(',', ' ')}")


def bring_in_job(workspace: Workspace, phase: TrainOptions) -> None:
    """The job between two stages of a cascade; its output shows what it does."""
    with shown_by(show):
        bring_previous_stage(workspace, phase)


def require_submitit() -> None:
    """Raises UsageError where submitit is not installed, or where no job can be submitted from."""
    try:
        import submitit  # noqa: F401
    except ImportError:
        raise UsageError(
            "--slurm needs submitit, which is not installed", remedy="pip install 'autoseg-med[slurm]'"
        ) from None
    if missing := [name for name in ("sbatch", "srun") if shutil.which(name) is None]:
        raise UsageError(
            f"--slurm: found no {missing[0]} on this machine",
            remedy="submit from a login node of the cluster, or train here: --gpus all",
        )


class _Chain:
    """Jobs of which each begins when all of the one before have succeeded."""

    def __init__(self, folder: Path, slurm: SlurmOptions) -> None:
        self.folder = folder
        self.slurm = slurm
        self.ids: list[str] = []

    def submit(self, title: str, function: Callable[..., Any], arguments: Sequence[tuple]) -> None:
        """Submit a call of `function` for each tuple of arguments: an array where there are several."""
        from submitit.core.utils import FailedJobError

        executor = self._executor(title)
        try:
            jobs = executor.map_array(function, *zip(*arguments, strict=True))
        except FailedJobError as error:
            cancel = f"; to cancel the jobs already submitted: scancel {' '.join(self.ids)}" if self.ids else ""
            raise UsageError(f"sbatch refused {title}: {error}", remedy=f"check --slurm{cancel}") from None
        after = f", after {self.ids[-1]}" if self.ids else ""
        self.ids.append(str(jobs[0].job_id).partition("_")[0])
        LOG.info(f"job {self.ids[-1]}: {title}{after}")

    def _executor(self, title: str) -> "submitit.SlurmExecutor":
        import submitit

        more: dict[str, Any] = {"requeue": True, **dict(self.slurm.sbatch)}
        if self.ids:  # jobs that can never begin are taken off the queue
            more |= {"dependency": f"afterok:{self.ids[-1]}", "kill-on-invalid-dep": "yes"}
        executor = submitit.SlurmExecutor(self.folder, max_num_timeout=REQUEUES)
        executor.update_parameters(
            job_name=f"autoseg {title}", time=self.slurm.minutes, cpus_per_task=self.slurm.cpus,
            signal_delay_s=WARNING_SECONDS, additional_parameters=more,
            **({} if self.slurm.gpus == "0" else {"gpus_per_node": self.slurm.gpus}),
        )  # fmt: skip
        return executor


def restarted(arguments: Sequence[str], submitted: float) -> bool:
    """Whether the fold of a command was set aside since its job was submitted; True where the command does not tell."""
    named = dict(argument.split("=", 1) for argument in arguments if "=" in argument and argument.startswith("--"))
    if not {"--workspace", "--configuration", "--folds"} <= set(named):
        return True
    models = Path(named["--workspace"]).glob(f"models/{named['--configuration']}-{named.get('--network', '*')}")
    folds = [model / f"fold_{named['--folds']}" for model in models]
    standing = [fold for fold in folds if (fold / "last.pt").exists()]
    return not standing or any(set_aside_since(fold, submitted) for fold in standing)


@dataclass(frozen=True)
class AutosegJob:
    """What a job does: run `autoseg ...` as a child, stop it in time, and requeue itself if it can resume.

    SLURM sends SIGUSR2 before the time limit; the job is requeued then. SIGTERM comes when the job is cancelled or has
    to make room for another; in the second case SLURM itself requeues it, so the job saves and waits for what is
    decided: requeueing itself would bring back what a person has cancelled. A child that stops by itself
    (--stop-after) continues in the queue.
    """

    program: tuple[str, ...] = (sys.executable, "-u", "-m", "autoseg")
    submitted: float = field(default=0.0, compare=False)  # by `time.time`

    def __call__(self, arguments: Sequence[str]) -> None:
        import submitit

        warning = getattr(signal, f"SIG{submitit.JobEnvironment.USR_SIG}")
        requeue = signal.getsignal(warning)  # submitit's: asks `checkpoint`, requeues the job and ends the process
        received: list[int] = []
        for number in (warning, signal.SIGTERM):
            signal.signal(number, lambda number, _: received.append(number))
        if os.environ.get("SLURM_RESTART_COUNT", "0") != "0" and restarted(arguments, self.submitted):
            arguments = [argument for argument in arguments if argument != "--restart"]
        child = subprocess.Popen([*self.program, *arguments], preexec_fn=bound_to_parent())
        told = False
        while (code := child.poll()) is None:
            if received and not told:
                told = True
                child.send_signal(signal.SIGTERM)
            time.sleep(POLL_SECONDS)
        if told and code == -signal.SIGTERM:  # it was still starting, and had nothing to save
            code = Stopped.exit_code
        if code == Stopped.exit_code:
            deadline = time.monotonic() + PATIENCE_SECONDS
            while signal.SIGTERM in received and warning not in received and time.monotonic() < deadline:
                time.sleep(POLL_SECONDS)
            if callable(requeue) and (warning in received or not received):
                requeue(warning, None)
        if code != 0:
            sys.exit(code if code > 0 else 128 - code)

    def checkpoint(self, arguments: Sequence[str]) -> Any:
        """What submitit runs when the job begins again."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, arguments)
