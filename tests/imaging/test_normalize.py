"""Normalisation: the formulas by hand, constants, masks, and which name or sample means what."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from autoseg.errors import DataError, StateError, UsageError
from autoseg.imaging.normalize import (
    NORMALIZERS,
    STATISTICS,
    ForegroundStatistics,
    looks_like_hounsfield,
    normalize,
    scheme_for,
    uses_statistics,
)
from autoseg.planning.fingerprint import ChannelStatistics
from autoseg.planning.plan import ChannelNormalization
from autoseg.records import from_plain, to_plain


def volume(*values, dtype=np.float32):
    return np.array(values, dtype=dtype).reshape(1, 1, -1)


def test_zscore_by_hand():
    # mean 3, deviations -2 0 2 0, variance 2
    np.testing.assert_allclose(
        normalize(volume(1, 3, 5, 3), "zscore").ravel(), np.array([-2, 0, 2, 0]) / np.sqrt(2), rtol=1e-6
    )


def test_masked_zscore_measures_and_writes_inside_only():
    mask = volume(1, 1, 1, 1, 0, 0, dtype=bool)
    normalized = normalize(volume(1, 3, 5, 3, 0, 1000), "zscore", mask=mask)
    np.testing.assert_allclose(normalized.ravel(), np.array([-2, 0, 2, 0, 0, 0]) / np.sqrt(2), rtol=1e-6)


def test_an_empty_mask_gives_zeros():
    assert not normalize(volume(1, 2, 3), "zscore", mask=np.zeros((1, 1, 3), dtype=bool)).any()


@settings(max_examples=50, deadline=None)
@given(
    hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=3, max_dims=3, max_side=5),
        elements=st.floats(-1000, 1000, width=32).map(lambda v: np.float32(round(v, 1))),
    )
)
def test_zscore_equals_numpy(channel):
    reference = channel.astype(np.float64)
    normalized = normalize(channel, "zscore")
    if reference.std() == 0:
        assert not normalized.any()
    else:
        expected = (reference - reference.mean()) / reference.std()
        # The mean is subtracted in float32, which costs at most its rounding error.
        np.testing.assert_allclose(normalized, expected, atol=1e-5 + 1e-6 * abs(reference.mean()) / reference.std())


def test_zscore_of_more_voxels_than_fit_one_chunk():
    channel = np.random.default_rng(0).normal(1000, 20, size=(3, 700, 701)).astype(np.float32)
    reference = channel.astype(np.float64)
    expected = (reference - reference.mean()) / reference.std()
    np.testing.assert_allclose(normalize(channel, "zscore"), expected, atol=1e-4)
    np.testing.assert_allclose(normalize(channel.transpose(2, 0, 1), "zscore"), expected.transpose(2, 0, 1), atol=1e-4)


def test_ct_by_hand():
    normalized = normalize(
        volume(-1000, -10, 40, 90, 3000),
        "ct",
        statistics=ForegroundStatistics(mean=40.0, std=20.0, p00_5=-20.0, p99_5=100.0),
    )
    np.testing.assert_allclose(normalized.ravel(), [-3, -2.5, 0, 2.5, 3], rtol=1e-6)


def test_ct_ignores_the_mask():
    mask = volume(0, 0, 0, dtype=bool)
    normalized = normalize(
        volume(0, 1, 2), "ct", mask=mask, statistics=ForegroundStatistics(mean=1.0, std=2.0, p00_5=0.0, p99_5=2.0)
    )
    np.testing.assert_array_equal(normalized.ravel(), [-0.5, 0, 0.5])


def test_ct_whose_foreground_is_constant():
    # A mean that rounding moved off the only value, over the smallest divisor, would be 1e5.
    normalized = normalize(
        volume(-5, 40, 700), "ct", statistics=ForegroundStatistics(mean=40.001, std=0.0, p00_5=40.0, p99_5=40.0)
    )
    assert not normalized.any()


def test_rescale_by_hand():
    np.testing.assert_allclose(normalize(volume(-2, 0, 6, 8), "rescale_to_0_1").ravel(), [0, 0.2, 0.8, 1], rtol=1e-6)


def test_rgb_by_hand():
    np.testing.assert_allclose(normalize(volume(0, 51, 255), "rgb_to_0_1").ravel(), [0, 0.2, 1], rtol=1e-6)


@pytest.mark.parametrize("values", [(-1, 5), (0, 256), (0, np.nan)])
def test_rgb_refuses_what_is_not_8_bit(values):
    with pytest.raises(DataError, match="expected 0 to 255"):
        normalize(volume(*values), "rgb_to_0_1")


def test_none_keeps_values():
    np.testing.assert_array_equal(normalize(volume(-7, 0, 1e6), "none").ravel(), [-7, 0, 1e6])


@pytest.mark.parametrize("scheme", ["zscore", "rescale_to_0_1"])
@pytest.mark.parametrize("value", [0.1, -1024.0, 16777216.0, 1e-20, 3e30])
def test_a_constant_image_is_exactly_zero(scheme, value):
    assert not normalize(np.full((3, 7, 11), value, dtype=np.float32), scheme).any()


def test_a_constant_body_is_exactly_zero():
    mask = np.zeros((3, 7, 11), dtype=bool)
    mask[1, 2:5, 3:6] = True
    assert not normalize(np.where(mask, np.float32(0.1), np.float32(5)), "zscore", mask=mask).any()


def test_small_deviations_are_divided_by_the_smallest_divisor():
    np.testing.assert_allclose(normalize(volume(-1e-10, 1e-10), "zscore").ravel(), [-0.01, 0.01], rtol=1e-5)


@pytest.mark.parametrize("scheme", NORMALIZERS)
@pytest.mark.parametrize("dtype", [np.float32, np.int16, np.uint8])
def test_every_scheme_gives_new_float32_and_leaves_its_input(scheme, dtype):
    channel = volume(1, 7, 9, 200, dtype=dtype)
    before = channel.copy()
    normalized = normalize(channel, scheme, statistics=ForegroundStatistics(mean=3.0, std=2.0, p00_5=2.0, p99_5=8.0))
    assert normalized.dtype == np.float32
    assert normalized.shape == channel.shape
    normalized += 1
    np.testing.assert_array_equal(channel, before)


def test_an_unknown_scheme_is_refused_by_name():
    with pytest.raises(UsageError, match="'z-score'") as error:
        normalize(volume(1, 2), "z-score")
    assert "zscore" in error.value.remedy


@pytest.mark.parametrize(
    ("name", "scheme"),
    [
        ("CT", "ct"),
        (" ct ", "ct"),
        ("noNorm", "none"),
        ("NONORM", "none"),
        ("zscore", "zscore"),
        ("rescale_to_0_1", "rescale_to_0_1"),
        ("rgb_to_0_1", "rgb_to_0_1"),
        ("RGB_red", "rgb_to_0_1"),
        ("R", "rgb_to_0_1"),
        ("g", "rgb_to_0_1"),
        ("Blue", "rgb_to_0_1"),
        ("T1", "zscore"),
        ("CTA", "zscore"),
        ("gadolinium", "zscore"),
        ("", "zscore"),
    ],
)
def test_scheme_for(name, scheme):
    assert scheme_for(name) == scheme
    assert scheme in NORMALIZERS


def test_a_scheme_is_one_function_and_one_line(monkeypatch):
    """Its name is a channel's name and a plan's word at once, and it is taken to use the dataset's statistics."""
    monkeypatch.setitem(NORMALIZERS, "by_mean", lambda channel, mask, known: channel.astype(np.float32) / known.mean)
    assert scheme_for("By_Mean") == "by_mean"
    planned = from_plain(ChannelNormalization, {"scheme": "by_mean", "mean": 4.0})
    assert planned == ChannelNormalization("by_mean", mean=4.0)
    assert normalize(volume(2, 8), planned.scheme, statistics=planned).ravel().tolist() == [0.5, 2]
    assert uses_statistics("by_mean")
    monkeypatch.undo()
    with pytest.raises(StateError, match=r"scheme: expected one of 'ct', .*found 'by_mean'"):
        ChannelNormalization("by_mean")


