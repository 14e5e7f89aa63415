"""Checkpoints: plain data and tensors, written whole or not at all, loaded without executing anything.

A checkpoint is a dict of tensors, scalars, strings, lists and dicts. `torch.load(weights_only=True)` is the only way
in; there is no fallback.
"""

import io
import zipfile
from pathlib import Path
from typing import Any

import torch

from autoseg.errors import StateError
from autoseg.workspace import write_atomically


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write `state` atomically: a reader sees the old checkpoint or the new one, never half of one."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomically(path, lambda file: file.write(buffer.getbuffer()))


def load_checkpoint(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a checkpoint onto `device`.

    Raises:
        StateError: the file is missing, damaged, or holds more than plain data and tensors.
    """
    try:
        with zipfile.ZipFile(path) as archive:  # torch ignores the checksums it writes
            if damaged := archive.testzip():
                raise zipfile.BadZipFile(f"the checksum of {damaged} is wrong")
        return torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError:
        raise StateError(f"{path} does not exist", remedy="train this fold first: autoseg train -f ...") from None
    except (MemoryError, torch.OutOfMemoryError):  # says nothing about the file
        raise
    except Exception as error:  # damage surfaces as almost anything: KeyError, UnicodeDecodeError, ...
        reason = (str(error) or type(error).__name__).splitlines()[0]
        if type(error).__name__ == "UnpicklingError":  # torch's own words advise to load it all the same
            reason = "it holds more than plain data and tensors"
        raise StateError(
            f"{path} cannot be read as a checkpoint: {reason}",
            remedy="delete it and train the fold again, or restore it from a copy",
        ) from error
