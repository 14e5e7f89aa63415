"""Corrections prompt by prompt, by a network that does what it is shown: the mask, and what balls say."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from autoseg.datasets.dataset import Case, load_case
from autoseg.errors import UsageError
from autoseg.imaging.prompts import Click, InBox, Scribble
from autoseg.inference.arrays import case_of_array
from autoseg.inference.interactive import EDGE, Refinement
from autoseg.inference.options import InferenceOptions
from autoseg.inference.predictor import ArrayPredictor
from autoseg.models.decision import Rule
from autoseg.nn.blocks import accept_fewer_channels
from autoseg.planning.plan import PromptInput
from bright import Bright, model_of, picture, plan_of
from files import affine_along, nifti

ONE = (1.0, 1.0, 1.0)
PLAIN = InferenceOptions(mirroring=False)


class Obedient(nn.Module):
    """Bright where no prompt and no mask is seen; otherwise the mask, and balls before it."""

    def __init__(self) -> None:
        super().__init__()
        self.bright = Bright()
        self.seen: list[tuple[int, ...]] = []
        accept_fewer_channels(self, 4)

    def forward(self, image: Tensor) -> list[Tensor]:
        self.seen += [tuple(tile.shape[1:]) for tile in image]
        _, background, organ, mask = image.unbind(dim=1)
        automatic = self.bright(image[:, :1])[0]
        shown = (2 * mask - 1) + 10 * (organ - background)
        answered = torch.stack([torch.zeros_like(shown), shown], dim=1)
        prompted = bool(background.any() or organ.any() or mask.any())
        return [answered if prompted else automatic]


def prompted_model(spacing=ONE, patch=(8, 10, 12), radius=1.0, **changes):
    made = model_of(spacing, plan=plan_of(**changes), network=Obedient(), patch=patch)
    name = made.configuration_name
    configuration = replace(made.configuration, prompts=PromptInput("base", radius))
    return replace(made, plan=replace(made.plan, configurations={"base": made.configuration, name: configuration}))


def refinement(image, model=None, spacing=ONE, orientation="LPS", mask=None):
    model = model or prompted_model()
    return Refinement(model, case_of_array(image, model.plan, spacing, orientation), PLAIN, mask=mask)


def body(shape):
    return np.full(shape, 50.0, np.float32)


@pytest.mark.parametrize("code", ["LPS", "RAS", "SAL"])
@pytest.mark.parametrize(("spacing", "dims"), [(ONE, 3), ((2.0, 1.0, 0.7), 3), ((2.0, 1.0, 0.7), 2)])
def test_without_prompts_it_is_the_automatic_segmentation(code, spacing, dims):
    model = prompted_model(ONE[:dims])
    image = picture((9, 11, 12))
    automatic = ArrayPredictor([model], PLAIN).segment(image, spacing, code).labels
    np.testing.assert_array_equal(refinement(image, model, spacing, code).labels * 7, automatic)


@pytest.mark.parametrize("code", ["LPS", "RAS", "SAL"])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_a_click_changes_the_ball_about_it_and_undo_restores_everything(code, order):
    model = prompted_model(axis_order=order)
    image, mask = body((9, 11, 12)), np.zeros((9, 11, 12), np.uint8)
    mask[2:5, 2:5, 2:5] = 1
    found = refinement(image, model, ONE, code, mask=mask)
    np.testing.assert_array_equal(found.labels, mask)
    found.add(Click((6, 7, 8), 1))
    expected = mask.copy()
    for offset in [(0, 0, 0), *np.eye(3, dtype=int), *-np.eye(3, dtype=int)]:
        expected[tuple(np.add((6, 7, 8), offset))] = 1
    np.testing.assert_array_equal(found.labels, expected)
    after_one = found.labels.copy()
    found.add(Click((3, 3, 3), 0))
    assert found.labels[3, 3, 3] == found.labels[2, 3, 3] == 0
    assert found.labels[2, 2, 2] == 1
    assert found.undo()
    np.testing.assert_array_equal(found.labels, after_one)
    assert found.prompts == [Click((6, 7, 8), 1)]
    assert found.undo()
    np.testing.assert_array_equal(found.labels, mask)
    assert not found.undo()


@pytest.mark.parametrize("at", [(0, 0, 0), (8, 10, 11), (4, 5, 6), (0, 10, 3)])
@pytest.mark.parametrize("spacing", [(2.0, 1.0, 0.7), (0.5, 0.5, 0.5)])
def test_the_voxel_that_was_clicked_has_its_label_on_any_grid(at, spacing):
    found = refinement(body((9, 11, 12)), prompted_model(radius=0.1), spacing, mask=np.zeros((9, 11, 12), np.uint8))
    found.add(Click(at, 1))
    assert found.labels[at] == 1
    found.undo()
    assert not found.labels.any()


def test_a_prompt_costs_one_window_whatever_the_size_of_the_image():
    """A patch of 8 x 10 x 12 in an image of 40 x 50 x 60: one tile; labels change only in its inner part."""
    model = prompted_model(radius=9.0)
    found = refinement(body((40, 50, 60)), model, mask=np.zeros((40, 50, 60), np.uint8))
    network = model.networks[0]
    network.seen.clear()
    found.add(Click((20, 25, 30), 1))
    assert network.seen == [(8, 10, 12)]
    changed = np.argwhere(found.labels)
    inner = [edge - 2 * int(EDGE * edge) for edge in (8, 10, 12)]
    assert (changed.max(axis=0) - changed.min(axis=0) + 1 <= inner).all()
    assert found.labels.sum() > 100


def test_a_slice_wise_network_answers_where_the_ball_reaches():
    """Slices of 1 mm and a ball of 1 mm: three slices, each seen by itself."""
    model = prompted_model((1.0, 1.0))
    found = refinement(body((9, 11, 12)), model, mask=np.zeros((9, 11, 12), np.uint8))
    model.networks[0].seen.clear()
    found.add(Click((4, 5, 6), 1))
    assert len(model.networks[0].seen) == 3
    np.testing.assert_array_equal(found.labels.sum(axis=(1, 2)), [0, 0, 0, 1, 5, 1, 0, 0, 0])


def test_scribbles_and_boxes():
    found = refinement(body((9, 11, 40)), prompted_model(radius=0.5), mask=np.zeros((9, 11, 40), np.uint8))
    found.add(Scribble(((4, 5, 3), (4, 5, 36)), 1))
    np.testing.assert_array_equal(np.argwhere(found.labels)[:, 2], np.arange(3, 37))
    found.add(InBox((1, 1, 1), (4, 4, 4), 1))  # half of what a click says: the mask's -1 becomes 4
    assert found.labels[2, 2, 2] == 1
    found.undo()
    assert found.labels.sum() == 34


def test_a_box_in_a_flipped_image_lies_where_it_was_drawn():
    found = refinement(body((9, 11, 12)), orientation="RAS", mask=np.zeros((9, 11, 12), np.uint8))
    found.add(InBox((1, 2, 3), (4, 6, 5), 1))
    expected = np.zeros((9, 11, 12))
    expected[1:4, 2:6, 3:5] = 1
    np.testing.assert_array_equal(found.labels, expected)


def test_what_lies_beyond_the_body_can_be_clicked():
    image = np.pad(body((6, 7, 8)), 2)
    found = refinement(image, mask=np.zeros(image.shape, np.uint8))
    found.add(Click((0, 0, 0), 1))
    assert found.labels[0, 0, 0] == 1
    found.undo()
    assert not found.labels.any()


def test_offsets_of_a_decision_hold_for_answers_too():
    """The mask's logit is -1 outside: with 2 added, all of the window is organ."""
    model = prompted_model(patch=(16, 16, 16))
    image = body((9, 11, 12))
    loaded = case_of_array(image, model.plan, ONE)
    found = Refinement(model, loaded, PLAIN, Rule({"organ": 2.0}), mask=np.zeros(image.shape, np.uint8))
    found.add(Click((4, 5, 6), 1))
    assert found.labels.all()


