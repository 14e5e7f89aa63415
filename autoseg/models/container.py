"""A ZIP file of files that are read in place, written to the same bytes each time, and opened strictly.

What autoseg writes is a plain ZIP that any program unpacks: weights are stored, so that they can be mapped into memory
without unpacking; texts are deflated. Times and rights are fixed, so that the same content gives the same file.

What autoseg reads may come from anybody. Nothing is ever unpacked to disk, and a file is refused, with the name of the
entry, where it is anything but what `write` makes: encrypted, compressed in another way, a link or a folder, a name
that leads elsewhere or occurs twice, entries that overlap or leave bytes between them, more or larger entries than a
model has, or an entry that does not have the size it declares.
"""

import hashlib
import mmap
import stat
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO

from autoseg.errors import StateError
from autoseg.workspace import write_atomically

MAX_ENTRIES = 4096
MAX_TEXT = 64 * 2**20  # bytes of one deflated entry, inflated
MAX_TEXTS = 256 * 2**20  # of all of them
MAX_NAME = 500  # characters
LIST_BYTES = 2**22  # of the list of entries at the end
ALIGNMENT = 64  # bytes; stored entries begin at a multiple of it
EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time that ZIP can hold
REGULAR = (stat.S_IFREG | 0o644) << 16
PADDING = 0xD935  # the extra field that other programs use for alignment, too
UTF8, LEVELS = 0x800, 0x6  # flags that change nothing
LOCAL = struct.Struct("<4s5H3I2H")  # the header before each entry
END = struct.Struct("<4s4H2IH")
LOCATOR = struct.Struct("<4sIQI")  # of the large end record
LARGE_END = struct.Struct("<4sQ2H2I4Q")


@dataclass(frozen=True)
class Content:
    """A file to be written."""

    name: str
    chunks: Iterable[bytes]
    size: int  # bytes, of all chunks
    stored: bool = False  # as it is, aligned; otherwise deflated

    @classmethod
    def of_text(cls, name: str, text: str) -> "Content":
        data = text.encode("utf-8")
        return cls(name, [data], len(data))


def write(path: Path, contents: Sequence[Content]) -> None:
    """Write a ZIP file of these contents, in their order, atomically.

    Raises:
        StorageError: the disk is full or refuses; what was there is untouched.
    """
    for content in contents:
        if fault := _fault_of_name(content.name):
            raise ValueError(f"{content.name!r} {fault}")
    write_atomically(path, lambda file: _write(file, contents))


def _write(file: IO[bytes], contents: Sequence[Content]) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        for content in contents:
            info = zipfile.ZipInfo(content.name, EPOCH)
            info.create_system, info.external_attr, info.file_size = 3, REGULAR, content.size
            info.compress_type = zipfile.ZIP_STORED if content.stored else zipfile.ZIP_DEFLATED
            large = content.size > 2**31
            if content.stored:
                begins = archive.start_dir + LOCAL.size + len(content.name.encode()) + 4 + (20 if large else 0)
                gap = -begins % ALIGNMENT
                info.extra = struct.pack("<HH", PADDING, gap) + bytes(gap)
            with archive.open(info, "w", force_zip64=large) as entry:
                for chunk in content.chunks:
                    entry.write(chunk)


@dataclass(frozen=True)
class _Entry:
    """Where an entry is, and what it declares."""

    start: int  # of its bytes
    packed: int  # bytes as they are in the file
    size: int
    crc: int
    stored: bool


