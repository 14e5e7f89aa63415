"""Whole plans: normalisation, which configurations there are, overrides, another network; laws for any dataset."""

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoseg.errors import UsageError
from autoseg.imaging.labels import LabelSet
from autoseg.planning.plan import Plan
from autoseg.planning.planner import describe, with_network
from autoseg.records import from_plain, to_plain
from plans import ONE, decided, plan
from synthetic_fingerprints import boxes, case, fingerprint, label_set, uniform
from synthetic_memory import ElementMemory

# ---- intensities


def test_normalisation_follows_the_names_of_channels():
    labels = label_set(2)
    made = plan(uniform(ONE, (50, 50, 50), 3, labels, channels=("CT", "FLAIR", "noNorm")), labels)
    assert [n.scheme for n in made.normalization] == ["ct", "zscore", "none"]
    assert (made.normalization[0].mean, made.normalization[0].p99_5) == (80, 250)
    assert not any(n.inside_mask for n in made.normalization)


@pytest.mark.parametrize(("edge", "inside"), [(91, False), (90, True)])  # .7536 and .729 of the image
def test_z_scores_are_masked_where_the_body_is_less_than_three_quarters(edge, inside):
    labels = label_set(2)
    parts = {"label1": boxes(1, (20, 20, 20), ONE)}
    cases = [case(i, ONE, (edge,) * 3, parts, labels.values, before_crop=(100,) * 3) for i in range(3)]
    made = plan(fingerprint(cases, labels, ("FLAIR", "CT")), labels)
    assert [n.inside_mask for n in made.normalization] == [inside, False]


# ---- configurations


@pytest.mark.parametrize("rules", ["autoseg", "nnunet"])
@pytest.mark.parametrize("shape", [(1, 300, 200), (300, 1, 200), (300, 200, 1)])
def test_single_slices_are_planned_in_2d_wherever_the_single_voxel_lies(shape, rules):
    labels = label_set(3)
    made = plan(uniform((1, 1, 1), shape, 5, labels), labels, rules=rules)
    assert list(made.configurations) == ["2d"]
    assert made.recommended == "2d"
    assert made.axis_order[0] == shape.index(1)
    assert made.configurations["2d"].median_shape == (300, 200)
    assert made.configurations["2d"].data == "2d"


def test_few_thick_slices_are_recommended_in_2d():
    labels = label_set(2)

    def recommended(slices, thickness):
        return plan(uniform((thickness, 1, 1), (slices, 200, 200), 5, labels), labels).recommended

    assert recommended(4, 4) == "2d"
    assert recommended(5, 4) == "3d_fullres"
    assert recommended(4, 3) == "3d_fullres"


def test_copies_are_shared_where_no_case_is_resampled_across_slices():
    labels = label_set(2)
    parts = {"label1": boxes(1, (20, 20, 20), ONE)}

    def copies(*thickness):
        cases = [case(i, (z, 1.0, 1.0), (40, 64, 64), parts, labels.values) for i, z in enumerate(thickness)]
        return [c.data for c in plan(fingerprint(cases, labels), labels).configurations.values()]

    assert copies(2.0, 2.0, 2.0) == ["3d_fullres", "3d_fullres"]
    assert copies(2.0, 2.0001, 2.0) == ["3d_fullres", "3d_fullres"]
    assert copies(2.0, 2.5, 2.0) == ["2d", "3d_fullres"]
    assert copies(2.0, 2.02, 2.0) == ["2d", "3d_fullres"]  # 40 slices still, but moved


class Recorded(ElementMemory):
    """Remembers what it was asked."""

    def __init__(self):
        self.steps = []

    def train(self, step):
        self.steps.append(step)
        return super().train(step)


def test_the_cascade_sees_what_its_forerunner_found():
    labels, memory = label_set(5), Recorded()
    made = plan(uniform(ONE, (400, 400, 400), 30, labels), labels, vram_gb=8, memory=memory)
    full, lowres, cascade = (made.configurations[f"3d_{name}"] for name in ("fullres", "lowres", "cascade"))
    assert (full.cascade_from, lowres.cascade_from, cascade.cascade_from) == (None, None, "3d_lowres")
    assert (lowres.data, cascade.data) == ("3d_lowres", "3d_fullres")
    assert [made.input_channels(c) for c in (full, lowres, cascade)] == [1, 1, 5]  # 4 labels beside the image
    assert {step.in_channels for step in memory.steps} == {1, 5}
    assert all(c <= f for c, f in zip(cascade.patch_size, full.patch_size, strict=True))
    assert math.prod(lowres.patch_size) >= 0.25 * math.prod(lowres.median_shape) * 0.9
    assert (full.batch_dice, lowres.batch_dice, cascade.batch_dice) == (True, False, True)
    value, reason = decided(made, "3.11 lowres")
    assert value == " × ".join([f"{lowres.spacing[0]:.4g}"] * 3)
    assert "times fewer voxels" in reason


