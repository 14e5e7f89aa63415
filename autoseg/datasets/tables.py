"""Tables of a dataset: its list of images, and its patients.

CSV (commas, semicolons or tabs) and TSV, UTF-8 with or without a byte order mark; column names in any case.
"""

import csv
import hashlib
import io
import json
import re
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from autoseg.datasets.contents import table_beside
from autoseg.datasets.given_folds import numbered_splits, report_spelling, report_unknown
from autoseg.datasets.pairing import Found, Problem, choose_channels, listed_case
from autoseg.datasets.spelling import CHANNEL_SUFFIX, composed, match_ids
from autoseg.errors import DataError, UsageError
from autoseg.imaging.formats.readers import stem_of
from autoseg.messages import some, suggest
from autoseg.workspace import sha256

TABLE_ENDINGS = (".csv", ".tsv")
PATIENT_TABLES = ("patients.csv", "participants.tsv")  # beside a dataset, the first that exists decides
FOLDS_FILE = "splits_final.json"
CASE_COLUMNS = ("case", "case_id", "id")
PATIENT_COLUMNS = ("patient", "patient_id", "participant_id", "subject")
IMAGE_COLUMN = re.compile(r"image(?:_(.+))?")
VALIDATION = ("val", "valid", "validation")
NO_PATIENTS = (
    "no patients are given: every case counts as a patient of its own. If one person has several cases, name the "
    "patients in patients.csv (case,patient) or with --patient-regex; otherwise folds share patients and scores are "
    "too high"
)


