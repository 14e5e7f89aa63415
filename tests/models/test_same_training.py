"""What decides the weights of a fold, and what does not: every field has its side."""

import copy
from dataclasses import fields, replace

import pytest

from autoseg.commands.parser import build_parser
from autoseg.models.same_training import (
    OF_CONFIGURATION,
    SEEN,
    content_differences,
    decisive,
    describe_contents,
    describe_differences,
    options_between,
    plan_differences,
    what_is_seen,
)
from autoseg.planning.plan import Configuration, NetworkSpec, Plan, Training
from autoseg.records import from_plain, to_plain
from plans import plan
from synthetic_fingerprints import label_set, uniform

NAME = "3d_fullres"
LABELS = label_set(3)


@pytest.fixture(scope="module")
def made() -> Plan:
    return plan(uniform((2.0, 1.0, 1.0), (12, 20, 24), 5, LABELS, channels=("MR",)), LABELS)


def other(value):
    """A value that differs from this one."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1
    if isinstance(value, str) or value is None:
        return "another"
    if isinstance(value, dict):
        return {**value, "more": 1}
    return [*value, 1]


def changed(plain: dict, *keys: str) -> dict:
    """A copy in which the value under these keys is another."""
    result = copy.deepcopy(plain)
    node = result
    for key in keys[:-1]:
        node = node[key]
    node[keys[-1]] = other(node[keys[-1]])
    return result


INDIFFERENT = (
    *[("dataset",), ("fingerprint",), ("recommended",), ("rules",), ("preset",), ("device",), ("vram_gb",)],
    *[("decisions",), ("training", "workers"), ("training", "test_time_mirroring"), ("version",)],
    *[
        ("configurations", NAME, key)
        for key in ("median_shape", "receptive_field", "elements", "checkpointing", "cost")
    ],
    *[("configurations", "2d", "batch_size"), ("configurations", "2d", "network", "features")],
)
DECISIVE = (
    *[
        ("channels",),
        ("orientation",),
        ("axis_order",),
        ("resampling", "image_order"),
        ("resampling", "filter"),
        ("labels", "ignore"),
    ],
    *[("normalization",), ("configurations", NAME, "spacing"), ("configurations", NAME, "patch_size")],
    *[("configurations", NAME, "batch_size"), ("configurations", NAME, "batch_dice")],
    *[("configurations", NAME, "cascade_from"), ("configurations", NAME, "network", "features")],
    *[("training", key) for key in ("seed", "epochs", "loss", "patience", "mirror_axes", "augmentation", "optimizer")],
)


@pytest.mark.parametrize("keys", INDIFFERENT, ids=".".join)
def test_what_decides_no_weight_is_no_difference(made, keys):
    plain = to_plain(made)
    assert plan_differences(plain, changed(plain, *keys), NAME) == {}


@pytest.mark.parametrize("keys", DECISIVE, ids=".".join)
def test_what_decides_the_weights_is_a_difference(made, keys):
    plain = to_plain(made)
    after = changed(plain, *keys) if keys != ("normalization",) else plain | {"normalization": []}
    assert plan_differences(plain, after, NAME)


def test_every_field_of_a_configuration_and_of_the_training_has_its_side(made):
    """A field that is added must be put on one: decisive, or named here as without effect."""
    sides = {*OF_CONFIGURATION, "data", *(keys[2] for keys in INDIFFERENT if keys[:2] == ("configurations", NAME))}
    assert {field.name for field in fields(Configuration)} <= sides
    kept = {key.removeprefix("training.") for key in decisive(to_plain(made), NAME)}
    assert {field.name for field in fields(Training)} - kept == {"workers", "test_time_mirroring"}
    assert set(decisive(to_plain(made), NAME)[f"configurations.{NAME}"]["network"]) == {
        f.name for f in fields(NetworkSpec)
    }
    assert {field.name for field in fields(Plan)} >= set(SEEN)


def test_fields_that_plans_gain_or_lack_make_no_difference(made):
    """A later version adds to the plan; checkpoints of an earlier one lack settings that have a default today."""
    plain = to_plain(made)
    later = plain | {"spacing_ranges": [[1, 2]], "file_suffixes": [".nii"]}
    assert plan_differences(plain, later, NAME) == plan_differences(later, plain, NAME) == {}
    earlier = copy.deepcopy(plain)
    for key in ("case_sampling", "class_sampling", "loss_options"):
        del earlier["training"][key]
    del earlier["resampling"]["filter"]
    assert plan_differences(earlier, plain, NAME) == {}
    earlier["training"]["unknown_today"] = 3
    assert plan_differences(earlier, plain, NAME) == {}


@pytest.mark.parametrize(
    ("scheme", "counts"), [("zscore", False), ("ct", True), ("none", False), ("rescale_to_0_1", False)]
)
def test_statistics_count_where_a_normalisation_uses_them(made, scheme, counts):
    """A corrected label changes the foreground's mean by a little; a z-score is that of the image itself."""
    (channel,) = made.normalization
    before = replace(made, normalization=(replace(channel, scheme=scheme, mean=100.0),))
    after = replace(made, normalization=(replace(channel, scheme=scheme, mean=100.1),))
    found = plan_differences(to_plain(before), to_plain(after), NAME)
    assert list(found) == (["normalization"] if counts else [])


