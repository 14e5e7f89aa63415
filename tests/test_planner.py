"""Plans against nnU-Net's published ones, plans of sparse data against dense, and laws that hold for any dataset.

The files in golden/ hold two fingerprints that differ in their components alone, and their plans. After a rule was
changed on purpose, rewrite them with `python tests/test_planner.py` and read the difference.
"""

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_fingerprints import boxes, case, fingerprint, label_set, uniform
from synthetic_memory import ElementMemory

from autoseg.errors import StateError, UsageError
from autoseg.fingerprint import Fingerprint
from autoseg.imaging.labels import LabelSet
from autoseg.plan import Plan, Training
from autoseg.planner import describe, make_plan, with_network
from autoseg.planning import budget
from autoseg.planning.cost import Step
from autoseg.planning.space import axis_order, target_spacing
from autoseg.records import from_plain, load, save, to_plain

GOLDEN = Path(__file__).parent / "golden"
ONE = (1.0, 1.0, 1.0)


def plan(found: Fingerprint, labels: LabelSet, **options) -> Plan:
    options = {"memory": ElementMemory()} | options
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
# spacing; median shape; patch of the lower resolution
LOWRES = {
    "Liver": ((2.4273, 1.8631, 1.8631), (178, 211, 211), (128,) * 3),
    "Lung": ((2.376, 1.5041, 1.5041), (132, 267, 267), (80, 192, 160)),
}
# preset -> patch, batch, elements, batch of 2d, lowres; None: not published, or for lowres: there is none
RESIDUAL = {
    "Hippocampus": {
        "m": ((40, 56, 40), 58, None, 1618, None), "l": ((40, 56, 40), 178, None, 4554, None),
        "xl": ((40, 56, 40), 183, None, 6711, None),
    },
    "BraTS": {
        "m": ((128,) * 3, 2, 559_517_696, 107, None), "l": ((160, 192, 160), 3, 1_311_369_600, 301, None),
        "xl": ((160, 192, 160), 5, None, 444, None),
    },
    "Heart": {
        "m": ((80, 192, 160), 2, 651_081_600, 40, None), "l": ((112, 288, 224), 2, 1_914_179_904, 113, None),
        "xl": ((128, 320, 256), 3, 2_777_154_560, 166, None),
    },
    "Liver": {
        "m": ((128,) * 3, 2, 557_420_544, 12, ((2.4273, 1.8631, 1.8631), (178, 211, 211), (128,) * 3)),
        "l": ((160, 224, 192), 2, 1_829_036_160, 35, ((1.6047, 1.2317, 1.2317), (269, 319, 319), None)),
        "xl": ((192, 256, 256), 2, None, 52, ((1.3439, 1.0316, 1.0316), (321, 381, 381), None)),
    },
    "Prostate": {
        "m": ((20, 256, 256), 2, 565_068_800, 32, None), "l": ((20, 320, 320), 5, 882_920_000, 90, None),
        "xl": ((20, 320, 320), 8, None, 133, None),
    },
    "ACDC": {
        "m": ((20, 256, 224), 3, 427_445_760, 57, None), "l": ((20, 256, 224), 10, None, 161, None),
        "xl": ((20, 256, 224), 17, None, 238, None),
    },
    "Lung": {
        "m": ((80, 192, 160), 2, None, None, ((2.376, 1.5041, 1.5041), (132, 267, 267), None)),
        "l": ((112, 256, 256), 2, None, None, ((1.6665, 1.055, 1.055), (188, 381, 381), None)),
        "xl": ((128, 320, 320), 2, None, None, None),
    },
}  # fmt: skip
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
    assert found.elements == elements3
    assert found.network.strides == ((1, 1, 1), *STRIDES[name])
    flat = FLAT_KERNELS.get(name, 0)
    assert found.network.kernel_sizes == ((1, 3, 3),) * flat + ((3, 3, 3),) * (len(STRIDES[name]) + 1 - flat)
    assert found.network.features == (32, 64, 128, 256, 320, 320, 320)[: len(found.network.strides)]
    assert found.batch_dice is (name in LOWRES)
    slices = made.configurations["2d"]
    assert slices.patch_size == patch2
    assert slices.batch_size == batch2
    assert slices.network.num_pools == pools2
    assert slices.elements == elements2
    assert slices.batch_dice is True
    assert made.axis_order == (0, 1, 2)
    assert made.recommended == "3d_fullres"
    assert_lowres(made, LOWRES.get(name), 2)


