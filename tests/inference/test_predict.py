"""Into the network's space and back, without a trained network.

The network here looks at one voxel at a time: its logits say whether the voxel is bright. So a segmentation must be the
original image above a threshold, on the image's own grid, whatever lies between: the order of axes, the crop, the
spacing, the tiles, the mirroring.
"""

import itertools
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

from autoseg.datasets.dataset import Case, load_case
from autoseg.errors import DataError, StateError, UsageError
from autoseg.imaging.formats.readers import read_image, read_labels
from autoseg.imaging.labels import LabelSet
from autoseg.inference.label_files import output_ending
from autoseg.inference.member import EnsembleMember
from autoseg.inference.options import InferenceOptions
from autoseg.inference.predict import predict_cases, segment
from autoseg.models.model import Model
from bright import THRESHOLD, model_of, picture, plan_of
from files import itk_image, nifti, stack
from phantom import sphere


def case_of(*files: Path) -> Case:
    return Case("some.case", "patient", tuple(map(str, files)), None)


def turned(
    permutation: tuple[int, ...], flips: tuple[int, ...], angle: float, spacing: tuple[float, ...]
) -> np.ndarray:
    """An affine of permuted, flipped and then oblique axes."""
    cosine, sine = np.cos(angle), np.sin(angle)
    rotation = np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]]) @ np.array(
        [[1, 0, 0], [0, cosine, -sine], [0, sine, cosine]]
    )
    axes = np.eye(3)[:, list(permutation)] * np.where(flips, -1, 1)
    affine = np.eye(4)
    affine[:3, :3] = rotation @ axes * spacing
    affine[:3, 3] = (-17.3, 4.0, 250.5)
    return affine


@pytest.mark.thorough
@settings(max_examples=20, deadline=None)
@given(
    permutation=st.permutations((0, 1, 2)), flips=st.tuples(*[st.booleans()] * 3), angle=st.floats(-0.5, 0.5),
    axis_order=st.permutations((0, 1, 2)), orientation=st.sampled_from(["canonical", "as_stored"]),
    dims=st.sampled_from([2, 3]), mirroring=st.booleans(),
)  # fmt: skip
def test_a_segmentation_lies_on_its_image(
    tmp_path_factory, permutation, flips, angle, axis_order, orientation, dims, mirroring
):
    """However the image is stored, and however the plan orders its axes; nothing is resampled here."""
    folder = tmp_path_factory.getbasetemp() / "turned"
    image = picture((11, 13, 17))
    path = nifti(folder / "image.nii", image, turned(permutation, flips, angle, (0.5, 0.5, 0.5)))
    model = model_of((0.5,) * dims, plan=plan_of(axis_order=tuple(axis_order), orientation=orientation))
    (made,) = predict_cases([model], [case_of(path)], folder / "out", InferenceOptions(mirroring=mirroring))
    assert (made.case, made.path) == ("some.case", folder / "out" / "some.case.nii")
    source, result = nib.load(path), nib.load(made.path)
    np.testing.assert_array_equal(np.asarray(result.dataobj).T, np.where(image > THRESHOLD, 7, 0))
    np.testing.assert_array_equal(result.affine, source.affine)
    for key in ("sform_code", "qform_code", "pixdim", "xyzt_units"):
        np.testing.assert_array_equal(result.header[key], source.header[key])


ORGAN_AT, RADIUS = (11.0, 9.0, 13.0), 6.0  # mm, in an image of 22 x 20 x 25 mm


