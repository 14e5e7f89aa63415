"""What every network of the table promises, in 2-D and in 3-D: sizes, gradients, precision, independence, learning.

What one architecture alone promises is tested beside it: test_unet, test_residual_unet, test_deeplab and so on.
"""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from autoseg.nn.blocks import ConvBlock, InstanceNorm, ResidualBlock, Stage, set_checkpointing
from autoseg.nn.losses import DeepSupervision, dice_ce
from autoseg.nn.networks import NETWORKS, build_network
from small_networks import small_network

SINGLE_MAP = {"deeplab", "fcn", "segformer", "mask_transformer"}  # the architecture has no coarser logits to supervise
HEADS = 3

every_network = pytest.mark.parametrize("name", NETWORKS)
both_dims = pytest.mark.parametrize("dims", [2, 3])


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def small(name, dims, features=(4, 8, 8), **changes):
    return small_network(name, dims, features, **{"out_channels": HEADS} | changes)


def stage_shapes(shape, strides):
    """Edges of each stage: ceil(edge / product of the strides so far)."""
    products = itertools.accumulate(strides, lambda done, step: tuple(map(math.prod, zip(done, step, strict=True))))
    return [tuple(math.ceil(edge / p) for edge, p in zip(shape, product, strict=True)) for product in products]


def criterion():
    return DeepSupervision(dice_ce(ignore_index=None, class_weights=None, batch_dice=True))


def gradients(network, image, target):
    network.zero_grad()
    criterion()(network(image), target).backward()
    return {name: p.grad for name, p in network.named_parameters()}


def image_and_target(dims, in_channels=1):
    shape = (16, 12) if dims == 2 else (8, 8, 12)
    return torch.randn(2, in_channels, *shape), torch.randint(0, HEADS, (2, *shape))


# ---- shapes ----

HALVED_2D, HALVED_3D = [(1, 1), (2, 2), (2, 2)], [(1, 1, 1), (2, 2, 2), (2, 2, 2)]
THREE_WIDE_2D, THREE_WIDE_3D = [(3, 3)] * 3, [(3, 3, 3)] * 3
GEOMETRIES = {
    "divisible_2d": ((16, 24), HALVED_2D, THREE_WIDE_2D),
    "divisible_3d": ((8, 16, 12), HALVED_3D, THREE_WIDE_3D),
    "odd_2d": ((21, 30), HALVED_2D, THREE_WIDE_2D),
    "odd_3d": ((9, 14, 11), HALVED_3D, THREE_WIDE_3D),
    "tiny_2d": ((3, 2), HALVED_2D, THREE_WIDE_2D),  # edges below the strides' product
    "tiny_3d": ((4, 3, 2), HALVED_3D, THREE_WIDE_3D),
    "stride_four": ((21, 30), [(1, 1), (4, 2)], [(3, 3), (3, 3)]),
    "one_row": ((1, 30), [(1, 1), (1, 2), (1, 2)], [(1, 3), (1, 3), (3, 3)]),
    "one_slice": ((1, 21, 12), [(1, 1, 1), (1, 2, 2), (1, 2, 2)], [(1, 3, 3), (1, 3, 3), (3, 3, 3)]),
    "thick_slices": ((5, 21, 30), [(1, 1, 1), (1, 2, 2), (2, 2, 2), (1, 1, 2)], [(1, 3, 3)] * 2 + [(3, 3, 3)] * 2),
    "two_stages_2d": ((10, 7), [(1, 1), (2, 2)], [(3, 3)] * 2),
    "two_stages_3d": ((6, 10, 7), [(1, 1, 1), (2, 2, 2)], [(3, 3, 3)] * 2),
    "eight_stages": ((33, 130), [(1, 1)] + [(2, 2)] * 6 + [(1, 2)], [(3, 3)] * 8),
}


@pytest.mark.thorough
@every_network
def test_logits_of_full_resolution_and_of_the_encoders_stages(name, subtests):
    for geometry, (shape, strides, kernel_sizes) in GEOMETRIES.items():
        with subtests.test(geometry), torch.no_grad():
            torch.manual_seed(0)
            features = (4, 8, 8, 8, 8, 8, 8, 8)[: len(strides)]
            network = small(
                name, len(shape), features=features, strides=strides, kernel_sizes=kernel_sizes, in_channels=2,
                out_channels=5,
            )  # fmt: skip
            logits = network(torch.randn(1, 2, *shape))
            maps = 1 if name in SINGLE_MAP else len(strides) - 1
            assert [tuple(stage.shape) for stage in logits] == [(1, 5, *s) for s in stage_shapes(shape, strides)[:maps]]
            assert all(torch.isfinite(stage).all() for stage in logits)