def assert_lowres(made: Plan, expected: tuple | None, batch: int) -> None:
    """The lower resolution and the cascade are there, as expected, or neither is."""
    if expected is None:
        assert set(made.configurations) == {"2d", "3d_fullres"}
        return
    assert list(made.configurations) == ["2d", "3d_fullres", "3d_lowres", "3d_cascade"]
    spacing, median, patch = expected
    found = made.configurations["3d_lowres"]
    assert found.spacing == pytest.approx(spacing, abs=1e-4)
    assert found.median_shape == median
    assert found.batch_size == batch
    assert found.batch_dice is False
    if patch is not None:
        assert found.patch_size == patch
    full, cascade = made.configurations["3d_fullres"], made.configurations["3d_cascade"]
    assert full.batch_dice is True
    assert replace(cascade, cost=None) == replace(full, cascade_from="3d_lowres", cost=None)


@pytest.mark.parametrize("preset", ["m", "l", "xl"])
@pytest.mark.parametrize("name", MSD)
def test_plans_of_residual_encoders_are_those_of_nnunet(name, preset):
    spacing, shape, cases, entries = MSD[name][:4]
    patch, batch, elements, batch2, lowres = RESIDUAL[name][preset]
    labels = label_set(entries)
    made = plan(uniform(spacing, shape, cases, labels), labels, rules="nnunet", preset=preset)
    found, slices = made.configurations["3d_fullres"], made.configurations["2d"]
    assert found.patch_size == patch
    assert found.batch_size == batch
    assert elements is None or found.elements == elements
    assert batch2 is None or slices.batch_size == batch2
    assert (found.network.name, slices.network.name) == ("residual_unet", "residual_unet")
    assert found.network.blocks == (1, 3, 4, 6, 6, 6, 6, 6)[: len(found.network.strides)]
    assert set(found.network.decoder_blocks) == {1}
    assert_lowres(made, lowres, 2)


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
        assert 2 * found.elements <= budget.CPU.elements[found.dims]
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
    for made in (small, large):
        assert all(found.cost.train_bytes <= 0.95e9 * made.vram_gb for found in made.configurations.values())


def test_batch_covers_at_most_a_twentieth_of_the_dataset_on_a_gpu():
    batch, reason = budget.limited_batch(budget.GPU, 3, 112, 1000, 400_000.0)
    assert batch == 20  # 5 % of 400 patches
    assert "fill 20" in reason
    assert budget.limited_batch(budget.GPU, 3, 112, 1000, 1.0)[0] == 2
    assert budget.limited_batch(budget.PRESETS["m"], 3, 112, 1000, 400_000.0)[0] == 112
    assert budget.limited_batch(budget.CPU, 2, 6, 1000, 1e9)[0] == 6
    assert budget.limited_batch(budget.CPU, 2, 9, 1000, 1e9)[0] == 8


class Recorded(ElementMemory):
    """Remembers what it was asked."""

    def __init__(self):
        self.steps = []

    def train(self, step):
        self.steps.append(step)
        return super().train(step)


@settings(deadline=None, max_examples=40)
@given(
    shape=st.tuples(*[st.integers(20, 600)] * 3), spacing=st.sampled_from([ONE, (3.0, 1.0, 1.0), (1.0, 0.7, 0.7)]),
    cases=st.sampled_from([1, 10, 400]), vram_gb=st.sampled_from([3.0, 8.0, 24.0, 80.0]),
    network=st.sampled_from(["unet", "residual_unet", "swin_unet"]),
)  # fmt: skip
def test_a_plan_keeps_to_its_memory_and_no_neighbour_would(shape, spacing, cases, vram_gb, network):
    labels, memory = label_set(3), ElementMemory()
    made = plan(uniform(spacing, shape, cases, labels), labels, vram_gb=vram_gb, network=network, memory=memory)
    limit = 0.95e9 * vram_gb
    for name, found in made.configurations.items():
        step = Step(found.network, made.input_channels(found), found.patch_size, found.batch_size, found.checkpointing)
        used = memory.train(step).device_bytes
        assert found.cost.train_bytes == used <= limit
        value, reason = decided(made, f"3.8 memory ({name})")
        assert value == f"{used / 1e9:.3g} of {vram_gb:g} GB"
        more = memory.train(replace(step, batch_size=found.batch_size + 1)).device_bytes
        assert ("held back" in reason) == (more <= limit)
        if more <= limit:
            assert re.search("fill|at most", decided(made, f"3.5 batch ({name})")[1])
        larger = re.search(r"patch ([0-9 ×]+) ([0-9.]+) GB$", reason)
        no_larger = ("a larger patch would exceed the images", "that of the configuration it continues")
        assert (larger is None) == reason.endswith(no_larger)
        if larger:
            assert math.prod(map(int, larger[1].split(" × "))) > math.prod(found.patch_size)
            assert float(larger[2]) > 0.99 * limit / 1e9


