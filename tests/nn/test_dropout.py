"""Dropout: whole feature maps left out after every stage, in training alone, and nothing at all at 0."""

import pytest
import torch
from torch import nn

from autoseg.nn.blocks import Stage, set_checkpointing, set_dropout
from autoseg.nn.networks import NETWORKS
from small_networks import small_network

every_network = pytest.mark.parametrize("name", NETWORKS)
both_dims = pytest.mark.parametrize("dims", [2, 3])


def small(name, dims):
    torch.manual_seed(0)
    return small_network(name, dims, (8, 12, 16), depth=1, out_channels=3)


def image_of(dims):
    return torch.randn(2, 1, *((16, 12) if dims == 2 else (8, 8, 12)), generator=torch.Generator().manual_seed(1))


def seeded(network, image, seed=0):
    torch.manual_seed(seed)
    return network(image)


def equal(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@every_network
@both_dims
def test_dropout_changes_what_is_trained_and_not_what_is_evaluated(name, dims):
    network, image = small(name, dims), image_of(dims)
    with torch.no_grad():
        without = network(image)
        set_dropout(network, 0.5)
        dropped = network(image)
        assert not any(torch.allclose(a, b, atol=1e-3) for a, b in zip(without, dropped, strict=True))
        assert equal(network.eval()(image), without)
        assert not equal(network.train()(image), without)


@every_network
def test_draws_follow_torchs_seed(name):
    network, image = small(name, 2), image_of(2)
    set_dropout(network, 0.5)
    with torch.no_grad():
        assert equal(seeded(network, image, 3), seeded(network, image, 3))
        assert not equal(seeded(network, image, 3), seeded(network, image, 4))


@every_network
def test_every_stage_leaves_out_whole_maps(name):
    network = small(name, 2)
    set_dropout(network, 0.5)
    seen = []
    stages = [module for module in network.modules() if isinstance(module, Stage)]
    for stage in stages:
        stage.register_forward_hook(lambda _, __, result: seen.append((result == 0).flatten(2).all(2)))
    with torch.no_grad():
        seeded(network, image_of(2))
    assert len(seen) == len(stages)
    for left_out in seen:  # (2, maps)
        assert left_out.any()
        assert not left_out.all()


@every_network
def test_stages_that_are_run_twice_leave_out_the_same_maps(name):
    network, image = small(name, 2), image_of(2)
    set_dropout(network, 0.3)
    found = []
    for checkpointing in (False, True):
        set_checkpointing(network, checkpointing)
        network.zero_grad()
        sum(logits.square().mean() for logits in seeded(network, image)).backward()
        found.append([p.grad for p in network.parameters()])
    assert equal(*found)
    assert sum(float(gradient.abs().sum()) for gradient in found[0]) > 0


@every_network
def test_at_zero_nothing_is_drawn_and_nothing_kept(name):
    image = image_of(2)

    def of(network):
        """Logits, the bytes kept for the backward pass, and whether random numbers were drawn."""
        kept = []
        state = torch.get_rng_state()
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.nbytes) or t, lambda t: t):
            logits = network(image)
        return logits, sum(kept), torch.equal(torch.get_rng_state(), state)

    untouched, network = small(name, 2), small(name, 2)
    set_dropout(network, 0.5)
    logits, without, _ = of(untouched)
    assert not equal(of(network)[0], logits)
    assert not of(network)[2]
    set_dropout(network, 0.0)
    assert list(network.state_dict()) == list(untouched.state_dict())
    same, kept, undrawn = of(network)
    assert equal(same, logits)
    assert kept == without
    assert undrawn


@pytest.mark.filterwarnings("error")  # torch warns of a dropout for other dimensions
@pytest.mark.parametrize("shape", [(50, 40, 2, 3), (50, 40, 2, 1, 3)])
def test_a_map_is_left_out_or_scaled_up_as_a_whole(shape):
    torch.manual_seed(0)
    stage = Stage(nn.Identity())
    set_dropout(stage, 0.25)
    result = stage(torch.full(shape, 3.0)).flatten(2)
    assert (result == result[..., :1]).all()
    maps = result[..., 0]
    assert set(maps.unique().tolist()) == {0.0, 4.0}  # 3 / (1 - 0.25)
    left_out = (maps == 0).float()
    assert float(left_out.mean()) == pytest.approx(0.25, abs=0.04)  # 2000 maps: four standard deviations
    assert not (left_out == left_out[:1]).all()  # each sample for itself
    assert not (left_out == left_out[:, :1]).all()


@both_dims
def test_dropout_keeps_the_dtype(dims):
    stage = Stage(nn.Identity())
    set_dropout(stage, 0.5)
    assert stage(torch.ones(1, 4, *[2] * dims, dtype=torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.thorough
def test_a_network_with_dropout_can_be_exported():
    network, image = small("unet", 2).eval(), image_of(2)
    set_dropout(network, 0.5)
    exported = torch.export.export(network, (image,)).module()
    with torch.no_grad():
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(network(image), exported(image), strict=True))
