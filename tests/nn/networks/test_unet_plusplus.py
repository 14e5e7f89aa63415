"""U-Net++: its nodes and their inputs counted, and the plain U-Net it is with two stages."""

import itertools

import pytest
import torch

from autoseg.nn.networks.unet import UNet
from autoseg.nn.networks.unet_plusplus import UNetPlusPlus
from small_networks import laid_out


def plan(features, dims=2):
    return laid_out(features, dims, out_channels=3)


def test_nodes_of_four_stages():
    network = UNetPlusPlus(**plan((2, 3, 4, 5)))
    # row i has a node per column up to the diagonal; each sees those to its left and one from below, of equal width
    inputs = {name: node[0][0].in_channels for name, node in network.nodes.items()}
    assert inputs == {"0_1": 2 * 2, "0_2": 3 * 2, "0_3": 4 * 2, "1_1": 2 * 3, "1_2": 3 * 3, "2_1": 2 * 4}
    assert {name: (up.in_channels, up.out_channels) for name, up in network.up.items()} == {
        **dict.fromkeys(("0_1", "0_2", "0_3"), (3, 2)),
        **dict.fromkeys(("1_1", "1_2"), (4, 3)),
        "2_1": (5, 4),
    }


def test_parameter_count_of_six_stages():
    features, heads = (32, 64, 128, 256, 320, 320), 3
    with torch.device("meta"):
        network = UNetPlusPlus(**plan(features, dims=3))

    def convolution(cin, cout):
        return 27 * cin * cout + cout + 2 * cout

    expected = sum(convolution(a, b) + convolution(b, b) for a, b in itertools.pairwise((1, *features)))
    for row, (fine, coarse) in enumerate(itertools.pairwise(features)):
        for column in range(1, len(features) - row):
            expected += 8 * coarse * fine + fine
            expected += convolution((column + 1) * fine, fine) + convolution(fine, fine)
        expected += fine * heads + heads
    assert sum(p.numel() for p in network.parameters()) == expected == 45_970_351


def test_every_node_reaches_the_finest_logits():
    torch.manual_seed(0)
    network = UNetPlusPlus(**plan((2, 3, 4, 5)))
    network.deep_supervision = False
    seen = {}
    for name, node in network.nodes.items():
        node.register_forward_hook(
            lambda _m, _i, result, name=name: (result.retain_grad(), seen.update({name: result}))[1]
        )
    network(torch.randn(1, 1, 16, 16))[0].square().mean().backward()
    assert set(seen) == set(network.nodes)
    assert all(result.grad.abs().max() > 1e-8 for result in seen.values())


def test_a_node_sees_all_to_its_left_and_the_latest_from_below():
    torch.manual_seed(0)
    network = UNetPlusPlus(**plan((2, 3, 4, 5)))
    inputs, results = {}, {}
    for name, node in network.nodes.items():
        node.register_forward_pre_hook(lambda _m, given, name=name: inputs.update({name: given[0]}))
        node.register_forward_hook(lambda _m, _i, result, name=name: results.update({name: result}))
    for row, stage in enumerate(network.encoder):
        stage.register_forward_hook(lambda _m, _i, result, row=row: results.update({f"{row}_0": result}))
    network(torch.randn(1, 1, 9, 14))
    for name, given in inputs.items():
        row, column = map(int, name.split("_"))
        left = [results[f"{row}_{earlier}"] for earlier in range(column)]
        below = network.up[name](results[f"{row + 1}_{column - 1}"])[..., : given.shape[2], : given.shape[3]]
        assert torch.equal(given, torch.cat((*left, below), dim=1)), name


def test_deep_supervision_reads_the_last_node_of_every_row():
    torch.manual_seed(0)
    network = UNetPlusPlus(**plan((2, 3, 4, 5)))
    seen = {}
    for name, node in network.nodes.items():
        node.register_forward_hook(lambda _m, _i, result, name=name: seen.update({name: result}))
    logits = network(torch.randn(1, 1, 16, 16))
    for stage, name in enumerate(("0_3", "1_2", "2_1")):
        assert torch.equal(logits[stage], network.heads[stage](seen[name]))


@pytest.mark.parametrize("shape", [(16, 12), (9, 14)])
def test_two_stages_are_the_plain_unet(shape):
    torch.manual_seed(0)
    nested, plain = UNetPlusPlus(**plan((4, 6))), UNet(**plan((4, 6)))
    renamed = {
        key.replace("up.0_1.", "up.0.").replace("nodes.0_1.", "decoder.0."): v for key, v in nested.state_dict().items()
    }
    first = "decoder.0.0.0.weight"
    renamed[first] = renamed[first].roll(4, dims=1)  # the skip comes first here, second there
    plain.load_state_dict(renamed)
    image = torch.randn(2, 1, *shape)
    assert torch.allclose(nested(image)[0], plain(image)[0], atol=1e-5)
