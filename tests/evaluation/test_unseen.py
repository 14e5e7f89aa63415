"""The proof before the scores: planted leaks are refused with fold, case and patient, sound folds pass."""

import pytest

from autoseg.errors import StateError
from autoseg.evaluation.unseen import Coverage, FoldEvidence, cost_of_missing, describe_proof, prove

PATIENTS = {"a1": "A", "a2": "A", "b1": "B", "c1": "C", "d1": "D", "d2": "D"}
PLANNED = {0: ("a1", "a2"), 1: ("b1", "c1"), 2: ("d1", "d2")}


def evidence(fold, trained=None, **more) -> FoldEvidence:
    others = tuple(case for case in PATIENTS if case not in PLANNED[fold])
    return FoldEvidence(fold, PLANNED[fold], others if trained is None else trained, **more)


def test_a_sound_cross_validation():
    coverage = prove([evidence(fold) for fold in PLANNED], PATIENTS, PLANNED)
    assert coverage == Coverage(6, 4, 6, 4, True)
    lines = describe_proof(coverage)
    assert lines == ["proven: each of 6 cases scored once, by a model that never saw its patient (4 of 4)"]
    assert cost_of_missing(coverage, (0.8, 0.9)) == ""


@pytest.mark.parametrize(
    ("trained", "named"),
    [
        (("b1", "d1", "a2"), "fold 0 holds out case a2 of patient A but was trained on itself"),
        (("b1", "a1", "a2"), "fold 0 holds out case a1 of patient A but was trained on itself (and 1 more)"),
    ],
)
def test_a_case_that_its_own_fold_trained_on(trained, named):
    with pytest.raises(StateError) as caught:
        prove([evidence(0, trained)], PATIENTS, PLANNED, retrain=lambda found: f"retrain {found.fold}")
    assert named in caught.value.what
    assert caught.value.remedy == "retrain 0"


def test_another_case_of_the_same_patient():
    """The patients' table was corrected after the training: c1 is a scan of D."""
    with pytest.raises(StateError, match="fold 1 holds out case c1 of patient D but was trained on d1 of the same"):
        prove([evidence(fold) for fold in PLANNED], PATIENTS | {"c1": "D"}, PLANNED)


def test_the_previous_stage_of_a_cascade_counts():
    stage = evidence(2, ("a1", "d2"), stage="3d_lowres")
    with pytest.raises(StateError, match="3d_lowres, the previous stage of fold 2, holds out case d2 of patient D"):
        prove([evidence(2), stage], PATIENTS, PLANNED)
    assert prove([evidence(2), evidence(2, stage="3d_lowres")], PATIENTS, PLANNED).cases == 2


def test_a_case_that_two_folds_hold_out():
    planned = PLANNED | {2: ("d1", "d2", "b1")}
    with pytest.raises(StateError, match="case b1 is held out by fold 1 and by fold 2"):
        prove([evidence(0)], PATIENTS, planned)


def test_what_cannot_be_proven_is_listed():
    found = [evidence(0, init_from="other"), evidence(1, ("a1", "gone"))]
    coverage = prove(found, PATIENTS, PLANNED)
    assert coverage.unproven == (
        "fold 0 was initialised from another model, which may have seen these patients",
        "fold 1 was trained on 1 case that the dataset no longer has",
    )
    lines = describe_proof(coverage)
    assert lines[0].startswith("proven, but for what follows: each of 4 cases")
    assert lines[1] == f"WARNING: not proven: {coverage.unproven[0]}"


def test_one_patient_is_not_refused_but_said():
    found = prove([FoldEvidence(0, ("a1",), ("a1", "a2"))], {"a1": "A", "a2": "A"}, {0: ("a1",)})
    assert "there is one patient" in found.unproven[0]


def test_unknown_patients_are_said():
    coverage = prove([evidence(0)], PATIENTS, PLANNED, patients_known=False)
    lines = describe_proof(coverage)
    assert lines[0].endswith("by a model that never saw its image")
    assert "nobody said which images belong to one patient" in lines[1]


def test_what_missing_folds_cost():
    """One of four patients is scored: the interval is twice as wide as with all."""
    coverage = prove([evidence(0)], PATIENTS, PLANNED)
    assert coverage.missing_folds == (1, 2)
    text = cost_of_missing(coverage, (0.80, 0.90))
    assert text.startswith("folds 1, 2 are missing: 4 of 6 cases (67%) and 3 of 4 patients are not scored")
    assert "about 2.00 times as wide as with all folds (0.1000, then about 0.0500)" in text
    assert cost_of_missing(coverage, None).endswith("are not scored")


def test_cases_that_only_train_are_counted_apart():
    """A split of 80:20: the others are in no fold."""
    coverage = prove([FoldEvidence(0, ("a1", "a2"), ("b1", "c1", "d1", "d2"))], PATIENTS, {0: ("a1", "a2")})
    assert coverage.never_held_out == 4
    assert "note: no fold holds out 4 cases" in describe_proof(coverage)[1]
    assert cost_of_missing(coverage, (0.8, 0.9)) == ""
