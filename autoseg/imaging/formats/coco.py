"""COCO JSON: one file with the objects of many images.

    open_coco     a file -> its images, categories, and where each annotation stands; parsed once per process
    CocoFile      outlines of one image; which image is meant by a path

A file of a large data set has hundreds of megabytes. It is walked through once; what is kept are the images, the
categories and the place of every annotation in the file. The annotations of an image are parsed when it is read.

`segmentation` is a list of polygons, which are united, or run lengths: a list of counts, or a string. Annotations with
`iscrowd` mark places where nobody drew single objects.
"""

import unicodedata
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

from autoseg.errors import DataError
from autoseg.imaging.formats.json_files import Span, element, read_top
from autoseg.imaging.formats.outlines import Outline, Part, Rings, Runs, is_background, is_ignored, polygon
from autoseg.imaging.formats.polygon_files import Drawn, collect, size_of
from autoseg.imaging.formats.run_lengths import from_text
from autoseg.messages import counted, some

ANNOTATIONS = "annotations"
FILES_KEPT = 4  # open files per process


@dataclass(frozen=True)
class CocoImage:
    """One image that a file describes."""

    key: str  # its id as text: some programs write numbers, others text
    name: str  # its `file_name`, with slashes
    shape: tuple[int, int] | None  # (rows, columns)
    place: int  # in the list of images
    slice: int | None = None  # of a volume, from 0


@dataclass(eq=False)
class CocoFile:
    """What a COCO file describes."""

    path: Path
    images: list[CocoImage]
    categories: dict[str, str]  # id as text -> name, in order of the ids
    used: set[str] = field(default_factory=set)  # names of the categories of annotations that are not crowds
    crowds: bool = False  # whether it marks places that nobody annotated
    faults: list[tuple[str, str, str]] = field(default_factory=list)  # what is odd in it, what to do, severity
    annotated: int = 0  # images with an annotation
    _places: list[list[int]] = field(default_factory=list)  # of an image in `images`: its annotations, by number
    _spans: tuple["array[int]", "array[int]"] = field(default_factory=lambda: (array("q"), array("q")))

    def names(self) -> dict[str, int]:
        """Names of the categories that annotations use -> 1, 2, ... in order of their ids."""
        names = dict.fromkeys(name for name in self.categories.values() if name in self.used)
        known = (name for name in names if not is_background(name) and not is_ignored(name))
        return {name: value for value, name in enumerate(known, start=1)}

    def find(self, like: Path) -> list[CocoImage]:
        """The image that a path means, or its slices: of that name, or, as of a segmentation, with another extension.

        Raises:
            DataError: none, or more than one.
        """
        alike = self._by_name.get(_plain(like.name), [])
        parts = [_plain(part) for part in like.parts]
        common = [_common_end([_plain(part) for part in PurePosixPath(image.name).parts], parts) for image in alike]
        best = [image for image, length in zip(alike, common, strict=True) if length == max(common)]
        stem = _plain(without_ending(like.name))
        for name in (stem, *(stem.removeprefix(_plain(f"{one}_")) for one in prefixes(self.path))):
            best = best or self._by_case.get(name, []) or self._by_stem.get(name, [])
        if len(best) == 1 or (best and self.is_volume(best)):
            return best
        found = f"describes {len(best)} images of that name" if best else "does not describe it"
        raise DataError(
            f"{self.path} {found}: {like.name}; it describes {some([image.name for image in self.images], 3)}",
            remedy="correct its `images`, or the names of the files",
        )

    @staticmethod
    def is_volume(images: Sequence[CocoImage]) -> bool:
        """Whether images are the slices of one volume."""
        return all(image.slice is not None and image.name == images[0].name for image in images)

    @cached_property
    def _by_name(self) -> dict[str, list[CocoImage]]:
        return _grouped(self.images, lambda name: PurePosixPath(name).name)

    @cached_property
    def _by_case(self) -> dict[str, list[CocoImage]]:
        return _grouped(self.images, case_name)

    @cached_property
    def _by_stem(self) -> dict[str, list[CocoImage]]:
        return _grouped(self.images, without_ending)

    def drawn(self, image: CocoImage) -> Drawn:
        """Read the objects of one image.

        Raises:
            DataError: an annotation cannot be read; all such annotations of the image are named.
        """
        outlines: list[Outline] = []
        faults: list[str] = []
        boxes = 0
        numbers = self._places[image.place]
        with open(self.path, "rb") as file:
            for number in numbers:
                annotation = element(file, Span(self._spans[0][number], self._spans[1][number]), self.path)
                where = f"annotation {annotation.get('id', number)}"
                try:
                    name = self._name(annotation)
                    parts = parts_of(annotation.get("segmentation"), image.shape)
                except ValueError as error:
                    faults.append(f"{where}: {error}")
                    continue
                boxes += parts is None
                unknown = _is_crowd(annotation) or is_ignored(name)
                outlines.append(Outline(name, parts or (), unknown, _whole(annotation.get("object"))))
        if boxes:
            faults.insert(0, f"{counted(boxes, 'object')} of {len(numbers)} without a segmentation: only boxes?")
        collect(faults, f"{self.path}, image {image.name}")
        return Drawn(tuple(outlines), image.shape)

    def _name(self, annotation: dict[str, Any]) -> str:
        key = _key(annotation.get("category_id"))
        if key is not None and key in self.categories:
            return self.categories[key]
        known = some(f"{key} {name}" for key, name in self.categories.items())
        raise ValueError(f"its category {annotation.get('category_id')!r} is not one of the file ({known or 'none'})")


