"""Which tiles count as nearly empty, by hand and against scikit-image; and that only these are left out."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.filters import threshold_otsu

from autoseg.datasets.dataset import Case, load_case
from autoseg.imaging.labels import LabelSet
from autoseg.inference.empty_tiles import BINS, body_of, occupied, threshold
from autoseg.inference.member import EnsembleMember, decide
from autoseg.inference.options import InferenceOptions
from autoseg.inference.worthwhile import SURE
from autoseg.nn.sliding_window import Tiling, windows_of
from bright import THRESHOLD, Bright, model_of, plan_of
from files import nifti

TILES = Tiling((4, 4, 4), step=1.0)
SKIP = InferenceOptions(mirroring=False, step=1.0, skip_empty=True)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.floats(0.1, 0.9), st.floats(1, 30))
def test_the_threshold_is_otsus(seed, share, apart):
    """That of scikit-image, to a bin, for two groups of numbers without outliers."""
    rng = np.random.default_rng(seed)
    values = np.where(rng.random(4000) < share, rng.uniform(0, 1, 4000), apart + rng.uniform(0, 1, 4000))
    width = (values.max() - values.min()) / BINS
    assert threshold(values) == pytest.approx(threshold_otsu(values, nbins=BINS), abs=3 * width)


def test_a_single_bright_voxel_does_not_decide():
    values = np.repeat([0.0, 0.1, 10.0, 10.1], 1000)
    assert 0.1 <= threshold(np.append(values, 1e6)) < 10
    assert threshold(np.full(9, 7.0)) == 7


def test_body_is_what_is_bright_in_any_channel():
    image = np.zeros((2, 1, 2, 4))
    image[0, 0, 0, 0] = image[1, 0, 1, 1] = image[1, 0, 0, 0] = 100
    expected = np.zeros((1, 2, 4), bool)
    expected[0, 0, 0] = expected[0, 1, 1] = True
    np.testing.assert_array_equal(body_of(image), expected)


def test_tiles_without_body_are_nearly_empty():
    """Of eight tiles two have body: one voxel of 64 is more than one in a thousand."""
    image = np.zeros((1, 8, 8, 8))
    image[0, 0, 0, 0] = image[0, 7, 7, 0:4] = 100
    assert occupied(image, (8, 8, 8), TILES) == {(0, 0, 0), (4, 4, 0)}
    image[:] = 5
    assert occupied(image, (8, 8, 8), TILES) == set()  # equal everywhere: nothing is above the threshold


@pytest.mark.parametrize("grid", [(8, 8, 8), (5, 9, 20), (3, 3, 3)])
def test_on_another_grid(grid):
    """A bright corner of the image is in every tile that touches it, wherever the grid's voxels are."""
    image = np.zeros((1, 12, 12, 12))
    image[0, 9:, 9:, 9:] = 100
    kept = occupied(image, grid, TILES)
    expected = {
        window
        for window in windows_of(grid, TILES)
        if all((begin + 4) * 12 / size > 9 for begin, size in zip(window, grid, strict=True))
    }
    assert kept == expected
    assert kept


class Counting(Bright):
    tiles = 0

    def forward(self, image):
        type(self).tiles += len(image)
        return super().forward(image)


@pytest.fixture
def loaded(tmp_path):
    """Noise about 50 with a bright cube in one corner: no voxel is 0, so that nothing is cropped."""
    image = np.random.default_rng(0).integers(40, 60, (16, 20, 24)).astype(np.int16)
    image[1:6, 1:8, 1:9] = 150
    path = nifti(tmp_path / "a.nii", image, np.diag([-1.0, -1.0, 1.0, 1.0]))
    return load_case(Case("a", "a", (str(path),), None), None)


@pytest.mark.parametrize("regions", [False, True])
def test_only_nearly_empty_tiles_are_left_out(loaded, regions):
    labels = LabelSet({"organ": 7})
    network = Counting()
    model = model_of((1.0,) * 3, plan=plan_of(labels), network=network)
    Counting.tiles = 0
    everything = decide([EnsembleMember(model, replace(SKIP, skip_empty=False))], loaded)
    assert Counting.tiles == 8
    Counting.tiles = 0
    found = decide([EnsembleMember(model, SKIP)], loaded)
    assert Counting.tiles == 1
    np.testing.assert_array_equal(found, everything)
    np.testing.assert_array_equal(found, loaded.image[0] > THRESHOLD)


def test_what_is_dark_is_lost(loaded):
    """A network that finds the dark: where no tile is computed, there is background, on the grid of the image, too."""

    class Dark(Bright):
        def forward(self, image):
            return super().forward(200 - image)

    for spacing in ((1.0, 1.0, 1.0), (1.3, 0.8, 1.1)):
        model = model_of(spacing, network=Dark(), patch=(8, 10, 12))
        found = decide([EnsembleMember(model, SKIP)], loaded)
        assert found[:5, :5, 9:11].all()
        assert not found[12:, 15:, 18:].any()
        assert decide([EnsembleMember(model, replace(SKIP, skip_empty=False))], loaded)[12:, 15:, 18:].all()


class Keeping:
    """Keeps the logits that it is given."""

    def __init__(self):
        self.parts = []

    def take(self, rows, logits):
        self.parts.append(logits[0].clone())


def test_what_is_left_out_is_surely_background(loaded):
    """Its probabilities, too, whatever else is averaged with them."""
    keeping = Keeping()
    decide([EnsembleMember(model_of((1.0,) * 3, network=Bright()), SKIP)], loaded, [keeping])
    logits = torch.cat(keeping.parts, dim=1)
    assert (logits[:, 12:, 15:, 18:].amin((1, 2, 3)), logits[:, 12:, 15:, 18:].amax((1, 2, 3))) == (
        pytest.approx([SURE, -SURE]), pytest.approx([SURE, -SURE])
    )  # fmt: skip
    assert float(logits[0, 2, 2, 2]) == 0  # as the network says