class Container:
    """A ZIP file that is open, its entries checked; the file is mapped into memory, and read where it is looked at.

    Raises:
        StateError: it cannot be read, or is refused (see the module); the message names the entry.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._map = _mapped(path)
        self._data = memoryview(self._map)
        self._entries = self._checked()

    def __enter__(self) -> "Container":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._entries = {}  # the map is closed when nobody looks at a view of it any more

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._entries)

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return len(self._data)

    def size_of(self, name: str) -> int:
        """Bytes of an entry, inflated."""
        return self._entry(name).size

    def is_stored(self, name: str) -> bool:
        return self._entry(name).stored

    def view(self, name: str) -> memoryview:
        """The bytes of a stored entry, in place."""
        entry = self._entry(name)
        if not entry.stored:
            raise self.refused(name, "is compressed, expected to be stored: weights are read in place")
        return self._data[entry.start : entry.start + entry.packed]

    def read(self, name: str) -> bytes:
        """The bytes of an entry, inflated where it is deflated; never more of them than it declares, and one."""
        entry = self._entry(name)
        if entry.size > MAX_TEXT:
            raise self.refused(name, f"has {entry.size} bytes, at most {MAX_TEXT} are expected")
        packed = self._data[entry.start : entry.start + entry.packed]
        if entry.stored:
            data, ended = bytes(packed), True
        else:
            inflater = zlib.decompressobj(-zlib.MAX_WBITS)
            try:
                data = inflater.decompress(packed, entry.size + 1)
            except zlib.error as error:
                raise self.refused(name, f"cannot be inflated: {error}") from None
            ended = inflater.eof and not inflater.unused_data
        if len(data) != entry.size or not ended:
            more = "more" if len(data) > entry.size else "other"
            raise self.refused(name, f"declares {entry.size} bytes and holds {more}")
        if zlib.crc32(data) != entry.crc:
            raise self.refused(name, "is damaged: its checksum is wrong")
        return data

    def sha256(self, name: str) -> str:
        """Hex digest of an entry's bytes, inflated."""
        return hashlib.sha256(self.view(name) if self.is_stored(name) else self.read(name)).hexdigest()

    def refused(self, name: str, what: str) -> StateError:
        """The error about one entry."""
        return StateError(
            f"{self.path}: the entry {name!r} {what}",
            remedy="get the file again from where it came from, or export the model again",
        )

    def _entry(self, name: str) -> _Entry:
        if name not in self._entries:
            raise self.refused(name, "is missing")
        return self._entries[name]

    def _checked(self) -> dict[str, _Entry]:
        """All entries by name. Raises StateError for the first that is refused."""
        found: dict[str, _Entry] = {}
        seen: dict[str, str] = {}
        end = texts = 0
        for info in sorted(self._listed(), key=lambda info: info.header_offset):
            name = info.orig_filename
            if fault := _fault_of_name(name) or _fault_of_entry(info):
                raise self.refused(name, fault)
            other = seen.setdefault(unicodedata.normalize("NFC", name).casefold(), name)
            if name in found or other != name:
                raise self.refused(name, "occurs twice" if other == name else f"has the same name as {other!r}")
            if info.header_offset != end:
                what = "overlaps the one before it" if info.header_offset < end else "follows bytes of no entry"
                raise self.refused(name, what)
            start = self._start_of(info)
            end = start + info.compress_size
            if end > len(self._data):
                raise self.refused(name, "is cut off: the file ends before it does")
            stored = info.compress_type == zipfile.ZIP_STORED
            texts += 0 if stored else info.file_size
            if texts > MAX_TEXTS:
                raise self.refused(name, f"and those before it would take more than {MAX_TEXTS} bytes")
            found[name] = _Entry(start, info.compress_size, info.file_size, info.CRC, stored)
        if self._end()[2] != end:
            raise self._no_archive("bytes of no entry are before its list of entries")
        return found

    def _listed(self) -> list[zipfile.ZipInfo]:
        """The entries as the list at the end names them, whose size is limited before it is read."""
        number, size, _ = self._end()
        if number > MAX_ENTRIES or size > LIST_BYTES:
            raise self._no_archive(f"it lists {number} entries in {size} bytes, at most {MAX_ENTRIES} are expected")
        try:
            with open(self.path, "rb") as file, zipfile.ZipFile(file) as archive:
                return archive.infolist()
        except (zipfile.BadZipFile, OSError, ValueError, EOFError, NotImplementedError, struct.error) as error:
            raise self._no_archive(str(error) or type(error).__name__) from None

    def _end(self) -> tuple[int, int, int]:
        """Number of entries, bytes and beginning of their list, by the record that ends the file."""
        data = self._data
        if len(data) < END.size or bytes(data[-END.size :][:4]) != b"PK\5\6":
            raise self._no_archive("it does not end as a ZIP file without a comment does")
        _, _, _, _, number, size, begins, comment = END.unpack(data[-END.size :])
        if comment:
            raise self._no_archive("it ends with a comment")
        ends = len(data) - END.size
        at = ends - LOCATOR.size
        if at >= 0 and bytes(data[at : at + 4]) == b"PK\6\7":
            _, _, place, _ = LOCATOR.unpack(data[at : at + LOCATOR.size])
            if place != at - LARGE_END.size or bytes(data[place : place + 4]) != b"PK\6\6":
                raise self._no_archive("its large end record is not where it should be")
            *_, number, size, begins = LARGE_END.unpack(data[place : place + LARGE_END.size])
            ends = place
        if number <= MAX_ENTRIES and begins + size != ends:
            raise self._no_archive("bytes of no entry are before or after its list of entries")
        return number, size, begins

    def _start_of(self, info: zipfile.ZipInfo) -> int:
        """Where the bytes of an entry begin, by the header before it, which must agree with the list."""
        at, name = info.header_offset, info.orig_filename
        header = self._data[at : at + LOCAL.size]
        if len(header) < LOCAL.size or bytes(header[:4]) != b"PK\3\4":
            raise self.refused(name, "has no header where the list says")
        _, _, flags, method, _, _, _, _, _, length, extra = LOCAL.unpack(header)
        there = bytes(self._data[at + LOCAL.size : at + LOCAL.size + length])
        if there != name.encode("utf-8") or method != info.compress_type or flags != info.flag_bits:
            raise self.refused(name, "has a header that differs from the list of entries")
        return at + LOCAL.size + length + extra

    def _no_archive(self, why: str) -> StateError:
        return StateError(
            f"{self.path} is not a model that autoseg exported: {why}",
            remedy="name a file that `autoseg export MODEL.zip` has written; if this is one, get it again",
        )


