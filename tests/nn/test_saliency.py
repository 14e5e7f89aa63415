"""Where a network looked: closed forms of networks that can be worked out by hand, and what every network must keep."""

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from autoseg.errors import UsageError
from autoseg.nn.attention import MultiHeadAttention, TransformerBlock
from autoseg.nn.blocks import InstanceNorm, set_checkpointing
from autoseg.nn.networks import NETWORKS
from autoseg.nn.networks.segformer import ReducedAttention
from autoseg.nn.networks.swin_unet import WindowAttention
from autoseg.nn.networks.transunet import GlobalAttention
from autoseg.nn.saliency import Saliency, attention_of, stages_of
from small_networks import small_network
from small_transformers import enlarge

SHAPES = {2: (16, 24), 3: (8, 16, 12)}
DAILY = [
    name if name in ("unet", "attention_unet", "transunet") else pytest.param(name, marks=pytest.mark.thorough)
    for name in NETWORKS
]
METHODS = ("hires_cam", "grad_cam")


class Linear(nn.Module):
    """Logits are a weighted sum of the image's channels, through one layer of 1x1 convolutions."""

    def __init__(self, layer: Tensor, head: Tensor, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.encoder = nn.ModuleList([nn.Conv2d(layer.shape[1], layer.shape[0], 1, bias=False)])
        self.norm = nn.Identity() if norm is None else norm
        self.head = nn.Conv2d(head.shape[1], head.shape[0], 1, bias=False)
        with torch.no_grad():
            self.encoder[0].weight.copy_(layer[..., None, None])
            self.head.weight.copy_(head[..., None, None])

    def forward(self, image: Tensor) -> list[Tensor]:
        return [self.head(self.norm(self.encoder[0](image)))]


def places(shape, *where, value=1.0) -> Tensor:
    """A score (1, 1, *shape) that counts the voxels `where`."""
    score = torch.zeros((1, 1, *shape))
    for place in where:
        score[(0, 0, *place)] = value
    return score


def small(name, dims, seed=0, **changes):
    torch.manual_seed(seed)
    return small_network(name, dims, **changes).eval()


def seen_by(name, dims):
    """A network with weights that prefer something, and an image."""
    network = enlarge(small(name, dims)) if attention_of(small(name, dims)) else small(name, dims)
    with torch.no_grad():
        for module in network.modules():  # residual blocks begin as their skip
            if isinstance(module, InstanceNorm):
                module.weight.uniform_(0.5, 1.5)
    return network, torch.randn((1, 1, *SHAPES[dims]), generator=torch.Generator().manual_seed(3))


# ---- closed forms


@pytest.mark.parametrize("method", METHODS)
def test_a_linear_network_in_closed_form(method):
    """y = sum over M of h W x. Grad-CAM: ReLU of |M| / N * sum_k h_k (W x)_k everywhere; HiResCAM: all of it, in M."""
    layer, head = torch.tensor([[1.0, -2.0], [0.5, 3.0], [-1.0, 1.0]]), torch.tensor([[9.0, 9, 9], [2.0, -1.0, 0.5]])
    image = torch.randn((1, 2, 4, 5), generator=torch.Generator().manual_seed(0))
    score = places((4, 5), (0, 1), (3, 4), (2, 2))
    found = Saliency(Linear(layer, head), 1, method=method)(image, score)
    logit = torch.einsum("k,kc,bcyx->byx", head[1], layer, image)
    weight = score[:, 0] if method == "hires_cam" else 3 / 20
    torch.testing.assert_close(found, (weight * logit).relu()[:, None])


@pytest.mark.parametrize("method", METHODS)
def test_a_score_counts_voxels_by_their_weights(method):
    network = Linear(torch.eye(2), torch.tensor([[1.0, 1.0]]))
    image = torch.rand((1, 2, 4, 5))
    one = Saliency(network, 0, method=method)(image, places((4, 5), (1, 1)))
    half = Saliency(network, 0, method=method)(image, places((4, 5), (1, 1), value=0.5))
    torch.testing.assert_close(half, one / 2)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("stage", ["bottleneck", "decoder", "0"])
def test_a_head_that_reads_one_channel_lights_up_there_alone(method, stage):
    """The channel is 0 but in one corner; another channel, which the head does not read, is bright elsewhere."""
    image = torch.zeros((1, 2, 8, 8))
    image[0, 0, :3, :3] = 2.0
    image[0, 1, 4:, 4:] = 7.0
    network = Linear(torch.eye(2), torch.tensor([[0.0, 0.0], [1.0, 0.0]]))
    found = Saliency(network, 1, stage, method=method)(image, torch.ones((1, 1, 8, 8)))[0, 0]
    assert found[:3, :3].min() > 0
    assert found.sum() == found[:3, :3].sum()


def test_a_mean_of_gradients_is_lost_in_an_instance_normalisation():
    """It takes away what is added to a whole map: Grad-CAM of a layer before it is 0, HiResCAM is not."""
    torch.manual_seed(0)
    network = Linear(torch.eye(2), torch.tensor([[1.0, -1.0]]), InstanceNorm(2))
    image, score = torch.rand((1, 2, 8, 8)), places((8, 8), (1, 1), (1, 2))
    plain = Saliency(network, 0, method="grad_cam")(image, score)
    other = Saliency(network, 0, method="hires_cam")(image, score)
    assert plain.max() < 1e-5 < 1e-2 < other.max()


def test_samples_of_a_batch_are_explained_one_by_one():
    network, image = small("unet", 2), torch.randn((3, 1, *SHAPES[2]))
    score = (torch.rand((3, 1, *SHAPES[2])) > 0.7).float()
    saliency = Saliency(network, 1, method="grad_cam")
    alone = torch.cat([saliency(image[i : i + 1], score[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(saliency(image, score), alone, rtol=1e-4, atol=1e-6)


# ---- every network


@pytest.mark.parametrize("dims", [2, pytest.param(3, marks=pytest.mark.thorough)])
@pytest.mark.parametrize("name", DAILY)
def test_every_network_is_explained(name, dims):
    network, image = seen_by(name, dims)
    with torch.no_grad():
        logits = network(image)[0][0, 1]
    score = places(SHAPES[dims], np.unravel_index(int(logits.argmax()), SHAPES[dims]))
    before = [parameter.requires_grad for parameter in network.parameters()]
    stages = stages_of(network)
    assert stages[:2] == ("bottleneck", "decoder")
    assert {"0", "1"} <= set(stages) or name == "segformer"
    for stage in stages:
        saliency = Saliency(network, 1, stage)
        with torch.inference_mode():  # as tiles are computed
            found = saliency(image, score)
        assert found.shape == (1, len(saliency.names), *SHAPES[dims])
        assert torch.isfinite(found).all()
        assert found.min() >= 0
        assert found[:, 0].max() > 0
    assert [parameter.requires_grad for parameter in network.parameters()] == before
    assert all(parameter.grad is None for parameter in network.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
    gated, transformed = name == "attention_unet", name in ("segformer", "swin_unet", "transunet")
    assert any(one.startswith("gate") for one in attention_of(network)) == gated
    assert any(one.startswith("attention") for one in attention_of(network)) == transformed


@pytest.mark.parametrize("name", DAILY)
def test_other_weights_look_elsewhere(name):
    """Adebayo et al. 2018: a map that is the same for random weights would show the image, not the network."""
    network, image = seen_by(name, 2)
    other, _ = seen_by(name, 2)
    torch.manual_seed(11)
    for module in other.modules():
        if module is not other and hasattr(module, "reset_parameters"):
            module.reset_parameters()
    score = torch.ones((1, 1, *SHAPES[2]))
    one, two = (Saliency(n, 1, method="hires_cam")(image, score)[0, 0].flatten() for n in (network, other))
    assert one.max() > 0
    assert not torch.corrcoef(torch.stack([one, two]))[0, 1] > 0.9  # not a number where all is 0


def test_logits_are_what_they_are_without_being_explained():
    """The layer is cut out of the graph, and the score is that of the very logits of a prediction."""
    network, image = small("attention_unet", 2), torch.randn((1, 1, *SHAPES[2]))
    with torch.no_grad():
        logits = network(image)[0]
    seen = []
    hook = network.register_forward_hook(lambda module, given, result: seen.append(result[0].detach()))
    Saliency(network, 1)(image, torch.ones((1, 1, *SHAPES[2])))
    hook.remove()
    torch.testing.assert_close(seen[0], logits)


@pytest.mark.thorough
def test_recomputed_stages_are_explained_alike():
    """Activation checkpointing runs blocks a second time in the backward pass."""
    network, image = seen_by("swin_unet", 2)
    score = torch.ones((1, 1, *SHAPES[2]))
    plain = Saliency(network, 1, "1")(image, score)
    set_checkpointing(network, True)
    torch.testing.assert_close(Saliency(network, 1, "1")(image, score), plain)


@pytest.mark.parametrize("name", ["unet", "swin_unet", "segformer"])
def test_half_precision_explains_nearly_the_same(name):
    network, image = seen_by(name, 2)
    score = torch.ones((1, 1, *SHAPES[2]))
    full, half = (Saliency(network, 1, "decoder", dtype=dtype)(image, score)[0] for dtype in ("float32", "bfloat16"))
    assert full.dtype == half.dtype == torch.float32
    for one, other in zip(full, half, strict=True):
        assert torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1] > 0.98
    assert Saliency(network, 1, dtype="float16").dtype == "float32"


def test_nothing_is_computed_where_nothing_counts():
    network, image = small("unet", 2), torch.randn((1, 1, *SHAPES[2]))
    network.forward = None  # would fail
    found = Saliency(network, 1)(image, torch.zeros((1, 1, *SHAPES[2])))
    assert found.shape == (1, 1, *SHAPES[2])
    assert not found.any()


def test_a_stage_that_is_not_there_is_refused():
    with pytest.raises(UsageError, match=r"(?s)UNet has no stage '7'.*bottleneck, decoder, 0, 1, 2"):
        Saliency(small("unet", 2), 1, "7")
    with pytest.raises(UsageError, match="Identity has no stage 'bottleneck'"):
        Saliency(nn.Identity(), 1)


# ---- attention


def test_gates_are_shown_as_they_are():
    network, image = seen_by("attention_unet", 2)
    kept = []
    for gate in network.gates:
        own = gate.attention
        gate.attention = lambda skip, below, own=own: kept.append(own(skip, below).detach()) or kept[-1]
    with torch.no_grad():
        network(image)
    by_size = sorted(kept, key=lambda one: -one.numel())
    found = Saliency(network, 1)(image, torch.zeros((1, 1, *SHAPES[2])))[0]
    torch.testing.assert_close(found[1], by_size[0][0, 0])
    coarse = nn.functional.interpolate(by_size[1], size=SHAPES[2], mode="bilinear", align_corners=False)
    torch.testing.assert_close(found[2], coarse[0, 0])
    assert not found[0].any()  # no voxel counts
    assert found.shape[0] == 1 + len(by_size)


def tokens_of(shape, channels=8):
    return torch.randn((2, *shape, channels), generator=torch.Generator().manual_seed(5))


ATTENTIONS = {
    "all": (lambda: GlobalAttention(8, 2), (5, 6)),
    "windows": (lambda: WindowAttention(8, 2, (4, 4), shifted=False), (7, 9)),
    "shifted windows": (lambda: WindowAttention(8, 2, (4, 4), shifted=True), (7, 9)),
    "shifted windows in 3-D": (lambda: WindowAttention(8, 2, (2, 2, 2), shifted=True), (3, 4, 5)),
    "few keys": (lambda: ReducedAttention(2, 8, 2, keys=9), (7, 8)),
}


@pytest.mark.parametrize("kind", ATTENTIONS)
def test_what_tokens_look_at_is_the_gradient_of_the_values(kind):
    """Heads whose values are one number, the same for all: the result is then a mean by attention, over the heads.

    Its gradient with respect to the number at each token is the attention it receives.
    """
    build, shape = ATTENTIONS[kind]
    torch.manual_seed(2)
    attention = enlarge(build()).eval()
    tokens = tokens_of(shape)
    weights = torch.rand((2, *shape), generator=torch.Generator().manual_seed(6))
    found = attention.received(weights, tokens)
    assert found.shape == weights.shape
    torch.testing.assert_close(found.sum(), weights.sum())

    inner = attention.attention
    here = torch.ones((2, *shape), requires_grad=True)
    value = copy.deepcopy(inner)

    def of_values(own: Tensor, context: Tensor, bias: Tensor | None = None) -> Tensor:
        """The same attention; of the context, only what carries `here` counts."""
        query, key = value._split(value.query(own)), value._split(value.key(context))
        numbers = carried(context).expand(-1, value.heads, -1, -1)
        seen = nn.functional.scaled_dot_product_attention(query, key, numbers, attn_mask=bias)
        return seen.mean(dim=1).expand(-1, -1, 8)

    def carried(context: Tensor) -> Tensor:
        if kind == "few keys":
            return attention.averaged(here[..., None]).flatten(1, -2)[:, None]
        if kind == "all":
            return here.flatten(1)[:, None, :, None]
        from autoseg.nn.networks.swin_unet import Cut

        cut = Cut.of(shape, attention.window, shifted=attention.shifted)
        return cut.apart(here[..., None])[:, None]

    inner.forward = of_values
    (attention(tokens)[..., 0] * weights).sum().backward()
    torch.testing.assert_close(found, here.grad, rtol=1e-4, atol=1e-5)


def test_queries_in_parts_look_at_the_same(monkeypatch):
    torch.manual_seed(0)
    attention = MultiHeadAttention(8, 2)
    tokens, weights = torch.randn((2, 11, 8)), torch.rand((2, 11))
    whole = attention.received(weights, tokens, tokens)
    monkeypatch.setattr("autoseg.nn.attention.MOST_SCORES", 2 * 2 * 11 * 3)
    torch.testing.assert_close(attention.received(weights, tokens, tokens), whole)


def test_rollout_of_two_blocks_by_hand():
    """Row vector w times (A2 + I) / 2 times (A1 + I) / 2, with matrices that were multiplied out."""
    torch.manual_seed(1)
    network = enlarge(small("transunet", 2, features=(4, 8), options={"layers": 2}))
    image = torch.randn((1, 1, 8, 8))
    score = torch.rand((1, 1, 8, 8))
    blocks = [module for module in network.modules() if isinstance(module, TransformerBlock)]
    matrices = []

    def remember(module, given, result):
        tokens = given[0].flatten(1, -2)
        count = tokens.shape[1]
        one_by_one = [module.attention.received(torch.eye(count)[None, row], tokens, tokens)[0] for row in range(count)]
        matrices.append(torch.stack(one_by_one))

    hooks = [block.attention.register_forward_hook(remember) for block in blocks]
    with torch.no_grad():
        network(image)
    for hook in hooks:
        hook.remove()
    first, second = ((matrix + torch.eye(16)) / 2 for matrix in matrices)
    start = nn.functional.avg_pool2d(score, 2).flatten()
    expected = (start @ second @ first).reshape(1, 1, 4, 4).detach()
    expected = nn.functional.interpolate(expected, size=(8, 8), mode="bilinear", align_corners=False)
    saliency = Saliency(network, 1)
    found = saliency(image, score)[:, saliency.names.index("attention_transformer")]
    torch.testing.assert_close(found, expected[:, 0], rtol=1e-4, atol=1e-6)


def test_attention_stays_in_its_window():
    """A token of an unshifted window of 4 looks at that window alone."""
    torch.manual_seed(0)
    attention = WindowAttention(8, 2, (4, 4), shifted=False)
    weights = torch.zeros((1, 8, 8))
    weights[0, 1, 6] = 1
    found = attention.received(weights, tokens_of((8, 8))[:1])
    assert np.argwhere(found[0].detach().numpy() > 0).min(axis=0).tolist() == [0, 4]
    assert np.argwhere(found[0].detach().numpy() > 0).max(axis=0).tolist() == [3, 7]
