"""Tolerances and tubes, as they are typed and as they reach the labels."""

from pathlib import Path

import pytest

from autoseg.errors import UsageError
from autoseg.evaluation.evaluate import ScoreJob
from autoseg.evaluation.measures import DEFAULT, Measures, measures_of, with_measures
from autoseg.imaging.labels import LabelSet

LABELS = LabelSet({"liver": 1, "vessel": 2})
JOB = ScoreJob("a", Path("r.nii"), Path("s.nii"), LABELS)


def test_what_is_given():
    assert measures_of(None, ()) == DEFAULT
    assert measures_of(2, "vessel, airway") == Measures({"all": 2}, ("vessel", "airway"))
    assert measures_of({"liver": 3.0}, ["vessel"]) == Measures({"liver": 3.0}, ("vessel",))


@pytest.mark.parametrize("tolerance", [0, -1, float("nan"), float("inf"), {"liver": 0}])
def test_a_tolerance_is_a_length(tolerance):
    with pytest.raises(UsageError, match="a tolerance of"):
        measures_of(tolerance, ())


def test_each_label_has_its_own():
    assert with_measures([JOB], DEFAULT) == [JOB]
    (job,) = with_measures([JOB], Measures({"all": 2.0, "liver": 5.0}, ("vessel",)))
    assert (job.tolerances_mm, job.tubes) == ({"liver": 5.0, "vessel": 2.0}, ("vessel",))
    (job,) = with_measures([JOB], Measures({"vessel": 0.5}))
    assert job.tolerances_mm == {"vessel": 0.5}  # the other one has the default


def test_other_names_are_refused():
    for measures in (Measures({"lever": 2.0}), Measures(tubes=("lever",))):
        with pytest.raises(UsageError, match="'lever': not a label") as caught:
            with_measures([JOB], measures)
        assert "liver, vessel" in caught.value.remedy
    (job,) = with_measures([JOB], Measures(tubes=("all",)))
    assert job.tubes == ("all",)
