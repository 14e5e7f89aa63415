"""Datasets whose labels are outlines: COCO files of many images, and files beside their images.

    coco     annotations.json and the like: images, categories, and the objects in each image
    beside   images in one folder, each with a file of outlines of its name (labelme, QuPath)

The label of every case of a COCO file is that file; the reader chooses the annotations by the name of the image.
"""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from autoseg.datasets.contents import outlines_in
from autoseg.datasets.given_folds import numbered_splits
from autoseg.datasets.pairing import Found, Problem, image_files, listed_case, name_of, pair, subfolders
from autoseg.datasets.spelling import composed, find
from autoseg.errors import AutosegError, DataError
from autoseg.imaging.formats.coco import CocoFile, CocoImage, case_name, open_coco, prefixes, without_ending
from autoseg.imaging.formats.json_files import read_json
from autoseg.imaging.formats.polygon_files import reads
from autoseg.messages import counted, some

COCO = "COCO"  # the name of the layout
COCO_NAMES = re.compile(
    r"annotations\.json|instances[_.].*\.?json|.*coco.*\.json|result\.json", re.IGNORECASE
)  # COCO; CVAT, COCO; Roboflow, VIA; Label Studio
COCO_FOLDERS = re.compile(r"annotations?|train.*|val.*|test.*", re.IGNORECASE)
PARTS = (  # of a dataset, by words in names; the others are training cases
    ("test", re.compile("(?<![a-z])test(?![a-z])", re.IGNORECASE)),
    ("val", re.compile("(?<![a-z])val(?:id|idation)?(?![a-z])", re.IGNORECASE)),
)


def coco(root: Path) -> Found | None:
    """Read COCO files: annotations.json, instances_*.json, *coco*.json or result.json, or the file that is named.

    They lie in the folder, in annotations/, or in train/, valid/ and test/ with their images. Those called val are one
    given fold, those called test the test set.

    Raises:
        DataError: such a file is not JSON, its images or categories cannot be read, or nothing is annotated.
    """
    files = [(path, one) for path in _candidates(root) if (one := open_coco(path)) is not None]
    if not files:
        return None
    found = Found(COCO, root.stem if root.is_file() else root.name)
    parts = {path: part_of(path, root) for path, _ in files}
    if "train" not in parts.values():
        parts = dict.fromkeys(parts, "train")
    stems = Counter(composed(without_ending(image.name)).casefold() for _, one in files for image in _once(one))
    names = Counter(composed(case_name(image.name)).casefold() for _, one in files for image in _once(one))
    folds: dict[str, int] = {}
    folders: set[Path] = set()
    for path, one in files:
        found.problems += [Problem(None, str(path), *fault) for fault in one.faults]  # type: ignore[arg-type]
        images = _Images(path, root, one)
        cases = []
        for image in _once(one):
            case_id = composed(without_ending(image.name))
            if stems[case_id.casefold()] > 1:
                case_id = composed(case_name(image.name))
                prefix = prefixes(path)[len({one.parent for one, _ in files}) < len(files)]
                case_id = f"{prefix}_{case_id}" if names[case_id.casefold()] > 1 else case_id
            cases.append(listed_case(found, case_id, [images.path(image.name)], path, path))
        if empty := len(one.images) - one.annotated:
            what = f"{counted(empty, 'image')} of {len(one.images)} in {path.name} without an annotation"
            found.notes.append(f"{what}: all background")
        folders |= images.used
        if parts[path] == "test":
            found.test_cases += cases
        else:
            found.cases += cases
            folds |= {case.id: 0 if parts[path] == "val" else -1 for case in cases}
    if not any(one.annotated for _, one in files):
        raise DataError(f"{files[0][0]} contains no annotation of its images", remedy="export it with its annotations")
    _unlisted(found, folders, [path.name for path, _ in files])
    if 0 in folds.values():
        numbered_splits(found, folds, str(next(path for path in parts if parts[path] == "val")))
    return found


