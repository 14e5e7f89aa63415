"""Images whose intensities or field of view are unlike the training data."""

from dataclasses import replace

import numpy as np
import pytest

from autoseg.imaging.formats.readers import read_image
from autoseg.planning.fingerprint import ImageIntensities, image_intensities
from autoseg.planning.foreign_images import foreign_extent, foreign_intensities, intensity_ranges
from autoseg.planning.plan import ChannelNormalization, IntensityRange, TrainingGrids
from autoseg.records import from_plain, to_plain
from synthetic_fingerprints import case, fingerprint, label_set

SEEN = TrainingGrids(
    (2.0, 0.6, 0.6), (5.0, 0.9, 0.9), (20, 200, 200), (90, 512, 512),
    (IntensityRange((-1024.0, -1000.0), (-900.0, 20.0), (200.0, 900.0), 1900.0),),
)  # fmt: skip
FOREGROUND = ChannelNormalization("ct", p00_5=-50.0, p99_5=250.0, mean=100.0, std=40.0)


def ct(seed=0, shape=(10, 40, 40)) -> np.ndarray:
    """Air around a body of soft tissue with some bone."""
    rng = np.random.default_rng(seed)
    image = np.full((1, *shape), -1000.0, np.float32)
    image[:, :, 8:-8, 8:-8] = rng.normal(40, 30, (1, shape[0], shape[1] - 16, shape[2] - 16))
    image[:, :, 18:22, 18:22] = 700
    return image


def mr(scale=1.0) -> np.ndarray:
    """Like it in MR: no value below 0."""
    return scale * np.abs(ct() + 1000) / 1.3


def test_a_ct_is_like_the_training_data():
    assert foreign_intensities(ct(), ("CT",), SEEN) == []


@pytest.mark.parametrize("scale", [0.5, 1.0, 10.0])
def test_an_mr_given_to_a_model_of_ct_is_reported_with_numbers(scale):
    (remark,) = foreign_intensities(mr(scale), ("CT",), SEEN)
    assert remark.kind == "intensities unlike training"
    assert "its 0.5th percentile is 0, between -1024 and -1000 in training" in remark.what
    assert "check that it is CT in the unit of the training data" in remark.remedy


def test_a_ct_given_to_a_model_of_mr_is_reported():
    seen = replace(SEEN, intensities=(IntensityRange((0.0, 2.0), (0.0, 100.0), (400.0, 900.0), 900.0),))
    (remark,) = foreign_intensities(ct(), ("MR",), seen)
    assert "0.5th percentile is -1000" in remark.what


def test_a_ct_in_another_unit_is_reported():
    """Stored values without the intercept of -1024, or attenuation from 0 to 1."""
    assert foreign_intensities(ct() + 1024, ("CT",), SEEN)
    assert foreign_intensities((ct() + 1000) / 1700, ("CT",), SEEN)


def test_a_plan_without_ranges_knows_the_foreground_of_ct():
    old = replace(SEEN, intensities=())
    assert foreign_intensities(ct(), ("CT",), old, (FOREGROUND,)) == []
    (remark,) = foreign_intensities(mr(), ("CT",), old, (FOREGROUND,))
    assert "a CT holds air or fat" in remark.what
    (far,) = foreign_intensities(ct() - 2000, ("CT",), None, (FOREGROUND,))
    assert "its values span -3000 to" in far.what
    assert "the training foreground spans -50 to 250" in far.what
    assert foreign_intensities(mr(), ("MR",), old, (replace(FOREGROUND, scheme="zscore"),)) == []
    assert foreign_intensities(mr(), ("MR",), None) == []


def test_the_channel_is_named_where_there_are_several():
    seen = replace(SEEN, intensities=SEEN.intensities * 2)
    (remark,) = foreign_intensities(np.concatenate([ct(), mr()]), ("arterial", "venous"), seen)
    assert remark.what.startswith("the channel venous is unlike the training data")


