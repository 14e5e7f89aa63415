"""The plan as a record: it names its fingerprint, a training has one length, and other versions are refused."""

import json
from dataclasses import replace

import pytest

from autoseg.errors import StateError, UsageError
from autoseg.messages import complete
from autoseg.planning.plan import Plan, Training
from autoseg.records import OtherVersion, load, save, to_plain
from plans import ONE, golden_pair, plan
from synthetic_fingerprints import label_set, uniform


def test_a_plan_names_its_fingerprint():
    found, labels = golden_pair()["dense"]
    assert plan(found, labels).fingerprint == found.hash


def a_plan() -> Plan:
    labels = label_set(3)
    return plan(uniform(ONE, (60, 60, 60), 5, labels), labels)


@pytest.mark.parametrize(
    ("settings", "epochs", "steps", "seconds"),
    [
        (["training.steps=7"], None, 7, None),
        (["training.epochs=3"], 3, None, None),
        (["training.time_budget_seconds=90"], None, None, 90.0),
        (["training.steps=7", "training.seed=1"], None, 7, None),
        (["training.steps=null", "training.epochs=2"], 2, None, None),
        (["training.seed=1"], None, 5, None),
    ],
)
def test_a_length_that_is_set_takes_the_place_of_another(settings, epochs, steps, seconds):
    made = a_plan()
    made = replace(made, training=replace(made.training, epochs=None, steps=5))
    training = made.with_settings(settings).training
    assert (training.epochs, training.steps, training.time_budget_seconds) == (epochs, steps, seconds)


def test_a_training_has_one_length():
    with pytest.raises(StateError, match=r"epochs is 1000 and steps is 3"):
        Training(steps=3)
    with pytest.raises(UsageError, match="neither epochs nor steps nor time_budget_seconds is given"):
        a_plan().with_settings(["training.epochs=null"])
    with pytest.raises(UsageError, match="one length: epochs is 3 and steps is 4"):
        a_plan().with_settings(["training.epochs=3", "training.steps=4"])


@pytest.mark.parametrize("version", [0, 2, 4, 1.0, True, "1", None])
def test_a_plan_of_another_version_is_refused_with_the_command_that_makes_one(tmp_path, version):
    """Whatever its keys are: they follow from its version."""
    path = tmp_path / "plan.json"
    for plain in ({}, to_plain(a_plan()) | {"later": 1}):
        path.write_text(json.dumps(plain | {"version": version}), encoding="utf-8")
        with pytest.raises(OtherVersion) as caught:
            load(Plan, path)
        assert caught.value.what == (
            f"{path} is of version {version!r}; expected 1, the version of plans that this autoseg reads and writes"
        )
        assert caught.value.remedy == "plan again: autoseg plan DATASET -w WORKSPACE"
        (tmp_path / "dataset.json").write_text('{"root": "/my data"}')
        assert complete(caught.value.remedy, tmp_path) == f"plan again: autoseg plan '/my data' -w {tmp_path}"


def test_the_version_of_the_first_release(tmp_path):
    made = a_plan()
    assert made.version == 1
    save(tmp_path / "plan.json", made)
    assert load(Plan, tmp_path / "plan.json") == made
    plain = to_plain(made)
    del plain["grids"], plain["training"]["steps"], plain["training"]["chain"]  # fields with a default may be absent
    (tmp_path / "plan.json").write_text(json.dumps(plain), encoding="utf-8")
    assert load(Plan, tmp_path / "plan.json") == replace(made, grids=None)
