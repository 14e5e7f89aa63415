"""Blobs with known answers: counts, sizes, which ones touch, files."""

import nibabel
import numpy as np
import pytest
from scipy import ndimage

from autoseg.demo.blobs import SPACING, make_blobs, write_blobs

CORNERS = np.ones((3, 3, 3), bool)


@pytest.fixture(scope="module", params=[0, 3])
def made(request):
    return make_blobs(request.param)


def test_numbers_name_every_body_once(made):
    labels = made.labels.array
    assert labels.dtype == np.uint16
    assert [*np.unique(labels)] == [*range(len(made.bodies) + 1)]
    assert made.image.array.shape == (1, *labels.shape)


def test_components_of_the_mask_are_the_groups_that_touch(made):
    """Union-find over the pairs against the components of the mask: a gap is one, and a contact is one."""
    group = {k: k for k in range(1, len(made.bodies) + 1)}
    for a, b in made.touching:
        old, new = group[a], group[b]
        group = {k: new if g == old else g for k, g in group.items()}
    components, count = ndimage.label(made.labels.array > 0, CORNERS)
    assert count == len({*group.values()}) < len(group)
    for k, g in group.items():
        (mine,) = np.unique(components[made.labels.array == k])
        (theirs,) = np.unique(components[made.labels.array == g])
        assert mine == theirs


def test_a_body_inside_has_the_volume_of_an_ellipsoid(made):
    """One that touches nothing and is not cut: 4/3 pi abc within 3 %; and its centre of mass is the body's."""
    labels, half = made.labels.array, np.array(made.labels.array.shape) * SPACING / 2
    alone = [k for k in range(1, len(made.bodies) + 1) if not any(k in pair for pair in made.touching)]
    inside = [k for k in alone if (np.abs(made.bodies[k - 1].centre[::-1]) + 8.6 < half).all()]
    assert inside
    for k in inside:
        body = made.bodies[k - 1]
        assert (labels == k).sum() * np.prod(SPACING) == pytest.approx(4 / 3 * np.pi * body.radii.prod(), rel=0.03)
        centre = (np.array(ndimage.center_of_mass(labels == k)) + 0.5) * SPACING - half
        assert centre[::-1] == pytest.approx(body.centre, abs=0.3)


def test_objects_are_brighter_than_what_surrounds_them(made):
    image, labels = made.image.array[0], made.labels.array
    means = ndimage.mean(image, labels, np.arange(1, len(made.bodies) + 1))
    assert min(means) > image[labels == 0].mean() + 20


def test_files_are_the_same_each_time_and_hold_what_was_drawn(tmp_path):
    first, second = (write_blobs(tmp_path / name, cases=1) for name in ("a", "b"))
    files = sorted(path.relative_to(first) for path in first.rglob("*.nii.gz"))
    assert [str(f) for f in files] == ["images/blobs_000.nii.gz", "labels/blobs_000.nii.gz"]
    assert all((first / file).read_bytes() == (second / file).read_bytes() for file in files)
    stored = nibabel.load(first / files[1])
    assert stored.get_data_dtype() == np.uint16
    assert stored.header.get_zooms() == SPACING[::-1]
    assert np.array_equal(np.asarray(stored.dataobj).T, make_blobs(0).labels.array)
