"""What one entry of a folder of images is, by its name, its kind and its first bytes.

    is_side_file   whether it is silently skipped
    absence        why it is not a file: a broken link, a device, iCloud
    foreign        what a file without a known extension is, and what to do about it
    is_series      whether a folder is one DICOM series, which is an image like a file
    is_volume      whether a DICOM file is an image or label map of its own, not a slice
    stem           the case that a name would belong to

At most the first bytes of a file are read.
"""

import re
import shlex
import stat
from pathlib import Path
from typing import Literal, NamedTuple

from autoseg.datasets.spelling import composed
from autoseg.imaging.formats import dicom_files
from autoseg.imaging.formats.dicom_files import is_dicom
from autoseg.imaging.formats.readers import READERS, ending_of, stem_of

SIDE_NAMES = ("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "readme", "license", "licence", "changes", "@eadir")
SIDE_ENDINGS = (
    *(".json", ".txt", ".md", ".rst", ".csv", ".tsv", ".xml", ".yaml", ".yml", ".html", ".log", ".ini"),
    *(".bval", ".bvec", ".md5", ".sha1", ".sha256", ".sha512"),
)
PARTIAL_ENDINGS = (".part", ".partial", ".crdownload", ".download", ".filepart", ".opdownload", ".aria2", ".tmp")
PACKED_ENDINGS = (".zip", ".tar", ".tgz", ".7z", ".rar", ".bz2", ".xz", ".zst", ".lz4", ".gz")
PAIR_ENDINGS = (".hdr", ".img", ".hdr.gz", ".img.gz")
FOREIGN = {  # formats of images that autoseg does not read -> what they are
    ".mgz": "a FreeSurfer volume",
    ".mgh": "a FreeSurfer volume",
    ".nhdr": "an NRRD header whose voxels are in another file",
    ".nrrd.gz": "an NRRD image compressed a second time",
    **dict.fromkeys((".mnc", ".mnc2"), "a MINC image"),
    **dict.fromkeys((".gipl", ".gipl.gz"), "a GIPL image"),
    **dict.fromkeys((".vtk", ".vti"), "a VTK file"),
    **dict.fromkeys((".npy", ".npz"), "a numpy array, which has no position in space"),
    **dict.fromkeys((".h5", ".hdf5", ".mat"), "a container of arrays"),
    **dict.fromkeys((".par", ".rec", ".xmlrec"), "a Philips PAR/REC file"),
    **dict.fromkeys((".svs", ".ndpi", ".mrxs", ".scn", ".czi", ".lif", ".nd2", ".oib", ".oif", ".vsi"), "a slide"),
    **dict.fromkeys((".gif", ".webp", ".jp2", ".j2k", ".heic", ".heif", ".dng", ".pgm", ".ppm"), "a picture"),
}
IMAGE_BEGINNINGS = (
    *(b"\x89PNG\r\n", b"\xff\xd8\xff", b"II*\x00", b"MM\x00*", b"NRRD000", b"\x5c\x01\x00\x00", b"\x1f\x8b"),
)
SHORTCUT_ENDINGS = (".lnk", ".url", ".webloc", ".desktop")


class Fault(NamedTuple):
    """What is wrong with an entry, and what to do."""

    what: str
    remedy: str
    severity: Literal["error", "warning"] = "error"


def is_side_file(path: Path) -> bool:
    """Whether an entry is known not to be an image: notes, tables, what a system leaves behind."""
    name = path.name.lower()
    if name in SIDE_NAMES:
        return True
    if not name.endswith(SIDE_ENDINGS):
        return False
    return not (_ending_inside(name) and _beginning(path).startswith(IMAGE_BEGINNINGS))


def absence(path: Path) -> Fault | None:
    """Why an entry that is not a folder is not a regular file; None if it is one."""
    name = path.name.lower()
    if name.startswith(".") and name.endswith(".icloud"):
        return Fault(
            "is in iCloud, not on this machine", "download it: open its folder in Finder and click on the cloud"
        )
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        if not path.is_symlink():
            return Fault("does not exist", "add the file, or correct the path")
        target = str(path.readlink())
        if "annex/objects" in target.replace("\\", "/"):
            return Fault(
                "is a git-annex link whose content is not on this machine",
                f"fetch it: datalad get {quoted(path)} (or git annex get {quoted(path)})",
            )
        return Fault(f"is a link to a file that does not exist: {target}", "copy the file there, or remove the link")
    except OSError as error:
        loop = path.is_symlink() and "symbolic links" in (error.strerror or "")
        what = "is a link to itself" if loop else f"cannot be opened: {error.strerror}"
        return Fault(what, "replace it with the file" if loop else "check its permissions")
    return None if stat.S_ISREG(mode) else Fault("is a device or a pipe, not a file", "replace it with a file")


def foreign(path: Path) -> Fault:
    """What a file without a known extension is."""
    name = path.name.lower()
    if name.endswith(PAIR_ENDINGS):
        return _half_of_pair(path)
    if ending := next((ending for ending in FOREIGN if name.endswith(ending)), None):
        convert = ending in (".mgz", ".mgh")
        remedy = _conversion(path, False) if convert else "convert it to .nii.gz, .nrrd, .mha, .png or .tif"
        return Fault(f"is {FOREIGN[ending]}, which autoseg does not read", remedy)
    inside = _ending_inside(path.name)
    right = path.with_name(inside[1] + inside[2]) if inside else path
    if inside and not inside[3].strip():
        return Fault("has blanks after its extension", f"rename it: mv {quoted(path)} {quoted(right)}")
    if name.endswith(".dvc") and not right.is_file():
        return Fault("is a placeholder for a file that DVC stores elsewhere", f"fetch it: dvc pull {quoted(path)}")
    if name.endswith(SHORTCUT_ENDINGS):
        return Fault("is a shortcut, not the file itself", "copy the file here", "error" if inside else "warning")
    if inside and right.is_file():
        return Fault(f"is not used: {right.name} is next to it", "nothing, or move it away", "warning")
    if name.endswith(PARTIAL_ENDINGS):
        return Fault("is an unfinished download", "download it again", "error" if inside else "warning")
    if name.endswith(PACKED_ENDINGS):
        return Fault(
            "is compressed in a way that autoseg does not read", "decompress it", "error" if inside else "warning"
        )
    if inside:
        return Fault(f"its extension is unknown: {inside[2]}{inside[3]}", f"if it is an image, rename it: {right.name}")
    if _beginning(path).startswith(IMAGE_BEGINNINGS):
        return Fault("its first bytes are those of an image, but its extension is not", f"rename it; {_known()}")
    return Fault("is not an image of a known format, and is not used", f"nothing, or convert it; {_known()}", "warning")


def _half_of_pair(path: Path) -> Fault:
    """A .hdr or .img: with its other half, it can be converted."""
    name = path.name.lower().removesuffix(".gz")
    start = path.name[: len(name) - len(".hdr")]
    wanted = (".img", ".img.gz") if name.endswith(".hdr") else (".hdr", ".hdr.gz")
    halves = [half for ending in wanted if (half := path.with_name(start + ending)).is_file()]
    what = "is half of a .hdr/.img pair (NIfTI pair or Analyze), which autoseg does not read"
    if not halves:
        return Fault(f"{what}; {start}{wanted[0]} is missing", f"copy {start}{wanted[0]} here, then convert the two")
    return Fault(what, _conversion(path if name.endswith(".hdr") else halves[0], True))


def is_foreign(path: Path) -> bool:
    """Whether a name is that of an image in a format that autoseg does not read."""
    name = path.name.lower()
    return name.endswith((*PAIR_ENDINGS, *FOREIGN))


def is_series(folder: Path) -> bool:
    """Whether the files of a folder are one image: DICOM slices, or one DICOM volume, and no image of another format.

    Hidden files, and DICOM objects that are not images, do not count.
    """
    if ending_of(folder):
        return False
    try:
        files = [path for path in folder.iterdir() if not path.name.startswith(".") and not is_side_file(path)]
    except OSError:
        return False
    if any(ending_of(path) and path.is_file() for path in files):
        return False
    volumes = 0
    for path in files:
        if path.is_file() and is_dicom(path):
            kind = dicom_files.kind_of(path)
            if kind == "slice":
                return True
            volumes += kind == "frames"
    return volumes == 1


def is_volume(path: Path) -> bool:
    """Whether a DICOM file is an image or a label map by itself: many frames, DICOM-SEG, RTSTRUCT."""
    return dicom_files.kind_of(path) in ("frames", "labels")


def dicom_remedy(folder: Path) -> str:
    """Where DICOM slices among other files should go."""
    return (
        f"move each series into a folder of its own, which is read as one image named after it: {quoted(folder)}/NAME/"
    )


def data_files_of(images: list[Path]) -> set[str]:
    """Names of the files that hold the voxels of MetaImage headers."""
    names = set()
    for file in images:
        if file.name.lower().endswith(".mhd"):
            head = _beginning(file, 4096).decode("latin-1")
            named = re.findall(r"^ElementDataFile\s*=\s*([^\r\n]+)", head, re.MULTILINE)
            names |= {Path(name.strip()).name.lower() for name in named}
    return names


def _conversion(path: Path, pair: bool) -> str:
    """How nibabel, which autoseg needs anyway, makes NIfTI of a file."""
    name = path.name.lower().removesuffix(".gz")
    target = path.with_name(path.name[: name.rindex(".")] + ".nii.gz")
    command = f"nib-convert {quoted(path)} {quoted(target)}"
    return f"convert it: {command}" + ("; if it is Analyze 7.5, check afterwards that left is left" if pair else "")


def _beginning(path: Path, count: int = 132) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(count)
    except OSError:
        return b""


def stem(path: Path) -> str:
    """The case that a name would belong to: the part before the first image extension in it."""
    name = composed(path.name.removeprefix(".") if path.name.lower().endswith(".icloud") else path.name)
    if inside := _ending_inside(name):
        return inside[1]
    ending = next((e for e in (*PAIR_ENDINGS[::-1], *FOREIGN, *PARTIAL_ENDINGS) if name.lower().endswith(e)), "")
    return name[: len(name) - len(ending)] if ending else stem_of(name)


def quoted(path: Path) -> str:
    """A path as a shell takes it."""
    return shlex.quote(str(path))


def _known() -> str:
    return f"autoseg reads {', '.join(READERS)}"


def _ending_inside(name: str) -> re.Match[str] | None:
    """A known extension followed by more, as in "scan.nii.gz.bak": the part before, the extension, the rest."""
    known = "|".join(re.escape(ending) for ending in READERS)
    return re.fullmatch(f"(.+)({known})(.+)", name, re.IGNORECASE | re.DOTALL)
