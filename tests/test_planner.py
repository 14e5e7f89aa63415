"""Plans against nnU-Net's published ones, plans of sparse data against dense, and laws that hold for any dataset.

The files in golden/ hold two fingerprints that differ in their components alone, and their plans. After a rule was
changed on purpose, rewrite them with `python tests/test_planner.py` and read the difference.
"""

import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_fingerprints import boxes, case, fingerprint, label_set, uniform

from autoseg.errors import StateError, UsageError
from autoseg.fingerprint import Fingerprint
from autoseg.imaging.labels import LabelSet
from autoseg.plan import Plan, Training
from autoseg.planner import describe, make_plan
from autoseg.planning import budget
from autoseg.planning.space import axis_order, target_spacing
from autoseg.records import from_plain, load, save, to_plain

GOLDEN = Path(__file__).parent / "golden"
ONE = (1.0, 1.0, 1.0)


def plan(found: Fingerprint, labels: LabelSet, **options) -> Plan:
    return make_plan(dataset="test", channels=found.channels, labels=labels, fingerprint=found, **options)


def decided(made: Plan, step: str) -> tuple[str, str]:
    """Value and reason of the one decision whose step starts like this."""
    (found,) = [d for d in made.decisions if d.step.startswith(step)]
    return found.value, found.reason


# ---- nnU-Net v2's plans. Spacing; median shape; cases; entries of the label table -> patch, batch, pools, elements

MSD = {
    "Hippocampus": (ONE, (36, 50, 35), 260, 3, (40, 56, 40), 9, (3, 3, 3), 19_174_400, (56, 40), 366, (3, 3), 651_840),
    "BraTS": (ONE, (138, 169, 138), 484, 4, (128,) * 3, 2, (5, 5, 5), 454_893_568, (192, 160), 105, (5, 5), 9_676_800),
    "Heart": (
        (1.37, 1.25, 1.25), (115, 320, 232), 20, 2,
        (80, 192, 160), 2, (4, 5, 5), 528_211_200, (320, 256), 40, (6, 6), 25_784_320,
    ),
    "Liver": (
        (1, 0.767578, 0.767578), (432, 512, 512), 131, 3,
        (128,) * 3, 2, (5, 5, 5), 452_796_416, (512, 512), 12, (7, 7), 82_886_656,
    ),
    "Prostate": (
        (3.6, 0.625, 0.625), (20, 320, 319), 32, 3,
        (20, 320, 256), 2, (2, 6, 6), 483_315_200, (320, 320), 32, (6, 6), 32_332_800,
    ),
    "ACDC": (
        (5, 1.5625, 1.5625), (18, 237, 208), 200, 4,
        (20, 256, 224), 4, (2, 5, 5), 310_481_920, (256, 224), 56, (5, 5), 18_063_360,
    ),
    "Lung": (
        (1.24, 0.785, 0.785), (252, 512, 512), 63, 2,
        (80, 192, 160), 2, (4, 5, 5), 528_211_200, (512, 512), 12, (7, 7), 82_624_512,
    ),
}  # fmt: skip
EVERY_AXIS, PLANE = (2, 2, 2), (1, 2, 2)
STRIDES = {
    "Hippocampus": (EVERY_AXIS,) * 3,
    "BraTS": (EVERY_AXIS,) * 5,
    "Heart": (*(EVERY_AXIS,) * 4, PLANE),
    "Liver": (EVERY_AXIS,) * 5,
    "Prostate": (PLANE, PLANE, EVERY_AXIS, EVERY_AXIS, PLANE, PLANE),
    "ACDC": (PLANE, EVERY_AXIS, EVERY_AXIS, PLANE, PLANE),
    "Lung": (*(EVERY_AXIS,) * 4, PLANE),
}
FLAT_KERNELS = {"Prostate": 2, "ACDC": 1}  # stages whose kernel is 1 x 3 x 3


