"""Cases that hold the same image under two names, as public copies of ACDC and EMIDEC do.

    find_duplicates        what every image file holds -> a problem for each pair of cases
    find_near_duplicates   the same for images that are nearly the same (`likeness`): a warning, for a person to judge
    as_one_patient         the dataset with such cases counted as one patient, so that no fold sees both

Two training cases with one image are a warning: they stay together. A test case that is also a training case is an
error, because the test score would be that of an image the model was trained on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from autoseg.datasets.checks.likeness import Pair, alike, describe_likeness
from autoseg.datasets.dataset import Dataset
from autoseg.datasets.pairing import Case, Problem
from autoseg.errors import AutosegError
from autoseg.imaging.formats.readers import names_labels, read_labels

LISTED = 10  # pairs of nearly identical images in the table of problems


def find_duplicates(dataset: Dataset, digests: Sequence[tuple[str, Mapping[str, str]]]) -> list[Problem]:
    """Report images that occur twice.

    Args:
        digests: case id and, for each of its image files, a hash of the voxels; training cases first.
    """
    cases = {case.id: case for case in (*dataset.cases, *dataset.test_cases)}
    testing = {case.id for case in dataset.test_cases}
    first: dict[str, tuple[str, str]] = {}
    problems: list[Problem] = []
    pairs: set[tuple[str, str]] = set()
    for case_id, of_files in digests:
        for file, digest in of_files.items():
            other, original = first.setdefault(digest, (case_id, file))
            if other == case_id and original != file:
                what = f"the same image as channel {Path(original).name}"
                problems.append(Problem(case_id, file, what, "replace it with the right channel", "warning"))
            elif other != case_id and (other, case_id) not in pairs:
                pairs.add((other, case_id))
                problems.append(_pair(cases[other], cases[case_id], file, original, testing))
    return problems + _across_folds(dataset, [pair for pair in pairs if not set(pair) & testing])


def find_near_duplicates(
    dataset: Dataset, thumbnails: Mapping[str, np.ndarray], digests: Mapping[str, Mapping[str, str]]
) -> list[Problem]:
    """Report pairs of images of different patients that are nearly the same; identical ones are not among them.

    Args:
        thumbnails: case id -> what `likeness.thumbnail` made of its first channel.
        digests: case id -> image file -> hash of the voxels.
    """
    cases = {case.id: case for case in (*dataset.cases, *dataset.test_cases)}
    found = alike(thumbnails, {name: cases[name].patient for name in thumbnails})
    pairs = [p for p in found.pairs if not {*digests[p.first].values()} & {*digests[p.second].values()}]
    problems = [_near_pair(dataset, cases[p.first], cases[p.second], p, found.limit) for p in pairs[:LISTED]]
    if len(pairs) > LISTED:
        what = f"{len(pairs) - LISTED} more pairs of cases have nearly the same image"
        problems.append(Problem(None, dataset.root, what, _one_patient(cases[pairs[0].first]), "warning"))
    return problems


def as_one_patient(dataset: Dataset, problems: Sequence[Problem]) -> Dataset:
    """Give cases that hold the same image, and all others of their patients, one patient: the first by id."""
    patients = {case.id: case.patient for case in (*dataset.cases, *dataset.test_cases)}
    name = {patient: patient for patient in patients.values()}
    for problem in problems:
        if problem.case in patients and problem.same_as in patients and problem.severity == "warning":
            kept, joined = name[patients[problem.same_as]], name[patients[problem.case]]
            name = {patient: kept if now == joined else now for patient, now in name.items()}
    return replace(
        dataset,
        cases=tuple(replace(case, patient=name[case.patient]) for case in dataset.cases),
        test_cases=tuple(replace(case, patient=name[case.patient]) for case in dataset.test_cases),
    )


def _pair(other: Case, case: Case, file: str, original: str, testing: set[str]) -> Problem:
    """What two cases with one image mean: `other` comes first, and is a training case unless both are test cases."""
    same = f"duplicate content: the same image as {Path(original).name} of {other.id}"
    if case.id in testing and other.id not in testing:
        what = f"{same}, a training case: the test score would be that of an image the model was trained on"
        return Problem(case.id, file, what, "remove one of the two cases", same_as=other.id)
    difference = _label_difference(other, case)
    joined = "" if other.patient == case.patient else f"; {other.patient} and {case.patient} count as one patient"
    remedy = "remove one of the two cases, or the image counts twice; both stay on the same side of every fold"
    if difference:
        remedy = "remove the case whose label is worse; until then both stay on the same side of every fold"
    return Problem(case.id, file, same + joined + difference, remedy, "warning", same_as=other.id)


def _near_pair(dataset: Dataset, first: Case, second: Case, pair: Pair, limit: float) -> Problem:
    names = f"{Path(first.images[0]).name} of {first.id}"
    folds = "; ".join(
        f"fold {split.fold} trains on {a} and validates on {b}"
        for split in dataset.splits or ()
        for a, b in ((first.id, second.id), (second.id, first.id))
        if a in split.train and b in split.validation
    )
    what = f"nearly the same image as {names}, of another patient: {describe_likeness(pair.similarity, limit)}"
    return Problem(second.id, second.images[0], f"{what}; {folds}" if folds else what, _one_patient(first), "warning")


def _one_patient(example: Case) -> str:
    """What to do about cases that show one patient under two names."""
    return (
        "look at both: if they show one patient, list them under one name in patients.csv (columns case, patient, such "
        f"as {example.id},{example.patient}), or pass --patient-regex, so that no fold trains on one and validates on "
        "the other"
    )


def _label_difference(a: Case, b: Case) -> str:
    """How the labels of two cases differ, in words; empty where they are equal, or one of them cannot be read."""
    if a.label is None or b.label is None:
        return ""
    files = [(case.label, case.images[0] if names_labels(case.label) else None) for case in (a, b) if case.label]
    names = f"{Path(a.label).name} of {a.id} and {Path(b.label).name} of {b.id}"
    try:
        first, second = (read_labels(file, like=image).array for file, image in files)
    except AutosegError:
        return ""  # reported as a fault of its file
    if first.shape != second.shape:
        return f"; their labels differ in shape: {names}"
    differing = int(np.count_nonzero(first != second))
    return f"; their labels differ in {differing} voxels: {names}" if differing else ""


def _across_folds(dataset: Dataset, pairs: Sequence[tuple[str, str]]) -> list[Problem]:
    """Given folds that train on one copy of an image and validate on the other."""
    problems = []
    for split in dataset.splits or ():
        train, validation = set(split.train), set(split.validation)
        for pair in sorted(pairs):
            for a, b in (pair, pair[::-1]):
                if a in train and b in validation:
                    what = f"fold {split.fold} trains on {a} and validates on {b}, which hold the same image"
                    remedy = "put both on one side, remove one of them, or remove the folds: autoseg then makes its own"
                    problems.append(Problem(None, dataset.root, what, remedy, stays=True))
    return problems
