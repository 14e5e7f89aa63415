"""How the folds are to be trained: the share of foreground by hand, the loss of regions, axes not to be mirrored."""

import math
from dataclasses import replace

import pytest

from autoseg.imaging.labels import LabelSet
from plans import ONE, decided, plan
from synthetic_fingerprints import boxes, case, fingerprint, label_set, uniform


@pytest.mark.parametrize(
    ("thickness", "slices", "across"),
    [
        ((4.0, 4.0, 4.0), 4, 5 / 9),  # one slice of a patch, one of the component, in an image of 4
        ((8.0, 8.0, 4.0), 2, 1 / 1),  # resampled there would be 3 slices; slices are seen as they are: 1 + 1 of 2
    ],
)
def test_foreground_of_slices_is_that_of_slices_as_they_are(thickness, slices, across):
    labels = label_set(2)
    shapes = [(slices if z == thickness[0] else 4, 1000, 1000) for z in thickness]
    cases = [
        case(i, (z, 1.0, 1.0), shape, {"label1": boxes(1, (1, 2, 2), (z, 1, 1))}, labels.values)
        for i, (z, shape) in enumerate(zip(thickness, shapes, strict=True))
    ]
    made = plan(fingerprint(cases, labels), labels)
    assert made.recommended == "2d"
    in_plane = [1 - (998 - edge) ** 2 / ((1000 - edge) * 998) for edge in made.configurations["2d"].patch_size]
    chance = across * math.prod(in_plane)
    assert made.training.foreground_fraction == pytest.approx(
        min(0.67, max(0.33, (2 / 3 - chance) / (1 - chance))), abs=0.006
    )
    assert 0.33 < made.training.foreground_fraction < 0.67


def test_regions_get_a_loss_and_a_mirroring_of_their_own():
    regions = LabelSet({"oedema": 1, "core": 2}, regions={"whole": (1, 2), "core": (2,)}, region_values=(1, 2))
    made = plan(uniform(ONE, (60, 60, 60), 3, regions), regions)
    assert made.training.loss == "dice_bce"
    assert plan(uniform(ONE, (60, 60, 60), 3, label_set(2)), label_set(2)).training.loss == "dice_ce"


@pytest.mark.parametrize(
    ("names", "spacing", "orientation", "axes"),
    [
        (("liver", "spleen"), ONE, "canonical", (0, 1, 2)),
        (("kidney_left", "kidney_right"), ONE, "canonical", (0, 1)),
        (("kidney_left", "kidney_right"), (1, 1, 4), "canonical", (1, 2)),  # left to right is the plan's axis 0
        (("kidney_left", "kidney_right"), (1, 4, 1), "canonical", (0, 1)),
        (("kidney_left", "kidney_right"), ONE, "as_stored", ()),
    ],
)
def test_left_and_right_are_not_mirrored_into_each_other(names, spacing, orientation, axes):
    labels = LabelSet({name: i for i, name in enumerate(names, start=1)})
    made = plan(uniform(spacing, (80, 80, 80), 3, labels), labels, orientation=orientation)
    assert made.training.mirror_axes == axes
    assert made.orientation == orientation


def test_axes_on_which_labels_keep_their_order_are_not_mirrored_on_a_cpu():
    labels = LabelSet({"anterior": 1, "posterior": 2})
    found = uniform((1, 1, 4), (80, 80, 80), 6, labels)
    ordered = {"anterior": (10.0, 10.0, 10.0), "posterior": (10.0, 30.0, 10.0)}
    swapped = {"anterior": (10.0, 10.0, 10.0), "posterior": (0.0, 30.0, 0.0)}
    centroids = [ordered | ({"posterior": (20.0, 30.0, 20.0)} if i % 2 else swapped) for i in range(6)]
    found = replace(found, cases=tuple(replace(c, centroids_mm=m) for c, m in zip(found.cases, centroids, strict=True)))
    made = plan(found, labels)
    assert made.axis_order == (2, 0, 1)
    assert made.training.mirror_axes == (0, 1)  # the stored axis 1 is the plan's axis 2
    assert "anterior is always before posterior" in decided(made, "5.7")[1]
    assert plan(found, labels, vram_gb=8).training.mirror_axes == (0, 1, 2)