def smooth(spacing: tuple[float, float, float], shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """A ball that fades out, and the distance to its surface in mm (negative inside)."""
    distance = np.sqrt(
        sum(((n + 0.5) * s - c) ** 2 for n, s, c in zip(np.indices(shape), spacing, ORGAN_AT, strict=True))
    )
    distance = distance - RADIUS
    return np.clip(THRESHOLD - 8 * distance, 20, 180).astype(np.int16), distance


@pytest.mark.thorough
@pytest.mark.parametrize("order", list(itertools.permutations((0, 1, 2))))
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.6, 1.4, 0.9), (1.0, 2.0, 2.0), (4.0, 0.8, 0.8)])
def test_resampling_there_and_back_moves_nothing(tmp_path, order, spacing):
    """A ball of 6 mm, seen at 1 mm by the network: voxels may differ where its surface passes, and nowhere else.

    `order` is the plan's; a margin of zeros on one side only makes the crop unlike the image.
    """
    inner = tuple(round(e / s) for e, s in zip((22.0, 20.0, 25.0), spacing, strict=True))
    ball, distance = smooth(spacing, inner)
    image = np.pad(ball, ((3, 0), (0, 5), (2, 1)))
    distance = np.pad(distance, ((3, 0), (0, 5), (2, 1)), constant_values=np.inf)
    path = nifti(tmp_path / "image.nii.gz", image, np.diag([-spacing[2], -spacing[1], spacing[0], 1]))  # LPS
    target = [1.0, 1.0, 1.0]
    if spacing[0] == 4.0:
        target[order.index(0)] = 3.0  # thick slices: resampled on their own, by whole slices
    plan = plan_of(axis_order=order)
    model = model_of(tuple(target), plan=replace(plan, resampling=replace(plan.resampling, image_order=1)))
    (made,) = predict_cases([model], [case_of(path)], tmp_path)
    found = read_labels(made.path).array == 7
    exact = image > THRESHOLD
    tolerance = 0.5 * max(*spacing, *target) if spacing[0] == 4.0 else 0.3
    np.testing.assert_array_equal(found[np.abs(distance) > tolerance], exact[np.abs(distance) > tolerance])
    centres = [np.array(np.nonzero(mask)).mean(axis=1) for mask in (found, exact)]
    assert np.abs(centres[0] - centres[1]).max() < 0.1  # voxels: no shift by half of one
    assert found.sum() / exact.sum() == pytest.approx(1, abs=0.1)


def test_slices_keep_their_distance(tmp_path):
    """A 2-D network sees each slice by itself: what is in one slice only stays in it, however thin or thick."""
    image = np.full((9, 30, 40), 50, np.int16)
    mask = sphere((30, 40), (14, 20), 8)
    image[::2, mask] = 150
    path = nifti(tmp_path / "image.nii", image, np.diag([-1, -1, 3.7, 1]))
    model = model_of((2.0, 0.5), plan=plan_of(), patch=(1, 16, 32))
    (made,) = predict_cases([model], [case_of(path)], tmp_path / "out")
    found = read_labels(made.path).array > 0
    assert not found[1::2].any()
    for z in range(0, 9, 2):
        assert 2 * (found[z] & mask).sum() / (found[z].sum() + mask.sum()) > 0.93


def test_regions_are_decided_after_resampling_and_in_their_order(tmp_path):
    class Two(nn.Module):
        def forward(self, image: Tensor) -> list[Tensor]:
            return [torch.cat([image - 75, image - 125], dim=1) / 10]

    labels = LabelSet({"oedema": 2, "core": 5}, {"whole": (2, 5), "core": (5,)}, (2, 5))
    image = np.random.default_rng(0).choice([50, 100, 150], (9, 10, 11)).astype(np.int16)
    path = nifti(tmp_path / "image.nii", image, np.diag([1, -1, 1, 1]))
    model = model_of((1.0, 1.0, 1.0), plan=plan_of(labels), network=Two())
    (made,) = predict_cases([model], [case_of(path)], tmp_path / "out")
    np.testing.assert_array_equal(read_labels(made.path).array, np.select([image > 125, image > 75], [5, 2], 0))


def test_an_empty_image_has_an_empty_segmentation(tmp_path):
    path = nifti(tmp_path / "image.nii", np.zeros((5, 6, 7), np.int16))
    loaded = load_case(case_of(path), None)
    model = model_of(loaded.spacing)
    indices = segment([EnsembleMember(model)], loaded)
    assert indices.shape == (5, 6, 7)
    assert not indices.any()


# ---- several models, and cascades


class Slope(nn.Module):
    """Probability of the organ: a sigmoid of the brightness about a threshold, steep or flat."""

    def __init__(self, threshold: float, width: float) -> None:
        super().__init__()
        self.threshold, self.width = threshold, width

    def forward(self, image: Tensor) -> list[Tensor]:
        above = (image[:, -1:] - self.threshold) / self.width
        return [torch.cat([torch.zeros_like(above), above], dim=1)]


