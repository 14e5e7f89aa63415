"""Mixing of samples: how often and how large, boxes and shares by hand, scipy's own components as oracle."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, label

from autoseg.augmentation.chain import DeviceChain
from autoseg.augmentation.mixing import Mixing, find_component, mix
from autoseg.augmentation.presets import AUGMENTATIONS
from synthetic_patches import OFF, an_image, generator


def test_samples_are_mixed_by_one_table_alone():
    mixing = {name for name, table in AUGMENTATIONS.items() if max(table.cutmix, table.mixup, table.paste) > 0}
    assert mixing == {"sparse"}


def test_mixing_is_drawn_as_often_and_as_large_as_the_table_says():
    table = replace(OFF, cutmix=0.5, cutmix_share=(0.1, 0.4), mixup=0.3, mixup_share=(0.1, 0.2), paste=0.2)
    chain = DeviceChain(table, channels=1, patch_size=(40, 60), mirror_axes=())
    drawn = [chain.draw(generator(seed)).mixing for seed in range(300)]
    assert np.mean([m.box is not None for m in drawn]) == pytest.approx(0.5, abs=0.1)
    assert np.mean([m.share > 0 for m in drawn]) == pytest.approx(0.3, abs=0.1)
    assert np.mean([m.window is not None for m in drawn]) == pytest.approx(0.2, abs=0.08)
    covered = [np.prod([part.stop - part.start for part in m.box]) / 2400 for m in drawn if m.box]
    assert 0.08 < min(covered) < 0.12
    assert 0.37 < max(covered) < 0.42
    assert {tuple(part.stop - part.start for part in m.window) for m in drawn if m.window} == {(10, 15)}
    assert all(0.1 <= m.share <= 0.2 for m in drawn if m.share)
    starts = [m.window[0].start for m in drawn if m.window]
    assert min(starts) < 5
    assert max(starts) > 25


def a_batch(count: int = 2, *shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.stack([torch.full((1, *shape), float(i)) for i in range(count)])
    targets = torch.stack([torch.full((1, *shape), i, dtype=torch.int8) for i in range(count)])
    return images, targets


def test_cutmix_moves_image_and_target_of_a_box():
    images, targets = a_batch(3, 4, 6)
    box = (slice(1, 3), slice(0, 5))
    mix(images, targets, [Mixing(), Mixing(box=box), Mixing(box=box)], None)
    expected = torch.ones(4, 6)
    expected[box] = 2
    last = torch.full((4, 6), 2.0)
    last[box] = 0  # the other of the last is the first, as it was
    for found in (images, targets):
        np.testing.assert_array_equal(found[0, 0], torch.zeros(4, 6))
        np.testing.assert_array_equal(found[1, 0], expected)
        np.testing.assert_array_equal(found[2, 0], last)


def test_mixup_mixes_intensities_and_keeps_the_target():
    images, targets = a_batch(2, 3, 3)
    mix(images, targets, [Mixing(share=0.25), Mixing(share=0.1)], None)
    np.testing.assert_allclose(images[0], 0.25)
    np.testing.assert_allclose(images[1], 0.9)
    assert not targets[0].any()
    assert (targets[1] == 1).all()


@pytest.mark.parametrize("shape", [(30, 32), (14, 16, 18)])
def test_a_component_is_what_hangs_together_with_a_voxel(shape):
    target = (gaussian_filter(an_image(*shape, seed=8), 1.5) > 0.13).astype(np.int8)
    target[tuple(slice(n // 2, None) for n in shape)] *= 2
    target[0] = 3  # the ignore label
    lengths = [n // 2 for n in shape]
    sizes = set()
    for seed in range(10):
        mask, where = find_component(torch.from_numpy(target), lengths, 3, torch.Generator().manual_seed(seed))
        places = np.unravel_index(where.numpy(), shape)
        window = tuple(slice(p.min(), p.max() + 1) for p in places)
        assert [w.stop - w.start for w in window] == lengths
        (found,) = np.unique(target[window][mask])
        assert found in (1, 2)
        pieces, count = label(target[window] == found, np.ones((3,) * len(shape)))
        assert any((mask.numpy() == (pieces == k)).all() for k in range(1, count + 1))
        sizes.add(int(mask.sum()))
    assert len(sizes) > 3
    empty, _ = find_component(torch.full(shape, 3), lengths, 3, torch.Generator().manual_seed(0))
    assert not empty.any()


def test_a_pasted_component_brings_its_voxels_and_nothing_else():
    images, targets = a_batch(2, 8, 8)
    targets[:] = 0
    targets[1, 0, 2:4, 5:7] = 2
    images[1] = torch.arange(64.0).view(8, 8)
    mix(images, targets, [Mixing(window=(slice(4, 8), slice(0, 4)), seed=1), Mixing()], None)
    brought = images[0, 0] != 0
    np.testing.assert_array_equal(brought, targets[0, 0] == 2)
    assert sorted(images[0, 0][brought].tolist()) == [21, 22, 29, 30]
    assert not brought[:4].any()
    assert not brought[:, 4:].any()
