"""ZIP files are written to the same bytes, read in place, and refused where they are anything but what is written."""

import io
import re
import stat
import struct
import zipfile
import zlib
from pathlib import Path

import pytest

from autoseg.errors import StateError
from autoseg.models import container as module
from autoseg.models.container import ALIGNMENT, Container, Content, write

TEXT, WEIGHTS = b'{"a": 1}' * 50, bytes(range(256)) * 9


def sound(path: Path) -> Path:
    write(path, [
        Content("manifest.json", [TEXT], len(TEXT)),
        Content("models/3d-unet/fold_0.safetensors", [WEIGHTS[:100], WEIGHTS[100:]], len(WEIGHTS), stored=True),
        Content("models/Größe/plan.json", [b"{}"], 2),
    ])  # fmt: skip
    return path


def zipped(path: Path, *entries: tuple[zipfile.ZipInfo | str, bytes], comment: bytes = b"") -> Path:
    """A ZIP file as any program may write it."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for info, data in entries:
            archive.writestr(info, data)
        archive.comment = comment
    return path


def named(name: str, *, mode: int = stat.S_IFREG | 0o644, method: int = zipfile.ZIP_DEFLATED) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr, info.compress_type, info.create_system = mode << 16, method, 3
    return info


def read_all(path: Path) -> None:
    with Container(path) as opened:
        for name in opened.names:
            opened.read(name)


def refusal(path: Path) -> str:
    with pytest.raises(StateError) as caught:
        read_all(path)
    assert str(path) in caught.value.what
    assert caught.value.remedy
    return caught.value.what


# ---- what is written


def test_what_was_written_is_read(tmp_path):
    with Container(sound(tmp_path / "a.zip")) as opened:
        assert opened.names == ("manifest.json", "models/3d-unet/fold_0.safetensors", "models/Größe/plan.json")
        assert opened.read("manifest.json") == TEXT
        assert bytes(opened.view("models/3d-unet/fold_0.safetensors")) == WEIGHTS
        assert opened.read("models/3d-unet/fold_0.safetensors") == WEIGHTS
        assert opened.size_of("models/Größe/plan.json") == 2
        with pytest.raises(StateError, match=r"manifest\.json' is compressed"):
            opened.view("manifest.json")
        with pytest.raises(StateError, match="'other' is missing"):
            opened.read("other")


def test_any_program_unpacks_it(tmp_path):
    with zipfile.ZipFile(sound(tmp_path / "a.zip")) as archive:
        assert archive.testzip() is None
        assert archive.read("models/3d-unet/fold_0.safetensors") == WEIGHTS
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_stored_bytes_begin_at_a_multiple_whatever_is_before_them(tmp_path):
    for length in range(1, 130, 7):
        path = tmp_path / "a.zip"
        write(
            path, [Content.of_text("n" * length, "text" * length), Content("w", [WEIGHTS], len(WEIGHTS), stored=True)]
        )
        assert path.read_bytes().index(WEIGHTS) % ALIGNMENT == 0
        with Container(path) as opened:
            assert bytes(opened.view("w")) == WEIGHTS


def test_the_same_content_gives_the_same_bytes(tmp_path):
    assert sound(tmp_path / "a.zip").read_bytes() == sound(tmp_path / "b.zip").read_bytes()


def test_large_entries_are_read(tmp_path, monkeypatch):
    """Sizes that need 64 bits: as zipfile writes them for an entry that it takes for large."""
    path = tmp_path / "a.zip"
    info = named("w", method=zipfile.ZIP_STORED)
    with zipfile.ZipFile(path, "w") as archive, archive.open(info, "w", force_zip64=True) as entry:
        entry.write(WEIGHTS)
    with Container(path) as opened:
        assert bytes(opened.view("w")) == WEIGHTS


def test_a_name_that_would_be_refused_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="leads out"):
        write(tmp_path / "a.zip", [Content.of_text("a/../b", "")])
    assert not (tmp_path / "a.zip").exists()


# ---- what is refused


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("../evil.json", "leads out"), ("a/../../evil.json", "leads out"), ("./a", "leads out"),
        ("/etc/passwd", "absolute"), ("C:/evil", "absolute"), ("\\\\host\\share", "absolute"),
        ("a\\..\\b", "backslash"), ("a\nb", "control character"), ("models/", "is a folder"), ("a//b", "empty"),
        (".hidden", "hidden"), ("a/.b", "hidden"), ("n" * 501, "501 characters"),
    ],
)  # fmt: skip
def test_names_that_lead_elsewhere(tmp_path, name, why):
    found = refusal(zipped(tmp_path / "a.zip", ("manifest.json", TEXT), (named(name), b"x")))
    assert why in found
    assert repr(name) in found


@pytest.mark.parametrize(
    ("mode", "why"),
    [(stat.S_IFLNK | 0o777, "is a link"), (stat.S_IFDIR | 0o755, "is not a file"), (stat.S_IFIFO, "is not a file")],
)
def test_links_and_devices(tmp_path, mode, why):
    found = refusal(
        zipped(tmp_path / "a.zip", ("manifest.json", TEXT), (named("plan.json", mode=mode), b"/etc/passwd"))
    )
    assert f"'plan.json' {why}" in found


def test_a_name_that_occurs_twice(tmp_path):
    with pytest.warns(UserWarning, match="Duplicate name"):
        path = zipped(tmp_path / "a.zip", ("plan.json", b"1"), ("plan.json", b"2"))
    assert "'plan.json' occurs twice" in refusal(path)
    assert "has the same name as 'plan.json'" in refusal(zipped(path, ("plan.json", b"1"), ("PLAN.json", b"2")))


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compressions(tmp_path, method):
    found = refusal(zipped(tmp_path / "a.zip", (named("plan.json", method=method), TEXT)))
    assert re.search(r"'plan.json' (is compressed by method|has the flags)", found)


def patched(path: Path, *, local: dict[int, bytes] = {}, listed: dict[int, bytes] = {}) -> Path:  # noqa: B006
    """Overwrite bytes of the only entry's header, and of its line in the list, by their offsets in each."""
    data = bytearray(path.read_bytes())
    for start, changes in ((data.index(b"PK\3\4"), local), (data.rindex(b"PK\1\2"), listed)):
        for offset, value in changes.items():
            data[start + offset : start + offset + len(value)] = value
    path.write_bytes(bytes(data))
    return path