def test_models_average_their_probabilities_on_the_grid_of_the_image(tmp_path):
    """A steep network with a threshold of 60, a flat one with 120, and one in slices: the mean probability decides."""
    image = np.random.default_rng(0).integers(30, 150, (9, 10, 11)).astype(np.int16)
    path = nifti(tmp_path / "image.nii", np.pad(image, ((1, 0), (0, 2), (0, 0))), np.eye(4))
    slopes = ((60.0, 40.0), (120.0, 5.0), (90.0, 20.0))
    models = [
        model_of((1.0,) * dims, network=Slope(*slope)) for dims, slope in zip((3, 3, 2), slopes, strict=True)
    ]  # fmt: skip
    (made,) = predict_cases(models, [case_of(path)], tmp_path / "out")
    probabilities = [1 / (1 + np.exp(-(image - threshold) / width)) for threshold, width in slopes]
    expected = np.mean(probabilities, axis=0) > 0.5
    assert (expected != (np.mean([(image - t) / w for t, w in slopes], axis=0) > 0)).any()  # not the mean of logits
    found = read_labels(made.path).array
    np.testing.assert_array_equal(found[1:, :-2], np.where(expected, 7, 0))
    assert not found[0].any()
    assert not found[:, -2:].any()


def test_models_average_the_probabilities_of_regions(tmp_path):
    """Each region is decided at one half of the mean: 0.4 and 0.3 are no region, 0.9 and 0.3 are one."""

    class Region(nn.Module):
        def __init__(self, bright: float, dark: float) -> None:
            super().__init__()
            self.bright, self.dark = torch.logit(torch.tensor(bright)), torch.logit(torch.tensor(dark))

        def forward(self, image: Tensor) -> list[Tensor]:
            return [torch.where(image > THRESHOLD, self.bright, self.dark)]

    image = np.random.default_rng(0).choice([50, 150], (9, 10, 11)).astype(np.int16)
    path = nifti(tmp_path / "image.nii", image, np.eye(4))
    plan = plan_of(LabelSet({"organ": 7}, {"organ": (7,)}, (7,)))
    models = [model_of((1.0,) * 3, plan=plan, network=Region(*p)) for p in ((0.9, 0.4), (0.3, 0.3))]
    (made,) = predict_cases(models, [case_of(path)], tmp_path / "out")
    np.testing.assert_array_equal(read_labels(made.path).array, np.where(image > THRESHOLD, 7, 0))


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"channels": ("CT",)}, r"channels: \('MR',\) and \('CT',\)"),
        ({"labels": LabelSet({"organ": 8})}, "labels: .*7.* and .*8"),
        ({"orientation": "as_stored"}, "orientation: canonical and as_stored"),
        ({"axis_order": (2, 1, 0)}, r"axis order: \(0, 1, 2\) and \(2, 1, 0\)"),
        ({"training": replace(plan_of().training, loss="dice_bce")}, "heads: softmax and sigmoid"),
    ],
)
def test_models_of_different_kinds_do_not_vote_together(changes, what, tmp_path):
    path = nifti(tmp_path / "image.nii", picture((8, 9, 10)), np.eye(4))
    models = [model_of((1.0,) * 3), model_of((1.0,) * 2, plan=replace(plan_of(), **changes))]
    with pytest.raises(StateError, match=f"3d_fullres-unet and 2d-unet .* {what}"):
        predict_cases(models, [case_of(path)], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_models_of_other_losses_vote_together_where_their_heads_are_alike(tmp_path):
    path = nifti(tmp_path / "image.nii", picture((8, 9, 10)), np.eye(4))
    focal = replace(plan_of(), training=replace(plan_of().training, loss="dice_focal"))
    (made,) = predict_cases([model_of((1.0,) * 3), model_of((1.0,) * 2, plan=focal)], [case_of(path)], tmp_path / "out")
    assert made.path.exists()


class Follower(nn.Module):
    """Sees an image channel and two of a previous stage, whose labels it swaps where the image is not 0."""

    def forward(self, image: Tensor) -> list[Tensor]:
        assert image.shape[1] == 3
        body = (image[:, :1] != 0).float()
        return [10 * torch.cat([0.5 * torch.ones_like(body), body * image[:, 2:], body * image[:, 1:2]], dim=1)]


class Bands(nn.Module):
    """Label 1 above 75, label 2 above 125."""

    def forward(self, image: Tensor) -> list[Tensor]:
        return [torch.cat([75 - image, (image - 75).minimum(125 - image), image - 125], dim=1)]


def cascade_of(spacing: tuple[float, ...], previous: Model) -> Model:
    model = model_of(spacing, plan=previous.plan, network=Follower())
    made = replace(model.configuration, cascade_from="3d_fullres")
    plan = replace(model.plan, configurations=model.plan.configurations | {"3d_cascade": made})
    return replace(model, plan=plan, configuration_name="3d_cascade", previous=previous)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.5, 1.0, 1.0)])
