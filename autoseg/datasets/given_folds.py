"""The folds given with a dataset: used unchanged, or refused. Never silently replaced.

read_splits       splits_final.json -> folds
numbered_splits   the fold that validates on each case -> folds
sound_splits      folds -> folds that can be trained, or None and what is wrong with them
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from autoseg.datasets.contents import read_json
from autoseg.datasets.pairing import Found, Problem
from autoseg.datasets.spelling import CHANNEL_SUFFIX, Matched, match_ids
from autoseg.datasets.splits import Split
from autoseg.errors import DataError
from autoseg.messages import NAMED, some, suggest

EXPECTED = 'expected a list of folds, each {"train": [ids], "val": [ids]}'
OWN_FOLDS = "correct it, or remove it: autoseg then makes its own folds"
CSV_ENDINGS = (".csv", ".tsv")


def read_splits(found: Found, path: Path) -> tuple[Split, ...]:
    """Folds of nnU-Net's splits_final.json (a list of {train, val}); faults go to `found.problems`.

    Raises:
        DataError: it is not such a list.
    """
    folds = read_json(path)
    if not isinstance(folds, list) or not folds:
        came = "an empty list" if folds == [] else "something else"
        raise DataError(f"{path} is not a list of folds but {came}: {EXPECTED}", remedy=OWN_FOLDS)
    for number, fold in enumerate(folds):
        if not isinstance(fold, dict) or not all(_is_list_of_ids(fold.get(side)) for side in ("train", "val")):
            raise DataError(f"{path} is not a list of folds: fold {number} is malformed; {EXPECTED}", remedy=OWN_FOLDS)
    ids = {case.id for case in found.cases}
    matched = match_ids([str(i) for fold in folds for side in ("train", "val") for i in fold[side]], ids)
    report_spelling(found, matched, path)
    report_unknown(found, matched.unknown, path, "the folds list a case that does not exist")
    splits = []
    for number, fold in enumerate(folds):
        train, validation = ([matched.cases.get(str(i)) for i in fold[side]] for side in ("train", "val"))
        splits.append(Split(number, *(tuple(sorted({i for i in side if i})) for side in (train, validation))))
    for case_id in sorted(ids - {case_id for split in splits for case_id in (*split.train, *split.validation)}):
        what = "no fold contains this case: it is not used"
        found.problems.append(Problem(case_id, str(path), what, "add it to the folds, or remove the file", "warning"))
    found.splits_from = str(path)
    return tuple(splits)


def numbered_splits(found: Found, numbers: Mapping[str, int], source: str) -> None:
    """Set the folds of a table: case id -> the fold that validates on it; -1: it trains in all of them."""
    found.splits_from = source
    validating = sorted(set(numbers.values()) - {-1})
    found.splits = tuple(
        Split(
            position,
            tuple(sorted(case_id for case_id in numbers if numbers[case_id] != fold)),
            tuple(sorted(case_id for case_id in numbers if numbers[case_id] == fold)),
        )
        for position, fold in enumerate(validating)
    ) or (Split(0, tuple(sorted(numbers)), ()),)
    if validating and validating != list(range(len(validating))):
        pairs = ", ".join(f"{fold} is fold {position}" for position, fold in enumerate(validating))
        found.notes.append(f"folds are renumbered from 0: in {Path(source).name}, {pairs}")


def sound_splits(found: Found, patients: Mapping[str, str]) -> tuple[Split, ...] | None:
    """The folds given with the dataset; None where there are none, or where they are refused.

    Refused are folds without training or validation cases, and folds that train and validate on the same case or
    patient. `--skip-bad` does not change that: given folds are replaced only on request.
    """
    faults: list[tuple[str, str]] = []
    own, train_all = _remedies(found.splits_from)
    for split in found.splits or ():
        train, validation = set(split.train), set(split.validation)
        both = sorted({patients[i] for i in train} & {patients[i] for i in validation})
        if not validation:
            faults.append((f"fold {split.fold} has {len(train)} training cases and no validation case", train_all))
        elif not train:
            faults.append((f"fold {split.fold} has {len(validation)} validation cases and no training case", train_all))
        elif train == validation:
            faults.append((f"fold {split.fold} trains and validates on the same {len(train)} cases", train_all))
        elif twice := sorted(train & validation):
            cases = "case" if len(twice) == 1 else "cases"
            what = f"fold {split.fold} trains and validates on the same {cases}: {some(twice)}"
            faults.append((what, own))
        elif both:
            training, validating = _one_of_each(split, patients, both[0])
            more = f" (and of {len(both) - 1} more patients: {some(both[1:])})" if len(both) > 1 else ""
            pair = f"trains on {training} and validates on {validating}"
            faults.append(
                (
                    f"fold {split.fold} {pair}, both of patient {both[0]}{more}",
                    f"keep the cases of a patient together; {own}",
                )
            )
    found.problems += [Problem(None, found.splits_from, what, remedy, stays=True) for what, remedy in faults]
    counts = Counter(case_id for split in found.splits or () for case_id in split.validation)
    if repeated := sorted(case_id for case_id, count in counts.items() if count > 1):
        what = f"{len(repeated)} cases are in the validation set of several folds: {some(repeated)}"
        found.problems.append(Problem(None, found.splits_from, what, "nothing, if this is intended", "warning"))
    return None if faults else found.splits


def _remedies(source: str) -> tuple[str, str]:
    """What to do about folds that cannot be used: to let autoseg make folds, and to train on all cases."""
    table = source.lower().endswith(CSV_ENDINGS)
    given = "the columns fold (the fold that validates on a case) and split" if table else Path(source).name
    them = "them" if table else "it"
    own = f"correct {given}, or remove {them}: autoseg then makes its own folds"
    return own, f"{own}; to train on all cases, remove {them}, run plan again, then: {suggest('train', '-f', 'full')}"


def report_unknown(found: Found, unknown: Sequence[str], path: Path, what: str, *, stays: bool = False) -> None:
    """Report ids of a table that no case has, unless the case is known and reported, or has no label.

    Args:
        stays: leaving cases out does not fix it.
    """
    known = {problem.case for problem in found.problems if problem.case} | found.unused_ids
    known |= {CHANNEL_SUFFIX.sub(r"\1", name) for name in known}
    unknown = [name for name in unknown if not match_ids([name], known).cases]
    tests = match_ids(unknown, {case.id for case in found.test_cases}).cases
    remedy = "correct the name, add the case, or remove it from the file"
    if len(unknown) > NAMED:
        found.problems.append(
            Problem(None, str(path), f"{what}: {len(unknown)} do not, {some(unknown)}", remedy, stays=stays)
        )
        return
    for name in unknown:
        held_out = " (it is a test case)" if name in tests else ""
        found.problems.append(Problem(name, str(path), what + held_out, remedy, stays=stays))


def report_spelling(found: Found, matched: Matched, path: Path) -> None:
    """Report ids that were matched although they differ in case or leading zeros."""
    if matched.guessed:
        shown = some(f"{written!r} for {case_id!r}" for written, case_id in matched.guessed.items())
        what = f"{len(matched.guessed)} ids are not spelt like the cases: {shown}"
        found.problems.append(
            Problem(None, str(path), what, "nothing, if these are the same; otherwise correct them", "warning")
        )


def _is_list_of_ids(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(i, (str, int)) and not isinstance(i, bool) for i in value)


def _one_of_each(split: Split, patients: Mapping[str, str], patient: str) -> tuple[str, str]:
    training = next(case_id for case_id in split.train if patients[case_id] == patient)
    return training, next(case_id for case_id in split.validation if patients[case_id] == patient)
