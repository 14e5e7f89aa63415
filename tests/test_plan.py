"""The plan as a record: it names its fingerprint, and one of version 1 is read."""

import json
from dataclasses import replace

from planned import ONE, golden_pair, plan
from synthetic_fingerprints import label_set, uniform

from autoseg.plan import Plan
from autoseg.records import load, to_plain


def test_a_plan_names_its_fingerprint():
    found, labels = golden_pair()["dense"]
    assert plan(found, labels).fingerprint == found.hash


def test_a_plan_of_version_1_is_read(tmp_path):
    labels = label_set(3)
    made = plan(uniform(ONE, (60, 60, 60), 5, labels), labels)
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
