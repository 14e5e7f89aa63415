"""Labels that cannot be trained on as they are: rare, absent, empty, ignored, or coloured by differing palettes.

empty_label        a label map without any label: nothing to annotate, or not annotated
blurred_mask       a mask that was once stored as JPEG
compare_labels     labels that no case contains, or that fewer patients have than there are folds
colours_of_labels  labels given by colour
agree_on_colours   palettes of all label files: alike, translated by colour, or refused
"""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from autoseg.datasets.pairing import Case, Problem
from autoseg.errors import DataError, UsageError
from autoseg.imaging.formats import raster
from autoseg.imaging.formats.colours import NAMED as NAMED_COLOURS
from autoseg.imaging.formats.readers import READERS, ending_of
from autoseg.imaging.labels import LabelSet
from autoseg.imaging.regions import never_written
from autoseg.messages import NAMED, some

FOLDS = 5
LARGEST_8_BIT = 255
BLUR = 40  # grey values by which lossy compression changes a mask of 0 and 255
TRACES = 8  # further values near the two of a mask
MASKED = 0.8  # share of the voxels that keep one of the two
_MERGED = "nothing, if only the regions matter; otherwise make it a region of its own"


def empty_label(counts: Mapping[int, int], labels: LabelSet) -> tuple[str, str]:
    """Problem and remedy for a label map (value -> voxels) without any label; ("", "") if it has one."""
    if counts.keys() - {0, labels.ignore}:
        return "", ""
    if labels.ignore in counts and 0 not in counts:
        return (
            f"ignored throughout: every voxel is {labels.ignore} (not annotated), so this case trains nothing",
            "annotate part of it, or leave the case out",
        )
    ignored = sum(count for value, count in counts.items() if value == labels.ignore)
    partly = f" and {ignored} ignored voxels" if ignored else ""
    return f"empty label: the file contains only background{partly}", "nothing, if the image shows no such structure"


def blurred_mask(counts: Mapping[int, int]) -> str:
    """Describe a label map (value -> voxels) that is a two-valued mask with traces of lossy compression or smoothing.

    Such a mask has values near 0 and near its maximum, and none between: JPEG leaves these along edges. (Smoothing
    fills the middle, too, which gives too many values for labels.) Returns "" for any other label map.
    """
    largest = max(counts)
    near = [value for value in counts if 0 < value <= BLUR or largest - BLUR <= value < largest]
    void = all(value <= BLUR or value >= largest - BLUR for value in counts)
    ends = counts.get(0, 0) + counts.get(largest, 0)
    if min(counts) < 0 or largest <= 4 * BLUR or not void or len(near) < TRACES or ends < MASKED * sum(counts.values()):
        return ""
    return (
        f"its values cluster around 0 and {largest} ({len(counts)} values): the mask was once stored with lossy "
        "compression (JPEG), even if this file was not"
    )


def compare_labels(
    cases: Sequence[tuple[Case, Sequence[int]]], labels: LabelSet, root: str, folds: int = FOLDS
) -> list[Problem]:
    """Report labels that no training case contains (errors), and those of fewer patients than folds (warnings).

    Args:
        cases: each training case whose label could be read, and the values in it.
        root: of the dataset, named in problems that concern no single file.
    """
    if not cases:
        return []
    patients: dict[int, dict[str, str]] = {value: {} for value in labels.values.values()}  # patient -> a label file
    for case, values in cases:
        for value in labels.declared(values):
            patients[value].setdefault(case.patient, str(case.label))
    if not any(patients.values()):
        what = f"none of the {len(cases)} label files contains any label: there is nothing to train on"
        return [Problem(None, root, what, "check the labels; declare those that exist: --labels name=value,...")]
    largest = max(value for _, values in cases for value in values)
    absent = {name: value for name, value in labels.values.items() if not patients[value]}
    rare = {name: patients[value] for name, value in labels.values.items() if 0 < len(patients[value]) < folds}
    merged = [
        Problem(None, root, f"segmentations contain {other} where {name} is found, never {value}", _MERGED, "warning")
        for name, value in labels.values.items()
        if (other := never_written(labels.regions, labels.region_values).get(value)) is not None
    ]
    everybody = len({case.patient for case, _ in cases})
    if labels.things:
        largest = 0
    return merged + _absent(absent, largest, len(cases), root) + (_rare(rare, folds) if everybody >= folds else [])


def colours_of_labels(pairs: Mapping[str, str]) -> dict[str, int]:
    """Read `{"liver": "#ff0000", ...}` of `--labels` as colour -> value: 1, 2, ...; empty if no label is a colour.

    Raises:
        UsageError: some labels are colours and others are not, or a colour is used twice or misspelt.
    """
    if not any(text.startswith("#") for text in pairs.values()):
        return {}
    colours = {text.lower(): value for value, text in enumerate(pairs.values(), start=1)}
    if len(colours) < len(pairs) or not all(re.fullmatch("#[0-9a-f]{6}", colour) for colour in colours):
        raise UsageError(
            f"--labels {','.join(f'{name}={text}' for name, text in pairs.items())}: give every label its own colour",
            remedy="write --labels liver=#ff0000,tumour=#00ff00, or a value for each of them",
        )
    return colours