@pytest.mark.parametrize("name", MSD)
def test_plans_are_those_of_nnunet(name):
    spacing, shape, cases, entries, patch3, batch3, pools3, elements3, patch2, batch2, pools2, elements2 = MSD[name]
    labels = label_set(entries)
    made = plan(uniform(spacing, shape, cases, labels), labels, rules="nnunet")
    found = made.configurations["3d_fullres"]
    assert found.patch_size == patch3
    assert found.batch_size == batch3
    assert found.network.num_pools == pools3
    assert found.memory_estimate == elements3
    assert found.network.strides == ((1, 1, 1), *STRIDES[name])
    flat = FLAT_KERNELS.get(name, 0)
    assert found.network.kernel_sizes == ((1, 3, 3),) * flat + ((3, 3, 3),) * (len(STRIDES[name]) + 1 - flat)
    assert found.network.features == (32, 64, 128, 256, 320, 320, 320)[: len(found.network.strides)]
    assert found.batch_dice is False
    slices = made.configurations["2d"]
    assert slices.patch_size == patch2
    assert slices.batch_size == batch2
    assert slices.network.num_pools == pools2
    assert slices.memory_estimate == elements2
    assert slices.batch_dice is True
    assert made.axis_order == (0, 1, 2)
    assert made.recommended == "3d_fullres"


def test_nnunet_rules_leave_sparsity_alone():
    labels = label_set(3)
    parts = {"label1": boxes(1, (2, 2, 2), ONE)}  # tiny, and the other label never occurs
    made = plan(uniform(ONE, (100, 100, 100), 4, labels, parts), labels, rules="nnunet")
    assert made.training == Training(augmentation="nnunet")
    assert not any(d.step.startswith(("1.2", "3.2", "5.3", "5.5", "5.6", "5.7")) for d in made.decisions)


# ---- sparse against dense


def golden_pair() -> dict[str, tuple[Fingerprint, LabelSet]]:
    """Ten CT cases of 120 x 256 x 256 voxels, 2 x 1 x 1 mm; one of the ten is stored with slices of 1 mm."""
    labels = LabelSet({"organ": 1, "lesion": 2})
    spacings = [(1.0, 1.0, 1.0)] * 2 + [(2.0, 1.0, 1.0)] * 8
    dense_parts = {"organ": boxes(1, (60, 128, 128), (2, 1, 1)), "lesion": boxes(1, (30, 64, 64), (2, 1, 1))}
    dense = [case(i, s, (120, 256, 256), dense_parts, labels.values) for i, s in enumerate(spacings)]
    sparse = []
    for i, spacing in enumerate(spacings):
        parts = {"organ": boxes(1, (4, 4, 4), (2, 1, 1))}
        if i < 4:
            parts["lesion"] = boxes(2, (0.45, 2, 2), (2, 1, 1))  # 0.9 mm thick: lost where 1 mm become 2 mm
        sparse.append(case(i, spacing, (120, 256, 256), parts, labels.values))
    return {
        name: (fingerprint(cases, labels, ("CT",)), labels) for name, cases in (("dense", dense), ("sparse", sparse))
    }


@pytest.mark.parametrize("name", ["dense", "sparse"])
def test_golden_plans(name):
    found, labels = golden_pair()[name]
    assert load(Fingerprint, GOLDEN / f"{name}.fingerprint.json") == found
    assert load(Plan, GOLDEN / f"{name}.plan.json") == plan(found, labels, vram_gb=8)


def test_fingerprints_that_differ_in_sparsity_alone_give_different_plans():
    dense, sparse = (plan(*golden_pair()[name], vram_gb=8) for name in ("dense", "sparse"))
    # a lesion of 0.9 mm is lost in slices of 2 mm in the two cases stored finer: 4 of 8
    assert dense.configurations["3d_fullres"].spacing == (2, 1, 1)
    assert sparse.configurations["3d_fullres"].spacing[0] == pytest.approx(1, abs=0.01)
    assert "lesion 4 of 8" in decided(sparse, "1.2")[1]
    # the dense organ is met by every patch; the sparse one about as often as the patch fills the image
    assert dense.training.foreground_fraction == 0.33
    chance = math.prod(sparse.configurations["3d_fullres"].patch_size) / (240 * 256 * 256)
    assert sparse.training.foreground_fraction == pytest.approx((2 / 3 - chance) / (1 - chance), abs=0.03)
    assert sparse.training.foreground_fraction > 0.5
    assert "wanted 67%" in decided(sparse, "5.4")[1]
    # the lesion is in 4 of 10 cases
    assert (dense.training.case_sampling, sparse.training.case_sampling) == ("uniform", "presence")
    assert "lesion 0.4" in decided(sparse, "5.5")[1]
    assert dense.training.class_weights is None
    assert sparse.training.class_weights is not None
    assert np.mean(sparse.training.class_weights) == pytest.approx(1, abs=1e-3)
    assert "root of inverse frequency" in decided(sparse, "5.3")[1]
    assert not dense.configurations["3d_fullres"].batch_dice
    assert sparse.configurations["3d_fullres"].batch_dice
    assert "lesion" in decided(sparse, "3.6 batch Dice (3d_fullres)")[1]
    # and every reason stands in what is printed
    for made in (dense, sparse):
        assert re.sub(r"\s+", "", "".join(decided(made, "5.5"))) in re.sub(r"\s+", "", describe(made))


