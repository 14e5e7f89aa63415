"""Where a fold was trained: `machines.json` of its folder, versions and hardware, again where a resume changed them.

A report may be written on another machine, years later and with newer libraries; a paper states those of the training.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch

from autoseg.environment import environment
from autoseg.errors import AutosegError
from autoseg.lines import LOG
from autoseg.nn.memory.calibration import device_name
from autoseg.records import load, save
from autoseg.rules import anything, at_least, entries, exactly

FILE = "machines.json"
VERSION = 1
Text = Annotated[str, anything("any text")]


@dataclass(frozen=True)
class Machine:
    """Versions and hardware."""

    versions: dict[Text, Text]  # autoseg, Python, libraries
    hardware: dict[Text, Text]


@dataclass(frozen=True)
class Session:
    """Steps of a fold that were made on one machine."""

    after: Annotated[int, at_least(0, 10**12)]  # optimiser steps before the first of them
    machine: Machine


@dataclass(frozen=True)
class Sessions:
    """`machines.json`."""

    version: Annotated[int, exactly(VERSION, f"{VERSION}, the version that this autoseg reads")]
    sessions: Annotated[tuple[Session, ...], entries(1)]


def machine_here(device: torch.device | None = None) -> Machine:
    """This machine, as far as a training uses it.

    Args:
        device: what computes; None: left out, and all devices are listed.
    """
    here = environment()
    hardware = {
        "system": f"{here.system} {here.machine}",
        "cores": str(here.cores),
        "memory": f"{here.memory_total_bytes / 2**30:.1f} GiB",
    }
    if device is not None:
        hardware = {"device": device_name(device)} | hardware
    else:
        hardware |= {one.name: f"{one.model}, {one.memory_bytes / 2**30:.1f} GiB" for one in here.devices}
    libraries = {name: version for name, version in here.libraries.items() if version}
    return Machine({"autoseg": here.autoseg, "Python": here.python} | libraries, hardware)


def note_machine(folder: Path, step: int, device: torch.device) -> None:
    """Write down that steps are made here from now on; what fails is a warning, because a training does not need it."""
    path, here = folder / FILE, machine_here(device)
    try:
        known = load(Sessions, path).sessions if step and path.exists() else ()
    except AutosegError:
        known = ()
    if known and known[-1].machine == here:
        return
    kept = tuple(one for one in known if one.after < step)  # a checkpoint that is older than the last resume
    try:
        save(path, Sessions(VERSION, (*kept, Session(step, here))))
    except (AutosegError, OSError) as error:
        LOG.warning(f"cannot write {path}: {error}")


def sessions_of(folder: Path) -> tuple[Session, ...]:
    """The sessions of a fold; none where it was trained before they were recorded. Raises StateError."""
    path = folder / FILE
    return load(Sessions, path).sessions if path.exists() else ()
