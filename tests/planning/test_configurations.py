"""Patches, batches and tiles in a GPU's memory: what must be covered is, and no larger neighbour would fit."""

import math
import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoseg.errors import UsageError
from autoseg.planning.cost import Step
from plans import ONE, decided, plan
from synthetic_fingerprints import boxes, label_set, uniform
from synthetic_memory import ElementMemory


def test_a_patch_spares_the_axis_along_which_components_are_long():
    labels = label_set(2)
    shape = (200, 200, 200)

    def patch(extent):
        found = uniform(ONE, shape, 20, labels, {"label1": boxes(1, extent, ONE)})
        made = plan(found, labels, vram_gb=8)
        return made.configurations["3d_fullres"].patch_size, decided(made, "3.2 patch wanted (3d_fullres)")

    assert patch((20, 20, 20)) == ((128, 128, 128), ("at least 40 × 40 × 40", patch((20, 20, 20))[1][1]))
    long, (value, reason) = patch((90, 20, 20))
    assert long[0] >= 180
    assert value == "at least 180 × 40 × 40"
    assert "covered by shrinking the other axes" in reason
    unmet, (_, reason) = patch((100, 100, 100))
    assert unmet == (128, 128, 128)  # as without any need
    assert "not covered" in reason


def test_checkpointing_pays_for_a_patch_that_covers_what_it_must():
    labels = label_set(2)
    found = uniform(ONE, (200, 200, 200), 20, labels, {"label1": boxes(1, (75, 75, 75), ONE)})
    made = plan(found, labels, vram_gb=8)
    chosen = made.configurations["3d_fullres"]
    assert chosen.checkpointing
    assert min(chosen.patch_size) >= 150
    assert "activation checkpointing" in decided(made, "3.2 patch wanted (3d_fullres)")[1]
    assert "activation checkpointing" in decided(made, "3.3 patch (3d_fullres)")[1]
    # not where memory is plenty, nor where it would not help
    assert not plan(found, labels, vram_gb=40).configurations["3d_fullres"].checkpointing
    beyond = uniform(ONE, (600, 600, 600), 20, labels, {"label1": boxes(1, (300, 300, 300), ONE)})
    assert not plan(beyond, labels, vram_gb=8).configurations["3d_fullres"].checkpointing


@pytest.mark.thorough
@settings(deadline=None, max_examples=40)
@given(
    shape=st.tuples(*[st.integers(20, 600)] * 3), spacing=st.sampled_from([ONE, (3.0, 1.0, 1.0), (1.0, 0.7, 0.7)]),
    cases=st.sampled_from([1, 10, 400]), vram_gb=st.sampled_from([3.0, 8.0, 24.0, 80.0]),
    network=st.sampled_from(["unet", "residual_unet", "swin_unet"]),
)  # fmt: skip
def test_a_plan_keeps_to_its_memory_and_no_neighbour_would(shape, spacing, cases, vram_gb, network):
    labels, memory = label_set(3), ElementMemory()
    made = plan(uniform(spacing, shape, cases, labels), labels, vram_gb=vram_gb, network=network, memory=memory)
    limit = 0.95e9 * vram_gb
    for name, found in made.configurations.items():
        step = Step(found.network, made.input_channels(found), found.patch_size, found.batch_size, found.checkpointing)
        used = memory.train(step).device_bytes
        assert found.cost.train_bytes == used <= limit
        value, reason = decided(made, f"3.8 memory ({name})")
        assert value == f"{used / 1e9:.3g} of {vram_gb:g} GB"
        more = memory.train(replace(step, batch_size=found.batch_size + 1)).device_bytes
        assert ("limited by 3.5" in reason) == (more <= limit)
        if more <= limit:
            assert re.search("fill|at most", decided(made, f"3.5 batch ({name})")[1])
        larger = re.search(r"patch ([0-9 ×]+) ([0-9.]+) GB$", reason)
        no_larger = ("a larger patch would be larger than the images", "that of the configuration it continues")
        assert (larger is None) == reason.endswith(no_larger)
        if larger:
            assert math.prod(map(int, larger[1].split(" × "))) > math.prod(found.patch_size)
            assert float(larger[2]) > 0.99 * limit / 1e9


@pytest.mark.parametrize(("vram_gb", "tiles"), [(8, 4), (4, 2), (2.5, 1), (None, 1)])
def test_as_many_tiles_are_predicted_at_a_time_as_fit(vram_gb, tiles):
    labels = label_set(2)  # a gigabyte, and another for each tile
    made = plan(uniform(ONE, (60, 60, 60), 5, labels), labels, vram_gb=vram_gb)
    for found in made.configurations.values():
        assert found.cost.tile_batch == tiles
        assert found.cost.predict_bytes == 1e9 * (1 + tiles)


def test_a_gpu_too_small_for_any_plan_is_refused():
    labels = label_set(2)
    with pytest.raises(UsageError, match=r"0\.9 GB of GPU memory are not enough for unet") as caught:
        plan(uniform(ONE, (100, 100, 100), 3, labels), labels, vram_gb=0.9)
    assert "--vram 2" in caught.value.remedy