@pytest.mark.parametrize("scheme", NORMALIZERS)
def test_schemes_say_whether_they_use_the_statistics_of_the_dataset(scheme):
    made = [
        normalize(volume(2, 4, 9), scheme, statistics=ForegroundStatistics(mean=mean, std=2.0, p00_5=1.0, p99_5=8.0))
        for mean in (3.0, 4.0)
    ]
    assert uses_statistics(scheme) is not np.array_equal(*made)


def test_statistics_are_handed_from_record_to_record():
    known = ChannelStatistics(mean=3.0, std=2.0, p00_5=1.0, p99_5=8.0, median=2.5, min=0.0, max=9.0)
    planned = ChannelNormalization("ct", False, **known.foreground)
    assert STATISTICS == ("mean", "std", "p00_5", "p99_5")
    assert planned.foreground == known.foreground == {"mean": 3.0, "std": 2.0, "p00_5": 1.0, "p99_5": 8.0}
    assert list(to_plain(planned)) == ["scheme", "inside_mask", "mean", "std", "p00_5", "p99_5"]  # as in plan.json
    assert set(to_plain(known)) == {"mean", "median", "std", "min", "max", "p00_5", "p99_5"}


class TestHounsfield:
    """A body of soft tissue in air, and what is like it but is not."""

    rng = np.random.default_rng(0)
    ct = np.concatenate([rng.normal(-1000, 10, 5000), rng.normal(40, 30, 5000), rng.uniform(200, 1500, 300)]).round()

    def test_ct(self):
        assert looks_like_hounsfield(self.ct)
        assert looks_like_hounsfield(self.ct.astype(np.int16))

    def test_ct_with_padding_and_metal(self):
        assert looks_like_hounsfield(np.concatenate([self.ct, np.full(2000, -3024), np.full(20, 12000)]))

    def test_magnitude_images_have_no_air_below_zero(self):
        assert not looks_like_hounsfield(np.abs(self.ct))

    def test_normalised_images_are_not_integers(self):
        assert not looks_like_hounsfield(self.ct * 1.37)

    def test_stored_with_offset(self):
        assert not looks_like_hounsfield(self.ct + 1024)

    def test_nothing_but_air(self):
        assert not looks_like_hounsfield(np.full(100, -1000.0))

    def test_lower_than_any_scanner(self):
        assert not looks_like_hounsfield(np.concatenate([self.ct, [-30000]]))

    def test_higher_than_any_storage(self):
        assert not looks_like_hounsfield(np.concatenate([self.ct, [1e6]]))

    def test_phase_images_reach_far_above_bone(self):
        assert not looks_like_hounsfield(self.rng.integers(-4096, 4096, 5000))

    def test_nothing_and_not_finite(self):
        assert not looks_like_hounsfield(np.array([]))
        assert not looks_like_hounsfield(np.concatenate([self.ct, [np.nan]]))
