"""Batches with prompts: who gets which, and that all of it follows from the seed."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import plans
from autoseg.errors import UsageError
from autoseg.imaging.labels import LabelSet, Thing
from autoseg.imaging.prompts import prompt_channels
from autoseg.models.build import build_plan_network
from autoseg.models.checkpoint import save_checkpoint
from autoseg.models.pretrained import begin_from
from autoseg.planning.plan import Plan
from autoseg.planning.prompted import kept_prompts, prompted_of, with_prompts
from autoseg.training.prompted import MOST_ROUNDS, Prompting, segment_with
from autoseg.training.validation import decide
from checkpoints import checkpoint_of
from synthetic_fingerprints import label_set

LABELS = label_set(3)
SHAPE = (8, 12, 12)


def prompted_plan(labels=LABELS, **changes) -> Plan:
    made = plans.plan_of(labels, **changes)
    small = replace(made.configurations["3d_fullres"], network=plans.SMALL_UNET, patch_size=SHAPE, batch_size=4)
    return with_prompts(replace(made, configurations={"3d_fullres": small}, recommended="3d_fullres"), "3d_fullres")[0]


def batch_of(samples=4, seed=0):
    rng = np.random.default_rng(seed)
    target = np.zeros((samples, *SHAPE), np.uint8)
    target[:, 2:6, 2:8, 2:8] = 1
    target[:, 3:7, 6:10, 8:11] = 2
    image = rng.normal(size=(samples, 1, *SHAPE)).astype(np.float32)
    return {"image": torch.from_numpy(image), "target": torch.from_numpy(target), "cases": ["a"] * samples}


class Asked:
    """Answers with background, and keeps what it was asked."""

    def __init__(self) -> None:
        self.images: list[torch.Tensor] = []

    def __call__(self, images: torch.Tensor) -> np.ndarray:
        self.images.append(images)
        return np.zeros((len(images), *images.shape[2:]), np.int16)


def prompting(plan=None):
    plan = plan or prompted_plan()
    return Prompting(plan, plan.configurations["3d_fullres_prompts"])


def test_half_of_the_samples_see_no_prompt_and_each_place_takes_its_turn():
    shown = []
    for step in (4, 5):
        made = prompting()(batch_of(), Asked(), (1, 0, 0, step))["image"]
        assert made.shape == (4, 1 + prompt_channels(2), *SHAPE)
        shown.append([bool(sample[1:].any()) for sample in made])
    assert shown == [[False, True, False, True], [True, False, True, False]]


def test_images_and_targets_stay_as_they_are():
    batch = batch_of()
    made = prompting()(batch, Asked(), (1, 0, 0, 0))
    assert torch.equal(made["image"][:, :1], batch["image"])
    assert made["target"] is batch["target"]
    assert made["cases"] == batch["cases"]


def test_the_same_seed_gives_the_same_prompts_and_another_step_others():
    first, again, other = (prompting()(batch_of(), Asked(), (1, 0, 0, step))["image"] for step in (3, 3, 5))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_what_the_network_is_asked_holds_no_prompt_at_first_and_at_most_two_rounds_follow():
    asked, empty, rounds = Asked(), 0, []
    for step in range(40):
        asked.images.clear()
        prompting()(batch_of(), asked, (1, 0, 0, step))
        automatic = [images for images in asked.images if not images[:, 1:].any()]
        empty += sum(len(images) for images in automatic)
        rounds.append(len(asked.images) - len(automatic))
    assert set(rounds) == set(range(MOST_ROUNDS))
    assert 24 <= empty <= 56  # of 80 samples with prompts, half begin with the network's own mask


def test_a_prompt_lies_where_the_mask_is_wrong():
    """The network finds nothing: every click is in a label, but for those that answer a damaged mask."""
    of = prompting()
    inside = 0
    for step in range(40):
        batch = batch_of()
        made = of(batch, Asked(), (1, 0, 0, step))["image"].numpy()
        for sample, target in zip(made, batch["target"].numpy(), strict=True):
            for label in (1, 2):
                ball = sample[1 + label] == 1
                if ball.any():
                    inside += 1
                    assert (target[ball] == label).mean() > 0.2
    assert inside > 40


def test_ignored_voxels_are_never_clicked():
    labels = LabelSet({"a": 1, "b": 2}, ignore=9)
    of = prompting(prompted_plan(labels))
    batch = batch_of()
    batch["target"][:] = labels.ignore_index
    made = of(batch, Asked(), (1, 0, 0, 1))["image"]
    assert not made[:, 1:4].any()


def test_before_the_first_step_the_network_is_the_one_it_continues(tmp_path):
    """The weights of the new channels are 0: whatever prompts say, logits are the same to the bit."""
    plan = prompted_plan()
    base = build_plan_network(plan, plan.configurations["3d_fullres"]).eval()
    prompted = build_plan_network(plan, plan.configurations["3d_fullres_prompts"]).eval()
    checkpoint = checkpoint_of(plan, base, configuration="3d_fullres", finished=True)
    save_checkpoint(tmp_path / "last.pt", checkpoint.to_plain())
    begin_from(tmp_path / "last.pt", prompted, plan, "3d_fullres_prompts")
    image = torch.randn(2, 1, *SHAPE)
    with torch.inference_mode():
        automatic = base(image)[0]
        assert torch.equal(prompted(image)[0], automatic)
        anything = torch.randn(2, prompt_channels(2), *SHAPE)
        assert torch.equal(prompted(torch.cat([image, anything], 1))[0], automatic)


def test_a_network_with_prompts_can_begin_with_another_one(tmp_path):
    """Channel by channel, prompts and masks included: the same weights."""
    plan = prompted_plan()
    name = "3d_fullres_prompts"
    theirs, mine = (build_plan_network(plan, plan.configurations[name]) for _ in range(2))
    checkpoint = checkpoint_of(plan, theirs, configuration=name, finished=True)
    save_checkpoint(tmp_path / "last.pt", checkpoint.to_plain())
    begin_from(tmp_path / "last.pt", mine, plan, name)
    for (key, a), b in zip(theirs.state_dict().items(), mine.state_dict().values(), strict=True):
        assert torch.equal(a, b), key


def test_answers_leave_the_network_as_it_was():
    plan = prompted_plan()
    network = build_plan_network(plan, plan.configurations["3d_fullres_prompts"]).train()
    image = torch.randn(2, 1 + prompt_channels(2), *SHAPE)
    answers = segment_with(network, plan, "float32")(image)
    assert network.training
    assert all(parameter.grad is None for parameter in network.parameters())
    with torch.no_grad():
        np.testing.assert_array_equal(answers, decide(network.eval()(image)[0], plan.heads))


def test_the_configuration_with_prompts_is_added_once_and_is_the_one_that_it_continues():
    plan = prompted_plan()
    base, added = plan.configurations.values()
    assert list(plan.configurations) == ["3d_fullres", "3d_fullres_prompts"]
    assert replace(added, prompts=None) == base
    assert added.prompts.continues == "3d_fullres"
    assert added.prompts.radius_mm == 2.5 * min(base.spacing)
    assert with_prompts(plan, "3d_fullres") == with_prompts(plan, "3d_fullres_prompts") == (plan, "3d_fullres_prompts")
    assert plan.input_channels(added) == plan.input_channels(base) + 5
    assert prompted_of(plan, None) == prompted_of(plan, "3d_fullres_prompts") == "3d_fullres_prompts"
    alone = replace(plan, configurations={"3d_fullres": base})
    assert prompted_of(alone, None) is None
    assert kept_prompts(alone, plan) == plan
    larger = replace(plan, configurations={"3d_fullres": base, "3d_fullres_prompts": replace(
        added, prompts=replace(added.prompts, radius_mm=9.0)
    )})  # fmt: skip
    assert kept_prompts(alone, larger) == larger, "a radius that was edited stays"


def test_cascades_and_objects_take_no_prompts():
    cascade = plans.with_cascade(plans.plan_of(LABELS))
    with pytest.raises(UsageError, match="3d_cascade is a cascade"):
        with_prompts(cascade, "3d_cascade")
    things = LabelSet({"cell core": 1, "cell border": 2}, things={"cell": Thing(1, 2)})
    with pytest.raises(UsageError, match="objects"):
        with_prompts(plans.plan_of(things), "3d_fullres")


def test_a_network_is_given_zeros_for_channels_that_lack():
    from autoseg.nn.blocks import accept_fewer_channels

    network = nn.Conv2d(3, 1, 1, bias=False)
    accept_fewer_channels(network, 3)
    image = torch.randn(2, 1, 4, 4)
    whole = torch.cat([image, torch.zeros(2, 2, 4, 4)], dim=1)
    assert torch.equal(network(image), network(whole))