def test_a_file_is_corrected_in_the_order_of_its_axes(tmp_path):
    model = prompted_model()
    path = nifti(tmp_path / "a.nii", body((9, 11, 12)), affine_along("RAS", (2.0, 1.0, 1.5)))
    plan = model.plan
    loaded = load_case(
        Case("a", "a", (str(path),), None), None, channels=plan.channels, orientation=plan.orientation,
        axis_order=plan.axis_order,
    )  # fmt: skip
    found = Refinement(model, loaded, PLAIN, mask=np.zeros(loaded.geometry.shape, np.uint8))
    found.add(Click((7, 2, 1), 1))
    assert found.labels[7, 2, 1] == 1
    assert found.labels.shape == loaded.geometry.shape


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (Click((9, 0, 0), 1), "outside the image"),
        (Click((0, -1, 0), 1), "outside the image"),
        (Click((0, 0), 1), "outside the image"),
        (Click((0, 0, 0), 2), "there is no label 2"),
        (InBox((0, 0, 0), (10, 3, 3), 1), "outside the image"),
    ],
)
def test_prompts_that_cannot_be_are_refused_and_change_nothing(prompt, message):
    found = refinement(body((9, 11, 12)), mask=np.zeros((9, 11, 12), np.uint8))
    with pytest.raises(UsageError, match=message):
        found.add(prompt)
    assert found.prompts == []
    assert not found.undo()


def test_masks_that_do_not_fit_are_refused():
    with pytest.raises(UsageError, match="has the shape"):
        refinement(body((9, 11, 12)), mask=np.zeros((9, 11, 11), np.uint8))
    with pytest.raises(UsageError, match="class indices 0 to 2"):
        refinement(body((2, 2, 3)), mask=np.array([[[0, 0, 2]] * 2] * 2))


def test_a_model_without_prompts_is_refused():
    with pytest.raises(UsageError, match="was not trained with prompts"):
        refinement(body((9, 11, 12)), model_of(ONE))
