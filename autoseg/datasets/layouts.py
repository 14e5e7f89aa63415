"""The dataset layouts autoseg understands: one function per layout, listed in `LAYOUTS`.

A layout function reads a folder (or a table) into `Found`, or returns None if it has another layout. It opens no image,
and raises nothing for a single case: one run shows every fault of a dataset.

    nnunet    dataset.json with channel_names, labels, regions; imagesTr, labelsTr; or its `dataset` dict of paths
    msd       dataset.json with a `training` list of {image, label}
    table     a CSV or TSV: image[_k], label, patient, fold, split
    coco      COCO files of many images, see `outlined`
    plain     images/ next to labels/, masks/ or segmentations/, equal stems
    outlined  images with files of outlines beside them
    folders   one folder per case, files named after channels, one of them `seg` or the like
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from autoseg.datasets.contents import contents, read_json, stray_folders, why_absent
from autoseg.datasets.given_folds import numbered_splits
from autoseg.datasets.outlined import beside, coco_unused
from autoseg.datasets.outlined import coco as coco_files
from autoseg.datasets.pairing import (
    LABEL_STEMS,
    Found,
    Problem,
    by_channel,
    case_folders,
    channel_files,
    image_files,
    listed_case,
    pair,
    subfolders,
)  # fmt: skip
from autoseg.datasets.spelling import composed
from autoseg.datasets.tables import TABLE_ENDINGS, cases_of_table, lists_images
from autoseg.errors import DataError, UsageError
from autoseg.imaging.formats.readers import ending_of, stem_of
from autoseg.imaging.labels import LabelSet
from autoseg.imaging.regions import refuse_lost_labels

IMAGE_FOLDERS = ("imagesTr", "images")
LABEL_FOLDERS = ("labelsTr", "labels", "masks", "segmentations")
OUTLINE_FOLDERS = ("annotations", "geojson", "json")  # of one file per image
Wanted = tuple[str, ...] | None  # channels named by option: layouts that name their files after channels choose by it


def nnunet(root: Path, wanted: Wanted) -> Found | None:
    """Read nnU-Net's layout; a dataset.json with a `training` list is `msd`'s."""
    description = _description(root)
    if description is None or isinstance(description.get("training"), list):
        return None
    where = root / "dataset.json"
    found = Found("nnU-Net", str(description.get("name") or root.name))
    found.channels = channels_of(description.get("channel_names", description.get("modality")), where)
    found.labels = labels_of(description.get("labels"), description.get("regions_class_order"), where)
    ending = _file_ending(found, description.get("file_ending"), where)
    images = _subfolder(root, IMAGE_FOLDERS)
    if isinstance(description.get("dataset"), dict):
        for case_id, entry in description["dataset"].items():
            _listed(found, str(case_id), entry, where)
    elif images:
        found.cases = pair(found, images, _subfolder(root, LABEL_FOLDERS), ending)
        _unused_twins(found, root)
    else:
        raise DataError(f"{root} has a dataset.json, but no folder imagesTr", remedy="put the images in imagesTr/")
    expected = description.get("numTraining")
    if isinstance(expected, int) and expected != len(found.cases):
        what = f"numTraining is {expected}, but {len(found.cases)} training cases were found"
        found.problems.append(Problem(None, str(where), what, "correct the number, or add the cases", "warning"))
    _test_folders(found, root, ending)
    return found


def msd(root: Path, wanted: Wanted) -> Found | None:
    """Read the Medical Segmentation Decathlon's layout: dataset.json lists the files; 4-D NIfTI hold the channels."""
    description = _description(root)
    if description is None or not isinstance(description.get("training"), list):
        return None
    where = root / "dataset.json"
    found = Found("MSD", str(description.get("name") or root.name))
    found.channels = channels_of(description.get("modality", description.get("channel_names")), where)
    found.labels = labels_of(description.get("labels"), None, where)
    folds: dict[str, int] = {}
    for key in ("training", "validation"):  # MONAI's data lists have both, or a fold in each entry
        for entry in _entries_of(found, description.get(key), where):
            case_id = composed(stem_of(Path(str(entry["image"]))))
            _listed(found, case_id, {"images": [entry["image"]], "label": entry["label"]}, where)
            if key == "validation" or isinstance(entry.get("fold"), int):
                folds[case_id] = 0 if key == "validation" else entry["fold"]
    if folds:
        numbered_splits(found, {case.id: folds.get(case.id, -1) for case in found.cases}, str(where))
    _unlisted(found, root)
    _test_folders(found, root)
    found.unused_ids |= {composed(stem_of(Path(str(image)))) for image in _paths_of(description.get("test"))}
    if description.get("test") and not found.test_cases:
        found.notes.append("the test images listed in dataset.json have no labels and are not used")
    return found