def test_a_patch_spares_the_axis_along_which_components_are_long():
    labels = label_set(2)
    shape = (200, 200, 200)

    def patch(extent):
        found = uniform(ONE, shape, 20, labels, {"label1": boxes(1, extent, ONE)})
        made = plan(found, labels, vram_gb=8)
        return made.configurations["3d_fullres"].patch_size, decided(made, "3.2 patch wanted (3d_fullres)")

    assert patch((20, 20, 20)) == ((128, 128, 128), ("at least 40 × 40 × 40", patch((20, 20, 20))[1][1]))
    long, (value, reason) = patch((90, 20, 20))
    assert long[0] >= 180
    assert value == "at least 180 × 40 × 40"
    assert "covered by shrinking the other axes" in reason
    unmet, (_, reason) = patch((100, 100, 100))
    assert unmet == (128, 128, 128)  # as without any need
    assert "not covered" in reason


# ---- space


def test_target_spacing_is_the_median():
    target, _ = target_spacing(np.array([[2.0, 1, 1], [3, 1, 1], [9, 2, 1]]), np.full((3, 3), 100.0))
    assert target.tolist() == [3, 1, 1]


def test_few_thick_slices_take_the_10th_percentile():
    spacings = np.array([[z, 1.0, 1.0] for z in (2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22)])
    few, many = np.array([[20, 300, 300]] * 11), np.array([[120, 300, 300]] * 11)
    assert target_spacing(spacings, few)[0].tolist() == [4, 1, 1]
    assert target_spacing(spacings, many)[0].tolist() == [12, 1, 1]
    spacings[:3, 0] = 0.5  # the 10th percentile is finer than the plane
    assert target_spacing(spacings, few)[0].tolist() == pytest.approx([1.00001, 1, 1])


@pytest.mark.parametrize(
    ("spacing", "shape", "expected"),
    [
        ((1, 1, 1), (50, 50, 50), (0, 1, 2)),
        ((1, 3, 1), (50, 50, 50), (1, 0, 2)),
        ((1, 1, 5), (50, 50, 50), (2, 0, 1)),
        ((5, 1, 1), (50, 50, 1), (2, 0, 1)),  # a single voxel counts more than a coarse spacing
        ((1, 1, 5), (1, 50, 50), (0, 1, 2)),
        ((1, 1, 1), (5, 1, 1), (1, 0, 2)),
        ((0.9999, 1, 1), (50, 50, 50), (0, 1, 2)),  # the same but for rounding
    ],
)
def test_axis_order(spacing, shape, expected):
    assert axis_order(np.array(spacing, dtype=float), np.array(shape, dtype=float), 1e-3)[0] == expected


def test_slices_along_another_axis_are_permuted_throughout():
    labels = label_set(2)
    parts = {"label1": boxes(1, (60, 5, 50), (1, 5, 1.2))}
    made = plan(uniform((1, 5, 1.2), (200, 18, 220), 10, labels, parts), labels, vram_gb=8)
    assert made.axis_order == (1, 0, 2)
    found = made.configurations["3d_fullres"]
    assert found.spacing == (5, 1, 1.2)
    assert found.median_shape == (18, 200, 220)
    assert found.network.kernel_sizes[0] == (1, 3, 3)
    assert made.configurations["2d"].spacing == (1, 1.2)
    assert decided(made, "3.2 patch wanted (3d_fullres)")[0] == "at least 10 × 120 × 100"


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


def test_thickness_of_single_slices_decides_nothing():
    labels = label_set(2)
    cases = [
        case(i, (z, 1.0, 1.0), (1, 64, 64), {"label1": boxes(1, (1, 5, 5), (z, 1, 1))}, labels.values)
        for i, z in enumerate((0.01, 1.0, 500.0, 500.0))
    ]
    cases[0] = replace(cases[0], spacing=(0.01, 0.9, 0.9))  # finer in the plane, too: now volumes are compared
    made = plan(fingerprint(cases, labels), labels)
    assert "label1 0 of 4" in decided(made, "1.2")[1]
    assert list(made.configurations) == ["2d"]
    assert made.configurations["2d"].patch_size == (64, 64)
    assert made.axis_order == (0, 1, 2)


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


