"""Weights as safetensors: names, shapes and numbers, nothing that could be run.

    8 bytes     length n of the header, unsigned, little-endian
    n bytes     JSON: tensor name -> {"dtype": "F32", "shape": [8, 1, 3, 3], "data_offsets": [begin, end]}, and
                "__metadata__": {text: text}; padded with blanks to a multiple of 8
    the rest    the tensors' numbers, little-endian, one after the other, without gaps

Any program that reads safetensors reads these files. They are written and read here, in a page, because the usual
library opens files by their path, or copies all bytes of one in memory: it cannot read weights in place inside an
archive nor write them a tensor at a time, its errors name no entry, and it accepts headers of 100 MB. Written are
always the same bytes for the same tensors: they are sorted by name, larger elements first, so that every tensor begins
at a multiple of the size of its elements.

Source of the format: github.com/huggingface/safetensors, section "Format".
"""

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from autoseg.errors import StateError

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
NAMES = {dtype: name for name, dtype in DTYPES.items()}
MAX_HEADER = 16 * 2**20  # bytes: some 100,000 tensors
METADATA = "__metadata__"


def chunks(tensors: Mapping[str, Tensor]) -> Iterator[bytes]:
    """The bytes of a safetensors file, in pieces of one tensor each.

    Args:
        tensors: by name, on any device, of any layout.
    """
    ordered = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, Any] = {METADATA: {"format": "pt"}}
    end = 0
    for name in ordered:
        tensor = tensors[name]
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for name in ordered:
        flat = tensors[name].detach().cpu().contiguous().reshape(-1)
        yield flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def read(data: memoryview, where: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file, by name. They share the memory of `data`, which must outlive them.

    Args:
        data: the whole file, of writable memory, as torch wants it; nothing is written to it.
        where: what errors name.

    Raises:
        StateError: the header is damaged, or does not describe these bytes: an unknown dtype, a shape that does not fit
            its range of bytes, ranges that overlap or leave a gap.
    """
    header, start = _header(data, where)
    end = 0
    for name, (dtype, shape, (begin, stop)) in sorted(header.items(), key=lambda item: item[1][2]):
        size = math.prod(shape) * dtype.itemsize
        if begin != end or stop - begin != size:
            expected = f"expected {size} from {end}, by its dtype and shape and those before it"
            raise _damaged(where, f"{name} has the bytes {begin} to {stop}, {expected}")
        end = stop
    if start + end != len(data):
        raise _damaged(where, f"it has {len(data)} bytes, its header describes {start + end}")
    return {
        name: _tensor(data[start + begin : start + stop], dtype, shape)
        for name, (dtype, shape, (begin, stop)) in header.items()
    }


Described = tuple[torch.dtype, tuple[int, ...], tuple[int, int]]  # dtype, shape, range of bytes


def _header(data: memoryview, where: str) -> tuple[dict[str, Described], int]:
    """What the header states about each tensor, and where the numbers begin."""
    length = int.from_bytes(data[:8], "little") if len(data) >= 8 else -1
    if not 0 < length <= min(MAX_HEADER, len(data) - 8):
        raise _damaged(where, f"its header would have {length} bytes, of {len(data)}")
    try:
        plain = json.loads(bytes(data[8 : 8 + length]).decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise _damaged(where, f"its header is not JSON: {error}") from None
    if not isinstance(plain, dict):
        raise _damaged(where, "its header is not an object")
    plain.pop(METADATA, None)
    return {name: _described(entry, name, where) for name, entry in plain.items()}, 8 + length


def _described(entry: Any, name: str, where: str) -> Described:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise _damaged(where, f"{name} is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise _damaged(where, f"{name} has the dtype {dtype!r}, expected one of {', '.join(DTYPES)}")
    for what, numbers in (("shape", shape), ("data_offsets", offsets)):
        if not isinstance(numbers, list) or not all(type(n) is int and 0 <= n < 2**48 for n in numbers):
            raise _damaged(where, f"{name} has the {what} {numbers!r}, expected a list of whole numbers")
    if len(offsets) != 2 or len(shape) > 16:
        raise _damaged(where, f"{name} has {len(offsets)} data_offsets and {len(shape)} axes")
    return DTYPES[dtype], tuple(shape), (offsets[0], offsets[1])


def _tensor(data: memoryview, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    if not len(data):
        return torch.empty(shape, dtype=dtype)
    found = torch.frombuffer(data, dtype=torch.uint8)
    if found.data_ptr() % dtype.itemsize:  # another program wrote them without blanks before them
        found = found.clone()
    return found.view(dtype).reshape(shape)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name occurs twice in one object")
    return found


def _damaged(where: str, what: str) -> StateError:
    return StateError(f"{where} cannot be read as safetensors: {what}", remedy="restore the file from a copy")
