"""What stands in a folder of images or labels. Every entry is used, or named with what to do about it.

    contents         folder -> its images, its folders, and a problem for everything else
    stray_folders    what is wrong with folders that lie among image files
    why_absent       why a path that is listed is not a file
    table_beside     patients.csv and the like, in any case of letters

Passed over without a word: hidden entries, and the side files of the table below. A problem is an error where the entry
is, or may be, an image of a case that would vanish; otherwise it is a warning.
"""

import json
import os
import re
import shlex
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from autoseg.errors import DataError
from autoseg.imaging.readers import READERS, ending_of, stem_of
from autoseg.intake.spelling import CHANNEL_SUFFIX, composed

SIDE_NAMES = ("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "readme", "license", "licence", "changes", "@eadir")
SIDE_ENDINGS = (
    *(".json", ".txt", ".md", ".rst", ".csv", ".tsv", ".xml", ".yaml", ".yml", ".html", ".log", ".ini"),
    *(".bval", ".bvec", ".md5", ".sha1", ".sha256", ".sha512"),
)
PARTIAL_ENDINGS = (".part", ".partial", ".crdownload", ".download", ".filepart", ".opdownload", ".aria2", ".tmp")
PACKED_ENDINGS = (".zip", ".tar", ".tgz", ".7z", ".rar", ".bz2", ".xz", ".zst", ".lz4", ".gz")
DICOM_ENDINGS = (".dcm", ".dicom", ".dic", ".ima")
PAIR_ENDINGS = (".hdr", ".img", ".hdr.gz", ".img.gz")
FOREIGN = {  # formats of images that autoseg does not read -> what they are
    ".mgz": "a FreeSurfer volume",
    ".mgh": "a FreeSurfer volume",
    ".nhdr": "an NRRD header whose voxels lie in another file",
    ".nrrd.gz": "an NRRD image packed once more",
    **dict.fromkeys((".mnc", ".mnc2"), "a MINC image"),
    **dict.fromkeys((".gipl", ".gipl.gz"), "a GIPL image"),
    **dict.fromkeys((".vtk", ".vti"), "a VTK file"),
    **dict.fromkeys((".npy", ".npz"), "a numpy array, which does not say where its voxels lie"),
    **dict.fromkeys((".h5", ".hdf5", ".mat"), "a container of arrays"),
    **dict.fromkeys((".par", ".rec", ".xmlrec"), "a Philips PAR/REC file"),
    **dict.fromkeys((".svs", ".ndpi", ".mrxs", ".scn", ".czi", ".lif", ".nd2", ".oib", ".oif", ".vsi"), "a slide"),
    **dict.fromkeys((".gif", ".webp", ".jp2", ".j2k", ".heic", ".heif", ".dng", ".pgm", ".ppm"), "a picture"),
}
IMAGE_BEGINNINGS = (
    b"\x89PNG\r\n",
    b"\xff\xd8\xff",
    b"II*\x00",
    b"MM\x00*",
    b"NRRD000",
    b"\x5c\x01\x00\x00",
    b"\x1f\x8b",
)
INSIDE = re.compile("(.+)(" + "|".join(re.escape(ending) for ending in READERS) + ")(.+)", re.IGNORECASE | re.DOTALL)
NAMED_AT_ONCE = 3  # files of a DICOM series named; the rest are counted
LOOKED_AT = 200  # images below a folder that are counted, at most
VISITED = 20_000  # files below a folder that are looked at, at most
SHORTCUT_ENDINGS = (".lnk", ".url", ".webloc", ".desktop")
KNOWN = f"autoseg reads {', '.join(READERS)}"


@dataclass(frozen=True)
class Problem:
    """One fault of a dataset: where, what, and what to do."""

    case: str | None  # None: the dataset as a whole
    file: str
    what: str
    remedy: str
    severity: Literal["error", "warning"] = "error"
    stays: bool = False  # leaving cases out (--skip-bad) does not mend it
    same_as: str | None = None  # the case that holds the same image


@dataclass
class Contents:
    """What stands in one folder."""

    images: list[Path] = field(default_factory=list)  # files of a known format, sorted
    folders: list[Path] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)  # one for each other entry that is no side file

    @property
    def unusable(self) -> set[str]:
        """Names, without their ending, of what is no usable file: whoever misses it need not be reported again."""
        return {problem.case for problem in self.problems if problem.case}


