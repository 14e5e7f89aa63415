"""FCN: scores are added, each at its own stage."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from autoseg.nn.networks.fcn import FCN
from small_networks import laid_out


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def small(stages, **options):
    return FCN(**laid_out((4, 5, 6, 7, 8, 9)[:stages], depth=1), **options)


@pytest.mark.parametrize(
    ("stages", "options", "scored"),
    [
        (6, {}, [7, 8, 9]),  # stages 3, 4, 5: strides 8, 16, 32, as FCN-8s
        (3, {}, [4, 5, 6]),
        (2, {}, [4, 5]),
        (6, {"scored_stages": 1}, [9]),  # FCN-32s
        (4, {"scored_stages": 9}, [4, 5, 6, 7]),
    ],
)
def test_the_coarsest_stages_are_scored(stages, options, scored):
    assert [score.in_channels for score in small(stages, **options).scores] == scored


def test_without_coarse_scores_the_fine_one_remains():
    network = small(4)
    image = torch.randn(1, 1, 16, 24)
    for score in list(network.scores)[1:]:
        nn.init.zeros_(score.weight)
    fine = network.scores[0](network.encoder[1](network.encoder[0](image)))
    expected = F.interpolate(fine, size=(16, 24), mode="bilinear", align_corners=False)
    assert torch.allclose(network(image)[0], expected, atol=1e-6)


@pytest.mark.parametrize("shape", [(16, 24), (21, 30)])
def test_the_logits_are_the_sum_of_what_each_score_gives_alone(shape):
    network = small(5)
    image = torch.randn(1, 1, *shape)
    weights = [score.weight.detach().clone() for score in network.scores]
    alone = []
    for kept in range(len(weights)):
        for i, score in enumerate(network.scores):
            score.weight.data = weights[i] if i == kept else torch.zeros_like(weights[i])
        alone.append(network(image)[0])
    for score, weight in zip(network.scores, weights, strict=True):
        score.weight.data = weight
    assert all(part.abs().mean() > 0.01 for part in alone)
    assert torch.allclose(network(image)[0], sum(alone), atol=1e-5)