def one(path: Path, data: bytes = TEXT, method: int = zipfile.ZIP_DEFLATED) -> Path:
    return zipped(path, (named("plan.json", method=method), data))


def test_encrypted_entries(tmp_path):
    flag = struct.pack("<H", 1)
    found = refusal(patched(one(tmp_path / "a.zip"), local={6: flag}, listed={8: flag}))
    assert "'plan.json' is encrypted" in found


def test_sizes_that_follow_the_data(tmp_path):
    """As programs write them that cannot seek: what comes after the data cannot be checked before it is read."""
    buffer = io.BytesIO()

    class Stream(io.RawIOBase):
        def writable(self):
            return True

        def write(self, data):
            return buffer.write(data)

    with zipfile.ZipFile(Stream(), "w") as archive:
        archive.writestr("plan.json", TEXT)
    (tmp_path / "a.zip").write_bytes(buffer.getvalue())
    assert "'plan.json' has the flags 0x8" in refusal(tmp_path / "a.zip")


def test_an_entry_that_holds_more_than_it_declares(tmp_path):
    """A bomb of 1 MB of zeros that says it has 400 bytes: no more than 401 are ever inflated."""
    small = struct.pack("<I", 400)
    found = refusal(patched(one(tmp_path / "a.zip", bytes(2**20)), local={22: small}, listed={24: small}))
    assert "'plan.json' declares 400 bytes and holds more" in found
    large = struct.pack("<I", 4000)
    found = refusal(patched(one(tmp_path / "b.zip"), local={22: large}, listed={24: large}))
    assert "'plan.json' declares 4000 bytes and holds other" in found


