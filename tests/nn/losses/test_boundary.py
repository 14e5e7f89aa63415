"""The boundary term: distances against scipy's and by hand, which side costs what, voxels nobody annotated."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import distance_transform_edt
from torch._subclasses.fake_tensor import FakeTensorMode

from autoseg.nn.losses.boundary import RADIUS, boundary_term, signed_distances, squared_distances
from autoseg.nn.memory.trace import LiveBytes


def line(*values):
    """A mask of one sample, one structure, one axis."""
    return torch.tensor([[values]], dtype=torch.bool)


def cube(start, edge=20, length=6):
    mask = torch.zeros(1, 1, edge, edge, edge, dtype=torch.bool)
    mask[0, 0, start : start + length, 7 : 7 + length, 7 : 7 + length] = True
    return mask


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 26), min_size=1, max_size=3), st.sampled_from([0.001, 0.02, 0.5]), st.integers(0, 2**31))
def test_squared_distances_are_those_of_scipy_up_to_the_radius(shape, density, seed):
    masks = np.random.default_rng(seed).random((2, 2, *shape)) < density
    squares = squared_distances(torch.from_numpy(masks)).numpy()
    for mask, square in zip(masks.reshape(4, *shape), squares.reshape(4, *shape), strict=True):
        exact = distance_transform_edt(~mask) ** 2 if mask.any() else np.full(shape, np.inf)
        np.testing.assert_array_equal(square, np.rint(np.minimum(exact, RADIUS**2)))


def test_signed_distances_of_a_line():
    signed = signed_distances(line(0, 0, 1, 1, 1, 0), None) * (RADIUS - 0.5)
    assert signed.flatten().tolist() == pytest.approx([1.5, 0.5, -0.5, -1.5, -0.5, 0.5])


def test_the_diagonal_is_longer():
    mask = torch.zeros(1, 1, 3, 3, dtype=torch.bool)
    mask[0, 0, 0, 0] = True
    signed = signed_distances(mask, None) * (RADIUS - 0.5)
    assert signed[0, 0, 1, 1].item() == pytest.approx(2**0.5 - 0.5)
    assert signed[0, 0, 2, 1].item() == pytest.approx(5**0.5 - 0.5)


def test_far_is_one_whatever_lies_there():
    assert signed_distances(line(0, 0, 0), None).flatten().tolist() == [1, 1, 1]
    assert signed_distances(line(1, 1, 1), None).flatten().tolist() == [-1, -1, -1]
    long = signed_distances(line(1, *[0] * 15), None).flatten()
    assert long[RADIUS - 1] < 1
    assert (long[RADIUS:] == 1).all()


def test_voxels_that_nobody_annotated_are_neither_inside_nor_outside():
    annotated = torch.tensor([[True, True, False, True]])
    # the first is three steps from the nearest voxel known to be outside, which is two from the nearest inside
    signed = signed_distances(line(1, 1, 1, 0), annotated) * (RADIUS - 0.5)
    assert signed.flatten()[[0, 1, 3]].tolist() == pytest.approx([-2.5, -1.5, 1.5])
    assert torch.equal(signed_distances(line(1, 1, 0, 0), annotated) * (RADIUS - 0.5), signed)


def test_the_term_by_hand():
    probabilities = torch.tensor([[[0.5, 1.0, 0.0]], [[0.0, 0.25, 0.0]]])
    masks = torch.tensor([[[0, 1, 0]], [[0, 0, 1]]], dtype=torch.bool)
    # sample 1: 0.5 at +0.5, 1 at -0.5; sample 2: 0.25 at +0.5; six voxels
    expected = (0.25 - 0.5 + 0.125) / (RADIUS - 0.5)
    assert boundary_term(probabilities, masks, None).item() == pytest.approx(expected / 6)
    annotated = torch.tensor([[True, True, True], [True, False, False]])
    # of sample 2 one voxel is left, of which nothing is known to be inside: far, but of probability 0
    assert boundary_term(probabilities, masks, annotated).item() == pytest.approx((0.25 - 0.5) / (RADIUS - 0.5) / 4)


def test_a_cube_costs_less_the_closer_it_is():
    costs = [boundary_term(cube(7 + shift).float(), cube(7), None).item() for shift in range(8)]
    assert costs == sorted(costs)
    assert len(set(costs)) == len(costs)
    # the overlap is empty from a shift of six on, where Dice no longer tells
    assert costs[7] > costs[6] > 0 > costs[0]


def test_the_gradient_is_the_distance():
    probabilities = torch.full((1, 1, 20, 20, 20), 0.5, requires_grad=True)
    annotated = torch.rand(1, 20, 20, 20, generator=torch.Generator().manual_seed(0)) < 0.8
    boundary_term(probabilities, cube(7), annotated).backward()
    inside, known = cube(7)[0, 0], annotated[0]
    gradient = probabilities.grad[0, 0]
    assert (gradient[inside & known] < 0).all()
    assert (gradient[~inside & known] > 0).all()
    assert (gradient[~known] == 0).all()
    expected = signed_distances(cube(7), annotated)[0, 0] / known.sum()
    torch.testing.assert_close(gradient[known], expected[known])


def test_nothing_annotated_costs_nothing():
    assert boundary_term(torch.rand(1, 1, 4), line(0, 1, 0, 0), torch.zeros(1, 4, dtype=torch.bool)).item() == 0


def test_the_passes_are_as_many_for_every_shape():
    """Steps of different patches are compared point by point to predict their memory."""
    lengths = []
    for edge in (3, 9, 24):
        with FakeTensorMode(), LiveBytes() as watched:
            masks = torch.empty(1, 2, edge, edge, dtype=torch.bool)
            watched.start()
            signed_distances(masks, None)
            lengths.append(len(watched.read().live))
    assert len(set(lengths)) == 1
