"""Metrics: two-voxel cases by hand, planes and spheres in closed form, brute force and scikit-learn as oracles."""

import math

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage
from scipy.spatial.distance import cdist

from autoseg.evaluation.metrics import (
    METRICS,
    SURFACE_METRICS,
    OverlapCounts,
    confusion_matrix,
    overlap_counts,
    surface_distances,
)
from autoseg.imaging.labels import OUTSIDE

SPACINGS = st.tuples(*[st.sampled_from([0.3, 0.7, 1.0, 1.1, 2.5, 5.0])] * 3)


def scores(reference, segmentation, spacing=(1.0, 1.0, 1.0), tolerance_mm=1.0):
    distances = surface_distances(reference, segmentation, spacing, tolerance_mm=tolerance_mm)
    return {name: metric(distances) for name, metric in SURFACE_METRICS.items()}


def overlaps(tp, fp, fn, tn=0):
    return {name: metric(OverlapCounts(tp, fp, fn, tn)) for name, metric in METRICS.items()}


def points(shape, *voxels):
    mask = np.zeros(shape, dtype=bool)
    for voxel in voxels:
        mask[voxel] = True
    return mask


# --- overlap ----------------------------------------------------------------------------------------------------------


def test_confusion_matrix_by_hand():
    reference = np.array([[[0, 0, 1, 1, 2, 2]]], dtype=np.int16)
    segmentation = np.array([[[0, 1, 1, 1, 0, 2]]], dtype=np.uint8)
    confusion = confusion_matrix(reference, segmentation, 3)
    assert confusion.dtype == np.int64
    np.testing.assert_array_equal(confusion, [[1, 1, 0], [0, 2, 0], [1, 0, 1]])
    assert overlap_counts(confusion, (1,)) == OverlapCounts(tp=2, fp=1, fn=0, tn=3)
    assert overlap_counts(confusion, (2,)) == OverlapCounts(tp=1, fp=0, fn=1, tn=4)
    assert overlap_counts(confusion, (1, 2)) == OverlapCounts(tp=3, fp=1, fn=1, tn=1)
    # within a union, one class taken for the other is right
    assert overlap_counts(np.array([[5, 1, 1], [2, 10, 20], [2, 30, 40]]), (1, 2)) == OverlapCounts(100, 2, 4, 5)


def test_ignored_voxels_take_part_in_nothing():
    reference = np.array([0, 1, 3, 3, 2], dtype=np.int16)
    segmentation = np.array([0, 1, 2, 1, 2], dtype=np.int16)
    np.testing.assert_array_equal(confusion_matrix(reference, segmentation, 3, ignore_index=3), np.eye(3))
    np.testing.assert_array_equal(confusion_matrix(np.full(5, 3), segmentation, 3, ignore_index=3), np.zeros((3, 3)))


def test_outside_counts_as_background():
    reference = np.array([OUTSIDE, OUTSIDE, 1], dtype=np.int8)
    segmentation = np.array([0, 1, OUTSIDE], dtype=np.int8)
    np.testing.assert_array_equal(confusion_matrix(reference, segmentation, 2), [[1, 1], [1, 0]])


@pytest.mark.parametrize("bad", [2, -2, 9])
@pytest.mark.parametrize("where", ["reference", "segmentation"])
def test_an_index_out_of_range_is_refused(bad, where):
    arrays = {"reference": np.zeros(4, dtype=np.int16), "segmentation": np.zeros(4, dtype=np.int16)}
    arrays[where][2] = bad
    with pytest.raises(ValueError, match=r"exceed 0\.\.1"):
        confusion_matrix(num_classes=2, **arrays)


def test_different_shapes_are_refused():
    with pytest.raises(ValueError, match="differ in shape"):
        confusion_matrix(np.zeros((2, 3), dtype=int), np.zeros((3, 2), dtype=int), 2)
    with pytest.raises(ValueError, match="differ in shape"):
        surface_distances(np.zeros((2, 3, 1), dtype=bool), np.zeros((3, 2, 1), dtype=bool), (1, 1, 1))


@pytest.mark.parametrize("chunk", [1 << 20, 7, 359])  # one, many, and one voxel (of 360) over
def test_confusion_matrix_equals_sklearn(chunk, monkeypatch):
    sklearn_metrics = pytest.importorskip("sklearn.metrics")
    monkeypatch.setattr("autoseg.evaluation.metrics._CHUNK", chunk)
    rng = np.random.default_rng(0)
    reference, segmentation = rng.integers(0, 6, size=(2, 5, 8, 9)).astype(np.int16)
    keep = reference != 5
    segmentation[segmentation == 5] = 1
    reference, segmentation = reference.transpose(2, 0, 1), segmentation.transpose(2, 0, 1)
    keep = keep.transpose(2, 0, 1)
    expected = sklearn_metrics.confusion_matrix(reference[keep], segmentation[keep], labels=range(5))
    np.testing.assert_array_equal(confusion_matrix(reference, segmentation, 5, ignore_index=5), expected)