# ---- training


@pytest.mark.parametrize(
    ("thickness", "slices", "across"),
    [
        ((4.0, 4.0, 4.0), 4, 5 / 9),  # one slice of a patch, one of the component, in an image of 4
        ((8.0, 8.0, 4.0), 2, 1 / 1),  # resampled there would be 3 slices; slices are seen as they are: 1 + 1 of 2
    ],
)
def test_foreground_of_slices_is_that_of_slices_as_they_are(thickness, slices, across):
    labels = label_set(2)
    shapes = [(slices if z == thickness[0] else 4, 1000, 1000) for z in thickness]
    cases = [
        case(i, (z, 1.0, 1.0), shape, {"label1": boxes(1, (1, 2, 2), (z, 1, 1))}, labels.values)
        for i, (z, shape) in enumerate(zip(thickness, shapes, strict=True))
    ]
    made = plan(fingerprint(cases, labels), labels)
    assert made.recommended == "2d"
    in_plane = [1 - (998 - edge) ** 2 / ((1000 - edge) * 998) for edge in made.configurations["2d"].patch_size]
    chance = across * math.prod(in_plane)
    assert made.training.foreground_fraction == pytest.approx(
        min(0.67, max(0.33, (2 / 3 - chance) / (1 - chance))), abs=0.006
    )
    assert 0.33 < made.training.foreground_fraction < 0.67


def test_regions_get_a_loss_and_a_mirroring_of_their_own():
    regions = LabelSet({"oedema": 1, "core": 2}, regions={"whole": (1, 2), "core": (2,)}, region_values=(1, 2))
    made = plan(uniform(ONE, (60, 60, 60), 3, regions), regions)
    assert made.training.loss == "dice_bce"
    assert plan(uniform(ONE, (60, 60, 60), 3, label_set(2)), label_set(2)).training.loss == "dice_ce"


@pytest.mark.parametrize(
    ("names", "spacing", "orientation", "axes"),
    [
        (("liver", "spleen"), ONE, "canonical", (0, 1, 2)),
        (("kidney_left", "kidney_right"), ONE, "canonical", (0, 1)),
        (("kidney_left", "kidney_right"), (1, 1, 4), "canonical", (1, 2)),  # left to right is the plan's axis 0
        (("kidney_left", "kidney_right"), (1, 4, 1), "canonical", (0, 1)),
        (("kidney_left", "kidney_right"), ONE, "as_stored", ()),
    ],
)
def test_left_and_right_are_not_mirrored_into_each_other(names, spacing, orientation, axes):
    labels = LabelSet({name: i for i, name in enumerate(names, start=1)})
    made = plan(uniform(spacing, (80, 80, 80), 3, labels), labels, orientation=orientation)
    assert made.training.mirror_axes == axes
    assert made.orientation == orientation


def test_axes_on_which_labels_keep_their_order_are_not_mirrored_on_a_cpu():
    labels = LabelSet({"anterior": 1, "posterior": 2})
    found = uniform((1, 1, 4), (80, 80, 80), 6, labels)
    ordered = {"anterior": (10.0, 10.0, 10.0), "posterior": (10.0, 30.0, 10.0)}
    swapped = {"anterior": (10.0, 10.0, 10.0), "posterior": (0.0, 30.0, 0.0)}
    centroids = [ordered | ({"posterior": (20.0, 30.0, 20.0)} if i % 2 else swapped) for i in range(6)]
    found = replace(found, cases=tuple(replace(c, centroids_mm=m) for c, m in zip(found.cases, centroids, strict=True)))
    made = plan(found, labels)
    assert made.axis_order == (2, 0, 1)
    assert made.training.mirror_axes == (0, 1)  # the stored axis 1 is the plan's axis 2
    assert "anterior always lies before posterior" in decided(made, "5.7")[1]
    assert plan(found, labels, vram_gb=8).training.mirror_axes == (0, 1, 2)


# ---- budgets


