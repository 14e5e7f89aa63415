"""The plain part of a checkpoint, beside its tensors: readable without torch, which takes seconds to load.

A checkpoint is a ZIP file of torch's. `checkpoint` adds one entry to it, HEADER: what is neither a tensor nor holds
one, as JSON. It is of the same file, so it cannot be of another state; `torch.load` does not look at it.
"""

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

NEWEST = "last.pt"  # the newest checkpoint of a fold's folder
CHECKPOINT_VERSION = 1
HEADER = "archive/header.json"  # beside the entries that torch writes
MAX_HEADER = 256 * 2**20  # bytes
TENSORS = ("network", "optimizer", "scaler", "average")  # keys of a checkpoint that hold tensors


def add_header(file: IO[bytes], state: Mapping[str, Any]) -> None:
    """Add the plain part of a state to what `torch.save` wrote into a file; nothing where it is not plain."""
    try:
        text = json.dumps({key: value for key, value in state.items() if key not in TENSORS})
    except (TypeError, ValueError):
        return
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr(zipfile.ZipInfo(HEADER), text)


def read_header(path: Path) -> dict[str, Any] | None:
    """The plain part of a checkpoint; None where it has none that can be read, as torch itself must then judge it."""
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.getinfo(HEADER).file_size > MAX_HEADER:
                return None
            found = json.loads(archive.read(HEADER))
    except (OSError, KeyError, ValueError, RecursionError, zipfile.BadZipFile, NotImplementedError):
        return None
    return found if isinstance(found, dict) else None