def test_overlap_metrics_by_hand():
    assert overlaps(tp=3, fp=1, fn=2, tn=9) == {"dice": 6 / 9, "iou": 3 / 6, "recall": 3 / 5, "precision": 3 / 4}
    assert overlaps(tp=4, fp=0, fn=0) == {"dice": 1, "iou": 1, "recall": 1, "precision": 1}
    assert overlaps(tp=0, fp=2, fn=3) == {"dice": 0, "iou": 0, "recall": 0, "precision": 0}


def test_overlap_metrics_of_empty_masks():
    nan = pytest.approx(math.nan, nan_ok=True)
    assert overlaps(tp=0, fp=0, fn=0, tn=5) == {"dice": nan, "iou": nan, "recall": nan, "precision": nan}
    assert overlaps(tp=0, fp=2, fn=0, tn=5) == {"dice": 0, "iou": 0, "recall": nan, "precision": 0}
    assert overlaps(tp=0, fp=0, fn=2, tn=5) == {"dice": 0, "iou": 0, "recall": 0, "precision": nan}


# --- surfaces ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("voxel", "distance"), [((1, 2, 4), 1.0), ((1, 3, 3), 2.0), ((2, 2, 3), 5.0), ((3, 4, 4), math.sqrt(117))]
)
def test_two_voxels(voxel, distance):
    reference, segmentation = points((5, 6, 7), (1, 2, 3)), points((5, 6, 7), voxel)
    found = scores(reference, segmentation, (5.0, 2.0, 1.0), tolerance_mm=distance)
    assert found == {"hd95": pytest.approx(distance), "assd": pytest.approx(distance), "nsd": 1.0}
    assert scores(reference, segmentation, (5.0, 2.0, 1.0), tolerance_mm=0.99 * distance)["nsd"] == 0


def test_one_voxel_against_two():
    # directed: 0 from the reference; 0 and 3 from the segmentation, whose 95th percentile is 0.95 * 3
    reference = points((1, 3, 9), (0, 1, 1))
    segmentation = points((1, 3, 9), (0, 1, 1), (0, 1, 4))
    assert scores(reference, segmentation) == {
        "hd95": pytest.approx(2.85),
        "assd": pytest.approx(3 / 3),
        "nsd": pytest.approx(2 / 3),
    }


def test_hd95_is_the_larger_directed_percentile_not_that_of_the_pool():
    # 40 voxels of the reference are found exactly; of the 2 of the segmentation one is 10 mm off: 1 of 42 in the pool
    reference = np.zeros((3, 3, 60), dtype=bool)
    reference[1, 1, :40] = True
    segmentation = points(reference.shape, (1, 1, 39), (1, 1, 49))
    distances = surface_distances(reference, segmentation, (1.0, 1.0, 1.0))
    assert sorted(distances.of_segmentation.tolist()) == [0, 10]
    assert SURFACE_METRICS["hd95"](distances) == pytest.approx(max(9.5, np.percentile(np.arange(40), 95)))
    swapped = surface_distances(segmentation, reference, (1.0, 1.0, 1.0))
    assert SURFACE_METRICS["hd95"](swapped) == pytest.approx(SURFACE_METRICS["hd95"](distances))


def test_tolerance_admits_distances_that_rounding_lifts():
    single = float(np.float32(1.1))  # 1.10000002, as a header holds it
    found = scores(points((3, 3, 3), (1, 1, 1)), points((3, 3, 3), (1, 1, 2)), (single,) * 3, tolerance_mm=1.1)
    assert found["nsd"] == 1


@pytest.mark.parametrize(("axis", "spacing"), [(0, (5.0, 1.0, 0.7)), (1, (2.0, 3.0, 1.0)), (2, (1.0, 1.0, 0.25))])
def test_shifted_planes(axis, spacing):
    reference, segmentation = np.zeros((2, 12, 12, 12), dtype=bool)
    np.moveaxis(reference, axis, 0)[3] = True
    np.moveaxis(segmentation, axis, 0)[7] = True
    shift = 4 * spacing[axis]
    found = scores(reference, segmentation, spacing, tolerance_mm=shift - 0.01)
    assert found == {"hd95": pytest.approx(shift), "assd": pytest.approx(shift), "nsd": 0}


def test_identical_masks():
    mask = np.random.default_rng(0).random((6, 7, 8)) > 0.5
    assert scores(mask, mask, (3.0, 1.0, 0.5), tolerance_mm=0.0) == {"hd95": 0, "assd": 0, "nsd": 1}


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (2.0, 1.0, 0.8)])
def test_concentric_balls(spacing):
    # every point of one sphere is 6 mm from the other; voxel surfaces stray by less than a voxel's diagonal
    shape = tuple(int(70 / s) for s in spacing)
    axes = [(np.arange(n) - (n - 1) / 2) * s for n, s in zip(shape, spacing, strict=True)]
    radius = np.sqrt(sum(np.square(a) for a in np.meshgrid(*axes, indexing="ij")))
    found = scores(radius <= 20, radius <= 26, spacing, tolerance_mm=7.5)
    diagonal = math.hypot(*spacing)
    assert found["assd"] == pytest.approx(6, abs=0.25 * diagonal)
    assert found["hd95"] == pytest.approx(6, abs=0.75 * diagonal)
    assert found["nsd"] > 0.98
    assert scores(radius <= 20, radius <= 26, spacing, tolerance_mm=4.5)["nsd"] < 0.02


