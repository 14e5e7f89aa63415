"""Proof that a cross-validation is one: each case is scored exactly once, by a model that never saw its patient.

`prove` compares what the checkpoints state about their training with the patients of the dataset, before anything is
scored. What cannot be proven (a model that another one initialised, training cases that the dataset no longer has) is
listed in words; what is wrong is refused, with the fold, the case and the patient.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import sqrt

from autoseg.errors import StateError
from autoseg.messages import counted, some
from autoseg.workspace import FoldName


@dataclass(frozen=True)
class FoldEvidence:
    """What is known of the model that predicted the held-out cases of one fold."""

    fold: FoldName
    held_out: tuple[str, ...]  # cases that are about to be scored
    trained: tuple[str, ...]  # cases that its checkpoint lists as trained on
    init_from: str | None = None  # the model that it was initialised from
    stage: str = ""  # the previous stage of a cascade that this is, such as "3d_lowres"; empty: the model itself


@dataclass(frozen=True)
class Coverage:
    """How much of a dataset a cross-validation covers, once that is proven."""

    cases: int  # that are scored
    patients: int
    all_cases: int  # of the dataset, without test cases
    all_patients: int
    patients_known: bool  # False: each case counts as a patient
    missing_folds: tuple[FoldName, ...] = ()
    never_held_out: int = 0  # cases that only train, in every fold
    unproven: tuple[str, ...] = field(default=())  # what the records cannot show, in words


def prove(
    evidence: Sequence[FoldEvidence],
    patients: Mapping[str, str],
    planned: Mapping[FoldName, Sequence[str]],
    *,
    patients_known: bool = True,
    retrain: Callable[[FoldEvidence], str] = lambda found: f"retrain fold {found.fold} from scratch",
) -> Coverage:
    """Show that every case is scored once and by a model that never saw its patient.

    Args:
        evidence: of the folds that are scored, and of the previous stages of a cascade.
        patients: case -> patient, of all cases of the dataset that are not test cases.
        planned: fold -> held-out cases, of all folds, trained or not.
        patients_known: whether somebody said which cases belong to one patient.
        retrain: what to do about a fold that saw what it should not.

    Raises:
        StateError: it is not so; the message names fold, case and patient.
    """
    scored = [found for found in evidence if not found.stage]
    _require_once(planned)
    _require_once({found.fold: found.held_out for found in scored})
    alone = len(set(patients.values())) == 1
    unproven = ["there is one patient: the scores are those of training cases, or of the same patient"] * alone
    for found in evidence:
        if not alone:
            _require_unseen(found, patients, retrain)
        unproven += _unproven(found, patients)
    cases = [case for found in scored for case in found.held_out]
    held_out = {case for held in planned.values() for case in held}
    return Coverage(
        cases=len(cases),
        patients=len({patients[case] for case in cases}),
        all_cases=len(patients),
        all_patients=len(set(patients.values())),
        patients_known=patients_known,
        missing_folds=tuple(fold for fold in planned if fold not in {found.fold for found in scored}),
        never_held_out=len(patients.keys() - held_out),
        unproven=tuple(unproven),
    )


def describe_proof(coverage: Coverage) -> list[str]:
    """What was proven and what was not, a line each."""
    who = f"patient ({coverage.patients} of {coverage.all_patients})" if coverage.patients_known else "image"
    lines = [f"proven: each of {counted(coverage.cases, 'case')} scored once, by a model that never saw its {who}"]
    if not coverage.patients_known:
        lines.append(
            "note: nobody said which images belong to one patient: each counts as one; if patients have several, name "
            "them in patients.csv or with --patient-regex, and plan again"
        )
    if coverage.never_held_out:
        lines.append(f"note: no fold holds out {counted(coverage.never_held_out, 'case')}: nothing is known of them")
    if coverage.unproven:
        lines[0] = lines[0].replace("proven:", "proven, but for what follows:")
    return lines + [f"WARNING: not proven: {what}" for what in coverage.unproven]


def cost_of_missing(coverage: Coverage, interval: tuple[float, float] | None) -> str:
    """What missing folds cost: which share is not scored, how much wider the interval is; empty if none is missing.

    The width of an interval falls with the square root of the number of patients.

    Args:
        interval: of the mean Dice, on the cases that are scored; None: not known.
    """
    if not coverage.missing_folds:
        return ""
    several = len(coverage.missing_folds) > 1
    cases, patients = coverage.all_cases - coverage.cases, coverage.all_patients - coverage.patients
    cases -= coverage.never_held_out
    share = cases / max(coverage.all_cases - coverage.never_held_out, 1)
    text = f"fold{'s' if several else ''} {some(coverage.missing_folds)} {'are' if several else 'is'} missing: "
    text += f"{cases} of {coverage.all_cases - coverage.never_held_out} cases ({share:.0%})"
    if coverage.patients_known:
        text += f" and {patients} of {counted(coverage.all_patients, 'patient')}"
    text += " are not scored"
    if not coverage.patients:
        return text
    factor = sqrt(coverage.all_patients / coverage.patients)
    if interval is None or factor <= 1:
        return text
    width = interval[1] - interval[0]
    return (
        f"{text}; the 95 % interval of the mean Dice is about {factor:.2f} times as wide as with all folds "
        f"({width:.4f}, then about {width / factor:.4f}), and does not include how well these folds would do"
    )


def _require_once(held_out: Mapping[FoldName, Sequence[str]]) -> None:
    """Refuse a case that two folds hold out, or one twice."""
    seen: dict[str, FoldName] = {}
    for fold, cases in held_out.items():
        for case in cases:
            if case in seen:
                raise StateError(
                    f"case {case} is held out by fold {seen[case]} and by fold {fold}: it would be scored twice",
                    remedy="hold out each case in one fold: correct splits.json, or plan again",
                )
            seen[case] = fold


def _require_unseen(found: FoldEvidence, patients: Mapping[str, str], retrain: Callable[[FoldEvidence], str]) -> None:
    """Refuse a fold that was trained on a patient whose case it holds out."""
    seen = {patients[case]: case for case in reversed(found.trained) if case in patients}
    leaks = [(case, seen[patients[case]]) for case in found.held_out if patients[case] in seen]
    if not leaks:
        return
    same = [case for case in found.held_out if case in set(found.trained)]
    case = same[0] if same else leaks[0][0]
    patient = patients[case]
    what = "itself" if same else f"{seen[patient]} of the same patient"
    who = f"{found.stage}, the previous stage of fold {found.fold}," if found.stage else f"fold {found.fold}"
    more = f" (and {len(leaks) - 1} more)" if len(leaks) > 1 else ""
    raise StateError(
        f"{who} holds out case {case} of patient {patient} but was trained on {what}{more}: scores would be too good",
        remedy=retrain(found),
    )


def _unproven(found: FoldEvidence, patients: Mapping[str, str]) -> list[str]:
    """What the records of a fold cannot show."""
    name = f"{found.stage} of fold {found.fold}" if found.stage else f"fold {found.fold}"
    lines = []
    if gone := [case for case in found.trained if case not in patients]:
        lines.append(f"{name} was trained on {counted(len(gone), 'case')} that the dataset no longer has")
    if found.init_from:
        lines.append(f"{name} was initialised from another model, which may have seen these patients")
    return lines