def table(root: Path, wanted: Wanted) -> Found | None:
    """Read a CSV or TSV of image[_k], label, patient, fold, split: the file itself, or the only one in a folder.

    Raises:
        UsageError: the folder holds several such tables.
    """
    if root.is_file():
        return cases_of_table(root, wanted) if root.suffix.lower() in TABLE_ENDINGS else None
    candidates = [file for file in sorted(root.iterdir()) if lists_images(file)]
    if len(candidates) > 1:
        names = ", ".join(file.name for file in candidates)
        raise UsageError(f"{root} contains several tables of images: {names}", remedy="pass the one to use")
    if not candidates:
        return None
    found = cases_of_table(candidates[0], wanted)
    if not found.test_cases:
        _test_folders(found, root)
    return found


def coco(root: Path, wanted: Wanted) -> Found | None:
    """Read COCO files, where no folder of label maps is there; see `outlined.coco`."""
    labels = _subfolder(root, LABEL_FOLDERS)
    return None if labels and image_files(labels) else coco_files(root)


def outlined(root: Path, wanted: Wanted) -> Found | None:
    """Read images with files of outlines beside them; see `outlined.beside`."""
    return beside(root)


def plain(root: Path, wanted: Wanted) -> Found | None:
    """Read images/ beside labels/, masks/ or segmentations/: equal stems, channels `_0000`, or a folder per case."""
    images, labels = _subfolder(root, IMAGE_FOLDERS), _subfolder(root, LABEL_FOLDERS)
    labels = labels or _subfolder(root, OUTLINE_FOLDERS)
    if images is None or labels is None:
        return None
    found = Found("plain folders", root.name)
    coco_unused(found, root, labels)
    there = contents(images)
    if there.images or not there.folders:
        found.cases = pair(found, images, labels)
    else:
        found.problems += there.problems
        case_folders(found, there.folders, labels, wanted)
    _unused_twins(found, root)
    _test_folders(found, root)
    return found


def folders(root: Path, wanted: Wanted) -> Found | None:
    """Read one folder per case, its files named after their channels, a label among them; one level deeper too."""
    if not root.is_dir():
        return None
    level = subfolders(root)
    below = [folder for parent in level for folder in subfolders(parent)]
    candidates = [folder for folder in (*level, *below) if image_files(folder)]
    labelled = [folder for folder in candidates if not set(LABEL_STEMS).isdisjoint(channel_files(folder))]
    if not labelled or 2 * len(labelled) < len(candidates):
        return None
    found = Found("a folder per case", root.name)
    used = {*candidates, *(folder.parent for folder in candidates)}
    beside = [folder for parent in sorted({folder.parent for folder in candidates}) for folder in subfolders(parent)]
    within = [folder for folder in beside if folder not in used and folder.parent not in candidates]
    case_folders(found, sorted({*candidates, *within}), None, wanted)
    for file in [file for file in contents(root).images if not file.is_dir()]:
        what = "an image next to the case folders: it is not used"
        found.problems.append(Problem(None, str(file), what, "move it into its case folder, or remove it", "warning"))
    return found


