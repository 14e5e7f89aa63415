"""Distances between surfaces: by hand, planes and spheres in closed form, brute force and other libraries."""

import math

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage
from scipy.spatial.distance import cdist

from autoseg.evaluation.surface_elements import element_areas, neighbourhoods
from autoseg.evaluation.surfaces import SURFACE_METRICS, percentile, surface_distances

SPACINGS = st.tuples(*[st.sampled_from([0.3, 0.7, 1.0, 1.1, 2.5, 5.0])] * 3)
NAN = pytest.approx(math.nan, nan_ok=True)


def scores(reference, segmentation, spacing=(1.0, 1.0, 1.0), tolerance_mm=1.0):
    distances = surface_distances(reference, segmentation, spacing, tolerance_mm=tolerance_mm)
    return {name: metric(distances) for name, metric in SURFACE_METRICS.items()}


def points(shape, *voxels):
    mask = np.zeros(shape, dtype=bool)
    for voxel in voxels:
        mask[voxel] = True
    return mask


def ellipsoid(centre, radii, shape=(64, 64, 64)):
    axes = np.ogrid[tuple(slice(extent) for extent in shape)]
    return sum(((axis - c) / r) ** 2 for axis, c, r in zip(axes, centre, radii, strict=True)) <= 1


def test_different_shapes_are_refused():
    with pytest.raises(ValueError, match="differ in shape"):
        surface_distances(np.zeros((2, 3, 1), dtype=bool), np.zeros((3, 2, 1), dtype=bool), (1, 1, 1))


def test_two_voxels():
    """Each is a cube with eight corners, moved by (1, 2, 3) voxels of 5 x 2 x 1 mm; every corner counts alike.

    Along z one corner plane is common to both; along y and x they are 1 and 2 voxels apart. The corners of one plane
    along every axis are at (0, 5) x (2, 4) x (2, 3) mm or nearer.
    """
    reference, segmentation = points((5, 6, 7), (1, 2, 3)), points((5, 6, 7), (2, 4, 6))
    corners = np.stack(np.meshgrid([0, 5], [2, 4], [2, 3], indexing="ij"), axis=-1).reshape(-1, 3)
    expected = np.linalg.norm(corners, axis=1)
    found = scores(reference, segmentation, (5.0, 2.0, 1.0), tolerance_mm=3.0)
    assert found == {
        "hd95": pytest.approx(expected.max()),
        "hd": pytest.approx(math.sqrt(25 + 16 + 9)),
        "assd": pytest.approx(expected.mean()),
        "nsd": pytest.approx(1 / 8),  # sqrt(8) alone
        "boundary_f1": pytest.approx(1 / 8),
    }


def test_a_percentile_is_of_the_area():
    """Four elements of 1 mm2 at 0 mm, and one of 16 mm2 at 3 mm: 95 % of the elements are not 95 % of the area."""
    distances, areas = np.array([3.0, 0, 0, 0, 0]), np.array([16.0, 1, 1, 1, 1])
    assert percentile(distances, areas, 0.95) == 3
    assert percentile(distances, areas, 0.2) == 0  # reached, to the last bit
    assert percentile(distances, areas, 0.21) == 3
    many = np.arange(20.0)
    assert percentile(many, np.full(20, 0.1), 0.95) == 18  # 19 of 20 elements lie within it
    assert percentile(many, np.full(20, 0.1), 1.0) == 19


def test_hd95_is_the_larger_of_both_directions():
    """A bar, and the bar with a speck: all of the bar is found; of the other surface 6 % are 21 or 22 mm off."""
    reference = np.zeros((3, 3, 60), dtype=bool)
    reference[1, 1, :8] = True
    segmentation = reference | points(reference.shape, (1, 1, 29))
    distances = surface_distances(reference, segmentation, (1.0, 1.0, 1.0))
    assert distances.of_reference.max() == 0
    far = distances.segmentation_areas[distances.of_segmentation > 0].sum() / distances.segmentation_areas.sum()
    assert far > 0.05
    assert scores(reference, segmentation)["hd95"] == 21
    assert scores(segmentation, reference)["hd95"] == 21
    assert scores(reference, segmentation)["hd"] == 22  # from corner 30 to corner 8
    assert scores(reference, segmentation)["assd"] < 3


