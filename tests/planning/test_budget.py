"""Budgets and presets: what limits a plan for a CPU and for GPUs of any size, and options that exclude each other."""

import math

import pytest

from autoseg.errors import UsageError
from autoseg.planning import budget
from plans import ONE, plan
from synthetic_fingerprints import label_set, uniform


def test_a_cpu_plan_keeps_to_its_budget():
    labels = label_set(3)
    made = plan(uniform(ONE, (150, 200, 180), 20, labels), labels)
    assert (made.device, made.vram_gb) == ("cpu", None)
    assert made.training.optimizer == budget.CPU.training.optimizer
    for found in made.configurations.values():
        assert 2 * found.elements <= budget.CPU.elements[found.dims]
        assert 2 <= found.batch_size <= budget.CPU.max_batch[found.dims]
        assert found.network.features[0] == budget.CPU.base_features
        assert max(found.network.features) <= budget.CPU.max_features[found.dims]


def test_a_larger_gpu_gets_larger_patches():
    labels = label_set(3)
    found = uniform(ONE, (300, 300, 300), 100, labels)
    small, large = (plan(found, labels, vram_gb=gb) for gb in (8, 24))
    assert (small.device, small.vram_gb) == ("gpu", 8)
    assert plan(found, labels, device="gpu") == small
    sizes = [math.prod(made.configurations["3d_fullres"].patch_size) for made in (small, large)]
    assert sizes[1] > 1.5 * sizes[0]
    for made in (small, large):
        assert all(found.cost.train_bytes <= 0.95e9 * made.vram_gb for found in made.configurations.values())


def test_batch_covers_at_most_a_twentieth_of_the_dataset_on_a_gpu():
    batch, reason = budget.limited_batch(budget.GPU, 3, 112, 1000, 400_000.0)
    assert batch == 20  # 5 % of 400 patches
    assert "fill 20" in reason
    assert budget.limited_batch(budget.GPU, 3, 112, 1000, 1.0)[0] == 2
    assert budget.limited_batch(budget.PRESETS["m"], 3, 112, 1000, 400_000.0)[0] == 112
    assert budget.limited_batch(budget.CPU, 2, 6, 1000, 1e9)[0] == 6
    assert budget.limited_batch(budget.CPU, 2, 9, 1000, 1e9)[0] == 8


@pytest.mark.parametrize(
    ("options", "preset", "network", "vram_gb"),
    [
        ({}, "s", "unet", None),
        ({"preset": "s"}, "s", "unet", None),
        ({"preset": "s", "device": "gpu"}, "s", "unet", None),
        ({"device": "gpu"}, None, "unet", 8),
        ({"vram_gb": 11}, None, "unet", 11),
        ({"preset": "m"}, "m", "residual_unet", 8),
        ({"preset": "l"}, "l", "residual_unet", 24),
        ({"preset": "xl"}, "xl", "residual_unet", 40),
        ({"preset": "l", "vram_gb": 20}, "l", "residual_unet", 20),
        ({"preset": "m", "network": "unet"}, "m", "unet", 8),
        ({"network": "fcn"}, "s", "fcn", None),
        ({"rules": "nnunet"}, None, "unet", 8),
        ({"rules": "nnunet", "preset": "l"}, "l", "residual_unet", 24),
    ],
)
def test_presets(options, preset, network, vram_gb):
    labels = label_set(2)
    made = plan(uniform(ONE, (60, 60, 60), 5, labels), labels, **options)
    assert (made.preset, made.vram_gb, made.device) == (preset, vram_gb, "gpu" if vram_gb else "cpu")
    assert {c.network.name for c in made.configurations.values()} == {network}


@pytest.mark.parametrize(
    "options",
    [
        {"preset": "s", "vram_gb": 8},
        {"preset": "s", "rules": "nnunet"},
        {"preset": "xxl"},
        {"network": "resnet"},
        {"rules": "nnunet", "network": "swin_unet"},
        {"rules": "nnunet", "preset": "m", "network": "unet"},
    ],
)
def test_options_that_exclude_each_other_are_refused(options):
    labels = label_set(2)
    with pytest.raises(UsageError) as caught:
        plan(uniform(ONE, (50, 50, 50), 3, labels), labels, **options)
    assert caught.value.remedy
