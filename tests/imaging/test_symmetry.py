"""One of two equal balls in a made-up body: what is measured of it, and of labels that have no twin."""

import numpy as np
import pytest
from scipy import ndimage

from autoseg.imaging.symmetry import MirrorSide, mid_plane, mirror_sides

SHAPE = (24, 36, 44)
SPACING = (2.0, 1.0, 1.5)


def body(seed=0, *, middle=21.5, twin=True, organ=False, offset=(0, 0, 0)):
    """Image (1, Z, Y, X) and target: a ball of label 1 beyond `middle`, and perhaps its twin on the other side.

    Args:
        organ: a large organ as bright as the ball lies where the twin would be.
        offset: (Z, Y, X) of the twin from its place.
    """
    random = np.random.default_rng(seed)
    z, y, x = np.indices(SHAPE).astype(float)
    inside = ((x - middle) / 19) ** 2 + ((y - 17.5) / 15) ** 2 < 1
    ball = (z - 12) ** 2 + (y - 17) ** 2 + (x - middle - 10) ** 2 < 4.3**2
    other = (z - 12 - offset[0]) ** 2 + (y - 17 - offset[1]) ** 2 + (x - middle + 10 - offset[2]) ** 2 < 4.3**2
    image = 100.0 * inside + 80.0 * ball + 80.0 * (other if twin else 0)
    if organ:
        image[(x < middle - 1) & inside] = 180
    image += random.normal(0, 6, SHAPE)
    return image[None].astype(np.float32), ball.astype(np.int16)


def measured(image, target, **names):
    return mirror_sides(image, target, ndimage.find_objects(target), names or {"ball": 1}, SPACING)


def looks_alike(side: MirrorSide) -> bool:
    return side.likeness >= 0.5 and side.outline >= 0.2 and side.mirrored_outline >= 0.6 * side.outline


@pytest.mark.parametrize("middle", [16.0, 21.5, 25.0])
def test_the_plane_is_found_where_the_body_stands(middle):
    image, _ = body(middle=middle)
    assert mid_plane(image / 200) == pytest.approx(middle, abs=0.5)


def test_noise_has_no_plane():
    noise = np.random.default_rng(0).normal(0, 1, (1, *SHAPE)).astype(np.float32)
    assert mid_plane(noise) is None
    assert measured(noise, body()[1]) == {}


@pytest.mark.parametrize("seed", range(3))
def test_a_twin_looks_alike(seed):
    side = measured(*body(seed))["ball"]
    assert looks_alike(side)
    assert side.offset_mm == pytest.approx(10 * 1.5, abs=1)
    assert side.other_label is None


def test_sides_have_signs():
    image, target = body()
    side = measured(image[..., ::-1].copy(), target[..., ::-1].copy())["ball"]
    assert side.offset_mm == pytest.approx(-15, abs=1)
    assert looks_alike(side)


def test_a_twin_need_not_be_exactly_opposite():
    """Kidneys lie at different heights."""
    assert looks_alike(measured(*body(offset=(2, 1, -1)))["ball"])


def test_a_labelled_twin_is_named():
    image, target = body()
    target = target + 2 * target[..., ::-1]
    sides = measured(image, target, one=1, other=2)
    assert (sides["one"].other_label, sides["other"].other_label) == ("other", "one")


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("organ", [False, True])
def test_a_structure_without_a_twin_does_not(seed, organ):
    """Nothing there; or an organ that is as bright, but of another shape, as the liver is beside the spleen."""
    side = measured(*body(seed, twin=False, organ=organ)).get("ball")
    assert side is None or not looks_alike(side)


def test_what_crosses_the_plane_is_on_no_side():
    image, target = body()
    target[:, 16:18, 18:32] = 1
    assert measured(image, target) == {}
    image, target = body()
    target[12, 17, 10] = 1  # one voxel across is noise of the annotation
    assert "ball" in measured(image, target)


def test_flat_images_and_several_channels():
    image, target = body()
    flat, mask = image[:, 12:13], target[12:13]
    assert looks_alike(measured(flat, mask)["ball"])
    blind = np.random.default_rng(1).normal(0, 1, flat.shape).astype(np.float32) * 0.01
    assert measured(np.concatenate([flat, flat + blind]), mask)["ball"].outline > 0.2


def test_places_outside_the_image_are_not_compared():
    image, target = body(middle=25.0)
    cut_image, cut_target = image[..., 12:].copy(), target[..., 12:].copy()  # the other side is cut off
    sides = measured(cut_image, cut_target)
    assert not any(looks_alike(side) for side in sides.values())


def test_a_place_wholly_outside_the_image_is_not_compared():
    """The plane lies at 16 of 44 voxels: the mirrored place of 41 to 43 is -11 to -9, all of it outside."""
    image, _ = body(middle=16.0)
    target = np.zeros(SHAPE, np.int16)
    target[10:13, 16:19, 41:44] = 1
    assert measured(image, target) == {}


def test_nothing_is_changed_by_looking():
    image, target = body()
    before = image.copy(), target.copy()
    measured(image, target)
    assert np.array_equal(image, before[0])
    assert np.array_equal(target, before[1])


def test_a_twin_is_a_mirror_image_and_not_a_copy():
    """Balls whose outer half is brighter: the likeness is that of the mirrored patch."""
    image, target = body()
    places = np.arange(SHAPE[2])
    outer = 60.0 * (target > 0) * (places > 31.5)
    copied = 60.0 * (target[..., ::-1] > 0) * (places > 11.5)  # the inner half of the twin
    twin = measured((image + outer + outer[..., ::-1]).astype(np.float32), target)["ball"]
    copy = measured((image + outer + copied).astype(np.float32), target)["ball"]
    assert twin.likeness > copy.likeness + 0.05