def read_table(path: Path) -> list[dict[str, str]]:
    """Rows of a table as dicts, names lower case, text stripped; blank rows are left out.

    Raises:
        DataError: it cannot be read, is not UTF-8 text, or a row has more fields than the first line.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            text = re.sub(r"\A(\s*[\r\n]|sep=.[\r\n]+)+", "", file.read())  # sep=; is Excel's way to name it
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=_separator(text.splitlines()[:1])))
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror}", remedy="check the file and its permissions"
        ) from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is not a readable table: {error}", remedy="save it as UTF-8 CSV") from None
    rows = [[text.strip() for text in row] for row in rows]
    names = [name.lower() for name in rows[0]] if rows else []
    for number, row in enumerate(rows[1:], start=2):
        if any(row[len(names) :]):
            what = f"{path}: row {number} has {len(row)} fields, the first line has {len(names)}"
            raise DataError(what, remedy="quote fields that contain a separator")
    return [dict.fromkeys(names, "") | dict(zip(names, row, strict=False)) for row in rows[1:] if any(row)]


def _separator(first: Sequence[str]) -> str:
    """The separator of the names in the first line of a table: a comma wherever there is one."""
    return next((mark for mark in (",", ";", "\t") for line in first if mark in line), ",")


def image_columns(row: dict[str, str]) -> dict[str, str]:
    """Columns that hold images, in channel order: column -> channel (`image_t1` -> t1, `image` and `image_0` -> 0)."""
    found = {name: match.group(1) or "0" for name in row if (match := IMAGE_COLUMN.fullmatch(name))}
    return dict(sorted(found.items(), key=lambda item: int(item[1]))) if _numbered(found.values()) else found


def lists_images(path: Path) -> bool:
    """Whether a file in a folder is a table of images with labels (other tables are not)."""
    if path.suffix.lower() not in TABLE_ENDINGS or path.name.startswith("."):
        return False
    try:
        rows = read_table(path)
    except DataError:
        return False
    return bool(rows) and bool(image_columns(rows[0])) and "label" in rows[0]


def cases_of_table(path: Path, wanted: tuple[str, ...] | None) -> Found:
    """Cases, patients, folds and test set of a table of images; paths in it are relative to its own folder.

    Raises:
        DataError: it has no rows, or no image or label column.
    """
    rows = read_table(path)
    columns = image_columns(rows[0]) if rows else {}
    if not columns or "label" not in rows[0]:
        what = f"{path} is not a table of images" if rows else f"{path} has no rows"
        raise DataError(what, remedy="it needs columns image and label, and one row per case")
    found = Found("table", path.stem)
    names = list(columns)
    if not _numbered(columns.values()):
        chosen, found.channels = choose_channels(list(columns.values()), wanted)
        names = [name for channel in chosen for name in columns if columns[name] == channel]
    ids = _row_ids(rows, list(columns), path.parent)
    patient_column = next((name for name in PATIENT_COLUMNS if name in rows[0]), None)
    training: dict[str, dict[str, str]] = {}
    for case_id, row in zip(ids, rows, strict=True):
        images = [_path(row[name], path.parent) for name in names]
        case = listed_case(found, case_id, images, _path(row["label"], path.parent), path, [columns[n] for n in names])
        split = row.get("split", "").lower()
        if split not in ("", "train", "training", "test", *VALIDATION):
            what = f"the split {row['split']!r} is not train, validation or test"
            found.problems.append(Problem(case_id, str(path), what, "correct the column split"))
        if patient_column and row[patient_column]:
            found.patients[case_id] = _patient(row[patient_column])
        (found.test_cases if split == "test" else found.cases).append(case)
        if split != "test":
            training[case_id] = row
    _splits(found, training, path)
    return found


def lists_of(root: Path, *, patients: bool) -> dict[str, str]:
    """What the lists of a dataset say about patients and folds: path -> digest, "" of one that is not there.

    Of a table of patients, only the columns of cases and patients count; of a table of images and of folds, every byte.

    Args:
        root: the folder of the dataset, or the table of its images.
        patients: tables of patients beside it are read.
    """
    folder = root if root.is_dir() else root.parent
    names = (*(PATIENT_TABLES if patients else ()), FOLDS_FILE)
    found = {str(folder / name): table_beside(folder, name) for name in names}
    digests = {path: "" if file is None else _digest(file) for path, file in found.items()}
    return digests if root.is_dir() else digests | {str(root): sha256(root)}


def _digest(path: Path) -> str:
    if path.suffix.lower() in TABLE_ENDINGS:
        with suppress(DataError):  # one that cannot be read counts by its bytes
            columns = (*CASE_COLUMNS, *PATIENT_COLUMNS)
            rows = [[row.get(name, "") for name in columns] for row in read_table(path)]
            return hashlib.sha256(json.dumps(rows).encode()).hexdigest()
    return sha256(path)


def patients_of(found: Found, root: Path, pattern: str | None) -> tuple[dict[str, str], bool]:
    """Patient of every case, and whether patients are given at all; doubtful cases are reported in `found`.

    The first that exists decides: the pattern, the table's column, patients.csv, participants.tsv (BIDS).

    Raises:
        UsageError: the pattern is not a regular expression with a group, or does not match every case.
    """
    ids = [case.id for case in (*found.cases, *found.test_cases)]
    if pattern is not None:
        return _patients_by_pattern(ids, pattern), True
    source, patients = "the column patient", found.patients
    if not patients and (path := table_beside(root, PATIENT_TABLES[0])):
        source, patients = path.name, _patients_by_case(found, path, ids)
    elif not patients and (path := table_beside(root, PATIENT_TABLES[1])):
        source, patients = path.name, _patients_by_prefix(found, path, ids)
    if not patients:
        found.notes.append(NO_PATIENTS)
        return {case_id: case_id for case_id in ids}, False
    _alike(found, set(patients.values()), source, root)
    alone = [case_id for case_id in ids if case_id not in patients]
    testing = {case.id for case in found.test_cases}
    for case_id in [case_id for case_id in alone if case_id not in testing]:
        what = f"{source} names no patient for this case: it counts as a patient of its own"
        found.problems.append(Problem(case_id, str(root), what, "name its patient", "warning"))
    if len(set(alone) & testing):
        found.notes.append(
            f"{source} names no patient for {len(set(alone) & testing)} test cases: each counts as its own"
        )
    return {case_id: patients.get(case_id, case_id) for case_id in ids}, True


def scans_of_patients(path: Path) -> dict[str, tuple[str, int]]:
    """Patient of each case in a table, and the place of the case among the patient's scans, from 0.

    The columns are case and patient, and for the order date (as 2024-05-31 or 20240531) or order (numbers); without
    either, the order is that of the rows.

    Raises:
        DataError: the table cannot be read, a column is missing, or a case occurs twice.
    """
    rows = read_table(path)
    case_column = next((name for name in CASE_COLUMNS if rows and name in rows[0]), None)
    patient_column = next((name for name in PATIENT_COLUMNS if rows and name in rows[0]), None)
    if case_column is None or patient_column is None:
        raise DataError(f"{path} has no columns case and patient", remedy="its first line must be: case,patient,date")
    scans: dict[str, list[tuple[float, int, str]]] = {}
    for number, row in enumerate(rows):
        if row[case_column] and row[patient_column]:
            scan = (_moment(row, path), number, composed(row[case_column]))
            scans.setdefault(_patient(row[patient_column]), []).append(scan)
    cases = [case for found in scans.values() for *_, case in found]
    if twice := sorted({case for case in cases if cases.count(case) > 1}):
        raise DataError(f"{path} lists a case twice: {some(twice)}", remedy="keep one row per case")
    return {
        case: (patient, place) for patient, found in scans.items() for place, (*_, case) in enumerate(sorted(found))
    }


def _moment(row: dict[str, str], path: Path) -> float:
    """When a scan was made, as a number that grows; 0 where the table does not say."""
    text = row.get("date") or row.get("order") or ""
    digits = re.fullmatch(r"(\d{4})-?(\d\d)-?(\d\d)(?:[T ].*)?", text) if row.get("date") else None
    try:
        return float("".join(digits.groups())) if digits else float(text or 0)
    except ValueError:
        what = f"{path}: {text!r} is neither a date (2024-05-31) nor a number"
        raise DataError(what, remedy="correct the column date or order") from None


def _patient(text: str) -> str:
    """A patient's name, composed, with single blanks."""
    return " ".join(composed(text).split())