def test_surface_of_a_cube_is_its_shell_and_the_border_is_outside():
    cube = np.ones((4, 5, 6), dtype=bool)
    distances = surface_distances(cube, np.pad(np.ones((2, 3, 4), dtype=bool), 1), (1.0, 1.0, 1.0))
    assert len(distances.of_reference) == 4 * 5 * 6 - 2 * 3 * 4
    assert len(distances.of_segmentation) == 2 * 3 * 4 - 0 * 1 * 2
    assert distances.of_segmentation.tolist() == [1] * 24


def test_the_surface_of_a_flat_mask_is_its_outline():
    square = np.zeros((1, 7, 7), dtype=bool)
    square[0, 1:6, 1:6] = True
    assert surface_distances(square, square, (1.0, 1.0, 1.0)).of_reference.tolist() == [0] * 16
    shifted = np.roll(square, 1, axis=2)
    found = scores(square, shifted, (math.nan, 1.0, 1.0))  # the spacing of a flat axis means nothing
    assert found["hd95"] == 1
    assert found["assd"] == pytest.approx((8 + 8) / 32)  # all 5 of the side left behind, 3 of the side now inside
    one_slice_of_many = np.pad(square, ((1, 1), (0, 0), (0, 0)))
    assert len(surface_distances(one_slice_of_many, one_slice_of_many, (1.0, 1.0, 1.0)).of_reference) == 25


def test_surface_metrics_of_empty_masks():
    empty, one = np.zeros((3, 3, 3), dtype=bool), points((3, 3, 3), (1, 1, 1))
    nan = pytest.approx(math.nan, nan_ok=True)
    assert scores(empty, empty) == {"hd95": nan, "assd": nan, "nsd": nan}
    assert scores(one, empty) == {"hd95": math.inf, "assd": math.inf, "nsd": 0}
    assert scores(empty, one) == {"hd95": math.inf, "assd": math.inf, "nsd": 0}


def surface_voxels(mask):
    """Voxels with a face neighbour outside, one by one; axes of extent 1 have no neighbours."""
    found = []
    for voxel in np.argwhere(mask):
        for axis in range(3):
            if mask.shape[axis] > 1:
                for step in (-1, 1):
                    near = voxel.copy()
                    near[axis] += step
                    if not 0 <= near[axis] < mask.shape[axis] or not mask[tuple(near)]:
                        found.append(voxel)
    return np.unique(np.array(found), axis=0)


@settings(max_examples=100, deadline=None)
@given(data=st.data(), spacing=SPACINGS, tolerance_mm=st.sampled_from([0.0, 0.7, 1.1, 2.5]))
def test_surface_distances_equal_brute_force(data, spacing, tolerance_mm):
    shape = data.draw(st.tuples(st.integers(1, 6), st.integers(2, 7), st.integers(2, 7)))
    masks = [data.draw(hnp.arrays(bool, shape, elements=st.booleans())) for _ in range(2)]
    assume(all(mask.any() for mask in masks))
    surfaces = [surface_voxels(mask) for mask in masks]
    matrix = cdist(*[surface * np.array(spacing) for surface in surfaces])
    of_reference, of_segmentation = matrix.min(axis=1), matrix.min(axis=0)

    found = surface_distances(*masks, spacing, tolerance_mm=tolerance_mm)
    np.testing.assert_allclose(found.of_reference, of_reference, rtol=1e-5)  # no absolute tolerance: 0 is exactly 0
    np.testing.assert_allclose(found.of_segmentation, of_segmentation, rtol=1e-5)
    both = np.concatenate([of_reference, of_segmentation])
    within = both < tolerance_mm + 1e-6
    assert {name: metric(found) for name, metric in SURFACE_METRICS.items()} == {
        "hd95": pytest.approx(max(np.percentile(of_reference, 95), np.percentile(of_segmentation, 95)), rel=1e-5),
        "assd": pytest.approx(both.mean(), rel=1e-5),
        "nsd": pytest.approx(within.mean()),
    }


def test_surface_distances_equal_a_distance_map():
    """Random blobs, large enough for a real tree, against SimpleITK's Maurer map of the other surface."""
    spacing = (2.5, 0.8, 1.1)
    rng = np.random.default_rng(0)
    blobs = [ndimage.gaussian_filter(rng.standard_normal((20, 40, 50)), (1, 4, 3)) > 0.02 for _ in range(2)]
    surfaces = [np.zeros(blob.shape, dtype=np.uint8) for blob in blobs]
    for surface, blob in zip(surfaces, blobs, strict=True):
        surface[tuple(surface_voxels(blob).T)] = 1
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