def open_coco(path: Path) -> CocoFile | None:
    """Walk through a JSON file; None where it is not COCO.

    Raises:
        DataError: it is not JSON, or its images or categories cannot be read.
    """
    status = path.stat()
    return _opened(str(path.absolute()), status.st_size, status.st_mtime_ns)


def _common_end(a: Sequence[str], b: Sequence[str]) -> int:
    """How many of the last parts of two paths are equal."""
    return next((i for i, (x, y) in enumerate(zip(a[::-1], b[::-1], strict=False)) if x != y), min(len(a), len(b)))


def _plain(name: str) -> str:
    """A name without regard to case and to how its accents are stored."""
    return unicodedata.normalize("NFC", name).casefold()


def _grouped(images: Sequence[CocoImage], key: Callable[[str], str]) -> dict[str, list[CocoImage]]:
    groups: dict[str, list[CocoImage]] = {}
    for image in images:
        groups.setdefault(_plain(key(image.name)), []).append(image)
    return groups


def prefixes(path: Path) -> tuple[str, str]:
    """What ids of cases begin with, where two files describe images of one name: train/ and valid/, or their names."""
    return path.parent.name, path.stem


def case_name(name: str) -> str:
    """The id of a case whose image has this `file_name`, where its last part alone is not unique."""
    return without_ending("_".join(part for part in PurePosixPath(name).parts if part not in ("/", "..", ".")))


def without_ending(name: str) -> str:
    """The last part of a name without what follows its last dot; `.nii.gz` counts as one."""
    last = PurePosixPath(name).name
    last = last[:-3] if last.lower().endswith(".nii.gz") else last
    return last[: last.rindex(".")] if "." in last[1:] else last


def parts_of(segmentation: Any, shape: tuple[int, int] | None) -> tuple[Part, ...] | None:
    """The parts of a `segmentation`; None where there is none.

    Polygons with fewer than three points enclose nothing, and are left out.

    Raises:
        ValueError: it cannot be read; the message says why.
    """
    if segmentation is None or segmentation == [] or segmentation == {}:
        return None
    if isinstance(segmentation, dict):
        return (_runs(segmentation, shape),)
    if not isinstance(segmentation, list):
        raise ValueError(f"its segmentation is neither polygons nor run lengths: {str(segmentation)[:40]!r}")
    if not any(isinstance(entry, (list, dict)) for entry in segmentation):
        segmentation = [segmentation]  # one polygon without the list around it
    elif len(segmentation) > 2 and all(isinstance(e, list) and len(e) == 2 for e in segmentation):
        segmentation = [segmentation]  # the points of one polygon
    parts: list[Part] = []
    for entry in segmentation:
        if isinstance(entry, dict):
            parts.append(_runs(entry, shape))
            continue
        if not isinstance(entry, list):
            raise ValueError(f"its segmentation mixes polygons with {str(entry)[:40]!r}")
        numbers = [n for p in entry for n in p] if all(isinstance(p, list) and len(p) == 2 for p in entry) else entry
        if shape and _add_up(numbers) == shape[0] * shape[1] and (len(numbers) % 2 or max(numbers) > sum(shape)):
            raise ValueError(
                "its polygon is a list of run lengths, which add up to the size of the image: write "
                '{"counts": [...], "size": [rows, columns]}'
            )
        if len(numbers) == 4 and len(segmentation) == 1:
            raise ValueError("its polygon has 2 points, expected 3 or more: is it a box?")
        points = polygon(numbers)
        if len(points) > 2:
            parts.append(Rings((points,)))
    return tuple(parts)


