"""Checkpoints of nnU-Net v2, read without executing anything.

nnU-Net writes pickles, and loads them with everything they may run. Here `torch.load(weights_only=True)` reads them.
Three names are allowed beyond torch's own list, those by which numpy stores its numbers, because nnU-Net logs such;
inert functions of this module stand for them. A file that names anything else is refused, and the error says what it
would load.
"""

import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from autoseg.errors import StateError
from autoseg.messages import some


@dataclass(frozen=True)
class Trained:
    """One fold of a model of nnU-Net: what of its checkpoint a prediction needs."""

    path: Path
    weights: dict[str, Tensor]  # on the CPU; left in the file until they are used
    configuration: str
    trainer: str  # the name of its class
    mirror_axes: tuple[int, ...]  # of the patch, over whose flips the prediction is averaged
    epochs: int


class _Dtype:
    """Stands for `numpy.dtype`: keeps its code, such as "f8"."""

    def __init__(self, code: object = "", *_: object) -> None:
        self.code = code

    def __setstate__(self, state: object) -> None:
        """Ignore byte order and the like: only plain numbers are read."""


def _scalar(dtype: object, data: object = b"") -> float | int | bool | None:
    """Stands for numpy's constructor of a scalar from its bytes; None for what is not a plain number."""
    code = dtype.code if isinstance(dtype, _Dtype) else None
    if not isinstance(code, str) or not re.fullmatch("[fiu][248]|[iub]1", code) or not isinstance(data, bytes):
        return None
    return np.frombuffer(data, np.dtype(f"<{code}"))[0].item() if len(data) == int(code[1]) else None


ALLOWED: list[Any] = [
    (_Dtype, "numpy.dtype"),
    (_scalar, "numpy.core.multiarray.scalar"),  # numpy 1
    (_scalar, "numpy._core.multiarray.scalar"),
]


def read_trained(path: Path) -> Trained:
    """Read a checkpoint of nnU-Net.

    Raises:
        StateError: it is damaged, is not nnU-Net's, or would load more than plain data, tensors and numbers.
    """
    _require_plain_archive(path)
    try:
        with torch.serialization.safe_globals(ALLOWED):
            wanted = torch.serialization.get_unsafe_globals_in_checkpoint(path)
            if not wanted:
                held = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except MemoryError:
        raise
    except Exception as error:  # damage surfaces as almost anything
        reason = (str(error) or type(error).__name__).splitlines()[0]
        if type(error).__name__ == "UnpicklingError":  # torch's own words advise to load it all the same
            reason = "its pickle does more than hold data"
        raise _unreadable(path, reason) from None
    if wanted:
        raise StateError(
            f"{path} is refused: besides data it would load {some(sorted(wanted))}, which may run code",
            remedy="ask for a checkpoint as nnU-Net writes it, or have it saved again without these objects",
        )
    return _checked(path, held)


def _require_plain_archive(path: Path) -> None:
    """Refuse what is not whole, or not an archive as torch writes it: stored uncompressed, each entry once."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                raise _unreadable(path, "it holds compressed data, which torch does not write")
            if len({entry.filename for entry in entries}) < len(entries):
                raise _unreadable(path, "it holds an entry twice")
            if damaged := archive.testzip():
                raise _unreadable(path, f"the checksum of {damaged} is wrong")
    except OSError as error:
        raise _unreadable(path, error.strerror or str(error)) from None
    except zipfile.BadZipFile as error:
        raise _unreadable(path, str(error)) from None


def _checked(path: Path, held: Any) -> Trained:
    """The parts that are used, each of the type it should have."""
    if not isinstance(held, Mapping):
        raise _unreadable(path, "it is not a checkpoint of nnU-Net v2, which is a dict")
    arguments, weights = held.get("init_args"), held.get("network_weights")
    if not isinstance(arguments, Mapping) or not isinstance(arguments.get("configuration"), str):
        raise _unreadable(path, "it is not a checkpoint of nnU-Net v2: init_args names no configuration")
    if not isinstance(weights, Mapping) or not all(isinstance(tensor, Tensor) for tensor in weights.values()):
        raise _unreadable(path, "it is not a checkpoint of nnU-Net v2: network_weights holds no tensors")
    axes = held.get("inference_allowed_mirroring_axes") or ()
    if not isinstance(axes, (list, tuple)) or any(type(axis) is not int for axis in axes):
        raise _unreadable(path, f"inference_allowed_mirroring_axes: expected numbers of axes, found {axes!r}"[:300])
    epochs = held.get("current_epoch")
    return Trained(
        path=path, weights={str(name): tensor for name, tensor in weights.items()},
        configuration=arguments["configuration"], trainer=str(held.get("trainer_name")),
        mirror_axes=tuple(sorted(set(axes))), epochs=epochs if type(epochs) is int else 1,
    )  # fmt: skip


def _unreadable(path: Path, reason: str) -> StateError:
    return StateError(f"{path} cannot be read as a checkpoint: {reason}", remedy="copy the model again")
