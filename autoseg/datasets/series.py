"""What DICOM files say about a dataset beyond their voxels: patients, and names of labels.

    patients_in_headers   case id -> a hash of its PatientID, where every case is a DICOM series that has one
    names_in_labels       names of the structures in DICOM-SEG and RTSTRUCT files -> values
    missing_structures    declared labels that no such file has, and structures that are not declared

No PatientID and no name of a person is kept: patients are hashes.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from autoseg.datasets.contents import Problem
from autoseg.datasets.pairing import Case, Found
from autoseg.errors import DataError, UsageError
from autoseg.imaging.formats.dicom_labels import names_in, same_name
from autoseg.imaging.formats.dicom_series import patient_of
from autoseg.imaging.formats.readers import is_dicom
from autoseg.messages import counted, some

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
    """Values for the structures of the DICOM label files: 1, 2, ... in order of appearance; empty without such files.

    Raises:
        UsageError: pydicom is not installed. DataError: only some of the label files are DICOM.
    """
    files = [case.label for case in cases if case.label is not None]
    dicom = [file for file in files if is_dicom(file)]
    if not dicom:
        return {}
    if len(dicom) < len(files):
        other = next(file for file in files if file not in dicom)
        raise DataError(
            f"{len(dicom)} of {len(files)} label files are DICOM, which name their structures, and the others are not, "
            f"such as {other}",
            remedy="say which name has which value: --labels liver=1,tumour=2",
        )
    return {name: value for value, name in enumerate(_structures(dicom), start=1)}


def missing_structures(cases: Sequence[Case], declared: Mapping[str, int]) -> tuple[list[Problem], list[str]]:
    """Problems of labels that no DICOM label file has, and notes about structures that are left out.

    Labels of which only some files are DICOM are not judged.
    """
    files = [case.label for case in cases if case.label is not None]
    if not files or not all(is_dicom(file) for file in files):
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


def _structures(files: Sequence[str]) -> list[str]:
    """The names of structures in DICOM files, in order of appearance, in their most frequent spelling."""
    spellings: list[Counter[str]] = []
    for file in files:
        try:
            names = names_in(Path(file))
        except DataError:
            continue  # `check` reports it
        for name in names:
            group = next((group for group in spellings if same_name(name, next(iter(group)))), None)
            if group is None:
                spellings.append(group := Counter())
            group[name] += 1
    return [group.most_common(1)[0][0] for group in spellings]