def test_ranges_are_those_of_the_images_of_a_fingerprint():
    cases = [
        replace(case(n, (2, 0.6, 0.9), (20, 200, 512), {}, []), intensities=(ImageIntensities(*numbers),))
        for n, numbers in enumerate([(0.0, 50.0, 300.0), (-5.0, 80.0, 200.0)])
    ]
    found = fingerprint(cases, label_set(2))
    assert intensity_ranges(found) == (IntensityRange((-5.0, 0.0), (50.0, 80.0), (200.0, 300.0), 300.0),)
    older = replace(found, cases=(cases[0], replace(cases[1], intensities=())))
    assert intensity_ranges(older) == ()
    assert older.hash == found.hash  # they follow from the voxels, of which it holds a digest
    grids = replace(SEEN, intensities=intensity_ranges(found))
    assert from_plain(TrainingGrids, to_plain(grids)) == grids
    plain = to_plain(grids)
    del plain["intensities"]
    assert from_plain(TrainingGrids, plain).intensities == ()


def test_percentiles_are_those_of_all_voxels():
    image = np.random.default_rng(0).normal(100, 20, (2, 30, 60, 60)).astype(np.float32)
    image[1] *= -1
    image[1, 0, 0, 0] = np.nan
    for own, channel in zip(image_intensities(image), image, strict=True):
        expected = np.nanpercentile(channel, (0.5, 50, 99.5))
        assert (own.p00_5, own.median, own.p99_5) == pytest.approx(tuple(expected), abs=2)
    assert image_intensities(image) == image_intensities(image)


def test_a_field_of_view_far_smaller_than_any_in_training():
    """At least 20 slices of 2 mm and 200 pixels of 0.6 mm: 40 x 120 x 120 mm."""

    def look(shape, spacing=(2.0, 0.6, 0.6), **options):
        return foreign_extent(shape, spacing, SEEN, (0, 1, 2), **({"slices_alone": False} | options))

    assert look((20, 200, 200)) == look((10, 100, 100)) == []
    (remark,) = look((9, 200, 200))
    assert "its field of view is 18 mm along z, at least 40 mm in the training data" in remark.what
    assert look((9, 200, 200), slices_alone=True) == []
    assert look((9, 200, 200), spacing=(5.0, 0.6, 0.6)) == []
    (remark,) = foreign_extent((200, 9, 200), (0.6, 2.0, 0.6), SEEN, (1, 0, 2), slices_alone=False)
    assert "along z" in remark.what
    assert foreign_extent((1, 1, 1), (1, 1, 1), None, (0, 1, 2), slices_alone=False) == []


@pytest.mark.thorough
def test_hippocampus_test_cases_are_like_its_training_cases(data_dir):
    """Intensities of this set differ by four orders of magnitude, and no test case is unlike them."""
    root = data_dir / "hippocampus"
    train = [read_image(path) for path in sorted((root / "imagesTr").glob("*.nii.gz"))]
    cases = [
        replace(
            case(n, v.geometry.spacing, v.geometry.shape, {}, []), intensities=image_intensities(v.array)
        )
        for n, v in enumerate(train)
    ]  # fmt: skip
    found = fingerprint(cases, label_set(2))
    seen = TrainingGrids(
        tuple(np.min([c.spacing for c in cases], axis=0).tolist()),
        tuple(np.max([c.spacing for c in cases], axis=0).tolist()),
        tuple(np.min([c.shape for c in cases], axis=0).tolist()),
        tuple(np.max([c.shape for c in cases], axis=0).tolist()),
        intensity_ranges(found),
    )
    tests = sorted((root / "imagesTs").glob("*.nii.gz"))
    assert len(tests) == 41
    for path in tests:
        volume = read_image(path)
        assert foreign_intensities(volume.array, ("MR",), seen) == [], path.name
        shape, spacing = volume.geometry.shape, volume.geometry.spacing
        assert foreign_extent(shape, spacing, seen, (0, 1, 2), slices_alone=False) == [], path.name


def test_hippocampus_given_to_a_model_of_ct(data_dir):
    paths = sorted((data_dir / "hippocampus" / "imagesTs").glob("*.nii.gz"))
    assert all(foreign_intensities(read_image(path).array, ("CT",), SEEN) for path in paths)
