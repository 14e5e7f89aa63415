"""Fingerprints of arrays small enough to count by hand."""

import pickle
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from autoseg.imaging.labels import LabelSet
from autoseg.planning import fingerprint as module
from autoseg.planning.fingerprint import Fingerprint, measure_case, samples_per_case, summarise
from autoseg.records import load, save

LABELS = LabelSet({"organ": 1, "lesion": 2})
WITH_IGNORE = LabelSet({"organ": 1, "lesion": 2}, ignore=9)
SPACING = (3.0, 1.0, 0.5)


@dataclass
class Loaded:
    image: np.ndarray
    target: np.ndarray
    spacing: tuple[float, float, float] = SPACING
    id: str = "a"


def scan() -> Loaded:
    """6 x 10 x 12 voxels; the body is 4 x 8 x 10 of value 5, the organ's image is 100, the lesions' 200."""
    image = np.zeros((1, 6, 10, 12), dtype=np.float32)
    target = np.zeros((6, 10, 12), dtype=np.int16)
    image[0, 1:5, 1:9, 1:11] = 5
    target[1:3, 2:6, 2:8] = 1  # 2 x 4 x 6 = 48 voxels
    target[4, 7, 1:4] = 2  # 3 voxels
    target[4, 2, 9] = 2  # 1 voxel, apart
    image[0][target == 1] = 100
    image[0][target == 2] = 200
    return Loaded(image, target)


def measured(loaded=None, labels=LABELS, samples=1000, case_id="a"):
    return measure_case(replace(loaded or scan(), id=case_id), labels, samples)


def dataset(*measurements):
    return summarise({m.case.id: m for m in measurements}, channels=["MR"], labels=LABELS)


def test_geometry_counts_and_components_by_hand():
    case = measured().case
    assert case.shape == (6, 10, 12)
    assert case.shape_after_crop == (4, 8, 10)
    assert case.relative_size_after_crop == pytest.approx(320 / 720)
    assert case.spacing == SPACING
    assert case.class_voxels == {"organ": 48, "lesion": 4}
    assert case.ignored_voxels == 0
    assert case.foreground_outside_crop == 0
    organ, lesion = case.components["organ"], case.components["lesion"]
    assert (organ.count, organ.volumes_mm3, organ.extents_mm) == (1, (72.0,), ((6.0, 4.0, 3.0),))  # 1.5 mm3 a voxel
    assert (lesion.count, lesion.volumes_mm3) == (2, (4.5, 1.5))
    assert lesion.extents_mm == ((3.0, 1.0, 1.5), (3.0, 1.0, 0.5))


def test_a_label_inside_the_box_of_another_is_not_counted_with_it():
    loaded = scan()
    loaded.target[1:3, 3:5, 4:6] = 2  # a lesion right through the organ
    components = measured(loaded).case.components
    assert components["organ"].volumes_mm3 == (1.5 * (48 - 8),)
    assert components["lesion"].count == 3


def test_centroids_by_hand():
    centroids = measured().case.centroids_mm
    assert centroids["organ"] == pytest.approx((1.5 * 3, 3.5 * 1, 4.5 * 0.5))
    assert centroids["lesion"] == pytest.approx((4 * 3, (3 * 7 + 2) / 4, (1 + 2 + 3 + 9) / 4 * 0.5))


def test_absent_labels_are_counted_and_have_no_components():
    loaded = scan()
    loaded.target[loaded.target == 2] = 0
    case = measured(loaded).case
    assert case.class_voxels == {"organ": 48, "lesion": 0}
    assert set(case.components) == {"organ"}


def test_intensities_are_those_of_the_foreground():
    found = measured(samples=20_000)
    assert found.from_foreground
    assert found.intensities.dtype == np.float32
    assert found.intensities.shape == (1, 20_000)
    assert set(np.unique(found.intensities)) == {100, 200}
    assert (found.intensities == 200).mean() == pytest.approx(4 / 52, abs=0.01)  # every voxel is as likely


def test_ignored_voxels_are_no_foreground():
    loaded = scan()
    loaded.target[loaded.target == 1] = 3  # what WITH_IGNORE calls ignored
    found = measured(loaded, WITH_IGNORE)
    assert found.case.ignored_voxels == 48
    assert found.case.class_voxels == {"organ": 0, "lesion": 4}
    assert set(np.unique(found.intensities)) == {200}


def test_voxels_outside_the_body_are_neither_counted_nor_drawn():
    loaded = scan()
    loaded.target[0] = -1
    assert measured(loaded).case.class_voxels == measured().case.class_voxels
    assert np.array_equal(measured(loaded).intensities, measured().intensities)


def test_all_channels_are_drawn_at_the_same_voxels():
    loaded = scan()
    loaded.image = np.random.default_rng(0).normal(size=(1, 6, 10, 12)).astype(np.float32)
    loaded.image = np.concatenate((loaded.image, 2 * loaded.image))
    first, second = measured(loaded).intensities
    assert np.array_equal(second, 2 * first)


def test_a_case_without_foreground_gives_voxels_of_its_crop():
    loaded = scan()
    loaded.target[:] = 0
    found = measured(loaded, samples=5000)
    assert not found.from_foreground
    assert set(np.unique(found.intensities)) == {5, 100, 200}  # the crop has no zeros


def test_labels_where_the_image_is_zero_are_reported():
    loaded = scan()
    loaded.target[0, 0, 0:3] = 2
    found = measured(loaded)
    assert found.case.foreground_outside_crop == 3
    assert found.case.class_voxels["lesion"] == 7
    assert any("image is zero" in note and note.endswith(" a") for note in dataset(found).notes)


