"""One case as the network sees it: worked out by hand, and its image in step with its target."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoseg.errors import DataError, OutOfMemory
from autoseg.imaging.labels import OUTSIDE
from autoseg.planning.plan import ChannelNormalization, Configuration, Plan, Resampling
from autoseg.preprocessing import prepare as module
from autoseg.preprocessing.prepare import prepare
from phantom import sphere
from plans import plan_of
from synthetic_fingerprints import label_set

LABELS = label_set(3)
RAW = ChannelNormalization("none")
LINEAR = Resampling(image_order=1, antialias_factor=1e9)


def at(plan: Plan, spacing: tuple[float, ...], name: str = "3d_fullres") -> Configuration:
    """A configuration of the plan, at another spacing."""
    return replace(plan.configurations[name], spacing=spacing)


def test_crop_mask_and_zscore_by_hand():
    """A bent body in a corner of the image: values 10 and 30 in equal parts, a hole, and a label in mid-air.

    Its box is all of it but the borders; within the box, the notch is outside the body and the hole is not.
    """
    image = np.zeros((1, 5, 7, 9), np.float32)
    body = np.zeros((5, 7, 9), bool)
    body[1:4, 2:6, 1:8] = True
    body[1:4, 2:4, 5:8] = False  # the notch, open to the side
    hole = (2, 4, 3)
    image[0][body] = np.where(np.arange(body.sum()) % 2, 10, 30)
    image[0][hole] = 0
    image[0, 1, 5, 1] = 20  # an odd number of voxels without the hole: the mean stays 20 nearly
    target = np.zeros(body.shape, np.int16)
    target[hole] = 2
    target[3, 2:5, 6] = 1  # two voxels of it in the notch
    target[0, 0, 0] = 1  # beyond the box: lost

    made = prepare(
        image, target, (2.0, 1.0, 1.0), plan_of(normalization=(ChannelNormalization("zscore", inside_mask=True),)),
        at(plan_of(), (2.0, 1.0, 1.0)),
    )  # fmt: skip

    assert made.placement.box == ((1, 4), (2, 6), (1, 8))
    assert made.placement.shape_before_crop == (5, 7, 9)
    assert made.placement.shape_after_crop == (3, 4, 7)
    assert made.placement.spacing == made.placement.target_spacing == (2.0, 1.0, 1.0)
    assert made.image.shape == (1, 3, 4, 7)
    assert made.image.dtype == np.float32
    assert made.target.shape == (3, 4, 7)
    inside = body[1:4, 2:6, 1:8]  # the hole counts as body
    values = image[0, 1:4, 2:6, 1:8][inside]
    expected = np.zeros((3, 4, 7))
    expected[inside] = (values - values.mean()) / values.std()
    np.testing.assert_allclose(made.image[0], expected, atol=1e-5)
    assert (made.image[0][~inside] == 0).all()
    assert made.image[0, 1, 2, 2] < -1  # the hole: 0 is far below the mean of 20
    wanted = np.where(inside, 0, OUTSIDE)
    wanted[1, 2, 2] = 2
    wanted[2, 0:3, 5] = 1  # a label stays a label, also outside the body
    np.testing.assert_array_equal(made.target, wanted)


def test_channels_share_one_body_and_have_their_own_normalization():
    """The body is where any channel is not 0; each channel goes by its own scheme."""
    image = np.zeros((3, 2, 4, 4), np.float32)
    image[0, :, 1, 1:3] = 50
    image[1, :, 2, 1:3] = (100, 200)
    image[2, :, 2, 1:3] = (-500, 500)
    schemes = (
        RAW,
        ChannelNormalization("rescale_to_0_1"),
        ChannelNormalization("ct", mean=100, std=50, p00_5=0, p99_5=200),
    )
    made = prepare(image, None, (1, 1, 1), plan_of(normalization=schemes), at(plan_of(), (1, 1, 1)))
    assert made.placement.box == ((0, 2), (1, 3), (1, 3))
    assert made.target is None
    for channel, rows in zip(
        made.image, ([[50, 50], [0, 0]], [[0, 0], [0.5, 1]], [[-2, -2], [-2, 2]]), strict=True
    ):  # fmt: skip
        np.testing.assert_allclose(channel, [rows, rows])


def test_an_image_without_body_is_kept_whole():
    plan = plan_of(normalization=(ChannelNormalization("zscore", inside_mask=True),))
    made = prepare(
        np.zeros((1, 3, 4, 5), np.float32), np.ones((3, 4, 5), np.int16), (1, 1, 1), plan, at(plan, (1, 1, 1))
    )
    assert made.placement.box == ((0, 3), (0, 4), (0, 5))
    assert not made.image.any()
    assert (made.target == 1).all()


def test_the_input_is_left_as_it_was():
    image, target = np.zeros((1, 4, 4, 4), np.float32), np.zeros((4, 4, 4), np.int16)
    image[0, :, 1:3] = 5
    image[0, 0, 1, 0] = 0  # outside the body, within its box
    before = image.copy()
    plan = plan_of()
    prepare(image, target, (1, 1, 1), plan, at(plan, (2, 0.5, 1)))
    np.testing.assert_array_equal(image, before)
    assert not target.any()


@pytest.mark.parametrize(
    ("name", "configured", "target", "shape"),
    [
        ("3d_fullres", (1.5, 0.5, 2.0), (1.5, 0.5, 2.0), (12, 12, 4)),  # 6 * 3 / 1.5, 6 * 1 / 0.5, 8 * 1 / 2
        ("3d_fullres", (40.0, 1.0, 1.0), (40.0, 1.0, 1.0), (1, 6, 8)),  # never less than one voxel
        ("2d", (0.5, 2.0), (3.0, 0.5, 2.0), (6, 12, 4)),  # the case's own distance between slices
    ],
)
def test_the_shape_follows_from_the_spacing(name, configured, target, shape):
    plan = plan_of()
    configuration = at(plan, configured, name)
    image = np.pad(np.ones((2, 6, 6, 8), np.float32), ((0, 0), (1, 0), (2, 1), (0, 3)))
    made = prepare(
        image, image[0].astype(np.int16), (3.0, 1.0, 1.0), replace(plan, normalization=(RAW, RAW)), configuration
    )  # fmt: skip
    assert made.placement.target_spacing == target
    assert made.placement.spacing == (3.0, 1.0, 1.0)
    assert made.placement.shape_after_crop == (6, 6, 8)
    assert made.placement.shape_before_crop == (7, 9, 11)
    assert made.placement.shape == shape
    assert made.image.shape == (2, *shape)
    assert made.target.shape == shape
    assert (made.target == 1).all()


edges = st.sampled_from([0.4, 0.7, 1.0, 1.6, 2.5, 7.0])
spacings = st.tuples(edges, edges, edges)


@settings(max_examples=40, deadline=None)
@given(spacing=spacings, wanted=spacings, name=st.sampled_from(["2d", "3d_fullres"]))
def test_image_and_target_stay_in_step(spacing, wanted, name):
    """An image that shows its own label, resampled linearly, lies above one half just where the label is."""
    target = sphere((9, 12, 14), (4, 5, 8), 3.2).astype(np.int16)
    plan = plan_of(normalization=(RAW,), resampling=LINEAR)
    made = prepare(
        1.0 + target[None].astype(np.float32), target, spacing, plan, at(plan, wanted[-int(name[0]) :], name)
    )
    share = made.image[0] - 1
    clear = np.abs(share - 0.5) > 1e-3
    np.testing.assert_array_equal(made.target[clear], share[clear] > 0.5)


def test_the_plan_says_how_to_resample():
    """Nearest, linear and cubic differ between voxels; the coarse axis has an order of its own."""
    image = np.zeros((1, 4, 8, 8), np.float32)
    image[0] = np.random.default_rng(0).uniform(1, 2, (4, 8, 8))
    plan = plan_of(normalization=(RAW,))

    def made(spacing=(1.0, 1.0, 1.0), target=(0.5, 0.5, 0.5), **rules) -> np.ndarray:
        changed = replace(plan, resampling=replace(LINEAR, **rules))
        return prepare(image, None, spacing, changed, at(changed, target)).image

    nearest = made(image_order=0)
    np.testing.assert_array_equal(nearest, image.repeat(2, 1).repeat(2, 2).repeat(2, 3))
    assert not np.allclose(made(image_order=1), made(image_order=3))
    thick = made((5.0, 1.0, 1.0), (2.5, 1.0, 1.0), coarse_axis_order=0)
    np.testing.assert_array_equal(thick, image.repeat(2, 1))
    assert not np.allclose(thick, made((5.0, 1.0, 1.0), (2.5, 1.0, 1.0), anisotropy_threshold=6.0))
    coarse = made(target=(1.0, 2.0, 2.0))
    smoothed = made(target=(1.0, 2.0, 2.0), antialias_factor=1.5)
    assert not np.allclose(coarse, smoothed)
    np.testing.assert_array_equal(coarse, made(target=(1.0, 2.0, 2.0), antialias_factor=1.5, filter="none"))
    assert not np.allclose(smoothed, made(target=(1.0, 2.0, 2.0), antialias_factor=1.5, filter="lanczos"))


# ---- what cannot be


@pytest.mark.parametrize("factor", [1e-3, 1e3])
def test_a_case_in_another_unit_is_named_and_nothing_is_allocated(factor):
    plan = plan_of()
    image = np.random.default_rng(0).normal(100, 10, (1, 12, 20, 24)).astype(np.float32)
    with pytest.raises(DataError, match=r"^scan\.nii: 12 x 20 x 24 voxels of"):
        prepare(image, None, (2.0 * factor, factor, factor), plan, at(plan, (2.0, 1.0, 1.0)), name="scan.nii")


def test_what_exceeds_the_free_memory_is_refused(monkeypatch):
    """8 x 8 x 8 voxels at half the spacing: 16 ** 3 x 4 bytes for the channel and one more; heads are streamed."""
    plan = plan_of(spacing=(1.0, 1.0, 1.0), shape=(8, 8, 8))
    image = np.ones((1, 8, 8, 8), np.float32)
    configuration = at(plan, (0.5, 0.5, 0.5))
    target = np.ones((8, 8, 8), np.int16)
    for labels in (target, None):
        monkeypatch.setattr(module, "free_memory", lambda: 32768)
        assert prepare(image, labels, (1.0,) * 3, plan, configuration).image.shape == (1, 16, 16, 16)
        monkeypatch.setattr(module, "free_memory", lambda: 32767)
        with pytest.raises(OutOfMemory, match=r"^the image: at the plan's spacing it has \(16, 16, 16\) voxels"):
            prepare(image, labels, (1.0,) * 3, plan, configuration)