@pytest.mark.thorough
@every_network
@both_dims
def test_without_deep_supervision_only_the_same_finest_logits(name, dims):
    network = small(name, dims)
    image, _ = image_and_target(dims)
    assert network.deep_supervision is True
    supervised = network(image)
    network.deep_supervision = False
    alone = network(image)
    assert len(alone) == 1
    assert torch.equal(alone[0], supervised[0])


def test_an_unknown_network_names_those_that_exist():
    with pytest.raises(KeyError, match=r"no network 'resnet'.*unet.*deeplab"):
        build_network(
            "resnet",
            in_channels=1,
            out_channels=2,
            features=[],
            strides=[],
            kernel_sizes=[],
            blocks=[],
            decoder_blocks=[],
        )


def test_options_reach_the_network():
    plan = {"features": (4, 8), "strides": [(1, 1), (2, 2)], "kernel_sizes": [(3, 3)] * 2}
    depth = {"blocks": (1, 1), "decoder_blocks": (1,)}
    network = build_network("fcn", in_channels=1, out_channels=2, **plan, **depth, options={"scored_stages": 1})
    assert len(network.scores) == 1
    with pytest.raises(TypeError, match="scored_stages"):
        build_network("unet", in_channels=1, out_channels=2, **plan, **depth, options={"scored_stages": 1})


# ---- gradients ----


def biases_taken_away(network):
    """Biases of convolutions that normalisation follows: it subtracts them again, so their gradient is zero."""
    found = set()
    for name, module in network.named_modules():
        if isinstance(module, ConvBlock):
            found.add(f"{name}.0.bias")
        elif isinstance(module, ResidualBlock):
            found.add(f"{name}.second.bias")
        elif type(module) is nn.Sequential:
            layers = list(module)
            found |= {f"{name}.{i}.bias" for i, after in enumerate(layers[1:]) if isinstance(after, InstanceNorm)}
    return found


@every_network
@both_dims
def test_every_parameter_learns(name, dims):
    """Two kinds of parameters cannot, by design: biases before a normalisation, and the coarsest of several heads,
    whose stage weighs nothing in the loss."""
    network = small(name, dims, in_channels=2)
    with torch.no_grad():
        for parameter in network.parameters():  # away from scales that begin at zero, and cut off what they scale
            parameter += 0.1 * torch.randn_like(parameter)
    image, target = image_and_target(dims, in_channels=2)
    found = gradients(network, image, target)
    biases = biases_taken_away(network)
    if name not in SINGLE_MAP:
        coarsest = f"heads.{len(network.heads) - 1}."
        assert {n for n, gradient in found.items() if gradient is None} == {coarsest + "weight", coarsest + "bias"}
    for parameter, gradient in found.items():
        if gradient is not None:
            assert torch.isfinite(gradient).all(), parameter
            if parameter not in biases:
                assert gradient.abs().max() > 1e-7, parameter


@every_network
@pytest.mark.parametrize("shape", [(13, 10), (9, 6, 11)])
def test_odd_sizes_train(name, shape):
    network = small(name, len(shape))
    found = gradients(network, torch.randn(2, 1, *shape), torch.randint(0, HEADS, (2, *shape)))
    given = [gradient for gradient in found.values() if gradient is not None]
    assert all(torch.isfinite(gradient).all() for gradient in given)
    assert max(gradient.abs().max() for gradient in given) > 1e-3


@pytest.mark.thorough
@every_network
@both_dims
def test_recomputed_activations_give_the_same_gradients_bit_by_bit(name, dims):
    network = small(name, dims)
    image, target = image_and_target(dims)
    runs = []
    stages = [module for module in network.modules() if isinstance(module, Stage)]
    for stage in stages:
        stage[0].register_forward_pre_hook(lambda *_: runs.append(1))
    kept = gradients(network, image, target)
    assert len(runs) == len(stages)
    set_checkpointing(network, True)
    recomputed = gradients(network, image, target)
    assert len(runs) == 3 * len(stages)  # forward, and once more backward
    assert {n for n, g in kept.items() if g is None} == {n for n, g in recomputed.items() if g is None}
    assert all(torch.equal(g, recomputed[n]) for n, g in kept.items() if g is not None)


@every_network
@both_dims
def test_most_of_what_is_kept_for_the_backward_pass_lies_inside_stages(name, dims):
    """Otherwise checkpointing would spare little."""
    image, _ = image_and_target(dims)
    network = small(name, dims)

    def kept():
        storages = {}

        def pack(tensor):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            logits = network(image)
        assert logits[0].grad_fn is not None  # still there, and with it all that was packed
        for parameter in network.parameters():
            storages.pop(parameter.data_ptr(), None)
        return sum(storages.values())

    everything = kept()
    set_checkpointing(network, True)
    assert kept() < 0.5 * everything


# ---- numbers ----


