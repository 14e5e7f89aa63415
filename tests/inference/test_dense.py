"""What streaming is compared with: by hand, on other grids; errors are found, ties are counted."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from autoseg.datasets.dataset import Case, load_case
from autoseg.imaging.labels import LabelSet
from autoseg.inference import dense
from autoseg.inference.dense import UNMIRRORED, Compared, Dense, bytes_needed, compare, labels_at_once, tiles_of
from autoseg.inference.member import EnsembleMember, decide
from bright import THRESHOLD, model_of, picture, plan_of
from files import nifti
from plans import plan_of as cascade_plan_of
from plans import with_cascade

LABELS = LabelSet({"a": 2, "b": 5})
REGIONS = LabelSet({"a": 2, "b": 5}, {"whole": (2, 5), "core": (5,)}, (2, 5))


class Mixing(torch.nn.Module):
    """Logits with context, from fixed random weights."""

    def __init__(self, heads: int, dims: int, channels: int = 1, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = torch.randn(heads, channels, *[3] * dims, generator=generator) / 50
        self.convolve = torch.nn.functional.conv2d if dims == 2 else torch.nn.functional.conv3d

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        return [self.convolve(image - 100, self.weight, padding=1)]


def loaded_of(folder, shape=(13, 17, 19)):
    path = nifti(folder / "a.nii", picture(shape), np.eye(4))
    return load_case(Case("a", "a", (str(path),), None), None)


def test_labels_by_hand(tmp_path):
    """On its own grid, a network that looks at one voxel decides by that voxel alone, whatever the tiles are."""
    loaded = loaded_of(tmp_path)
    found = labels_at_once(model_of((1.0, 1.0, 1.0)), loaded)
    np.testing.assert_array_equal(found.labels, loaded.image[0] > THRESHOLD)
    inside = loaded.image[0][found.box]
    np.testing.assert_allclose(found.logits, [np.zeros_like(inside), (inside - THRESHOLD) / 20], rtol=1e-6)
    assert found.labels.any()
    assert not found.regions


@pytest.mark.parametrize("labels", [LABELS, REGIONS])
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (1.5, 0.7, 2.0), (4.0, 1.0, 1.0), (0.6, 1.9, 1.0), (1.3, 1.3)])
def test_streamed_equals_dense(tmp_path, labels, spacing):
    """Tiles that begin before the image, at other spacings, in slices; two folds."""
    loaded = loaded_of(tmp_path)
    networks = tuple(Mixing(labels.num_heads, len(spacing), seed=n) for n in range(2))
    model = replace(model_of(spacing, plan=plan_of(labels)), folds=(0, 1), networks=networks)
    found = compare(decide([EnsembleMember(model, UNMIRRORED)], loaded), labels_at_once(model, loaded))
    assert found.voxels == loaded.image.size
    assert found.differ - found.ties == 0


def test_a_cascade(tmp_path):
    loaded = loaded_of(tmp_path, (12, 20, 24))
    plan = with_cascade(cascade_plan_of())
    networks = {name: Mixing(3, 3, plan.input_channels(plan.configurations[name])) for name in plan.configurations}
    low, cascade = (
        replace(model_of((1.0,) * 3, plan=plan), configuration_name=name, plan=plan, networks=(networks[name],))
        for name in ("3d_lowres", "3d_cascade")
    )
    model = replace(cascade, previous=low)
    labels = decide([EnsembleMember(model, UNMIRRORED)], loaded)
    assert len(np.unique(labels)) == 3
    assert compare(labels, labels_at_once(model, loaded)).differ == 0


def test_an_error_in_streaming_is_found(tmp_path, monkeypatch):
    loaded = loaded_of(tmp_path)
    model = model_of((1.5, 0.7, 2.0), plan=plan_of(LABELS), network=Mixing(3, 3))
    labels = decide([EnsembleMember(model, UNMIRRORED)], loaded)
    monkeypatch.setattr(dense, "gaussian_importance", lambda tile: torch.ones(tile))  # another weight of tiles
    found = compare(labels, labels_at_once(model, loaded))
    assert found.differ - found.ties > 0


def test_ties_are_counted_by_the_two_labels():
    logits = np.array([[0.0, 0.0, 0.0, -5.0], [0.0004, -1.0, 3.0, 1.0], [-2.0, -0.0001, 3.0001, 9.0]], np.float32)
    box = (slice(0, 1), slice(0, 1), slice(1, 5))
    at_once = Dense(np.array([[[0, 1, 0, 2, 2]]]), logits[:, None, None], box, False)
    other = np.array([[[0, 0, 2, 1, 0]]])  # a tie, a tie, a tie, and 9 against -5
    assert compare(other, at_once) == Compared(5, 4, 3)
    assert compare(other, at_once, tie=1e-6) == Compared(5, 4, 0)
    assert compare(other, replace(at_once, regions=True)) == Compared(5, 4, 3)  # a logit of 0 is what regions end at
    assert Compared(5, 4, 3) + Compared(1, 1, 0) == Compared(6, 5, 3)
    beyond = np.array([[[3, 1, 0, 2, 2]]])
    assert compare(beyond, at_once) == Compared(5, 1, 0)  # beyond the box nothing is a tie


def test_what_it_takes():
    """Logits of two heads and one more array on the grid, and two of them on the image: float32. Tiles by hand."""
    model = model_of((1.0, 1.0, 1.0))
    assert bytes_needed(model, (10, 10, 10), (5, 5, 5)) == 4 * (3 * 125 + 4 * 1000)
    assert tiles_of(model, (8, 10, 12)) == 1
    assert tiles_of(model, (8, 10, 13)) == 2
    assert tiles_of(model, (16, 10, 12)) == 3  # 0, 4, 8