def test_a_cascade_sees_what_the_stage_before_it_decided(tmp_path, spacing):
    """Whatever the grid of the cascade: the labels come there and back, and the crop lies where it lay."""
    labels = LabelSet({"oedema": 2, "core": 5})
    blocks = np.random.default_rng(0).choice([50, 100, 150], (4, 5, 6))
    image = np.pad(np.kron(blocks, np.ones((2, 2, 2))), ((1, 2), (0, 3), (4, 0))).astype(np.int16)
    path = nifti(tmp_path / "image.nii.gz", image, np.diag([-1, 1, -1, 1]))
    previous = model_of((1.0, 1.0, 1.0), plan=plan_of(labels), network=Bands())
    cascade = cascade_of(spacing, previous)
    (made,) = predict_cases([cascade], [case_of(path)], tmp_path / "cascade")
    np.testing.assert_array_equal(read_labels(made.path).array, np.select([image > 125, image > 75], [2, 5], 0))
    # as a member of an ensemble, against two votes of the stage before
    (made,) = predict_cases([cascade, previous, previous], [case_of(path)], tmp_path / "both")
    np.testing.assert_array_equal(read_labels(made.path).array, np.select([image > 125, image > 75], [5, 2], 0))


# ---- files


@pytest.mark.parametrize("ending", [".png", ".jpg", ".bmp", ".tif"])
def test_pictures_come_back_as_pictures(tmp_path, ending):
    """A JPEG gives a PNG; what counts is the picture as it is read, with all that its compression did."""
    blocks = np.random.default_rng(1).choice([40, 160], (6, 9))
    path = tmp_path / f"image{ending}"
    Image.fromarray(np.kron(blocks, np.ones((4, 4))).astype(np.uint8)).save(path)
    (made,) = predict_cases([model_of((1.0, 1.0), patch=(1, 16, 16))], [case_of(path)], tmp_path / "out")
    assert made.path.suffix == (".png" if ending == ".jpg" else ending)
    read = read_image(path).array[0]
    assert (read > THRESHOLD).any()
    np.testing.assert_array_equal(read_labels(made.path).array, np.where(read > THRESHOLD, 7, 0))


@pytest.mark.parametrize("ending", [".nrrd", ".mha", ".nii", ".tiff"])
def test_volumes_come_back_in_their_format(tmp_path, ending):
    image = picture((8, 9, 10))
    path = tmp_path / f"image{ending}"
    if ending == ".tiff":
        stack(path, image)
    elif ending == ".nii":
        nifti(path, image)
    else:
        itk_image(path, image)
    loaded = load_case(case_of(path), None)
    (made,) = predict_cases([model_of(loaded.spacing)], [case_of(path)], tmp_path / "out")
    assert made.path.name == f"some.case{ending}"
    result = read_labels(made.path)
    np.testing.assert_array_equal(result.array, np.where(image > THRESHOLD, 7, 0))
    assert result.geometry == read_image(path).geometry


@pytest.mark.parametrize(
    ("name", "ending"),
    [("a.nii.gz", ".nii.gz"), ("A.NII.GZ", ".nii.gz"), ("a.mha", ".mha"), ("a.jpg", ".png"), ("a.JPEG", ".png"),
     ("a.tif", ".tif")],
)  # fmt: skip
def test_endings(name, ending):
    assert output_ending(case_of(Path("/data") / name, Path("/data/b.nrrd"))) == ending


def test_channels_come_from_several_files_or_from_one(tmp_path):
    """The network looks at the last channel; the first one defines the grid."""
    image = picture((8, 9, 10))
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    other = nifti(tmp_path / "other.nii", np.ones_like(image), affine)
    bright = nifti(tmp_path / "bright.nii.gz", image, affine)
    both = nifti(tmp_path / "both.nii", np.stack([np.ones_like(image), image]), affine)
    model = model_of((1.0,) * 3, plan=plan_of(channels=("T1", "T2")))
    for files in ((other, bright), (both,)):
        (made,) = predict_cases([model], [case_of(*files)], tmp_path / files[0].stem)
        assert made.path.name == "some.case.nii"
        np.testing.assert_array_equal(read_labels(made.path).array, np.where(image > THRESHOLD, 7, 0))


