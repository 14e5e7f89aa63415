"""Images spread over the devices of one machine: `autoseg predict --device cuda:0,cuda:1`, or `--device all`.

Every device has a process that segments a part of the cases: `autoseg predict --shard K/N --device D` with the same
options. The processes are started, followed and stopped as those of folds (`local_gpus`); a part that fails does not
end the others. `cpu,cpu` starts two processes that share the cores.
"""

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

from autoseg.commands.predict import PredictOptions
from autoseg.errors import AutosegError, DataError, Stopped, UsageError
from autoseg.inference.finished import recorded
from autoseg.inference.shards import Shard, parse_shard
from autoseg.launch.local_gpus import STOPPED, FoldEnd, FoldJob, how_ended, run_folds
from autoseg.lines import LOG
from autoseg.messages import counted, spelled, suggest
from autoseg.plugins import plugin_options
from autoseg.stopping import StopSignals
from autoseg.workspace import Workspace

MOST = 64  # devices


def devices_of(text: str) -> list[str]:
    """The devices that `--device` names: "cuda:0,cuda:1" two, "all" every GPU that this process may see.

    Raises:
        UsageError: an empty name, more devices than there can be, or no GPU for "all".
    """
    if text == "all":
        import torch

        if not (count := torch.cuda.device_count()):
            raise UsageError(
                "--device all: there is no CUDA device",
                remedy=f"use --device auto, or cpu (see {suggest('env', workspace=None)})",
            )
        return [f"cuda:{number}" for number in range(count)]
    devices = [device.strip() for device in text.split(",")]
    if not all(devices) or len(devices) > MOST:
        raise UsageError(f"--device {text!r} names no devices", remedy="write one, all, or several: cuda:0,cuda:1")
    return devices


def predict_on_devices(
    workspace: Workspace,
    images: Sequence[Path],
    out: Path,
    options: PredictOptions,
    devices: Sequence[str],
) -> list[Path]:
    """Segment images with a process per device.

    Returns:
        The label files that were written; with `resume` all that the folder's records name.

    Raises:
        UsageError: the system has no such processes.
        Stopped, Interrupted: by a signal; what is finished is recorded.
        DataError: images could not be segmented; the processes listed them.
        AutosegError: a process failed, with its exit code.
    """
    if sys.platform != "linux":
        raise UsageError(f"several devices at once work on Linux, this is {sys.platform}", remedy="name one of them")
    whole = parse_shard(options.shard) if options.shard else Shard(1, 1)
    began = {name: entry.output for name, entry in recorded(out).items()}
    parts = [whole.part(number, len(devices)) for number in range(1, len(devices) + 1)]
    LOG.info(f"{counted(len(devices), 'process', 'processes')} on {', '.join(devices)}")
    try:
        with tempfile.TemporaryDirectory() as folder, StopSignals() as stop, stop.deferred():
            jobs = [
                FoldJob(
                    number,
                    part_command(workspace, images, out, replace(options, device=device, shard=str(part))),
                    Path(folder) / f"{number}.txt",
                    called=f"shard {part}",
                    one_gpu=False,
                )
                for number, (part, device) in enumerate(zip(parts, devices, strict=True))
            ]
            ends = run_folds(jobs, devices, stop)
    except Stopped as stopped:
        stopped.resumed_with = ("--resume",)
        raise
    _require_success(ends, parts)
    found = recorded(out)
    return sorted(
        out / entry.output.name for name, entry in found.items() if options.resume or began.get(name) != entry.output
    )


def part_command(workspace: Workspace, images: Sequence[Path], out: Path, options: PredictOptions) -> list[str]:
    """What segments a part: every option that is not at its default, and the plugins of this command."""
    arguments = ["predict", f"--workspace={workspace.root}", f"--out={out}", *plugin_options(resolved=True)]
    for field in fields(options):
        value, option = getattr(options, field.name), field.name.replace("_", "-")
        if value == field.default or field.name in ("models", "saliency"):
            continue
        if field.name in ("mirroring", "decision"):
            if value is False:
                arguments.append(f"--no-{field.name}")
        elif value is True:
            arguments.append(f"--{option}")
        else:
            text = ",".join(map(str, value)) if isinstance(value, tuple) else value
            arguments.append(f"--{option}={text}")
    arguments += ["--models", *options.models] if options.models else []
    arguments += ["--saliency", *options.saliency] if options.saliency else []
    return [sys.executable, "-m", "autoseg", *arguments, "--images", *map(spelled, images)]


def _require_success(ends: Sequence[FoldEnd], parts: Sequence[Shard]) -> None:
    """Raise an error that names the parts that failed, if there are any."""
    failed = [(end, part) for end, part in zip(ends, parts, strict=True) if end.code]
    if not failed:
        return
    if all(end.code == DataError.exit_code for end, _ in failed):
        raise DataError("some files could not be segmented (listed above)", remedy="fix them, then repeat the command")
    ended = [(end, part) for end, part in failed if end.code not in (DataError.exit_code, *STOPPED)] or failed
    what = "; ".join(f"shard {part}: {how_ended(end)}" for end, part in ended)
    error = AutosegError(f"{what} (see above)", remedy="fix the cause, then repeat the command with --resume")
    error.exit_code = max(ended[0][0].code, 1)
    raise error
