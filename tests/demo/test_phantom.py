"""The synthetic dataset: equal bytes every time, the anatomy it promises, where in the world it says."""

import csv
import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from autoseg.demo.phantom import (
    LABELS,
    ORIENTATIONS,
    Ellipsoid,
    Wave,
    _pool,
    _rotation,
    make_anatomy,
    make_scan,
    render,
    write_dataset,
    write_nifti,
)
from autoseg.imaging.geometry import Geometry, Volume
from phantom import sphere, tiny_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="module")
def label_files(dataset) -> list[Path]:
    return sorted([*(dataset / "labelsTr").iterdir(), *(dataset / "labelsTs").iterdir()])


def digests(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def patients(dataset: Path) -> dict[str, str]:
    with open(dataset / "patients.csv", newline="") as file:
        return {row["case"]: row["patient"] for row in csv.DictReader(file)}


def world_centre(mask: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Mean position of a mask in NIfTI's world (to the Right, Anterior, Superior)."""
    return affine[:3, :3] @ np.argwhere(mask).mean(axis=0) + affine[:3, 3]


# The dataset


@pytest.mark.thorough
def test_bytes_are_equal_in_another_process_with_other_threads_and_hashes(dataset, tmp_path):
    code = "import sys, pathlib, autoseg.demo.phantom as p; p.write_dataset(pathlib.Path(sys.argv[1]), cases=1)"
    environment = os.environ | {"PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "2"}
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], check=True, env=environment, cwd=Path(__file__).parents[2]
    )
    first, second = digests(dataset), digests(tmp_path)
    assert len(second) == 2 * (1 + 4) + 2
    shared = set(second) - {"dataset.json", "patients.csv"}  # these two count the cases
    assert {name: first[name] for name in shared} == {name: second[name] for name in shared}


def test_another_seed_is_another_dataset():
    (first, first_labels), (second, second_labels) = (make_scan(make_anatomy(0, seed), 0, 0, seed) for seed in (1, 2))
    assert first.geometry != second.geometry
    assert (first_labels.array == 1).sum() != (second_labels.array == 1).sum()
    assert make_anatomy(0, 1).hounsfield != make_anatomy(0, 2).hounsfield


def test_layout_is_that_of_nnunet(dataset):
    description = json.loads((dataset / "dataset.json").read_text())
    assert description["channel_names"] == {"0": "CT"}
    assert description["labels"] == {"background": 0, "liver": 1, "kidney": 2, "lesion": 3}
    assert description["numTraining"] == 20
    for subset, count in (("Tr", 20), ("Ts", 4)):
        images = {path.name.removesuffix("_0000.nii.gz") for path in (dataset / f"images{subset}").iterdir()}
        labels = {path.name.removesuffix(".nii.gz") for path in (dataset / f"labels{subset}").iterdir()}
        assert images == labels
        assert len(images) == count
    assert len(patients(dataset)) == 24


def test_every_case_has_both_organs_and_some_lack_the_lesion(label_files):
    without = Counter()
    for path in label_files:
        counts = np.bincount(np.asarray(nibabel.load(path).dataobj).ravel())
        assert counts.size <= len(LABELS)
        assert counts[LABELS["liver"]] > 500
        assert counts[LABELS["kidney"]] > 120
        lesion = counts[LABELS["lesion"]] if counts.size == len(LABELS) else 0
        assert lesion == 0 or lesion >= 20
        without[path.parent.name] += lesion == 0
    assert without == {"labelsTr": 6, "labelsTs": 1}  # patients 1 (twice), 5, 9, 13 (twice); patient 101


def test_five_patients_are_scanned_twice_and_nobody_is_on_both_sides(dataset):
    patient = patients(dataset)
    training = Counter(patient[path.name.removesuffix(".nii.gz")] for path in (dataset / "labelsTr").iterdir())
    held_out = {patient[path.name.removesuffix(".nii.gz")] for path in (dataset / "labelsTs").iterdir()}
    assert sorted(training.values()) == [1] * 10 + [2] * 5
    assert len(held_out) == 4
    assert not held_out & set(training)


def test_two_scans_show_the_same_anatomy_on_other_grids():
    anatomy = make_anatomy(4)
    (first, first_labels), (second, second_labels) = (make_scan(anatomy, 4, scan) for scan in (0, 1))
    assert first.geometry.spacing != second.geometry.spacing
    for label in (1, 2):
        volumes = [
            (labels.array == label).sum() * np.prod(labels.geometry.spacing) for labels in (first_labels, second_labels)
        ]
        assert volumes[0] == pytest.approx(volumes[1], rel=0.1)  # voxels of 2 to 4 mm
    again, _ = make_scan(anatomy, 4, 0)
    assert np.array_equal(first.array, again.array)


def test_spacings_shapes_and_orientations_are_mixed(label_files):
    images = [nibabel.load(path) for path in label_files]
    assert {"".join(nibabel.aff2axcodes(image.affine)) for image in images} == set(ORIENTATIONS)
    assert len({image.header.get_zooms() for image in images}) > 15
    for image in images:
        canonical = nibabel.as_closest_canonical(image)
        x, y, z = canonical.header.get_zooms()
        assert x == y
        assert 2.2 <= x <= 3.0
        assert 2.4 <= z <= 3.6
        assert all(24 <= n <= 44 for n in image.shape)


def test_organs_lie_where_they_belong_in_the_world(dataset, label_files):
    for path in label_files:
        labels = nibabel.load(path)
        subset = path.parent.name.removeprefix("labels")
        image = nibabel.load(dataset / f"images{subset}" / path.name.replace(".nii.gz", "_0000.nii.gz"))
        assert np.array_equal(labels.affine, image.affine)
        values = np.asarray(labels.dataobj)
        body = world_centre(np.asarray(image.dataobj) > -500, labels.affine)
        liver, kidneys = (world_centre(values == label, labels.affine) - body for label in (1, 2))
        assert liver[0] > 3, "the liver is on the right"
        assert kidneys[1] < -2, "the kidneys are at the back"
        assert liver[2] > kidneys[2] + 5, "the liver is above the kidneys"


@pytest.mark.parametrize("code", ORIENTATIONS)
def test_file_puts_every_voxel_where_the_geometry_says(tmp_path, code):
    rng = np.random.default_rng(0)
    geometry = Geometry(shape=(3, 4, 5), spacing=(2.5, 1.5, 1.25), origin=(10.0, -7.0, 4.0))
    volume = Volume(rng.permutation(60).reshape(1, 3, 4, 5).astype(np.float32), geometry)
    write_nifti(tmp_path / "a.nii.gz", volume, code)
    stored = nibabel.load(tmp_path / "a.nii.gz")
    values = np.asarray(stored.dataobj)
    assert "".join(nibabel.aff2axcodes(stored.affine)) == code
    assert stored.header.get_xyzt_units()[0] == "mm"
    assert np.allclose(stored.get_qform(), stored.get_sform(), atol=1e-5)
    assert stored.header["qform_code"] == stored.header["sform_code"] == 1
    for z, y, x in np.ndindex(3, 4, 5):
        right, anterior, superior = -(10.0 + 1.25 * x), -(-7.0 + 1.5 * y), 4.0 + 2.5 * z
        index = np.linalg.inv(stored.affine) @ [right, anterior, superior, 1]
        assert np.allclose(index, np.rint(index), atol=1e-4)
        assert values[tuple(np.rint(index[:3]).astype(int))] == volume.array[0, z, y, x]


def test_values_are_those_of_tissues_with_noise(dataset, label_files):
    for path in label_files[:6]:
        image = nibabel.load(dataset / "imagesTr" / path.name.replace(".nii.gz", "_0000.nii.gz"))
        assert image.get_data_dtype() == np.int16
        values, labels = np.asarray(image.dataobj), np.asarray(nibabel.load(path).dataobj)
        assert values.min() >= -1024
        assert 300 < values.max() < 700  # cortical bone
        air = values[values < -900]
        assert np.median(air) == pytest.approx(-1000, abs=2)
        assert 8 < air[air >= -1000].astype(float).std() * np.sqrt(1 / (1 - 2 / np.pi)) < 12  # a half normal, sigma 10
        for label, value in ((1, 64), (2, 50)):
            assert np.median(values[labels == label]) == pytest.approx(value, abs=35)  # +-4, and the bias field


def test_organs_cannot_be_separated_by_their_value_alone():
    image, labels = make_scan(make_anatomy(0), 0, 0)
    liver, kidney = (image.array[0][labels.array == label] for label in (1, 2))
    low, high = np.percentile(liver, [5, 95])
    assert ((kidney > low) & (kidney < high)).mean() > 0.3


def test_voxels_at_borders_mix_what_they_hold():
    anatomy = make_anatomy(3)
    geometry = Geometry(shape=(40, 44, 48), spacing=(2.1, 1.8, 1.8))
    image, labels = render(anatomy, geometry)
    pure = np.isclose(image[..., None], np.array([*anatomy.hounsfield.values()]), atol=1e-3).any(axis=-1)
    inside = np.zeros_like(pure)
    for axis in range(3):
        for step in (-1, 1):
            inside |= np.roll(labels, step, axis) != labels
    border = (labels > 0) & inside
    assert 0.3 < (~pure[border]).mean() < 1.0
    assert pure[(labels > 0) & ~inside].mean() > 0.8
    eighths = (image[~pure & (image < 0) & (image > -900)] + 1000) * 8
    assert eighths.size > 500  # between air and skin


def test_lesion_is_a_part_of_the_liver():
    anatomy = make_anatomy(3)
    geometry = Geometry(shape=(40, 44, 48), spacing=(2.1, 1.8, 1.8))
    assert anatomy.lesion is not None
    _, with_lesion = render(anatomy, geometry)
    _, without = render(replace(anatomy, lesion=None), geometry)
    assert set(without[with_lesion == 3]) == {1}
    assert np.array_equal(without[with_lesion != 3], with_lesion[with_lesion != 3])
    beside = replace(anatomy.lesion, centre=np.array([20.0, -10.0, -25.0]))  # inside the body, far from the liver
    assert 3 not in render(replace(anatomy, lesion=beside), geometry)[1]


# Its parts


def test_distance_of_a_sphere_is_exact():
    ball = Ellipsoid(np.array([1.0, 2.0, 3.0]), np.full(3, 2.0), np.eye(3))
    points = np.array([[1.0, 2.0, 8.0], [1.0, 2.0, 4.0], [4.0, 6.0, 3.0]]).T  # 5, 1 and 5 mm from the centre
    assert np.allclose(ball.distance(points), [3, -1, 3])
    assert ball.distance(np.array([[1.0], [2.0], [3.0]]))[0] < -1, "the centre itself is inside"


def test_distance_of_an_ellipsoid_vanishes_on_its_surface_and_follows_its_axes():
    turned = np.array([[0.0, 1, 0], [0, 0, 1], [1, 0, 0]])  # its first axis is world y
    body = Ellipsoid(np.zeros(3), np.array([5.0, 2.0, 3.0]), turned)
    on_surface = np.array([[0, 5, 0], [0, 0, 2], [3, 0, 0]], dtype=float).T
    assert np.allclose(body.distance(on_surface), 0, atol=1e-9)
    assert np.allclose(body.distance(on_surface * 1.01), [0.05, 0.02, 0.03], rtol=0.02)


def test_rotation_is_proper_and_within_its_angle():
    for seed in range(20):
        matrix = _rotation(np.random.default_rng(seed), 10)
        assert np.allclose(matrix @ matrix.T, np.eye(3), atol=1e-12)
        assert np.linalg.det(matrix) == pytest.approx(1)
        assert np.degrees(np.arccos((np.trace(matrix) - 1) / 2)) <= 10


def test_moved_wave_is_the_wave_at_the_moved_point():
    rng = np.random.default_rng(0)
    wave = Wave(rng.normal(size=3), 0.7, np.zeros(3))
    rotation, shift = _rotation(rng, 40), rng.normal(size=3)
    z, y, x = rng.normal(size=(3, 2))
    grid = wave.moved(rotation, shift).on_grid(z, y, x)
    for k, j, i in np.ndindex(2, 2, 2):
        moved = rotation @ np.array([x[i], y[j], z[k]]) + shift
        assert grid[k, j, i] == pytest.approx(np.sin(wave.vector @ moved + 0.7), abs=1e-5)


def test_block_becomes_its_mean_and_its_most_frequent_label():
    labels = np.zeros((2, 2, 6), np.uint8)
    labels[..., :2] = np.array([3, 3, 3, 3, 3, 1, 1, 1]).reshape(2, 2, 2)  # five against three
    labels[..., 2:4] = np.array([2, 2, 2, 2, 1, 1, 1, 1]).reshape(2, 2, 2)  # equal: the lower one
    image = np.where(labels == 3, 80.0, np.where(labels == 1, 8.0, 0.0)).astype(np.float32)
    mean, most = _pool(image, labels)
    assert most.tolist() == [[[3, 1, 0]]]
    assert mean.tolist() == [[[53.0, 4.0, 0.0]]]  # (5 * 80 + 3 * 8) / 8 and 4 * 8 / 8


# The tiny datasets of the other tests


def test_sphere_counts_voxels_in_millimetres():
    assert sphere((5, 5, 5), (2, 2, 2), 1).sum() == 7  # centre and six neighbours
    assert sphere((5, 5, 5), (2, 2, 2), 1, (2, 1, 1)).sum() == 5  # those along z are 2 mm away
    assert sphere((5, 5), (2, 2), 1).sum() == 5


@pytest.mark.parametrize("layout", ["nnunet", "plain"])
@pytest.mark.parametrize(("dims", "channels"), [(3, 1), (3, 2), (2, 1), (2, 3)])
def test_tiny_dataset_is_as_ordered(tmp_path, layout, dims, channels):
    names = ["anna", "anna", "bert"]
    tiny_dataset(tmp_path, cases=3, channels=channels, dims=dims, labels=3, patients=names, layout=layout)
    images = sorted(tmp_path.glob("images*/*"))
    labels = sorted(tmp_path.glob("labels*/*"))
    assert (len(images), len(labels)) == (3 * channels, 3)
    assert (tmp_path / "dataset.json").exists() == (layout == "nnunet")
    assert list(patients(tmp_path).values()) == names
    for path in labels:
        values = np.asarray(Image.open(path)) if dims == 2 else np.asarray(nibabel.load(path).dataobj)
        assert np.unique(values).tolist() == [0, 1, 2, 3]
        assert values.ndim == dims