@pytest.mark.parametrize("count", [1, 3])
def test_another_number_of_channels_is_refused(tmp_path, count):
    path = nifti(tmp_path / "image.nii", np.ones((count, 4, 5, 6), np.int16))
    model = model_of((1.0,) * 3, plan=plan_of(channels=("T1", "T2")))
    with pytest.raises(DataError, match=rf"image\.nii.* {count} channels.*2: T1, T2"):
        predict_cases([model], [case_of(path)], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_image_is_never_overwritten_by_its_segmentation(tmp_path):
    """`autoseg predict -i images -o images`, where images bear the names of their cases."""
    path = nifti(tmp_path / "some.case.nii", picture((8, 9, 10)))
    before = path.read_bytes()
    (tmp_path / "link").symlink_to(tmp_path)
    for out in (tmp_path, tmp_path / "." / "x" / "..", tmp_path / "link"):
        with pytest.raises(UsageError, match=r"some\.case\.nii .*image"):
            predict_cases([model_of((1.0,) * 3)], [case_of(path)], out)
    assert path.read_bytes() == before


def test_a_damaged_image_is_named_and_those_before_are_kept(tmp_path):
    good = nifti(tmp_path / "good.nii", picture((8, 9, 10)), np.eye(4))
    bad = tmp_path / "bad.nii"
    bad.write_bytes(good.read_bytes()[:500])
    cases = [Case("a", "a", (str(good),), None), Case("b", "b", (str(bad),), None)]
    with pytest.raises(DataError, match=r"bad\.nii"):
        predict_cases([model_of((1.0,) * 3)], cases, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.nii"]


# ---- what else is made of a case


class Notes:
    """An extra that writes down how it is called."""

    def __init__(self, consumer: object = None, refused: str = "") -> None:
        self.calls: list[tuple] = []
        self.consumer, self.refused = consumer, refused

    def begin(self, loaded, members, path):
        self.calls.append(("begin", loaded.id, len(members), path.name, path.exists()))
        self.loaded, self.path = loaded, path
        return self.consumer

    def finish(self, labels):
        self.calls.append(("finish", labels.shape, int(labels.sum()), self.path.exists()))
        self.labels = labels
        if self.loaded.id == self.refused:
            raise DataError(f"{self.loaded.file}: refused", remedy="none")


def test_an_extra_sees_every_case_before_its_label_file_is_written(tmp_path):
    """In the axis order of the plan, in which the image is: brightness and labels agree voxel by voxel."""
    image = picture((8, 9, 10))
    files = [nifti(tmp_path / f"{name}.nii", image, np.diag([1, -1, 1, 1])) for name in "ab"]
    cases = [Case(path.stem, path.stem, (str(path),), None) for path in files]
    extra, bright = Notes(), int((image > THRESHOLD).sum())
    model = model_of((1.0,) * 3, plan=plan_of(axis_order=(2, 0, 1)))
    predict_cases([model], cases, tmp_path / "out", extras=[extra])
    assert extra.calls == [
        call
        for name in "ab"
        for call in (("begin", name, 1, f"{name}.nii", False), ("finish", (10, 8, 9), bright, False))
    ]
    np.testing.assert_array_equal(extra.labels, (extra.loaded.image[0] > THRESHOLD).astype(int))


def test_what_an_extra_refuses_is_a_fault_of_its_image(tmp_path):
    files = [nifti(tmp_path / f"{name}.nii", picture((8, 9, 10))) for name in "ab"]
    cases = [Case(path.stem, path.stem, (str(path),), None) for path in files]
    faults: list = []
    made = predict_cases(
        [model_of((1.0,) * 3)], cases, tmp_path / "out", faults=faults, extras=[Notes(refused="a")]
    )  # fmt: skip
    assert [(fault.case, fault.what) for fault in faults] == [("a", "refused")]
    assert [prediction.case for prediction in made] == ["b"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["b.nii"]


def test_consumers_of_extras_are_passed_to_what_decides(tmp_path, monkeypatch):
    seen = []

    def decided(members, loaded, consumers=(), rule=None):
        seen.append(list(consumers))
        return np.zeros(loaded.image.shape[1:], np.uint8)

    monkeypatch.setattr("autoseg.inference.predict.decide", decided)
    path = nifti(tmp_path / "image.nii", picture((8, 9, 10)))
    for extras in ([], [Notes()], [Notes("one"), Notes(), Notes("two")]):
        predict_cases([model_of((1.0,) * 3)], [case_of(path)], tmp_path / "out", extras=extras)
    assert seen == [[], [], ["one", "two"]]
