"""What DICOM files and outlines say about a dataset beyond their voxels: patients, and names of labels.

    patients_in_headers   case id -> a hash of its PatientID, where every case is a DICOM series that has one
    names_in_labels       names of the structures in DICOM-SEG, RTSTRUCT and outline files -> values
    names_of_outlines     the names in outline files
    ignore_in_labels      the value of places that outline files mark as not annotated
    missing_structures    declared labels that no such file has, and structures that are not declared

No PatientID and no name of a person is kept: patients are hashes.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from autoseg.datasets.contents import Problem
from autoseg.datasets.pairing import Case, Found
from autoseg.errors import DataError, UsageError
from autoseg.imaging.formats.dicom_labels import same_name
from autoseg.imaging.formats.dicom_series import patient_of
from autoseg.imaging.formats.outline_files import is_outlines
from autoseg.imaging.formats.readers import is_dicom, label_names, marks_unknown, names_labels
from autoseg.messages import counted, some

NOT_ANNOTATED = 255
NOT_AN_OBJECT = 65535
HASHED = "patients are those of the DICOM headers, as hashes of PatientID: {patients} in {cases}"
NAME_THEM = "name the patients in patients.csv (case,patient) or with --patient-regex"


def patients_in_headers(found: Found) -> dict[str, str]:
    """Patients by the PatientID of DICOM series: case id -> hash; empty where that does not name them.

    Notes and problems are added to `found`. An id that all cases share is what a program for anonymisation wrote.
    """
    cases = [*found.cases, *found.test_cases]
    series = {case.id: Path(case.images[0]) for case in cases if case.images and is_dicom(case.images[0])}
    if not series:
        return {}
    patients: dict[str, str] = {}
    for case_id, path in series.items():
        try:
            patients[case_id] = patient_of(path)
        except (DataError, UsageError):
            continue  # `check` reports it
    named = {case_id: patient for case_id, patient in patients.items() if patient}
    if not named or (len(set(named.values())) == 1 and len(cases) > 1):
        state = "have the same PatientID" if named else "have no PatientID"
        found.notes.append(
            f"the DICOM headers {state}, so they do not show which cases are of one patient: {NAME_THEM}"
        )
        return {}
    if alone := [case.id for case in cases if case.id not in named]:
        what = f"{counted(len(alone), 'case')} without a PatientID ({some(alone)}), unlike the others"
        found.problems.append(
            Problem(None, found.name, f"{what}: each counts as a patient of its own", NAME_THEM, "warning")
        )
    count = counted(len(set(named.values())), "patient")
    found.notes.append(HASHED.format(patients=count, cases=counted(len(named), "case")))
    return named


def names_in_labels(cases: Sequence[Case]) -> dict[str, int]:
    """Values for the structures that label files name: 1, 2, ... in order of appearance; empty without such files.

    Raises:
        UsageError: pydicom is not installed. DataError: only some of the label files are DICOM or outlines.
    """
    files = _label_files(cases)
    named = [file for file in files if names_labels(file)]
    if not named:
        return {}
    if len(named) < len(files):
        other = next(file for file in files if file not in named)
        raise DataError(
            f"{len(named)} of {len(files)} label files are DICOM or outlines, which name their structures, and the "
            f"others are not, such as {other}",
            remedy="say which name has which value: --labels liver=1,tumour=2",
        )
    return {name: value for value, name in enumerate(_structures(named), start=1)}


def names_of_outlines(cases: Sequence[Case]) -> list[str]:
    """The names in outline files, in order of appearance; empty where some label files are others."""
    files = _label_files(cases)
    return _structures(files) if files and all(is_outlines(file) for file in files) else []


def ignore_in_labels(cases: Sequence[Case], *, numbers: bool = False) -> int | None:
    """The value of places that outline files mark as not annotated; None where none does.

    Args:
        numbers: whether values are numbers of objects, of which there may be many.
    """
    for file in _label_files(cases):
        try:
            if marks_unknown(file):
                return NOT_AN_OBJECT if numbers else NOT_ANNOTATED
        except DataError:
            continue  # `check` reports it
    return None


def missing_structures(cases: Sequence[Case], declared: Mapping[str, int]) -> tuple[list[Problem], list[str]]:
    """Problems of labels that no label file names, and notes about structures that are left out.

    Labels of which only some files name structures are not judged.
    """
    files = _label_files(cases)
    if not files or not all(names_labels(file) for file in files):
        return [], []
    found = _structures(files)
    known = some(found) or "none"
    problems = [
        Problem(None, files[0], f"no label file has a structure named {name!r}", f"the structures are: {known}")
        for name in declared
        if not any(same_name(name, other) for other in found)
    ]
    unused = [name for name in found if not any(same_name(name, other) for other in declared)]
    notes = [f"structures that are not labels: {some(unused)} (name them with --labels to use them)"] if unused else []
    return problems, notes


def _label_files(cases: Sequence[Case]) -> list[str]:
    """The label files of cases; one that several share, once."""
    return list(dict.fromkeys(case.label for case in cases if case.label is not None))


def _structures(files: Sequence[str]) -> list[str]:
    """The names of structures in files, in order of appearance, in their most frequent spelling."""
    spellings: list[Counter[str]] = []
    for file in files:
        try:
            names = label_names(file) or {}
        except DataError:
            continue  # `check` reports it
        for name in names:
            group = next((group for group in spellings if same_name(name, next(iter(group)))), None)
            if group is None:
                spellings.append(group := Counter())
            group[name] += 1
    return [group.most_common(1)[0][0] for group in spellings]
