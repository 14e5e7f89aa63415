"""Files that a visitor sends: into a temporary folder, under safe names, as many bytes as may be.

What is uploaded is understood like a folder that `predict -i` is given, which is why folders in it are kept: a DICOM
series, or the channels of a case.
"""

import re
import secrets
import shutil
import unicodedata
from collections.abc import AsyncIterator
from pathlib import Path

from autoseg.serve.refusals import Refused

DEEPEST = 6  # folders in folders
LONGEST = 120  # characters of a name
MOST_FILES = 20_000  # of a draft: slices of DICOM series
DISK_LEFT = 512 * 2**20  # bytes of the disk that uploads leave free
NOT_SAFE = re.compile(r"[^\w.+=@,() -]")
DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # of Windows


class Draft:
    """Files of one upload.

    Attributes:
        folder: which `images_in` is given.
        nbytes: of all its files, complete or not.
    """

    def __init__(self, where: Path) -> None:
        self.id, self._where = where.name, where
        self.folder = where / "scan"
        self.folder.mkdir(parents=True)
        self.nbytes, self.files = 0, 0

    async def receive(self, name: str, chunks: AsyncIterator[bytes], room: int, announced: int | None) -> Path:
        """Store a file.

        Args:
            name: as the visitor calls it, with folders before it.
            room: bytes that this upload may have in all.
            announced: bytes that are to come, where that was stated.

        Raises:
            Refused: it is too large, has the name of another one, or the disk is nearly full.
        """
        path = self.folder.joinpath(*safe_parts(name))
        if self.files >= MOST_FILES:
            raise Refused(413, f"more than {MOST_FILES} files", remedy="drop the folder of one scan")
        self._require(announced or 0, room)
        both = Refused(409, f"{name[:80]!r} is a file and a folder at once", remedy="rename one of them")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise both from None
        try:
            with open(path, "xb") as file:
                self.files += 1
                written = 0
                try:
                    async for chunk in chunks:
                        self._require(len(chunk), room)
                        self.nbytes += len(chunk)
                        written += len(chunk)
                        file.write(chunk)
                except BaseException:
                    path.unlink(missing_ok=True)
                    self.nbytes -= written
                    self.files -= 1
                    raise
        except FileExistsError:
            raise Refused(
                409, f"two files are called {'/'.join(safe_parts(name))}", remedy="rename one of them"
            ) from None
        except IsADirectoryError:
            raise both from None
        return path

    def remove(self) -> None:
        """Remove its files."""
        shutil.rmtree(self._where, ignore_errors=True)

    def _require(self, more: int, room: int) -> None:
        if self.nbytes + more > room:
            raise Refused(
                413, f"the upload is larger than the {readable(room)} that are left of --max-upload",
                remedy="close cases that were uploaded, or start autoseg serve with a larger --max-upload; files that "
                "are on this machine need no upload: --folder DIR",
            )  # fmt: skip
        if shutil.disk_usage(self.folder).free - more < DISK_LEFT:
            raise Refused(507, "the disk for temporary files is nearly full", remedy="free some space, or set TMPDIR")


def safe_parts(name: str) -> list[str]:
    """The parts of a name that are used as folders and file: no way up, nothing hidden, no odd characters.

    >>> safe_parts("../../etc/pass wd")
    ['etc', 'pass wd']
    >>> safe_parts("C:\\\\scans\\\\a.nii.gz")
    ['C_', 'scans', 'a.nii.gz']

    Raises:
        Refused: nothing is left of it.
    """
    plain = unicodedata.normalize("NFC", name).replace("\\", "/")
    parts = [safe_name(part) for part in plain.split("/")]
    used = [part for part in parts if part][-DEEPEST:]
    if not used or not parts[-1]:
        raise Refused(400, f"{name[:80]!r} is not the name of a file", remedy="give it a name such as scan.nii.gz")
    return used


def safe_name(part: str) -> str:
    """A name without what file systems or shells take for something else; "" where nothing is left of it."""
    cleaned = NOT_SAFE.sub("_", unicodedata.normalize("NFC", part)).lstrip(". -").rstrip(". ")
    if len(cleaned) > LONGEST:  # its end says the format
        cleaned = cleaned[: LONGEST - 20] + cleaned[-20:]
    return f"_{cleaned}" if DEVICES.fullmatch(cleaned) else cleaned


def readable(nbytes: int) -> str:
    """A number of bytes to read."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if nbytes >= size:
            return f"{nbytes / size:.3g} {unit}"
    return f"{nbytes} bytes"


def new_id() -> str:
    """A name that cannot be guessed."""
    return secrets.token_urlsafe(12)
