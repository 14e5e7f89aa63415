"""Models in memory segment arrays as `predict_cases` segments files; from several threads; until they are released."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from autoseg.datasets.dataset import Case
from autoseg.errors import DataError, StateError, UsageError
from autoseg.imaging.formats.readers import read_image, read_labels
from autoseg.imaging.labels import LabelSet
from autoseg.inference.predict import predict_cases
from autoseg.inference.predictor import ArrayPredictor
from autoseg.planning.plan import TrainingGrids
from bright import THRESHOLD, Bright, model_of, picture, plan_of
from files import affine_along, nifti, png

ONE = (1.0, 1.0, 1.0)


@pytest.mark.thorough
@pytest.mark.parametrize("code", ["LPS", "RAS", "SAL"])
@pytest.mark.parametrize("dims", [2, 3])
def test_an_array_gets_the_labels_that_a_file_gets(tmp_path, code, dims):
    """On another grid than the network's, cropped, in another order of axes, by two models; value for value."""
    spacing = (2.0, 1.0, 0.7)
    plan = plan_of(axis_order=(2, 0, 1))
    models = [model_of(ONE[:dims], plan=plan), model_of((1.4, 1.0, 1.0)[:dims], plan=plan)]
    predictor = ArrayPredictor(models)
    for seed in range(3):
        image = np.pad(picture((8 + seed, 9, 10), seed), ((2, 0), (0, 3), (1, 1)))
        path = nifti(tmp_path / f"{seed}.nii", image, affine_along(code, spacing))
        (made,) = predict_cases(models, [Case("c", "c", (str(path),), None)], tmp_path / f"out{seed}")
        written, before = read_labels(made.path).array, image.copy()
        found = predictor.segment(image, spacing, code)
        np.testing.assert_array_equal(found.labels, written)
        assert (found.labels.dtype, found.labels.flags.c_contiguous) == (np.uint8, True)
        assert set(np.unique(found.labels)) == {0, 7}
        np.testing.assert_array_equal(image, before)
        assert (found.probabilities, found.remarks) == (None, ())


def test_a_picture_gets_the_labels_that_its_file_gets(tmp_path):
    grey = np.kron(np.random.default_rng(1).choice([40, 160], (6, 9)), np.ones((4, 4))).astype(np.uint8)
    path = png(tmp_path / "image.png", grey)
    grids = TrainingGrids(ONE, ONE, (1, 20, 20), (1, 40, 40))
    model = model_of((1.0, 1.0), patch=(1, 16, 16), plan=replace(plan_of(), grids=grids))
    (made,) = predict_cases([model], [Case("c", "c", (str(path),), None)], tmp_path / "out")
    predictor = ArrayPredictor([model])
    written = read_labels(made.path).array
    for array in (grey, grey[None]):
        found = predictor.segment(array, None, probabilities=True)
        assert (found.labels.shape, found.probabilities.shape) == ((24, 36), (2, 24, 36))
        np.testing.assert_array_equal(found.labels, written[0])
    assert predictor.segment(read_image(path).array, None).labels.shape == (1, 24, 36)


def test_probabilities_of_labels_sum_to_one_and_are_background_beyond_the_box():
    """exp((v - 100) / 20) to 1, worked out by hand: 0.924 at 150, 0.076 at 50; the margin of zeros is cropped."""
    image = picture((8, 9, 10))
    found = ArrayPredictor([model_of(ONE)]).segment(image, ONE, "RAS", probabilities=True)
    organ = found.probabilities[1]
    assert found.probabilities.shape == (2, 8, 9, 10)
    np.testing.assert_allclose(found.probabilities.sum(axis=0), 1, atol=1e-6)
    np.testing.assert_allclose(organ[image == 150], 0.924142, atol=1e-5)
    np.testing.assert_allclose(organ[image == 50], 0.075858, atol=1e-5)
    assert not organ[0].any()
    assert not organ[:, :, 0].any()
    np.testing.assert_array_equal(found.labels == 7, organ > 0.5)


def test_probabilities_are_the_mean_of_models_and_of_regions_each():
    class Region(nn.Module):
        def __init__(self, probability: float) -> None:
            super().__init__()
            self.logit = torch.logit(torch.tensor(probability))

        def forward(self, image: Tensor) -> list[Tensor]:
            return [torch.where(image > THRESHOLD, self.logit, -9.0).float()]

    plan = plan_of(LabelSet({"organ": 7}, {"organ": (7,)}, (7,)))
    models = [model_of(ONE, plan=plan, network=Region(p)) for p in (0.9, 0.3)]
    image = picture((8, 9, 10))
    found = ArrayPredictor(models).segment(image, ONE, probabilities=True)
    np.testing.assert_allclose(found.probabilities[0][image > THRESHOLD], 0.6, atol=1e-6)
    assert found.probabilities[0, 0].max() == 0  # beyond the box


def test_an_image_unlike_the_training_data_is_refused_or_remarked():
    grids = TrainingGrids(ONE, ONE, (8, 8, 8), (30, 30, 30))
    predictor = ArrayPredictor([model_of(ONE, plan=replace(plan_of(), grids=grids))])
    (remark,) = predictor.segment(picture((8, 9, 10)), (2.5, 1.0, 1.0)).remarks
    assert "2.5 times larger" in remark.what
    with pytest.raises(DataError, match="the array: voxels of 8 x 8 x 8 mm"):
        predictor.segment(picture((8, 9, 10)), (8.0, 8.0, 8.0))
    with pytest.raises(UsageError, match=r"the shape \(9, 10\), the model expects \(1, Z, Y, X\) or \(Z, Y, X\)"):
        predictor.segment(picture((8, 9, 10))[4], (1.0, 1.0))


def test_models_of_different_labels_are_refused():
    other = model_of((1.0, 1.0), plan=plan_of(LabelSet({"organ": 8})))
    with pytest.raises(StateError, match="cannot be combined"):
        ArrayPredictor([model_of(ONE), other])


class Counting(Bright):
    """Notes how many threads are in it at the same time, at most."""

    def __init__(self) -> None:
        super().__init__()
        self.inside, self.most, self.guard = 0, 0, threading.Lock()

    def forward(self, image: Tensor) -> list[Tensor]:
        with self.guard:
            self.inside += 1
            self.most = max(self.most, self.inside)
        result = super().forward(image)
        with self.guard:
            self.inside -= 1
        return result


def test_threads_get_their_own_labels_and_compute_one_at_a_time():
    network = Counting()
    predictor = ArrayPredictor([model_of(ONE, network=network)])
    images = [picture((12, 13, 14), seed) for seed in range(8)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda image: predictor.segment(image, ONE).labels, images))
    for image, labels in zip(images, found, strict=True):
        np.testing.assert_array_equal(labels, np.where(image > THRESHOLD, 7, 0))
    assert network.most == 1


def test_nothing_is_kept_between_calls_or_after_a_failure():
    predictor = ArrayPredictor([model_of(ONE)])
    predictor.segment(picture((8, 9, 10)), ONE)
    assert predictor._preparations._made == {}
    with pytest.raises(DataError):
        predictor.segment(picture((8, 9, 10)), (1e-4, 1e-4, 1e-4))
    assert predictor._preparations._made == {}


def test_what_was_released_says_so():
    predictor = ArrayPredictor([model_of(ONE)])
    predictor.release()
    predictor.release()
    assert predictor.models == ()
    with pytest.raises(UsageError, match="was closed"):
        predictor.segment(picture((8, 9, 10)), ONE)