def test_tolerance_admits_distances_that_rounding_lifts():
    single = float(np.float32(1.1))  # 1.10000002, as a header holds it
    found = scores(points((3, 3, 3), (1, 1, 1)), points((3, 3, 3), (1, 1, 2)), (single,) * 3, tolerance_mm=1.1)
    assert (found["nsd"], found["boundary_f1"]) == (1, 1)


@pytest.mark.parametrize(("axis", "spacing"), [(0, (5.0, 1.0, 0.7)), (1, (2.0, 3.0, 1.0)), (2, (1.0, 1.0, 0.25))])
def test_a_half_space_that_is_moved(axis, spacing):
    """Everything beyond a plane, up to the border of the image, and the same from another plane on.

    The planes are `shift` apart: all of the smaller body's plane, and the sides that the larger one has more.
    """
    reference, segmentation = np.zeros((2, 20, 20, 20), dtype=bool)
    np.moveaxis(reference, axis, 0)[6:] = True
    np.moveaxis(segmentation, axis, 0)[8:] = True
    shift = 2 * spacing[axis]
    found = scores(reference, segmentation, spacing, tolerance_mm=shift - 0.01)
    assert found["hd"] == pytest.approx(shift)
    distances = surface_distances(reference, segmentation, spacing)
    plane = (19 * spacing[axis - 1]) * (19 * spacing[axis - 2])  # less half a voxel at its rim
    inner = distances.segmentation_areas[distances.of_segmentation > 0]
    assert inner.max() * 19**2 == pytest.approx(plane)


def test_two_thin_plates():
    """Plates of 30 x 30 mm, one voxel thick, 8 mm apart: each corner of one is 7 or 8 mm from the other plate."""
    reference, segmentation = np.zeros((2, 20, 40, 40), dtype=bool)
    reference[3, 5:35, 5:35] = True
    segmentation[11, 5:35, 5:35] = True
    found = scores(reference, segmentation, tolerance_mm=7.0)
    assert found["hd"] == 8
    assert found["hd95"] == 8
    assert found["assd"] == pytest.approx(7.5)  # either side of a plate is as large
    assert found["nsd"] == pytest.approx(0.5)


def test_identical_masks():
    mask = np.random.default_rng(0).random((6, 7, 8)) > 0.5
    same = {"hd95": 0, "hd": 0, "assd": 0, "nsd": 1, "boundary_f1": 1}
    assert scores(mask, mask, (3.0, 1.0, 0.5), tolerance_mm=0.0) == pytest.approx(same)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (2.0, 1.0, 0.8)])
def test_concentric_balls(spacing):
    """Every point of one sphere is 6 mm from the other; elements stray from it by up to half a voxel's diagonal.

    The nearest one is the one that strays this way, so that distances are a little too small; as in surface-distance.
    """
    shape = tuple(int(70 / s) for s in spacing)
    axes = [(np.arange(n) - (n - 1) / 2) * s for n, s in zip(shape, spacing, strict=True)]
    radius = np.sqrt(sum(np.square(a) for a in np.meshgrid(*axes, indexing="ij")))
    found = scores(radius <= 20, radius <= 26, spacing, tolerance_mm=7.5)
    diagonal = math.hypot(*spacing)
    assert found["assd"] == pytest.approx(6 - 0.25 * diagonal, abs=0.15 * diagonal)
    assert found["hd95"] == pytest.approx(6, abs=0.75 * diagonal)
    assert found["hd"] >= found["hd95"]
    assert found["nsd"] > 0.98
    assert scores(radius <= 20, radius <= 26, spacing, tolerance_mm=4.0)["nsd"] < 0.02
    whole = surface_distances(radius <= 20, radius <= 26, spacing)
    assert whole.segmentation_areas.sum() / whole.area == pytest.approx(26**2 / (20**2 + 26**2), abs=0.01)