def test_a_lower_resolution_that_saves_little_is_dropped():
    labels = label_set(2)
    made = plan(uniform(ONE, (210, 210, 210), 30, labels), labels, vram_gb=8)  # 128^3 of it are 23 %
    assert list(made.configurations) == ["2d", "3d_fullres"]
    assert decided(made, "3.11 lowres")[0] == "dropped"


# ---- overrides and another network


def test_overrides_are_permuted_and_rounded_up():
    labels = label_set(2)
    found = uniform((1, 1, 5), (200, 210, 18), 4, labels)
    made = plan(found, labels, patch_size=(70, 66, 10), spacing=(2, 2, 4), batch_size=3)
    chosen = made.configurations["3d_fullres"]
    assert made.axis_order == (2, 0, 1)
    assert chosen.spacing == (4, 2, 2)
    assert chosen.batch_size == 3
    assert all(e >= g for e, g in zip(chosen.patch_size, (10, 70, 66), strict=True))
    assert all(e < g + 16 for e, g in zip(chosen.patch_size, (10, 70, 66), strict=True))
    flat = plan(found, labels, patch_size=(96, 128))
    assert flat.configurations["2d"].patch_size == (96, 128)
    assert flat.configurations["3d_fullres"] == plan(found, labels).configurations["3d_fullres"]


@pytest.mark.thorough
@pytest.mark.parametrize("vram_gb", [None, 8])
def test_another_network_keeps_what_images_are_brought_to(vram_gb):
    labels = label_set(3)
    found = uniform((1.0, 3.0, 0.8), (300, 150, 400), 20, labels)
    first = plan(found, labels, vram_gb=vram_gb, spacing=(0.9, 3.0, 0.9))
    edited = replace(first, training=replace(first.training, epochs=7))
    other = with_network(edited, found, "swin_unet", memory=ElementMemory())
    assert {c.network.name for c in other.configurations.values()} == {"swin_unet"}
    assert list(other.configurations) == list(first.configurations) == ["2d", "3d_fullres", "3d_lowres", "3d_cascade"]
    for name, old in first.configurations.items():
        new = other.configurations[name]
        assert (new.data, new.spacing, new.cascade_from) == (old.data, old.spacing, old.cascade_from)
        assert new.median_shape == old.median_shape
    for key in ("labels", "channels", "axis_order", "orientation", "normalization", "resampling", "fingerprint"):
        assert getattr(other, key) == getattr(first, key)
    assert other.training.epochs == 7
    # SGD does not suit transformers; the recipe for a CPU has AdamW anyway
    assert (other.training.optimizer, other.training.learning_rate) == ("adamw", 2e-3 if vram_gb is None else 5e-4)
    back = with_network(other, found, "unet", memory=ElementMemory())
    assert back.training == edited.training
    assert replace(back.configurations["3d_fullres"], batch_dice=True) == first.configurations["3d_fullres"]
    with pytest.raises(UsageError, match="no network 'x'"):
        with_network(first, found, "x", memory=ElementMemory())


def test_a_network_with_a_loss_of_its_own_brings_it_and_takes_it_away():
    labels = label_set(3)
    found = uniform(ONE, (60, 60, 60), 6, labels)
    first = plan(found, labels)
    edited = replace(first, training=replace(first.training, loss="tversky", loss_options={"tversky_alpha": 0.4}))
    other = with_network(edited, found, "mask_transformer", memory=ElementMemory())
    assert (other.training.loss, other.training.loss_options) == ("mask_classification", {})
    assert {c.network.decoder_blocks[0] for c in other.configurations.values()} == {1}
    chosen = replace(other, training=replace(other.training, loss_options={"things": [1]}))
    back = with_network(chosen, found, "unet", memory=ElementMemory())
    assert (back.training.loss, back.training.loss_options) == ("dice_ce", {})
    kept = with_network(edited, found, "swin_unet", memory=ElementMemory())
    assert (kept.training.loss, kept.training.loss_options) == ("tversky", {"tversky_alpha": 0.4})
    planned = plan(found, labels, network="mask_transformer")
    assert planned.training.loss == "mask_classification"
    (reason,) = (decision.reason for decision in planned.decisions if decision.step == "5.2 loss")
    assert reason == "labels exclude each other: one softmax; mask_transformer has a loss of its own"
    assert plan(found, labels, network="mask_transformer", vram_gb=8).training.optimizer == "adamw"


def test_queries_do_not_predict_regions():
    labels = LabelSet({"a": 1, "b": 2}, regions={"all": (1, 2), "b": (2,)}, region_values=(1, 2))
    found = uniform(ONE, (60, 60, 60), 6, labels)
    with pytest.raises(UsageError, match="mask_transformer predicts one label per voxel") as caught:
        plan(found, labels, network="mask_transformer")
    assert "--network unet" in caught.value.remedy
    with pytest.raises(UsageError, match="one label per voxel"):
        with_network(plan(found, labels), found, "mask_transformer", memory=ElementMemory())