def _alike(found: Found, names: Collection[str], source: str, root: Path) -> None:
    """Warn about patients whose names differ only in upper and lower case: most likely they are one."""
    first: dict[str, str] = {}
    for name in sorted(names):
        if (other := first.setdefault(name.casefold(), name)) != name:
            what = f"{source} has patients {other!r} and {name!r}: they count as two patients"
            found.problems.append(Problem(None, str(root), what, "spell them alike, if they are one person", "warning"))


def _numbered(channels: Iterable[str]) -> bool:
    return all(channel.isdecimal() for channel in channels)


def _path(text: str, folder: Path) -> Path | None:
    return folder / Path(text).expanduser() if text else None


def _row_ids(rows: Sequence[dict[str, str]], columns: Sequence[str], folder: Path) -> list[str]:
    """Case ids: their own column; or the image's stem; or, where stems repeat, its path within the folder."""
    column = next((name for name in CASE_COLUMNS if name in rows[0] and all(row[name] for row in rows)), None)
    if column:
        return [composed(row[column]) for row in rows]
    images = [Path(next((row[name] for name in columns if row[name]), f"row{n}")) for n, row in enumerate(rows, 2)]
    stems = [composed(stem_of(image)) for image in images]
    if len(columns) > 1 or all(stem.endswith("_0000") for stem in stems):
        stems = [match.group(1) if (match := CHANNEL_SUFFIX.fullmatch(stem)) else stem for stem in stems]
    if len(set(stems)) == len(stems):
        return stems
    parents = [image.parent if not image.is_absolute() else Path(*image.parts[-2:-1]) for image in images]
    return [composed("_".join((*parent.parts, stem))) for parent, stem in zip(parents, stems, strict=True)]


def _splits(found: Found, rows: dict[str, dict[str, str]], path: Path) -> None:
    """Folds that the columns fold (the fold that validates on the case) or split (train, validation) prescribe."""
    texts = {case_id: row["fold"] for case_id, row in rows.items() if row.get("fold")}
    validation = [case_id for case_id, row in rows.items() if row.get("split", "").lower() in VALIDATION]
    if not texts:
        if validation:
            numbered_splits(found, {case_id: 0 if case_id in validation else -1 for case_id in rows}, str(path))
        elif any("fold" in row or row.get("split") for row in rows.values()):
            column = (
                "fold is empty" if any("fold" in row for row in rows.values()) else "split names no validation case"
            )
            all_cases = suggest("train", "-f", "full")
            found.notes.append(f"the column {column}: autoseg makes its own folds (to train on all cases: {all_cases})")
        return
    numbers: dict[str, int] = {}
    for case_id in rows:
        number = _fold_number(texts.get(case_id, ""))
        if number is not None:
            numbers[case_id] = number
        elif case_id in texts:
            what = f"the fold {texts[case_id]!r} is not a whole number"
            found.problems.append(Problem(case_id, str(path), what, "number folds 0, 1, ...; -1: only train"))
        else:
            what = "no fold is given, but other cases have one"
            found.problems.append(
                Problem(case_id, str(path), what, "fill in the column fold for all cases, or for none")
            )
    if validation:
        what = "the columns fold and split both name validation cases: the column fold is used"
        found.problems.append(Problem(None, str(path), what, "remove one of the two", "warning"))
    found.cases = [replace(case, fold=_none_if_training(numbers.get(case.id))) for case in found.cases]
    numbered_splits(found, numbers, str(path))