def test_boundary_f1_and_nsd_differ_where_surfaces_do():
    """A ball that is found, and a far one as large that is not there: NSD is 2 of 3 surfaces, F1 that of 1 and 1/2.

    They differ where the two surfaces within the tolerance are not as large as each other: half a ball has a flat side.
    """
    reference = ellipsoid((16, 16, 16), (8, 8, 8), (33, 33, 99))
    segmentation = reference | ellipsoid((16, 16, 70), (8, 8, 8), (33, 33, 99))
    found = scores(reference, segmentation)
    assert found["nsd"] == pytest.approx(2 / 3)
    assert found["boundary_f1"] == pytest.approx(2 / 3)
    half = reference.copy()
    half[16:] = False
    distances = surface_distances(reference, half, (1.0, 1.0, 1.0))
    shares = [
        areas[of <= 1.0001].sum() / areas.sum()
        for of, areas in (
            (distances.of_reference, distances.reference_areas),
            (distances.of_segmentation, distances.segmentation_areas),
        )
    ]
    assert scores(reference, half)["boundary_f1"] == pytest.approx(2 * shares[0] * shares[1] / sum(shares))
    assert scores(reference, half)["boundary_f1"] != pytest.approx(scores(reference, half)["nsd"], abs=1e-3)


def test_the_surface_of_a_flat_mask_is_its_outline():
    square = np.zeros((1, 7, 7), dtype=bool)
    square[0, 1:6, 1:6] = True
    distances = surface_distances(square, square, (1.0, 1.0, 1.0))
    assert distances.of_reference.tolist() == [0] * 20
    assert distances.reference_areas.sum() == pytest.approx(16 + 4 * math.sqrt(0.5))  # mm
    found = scores(square, np.roll(square, 1, axis=2), (math.nan, 1.0, 1.0))  # a flat axis may have any spacing
    assert (found["hd95"], found["hd"], found["nsd"]) == (1, 1, 1)
    one_slice_of_many = np.pad(square, ((1, 1), (0, 0), (0, 0)))
    assert len(surface_distances(one_slice_of_many, one_slice_of_many, (1.0, 1.0, 1.0)).of_reference) == 72
    cut = surface_distances(square, square, (9.0, 1.0, 1.0), flat=(False, False, False))  # a slice of a volume
    assert len(cut.of_reference) == 72
    line = points((1, 1, 9), (0, 0, 2), (0, 0, 3))  # two axes without extent
    assert scores(line, np.roll(line, 2, axis=2), (1.0, 1.0, 0.5))["hd"] == 1


def test_surface_metrics_of_empty_masks():
    empty, one = np.zeros((3, 3, 3), dtype=bool), points((3, 3, 3), (1, 1, 1))
    assert scores(empty, empty) == {"hd95": NAN, "hd": NAN, "assd": NAN, "nsd": NAN, "boundary_f1": NAN}
    missed = {"hd95": math.inf, "hd": math.inf, "assd": math.inf, "nsd": 0, "boundary_f1": 0}
    assert scores(one, empty) == missed
    assert scores(empty, one) == missed


def by_brute_force(mask, spacing):
    """Corners in mm and their areas; the areas themselves are tested elsewhere."""
    codes = neighbourhoods(mask)
    where = np.argwhere((codes > 0) & (codes < 255))
    return where * np.array(spacing), element_areas(spacing)[codes[tuple(where.T)]]


@settings(max_examples=60, deadline=None)
@given(data=st.data(), spacing=SPACINGS, tolerance_mm=st.sampled_from([0.0, 0.7, 1.1, 2.5]))
def test_surface_distances_equal_brute_force(data, spacing, tolerance_mm):
    shape = data.draw(st.tuples(st.integers(2, 6), st.integers(2, 7), st.integers(2, 7)))
    masks = [data.draw(hnp.arrays(bool, shape, elements=st.booleans())) for _ in range(2)]
    assume(all(mask.any() for mask in masks))
    (a, a_areas), (b, b_areas) = (by_brute_force(mask, spacing) for mask in masks)
    matrix = cdist(a, b)
    of_reference, of_segmentation = matrix.min(axis=1), matrix.min(axis=0)

    found = surface_distances(*masks, spacing, tolerance_mm=tolerance_mm)
    np.testing.assert_allclose(found.of_reference, of_reference, rtol=1e-5)  # no absolute tolerance: 0 is exactly 0
    np.testing.assert_allclose(found.of_segmentation, of_segmentation, rtol=1e-5)
    both, areas = np.concatenate([of_reference, of_segmentation]), np.concatenate([a_areas, b_areas])
    values = {name: metric(found) for name, metric in SURFACE_METRICS.items()}
    assert values["hd"] == pytest.approx(both.max(), rel=1e-5)
    assert values["assd"] == pytest.approx((both * areas).sum() / areas.sum(), rel=1e-5)
    assert values["nsd"] == pytest.approx(areas[both < tolerance_mm + 1e-6].sum() / areas.sum())
    for distances, weights in ((of_reference, a_areas), (of_segmentation, b_areas)):
        assert weights[distances <= values["hd95"] + 1e-9].sum() >= (0.95 - 1e-6) * weights.sum()
    nearer = [
        w[d < values["hd95"] - 1e-9].sum() / w.sum() for d, w in ((of_reference, a_areas), (of_segmentation, b_areas))
    ]
    assert min(nearer) < 0.95  # and no smaller distance would do in both directions


