"""Plans by nnU-Net's rules against its published ones of seven datasets, plain and with residual encoders."""

from dataclasses import replace

import pytest

from autoseg.planning.plan import Plan, Training
from plans import ONE, decided, plan
from synthetic_fingerprints import boxes, label_set, uniform

# spacing; median shape; cases; entries of the label table -> patch, batch, pools, elements; then those four of 2d
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


@pytest.mark.thorough
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
    assert made.training == Training(augmentation="nnunet", patience=0)
    assert not any(d.step.startswith(("1.2", "3.2", "5.3", "5.5", "5.6", "5.7", "5.8")) for d in made.decisions)


@pytest.mark.thorough
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
