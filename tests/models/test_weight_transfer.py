"""Tensors that go from one network into another: values worked out by hand."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from autoseg.models.weight_transfer import differing_axes, transfer


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


class Tiny(nn.Module):
    """1x1 convolutions from channels to two maps to heads, and a layer of its own."""

    def __init__(self, channels: int, heads: int, own: int = 3) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, 2, 1, bias=False)
        self.head = nn.Conv2d(2, heads, 1)
        self.own = nn.Linear(own, 1, bias=False)


AXES = {"channel_axes": {"first.weight": 1}, "head_axes": {"head.weight": 0, "head.bias": 0}}


def source(channels: Sequence[Sequence[float]], heads: Sequence[Sequence[float]], own: int = 3) -> dict[str, Tensor]:
    """A state_dict: per channel its two weights; per head its two weights and its bias."""
    return {
        "first.weight": torch.tensor(channels, dtype=torch.float32).T[..., None, None],
        "head.weight": torch.tensor(heads, dtype=torch.float32)[:, :2, None, None],
        "head.bias": torch.tensor(heads, dtype=torch.float32)[:, 2],
        "own.weight": torch.full((1, own), 7.0),
    }


def test_channels_and_heads_go_where_they_are_sent():
    """Three channels here: the second there, none, the mean of the first and the third. Heads: the third, none."""
    network = Tiny(channels=3, heads=2)
    built = network.head.weight[1].clone(), network.head.bias[1].clone()
    theirs = source([[1, 2], [3, 4], [9, -6]], [[1, 2, 3], [4, 5, 6], [7, 8, 9]])
    done = transfer(theirs, network, **AXES, channels=[(1,), (), (0, 2)], heads=[(2,), ()])
    assert network.first.weight[:, :, 0, 0].tolist() == [[3, 0, 5], [4, 0, -2]]
    assert network.head.weight[0, :, 0, 0].tolist() == [7, 8]
    assert network.head.bias[0] == 9
    assert torch.equal(network.head.weight[1], built[0])
    assert torch.equal(network.head.bias[1], built[1])
    assert network.own.weight.tolist() == [[7, 7, 7]]
    assert (done.kept, done.new, done.misfits) == ({"own.weight": 3}, {}, {})
    assert done.adapted == {"first.weight": 6, "head.weight": 4, "head.bias": 2}
    assert done.in_source == 6 + 6 + 3 + 3


def test_channels_and_heads_that_stay_in_place_are_kept():
    network = Tiny(channels=1, heads=2)
    theirs = source([[1, 2]], [[1, 2, 3], [4, 5, 6]])
    done = transfer(theirs, network, **AXES, channels=[(0,)], heads=[(0,), (1,)])
    assert done.kept == {"first.weight": 2, "head.weight": 4, "head.bias": 2, "own.weight": 3}
    assert (done.adapted, done.new, done.share) == ({}, {}, 1)
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in network.state_dict().items())


def test_fewer_channels_are_no_longer_the_same_though_they_stay_in_place():
    done = transfer(source([[1, 2], [3, 4]], [[1, 2, 3]]), Tiny(1, 1), **AXES, channels=[(0,)], heads=[(0,)])
    assert done.adapted == {"first.weight": 2}


def test_what_does_not_fit_stays_as_it_was_built():
    """The layer of its own is wider there; no head is known; the source has one layer more, and lacks the first."""
    network = Tiny(channels=1, heads=2)
    built = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    theirs = source([[1, 2]], [[1, 2, 3]], own=5) | {"further.weight": torch.zeros(90)}
    del theirs["first.weight"]
    done = transfer(theirs, network, **AXES, channels=[(0,)], heads=[(), ()])
    assert (done.kept, done.adapted) == ({}, {})
    assert done.new == {"first.weight": 2, "head.weight": 4, "head.bias": 2, "own.weight": 3}
    assert done.misfits == {"own.weight": ((1, 5), (1, 3))}
    assert all(torch.equal(tensor, built[name]) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize("shape", [(2, 1, 3, 3), (3, 1, 1, 1), (2, 1, 1)])
def test_along_the_channels_all_but_their_number_must_fit(shape):
    theirs = source([[1, 2]], [[1, 2, 3]]) | {"first.weight": torch.zeros(shape)}
    done = transfer(theirs, Tiny(2, 1), **AXES, channels=[(0,), ()], heads=[(0,)])
    assert done.misfits == {"first.weight": (shape, (2, 2, 1, 1))}


def test_an_origin_that_the_source_lacks_is_a_misfit():
    done = transfer(source([[1, 2]], [[1, 2, 3]]), Tiny(1, 1), **AXES, channels=[(1,)], heads=[(0,)])
    assert done.misfits == {"first.weight": ((2, 1, 1, 1), (2, 1, 1, 1))}


def test_the_share_is_of_the_smaller_network():
    """Of 2 + 2 + 1 + 3 parameters here, the heads' three are new; the source has 100 more."""
    theirs = source([[1, 2]], [[1, 2, 3]]) | {"further": torch.zeros(100)}
    assert transfer(theirs, Tiny(1, 1), **AXES, channels=[(0,)], heads=[()]).share == 5 / 8
    wide = Tiny(1, 1)
    wide.further = nn.Linear(100, 1)
    assert transfer(source([[1, 2]], [[1, 2, 3]]), wide, **AXES, channels=[(0,)], heads=[()]).share == 5 / 8


def test_axes_are_seen_where_shapes_differ():
    assert differing_axes(Tiny(2, 2), Tiny(3, 2)) == AXES["channel_axes"]
    assert differing_axes(Tiny(2, 2), Tiny(2, 4)) == AXES["head_axes"]
    assert differing_axes(Tiny(2, 2), Tiny(2, 2)) == {}