class _Fault(NamedTuple):
    what: str
    remedy: str
    severity: Literal["error", "warning"] = "error"


def contents(folder: Path, ending: str = "") -> Contents:
    """Sort the entries of a folder; no image is opened.

    Args:
        ending: that the files should have; if some do, the others are problems.

    Raises:
        DataError: the folder cannot be listed.
    """
    found, dicom, others = Contents(), [], []
    for path in _entries(folder):
        if path.name.startswith(".") and not path.name.lower().endswith(".icloud"):
            continue
        if _is_side_file(path):
            continue
        if path.is_dir():
            if not path.name.startswith("__"):
                found.folders.append(path)
        elif fault := _absence(path):
            found.problems.append(Problem(_stem(path), str(path), *fault))
        elif ending_of(path):
            found.images.append(path)
        elif _is_dicom(path):
            dicom.append(path)
        else:
            others.append(Problem(_stem(path), str(path), *_foreign(path)))
    names = {composed(stem_of(image)): image.name for image in found.images[::-1]}
    names |= {CHANNEL_SUFFIX.sub(r"\1", name): image for name, image in names.items()}
    found.problems += [_beside(problem, names) for problem in others]
    _join_pairs(found)
    data_files = _data_files_of(found.images)
    found.problems = [p for p in found.problems if Path(p.file).name.lower() not in data_files]
    if dicom:
        found.problems.append(_dicom_problem(folder, dicom))
    if fitting := [file for file in found.images if file.name.lower().endswith(ending)]:
        names, others = {stem_of(file) for file in fitting}, set(found.images) - set(fitting)
        found.problems += [_other_ending(file, ending, names) for file in sorted(others)]
        found.images = fitting
    return found


def stray_folders(found: Contents) -> list[Problem]:
    """One problem for each folder that lies among image files, where nobody looks into it."""
    problems = []
    for folder in found.folders:
        inside = images_below(folder)
        if ending := ending_of(folder):
            what = f"is a folder, expected a {ending} file"
            remedy = (
                "move the image that it holds to its place" if inside else "remove it, or put the image in its place"
            )
            problems.append(Problem(stem_of(folder), str(folder), what, remedy))
        elif inside:
            count = f"at least {len(inside)}" if len(inside) == LOOKED_AT else str(len(inside))
            what = f"a folder among images: what it holds is not used ({count} files, such as {inside[0].name})"
            problems.append(
                Problem(folder.name, str(folder), what, f"move its images to {folder.parent}, or move it away")
            )
        else:
            what = "a folder among images: it holds no image"
            problems.append(Problem(folder.name, str(folder), what, "nothing, or move it away", "warning"))
    return problems


def dicom_below(folder: Path) -> list[Path]:
    """DICOM files in a folder and in those inside it, the first few hundred."""
    return [path for path in images_below(folder) if _is_dicom(path)]


def images_below(folder: Path) -> list[Path]:
    """Images, links to images and DICOM files in a folder and in those inside it, the first few hundred."""
    found: list[Path] = []
    visited = 0
    for where, folders, files in os.walk(folder, onerror=None, followlinks=False):
        folders[:] = [name for name in sorted(folders) if not name.startswith((".", "__"))]
        paths = [Path(where) / name for name in sorted(files) if not name.startswith(".")]
        found += [path for path in paths if ending_of(path) or _is_foreign(path) or _is_dicom(path)]
        visited += len(paths) + len(folders)
        if len(found) >= LOOKED_AT or visited >= VISITED:
            return found[:LOOKED_AT]
    return found


def why_absent(path: Path) -> tuple[str, str]:
    """What is wrong with a listed path that is not a file, and what to do."""
    if path.is_dir():
        return "is a folder, expected a file", "name the file in it"
    fault = _absence(path)
    return (fault.what, fault.remedy) if fault else ("does not exist", "add the file, or correct the path")


def table_beside(folder: Path, name: str) -> Path | None:
    """A file of this name in a folder, in upper or lower case; None where there is none.

    Raises:
        DataError: the name is there and cannot be read as a file.
    """
    path = next((entry for entry in _entries(folder) if entry.name.lower() == name), None)
    if path is not None and not path.is_file():
        what, remedy = why_absent(path)
        raise DataError(f"{path} {what}", remedy=remedy)
    return path