def _runs(segmentation: dict[str, Any], shape: tuple[int, int] | None) -> Runs:
    counts, size = segmentation.get("counts"), segmentation.get("size")
    if not isinstance(size, list) or (stated := size_of(*(*size, 0, 0)[:2])) is None or len(size) != 2:
        raise ValueError(f"its run lengths have the size {size!r}, expected [rows, columns]")
    if shape is not None and stated != shape:
        turned = ": rows and columns are exchanged" if stated == shape[::-1] else ""
        raise ValueError(f"its run lengths are of {stated[1]} x {stated[0]} pixels, the image has "
                         f"{shape[1]} x {shape[0]}{turned}")  # fmt: skip
    if isinstance(counts, str):
        if counts[:2] in ("b'", 'b"'):
            raise ValueError("its run lengths are bytes as Python prints them (b'...'): write counts.decode()")
        counts = from_text(counts)
    if not isinstance(counts, list) or not all(isinstance(n, int) and not isinstance(n, bool) for n in counts):
        raise ValueError(f"its run lengths are neither a list of whole numbers nor text: {str(counts)[:40]}")
    if sum(counts) != stated[0] * stated[1] or min(counts) < 0:
        raise ValueError(
            f"its run lengths add up to {sum(counts)} pixels, the image has {stated[1]} x {stated[0]} = "
            f"{stated[0] * stated[1]}"
        )
    return Runs(tuple(counts), stated)


def _add_up(numbers: Sequence[Any]) -> int | None:
    """The sum of whole numbers; None where they are others."""
    return sum(numbers) if all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in numbers) else None


# ---- the file -------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=FILES_KEPT)
def _opened(text: str, size: int, mtime_ns: int) -> CocoFile | None:
    """`open_coco`, once for a file as long as its size and time stay."""
    path = Path(text)
    if not _may_be_coco(path):
        return None
    known: list[tuple[str | None, str | None, bool]] = []  # image, category, crowd of each annotation
    starts, stops = array("q"), array("q")

    def keep(annotation: Any, span: Span) -> None:
        if not isinstance(annotation, dict):
            known.append((None, None, False))
        else:
            keys = _key(annotation.get("image_id")), _key(annotation.get("category_id"))
            known.append((*keys, _is_crowd(annotation)))
        starts.append(span.start)
        stops.append(span.stop)

    content = read_top(path, ANNOTATIONS, keep)
    if not isinstance(content, dict) or not isinstance(content.get("images"), list) or ANNOTATIONS not in content:
        return None
    if content[ANNOTATIONS] is not None:
        raise DataError(f"{path}: `annotations` is not a list", remedy="export it again as COCO")
    coco = CocoFile(path, [], _categories(content.get("categories"), path), _spans=(starts, stops))
    places = _images(coco, content["images"])
    _attach(coco, places, known)
    return coco


def _may_be_coco(path: Path) -> bool:
    """Whether the word `annotations` occurs in a file: others are not walked through."""
    wanted, before = b'"annotations"', b""
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            if wanted in before + block:
                return True
            before = block[-len(wanted) :]
    return False