@every_network
@both_dims
def test_bfloat16_autocast_stays_close_to_float32(name, dims):
    network = small(name, dims, features=(8, 16, 16))
    image, _ = image_and_target(dims)
    with torch.no_grad():
        exact = network(image)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = network(image)
    for fine, coarse in zip(exact, rounded, strict=True):
        difference = (coarse.float() - fine).square().mean().sqrt() / fine.std()
        assert 0 < difference < 0.05  # bfloat16 rounds by up to 0.004, layer after layer


@every_network
@both_dims
def test_parameters_learn_in_float32_under_autocast(name, dims):
    network = small(name, dims)
    image, target = image_and_target(dims)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = network(image)
    criterion()(logits, target).backward()
    given = [p.grad for p in network.parameters() if p.grad is not None]
    assert {g.dtype for g in given} == {torch.float32}
    assert all(torch.isfinite(g).all() for g in given)


@every_network
@both_dims
def test_a_sample_does_not_see_the_others_of_its_batch(name, dims):
    network = small(name, dims)
    image, _ = image_and_target(dims)
    changed = image.clone()
    changed[1] = 10 * torch.randn_like(changed[1])
    with torch.no_grad():
        before, after, alone = network(image), network(changed), network(image[:1])
    for first, second, single in zip(before, after, alone, strict=True):
        assert torch.equal(first[0], second[0])
        assert not torch.allclose(first[1], second[1])
        assert torch.allclose(first[0], single[0], atol=1e-5)


@every_network
@both_dims
def test_training_and_evaluation_compute_the_same(name, dims):
    network = small(name, dims)
    image, _ = image_and_target(dims)
    with torch.no_grad():
        trained = network.train()(image)
        evaluated = network.eval()(image)
    assert all(torch.equal(a, b) for a, b in zip(trained, evaluated, strict=True))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@every_network
@both_dims
def test_dtypes_and_numbers_are_the_same_on_cuda(name, dims):
    network = small(name, dims, features=(8, 16, 16))
    image, _ = image_and_target(dims)
    with torch.no_grad():
        exact = network(image)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = network(image)
        with torch.autocast("cuda", dtype=torch.bfloat16):
            on_device = network.cuda()(image.cuda())
    for reference, ours, theirs in zip(exact, rounded, on_device, strict=True):
        assert theirs.dtype == ours.dtype
        assert (theirs.float().cpu() - reference).square().mean().sqrt() < 0.05 * reference.std()


# ---- to disk and out of Python ----


@pytest.mark.thorough
@every_network
@both_dims
def test_weights_survive_a_file(name, dims, tmp_path):
    network, other = small(name, dims), small(name, dims)
    image, _ = image_and_target(dims)
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    with torch.no_grad():
        assert not torch.equal(network(image)[0], other(image)[0])
        other.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
        assert all(torch.equal(a, b) for a, b in zip(network(image), other(image), strict=True))


@every_network
@both_dims
def test_initial_weights_follow_the_seed(name, dims):
    torch.manual_seed(3)
    network = small(name, dims)
    torch.manual_seed(3)
    again = small(name, dims)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), again.parameters(), strict=True))


@pytest.mark.slow
@every_network
@both_dims
def test_an_exported_network_computes_the_same(name, dims):
    network = small(name, dims).eval()
    image = torch.randn(1, 1, *((9, 14) if dims == 2 else (6, 9, 7)))
    exported = torch.export.export(network, (image,)).module()
    with torch.no_grad():
        for ours, theirs in zip(network(image), exported(image), strict=True):
            assert torch.allclose(ours, theirs, atol=1e-5)


# ---- learning ----


def two_cases(dims, edge):
    """A disc (ball) in one case, a square (cube) in the other, brighter than noisy background."""
    grid = np.stack(np.meshgrid(*[np.arange(edge)] * dims, indexing="ij")) - edge / 2 + 0.5
    ball = (np.square(grid + 1).sum(0) < (edge / 3) ** 2).astype(np.int64)
    cube = (np.abs(grid - 2).max(0) < edge / 4).astype(np.int64)
    target = torch.from_numpy(np.stack([ball, cube]))
    image = target[:, None] + 0.5 * torch.randn(2, 1, *[edge] * dims)
    return image, target


@pytest.mark.thorough
@every_network
@pytest.mark.parametrize(("dims", "edge"), [(2, 24), (3, 12)])
def test_it_learns_two_cases_by_heart(name, dims, edge):
    image, target = two_cases(dims, edge)
    network = small(name, dims, features=(8, 16, 32), out_channels=2)
    optimizer = torch.optim.AdamW(network.parameters(), 0.01)
    for _ in range(60):
        optimizer.zero_grad()
        criterion()(network(image), target).backward()
        optimizer.step()
    decided = network(image)[0].argmax(1)
    for case in range(2):
        both = (decided[case] * target[case]).sum()
        dice = 2 * both / (decided[case].sum() + target[case].sum())
        assert dice > 0.9, f"case {case}: {dice:.3f}"