LAYOUTS: dict[str, Callable[[Path, Wanted], Found | None]] = {
    "nnunet": nnunet,
    "msd": msd,
    "table": table,
    "coco": coco,
    "plain": plain,
    "outlined": outlined,
    "folders": folders,
}


def labels_of(labels: Any, order: Any, where: Path) -> LabelSet | None:
    """The labels a dataset.json declares: name -> value(s) (nnU-Net; lists make regions), or value -> name (MSD).

    Raises:
        DataError: they are invalid; the message names `where`.
    """
    if not labels:
        return None
    try:
        if not isinstance(labels, dict):
            raise UsageError(f"labels is not an object: {str(labels)[:60]}", remedy='write {"liver": 1}')
        if all(str(key).isdecimal() and isinstance(name, str) for key, name in labels.items()):
            labels = {name: int(value) for value, name in labels.items()}
        entries = {str(name): _values(str(name), value) for name, value in labels.items()}
        ignore = next((v[0] for name, v in entries.items() if name.lower() == "ignore" and len(v) == 1), None)
        entries = {name: v for name, v in entries.items() if v != (0,) and name.lower() not in ("background", "ignore")}
        if not any(isinstance(value, (list, tuple)) for value in labels.values()):
            return LabelSet({name: v[0] for name, v in entries.items()}, ignore=ignore)
        single = {v[0]: name for name, v in entries.items() if len(v) == 1}
        values = {single.get(value, f"label_{value}"): value for v in entries.values() for value in v}
        found = LabelSet(values, entries, tuple(int(value) for value in order or ()), ignore)
        refuse_lost_labels(found.regions, found.region_values)
        return found
    except (UsageError, TypeError, ValueError) as error:
        what = error.what if isinstance(error, UsageError) else str(error)
        raise DataError(f"{where}: {what}", remedy=getattr(error, "remedy", "") or "correct its labels") from None


def channels_of(names: Any, where: Path) -> tuple[str, ...] | None:
    """Channel names a dataset.json declares, {"0": "CT"} or a list, in order. Raises DataError if they are neither."""
    if not names:
        return None
    if isinstance(names, dict) and sorted(map(str, names)) == sorted(map(str, range(len(names)))):
        names = [names[key] for key in sorted(names, key=int)]
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        what = f"{where}: the channel names are neither an object nor a list of names: {str(names)[:80]}"
        raise DataError(what, remedy='write {"0": "CT"}')
    return tuple(names)


def _description(root: Path) -> dict[str, Any] | None:
    if not (root / "dataset.json").is_file():
        return None
    description = read_json(root / "dataset.json")
    if not isinstance(description, dict):
        raise DataError(f"{root / 'dataset.json'} is not a JSON object", remedy="see docs/layouts.md for its keys")
    return description


def _subfolder(root: Path, names: tuple[str, ...]) -> Path | None:
    """The first of the named folders that exists, upper or lower case.

    Raises:
        DataError: a broken link has that name.
    """
    existing = {folder.name.lower(): folder for folder in subfolders(root)} if root.is_dir() else {}
    for name in names:
        if name.lower() in existing:
            return existing[name.lower()]
        if (link := root / name).is_symlink() and not link.exists():
            what, remedy = why_absent(link)
            raise DataError(f"{link} {what}", remedy=remedy)
    return None


def _unused_twins(found: Found, root: Path) -> None:
    """Report folders of images or labels that are not used because another one comes first."""
    for names in (IMAGE_FOLDERS, LABEL_FOLDERS):
        used = _subfolder(root, names)
        for other in [folder for folder in subfolders(root) if folder.name.lower() in [n.lower() for n in names]]:
            if used and other != used and image_files(other):
                what = f"is not used: {used.name}/ is"
                found.problems.append(
                    Problem(None, str(other), what, "nothing, or move one of the two away", "warning")
                )