def agree_on_colours(files: Sequence[str]) -> tuple[dict[str, int], list[Problem]]:
    """Compare the palettes of label files, which give the colour of each index.

    Returns:
        (`LabelSet.colours`, problems): both empty where every index has one colour, and every colour one index, in all
        files. Where files number the same colours differently, the numbering of most files, with a warning; where
        there is no majority, an error.
    """
    palettes = {file: found for file in files if (found := _palette(file))}
    votes: dict[str, Counter[int]] = defaultdict(Counter)
    colours_of: dict[int, set[str]] = defaultdict(set)
    for palette in palettes.values():
        for index, colour in palette.items():
            votes[colour][index] += 1
            colours_of[index].add(colour)
    if all(len(v) == 1 for v in votes.values()) and all(len(c) == 1 for c in colours_of.values()):
        return {}, _light_background(palettes, colours_of)
    decided = {colour: count.most_common(1)[0][0] for colour, count in votes.items()}
    clear = all(2 * count[decided[colour]] > count.total() for colour, count in votes.items())
    usual = [file for file, palette in palettes.items() if all(decided[c] == i for i, c in palette.items())]
    first, other = _two_that_differ(palettes)
    differ = f"{Path(first[0]).name} shows {first[1]}, {Path(other[0]).name} shows {other[1]}"
    if clear and len(set(decided.values())) == len(decided):
        strange = [file for file in palettes if file not in usual]
        what = f"{len(strange)} of {len(palettes)} palettes number the colours differently: {differ}"
        shown = ", ".join(f"{colour} is {index}" for colour, index in sorted(decided.items(), key=lambda item: item[1]))
        remedy = f"nothing, if the colours are right: labels are read by colour ({shown})"
        return decided, [Problem(None, strange[0], what, remedy, "warning")]
    what = f"the palettes of the label files disagree, so an index does not identify a class: {differ}"
    listed = ",".join(f"label_{i}={colour}" for i, colour in enumerate([*votes][1 : NAMED_COLOURS + 1], start=1))
    remedy = f"name the label of each colour: --labels {listed} (black is background), or save grey values 0, 1, 2"
    return {}, [Problem(None, other[0], what, remedy)]


def _palette(file: str) -> dict[int, str]:
    ending = ending_of(file)
    if ending is None or READERS[ending].family != "natural" or READERS[ending].labels is None:
        return {}
    try:
        return raster.palette(Path(file))
    except (DataError, OSError):
        return {}  # `check` reports it


def _light_background(palettes: Mapping[str, dict[int, str]], colours_of: Mapping[int, set[str]]) -> list[Problem]:
    """Warn where black is a label and another colour is the background: masks are usually the reverse."""
    black = next((index for index, colours in colours_of.items() if index and colours == {raster.BLACK}), None)
    if black is None or 0 not in colours_of:
        return []
    (background,) = colours_of[0]
    what = f"the palettes show the background (index 0) as {background} and the label {black} as black"
    remedy = f"if the black part is the background, pass --labels foreground={background}"
    return [Problem(None, next(iter(palettes)), what, remedy, "warning")]


def _two_that_differ(palettes: Mapping[str, dict[int, str]]) -> tuple[tuple[str, str], tuple[str, str]]:
    """Two files, each with a colour and its index, that contradict each other."""
    by_colour: dict[str, tuple[str, int]] = {}
    by_index: dict[int, tuple[str, str]] = {}
    for file, palette in palettes.items():
        for index, colour in palette.items():
            known, number = by_colour.setdefault(colour, (file, index))
            if number != index:
                return (known, f"{colour} for {number}"), (file, f"{colour} for {index}")
            known, shown = by_index.setdefault(index, (file, colour))
            if shown != colour:
                return (known, f"{shown} for {index}"), (file, f"{colour} for {index}")
    raise AssertionError("the palettes agree")


def _absent(absent: Mapping[str, int], largest: int, number: int, root: str) -> list[Problem]:
    remedy = "check the labels; declare those that exist: --labels name=value,..."
    if absent and largest <= LARGEST_8_BIT < min(absent.values()):
        remedy = "were the labels saved with 8 bits? Values above 255 wrap around to others: save them with 16 bits"
    if len(absent) <= NAMED:
        return [
            Problem(None, root, f"label {name} ({value}) is in none of the {number} label files", remedy)
            for name, value in absent.items()
        ]
    shown = some(f"{name} ({value})" for name, value in absent.items())
    what = f"{len(absent)} labels are in none of the {number} label files: {shown}"
    return [Problem(None, root, what, remedy)]


def _rare(rare: Mapping[str, Mapping[str, str]], folds: int) -> list[Problem]:
    """One line for the labels of a single patient, one for those of a few."""
    problems = []
    for single in (True, False):
        chosen = {name: files for name, files in rare.items() if (len(files) == 1) == single}
        if not chosen:
            continue
        shown = ", ".join(f"{name} ({', '.join(files)})" for name, files in [*chosen.items()][:NAMED])
        shown += f" and {len(chosen) - NAMED} more" if len(chosen) > NAMED else ""
        one, it = len(chosen) == 1, "it" if len(chosen) == 1 else "them"
        if single:
            what = (
                f"{'label' if one else 'labels'} of a single patient: {shown}; the fold that holds the patient out "
                f"cannot learn {it}, and the other folds cannot be evaluated on {it}"
            )
            remedy = "annotate more patients, merge it with a similar label, or expect no score for it"
        else:
            what = (
                f"{'label' if one else 'labels'} of fewer patients than the {folds} folds: {shown}; some folds have "
                f"none in their validation cases"
            )
            remedy = "annotate more patients, or use the scores per case, not those per fold"
        file = next(iter(next(iter(chosen.values())).values()))
        problems.append(Problem(None, file, what, remedy, "warning"))
    return problems