def test_surface_distances_equal_a_distance_map():
    """Random blobs, large enough for a real tree, against SimpleITK's Maurer map of the other surface's corners."""
    spacing = (2.5, 0.8, 1.1)
    rng = np.random.default_rng(0)
    blobs = [ndimage.gaussian_filter(rng.standard_normal((20, 40, 50)), (1, 4, 3)) > 0.02 for _ in range(2)]
    codes = [neighbourhoods(blob) for blob in blobs]
    surfaces = [((code > 0) & (code < 255)).astype(np.uint8) for code in codes]
    maps = []
    for surface in surfaces:
        image = sitk.GetImageFromArray(surface)
        image.SetSpacing(spacing[::-1])
        # The map is signed, and negative only in what it takes for the inside of a thick surface.
        distance = sitk.SignedMaurerDistanceMap(image, squaredDistance=False, useImageSpacing=True)
        maps.append(np.maximum(sitk.GetArrayFromImage(distance), 0))
    found = surface_distances(*blobs, spacing)
    np.testing.assert_allclose(found.of_reference, maps[1][surfaces[0] == 1], atol=1e-4)
    np.testing.assert_allclose(found.of_segmentation, maps[0][surfaces[1] == 1], atol=1e-4)


@pytest.mark.parametrize("margin", [0, 3])
def test_cropping_changes_nothing(margin):
    rng = np.random.default_rng(0)
    reference, segmentation = rng.random((2, 9, 8, 7)) > 0.8
    reference[:, :, 5:] = False
    padded = [np.pad(mask, margin + 1) for mask in (reference, segmentation)]
    assert scores(*padded, (2.5, 1.0, 0.5)) == scores(reference, segmentation, (2.5, 1.0, 0.5))


def oracle_case(name):
    """The masks and spacings of the values below; benchmarks/metrics.py measures the same ones."""
    if name == "ellipsoids":
        return ellipsoid((32, 32, 32), (20, 16, 12)), ellipsoid((33, 33, 34), (19, 17, 12)), (1.0, 1.0, 1.0)
    if name == "thick slices":
        shape = (20, 64, 64)
        return (
            ellipsoid((10, 32, 32), (5, 16, 20), shape),
            ellipsoid((11, 32, 34), (5, 18, 19), shape),
            (5.0, 0.8, 0.7),
        )
    rng = np.random.default_rng(16)
    blobs = [ndimage.gaussian_filter(rng.standard_normal((24, 30, 36)), 2.0) > 0.05 for _ in range(2)]
    return *blobs, (2.5, 0.8, 1.1)


# Of surface-distance 0.1 (DeepMind): compute_surface_distances, then compute_robust_hausdorff(95) and (100), the mean
# of compute_average_surface_distance weighed by both areas, compute_surface_dice_at_tolerance(1.0). With
# compute_surface_dice(use_subvoxels=True) and a threshold of 1, MONAI 1.6.1 has the same NSD.
ORACLE = {
    "ellipsoids": {"hd95": 2.2360679775, "hd": 3.0, "assd": 1.1584694589, "nsd": 0.532511492},
    "thick slices": {"hd95": 5.0, "hd": 5.4230987452, "assd": 1.3624030071, "nsd": 0.4814124314},
    "blobs": {"hd95": 6.5, "hd": 11.5191145493, "assd": 2.1074162846, "nsd": 0.3566922337},
}


@pytest.mark.parametrize("name", ORACLE)
def test_values_equal_those_of_surface_distance(name):
    found = scores(*oracle_case(name))
    assert {metric: found[metric] for metric in ORACLE[name]} == pytest.approx(ORACLE[name], abs=1e-4)