def read_json(path: Path) -> Any:
    """Content of a JSON file. Raises DataError naming the line that is wrong."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not valid JSON: {error}", remedy="correct it") from None


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise DataError(f"{folder} cannot be listed: {error.strerror}", remedy="check its permissions") from error


def _is_side_file(path: Path) -> bool:
    name = path.name.lower()
    if name in SIDE_NAMES:
        return True
    if not name.endswith(SIDE_ENDINGS):
        return False
    return not (INSIDE.fullmatch(name) and _beginning(path).startswith(IMAGE_BEGINNINGS))


def _absence(path: Path) -> _Fault | None:
    """What hinders an entry that is no folder from being a file, if anything does."""
    name = path.name.lower()
    if name.startswith(".") and name.endswith(".icloud"):
        return _Fault(
            "is in iCloud, not on this machine", "download it: open its folder in Finder and click on the cloud"
        )
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        if not path.is_symlink():
            return _Fault("does not exist", "add the file, or correct the path")
        target = str(path.readlink())
        if "annex/objects" in target.replace("\\", "/"):
            return _Fault(
                "is a git-annex link whose content is not on this machine",
                f"fetch it: datalad get {quoted(path)} (or git annex get {quoted(path)})",
            )
        return _Fault(f"is a link to a file that does not exist: {target}", "copy the file there, or remove the link")
    except OSError as error:
        loop = path.is_symlink() and "symbolic links" in (error.strerror or "")
        what = "is a link that leads back to itself" if loop else f"cannot be opened: {error.strerror}"
        return _Fault(what, "put the file in its place" if loop else "check its permissions")
    return None if stat.S_ISREG(mode) else _Fault("is a device or a pipe, not a file", "put a file in its place")


def _foreign(path: Path) -> _Fault:
    """What a file without a known ending is."""
    name = path.name.lower()
    if name.endswith(PAIR_ENDINGS):
        header = _stem(path) + (".hdr" if not name.endswith(".gz") else ".hdr.gz")
        return _Fault("is half of a .hdr/.img pair (NIfTI pair or Analyze)", _conversion(path.with_name(header), True))
    if ending := next((ending for ending in FOREIGN if name.endswith(ending)), None):
        convert = ending in (".mgz", ".mgh")
        remedy = _conversion(path, False) if convert else "convert it to .nii.gz, .nrrd, .mha, .png or .tif"
        return _Fault(f"is {FOREIGN[ending]}, which autoseg does not read", remedy)
    inside = INSIDE.fullmatch(path.name)
    right = path.with_name(inside[1] + inside[2]) if inside else path
    if inside and not inside[3].strip():
        return _Fault("has blanks after its ending", f"rename it: mv {quoted(path)} {quoted(right)}")
    if name.endswith(".dvc") and not right.is_file():
        return _Fault("stands for a file that DVC keeps elsewhere", f"fetch it: dvc pull {quoted(path)}")
    if name.endswith(SHORTCUT_ENDINGS):
        return _Fault("is a shortcut, not the file itself", "copy the file here", "error" if inside else "warning")
    if inside and right.is_file():
        return _Fault(f"is not used: {right.name} lies beside it", "nothing, or move it away", "warning")
    if name.endswith(PARTIAL_ENDINGS):
        return _Fault("is an unfinished download", "download it again", "error" if inside else "warning")
    if name.endswith(PACKED_ENDINGS):
        return _Fault("is packed in a way that autoseg does not read", "unpack it", "error" if inside else "warning")
    if inside:
        return _Fault(
            f"its ending is not one of an image: {inside[2]}{inside[3]}", f"if it is an image, rename it: {right.name}"
        )
    if _beginning(path).startswith(IMAGE_BEGINNINGS):
        return _Fault("holds an image, as its first bytes say, but its ending does not say so", f"rename it; {KNOWN}")
    return _Fault("is not an image of a known format, and is not used", f"nothing, or convert it; {KNOWN}", "warning")


def _beside(problem: Problem, names: Mapping[str, str]) -> Problem:
    """The same of a file that hides no case, because an image of its name lies beside it: what SPM or a viewer left."""
    twin = names.get(problem.case or "")
    if problem.severity == "warning" or twin is None:
        return problem
    return replace(
        problem,
        what=f"{problem.what}: not used, {twin} lies beside it",
        remedy="nothing, or move it away",
        severity="warning",
    )


def _conversion(path: Path, pair: bool) -> str:
    """How nibabel, which autoseg needs anyway, makes NIfTI of a file."""
    command = f"nib-convert {quoted(path)} {quoted(path.with_name(_stem(path) + '.nii.gz'))}"
    return f"convert it: {command}" + ("; if it is Analyze 7.5, look afterwards whether left is left" if pair else "")


def _join_pairs(found: Contents) -> None:
    """Report a .hdr and its .img once."""
    seen: dict[Path, Problem] = {}
    for problem in list(found.problems):
        path = Path(problem.file)
        if path.name.lower().endswith(PAIR_ENDINGS) and problem.severity == "error" and path.is_file():
            key = path.with_name(_stem(path))
            if key in seen:
                found.problems.remove(problem)
                both = f"is, with {path.name}, a .hdr/.img pair (NIfTI pair or Analyze), which autoseg does not read"
                first = seen[key]
                found.problems[found.problems.index(first)] = Problem(first.case, first.file, both, first.remedy)
            seen.setdefault(key, problem)


def _is_foreign(path: Path) -> bool:
    name = path.name.lower()
    return name.endswith((*PAIR_ENDINGS, *FOREIGN))


def _is_dicom(path: Path) -> bool:
    """By its ending, its name, or the magic word behind the first 128 bytes of a file without a telling ending."""
    name = path.name.lower()
    if name == "dicomdir" or name.endswith(DICOM_ENDINGS):
        return True
    telling = re.search(r"\.[a-z][a-z0-9]{0,7}$", name)
    return not telling and _beginning(path)[128:132] == b"DICM"


def _dicom_problem(folder: Path, files: list[Path]) -> Problem:
    shown = ", ".join(file.name for file in files[:NAMED_AT_ONCE]) + (", ..." if len(files) > NAMED_AT_ONCE else "")
    what = f"{len(files)} DICOM file{'s' * (len(files) != 1)}, which autoseg does not read: {shown}"
    return Problem(None, str(files[0]), what, dicom_remedy(folder))


def dicom_remedy(folder: Path) -> str:
    """How to make NIfTI of the DICOM series in a folder."""
    command = f"dcm2niix -z y -f %f_%s -o {quoted(folder)} {quoted(folder)}"
    return f"convert the series, say with {command}, and move it away"


def _other_ending(file: Path, ending: str, fitting: set[str]) -> Problem:
    if stem_of(file) in fitting:
        what = f"is not used: {stem_of(file)}{ending} lies beside it, and file_ending in dataset.json is {ending}"
        return Problem(stem_of(file), str(file), what, "nothing, or move it away", "warning")
    what = f"is not used: its ending is {ending_of(file)}, and file_ending in dataset.json is {ending}"
    return Problem(stem_of(file), str(file), what, f"convert it to {ending}, or correct file_ending")


def _data_files_of(images: list[Path]) -> set[str]:
    """Names of the files that MetaImage headers name as the place of their voxels."""
    names = set()
    for file in images:
        if file.name.lower().endswith(".mhd"):
            head = _beginning(file, 4096).decode("latin-1")
            names |= {
                Path(word).name.lower() for word in re.findall(r"^ElementDataFile\s*=\s*(\S+)", head, re.MULTILINE)
            }
    return names


def _beginning(path: Path, count: int = 132) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(count)
    except OSError:
        return b""


def _stem(path: Path) -> str:
    """What a name would be a case of: what stands before the first ending of an image in it."""
    name = composed(path.name.removeprefix(".") if path.name.lower().endswith(".icloud") else path.name)
    if inside := INSIDE.fullmatch(name):
        return inside[1]
    ending = next((e for e in (*PAIR_ENDINGS[::-1], *FOREIGN, *PARTIAL_ENDINGS) if name.lower().endswith(e)), "")
    return name[: len(name) - len(ending)] if ending else stem_of(name)


def quoted(path: Path) -> str:
    """A path as a shell takes it."""
    return shlex.quote(str(path))
