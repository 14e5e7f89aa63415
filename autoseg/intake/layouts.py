"""The dataset layouts autoseg understands: one function per layout, listed in `LAYOUTS`.

A layout function looks at a folder (or a table) and returns what it says as `Found`, or None if it has another layout.
It opens no image, and raises nothing for a single case: one run shows every fault of a dataset.

    nnunet    dataset.json with channel_names, labels, regions; imagesTr, labelsTr; or its `dataset` dict of paths
    msd       dataset.json with a `training` list of {image, label}
    table     a CSV or TSV: image[_k], label, patient, fold, split
    plain     images/ beside labels/, masks/ or segmentations/, equal stems
    folders   one folder per case, files named after channels, one of them `seg` or the like
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from autoseg.data.splits import Split
from autoseg.errors import DataError, UsageError
from autoseg.imaging.labels import LabelSet
from autoseg.imaging.readers import stem_of
from autoseg.imaging.regions import refuse_lost_labels
from autoseg.intake.pairing import (
    LABEL_STEMS,
    Found,
    Problem,
    case_folders,
    channel_files,
    image_files,
    listed_case,
    pair,
    subfolders,
)  # fmt: skip
from autoseg.intake.tables import TABLE_ENDINGS, cases_of_table, lists_images

IMAGE_FOLDERS = ("imagesTr", "images")
LABEL_FOLDERS = ("labelsTr", "labels", "masks", "segmentations")
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
    ending = str(description.get("file_ending") or "").lower()
    images = _subfolder(root, IMAGE_FOLDERS)
    if isinstance(description.get("dataset"), dict):
        for case_id, entry in description["dataset"].items():
            _listed(found, str(case_id), entry, where)
    elif images:
        found.cases = pair(found, images, _subfolder(root, LABEL_FOLDERS), ending)
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
    for entry in description["training"]:
        if not isinstance(entry, dict) or not {"image", "label"} <= entry.keys():
            what = f"a training entry is not {{image, label}}: {str(entry)[:80]}"
            found.problems.append(Problem(None, str(where), what, "correct the entry"))
        elif not Path(str(entry["image"])).name.startswith("._"):
            case_id = stem_of(Path(str(entry["image"])))
            _listed(found, case_id, {"images": [entry["image"]], "label": entry["label"]}, where)
    used = {case.label for case in found.cases}
    for folder in sorted({Path(label).parent for label in used if label}):
        for file in image_files(folder):
            if str(file.absolute()) not in used:
                what = "no training entry of dataset.json belongs to this label"
                found.problems.append(Problem(stem_of(file), str(file), what, "list its case, or remove it"))
    _test_folders(found, root)
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
        raise UsageError(f"{root} holds several tables of images: {names}", remedy="name the one to use")
    if not candidates:
        return None
    found = cases_of_table(candidates[0], wanted)
    if not found.test_cases:
        _test_folders(found, root)
    return found


def plain(root: Path, wanted: Wanted) -> Found | None:
    """Read images/ beside labels/, masks/ or segmentations/: equal stems, channels `_0000`, or a folder per case."""
    images, labels = _subfolder(root, IMAGE_FOLDERS), _subfolder(root, LABEL_FOLDERS)
    if images is None or labels is None:
        return None
    found = Found("plain folders", root.name)
    if image_files(images):
        found.cases = pair(found, images, labels)
    else:
        case_folders(found, [folder for folder in subfolders(images) if image_files(folder)], labels, wanted)
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
    case_folders(found, candidates, None, wanted)
    return found


LAYOUTS: dict[str, Callable[[Path, Wanted], Found | None]] = {
    "nnunet": nnunet,
    "msd": msd,
    "table": table,
    "plain": plain,
    "folders": folders,
}


def read_splits(found: Found, path: Path) -> tuple[Split, ...] | None:
    """Folds of an existing splits_final.json (a list of {train, val}); faults go to `found.problems`.

    Raises:
        DataError: it is no such list.
    """
    plain_splits = read_json(path)
    ids = {case.id for case in found.cases}
    splits, absent = [], set()
    try:
        for fold, entry in enumerate(plain_splits):
            train, validation = {str(i) for i in entry["train"]}, {str(i) for i in entry["val"]}
            absent |= (train | validation) - ids
            splits.append(Split(fold, tuple(sorted(train & ids)), tuple(sorted(validation & ids))))
    except (TypeError, KeyError):
        what = f"{path} is not a list of folds with the keys train and val"
        raise DataError(what, remedy="correct it, or remove it: autoseg then makes its own folds") from None
    for case_id in sorted(absent):
        what = "the folds name a case that does not exist"
        found.problems.append(
            Problem(case_id, str(path), what, "it is left out; add it, or correct the name", "warning")
        )
    unused = ids - {case_id for split in splits for case_id in (*split.train, *split.validation)}
    for case_id in sorted(unused):
        what = "no fold names this case"
        found.problems.append(Problem(case_id, str(path), what, "add it to the folds, or remove the file", "warning"))
    return tuple(splits) or None


def labels_of(labels: Any, order: Any, where: Path) -> LabelSet | None:
    """The labels a dataset.json declares: name -> value(s) (nnU-Net; lists make regions), or value -> name (MSD).

    Raises:
        DataError: they make no sense; `where` is named.
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
        raise DataError(f"{where}: the channel names are not understood: {str(names)[:80]}", remedy='write {"0": "CT"}')
    return tuple(names)


def read_json(path: Path) -> Any:
    """Content of a JSON file. Raises DataError naming the line that is wrong."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not valid JSON: {error}", remedy="correct it") from None


def _description(root: Path) -> dict[str, Any] | None:
    if not (root / "dataset.json").is_file():
        return None
    description = read_json(root / "dataset.json")
    if not isinstance(description, dict):
        raise DataError(f"{root / 'dataset.json'} is not a JSON object", remedy="see the README for its keys")
    return description


def _subfolder(root: Path, names: tuple[str, ...]) -> Path | None:
    """The first of the named folders that exists, upper or lower case."""
    existing = {folder.name.lower(): folder for folder in subfolders(root)} if root.is_dir() else {}
    return next((existing[name.lower()] for name in names if name.lower() in existing), None)


def _test_folders(found: Found, root: Path, ending: str = "") -> None:
    """Take imagesTs with labelsTs as the held-out test set; without labelsTs it is of no use here."""
    images, labels = _subfolder(root, ("imagesTs",)), _subfolder(root, ("labelsTs",))
    if images and labels:
        found.test_cases = pair(found, images, labels, ending)
    elif images and image_files(images):
        found.notes.append(f"{images.name}/ has no labelsTs/ beside it and is not used")


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