# ---- traps


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("spacing", "shape", "cases", "entries"),
    [
        ((1, 1, 1), (1, 300, 200), 4, 2),
        ((1, 1, 1), (300, 200, 1), 4, 2),  # a single voxel that is not first
        ((1, 5, 1), (200, 2, 180), 4, 2),
        ((1, 1, 100), (200, 180, 30), 4, 2),  # spacings of 1 : 100
        ((100, 1, 1), (3, 500, 500), 4, 2),
        ((1, 1, 1), (9, 7, 8), 4, 2),  # images smaller than any patch
        ((1, 1, 1), (3, 3, 3), 1, 2),
        ((1.5, 1.5, 1.5), (300, 250, 400), 80, 105),
        ((1, 1, 1), (150, 150, 150), 1, 3),  # one training case
    ],
)
@pytest.mark.parametrize("options", [{}, {"vram_gb": 8}, {"rules": "nnunet"}, {"preset": "l"}], ids=str)
def test_known_traps(spacing, shape, cases, entries, options):
    labels = label_set(entries)
    made = plan(uniform(spacing, shape, cases, labels), labels, **options)
    flat = sorted(shape)[0] == 1
    assert ("3d_fullres" in made.configurations) == (not flat)
    for found in made.configurations.values():
        divisor = [2**p for p in found.network.num_pools]
        assert all(edge % d == 0 for edge, d in zip(found.patch_size, divisor, strict=True))
        assert found.batch_size >= 2
        assert all(p <= max(2 * m, 12) for p, m in zip(found.patch_size, found.median_shape, strict=True))


def test_slices_of_very_different_size_are_planned_for_the_median():
    labels = label_set(2)
    cases = [
        case(i, ONE, shape, {"label1": boxes(1, (1, 9, 9), ONE)}, labels.values)
        for i, shape in enumerate([(1, 40, 50), (1, 512, 512), (1, 600, 480), (1, 4000, 3000), (1, 100, 6000)])
    ]
    made = plan(fingerprint(cases, labels), labels, vram_gb=8)
    assert made.configurations["2d"].median_shape == (512, 512)
    assert made.configurations["2d"].patch_size == (512, 512)


# ---- any dataset


@st.composite
def datasets(draw):
    entries = draw(st.sampled_from([2, 3, 105]))
    labels = label_set(entries)
    names = list(labels.values)
    extent = st.one_of(st.integers(1, 20), st.integers(1, 1500))
    length = st.floats(0.05, 100).map(lambda v: float(f"{v:.4g}"))
    cases = []
    for i in range(draw(st.integers(1, 3))):
        spacing, shape = draw(st.tuples(length, length, length)), draw(st.tuples(extent, extent, extent))
        present = draw(st.lists(st.sampled_from(names), unique=True, max_size=3))
        parts = {
            name: boxes(draw(st.integers(1, 300)), [draw(st.integers(1, e)) for e in shape], spacing)
            for name in present
        }
        cases.append(case(i, spacing, shape, parts, names))
    return fingerprint(cases, labels), labels


@pytest.mark.thorough
@settings(deadline=None, max_examples=60)
@given(dataset=datasets(), rules=st.sampled_from(["autoseg", "nnunet"]), vram_gb=st.sampled_from([None, 4.0, 8.0]))
def test_any_dataset_has_a_sane_plan(dataset, rules, vram_gb):
    found, labels = dataset
    made = plan(found, labels, rules=rules, vram_gb=vram_gb)
    assert sorted(made.axis_order) == [0, 1, 2]
    assert made.recommended in made.configurations
    several = {"2d", "3d_fullres"}
    assert set(made.configurations) in ({"2d"}, several, several | {"3d_lowres", "3d_cascade"})
    for chosen in made.configurations.values():
        network = chosen.network
        bottleneck = [e // 2**p for e, p in zip(chosen.patch_size, network.num_pools, strict=True)]
        assert all(e % 2**p == 0 for e, p in zip(chosen.patch_size, network.num_pools, strict=True))
        assert math.prod(bottleneck) >= 4
        assert len(network.strides) == len(network.kernel_sizes) == len(network.features) == len(network.blocks) >= 2
        assert len(network.decoder_blocks) == len(network.strides) - 1
        assert chosen.batch_size >= 2
        assert len(chosen.receptive_field) == chosen.dims
        assert all(s > 0 for s in chosen.spacing)
    training = made.training
    assert 0.33 <= training.foreground_fraction <= 0.67
    assert training.class_weights is None or len(training.class_weights) == labels.num_heads
    assert from_plain(Plan, to_plain(made)) == made
    assert all(d.value and d.reason for d in made.decisions)
    assert describe(made).count("\n") + 1 >= len(made.decisions)