def _fold_number(text: str) -> int | None:
    """A fold as a spreadsheet may write it: 1, 1.0, -1; None for anything else."""
    try:
        return int(float(text)) if float(text) == int(float(text)) >= -1 else None
    except (ValueError, OverflowError):
        return None


def _none_if_training(fold: int | None) -> int | None:
    return None if fold == -1 else fold


def _patients_by_pattern(ids: Sequence[str], pattern: str) -> dict[str, str]:
    try:
        compiled = re.compile(composed(pattern))
    except re.error as error:
        raise UsageError(
            f"--patient-regex {pattern!r} is not a regular expression: {error}", remedy="correct it"
        ) from None
    if not compiled.groups:
        what = f"--patient-regex {pattern!r} has no group"
        raise UsageError(what, remedy="put the part that names the patient in parentheses: 'sub-(\\d+)'")
    matches = {case_id: compiled.search(case_id) for case_id in ids}
    unmatched = [case_id for case_id, match in matches.items() if match is None or not match.group(1)]
    if unmatched:
        what = f"--patient-regex {pattern!r} names no patient for {some(unmatched)}"
        raise UsageError(what, remedy="its first group must match part of every case id")
    return {case_id: match.group(1) for case_id, match in matches.items() if match}


def _patients_by_case(found: Found, path: Path, ids: Sequence[str]) -> dict[str, str]:
    """patients.csv: case id -> patient. Ids that match no case are errors: their patients would leak across folds."""
    rows = read_table(path)
    case_column = next((name for name in CASE_COLUMNS if rows and name in rows[0]), None)
    patient_column = next((name for name in PATIENT_COLUMNS if rows and name in rows[0]), None)
    if case_column is None or patient_column is None:
        raise DataError(f"{path} has no columns case and patient", remedy="its first line must be: case,patient")
    matched = match_ids([row[case_column] for row in rows if row[case_column]], ids)
    report_spelling(found, matched, path)
    # if a case has no patient, an unknown id is likely to be that case, misspelt: its patient would be split in two
    doubtful = not set(ids) <= set(matched.cases.values())
    report_unknown(found, matched.unknown, path, f"{path.name} lists a case that does not exist", stays=doubtful)
    patients: dict[str, str] = {}
    for row in rows:
        case_id, patient = matched.cases.get(row[case_column]), _patient(row[patient_column])
        if case_id and patient and patients.setdefault(case_id, patient) != patient:
            what = f"two patients for one case: {patients[case_id]} and {patient}"
            found.problems.append(Problem(case_id, str(path), what, "keep only one of the two lines"))
    return patients


def _patients_by_prefix(found: Found, path: Path, ids: Sequence[str]) -> dict[str, str]:
    """BIDS: the participant whose id begins the case id (`sub-01_ses-2_T1w`); the longest one where several do."""
    rows = read_table(path)
    if not rows or "participant_id" not in rows[0]:
        raise DataError(f"{path} has no column participant_id", remedy="BIDS requires it as the first column")
    names = [composed(row["participant_id"]) for row in rows if row["participant_id"]]
    participants = sorted(names, key=len, reverse=True)
    patients = {}
    for case_id in ids:
        for participant in participants:
            if re.match(rf"(?:sub-)?{re.escape(participant)}(?![0-9A-Za-z])", case_id):
                patients[case_id] = participant
                break
    if participants and not patients:
        what = f"no case id begins with any of the {len(names)} participants, such as {participants[0]} and {ids[0]}"
        found.problems.append(Problem(None, str(path), what, "name the patients in patients.csv", "warning"))
    return patients
