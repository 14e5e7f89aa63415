"""The record of a decision: rules as arrays and corrections, strict JSON, and weights that it holds for."""

import json

import numpy as np
import pytest

from autoseg.errors import StateError
from autoseg.imaging.corrections import Correction
from autoseg.imaging.labels import LabelSet
from autoseg.models.decision import Choice, ComponentRule, Decision, Rule
from autoseg.records import load, save

LABELS = LabelSet({"organ": 1, "lesion": 2})
REGIONS = LabelSet({"oedema": 1, "core": 2}, regions={"whole": (1, 2), "inner": (2,)}, region_values=(1, 2))
RULE = Rule({"lesion": 1.25}, {"organ": ComponentRule(True, fill_holes=True), "lesion": ComponentRule(min_volume=30)})
CHOICE = Choice("threshold", "lesion", "logit +1.25", True, "better beyond chance", change=0.01, low=0.002, high=0.02)


def decision(**changes) -> Decision:
    weights = {"3d_fullres-unet": {"0": "aa", "1": "bb"}}
    return Decision(**{"version": 1, "predicts": ("3d_fullres-unet",), "weights": weights, "rule": RULE,
                       "chosen_for": "3d_fullres-unet",
                       "choices": (CHOICE,), **changes})  # fmt: skip


def test_offsets_are_in_the_order_of_the_heads():
    np.testing.assert_array_equal(RULE.logit_offsets(LABELS), np.array([0, 0, 1.25], np.float32))
    np.testing.assert_array_equal(Rule({"inner": -0.5}).logit_offsets(REGIONS), np.array([0, -0.5], np.float32))
    np.testing.assert_array_equal(Rule({"organ": 2.0}).logit_offsets(LABELS.as_regions()), [2.0, 0.0])
    assert Rule({"lesion": 0.0}).logit_offsets(LABELS) is None


def test_volumes_become_voxels_and_labels_indices():
    organ, lesion = RULE.corrections(LABELS, 2.0)
    assert organ == Correction((1,), 1, 0, keep_largest=True, fill_holes=True)
    assert lesion == Correction((2,), 2, 0, min_voxels=15.0)


def test_removed_parts_of_a_region_become_the_region_around_it():
    inner, whole = Rule(components={"inner": ComponentRule(True), "whole": ComponentRule(True)}).corrections(REGIONS, 1)
    assert (inner.indices, inner.filled_with, inner.replaced_by) == ((2,), 2, 1)
    assert (whole.indices, whole.filled_with, whole.replaced_by) == ((1, 2), 1, 0)


def test_the_record_survives_its_file(tmp_path):
    save(tmp_path / "decision.json", decision())
    assert load(Decision, tmp_path / "decision.json") == decision()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"predicts": ["a", "b", "c"]}, "predicts"),
        ({"predicts": ["2d-unet"]}, "there are no weights of '2d-unet'"),
        ({"version": 2}, "version"),
        ({"rule": {"offsets": {"lesion": 1e9}, "components": {}}}, "rule.offsets"),
        ({"rule": {"offsets": {}, "components": {"organ": {"min_volume": -1}}}}, "min_volume"),
        ({"code": "x"}, "code"),
    ],
    ids=str,
)
def test_what_cannot_be_a_decision_is_refused(tmp_path, change, named):
    path = tmp_path / "decision.json"
    save(path, decision())
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(StateError, match=named):
        load(Decision, path)


def test_it_holds_for_its_weights_alone():
    one = decision()
    assert one.other_weights({"3d_fullres-unet": {"0": "aa"}}) == ""
    assert one.other_weights({"3d_fullres-unet": {"0": "aa", "1": "cc"}}) == "fold 1 of 3d_fullres-unet"
    assert one.other_weights({"3d_fullres-unet": {"full": "dd"}}) == "fold full of 3d_fullres-unet"


def test_in_words():
    assert decision().in_short() == [
        "decision (1 of 1 choice accepted): lesion: logit +1.25; organ: only the largest component, holes filled; "
        "lesion: no component below 30 mm³"
    ]
    assert decision(rule=Rule()).in_short()[0].endswith("the largest logit decides, nothing is corrected")


def test_another_model_in_place_of_the_one_that_was_asked_for():
    other = decision(predicts=("2d-unet",), weights={"2d-unet": {}}, rule=Rule())
    assert other.lines() == ["predict with 2d-unet"]


def test_segmentations_by_another_rule_are_not_kept():
    assert Rule().digest("model") == "model"
    assert len({RULE.digest("model"), RULE.digest("other"), Rule({"lesion": 1.0}).digest("model"), "model"}) == 4