def _once(coco: CocoFile) -> list[CocoImage]:
    """The images of a file, of a volume its first slice."""
    return list({image.name: image for image in reversed(coco.images)}.values())[::-1]


def coco_unused(found: Found, root: Path, used: Path) -> None:
    """Report COCO files that are not used because there are label maps."""
    for path in _candidates(root) if root.is_dir() else ():
        what = f"is not used: {used.name}/ is"
        found.problems.append(Problem(None, str(path), what, "nothing, or move one of the two away", "warning"))


def beside(root: Path) -> Found | None:
    """Read images in the folder, or in images/, that have files of outlines of their names beside them."""
    if not root.is_dir():
        return None
    for folder in (root, *(one for one in subfolders(root) if one.name.lower() in ("images", "imagestr"))):
        files = {name_of(path): path for path in outlines_in(folder).images}
        images = [name_of(path) for path in image_files(folder)] if files else []
        common = [name for name in images if name in files]
        if common and 2 * len(common) >= len(images) and _holds_outlines(files[common[0]]):
            found = Found("outlines beside images", root.name)
            found.cases = pair(found, folder, folder)
            return found
    return None


def _holds_outlines(path: Path) -> bool:
    try:
        return reads(read_json(path))
    except AutosegError:
        return False


def _candidates(root: Path) -> Iterator[Path]:
    """Files that may be COCO: the one that is given, or those of a dataset's folder."""
    if root.is_file():
        if root.suffix.lower() == ".json":
            yield root
        return
    for folder in (root, *(one for one in subfolders(root) if COCO_FOLDERS.fullmatch(one.name))):
        for path in sorted(folder.iterdir()):
            if COCO_NAMES.fullmatch(path.name) and not path.name.startswith(".") and path.is_file():
                yield path


def part_of(path: Path, root: Path) -> str:
    """Which part of a dataset a file describes, by its name and its folder's within the dataset."""
    within = path.relative_to(root) if root.is_dir() else Path(path.name)
    return next((part for part, pattern in PARTS if pattern.search(str(within))), "train")


class _Images:
    """Where the images of a COCO file lie."""

    def __init__(self, path: Path, root: Path, coco: CocoFile) -> None:
        above = path.parent if root.is_file() or path.parent == root else root
        subset = path.stem.split("_", 1)[-1]  # instances_train2017.json: train2017/
        places = [
            *(path.parent, path.parent / "images", above, above / "images"),
            *(above / subset, above / "images" / subset, path.parent / subset, path.parent / "images" / subset),
        ]
        if path.parent.name.lower() in ("annotations", "annotation") and root.is_file():
            up = path.parent.parent
            places += [up, up / "images", up / subset, up / "images" / subset]
        self.folders = [place for place in dict.fromkeys(places) if place.is_dir()]
        self.used: set[Path] = set()
        lasts = Counter(PurePosixPath(image.name).name for image in _once(coco))
        self.alone = {name for name, count in lasts.items() if count == 1}

    def path(self, name: str) -> Path:
        """The image of a `file_name`: below one of the folders, there also without the folders in front of it."""
        last = PurePosixPath(name).name
        for written in (name, last) if last in self.alone else (name,):
            for place, folder in enumerate(self.folders):
                file = find(folder / written)
                if file.is_file():
                    self.used.add(file.parent)
                    self.folders.insert(0, self.folders.pop(place))  # where the next one is likely to be
                    return file
        return self.folders[0] / name


def _unlisted(found: Found, folders: set[Path], names: list[str]) -> None:
    """Report images beside those that are listed."""
    listed = {file for case in (*found.cases, *found.test_cases) for file in case.images}
    for folder in sorted(folders):
        if others := [file for file in image_files(folder) if str(file.absolute()) not in listed]:
            what = f"{counted(len(others), 'image')} not listed in {some(names)}: not used ({some(others, 1)})"
            found.problems.append(Problem(None, str(folder), what, "list them, or remove them", "warning"))