def test_what_labels_are_called_decides_nothing_but_their_values_do(made):
    plain = to_plain(made)
    names = list(plain["labels"]["values"])
    values = plain["labels"]["values"].values()
    renamed = plain | {"labels": plain["labels"] | {"values": dict(zip(reversed(names), values, strict=True))}}
    assert plan_differences(plain, renamed, NAME) == {}
    moved = plain | {"labels": plain["labels"] | {"values": dict(zip(names, (v + 1 for v in values), strict=True))}}
    assert list(plan_differences(plain, moved, NAME)) == ["labels"]
    for key, value in (("regions", {"whole": [1, 2]}), ("ignore", 9)):
        assert list(plan_differences(plain, plain | {"labels": plain["labels"] | {key: value}}, NAME)) == ["labels"]


def test_a_copy_that_is_shared_is_known_by_what_it_holds(made):
    """Not by its name: 2d reads the copy of 3d_fullres; one of its own with the same slices is the same to it."""
    plain = to_plain(made)
    shared = copy.deepcopy(plain)
    shared["configurations"]["2d"]["data"] = NAME
    assert plan_differences(plain, shared, "2d") or plain["configurations"]["2d"]["data"] == NAME
    coarser = copy.deepcopy(shared)
    coarser["configurations"][NAME]["spacing"][0] *= 2
    assert plan_differences(shared, coarser, "2d")


def test_differences_are_told_with_their_values(made):
    plain = to_plain(made)
    after = copy.deepcopy(plain)
    after["training"]["seed"] = 5
    after["configurations"][NAME]["batch_size"] = 99
    batch = plain["configurations"][NAME]["batch_size"]
    assert describe_differences(plan_differences(plain, after, NAME)) == (
        f"configurations.{NAME}, training.seed differ (configurations.{NAME}.batch_size {batch} then, 99 now; "
        "training.seed 1234 then, 5 now)"
    )


def test_options_bring_a_plan_back(made):
    """As `autoseg train` reads them: the plan under these options decides what the fold was begun with."""
    blocks = [1 for _ in made.configurations[NAME].network.features]
    begun = made.with_settings([
        "training.epochs=8", "training.learning_rate=0.5", "training.class_weights=[1, 2.5, 1]",
        f"configurations.{NAME}.batch_size=3", f"configurations.{NAME}.network.blocks={blocks}",
    ])  # fmt: skip
    options = options_between(to_plain(begun), to_plain(made), NAME)
    typed = build_parser().parse_args(["train", *options])
    again = made.with_settings([*typed.settings, f"training.epochs={typed.epochs}"])
    assert plan_differences(to_plain(begun), to_plain(again), NAME) == {}
    assert options_between(to_plain(made), to_plain(made), NAME) == []
    timed = made.with_settings(["training.time_budget_seconds=90"])
    assert options_between(to_plain(timed), to_plain(made), NAME) == ["--time-budget", "90s"]
    assert options_between(to_plain(made.with_settings(["training.steps=7"])), to_plain(made), NAME) == ["--steps", "7"]
    assert options_between(to_plain(replace(made, orientation="as_stored")), to_plain(made), NAME) is None


def test_what_an_ensemble_shares_is_what_is_seen_and_predicted(made):
    seen = what_is_seen(to_plain(made), NAME)
    assert seen == what_is_seen(to_plain(made.with_settings(["training.seed=5", "dataset=other"])), NAME)
    assert seen != what_is_seen(to_plain(made.with_settings([f"configurations.{NAME}.spacing=[1, 1, 1]"])), NAME)


def test_contents_are_compared_where_both_are_known():
    begun = {"a": ["i", "l"], "b": ["i", "l"], "c": ["", ""], "d": ["i", "l", "p"], "gone": ["i", "l"]}
    now = {"a": ["i", "l"], "b": ["i", "L"], "c": ["x", "y"], "d": ["I", "l", "P"], "new": ["i", "l"]}
    found = content_differences(begun, now, ["a", "b", "c", "d", "gone", "new"])
    assert found == {"b": ("label",), "d": ("image", "segmentation by the previous stage")}
    assert content_differences({}, now, now) == {}
    assert describe_contents({"b": ("label",)}) == "the label of b has changed"
    assert describe_contents(found) == "the label of b and 1 other case have changed"
    assert describe_contents({"b": ("image", "label")}) == "the image and the label of b have changed"


def test_options_of_a_loss_decide_the_weights_where_they_are_not_its_defaults(made):
    """What a plan does not say is the default of the loss; a command to return to a loss sets its options, too."""
    focal = {"loss": "dice_focal"}
    plain = to_plain(made)

    def under(**training):
        return plain | {"training": plain["training"] | training}

    usual, spelled_out = under(**focal), under(**focal, loss_options={"focal_gamma": 2.0})
    sharper = under(**focal, loss_options={"focal_gamma": 3.0})
    assert plan_differences(usual, spelled_out, NAME) == {}
    found = plan_differences(usual, sharper, NAME)
    assert describe_differences(found) == (
        "training.loss_options differ (training.loss_options.focal_gamma 2.0 then, 3.0 now)"
    )
    assert options_between(usual, sharper, NAME) == ["--set", "training.loss_options.focal_gamma=2.0"]
    back = options_between(plain, sharper, NAME)
    assert back == ["--set", 'training.loss="dice_ce"', "--set", 'training.loss_options={"boundary_weight": 0.0}']
    now = from_plain(Plan, sharper)
    assert plan_differences(plain, to_plain(now.with_settings(back[1::2])), NAME) == {}
