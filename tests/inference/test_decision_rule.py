"""Rules applied: offsets in the streamed logits, on the same grid and on another, alone and in an ensemble."""

from dataclasses import replace

import numpy as np
import pytest

from autoseg.datasets.dataset import Case, load_case
from autoseg.imaging.components import as_slices, component_sizes
from autoseg.imaging.dense_crf import DenseCrf, refine
from autoseg.inference.member import EnsembleMember, decide
from autoseg.inference.predictor import ArrayPredictor
from autoseg.models.decision import ComponentRule, Rule
from bright import Bright, model_of, picture, plan_of
from files import nifti

FEW = {"organ": -4.4}  # so few voxels that they form several components
LOWER = Rule({"organ": 1.0})  # the organ from 80 on instead of 100: logits are (value - 100) / 20


class Nothing:
    def take(self, rows, logits) -> None:
        pass


def loaded(tmp_path, spacing=(1.0, 1.0, 1.0)):
    rng = np.random.default_rng(0)
    image = np.where(picture((9, 10, 11)) > 0, rng.integers(1, 200, (9, 10, 11)), 0).astype(np.int16)
    path = nifti(tmp_path / "image.nii", image, np.diag([*spacing[::-1], 1.0]))
    plan = plan_of()
    case = Case("image", "image", (str(path),), None)
    return load_case(case, None, channels=plan.channels, orientation=plan.orientation, axis_order=plan.axis_order)


@pytest.mark.parametrize("consumers", [(), (Nothing(),)], ids=["blocks", "rows"])
def test_an_offset_is_another_threshold(tmp_path, consumers):
    case = loaded(tmp_path)
    found = decide([EnsembleMember(model_of((1.0,) * 3))], case, consumers, LOWER)
    np.testing.assert_array_equal(found, case.image[0] > 80)
    plain = decide([EnsembleMember(model_of((1.0,) * 3))], case, consumers)
    np.testing.assert_array_equal(plain, case.image[0] > 100)


@pytest.mark.parametrize("heads", ["softmax", "regions"])
def test_on_another_grid_an_offset_is_the_same_as_in_the_network(tmp_path, heads):
    """Interpolation preserves constants: adding 1 to the logits is a network that adds 1, up to rounding."""

    class Lifted(Bright):
        def forward(self, image):
            logits, *others = super().forward(image)
            logits[:, 1:] += 1.0
            return [logits[:, 1:] if heads == "regions" else logits, *others]

    class Plain(Bright):
        def forward(self, image):
            logits, *others = super().forward(image)
            return [logits[:, 1:] if heads == "regions" else logits, *others]

    plan = plan_of()
    if heads == "regions":
        plan = plan_of(labels=plan.labels.as_regions())
    case = loaded(tmp_path)
    for consumers in ((), (Nothing(),)):
        by_rule = decide(
            [EnsembleMember(model_of((1.6, 1.3, 0.9), plan=plan, network=Plain()))], case, consumers, LOWER
        )
        by_network = decide([EnsembleMember(model_of((1.6, 1.3, 0.9), plan=plan, network=Lifted()))], case, consumers)
        assert (by_rule != by_network).mean() < 0.002
        assert 0.1 < by_rule.mean() < 0.9


def test_models_together_decide_by_their_mean_probability(tmp_path):
    case = loaded(tmp_path)
    members = [EnsembleMember(model_of((1.0,) * 3), part_of=number) for number in range(2)]
    np.testing.assert_array_equal(decide(members, case, (), LOWER), case.image[0] > 80)
    np.testing.assert_array_equal(decide(members, case), case.image[0] > 100)


def test_components_are_corrected_on_the_whole_map(tmp_path):
    case = loaded(tmp_path)
    plain = decide([EnsembleMember(model_of((1.0,) * 3))], case, (), Rule(FEW))
    sizes = component_sizes(plain > 0)
    assert len(sizes) > 1
    rule = Rule(FEW, {"organ": ComponentRule(keep_largest=True)})
    found = decide([EnsembleMember(model_of((1.0,) * 3))], case, (), rule)
    assert component_sizes(found > 0).tolist() == [sizes[0]]


def test_volumes_are_those_of_the_image(tmp_path):
    """Voxels of 2 mm³: what is below 5 mm³ has one voxel or two."""
    case = loaded(tmp_path, (2.0, 1.0, 1.0))
    model = model_of((2.0, 1.0, 1.0))
    sizes = component_sizes(decide([EnsembleMember(model)], case, (), Rule(FEW)) > 0)
    rule = Rule(FEW, {"organ": ComponentRule(min_volume=5.0)})
    found = component_sizes(decide([EnsembleMember(model)], case, (), rule) > 0)
    assert found.tolist() == [size for size in sizes.tolist() if size >= 3]
    assert len(found) < len(sizes)


def test_arrays_are_decided_alike(tmp_path):
    case = loaded(tmp_path)
    model = model_of((1.0,) * 3)
    found = ArrayPredictor([model], rule=LOWER).segment(case.image, (1.0, 1.0, 1.0))
    np.testing.assert_array_equal(found.labels == 7, case.image[0] > 80)
    with_shares = ArrayPredictor([model], rule=LOWER).segment(case.image, (1.0, 1.0, 1.0), probabilities=True)
    np.testing.assert_array_equal(with_shares.labels, found.labels)
    assert replace(LOWER) == LOWER


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (1.6, 1.3, 0.9)])
@pytest.mark.parametrize("members", [1, 2])
def test_boundaries_are_refined_by_the_scores_that_decided(tmp_path, spacing, members):
    """An offset counts, as in the scores; the rest of the image, beyond the cropped box, stays background."""
    case = loaded(tmp_path)
    ensemble = [EnsembleMember(model_of(spacing)) for _ in range(members)]
    crf = DenseCrf(1.0, 2.0, 1.0)
    offset = Rule({"organ": 1.0})
    seen = []

    class Keep:
        def take(self, rows, logits):
            seen.append(logits[0].clone())

    plain = decide(ensemble, case, [Keep()], offset)
    logits = np.concatenate([one.numpy() for one in seen], axis=1) + np.array([0.0, 1.0]).reshape(-1, 1, 1, 1)
    placement = ensemble[0].prepare(case).placement
    expected = plain.copy()
    refine(expected[as_slices(placement.box)], logits, placement.crop(case.image), case.spacing, crf)
    found = decide(ensemble, case, [], replace(offset, crf=crf))
    assert (expected != plain).mean() > 0.01
    assert (found != expected).mean() < 0.003  # scores are kept in half precision, ties apart


def test_a_rule_without_a_crf_has_the_digest_it_had():
    """--resume keeps what was predicted by decisions that were made before there were CRFs."""
    islands = Rule({"organ": 1.0}, {"organ": ComponentRule(keep_largest=True)})
    assert islands.digest("models") == "b431fc0ca67644187d4cc3fccf98d6c78305506424d9a8c320d44f095f24050e"
    refined = replace(islands, crf=DenseCrf(1.0, 1.0, 1.0))
    assert refined.digest("models") != islands.digest("models")
    assert refined.lines()[1] == "boundaries refined by a CRF of 1 mm, smoothness 1, appearance 1 at contrast 1"
    assert not Rule(crf=DenseCrf(1.0, 1.0, 1.0)).is_plain
