"""Versions and hardware: what to state with a question or a measurement."""

import importlib.metadata
import platform
from dataclasses import dataclass

import psutil

from autoseg import __version__
from autoseg.processes import available_cores

LIBRARIES = ("torch", "numpy", "scipy", "SimpleITK", "nibabel", "scikit-image", "batchgenerators", "tqdm", "matplotlib")


@dataclass(frozen=True)
class Device:
    """One GPU."""

    name: str  # as --device takes it
    model: str
    memory_bytes: int


@dataclass(frozen=True)
class Environment:
    """This machine, and what is installed on it."""

    autoseg: str
    python: str
    system: str
    machine: str
    libraries: dict[str, str | None]  # name -> version; None: not installed
    cores: int
    memory_available_bytes: int
    memory_total_bytes: int
    devices: tuple[Device, ...]

    def describe(self) -> str:
        """In a few lines."""
        lines = [f"autoseg {self.autoseg}, Python {self.python}, {self.system} {self.machine}"]
        for library, version in self.libraries.items():
            lines.append(f"  {library} {version}" if version else f"  {library} is not installed")
        free, total = self.memory_available_bytes / 2**30, self.memory_total_bytes / 2**30
        lines.append(f"{self.cores} cores, {free:.1f} of {total:.1f} GiB free")
        lines += [f"{one.name} {one.model}, {one.memory_bytes / 2**30:.1f} GiB" for one in self.devices]
        if not self.devices:
            lines.append("no CUDA device")
        return "\n".join(lines)


def environment() -> Environment:
    """Versions of autoseg and its libraries, cores, memory and devices."""
    import torch

    memory = psutil.virtual_memory()
    devices = []
    for i in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(i)
        devices.append(Device(f"cuda:{i}", properties.name, properties.total_memory))
    return Environment(
        autoseg=__version__,
        python=platform.python_version(),
        system=platform.system(),
        machine=platform.machine(),
        libraries={library: _version(library) for library in LIBRARIES},
        cores=available_cores(),
        memory_available_bytes=memory.available,
        memory_total_bytes=memory.total,
        devices=tuple(devices),
    )


def _version(library: str) -> str | None:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return None