def _mapped(path: Path) -> mmap.mmap:
    """A private map of a file. Raises StateError where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except FileNotFoundError:
        raise StateError(f"{path} does not exist", remedy="check the path") from None
    except (OSError, ValueError) as error:  # ValueError: it is empty
        raise StateError(f"{path} cannot be read: {error}", remedy="name a readable file") from None


def _fault_of_name(name: str) -> str:
    """What is wrong with the name of an entry, or ""."""
    if not name or len(name) > MAX_NAME:
        return f"has a name of {len(name)} characters, expected 1 to {MAX_NAME}"
    if name.startswith(("/", "\\")) or name[1:2] == ":":
        return "has an absolute name"
    if "\\" in name or not name.isprintable():
        return "has a name with a backslash or a control character"
    parts = name.split("/")
    if ".." in parts or "." in parts:
        return "has a name that leads out of the archive"
    if name.endswith("/"):
        return "is a folder"
    if not all(parts) or any(part[0] == "." for part in parts):
        return "has a name with an empty or a hidden part"
    return ""


def _fault_of_entry(info: zipfile.ZipInfo) -> str:
    """What is wrong with an entry as the list describes it, or ""."""
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind == stat.S_IFLNK:
        return "is a link"
    if kind not in (0, stat.S_IFREG) or info.external_attr & 0x10:
        return "is not a file"
    if info.flag_bits & 0x2041:
        return "is encrypted"
    if info.flag_bits & ~(UTF8 | LEVELS):
        return f"has the flags {info.flag_bits:#x}, which autoseg does not write"
    if info.compress_type == zipfile.ZIP_STORED:
        if info.file_size != info.compress_size:
            return f"declares {info.file_size} bytes and holds {info.compress_size}"
    elif info.compress_type != zipfile.ZIP_DEFLATED:
        return f"is compressed by method {info.compress_type}, expected stored (0) or deflated (8)"
    elif info.file_size > MAX_TEXT:
        return f"declares {info.file_size} bytes inflated, at most {MAX_TEXT} are expected"
    return ""
