"""The plan as a record: it names its fingerprint, a training has one length, and a plan of version 1 is read."""

import json
from dataclasses import replace

import pytest

from autoseg.errors import StateError, UsageError
from autoseg.planning.plan import Plan, Training
from autoseg.records import load, to_plain
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


def test_a_time_budget_of_version_2_is_the_length(tmp_path):
    later = ("steps", "patience", "component_weight", "dropout", "chain")
    plain = to_plain(a_plan())
    training = {key: value for key, value in plain["training"].items() if key not in later}
    old = plain | {"version": 2, "training": training | {"epochs": 60, "time_budget_seconds": 90.0}}
    (tmp_path / "plan.json").write_text(json.dumps(old), encoding="utf-8")
    read = load(Plan, tmp_path / "plan.json").training
    assert (read.epochs, read.steps, read.time_budget_seconds, read.patience) == (None, None, 90.0, 0)


@pytest.mark.parametrize(
    ("given", "rules"),
    [
        ({"epochs": 60, "steps": 7}, (None, 7, None)),
        ({"epochs": 60, "steps": 7, "time_budget_seconds": 90.0}, (None, None, 90.0)),
        ({"epochs": 60}, (60, None, None)),
    ],
)
def test_the_length_that_ruled_in_version_3_is_the_one(tmp_path, given, rules):
    plain = to_plain(a_plan())
    old = plain | {"version": 3, "training": plain["training"] | given}
    (tmp_path / "plan.json").write_text(json.dumps(old), encoding="utf-8")
    read = load(Plan, tmp_path / "plan.json").training
    assert (read.epochs, read.steps, read.time_budget_seconds) == rules


def test_a_plan_of_version_1_is_read(tmp_path):
    made = a_plan()
    plain = to_plain(made)
    old = {key: value for key, value in plain.items() if key not in ("rules", "preset")} | {"version": 1}
    old["configurations"] = {
        name: {k: v for k, v in c.items() if k not in ("elements", "cascade_from", "checkpointing", "cost")}
        | {"memory_estimate": c["elements"]}
        for name, c in plain["configurations"].items()
    }
    later = ("momentum", "focal_gamma", "topk_share", "tversky_alpha", "tversky_beta", "boundary_weight")
    old["training"] = {key: value for key, value in plain["training"].items() if key not in later}
    (tmp_path / "plan.json").write_text(json.dumps(old), encoding="utf-8")
    read = load(Plan, tmp_path / "plan.json")
    unknown = {name: replace(c, cost=None) for name, c in made.configurations.items()}
    assert read == replace(made, configurations=unknown)