def _categories(listed: Any, path: Path) -> dict[str, str]:
    found: list[tuple[Any, str]] = []
    for place, category in enumerate(listed if isinstance(listed, list) else []):
        key = _key(category.get("id")) if isinstance(category, dict) else None
        if key is None:
            raise DataError(
                f"{path}: categories[{place}] has no id: {str(category)[:60]}", remedy="export it again as COCO"
            )
        name = category.get("name")
        found.append((key, str(name).strip() if name not in (None, "") else f"category_{key}"))
    ordered = sorted(found, key=lambda pair: (not pair[0].lstrip("-").isdecimal(), _number(pair[0]), pair[0]))
    return dict(ordered)


def _images(coco: CocoFile, listed: list[Any]) -> dict[str, int]:
    """Fill `images`, one entry per file name; returns id -> the place of its image."""
    places: dict[str, int] = {}
    by_name: dict[tuple[str, int | None], int] = {}
    twice: list[str] = []
    for place, entry in enumerate(listed):
        key = _key(entry.get("id")) if isinstance(entry, dict) else None
        written = entry.get("file_name") if isinstance(entry, dict) else None
        if key is None or not isinstance(written, str) or not written.strip():
            what = "id" if key is None else "file_name"
            raise DataError(
                f"{coco.path}: images[{place}] has no {what}: {str(entry)[:60]}", remedy="export it again as COCO"
            )
        name, plane = file_name(written), _whole(entry.get("slice"))
        shape = size_of(entry.get("height"), entry.get("width"))
        if key in places and coco.images[places[key]].name != name:
            twice.append(f"{key} ({coco.images[places[key]].name}, {name})")
        if (name, plane) not in by_name:
            by_name[name, plane] = len(coco.images)
            coco.images.append(CocoImage(key, name, shape, len(coco.images), plane))
        places.setdefault(key, by_name[name, plane])
    coco._places = [[] for _ in coco.images]
    if twice:
        what = (
            f"{counted(len(twice), 'id')} of several images, so that annotations cannot be assigned: {some(twice, 3)}"
        )
        coco.faults.append((what, "give every image an id of its own", "error"))
    if len(by_name) < len(listed) and not twice:
        what = f"{counted(len(listed) - len(by_name), 'image')} listed twice: their annotations are joined"
        coco.faults.append((what, "nothing, or remove the second entry", "warning"))
    return places


def _attach(coco: CocoFile, places: dict[str, int], known: Sequence[tuple[str | None, str | None, bool]]) -> None:
    """Give every image its annotations, and note what belongs to none."""
    strange: list[str] = []
    for number, (image, category, crowd) in enumerate(known):
        place = places.get(image) if image is not None else None
        if place is None:
            strange.append(str(image))
            continue
        coco._places[place].append(number)
        name = coco.categories.get(category or "")
        coco.crowds |= crowd or (name is not None and is_ignored(name))
        if name is not None and not crowd:
            coco.used.add(name)
    coco.annotated = sum(bool(numbers) for numbers in coco._places)
    if strange:
        images = some(dict.fromkeys(strange), 3)
        what = f"{counted(len(strange), 'annotation')} of images that it does not list (image_id {images}): not used"
        coco.faults.append((what, "list these images, or remove the annotations", "warning"))
    names = list(coco.categories.values())
    if same := sorted({name for name in names if names.count(name) > 1}):
        what = f"several categories are called {some(same, 3)}: they are one label"
        coco.faults.append((what, "nothing, or rename one of them", "warning"))


def file_name(written: str) -> str:
    """A `file_name` as a path with slashes: of Windows, with a protocol, or as part of a URL."""
    text = written.strip().replace("\\", "/")
    if "://" in text:
        text = unquote(text.split("://", 1)[1].partition("/")[2].partition("?")[0])
    if "?d=" in text:  # local files of Label Studio
        text = unquote(text.partition("?d=")[2])
    text = text[2:] if text[1:2] == ":" else text  # of a drive
    return str(PurePosixPath(text))


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31 else None


def _key(value: Any) -> str | None:
    """An id as text: 12, 12.0 and "12" are one."""
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, float):
        return str(int(value)) if value == value and abs(value) < 2**63 and value == int(value) else None
    return str(value).strip() if isinstance(value, (int, str)) else None


def _number(key: str) -> int:
    return int(key) if key.lstrip("-").isdecimal() else 0


def _is_crowd(annotation: dict[str, Any]) -> bool:
    return annotation.get("iscrowd") in (1, True, "1")