def _file_ending(found: Found, given: object, where: Path) -> str:
    """The extension that dataset.json requires, in lower case with its dot; empty if it requires no known one."""
    if given is None or given == "":
        return ""
    ending = given.strip().lower() if isinstance(given, str) else ""
    ending = ending if ending.startswith(".") else f".{ending}"
    if ending_of(f"x{ending}") is None:
        what = f"file_ending is {given!r}, which is not a known image format: files of every known format are read"
        found.problems.append(Problem(None, str(where), what, 'correct it: "file_ending": ".nii.gz"', "warning"))
        return ""
    return ending


def _entries_of(found: Found, entries: object, where: Path) -> list[dict[str, Any]]:
    """Entries {image, label} of a list in dataset.json; others are reported, files left by macOS are ignored."""
    good = []
    for entry in entries if isinstance(entries, list) else []:
        if not isinstance(entry, dict) or not {"image", "label"} <= entry.keys():
            what = f"a training entry is not {{image, label}}: {str(entry)[:80]}"
            found.problems.append(Problem(None, str(where), what, "correct the entry"))
        elif not Path(str(entry["image"])).name.startswith("._"):
            good.append(entry)
    return good


def _paths_of(entries: object) -> list[str]:
    """The images of a list without labels: paths, or {image: path}."""
    listed = entries if isinstance(entries, list) else []
    return [str(entry.get("image") if isinstance(entry, dict) else entry) for entry in listed]


def _unlisted(found: Found, root: Path) -> None:
    """Report files in the folders of listed images and labels that are not listed."""
    listed = {file for case in found.cases for file in (*case.images, case.label) if file}
    listed |= {problem.file for problem in found.problems}
    for folder in sorted({Path(file).parent for file in listed if Path(file).parent != root}):
        if not folder.is_dir():
            continue
        there = contents(folder)
        labels = any(case.label and Path(case.label).parent == folder for case in found.cases)
        found.problems += [p for p in (*there.problems, *stray_folders(there)) if p.file not in listed]
        for file in [file for file in there.images if str(file.absolute()) not in listed]:
            what = f"no training entry of dataset.json {'belongs to this label' if labels else 'lists this image'}"
            found.problems.append(Problem(stem_of(file), str(file), what, "list its case, or remove it"))


def _test_folders(found: Found, root: Path, ending: str = "") -> None:
    """Use imagesTs with labelsTs as the held-out test set; without labelsTs it is not used."""
    images, labels = _subfolder(root, ("imagesTs",)), _subfolder(root, ("labelsTs",))
    if images and labels:
        found.test_cases = pair(found, images, labels, ending)
    elif images and (files := image_files(images)):
        found.unused_ids |= {*by_channel(files), *map(stem_of, files)}
        found.notes.append(f"{images.name}/ has no labelsTs/ next to it and is not used")
    elif labels and image_files(labels):
        what = "contains labels, but there is no imagesTs/ next to it: it is not used"
        found.problems.append(Problem(None, str(labels), what, "add imagesTs/, or move it away", "warning"))


def _listed(found: Found, case_id: str, entry: Any, where: Path) -> None:
    """Add a case that dataset.json lists as {images: [...], label: ...}, paths relative to it or absolute."""
    if not isinstance(entry, dict) or not isinstance(entry.get("images"), list):
        what = f"the entry is not {{images: [...], label: ...}}: {str(entry)[:80]}"
        found.problems.append(Problem(case_id, str(where), what, "correct the entry"))
        return
    images: list[Path | None] = [where.parent / os.path.expandvars(str(image)) for image in entry["images"]]
    label = where.parent / os.path.expandvars(str(entry["label"])) if entry.get("label") else None
    found.cases.append(listed_case(found, case_id, images, label, where))


def _values(name: str, value: Any) -> tuple[int, ...]:
    values = value if isinstance(value, (list, tuple)) else [value]
    if not values or not all(isinstance(v, int) and not isinstance(v, bool) for v in values):
        raise UsageError(f"the label {name!r} is not an integer or a list of them: {value!r}", remedy="correct it")
    if len(values) > 1 and 0 in values:
        raise UsageError(f"the region {name!r} contains the background 0", remedy="leave 0 out")
    return tuple(values)