def test_a_cpu_plan_keeps_to_its_budget():
    labels = label_set(3)
    made = plan(uniform(ONE, (150, 200, 180), 20, labels), labels)
    assert (made.device, made.vram_gb) == ("cpu", None)
    assert made.training.optimizer == budget.CPU.training.optimizer
    for found in made.configurations.values():
        assert 2 * found.memory_estimate <= budget.CPU.elements[found.dims]
        assert 2 <= found.batch_size <= budget.CPU.max_batch[found.dims]
        assert found.network.features[0] == budget.CPU.base_features
        assert max(found.network.features) <= budget.CPU.max_features[found.dims]


def test_a_larger_gpu_gets_larger_patches():
    labels = label_set(3)
    found = uniform(ONE, (300, 300, 300), 100, labels)
    small, large = (plan(found, labels, vram_gb=gb) for gb in (8, 24))
    assert (small.device, small.vram_gb) == ("gpu", 8)
    assert plan(found, labels, device="gpu") == small
    sizes = [math.prod(made.configurations["3d_fullres"].patch_size) for made in (small, large)]
    assert sizes[1] > 1.5 * sizes[0]
    assert large.configurations["3d_fullres"].memory_estimate <= 3 * 560e6


def test_batch_covers_at_most_a_twentieth_of_the_dataset_on_a_gpu():
    batch, reason = budget.affordable_batch(budget.GPU, 3, 10_000_000, 1000, 400_000.0)
    assert batch == 20  # 5 % of 400 patches; the budget would pay for 112
    assert "112" in reason
    assert budget.affordable_batch(budget.GPU, 3, 10_000_000, 1000, 1.0)[0] == 2
    assert budget.affordable_batch(budget.CPU, 2, round(budget.CPU.elements[2] / 6), 1000, 1e9)[0] == 6
    assert budget.affordable_batch(budget.CPU, 2, round(budget.CPU.elements[2] / 9), 1000, 1e9)[0] == 8


# ---- overrides and refusals


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


@pytest.mark.parametrize(
    "options",
    [
        {"patch_size": (0, 8, 8)},
        {"patch_size": (8,)},
        {"spacing": (1, 1)},
        {"spacing": (1, 1, 0)},
        {"spacing": (1, 1, math.nan)},
        {"batch_size": 0},
        {"vram_gb": 0},
        {"vram_gb": -8},
    ],
)
def test_impossible_overrides_are_refused(options):
    labels = label_set(2)
    with pytest.raises(UsageError):
        plan(uniform(ONE, (50, 50, 50), 3, labels), labels, **options)


def test_a_fingerprint_of_other_labels_or_channels_is_refused():
    found = uniform(ONE, (50, 50, 50), 3, label_set(2))
    with pytest.raises(StateError, match="labels"):
        plan(found, label_set(3))
    with pytest.raises(StateError, match="channels"):
        make_plan(dataset="d", channels=("CT",), labels=label_set(2), fingerprint=found)
    with pytest.raises(StateError, match="no case"):
        plan(replace(found, cases=()), label_set(2))


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


@settings(deadline=None, max_examples=60)
@given(dataset=datasets(), rules=st.sampled_from(["autoseg", "nnunet"]), vram_gb=st.sampled_from([None, 1.0, 8.0]))
def test_any_dataset_has_a_sane_plan(dataset, rules, vram_gb):
    found, labels = dataset
    made = plan(found, labels, rules=rules, vram_gb=vram_gb)
    assert sorted(made.axis_order) == [0, 1, 2]
    assert made.recommended in made.configurations
    assert set(made.configurations) in ({"2d"}, {"2d", "3d_fullres"})
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


# ---- what is printed


def test_decisions_are_numbered_in_order_and_aligned():
    found, labels = golden_pair()["sparse"]
    made = plan(found, labels)
    numbers = [float(d.step.split()[0]) for d in made.decisions if not d.step.startswith("3.")]
    assert numbers == sorted(numbers)
    lines = describe(made, width=120).splitlines()
    assert max(map(len, lines)) <= 120
    column = lines[0].index(made.decisions[0].value)
    assert all(line[column - 2 : column].strip() == "" for line in lines)
    for decision in made.decisions:
        assert any(line.startswith(decision.step) for line in lines)


def test_a_plan_names_its_fingerprint():
    found, labels = golden_pair()["dense"]
    assert plan(found, labels).fingerprint == found.hash


if __name__ == "__main__":
    for golden_name, (golden_found, golden_labels) in golden_pair().items():
        save(GOLDEN / f"{golden_name}.fingerprint.json", golden_found)
        save(GOLDEN / f"{golden_name}.plan.json", plan(golden_found, golden_labels, vram_gb=8))
