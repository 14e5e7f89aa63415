"""Objects without a network: images whose objects are known."""

from dataclasses import replace

import numpy as np
import pytest

from autoseg.evaluation.classical import OBJECT_METHODS, Classical, ObjectRecipe, otsu, typical_radius
from phantom import sphere

SPLIT = ObjectRecipe("otsu_watershed", smoothing=0.0, radius_mm=8.0)


def discs(*centres: tuple[float, float], radius: float = 8.0, shape: tuple[int, int] = (48, 64)) -> np.ndarray:
    """Bool (1, Y, X), a slice."""
    return np.any([sphere(shape, centre, radius, (1, 1)) for centre in centres], axis=0)[None]


UNIT = (1.0, 1.0, 1.0)


def objects(mask: np.ndarray, recipe: ObjectRecipe, spacing=UNIT, *, high: float = 180, low: float = 100) -> np.ndarray:
    """What a recipe finds where the mask is 180 and the background 100."""
    return Classical(np.where(mask, high, low)[None].astype(np.float32), spacing).objects(recipe)


TOUCHING = discs((24, 20), (24, 34))  # centres 14 apart, radii of 8


def test_two_discs_that_touch_are_one_component_and_two_basins():
    """By symmetry the watershed divides them half way: at x = 27, one column of which may belong to either."""
    assert objects(TOUCHING, replace(SPLIT, method="otsu_components")).max() == 1
    found = objects(TOUCHING, SPLIT)
    assert found.shape == TOUCHING.shape
    assert found.max() == 2
    assert ((found > 0) == TOUCHING).all()
    x = np.indices(found.shape)[2]
    assert len(np.unique(found[TOUCHING & (x < 27)])) == len(np.unique(found[TOUCHING & (x > 27)])) == 1
    assert found[0, 24, 20] != found[0, 24, 34]


@pytest.mark.parametrize("method", OBJECT_METHODS)
def test_discs_apart_are_found_by_every_method(method):
    mask = discs((14, 14), (30, 46))
    found = objects(mask, replace(SPLIT, method=method))
    assert found.max() == 2
    for centre in ((14, 14), (30, 46)):
        one = discs(centre)
        number = found[0, centre[0], centre[1]]
        assert number > 0
        assert (one & (found == number)).sum() / (one | (found == number)).sum() > 0.9


@pytest.mark.parametrize("method", OBJECT_METHODS)
def test_dark_objects_are_found_where_it_is_said_that_they_are_dark(method):
    recipe = replace(SPLIT, method=method, bright=False)
    found = objects(TOUCHING, recipe, high=100.0, low=180.0)
    assert (found == objects(TOUCHING, replace(recipe, bright=True))).all()
    wrong = objects(TOUCHING, replace(recipe, bright=True), high=100.0, low=180.0) > 0
    assert (wrong & TOUCHING).sum() / (wrong | TOUCHING).sum() < 0.2  # at best a hole that is filled


@pytest.mark.parametrize("method", OBJECT_METHODS)
@pytest.mark.parametrize("radius", [None, 5.0])
def test_a_constant_image_holds_nothing(method, radius):
    found = objects(np.zeros((1, 20, 20), bool), replace(SPLIT, method=method, radius_mm=radius))
    assert not found.any()
    assert found.dtype == np.int32


@pytest.mark.parametrize("method", OBJECT_METHODS[1:])
def test_balls_that_touch_are_split_in_three_dimensions_by_millimetres(method):
    """Balls of 8 mm on slices of 2.5 mm, centres 14 mm apart across the slices: close in voxels, apart in mm."""
    shape, spacing = (20, 32, 32), (2.5, 1.0, 1.0)
    first, second = (sphere(shape, centre, 8.0, spacing) for centre in ((6.0, 16, 16), (11.6, 16, 16)))
    found = objects(first | second, replace(SPLIT, method=method), spacing)
    assert found.max() == 2
    assert found[6, 16, 16] != found[11, 16, 16]


def test_peaks_nearer_than_the_distance_are_one_object():
    """The peaks of the two discs are 14 apart: 1.7 radii are less, 1.8 are more."""
    assert objects(TOUCHING, replace(SPLIT, apart=1.7)).max() == 2
    assert objects(TOUCHING, replace(SPLIT, apart=1.8)).max() == 1


def test_objects_below_the_least_size_are_left_out():
    """A disc of radius 3 has 29 pixels, a ball (disc) of 8 has 201: 0.14 of them are 28.1 and 0.15 are 30.2."""
    mask = discs((24, 16)) | discs((24, 48), radius=3.0)
    assert discs((24, 48), radius=3.0).sum() == 29
    assert objects(mask, replace(SPLIT, method="otsu_components", smallest=0.14)).max() == 2
    assert objects(mask, replace(SPLIT, method="otsu_components", smallest=0.15)).max() == 1


def test_the_image_says_how_large_its_objects_are():
    """Without a radius, distances follow the foreground: pairs of discs of 4 and of 12 are both split."""
    for radius in (4.0, 12.0):
        pair = discs((24, 16), (24, 16 + 1.75 * radius), radius=radius)
        assert objects(pair, replace(SPLIT, radius_mm=None)).max() == 2


def test_holes_belong_to_the_object_around_them():
    mask = discs((24, 24)) & ~discs((24, 24), radius=3.0)
    found = objects(mask, replace(SPLIT, method="otsu_components"))
    assert found[0, 24, 24] == 1
    assert objects(mask, replace(SPLIT, method="otsu_components", fill=False))[0, 24, 24] == 0


def test_local_thresholds_find_what_one_threshold_misses():
    """A dim disc of 130 beside a bright one of 255 on 100: Otsu's threshold, 177 or so, is above the dim one."""
    bright, dim = discs((24, 14)), discs((24, 48))
    image = np.where(bright, 255.0, np.where(dim, 130.0, 100.0)).astype(np.float32)
    tried = Classical(image[None], (1.0, 1.0, 1.0))
    assert tried.objects(replace(SPLIT, method="otsu_components")).max() == 1
    assert tried.objects(replace(SPLIT, method="local_watershed", contrast=0.05)).max() == 2


def test_threshold_is_otsus():
    """For 3 values of 0 and 3 of 10, any threshold in [0, 10) divides them; one value alone is its own threshold."""
    assert 0 <= otsu(np.array([0.0] * 3 + [10.0] * 3)) < 10
    assert otsu(np.full(5, 7.0)) == 7.0
    values = np.random.default_rng(0).integers(0, 256, 2000) ** 2 // 256

    def between(threshold: float) -> float:
        low, high = values[values <= threshold], values[values > threshold]
        return len(low) * len(high) * (low.mean() - high.mean()) ** 2

    best = max(range(values.min(), values.max()), key=between)
    assert between(otsu(values)) > 0.9999 * between(best)  # 256 bins are not exact


def test_typical_radius_is_that_of_the_median():
    assert typical_radius([1.0, np.pi * 25, 1e4], 2) == pytest.approx(5)
    assert typical_radius([4 / 3 * np.pi * 27], 3) == pytest.approx(3)
    assert typical_radius([], 3) == 1.0


def test_unknown_methods_are_refused():
    with pytest.raises(ValueError, match="there is no method 'kmeans': otsu_components"):
        objects(TOUCHING, replace(SPLIT, method="kmeans"))
