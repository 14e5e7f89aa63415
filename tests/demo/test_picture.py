"""The picture of a case: every label in its colour, the same from any stored orientation, of the richest slice."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from autoseg.demo.phantom import LABELS, make_anatomy, make_scan
from autoseg.demo.picture import COLOURS, _richest_slice, picture
from autoseg.imaging.geometry import Volume

NAMES = tuple(LABELS)[1:]


@pytest.fixture(scope="module")
def scan() -> tuple[Volume, Volume]:
    return make_scan(make_anatomy(0), 0, 0)


def pixels_near(path: Path, colour: str) -> int:
    rgb = np.asarray(Image.open(path).convert("RGB")).astype(int)
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return int((np.abs(rgb - wanted).max(axis=-1) < 12).sum())


@pytest.mark.thorough
def test_picture_shows_every_label_in_its_colour(scan, tmp_path):
    image, labels = scan
    picture(image, labels, labels, tmp_path / "a.png", names=NAMES)
    with Image.open(tmp_path / "a.png") as opened:
        assert opened.format == "PNG"
        assert opened.width > 900
    empty = replace(labels, array=np.zeros_like(labels.array))
    picture(image, empty, empty, tmp_path / "b.png", names=NAMES)
    for colour in COLOURS[:3]:  # the legend alone holds some pixels
        assert pixels_near(tmp_path / "a.png", colour) > pixels_near(tmp_path / "b.png", colour) + 100
    picture(image, labels, empty, tmp_path / "c.png", names=NAMES)
    assert pixels_near(tmp_path / "c.png", "#FFFFFF") < pixels_near(tmp_path / "a.png", "#FFFFFF") - 100


def test_picture_does_not_depend_on_the_stored_orientation(scan, tmp_path):
    image, labels = scan
    geometry = image.geometry
    x = geometry.origin[0] + (geometry.shape[2] - 1) * geometry.spacing[2]
    mirrored = replace(
        geometry,
        origin=(x, *geometry.origin[1:]),
        direction=(*geometry.direction[:2], (-1.0, 0.0, 0.0)),
    )
    flipped = [Volume(volume.array[..., ::-1], mirrored) for volume in (image, labels)]
    picture(image, labels, labels, tmp_path / "a.png", names=NAMES)
    picture(flipped[0], flipped[1], flipped[1], tmp_path / "b.png", names=NAMES)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_richest_slice_prefers_many_labels_to_much_of_one():
    reference = np.zeros((4, 4, 4), np.uint8)
    reference[1] = 1  # slice 1 is full of label 1
    reference[2, :2] = 1  # slice 2 has half of it, and all of label 2
    reference[2, 3, 3] = 2
    assert _richest_slice(reference, 0, [1, 2]) == 2
    assert _richest_slice(np.zeros((5, 4, 4)), 0, [1, 2]) == 2, "the middle, where there is nothing"