def test_an_empty_image_is_measured_whole():
    found = measured(Loaded(np.zeros((1, 3, 4, 5), np.float32), np.zeros((3, 4, 5), np.int16)))
    assert found.case.shape_after_crop == (3, 4, 5)
    assert dataset(found).statistics[0].std == 0


def test_measuring_is_deterministic_and_small_enough_to_send():
    first, second = measured(), measured()
    assert np.array_equal(first.intensities, second.intensities)
    assert first.case == second.case
    loaded = pickle.loads(pickle.dumps(first))
    assert loaded.case == first.case
    assert np.array_equal(loaded.intensities, first.intensities)


@pytest.mark.parametrize("count", [1, 5, 63, 64, 65, 1000])
def test_components_are_counted_and_evenly_described(count):
    line = np.zeros((1, 1, 3 * count * 4), dtype=np.int16)
    for i in range(count):  # lengths 1, 2, 3, 1, 2, 3, ...
        line[0, 0, 12 * i : 12 * i + 1 + i % 3] = 1
    found = measured(Loaded(np.ones((1, *line.shape), np.float32), line, (1.0, 1.0, 1.0))).case.components["organ"]
    assert found.count == count
    assert len(found.volumes_mm3) == len(found.extents_mm) == min(count, module.COMPONENTS_KEPT)
    assert found.volumes_mm3[0] == min(3, count)
    assert found.volumes_mm3[-1] == 1
    assert list(found.volumes_mm3) == sorted(found.volumes_mm3, reverse=True)
    if count == 1000:
        assert np.bincount(np.array(found.volumes_mm3, dtype=int))[1:] == pytest.approx([21.3, 21.3, 21.3], abs=1.5)


def test_a_hundred_labels_together_keep_a_bounded_selection():
    labels = LabelSet({f"l{i}": i for i in range(1, 101)})
    target = np.zeros((1, 200, 200), dtype=np.int16)
    target[0, ::2, ::2] = np.arange(10_000).reshape(100, 100) % 100 + 1
    found = measure_case(Loaded(np.ones((1, 1, 200, 200), np.float32), target), labels, 10).case
    assert all(sizes.count == 100 for sizes in found.components.values())
    assert sum(len(sizes.volumes_mm3) for sizes in found.components.values()) <= module.COMPONENTS_KEPT_PER_CASE


def test_samples_per_case_bound_the_pool():
    assert samples_per_case(1) == module.CASE_SAMPLES
    assert samples_per_case(1000) == 10_000
    assert samples_per_case(10**9) == 1
    for cases in (1, 7, 50, 51, 1000):
        assert cases * samples_per_case(cases) <= module.POOLED_SAMPLES


# ---- the dataset


def with_intensities(values, from_foreground=True, case_id="a"):
    return replace(
        measured(case_id=case_id), intensities=np.array([values], dtype=np.float32), from_foreground=from_foreground
    )


def test_statistics_by_hand():
    found = dataset(with_intensities([0, 1, 2, 3], case_id="b"), with_intensities([4, 5, 6, 179]))
    (known,) = found.statistics
    assert known.mean == 25
    assert known.median == 3.5
    assert known.std == pytest.approx(np.sqrt((25**2 + 24**2 + 23**2 + 22**2 + 21**2 + 20**2 + 19**2 + 154**2) / 8))
    assert (known.min, known.max) == (0, 179)
    assert known.p00_5 == pytest.approx(0.035)  # between the ranks: .005 * 7
    assert known.p99_5 == pytest.approx(6 + 173 * 0.965)
    assert [case.id for case in found.cases] == ["a", "b"]
    assert (found.channels, found.labels) == (("MR",), ("organ", "lesion"))


def test_only_foreground_is_pooled_where_some_case_has_any():
    found = dataset(with_intensities([7, 7]), with_intensities([0, 100], False, "b"))
    assert found.statistics[0].max == 7
    assert any("1 of 2 cases have no foreground" in note for note in found.notes)


def test_a_dataset_without_foreground_falls_back_to_whole_images():
    found = dataset(with_intensities([0, 100], False))
    assert found.statistics[0].mean == 50
    assert any("whole images" in note for note in found.notes)


def test_values_that_are_not_finite_do_not_spread():
    found = dataset(with_intensities([1, np.nan, np.inf, 3]))
    assert found.statistics[0].mean == 2
    assert dataset(with_intensities([np.nan])).statistics[0].mean == 0


def test_equal_cases_are_noted():
    other, relabelled = scan(), scan()
    other.image[0, 2, 2, 2] += 1
    relabelled.target[4, 2, 9], relabelled.target[4, 3, 9] = 0, 2  # the same counts, at another place
    found = dataset(
        *(measured(scans, case_id=i) for i, scans in zip("abcd", (scan(), scan(), other, relabelled), strict=True))
    )
    assert [note for note in found.notes if "equal" in note] == ["cases with equal image and label: a, b"]


def test_hash_follows_every_voxel_and_nothing_else():
    def summary(loaded, case_id="a"):
        return dataset(measured(loaded, case_id=case_id)).hash

    image, target = scan(), scan()
    image.image[0, 0, 0, 11] = 1e-3  # changes no statistic
    target.target[1, 2, 2] = 0
    assert summary(scan()) == summary(scan())
    assert len({summary(scan()), summary(image), summary(target), summary(scan(), "b")}) == 4


def test_no_case_is_refused():
    with pytest.raises(ValueError, match="at least one case"):
        summarise({}, channels=["MR"], labels=LABELS)


def test_fingerprints_survive_a_file(tmp_path: Path):
    found = dataset(measured(), measured(scan(), WITH_IGNORE, case_id="b"))
    save(tmp_path / "fingerprint.json", found)
    assert load(Fingerprint, tmp_path / "fingerprint.json") == found
    assert load(Fingerprint, tmp_path / "fingerprint.json").hash == found.hash