def test_an_entry_that_declares_too_much(tmp_path):
    huge = struct.pack("<I", module.MAX_TEXT + 1)
    found = refusal(patched(one(tmp_path / "a.zip"), local={22: huge}, listed={24: huge}))
    assert f"'plan.json' declares {module.MAX_TEXT + 1} bytes inflated" in found


def test_many_entries_that_declare_much_together(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_TEXTS", 3 * len(TEXT))
    path = zipped(tmp_path / "a.zip", *((f"{i}.json", TEXT) for i in range(4)))
    assert "'3.json' and those before it would take more than" in refusal(path)


def test_too_many_entries(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_ENTRIES", 9)
    path = zipped(tmp_path / "a.zip", *((f"{i}.json", b"") for i in range(10)))
    assert "lists 10 entries" in refusal(path)


def test_a_wrong_checksum(tmp_path):
    wrong = struct.pack("<I", zlib.crc32(TEXT) ^ 1)
    for method in (zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED):
        path = one(tmp_path / "a.zip", method=method)
        assert "'plan.json' is damaged" in refusal(patched(path, local={14: wrong}, listed={16: wrong}))


def test_bytes_that_cannot_be_inflated(tmp_path):
    path = one(tmp_path / "a.zip")
    data = bytearray(path.read_bytes())
    start = data.index(b"plan.json") + len("plan.json")
    data[start : start + 4] = b"\xff\xff\xff\xff"
    path.write_bytes(bytes(data))
    assert "'plan.json' cannot be inflated" in refusal(path)


def test_entries_that_overlap(tmp_path):
    """Many names for the same bytes: a bomb that needs no recursion."""
    path = zipped(tmp_path / "a.zip", (named("a.json", method=0), b"x" * 9), (named("b.json", method=0), b"x" * 9))
    data = bytearray(path.read_bytes())
    last = data.rindex(b"PK\1\2")
    data[last + 42 : last + 46] = struct.pack("<I", 10)  # where the header of b.json begins
    path.write_bytes(bytes(data))
    assert "'b.json' overlaps the one before it" in refusal(path)


def test_bytes_of_no_entry(tmp_path):
    """Something before, between or after the entries, which other programs might read."""
    path = one(tmp_path / "a.zip")
    data = path.read_bytes()
    path.write_bytes(b"#!/bin/sh\n" + data)
    assert "bytes of no entry" in refusal(path)
    path.write_bytes(data + b"more")
    assert "does not end as a ZIP file" in refusal(path)
    start = data.index(b"PK\1\2")
    shifted = struct.pack("<I", start + 4)
    path.write_bytes(data[:start] + b"gap!" + data[start:-6] + shifted + data[-2:])
    assert "bytes of no entry" in refusal(path)


def test_a_comment(tmp_path):
    assert "does not end as a ZIP file without a comment" in refusal(
        zipped(tmp_path / "a.zip", ("plan.json", TEXT), comment=b"hello")
    )


def test_a_header_that_differs_from_the_list(tmp_path):
    """Programs that read one or the other would see different files."""
    for change in ({30: b"evil"}, {8: struct.pack("<H", 0)}):
        assert "'plan.json' has a header that differs" in refusal(patched(one(tmp_path / "a.zip"), local=change))


def test_every_file_that_is_cut_short_is_refused(tmp_path):
    data = sound(tmp_path / "a.zip").read_bytes()
    path = tmp_path / "b.zip"
    for length in range(0, len(data), 37):
        path.write_bytes(data[:length])
        with pytest.raises(StateError):
            Container(path)


@pytest.mark.parametrize(
    "content", [b"", b"PK", b"not a zip file at all, but long enough to hold an end record", bytes(100)]
)
def test_other_files(tmp_path, content):
    path = tmp_path / "a.zip"
    path.write_bytes(content)
    with pytest.raises(StateError, match=r"a\.zip"):
        Container(path)
    with pytest.raises(StateError, match="does not exist"):
        Container(tmp_path / "b.zip")
    with pytest.raises(StateError, match="cannot be read"):
        Container(tmp_path)
