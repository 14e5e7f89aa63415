"""The grid that images are brought to: spacing and axis order by hand, and slices that lie along any axis."""

from dataclasses import replace

import numpy as np
import pytest

from autoseg.planning.space import axis_order, target_spacing
from plans import decided, plan
from synthetic_fingerprints import boxes, case, fingerprint, label_set, uniform


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
