"""Attention gates: their formula, what opens and shuts them, and the plain U-Net behind open ones."""

import numpy as np
import pytest
import torch
from torch import nn

from autoseg.nn.networks.attention_unet import AttentionGate, AttentionUNet
from autoseg.nn.networks.unet import UNet


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def fix(layer, weight, bias):
    nn.init.constant_(layer.weight, weight)
    nn.init.constant_(layer.bias, bias)


@pytest.mark.parametrize(("skip_shape", "below_shape", "stride"), [((9, 6), (5, 3), (2, 2)), ((3, 8), (3, 4), (1, 2))])
def test_an_undecided_gate_halves_the_skip(skip_shape, below_shape, stride):
    gate = AttentionGate(2, 4, 6, stride)
    fix(gate.psi, 0, 0)
    skip = torch.randn(2, 4, *skip_shape)
    assert torch.allclose(gate(skip, torch.randn(2, 6, *below_shape)), 0.5 * skip)


def test_gate_against_its_formula():
    gate = AttentionGate(2, 4, 3, (1, 1))
    skip, below = torch.randn(1, 4, 5, 6), torch.randn(1, 3, 5, 6)
    w = {name: p.detach().double().numpy() for name, p in gate.named_parameters()}

    def project(name, x):
        return np.einsum("oc,cyx->oyx", w[name][:, :, 0, 0], x)

    mixed = project("from_skip.1.weight", skip[0].double().numpy()) + project("from_below.weight", below[0].numpy())
    scores = project("psi.weight", np.maximum(mixed + w["from_below.bias"][:, None, None], 0)) + w["psi.bias"][0]
    expected = skip[0].numpy() / (1 + np.exp(-scores))
    assert gate(skip, below)[0].detach().numpy() == pytest.approx(expected, abs=1e-5)


def test_what_comes_from_below_opens_the_gate_where_it_is():
    gate = AttentionGate(2, 2, 1, (2, 2))
    nn.init.zeros_(gate.from_skip[1].weight)
    fix(gate.from_below, 1, 0)
    fix(gate.psi, 100, -50)
    below = torch.zeros(1, 1, 4, 4)
    below[..., :, 2:] = 1
    attention = gate.attention(torch.randn(1, 2, 8, 8), below)[0, 0]
    # shut on the left, open on the right, interpolated over the two columns between
    expected = torch.tensor([0, 0, 0, 0.25, 0.75, 1, 1, 1]).expand(8, 8)
    assert torch.allclose(attention, expected, atol=1e-6)


def test_attention_is_float32_and_the_skip_keeps_its_dtype():
    gate = AttentionGate(3, 4, 4, (2, 2, 2))
    skip, below = torch.randn(1, 4, 4, 4, 4).bfloat16(), torch.randn(1, 4, 2, 2, 2).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert gate.attention(skip, below).dtype == torch.float32
        assert gate(skip, below).dtype == torch.bfloat16


PLAN = {
    "in_channels": 1,
    "out_channels": 2,
    "features": (4, 6, 8),
    "strides": [(1, 1), (1, 2), (2, 2)],
    "kernel_sizes": [(3, 3)] * 3,
    "blocks": (2, 1, 2),
    "decoder_blocks": (1, 2),
}


def test_behind_open_gates_lies_the_plain_unet():
    gated, plain = AttentionUNet(**PLAN), UNet(**PLAN)
    loaded = gated.load_state_dict(plain.state_dict(), strict=False)
    assert not loaded.unexpected_keys
    assert {key.split(".")[0] for key in loaded.missing_keys} == {"gates"}
    image = torch.randn(1, 1, 9, 14)
    assert not torch.allclose(gated(image)[0], plain(image)[0])
    for gate in gated.gates:
        fix(gate.psi, 0, 30)  # sigmoid(30) is 1 in float32
    assert all(torch.equal(a, b) for a, b in zip(gated(image), plain(image), strict=True))


def test_every_skip_has_a_gate():
    network = AttentionUNet(**PLAN)
    extra = sum(p.numel() for p in network.parameters()) - sum(p.numel() for p in UNet(**PLAN).parameters())
    # skip's projection, below's projection and bias, psi and bias: 4 and 6 features over 6 and 8 below
    assert extra == (4 * 2 + 6 * 2 + 2 + 2 + 1) + (6 * 3 + 8 * 3 + 3 + 3 + 1)
