"""Tensors to bytes and back; the usual library reads what we write, and we read what it writes."""

import json
from contextlib import suppress

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from autoseg.errors import StateError
from autoseg.models.safetensors import DTYPES, chunks, read

TENSORS = {
    "b.weight": torch.arange(6, dtype=torch.float32).reshape(2, 1, 3) - 2.5,
    "a": torch.tensor(3, dtype=torch.int64),
    "empty": torch.empty((0, 4), dtype=torch.float16),
    "c": torch.tensor([True, False, True]),
    "turned": torch.arange(6, dtype=torch.float64).reshape(2, 3).t(),
}


def written(tensors: dict[str, torch.Tensor]) -> bytearray:
    return bytearray().join(chunks(tensors))


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(
        a[key].dtype == b[key].dtype and a[key].shape == b[key].shape and torch.equal(a[key], b[key]) for key in a
    )


def header_of(data: bytes) -> dict:
    return json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])


def with_header(header: object, rest: bytes) -> bytearray:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return bytearray(len(text).to_bytes(8, "little") + text + rest)


def test_there_and_back():
    assert same(read(memoryview(written(TENSORS)), "f"), TENSORS)
    assert read(memoryview(written({})), "f") == {}


def test_the_bytes_are_those_of_the_format():
    """Worked out by hand: a header padded to 8, and two float32, little-endian."""
    data = written({"w": torch.tensor([1.0, -2.0])})
    text = b'{"__metadata__":{"format":"pt"},"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    text += b" " * (-len(text) % 8)
    assert data == len(text).to_bytes(8, "little") + text + b"\x00\x00\x80\x3f" + b"\x00\x00\x00\xc0"


@given(st.permutations(sorted(TENSORS)))
def test_the_order_of_the_names_changes_nothing(names):
    assert written({name: TENSORS[name] for name in names}) == written(TENSORS)


def test_numbers_begin_where_their_size_allows():
    header = header_of(written(TENSORS))
    for name, tensor in TENSORS.items():
        assert header[name]["data_offsets"][0] % tensor.element_size() == 0


def test_the_usual_library_agrees():
    library = pytest.importorskip("safetensors.torch", reason="safetensors is an oracle: pip install -e '.[dev]'")
    assert same(library.load(bytes(written(TENSORS))), TENSORS)
    ours = {key: tensor.contiguous() for key, tensor in TENSORS.items()}
    assert same(read(memoryview(bytearray(library.save(ours))), "f"), TENSORS)


@pytest.mark.parametrize("name", DTYPES)
def test_every_dtype(name):
    tensor = torch.tensor([0, 1, 1]).to(DTYPES[name])
    assert same(read(memoryview(written({"t": tensor})), "f"), {"t": tensor})


def test_numbers_at_an_odd_place_are_read():
    data = bytearray(b"x") + written(TENSORS)
    assert same(read(memoryview(data)[1:], "f"), TENSORS)


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (bytearray(), "header would have -1 bytes"),
        (bytearray((2**40).to_bytes(8, "little") + b"{}"), "header would have"),
        (with_header(b"{", b""), "not JSON"),
        (with_header(b"\xff\xfe", b""), "not JSON"),
        (with_header(b"[" * 100000, b""), "not JSON"),
        (with_header([], b""), "not an object"),
        (with_header(b'{"a": 1, "a": 2}', b""), "occurs twice"),
        (with_header({"w": 1}, b""), "w is not described"),
        (with_header({"w": ENTRY | {"more": 1}}, bytes(8)), "w is not described"),
        (with_header({"w": ENTRY | {"dtype": "PICKLE"}}, bytes(8)), "dtype 'PICKLE'"),
        (with_header({"w": ENTRY | {"shape": [-2]}}, bytes(8)), "shape"),
        (with_header({"w": ENTRY | {"shape": [2.0]}}, bytes(8)), "shape"),
        (with_header({"w": ENTRY | {"shape": [3]}}, bytes(8)), "expected 12"),
        (with_header({"w": ENTRY | {"shape": [2**40, 2**40]}}, bytes(8)), "by its dtype and shape"),
        (with_header({"w": ENTRY | {"data_offsets": [0]}}, bytes(8)), "1 data_offsets"),
        (with_header({"w": ENTRY | {"data_offsets": [8, 16]}}, bytes(16)), "bytes 8 to 16"),
        (with_header({"w": ENTRY, "v": ENTRY}, bytes(8)), "bytes 0 to 8"),  # one over the other
        (with_header({"w": ENTRY}, bytes(9)), "bytes, its header describes"),
        (with_header({"w": ENTRY}, bytes(7)), "bytes, its header describes"),
    ],
)  # fmt: skip
def test_what_is_damaged(data, why):
    with pytest.raises(StateError, match="fold_0 cannot be read as safetensors") as caught:
        read(memoryview(data), "fold_0")
    assert why in caught.value.what


@given(st.integers(0, 10**6), st.integers(0, 255))
def test_any_damaged_byte_is_refused_or_read_as_tensors(place, value):
    data = written(TENSORS)
    data[place % len(data)] = value
    with suppress(StateError):
        read(memoryview(data), "f")