def test_checkpointing_pays_for_a_patch_that_covers_what_it_must():
    labels = label_set(2)
    found = uniform(ONE, (200, 200, 200), 20, labels, {"label1": boxes(1, (75, 75, 75), ONE)})
    made = plan(found, labels, vram_gb=8)
    chosen = made.configurations["3d_fullres"]
    assert chosen.checkpointing
    assert min(chosen.patch_size) >= 150
    assert "activation checkpointing" in decided(made, "3.2 patch wanted (3d_fullres)")[1]
    assert "activation checkpointing" in decided(made, "3.3 patch (3d_fullres)")[1]
    # not where memory is plenty, nor where it would not help
    assert not plan(found, labels, vram_gb=40).configurations["3d_fullres"].checkpointing
    beyond = uniform(ONE, (600, 600, 600), 20, labels, {"label1": boxes(1, (300, 300, 300), ONE)})
    assert not plan(beyond, labels, vram_gb=8).configurations["3d_fullres"].checkpointing


@pytest.mark.parametrize(("vram_gb", "tiles"), [(8, 4), (4, 2), (2.5, 1), (None, 1)])
def test_as_many_tiles_are_predicted_at_a_time_as_fit(vram_gb, tiles):
    labels = label_set(2)  # a gigabyte, and another for each tile
    made = plan(uniform(ONE, (60, 60, 60), 5, labels), labels, vram_gb=vram_gb)
    for found in made.configurations.values():
        assert found.cost.tile_batch == tiles
        assert found.cost.predict_bytes == 1e9 * (1 + tiles)


def test_a_gpu_too_small_for_any_plan_is_refused():
    labels = label_set(2)
    with pytest.raises(UsageError, match=r"0\.9 GB of GPU memory are too little for unet") as caught:
        plan(uniform(ONE, (100, 100, 100), 3, labels), labels, vram_gb=0.9)
    assert "--vram 2" in caught.value.remedy


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


def test_what_nnunet_would_have_planned_is_said():
    labels = label_set(3)
    found = uniform(*MSD["Liver"][:3], labels)
    for options in ({}, {"vram_gb": 8}, {"preset": "l"}):
        made = plan(found, labels, **options)
        theirs = plan(found, labels, rules="nnunet", preset=options.get("preset")).configurations["3d_fullres"]
        value, reason = decided(made, "3.9 nnU-Net (3d_fullres)")
        size = " × ".join(map(str, theirs.patch_size))
        assert value == f"patch {size}, batch {theirs.batch_size}, {len(theirs.network.strides)} stages"
        ours = made.configurations["3d_fullres"]
        same = (ours.patch_size, ours.batch_size) == (theirs.patch_size, theirs.batch_size)
        assert ("give the same" in reason) == same
    assert not any(d.step.startswith("3.9") for d in plan(found, labels, rules="nnunet").decisions)


# ---- presets and networks


@pytest.mark.parametrize(
    ("options", "preset", "network", "vram_gb"),
    [
        ({}, "s", "unet", None),
        ({"preset": "s"}, "s", "unet", None),
        ({"preset": "s", "device": "gpu"}, "s", "unet", None),
        ({"device": "gpu"}, None, "unet", 8),
        ({"vram_gb": 11}, None, "unet", 11),
        ({"preset": "m"}, "m", "residual_unet", 8),
        ({"preset": "l"}, "l", "residual_unet", 24),
        ({"preset": "xl"}, "xl", "residual_unet", 40),
        ({"preset": "l", "vram_gb": 20}, "l", "residual_unet", 20),
        ({"preset": "m", "network": "unet"}, "m", "unet", 8),
        ({"network": "fcn"}, "s", "fcn", None),
        ({"rules": "nnunet"}, None, "unet", 8),
        ({"rules": "nnunet", "preset": "l"}, "l", "residual_unet", 24),
    ],
)
def test_presets(options, preset, network, vram_gb):
    labels = label_set(2)
    made = plan(uniform(ONE, (60, 60, 60), 5, labels), labels, **options)
    assert (made.preset, made.vram_gb, made.device) == (preset, vram_gb, "gpu" if vram_gb else "cpu")
    assert {c.network.name for c in made.configurations.values()} == {network}


@pytest.mark.parametrize(
    "options",
    [
        {"preset": "s", "vram_gb": 8},
        {"preset": "s", "rules": "nnunet"},
        {"preset": "xxl"},
        {"network": "resnet"},
        {"rules": "nnunet", "network": "swin_unet"},
        {"rules": "nnunet", "preset": "m", "network": "unet"},
    ],
)
def test_options_that_exclude_each_other_are_refused(options):
    labels = label_set(2)
    with pytest.raises(UsageError) as caught:
        plan(uniform(ONE, (50, 50, 50), 3, labels), labels, **options)
    assert caught.value.remedy


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


# ---- traps


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


if __name__ == "__main__":
    for golden_name, (golden_found, golden_labels) in golden_pair().items():
        save(GOLDEN / f"{golden_name}.fingerprint.json", golden_found)
        save(GOLDEN / f"{golden_name}.plan.json", plan(golden_found, golden_labels, vram_gb=8))
