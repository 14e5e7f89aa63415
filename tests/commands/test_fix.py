"""`check --fix`: a corrected copy, every change listed, the original untouched. Data made up here, answers by hand."""

import csv
import gzip
import json
import os
import shutil
import struct
import sys
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from autoseg.cli import main
from autoseg.commands import fix
from autoseg.commands.check import check_dataset
from autoseg.commands.fix import fix_dataset, sharing_files
from autoseg.datasets.dataset import IntakeOptions
from autoseg.datasets.fixing.copying import MARK
from autoseg.datasets.pairing import Case
from autoseg.errors import DataError, StateError, StorageError, UsageError
from autoseg.imaging.formats.readers import read_geometry, read_image, read_labels
from autoseg.lines import shown_by
from files import AFFINE, nifti
from hostile import header_bomb, impostor, jpeg_mask
from phantom import tiny_dataset

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import fix_planted_faults as planted


class Told(list):
    """What a command said."""

    @property
    def text(self) -> str:
        return "\n".join(self)

    def line(self, *words: str) -> str:
        """The one line that holds all these words."""
        (found,) = [line for line in self.text.splitlines() if all(word in line for word in words)]
        return found


def fixed(root: Path, out: Path, **options: object) -> tuple[int, Told]:
    told = Told()
    with shown_by(told.append):
        report = fix_dataset(root, out, **options)  # type: ignore[arg-type]
    return 0 if report.complete else 3, told


def checked(root: Path) -> tuple[int, str]:
    told = Told()
    with shown_by(told.append):
        report = check_dataset(root, IntakeOptions())
    return 0 if report.usable else 3, told.text


def rows(out: Path) -> list[dict[str, str]]:
    with open(out / "changes.csv", newline="") as file:
        return list(csv.DictReader(file))


def save(path: Path, array: np.ndarray, affine: np.ndarray) -> Path:
    """Write (x, y, z) voxels with an affine (RAS) in both forms."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


def plain(root: Path, cases: int = 4, shape: tuple[int, int, int] = (6, 7, 8)) -> Path:
    """images/ and labels/ with sound cases c0, c1, ...: random voxels, label 1 in a box of 2 x 2 x 2 voxels."""
    for i in range(cases):
        label = np.zeros(shape, np.uint8)
        label[2:4, 2:4, 2:4] = 1
        image = np.random.default_rng(i).integers(0, 200, shape).astype(np.int16)
        save(root / "images" / f"c{i}.nii.gz", image, AFFINE)
        save(root / "labels" / f"c{i}.nii.gz", label, AFFINE)
    return root


def array(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


# ---- the whole


@pytest.mark.thorough
def test_eight_planted_faults_are_mended(tmp_path):
    folder = tiny_dataset(tmp_path / "data", cases=9, channels=2)
    whole = tiny_dataset(tmp_path / "whole", cases=9, channels=2)
    planted.plant(folder)
    before = planted.digest(folder)
    assert checked(folder)[0] == 3
    assert "--fix OUT" in checked(folder)[1]
    code, _told = fixed(folder, tmp_path / "out", mapping={255: 2})
    assert code == 0
    assert planted.digest(folder) == before
    assert checked(tmp_path / "out") == (0, checked(tmp_path / "out")[1])
    assert "no problem was found" in checked(tmp_path / "out")[1]
    assert "--fix" not in checked(tmp_path / "out")[1]
    listed = {row["file"]: row["method"] for row in rows(tmp_path / "out")}
    assert listed == {
        "imagesTr/case_00_0001.nii.gz": "channel resampled (linear)",
        "labelsTr/case_01.nii.gz": "axes reordered",
        "labelsTr/case_02.nii.gz": "header snapped",
        "labelsTr/case_03.nii.gz": "header copied",
        "imagesTr/case_04_0000.nii.gz": "extension corrected",
        "imagesTr/case_05_0001.nii.gz": "double compression undone",
        "labelsTr/case_06.nii.gz": "values mapped on request",
        "dataset.json": "number corrected",
    }
    for name in (
        "labelsTr/case_01",
        "labelsTr/case_02",
        "labelsTr/case_03",
        "labelsTr/case_06",
        "imagesTr/case_04_0000",
        "imagesTr/case_05_0001",
    ):
        mended, sound = tmp_path / "out" / f"{name}.nii.gz", whole / f"{name}.nii.gz"
        np.testing.assert_array_equal(array(mended), array(sound))
        np.testing.assert_allclose(nib.load(mended).affine, nib.load(sound).affine, atol=1e-6)
    assert json.loads((tmp_path / "out" / "dataset.json").read_text())["numTraining"] == 9
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"changes.csv", "dataset.json", "imagesTr", "labelsTr"}


def test_a_sound_data_set_is_copied_byte_for_byte(tmp_path):
    folder = tiny_dataset(tmp_path / "data", cases=3, patients=["a", "a", "b"])
    (folder / "splits_final.json").write_text(json.dumps([{"train": ["case_02"], "val": ["case_00", "case_01"]}]))
    (folder / "notes.txt").write_text("scanned in May")
    code, told = fixed(folder, tmp_path / "out")
    assert code == 0
    assert "0 changes" in told.text
    for path in folder.rglob("*"):
        if path.is_file():
            assert (tmp_path / "out" / path.relative_to(folder)).read_bytes() == path.read_bytes()
            assert (tmp_path / "out" / path.relative_to(folder)).stat().st_ino != path.stat().st_ino  # no hard link


def test_what_cannot_be_mended_is_left_out_and_named(tmp_path):
    folder = tiny_dataset(tmp_path / "data", cases=8, channels=2, patients=[f"p{i}" for i in range(8)])
    ids = [f"case_{i:02d}" for i in range(8)]
    (folder / "splits_final.json").write_text(
        json.dumps([{"train": ids[:6], "val": ids[6:]}, {"train": ids[6:], "val": ids[:6]}])
    )
    (folder / "imagesTr" / "case_00_0001.nii.gz").unlink()
    (folder / "labelsTr" / "case_01.nii.gz").unlink()
    damaged = folder / "imagesTr" / "case_02_0000.nii.gz"
    damaged.write_bytes(damaged.read_bytes()[:700])
    image = nib.load(folder / "labelsTr" / "case_03.nii.gz")
    moved = image.affine.copy()
    moved[:3, 3] += 5
    save(folder / "labelsTr" / "case_03.nii.gz", np.asarray(image.dataobj), moved)
    save(folder / "labelsTr" / "case_99.nii.gz", np.ones((3, 3, 3), np.uint8), AFFINE)  # of no image
    code, told = fixed(folder, tmp_path / "out")
    assert code == 3
    assert checked(tmp_path / "out")[0] == 0
    assert "no problem was found" in told.text
    assert "missing channel" in told.line("case_00 ", "left out")
    assert "missing label" in told.line("case_01 ", "left out")
    assert "truncated" in told.line("case_02 ", "left out")
    assert "one header is wrong" in told.line("case_03 ", "left out")
    assert "no image" in told.line("case_99 ", "left out")
    out = tmp_path / "out"
    assert sorted(p.name for p in (out / "labelsTr").iterdir()) == [f"case_{i:02d}.nii.gz" for i in range(4, 8)]
    assert len(list((out / "imagesTr").iterdir())) == 8
    assert json.loads((out / "splits_final.json").read_text()) == [
        {"train": ["case_04", "case_05"], "val": ["case_06", "case_07"]},
        {"train": ["case_06", "case_07"], "val": ["case_04", "case_05"]},
    ]
    assert (out / "patients.csv").read_text().split() == ["case,patient", *(f"case_{i:02d},p{i}" for i in range(4, 8))]
    assert json.loads((out / "dataset.json").read_text())["numTraining"] == 4


def test_nothing_sound_remains(tmp_path):
    folder = plain(tmp_path / "data", cases=2)
    for path in (folder / "images").iterdir():
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match="every case has a fault"):
        fixed(folder, tmp_path / "out")


# ---- grids


def test_channels_on_another_grid(tmp_path):
    """The second channel holds 10 * x mm: a ramp in space, which linear interpolation keeps wherever it is sampled."""
    folder = tmp_path / "data"
    coarse, fine = np.diag([-2.0, -2, 2, 1]), np.diag([-0.5, -0.5, 6, 1])
    fine[:3, 3] = 0.75, 0.75, 2  # the same field of view: edges at 1 and -1 mm
    for i in range(2):
        case = folder / f"p{i}"
        label = np.zeros((10, 10, 12), np.uint8)
        label[4:6, 4:6, 4:6] = 1
        save(case / "dwi.nii.gz", np.random.default_rng(i).normal(100, 9, (10, 10, 12)).astype(np.float32), coarse)
        x = np.indices((40, 40, 4))[0]
        save(case / "flair.nii.gz", (10 * (-0.75 + 0.5 * x) + i).astype(np.float32), fine)  # in LPS, x grows from -0.75
        save(case / "seg.nii.gz", label, coarse)
    assert checked(folder)[0] == 3
    code, told = fixed(folder, tmp_path / "out")
    assert code == 0
    assert checked(tmp_path / "out")[0] == 0
    mended = array(tmp_path / "out" / "p0" / "flair.nii.gz")
    assert mended.shape == (10, 10, 12)
    wanted = 10 * 2.0 * np.arange(10)
    np.testing.assert_allclose(mended[2:8, 5, 5], wanted[2:8], atol=0.05)
    line = told.line("p0/flair.nii.gz", "channel resampled")
    assert "(4, 40, 40) voxels of (6, 0.5, 0.5) mm; the first channel: (12, 10, 10) voxels of (2, 2, 2) mm" in line
    assert "smoothed by (0, 1.5, 1.5)" in line
    assert "outside" not in line
    assert (tmp_path / "out/p0/dwi.nii.gz").read_bytes() == (folder / "p0/dwi.nii.gz").read_bytes()


@pytest.mark.parametrize(("shift", "mended"), [(4, True), (6, False)])
def test_channels_that_hardly_overlap_are_refused(tmp_path, shift, mended):
    """Of ten slices, the second channel shows six or four of the first one's."""
    folder = tmp_path / "data"
    for i in range(2):
        moved = np.eye(4)
        moved[2, 3] = shift * (i == 0)
        voxels = np.random.default_rng(i).normal(50, 9, (8, 8, 10)).astype(np.float32)
        voxels[0, 0, 0] = -7
        label = np.zeros((8, 8, 10), np.uint8)
        label[3:5, 3:5, 3:5] = 1
        save(folder / f"p{i}" / "a.nii.gz", voxels + i, np.eye(4))
        save(folder / f"p{i}" / "b.nii.gz", voxels, moved)
        save(folder / f"p{i}" / "seg.nii.gz", label, np.eye(4))
    code, told = fixed(folder, tmp_path / "out")
    assert code == (0 if mended else 3)
    if not mended:
        assert "hardly overlap: it covers 40% of the first channel" in told.line("p0 ", "left out")
        assert not (tmp_path / "out" / "p0").exists()
        return
    ours, source = array(tmp_path / "out/p0/b.nii.gz"), array(folder / "p0/b.nii.gz")
    np.testing.assert_allclose(ours[:, :, 4:], source[:, :, :6], rtol=1e-6)
    assert (ours[:, :, :4] == -7).all()
    assert "40.0% of the grid was outside it: -7, its minimum" in told.line("p0/b.nii.gz")


def flair_case(folder: Path, name: str, box: tuple[slice, slice, slice]) -> None:
    """DWI of 2 mm, FLAIR of 0.5 x 0.5 x 6 mm over the same extent, and a label on the FLAIR's grid."""
    coarse, fine = np.diag([-2.0, -2, 2, 1]), np.diag([-0.5, -0.5, 6, 1])
    fine[:3, 3] = 0.75, 0.75, 2
    label = np.zeros((40, 40, 4), np.int16)
    label[box] = 1
    rng = np.random.default_rng(len(name))
    save(folder / name / "dwi.nii.gz", rng.normal(size=(10, 10, 12)).astype(np.float32), coarse)
    save(folder / name / "flair.nii.gz", rng.normal(size=(40, 40, 4)).astype(np.float32), fine)
    save(folder / name / "seg.nii.gz", label, fine)


def test_a_label_drawn_on_the_second_channel(tmp_path):
    """Eight by eight pixels of 0.5 mm and one slice of 6 mm: 96 mm³, which are 2 x 2 x 3 voxels of the first."""
    folder = tmp_path / "data"
    flair_case(folder, "a", np.s_[8:16, 12:20, 1:2])
    flair_case(folder, "bb", np.s_[8:16, 12:20, 1:2])
    code, told = fixed(folder, tmp_path / "out")
    assert code == 0
    label = array(tmp_path / "out/a/seg.nii.gz")
    wanted = np.zeros((10, 10, 12), np.int16)
    wanted[2:4, 3:5, 3:6] = 1
    np.testing.assert_array_equal(label, wanted)
    assert label.dtype == np.int16
    line = told.line("a/seg.nii.gz", "label resampled (nearest)")
    assert "drawn on flair.nii.gz" in line
    assert "1: 0.096 -> 0.096 ml (+0.0%)" in line


def test_a_label_that_would_vanish_is_not_moved(tmp_path):
    folder = tmp_path / "data"
    flair_case(folder, "a", np.s_[9:10, 13:14, 1:2])  # one pixel, between two centres of the first channel
    flair_case(folder, "bb", np.s_[8:16, 12:20, 1:2])
    code, told = fixed(folder, tmp_path / "out")
    assert code == 3
    assert "label 1 would vanish" in told.line("a ", "left out", "seg.nii.gz")


def test_a_cropped_label_is_filled_up(tmp_path):
    folder = plain(tmp_path / "data")
    save(folder / "labels/c0.nii.gz", array(folder / "labels/c0.nii.gz")[:5], AFFINE)  # 5 of 6 columns
    code, told = fixed(folder, tmp_path / "out")
    assert code == 0
    np.testing.assert_array_equal(array(tmp_path / "out/labels/c0.nii.gz"), array(folder / "labels/c1.nii.gz"))
    assert "16.7% of the image was outside it and became background" in told.line("labels/c0.nii.gz")


def test_a_label_that_shows_half_of_the_image_is_refused(tmp_path):
    folder = plain(tmp_path / "data")
    save(folder / "labels/c0.nii.gz", array(folder / "labels/c0.nii.gz")[:4], AFFINE)  # 4 of 6 columns: 67 %
    code, told = fixed(folder, tmp_path / "out")
    assert code == 3
    assert "hardly overlap: 67% of the image is inside it" in told.line("c0 ", "left out")


def test_nothing_is_computed_on_the_extent_that_a_damaged_header_claims(tmp_path):
    """A first channel of 27 thousand million voxels, as a header of some hundred bytes says."""
    folder = plain(tmp_path / "data")
    shutil.move(header_bomb(tmp_path), folder / "images/c0.nii.gz")
    code, told = fixed(folder, tmp_path / "out")
    assert code == 3
    assert "truncated or its header is wrong" in told.line("images/c0.nii.gz", "left out")


def test_a_label_beyond_the_image_is_refused(tmp_path):
    """A bigger label map of which the labelled voxels lie outside of the image."""
    folder = plain(tmp_path / "data")
    label = np.zeros((20, 20, 20), np.uint8)
    label[15:17, 15:17, 15:17] = 1
    save(folder / "labels/c0.nii.gz", label, AFFINE)
    code, told = fixed(folder, tmp_path / "out")
    assert code == 3
    assert "0% of its labels in the image" in told.line("c0 ", "left out")


@pytest.mark.thorough
@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd", ".mha"])
@pytest.mark.parametrize("order", ["RAS", "SPL", "AIR"])
def test_labels_in_another_order_are_reordered_exactly(tmp_path, ending, order):
    folder = plain(tmp_path / "data")
    path = folder / "labels/c0.nii.gz"
    sound = array(path).astype(np.int16)
    sound[0, 1, 2], sound[5, 6, 7] = -32768 + 32769, 1  # both corners tell one order from another
    turned = sitk.DICOMOrient(sitk.ReadImage(str(save(path, sound, AFFINE))), order)
    path.unlink()
    other = folder / f"labels/c0{ending}"
    sitk.WriteImage(turned, str(other))
    code, _ = fixed(folder, tmp_path / "out")
    assert code == 0
    mended = read_labels(tmp_path / f"out/labels/c0{ending}")
    np.testing.assert_array_equal(mended.array, sound.T)
    image = read_geometry(tmp_path / "out/images/c0.nii.gz")
    np.testing.assert_allclose(mended.geometry.origin, image.origin, atol=1e-5)
    np.testing.assert_allclose(mended.geometry.direction, image.direction, atol=1e-6)
    assert checked(tmp_path / "out")[0] == 0


def test_a_channel_with_scaling_is_reordered_with_it(tmp_path):
    folder = tmp_path / "data"
    for i in range(2):
        stored = np.random.default_rng(i).integers(0, 1000, (5, 6, 7)).astype(np.int16)
        save(folder / f"p{i}/a.nii.gz", stored, AFFINE)
        scaled = nib.Nifti1Image(stored, AFFINE)
        scaled.header.set_slope_inter(0.5, -10)
        turned = nib.Nifti1Image(
            stored[::-1], AFFINE @ np.array([[-1, 0, 0, 4], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
        )
        raw = bytearray(turned.to_bytes())
        struct.pack_into("<2f", raw, 112, 0.5, -10.0)
        (folder / f"p{i}/b.nii").write_bytes(raw)
        save(folder / f"p{i}/seg.nii.gz", (stored > 500).astype(np.uint8), AFFINE)
    assert fixed(folder, tmp_path / "out")[0] == 0
    mended = nib.load(tmp_path / "out/p0/b.nii")
    assert (mended.dataobj.slope, mended.dataobj.inter) == (0.5, -10.0)
    np.testing.assert_array_equal(mended.dataobj.get_unscaled(), array(folder / "p0/a.nii.gz"))


def test_headers_are_snapped_and_the_voxels_stay(tmp_path):
    folder = plain(tmp_path / "data")
    near, far = AFFINE.copy(), AFFINE.copy()
    near[0, 3] += 0.19  # of 2 mm: 0.095 voxel
    far[0, 3] += 0.21
    for name, affine in (("c0", near), ("c1", far)):
        save(folder / f"labels/{name}.nii.gz", array(folder / f"labels/{name}.nii.gz"), affine)
    code, told = fixed(folder, tmp_path / "out")
    assert code == 3
    assert "at most 0.095 voxel away" in told.line("labels/c0.nii.gz", "header snapped")
    assert "one header is wrong" in told.line("labels/c1.nii.gz", "left out")
    np.testing.assert_array_equal(
        nib.load(tmp_path / "out/labels/c0.nii.gz").affine, nib.load(folder / "images/c0.nii.gz").affine
    )


def test_a_label_written_in_ras_for_lps(tmp_path):
    """The signs of x and y are reversed in the label's header, as by programs that copy an ITK origin into NIfTI."""
    folder = plain(tmp_path / "data")
    wrong = np.diag([-1.0, -1, 1, 1]) @ AFFINE
    save(folder / "labels/c0.nii.gz", array(folder / "labels/c0.nii.gz"), wrong)
    code, told = fixed(folder, tmp_path / "out")
    assert code == 0
    assert "RAS for LPS" in told.line("labels/c0.nii.gz", "header snapped")
    np.testing.assert_array_equal(array(tmp_path / "out/labels/c0.nii.gz"), array(folder / "labels/c0.nii.gz"))


@pytest.mark.parametrize(("factor", "mended"), [(0.001, True), (1000, True), (25.4, True), (1.5, False)])
def test_a_label_in_another_unit_of_length(tmp_path, factor, mended):
    folder = plain(tmp_path / "data")
    wrong = AFFINE.copy()
    wrong[:3] *= factor
    save(folder / "labels/c0.nii.gz", array(folder / "labels/c0.nii.gz"), wrong)
    code, told = fixed(folder, tmp_path / "out")
    assert code == (0 if mended else 3)
    if mended:
        assert "another unit of length" in told.line("labels/c0.nii.gz", "header snapped")
        np.testing.assert_allclose(nib.load(tmp_path / "out/labels/c0.nii.gz").affine, AFFINE)
    else:
        assert not (tmp_path / "out/labels/c0.nii.gz").exists()


def unplaced(path: Path) -> None:
    raw = bytearray(gzip.decompress(path.read_bytes()))
    raw[252:328] = bytes(76)
    path.write_bytes(gzip.compress(bytes(raw)))


def test_headers_without_a_place_take_the_other_one(tmp_path):
    folder = plain(tmp_path / "data")
    unplaced(folder / "labels/c0.nii.gz")
    unplaced(folder / "images/c1.nii.gz")
    code, told = fixed(folder, tmp_path / "out")
    assert code == 0
    for name in ("labels/c0.nii.gz", "images/c1.nii.gz"):
        mended = nib.load(tmp_path / "out" / name)
        np.testing.assert_array_equal(mended.affine, AFFINE)
        assert (int(mended.header["qform_code"]), int(mended.header["sform_code"])) == (0, 2)
        np.testing.assert_array_equal(array(tmp_path / "out" / name), array(folder / name))
    assert "position of images/c0.nii.gz" in told.line("labels/c0.nii.gz", "header copied")


def test_an_unplaced_first_channel_is_no_grid_to_resample_onto(tmp_path):
    """Where it lies was made up by whoever reads it: nothing may be moved there."""
    folder = tmp_path / "data"
    for i in range(3):
        voxels = np.random.default_rng(i).normal(size=(6, 6, 6)).astype(np.float32)
        save(folder / f"p{i}/a.nii.gz", voxels, np.diag([2.0, 2, 2, 1]))
        save(folder / f"p{i}/b.nii.gz", voxels + 1, np.diag([2.0, 2, 2, 1]))
        save(folder / f"p{i}/seg.nii.gz", (voxels > 0).astype(np.uint8), np.diag([2.0, 2, 2, 1]))
    unplaced(folder / "p0/a.nii.gz")
    made_up = nib.load(folder / "p0/a.nii.gz").affine  # about the middle of the image
    half = made_up @ np.array([[0.5, 0, 0, -0.25], [0, 0.5, 0, -0.25], [0, 0, 0.5, -0.25], [0, 0, 0, 1]])
    save(folder / "p0/b.nii.gz", np.ones((12, 12, 12), np.float32), half)
    save(folder / "p0/seg.nii.gz", np.ones((12, 12, 12), np.uint8), half)
    code, told = fixed(folder, tmp_path / "out")
    assert code == 3
    assert "resampled" not in told.text
    assert not (tmp_path / "out/p0").exists()
    assert sorted(p.name for p in (tmp_path / "out").iterdir() if p.is_dir()) == ["p1", "p2"]


# ---- values


def test_values_are_mapped_all_at_once(tmp_path):
    folder = plain(tmp_path / "data")
    label = array(folder / "labels/c0.nii.gz")
    label[0, 0, 0], label[5, 5, 5] = 7, 2
    save(folder / "labels/c0.nii.gz", label, AFFINE)
    code, told = fixed(folder, tmp_path / "out", mapping={1: 2, 2: 1, 7: 0})
    assert code == 0
    mended = array(tmp_path / "out/labels/c0.nii.gz")
    assert mended[2, 2, 2] == 2
    assert mended[5, 5, 5] == 1
    assert mended[0, 0, 0] == 0
    assert "value 1 in 8 voxels, value 2 in 1 voxel, value 7 in 1 voxel" in told.line("labels/c0.nii.gz")
    assert mended.dtype == np.uint8


def test_a_value_that_no_file_holds_is_said(tmp_path):
    code, told = fixed(plain(tmp_path / "data"), tmp_path / "out", mapping={9: 1})
    assert code == 0
    assert "value 9 of --map is in no label file" in told.text


def test_a_label_file_of_two_cases_is_mapped_once(tmp_path):
    """A swap that is done twice is none."""
    folder = plain(tmp_path / "data")
    label = array(folder / "labels/c0.nii.gz")
    label[5, 5, 5] = 2
    save(folder / "labels/c0.nii.gz", label, AFFINE)
    table = folder / "list.csv"
    table.write_text("image,label\nimages/c0.nii.gz,labels/c0.nii.gz\nimages/c1.nii.gz,labels/c0.nii.gz\n")
    assert fixed(table, tmp_path / "out", mapping={1: 2, 2: 1})[0] == 0
    assert array(tmp_path / "out/labels/c0.nii.gz")[5, 5, 5] == 1


def test_labels_by_colour_are_mapped_by_what_the_colours_mean(tmp_path):
    """The last palette numbers red and green the other way: red is 1 by most files; green (2) becomes 5 in all."""
    folder = tmp_path / "data"
    red, green = (255, 0, 0), (0, 255, 0)
    for i in range(4):
        plane = np.zeros((12, 10), np.uint8)
        plane[2:4, 2:4], plane[6:9, 6:9] = (1, 2) if i < 3 else (2, 1)  # red, green
        picture = Image.fromarray(plane, mode="P")
        picture.putpalette([0, 0, 0, *(red + green if i < 3 else green + red)])
        for name, image in (("images", np.random.default_rng(i).integers(0, 200, (12, 10))), ("labels", None)):
            (folder / name).mkdir(parents=True, exist_ok=True)
            saved = picture if image is None else Image.fromarray(image.astype(np.uint8))
            saved.save(folder / name / f"c{i}.png")
    code, _ = fixed(folder, tmp_path / "out", mapping={2: 5})
    assert code == 0
    for i in range(4):
        mended = np.asarray(Image.open(tmp_path / f"out/labels/c{i}.png"))
        assert mended[2, 2] == 1
        assert mended[6, 6] == 5
    code, told = fixed(folder, tmp_path / "again")  # without a mapping: the same, but for the 5
    assert code == 0
    assert "no problem was found" in told.text
    assert np.asarray(Image.open(tmp_path / "again/labels/c3.png"))[6, 6] == 2
    assert "#ff0000 is 1" in told.line("labels/c3.png", "colours to values")


def test_groups_of_cases_that_share_files():
    def case(name: str, *files: str) -> Case:
        return Case(name, name, files[:-1], files[-1])

    a, b, c, d = case("a", "1", "2"), case("b", "3", "4"), case("c", "3", "2"), case("d", "5", "6")
    groups = sharing_files([a, b, c, d])
    assert sorted([sorted(x.id for x in group) for group in groups]) == [["a", "b", "c"], ["d"]]


def test_non_finite_voxels_are_replaced_on_request_alone(tmp_path):
    folder = plain(tmp_path / "data")
    image = array(folder / "images/c0.nii.gz").astype(np.float32)
    image[0, 0, 0], image[1, 1, 1], image[2, 2, 2] = np.nan, np.inf, -np.inf
    save(folder / "images/c0.nii.gz", image, AFFINE)
    code, told = fixed(folder, tmp_path / "without")
    assert code == 3
    assert "1 NaN and 2 infinite" in told.line("c0 ", "left out")
    code, told = fixed(folder, tmp_path / "out", non_finite_to=-5.0)
    assert code == 0
    mended = array(tmp_path / "out/images/c0.nii.gz")
    assert (mended[0, 0, 0], mended[1, 1, 1], mended[2, 2, 2]) == (-5, -5, -5)
    bad = ~np.isfinite(image)
    np.testing.assert_array_equal(mended[~bad], image[~bad])
    assert "-5 there" in told.line("images/c0.nii.gz", "1 NaN and 2 infinite voxels")


def test_labels_near_integers_are_rounded(tmp_path):
    folder = plain(tmp_path / "data")
    for name, value in (("c0", 0.9999), ("c1", 0.9)):
        label = array(folder / f"labels/{name}.nii.gz").astype(np.float32) * np.float32(value)
        save(folder / f"labels/{name}.nii.gz", label, AFFINE)
    code, told = fixed(folder, tmp_path / "out")
    assert code == 3
    assert "as uint8" in told.line("labels/c0.nii.gz", "label values rounded")
    assert "integers" in told.line("labels/c1.nii.gz", "left out")
    np.testing.assert_array_equal(array(tmp_path / "out/labels/c0.nii.gz"), array(folder / "labels/c2.nii.gz"))


# ---- endings and lists


def test_endings_are_set_right_and_names_stay(tmp_path):
    folder = plain(tmp_path / "data", cases=5)
    images, out = folder / "images", tmp_path / "out" / "images"
    packed = {i: (images / f"c{i}.nii.gz").read_bytes() for i in range(5)}
    bare = {i: gzip.decompress(raw) for i, raw in packed.items()}
    (images / "c0.nii.gz").write_bytes(bare[0])
    (images / "c1.nii.gz").unlink()
    (images / "c1.nii").write_bytes(packed[1])
    (images / "c2.nii.gz").write_bytes(gzip.compress(gzip.compress(packed[2])))
    (images / "c3.nii.gz").unlink()
    (images / "c3.nii").write_bytes(gzip.compress(packed[3]))
    (images / "c4.nii.gz").unlink()
    sitk.WriteImage(sitk.ReadImage(str(tmp_path / "data/labels/c4.nii.gz")), str(images / "c4.mha"))
    (images / "c4.mha").rename(images / "c4.nii")  # MetaImage called NIfTI
    code, told = fixed(folder, tmp_path / "out")
    assert code == 0, told.text
    assert gzip.decompress((out / "c0.nii.gz").read_bytes()) == bare[0]
    assert (out / "c1.nii").read_bytes() == bare[1]
    assert (out / "c2.nii.gz").read_bytes() == packed[2]  # the innermost layer, bit for bit
    assert (out / "c3.nii").read_bytes() == bare[3]
    np.testing.assert_array_equal(read_image(out / "c4.nii").array[0], read_labels(folder / "labels/c4.nii.gz").array)
    assert "compressed 3 times" in told.line("images/c2.nii.gz")
    assert "not compressed" in told.line("images/c0.nii.gz")


def test_a_picture_gets_its_own_ending(tmp_path):
    folder = tiny_dataset(tmp_path / "data", cases=4, dims=2)
    description = json.loads((folder / "dataset.json").read_text())
    for path in [*(folder / "imagesTr").iterdir(), *(folder / "labelsTr").iterdir()]:
        path.rename(path.with_suffix(".bmp"))
    (folder / "dataset.json").write_text(json.dumps(description | {"file_ending": ".bmp"}))
    code, told = fixed(folder, tmp_path / "out")
    assert code == 0, told.text
    assert checked(tmp_path / "out")[0] == 0
    assert json.loads((tmp_path / "out/dataset.json").read_text())["file_ending"] == ".png"
    assert (tmp_path / "out/labelsTr/case_00.png").read_bytes() == (folder / "labelsTr/case_00.bmp").read_bytes()
    assert "renamed to case_00.png" in told.line("labelsTr/case_00.png")


def test_one_picture_of_another_kind_is_not_hidden_by_the_declared_ending(tmp_path):
    folder = tiny_dataset(tmp_path / "data", cases=4, dims=2)
    path = folder / "imagesTr/case_01_0000.png"
    Image.open(path).save(folder / "x.tif")
    (folder / "x.tif").rename(path)
    code, told = fixed(folder, tmp_path / "out")
    assert code == 0, told.text
    assert "4 cases" in told.text
    assert "file_ending" not in json.loads((tmp_path / "out/dataset.json").read_text())


def test_jpeg_labels_are_left_out(tmp_path):
    folder = tiny_dataset(tmp_path / "data", cases=4, dims=2, layout="plain")
    (folder / "labels/case_00.png").unlink()
    jpeg_mask(folder / "labels").rename(folder / "labels/case_00.jpg")
    code, told = fixed(folder, tmp_path / "out")
    assert code == 3
    assert "lossy compression" in told.line("case_00", "left out")
    assert "3 cases" in told.text


def test_json_with_two_readings_is_named_and_stays(tmp_path):
    folder = tiny_dataset(tmp_path / "data", cases=3)
    text = (folder / "dataset.json").read_text()
    text = text.replace('"organ_1": 1', '"organ_1": 3, "organ_1": 1').replace('"numTraining": 3', '"numTraining": 4')
    (folder / "dataset.json").write_text(text.replace('"Tiny"', '"Tiny", "name": "Small", "description": "x"'))
    code, told = fixed(folder, tmp_path / "out")
    assert code == 3
    assert "the key 'organ_1' is repeated, with the values '3' and '1'" in told.line("dataset.json", "not repaired")
    assert (tmp_path / "out/dataset.json").read_text().count("organ_1") == 2  # though numTraining was corrected
    assert json.loads((tmp_path / "out/dataset.json").read_text())["numTraining"] == 3
    for place in (folder, tmp_path / "out"):
        code, text = checked(place)
        assert code == 3
        assert "the key 'organ_1' is repeated" in text


@pytest.mark.parametrize("mark", [b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff"])
def test_json_that_is_almost_json(tmp_path, mark):
    folder = tiny_dataset(tmp_path / "data", cases=3)
    text = (folder / "dataset.json").read_text()
    text = text.replace('"Tiny"', '"Tiny, ]}"').replace('"organ_2": 2}', '"organ_2": 2,\n }')
    text = text.rstrip()[:-1] + ", }"  # the last bracket
    coding = {b"\xef\xbb\xbf": "utf-8", b"\xff\xfe": "utf-16-le", b"\xfe\xff": "utf-16-be"}[mark]
    (folder / "dataset.json").write_bytes(mark + text.encode(coding))
    code, told = fixed(folder, tmp_path / "out")
    assert code == 0, told.text
    mended = json.loads((tmp_path / "out/dataset.json").read_text(encoding="utf-8"))
    assert mended["name"] == "Tiny, ]}"  # commas in texts stay
    assert mended["labels"] == {"background": 0, "organ_1": 1, "organ_2": 2}
    assert "2 commas before a closing bracket" in told.text


def test_json_that_is_none_is_refused_before_anything_is_copied(tmp_path):
    folder = tiny_dataset(tmp_path / "data", cases=3)
    (folder / "dataset.json").write_text('{"labels": {')
    with pytest.raises(DataError, match=r"data/dataset\.json is not valid JSON"):
        fixed(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ---- layouts


def test_a_decathlon_data_set_keeps_its_list_true(tmp_path):
    folder = tmp_path / "data"
    entries = []
    for i in range(4):
        voxels = np.random.default_rng(i).normal(size=(6, 6, 6, 2)).astype(np.float32)
        label = (voxels[..., 0] > 0).astype(np.uint8)
        if i == 0:
            label = np.pad(label, ((0, 0), (0, 0), (0, 9)))  # a bigger grid at the same place
            label[:, :, 6:] = 0
        if i == 1:
            voxels[0, 0, 0, 1] = np.nan
        save(folder / f"imagesTr/m_{i}.nii.gz", voxels, np.eye(4))
        save(folder / f"labelsTr/m_{i}.nii.gz", label, np.eye(4))
        entries.append({"image": f"./imagesTr/m_{i}.nii.gz", "label": f"./labelsTr/m_{i}.nii.gz"})
    entries[3]["image"] = str(folder / "imagesTr/m_3.nii.gz")  # absolute, into the original
    description = {
        "name": "M",
        "modality": {"0": "T1", "1": "T2"},
        "labels": {"0": "background", "1": "x"},
        "numTraining": 4,
        "training": entries,
        "test": [],
    }
    (folder / "dataset.json").write_text(json.dumps(description))
    code, _told = fixed(folder, tmp_path / "out")
    assert code == 3
    mended = json.loads((tmp_path / "out/dataset.json").read_text())
    assert [entry["image"] for entry in mended["training"]] == [
        "./imagesTr/m_0.nii.gz",
        "./imagesTr/m_2.nii.gz",
        "imagesTr/m_3.nii.gz",
    ]
    assert mended["numTraining"] == 3
    assert array(tmp_path / "out/labelsTr/m_0.nii.gz").shape == (6, 6, 6)
    assert array(tmp_path / "out/imagesTr/m_0.nii.gz").shape == (6, 6, 6, 2)
    assert checked(tmp_path / "out")[0] == 0


def test_channels_in_one_file_keep_their_order_when_it_is_mended(tmp_path):
    folder = tmp_path / "data"
    for i in range(2):
        voxels = np.random.default_rng(i).normal(size=(4, 5, 6, 3)).astype(np.float32)
        voxels[0, 0, 0, 2] = np.nan
        save(folder / f"images/c{i}.nii.gz", voxels, np.eye(4))
        save(folder / f"labels/c{i}.nii.gz", (voxels[..., 0] > 0).astype(np.uint8), np.eye(4))
    assert fixed(folder, tmp_path / "out", non_finite_to=9)[0] == 0
    mended, source = array(tmp_path / "out/images/c0.nii.gz"), array(folder / "images/c0.nii.gz")
    assert mended[0, 0, 0, 2] == 9
    np.testing.assert_array_equal(np.where(np.isnan(source), 9, source), mended)


@pytest.mark.parametrize("absolute", [False, True])
def test_a_table_points_to_the_copies(tmp_path, absolute):
    data = plain(tmp_path / "scans", cases=4)
    (data / "unlisted.bin").write_bytes(b"x" * 1000)
    table = tmp_path / "lists" / "mine.csv"
    table.parent.mkdir()
    start = str(data) if absolute else "../scans"
    lines = [f"{start}/images/c{i}.nii.gz;{start}/labels/c{i}.nii.gz;p{i % 2}" for i in range(3)]
    table.write_text("Image;Label;Patient\n" + "\n".join(lines) + "\n", encoding="utf-8-sig")
    gzipped = data / "images/c0.nii.gz"
    gzipped.write_bytes(gzip.compress(gzipped.read_bytes()))
    before = planted.digest(tmp_path / "lists") + planted.digest(data)
    code, told = fixed(table, tmp_path / "out")
    assert code == 0, told.text
    assert planted.digest(tmp_path / "lists") + planted.digest(data) == before
    out = tmp_path / "out"
    shutil.rmtree(data)
    shutil.rmtree(table.parent)
    assert checked(out)[0] == 0
    assert checked(out / "mine.csv")[0] == 0
    assert (out / "mine.csv").read_text().splitlines()[0] == "Image;Label;Patient"
    assert (out / "mine.csv").read_text().splitlines()[1] == "elsewhere/images/c0.nii.gz;elsewhere/labels/c0.nii.gz;p0"
    assert sorted(p.name for p in out.rglob("*") if p.is_file()) == sorted(
        ["changes.csv", "mine.csv", *(f"c{i}.nii.gz" for i in range(3)), *(f"c{i}.nii.gz" for i in range(3))]
    )


def test_rows_of_a_table_go_with_their_cases(tmp_path):
    folder = plain(tmp_path / "data", cases=4)
    (folder / "images/c1.nii.gz").write_bytes(b"\x1f\x8b\x08 nothing")
    table = folder / "list.tsv"
    table.write_text(
        "image\tlabel\tfold\n" + "".join(f"images/c{i}.nii.gz\tlabels/c{i}.nii.gz\t{i % 2}\n" for i in range(4))
    )
    code, _told = fixed(folder, tmp_path / "out")
    assert code == 3
    assert [line.split("\t")[0] for line in (tmp_path / "out/list.tsv").read_text().splitlines()] == [
        "image", "images/c0.nii.gz", "images/c2.nii.gz", "images/c3.nii.gz",
    ]  # fmt: skip
    assert checked(tmp_path / "out")[0] == 0


def test_held_out_cases_are_mended_too(tmp_path):
    folder = plain(tmp_path / "data")
    plain(tmp_path / "test", cases=2)
    (tmp_path / "test/images").rename(folder / "imagesTs")
    (tmp_path / "test/labels").rename(folder / "labelsTs")
    for name in ("imagesTs", "labelsTs"):
        for path in (folder / name).iterdir():
            path.rename(path.with_name(f"t{path.name}"))
    voxels = array(folder / "imagesTs/tc0.nii.gz")
    save(folder / "imagesTs/tc0.nii.gz", voxels + 5, AFFINE)
    save(folder / "imagesTs/tc1.nii.gz", array(folder / "imagesTs/tc1.nii.gz") + 7, AFFINE)
    label = array(folder / "labelsTs/tc0.nii.gz")
    label[label == 1] = 255
    save(folder / "labelsTs/tc0.nii.gz", label, AFFINE)
    path = folder / "imagesTs/tc1.nii.gz"
    path.write_bytes(path.read_bytes()[:100])
    code, told = fixed(folder, tmp_path / "out", mapping={255: 1})
    assert code == 3
    assert "4 cases of 4 patients, 1 test case (" in told.text
    assert array(tmp_path / "out/labelsTs/tc0.nii.gz")[2, 2, 2] == 1
    assert not (tmp_path / "out/labelsTs/tc1.nii.gz").exists()


def test_surplus_channels_of_a_case_folder_go_with_it(tmp_path):
    folder = tmp_path / "data"
    for i in range(4):
        voxels = np.random.default_rng(i).normal(size=(4, 4, 4)).astype(np.float32)
        save(folder / f"p{i}/t1.nii.gz", voxels, np.eye(4))
        save(folder / f"p{i}/seg.nii.gz", (voxels > 0).astype(np.uint8), np.eye(4))
    save(folder / "p0/extra.nii.gz", np.ones((4, 4, 4), np.float32), np.eye(4))
    (folder / "p0/t1.nii.gz").write_bytes(b"")
    code, told = fixed(folder, tmp_path / "out")
    assert code == 3
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["changes.csv", "p1", "p2", "p3"]
    assert "is empty (0 bytes)" in told.line("p0 ", "left out")


# ---- the original, and where the copy may stand


def test_a_read_only_original_and_links(tmp_path):
    store = plain(tmp_path / "store")
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "labels").mkdir()
    (folder / "images").symlink_to(store / "images")
    for path in (store / "labels").iterdir():
        (folder / "labels" / path.name).symlink_to(path)
    (folder / "labels/gone.nii.gz").symlink_to(tmp_path / "nowhere.nii.gz")
    (folder / "loop").symlink_to(folder)
    double = store / "images/c0.nii.gz"
    double.write_bytes(gzip.compress(double.read_bytes()))
    for path in store.rglob("*"):
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = planted.digest(store)
    code, told = fixed(folder, tmp_path / "out")
    assert code == 3  # the link to nothing
    assert "which does not exist" in told.line("labels/gone.nii.gz", "left out")
    assert "a link to a folder that holds it" in told.line("loop", "skipped")
    assert planted.digest(store) == before
    copies = list((tmp_path / "out").rglob("*"))
    assert not any(path.is_symlink() for path in copies)
    assert all(os.access(path, os.W_OK) and path.stat().st_mode & 0o200 for path in copies if path.is_file())
    assert checked(tmp_path / "out")[0] == 0
    for path in store.rglob("*"):
        path.chmod(0o755)


@pytest.mark.parametrize("place", ["data", "data/inside", ".", "link/inside"])
def test_a_copy_inside_or_around_the_original_is_refused(tmp_path, place):
    folder = plain(tmp_path / "data")
    (tmp_path / "link").symlink_to(folder)
    before = planted.digest(folder)
    with pytest.raises(UsageError):
        fixed(folder, tmp_path / place)
    assert planted.digest(folder) == before


def test_a_folder_that_is_not_empty_is_refused(tmp_path):
    folder = plain(tmp_path / "data")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/precious.txt").write_text("mine")
    with pytest.raises(UsageError, match="is not empty"):
        fixed(folder, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["precious.txt"]
    (tmp_path / "out/precious.txt").unlink()
    assert fixed(folder, tmp_path / "out")[0] == 0  # empty: fine
    with pytest.raises(UsageError, match="is not empty"):
        fixed(folder, tmp_path / "out")  # finished: not written again


def test_an_interrupted_copy_is_recognised_and_repeated(tmp_path, monkeypatch):
    folder, other = plain(tmp_path / "data set"), plain(tmp_path / "other")
    out = tmp_path / "out"

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(fix, "_mend", killed)
    with pytest.raises(KeyboardInterrupt):
        fixed(folder, out)
    monkeypatch.undo()
    assert (out / MARK).is_file()
    (out / "images" / "stale.nii.gz").write_bytes(b"half")
    with pytest.raises(StateError) as caught:
        checked(out)
    assert caught.value.remedy == f"run again: autoseg check '{folder}' --fix {out}"
    with pytest.raises(UsageError, match="not finished"):
        fixed(other, out)
    assert fixed(folder, out)[0] == 0
    assert not (out / MARK).exists()
    assert not (out / "images/stale.nii.gz").exists()
    assert checked(out)[0] == 0


def test_room_is_asked_for_first(tmp_path, monkeypatch):
    folder = plain(tmp_path / "data")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=10, used=10, free=100))
    with pytest.raises(StorageError, match="the copy needs about"):
        fixed(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_hidden_files_and_workspaces_stay_behind(tmp_path):
    folder = plain(tmp_path / "data")
    (folder / ".git").mkdir()
    (folder / ".git/config").write_text("x")
    (folder / "images/._c0.nii.gz").write_bytes(b"\x00\x05\x16\x07")
    (folder / "autoseg_workspace").mkdir()
    for name in ("plan.json", "fingerprint.json", "big.npy"):
        (folder / "autoseg_workspace" / name).write_text("{}")
    code, told = fixed(folder, tmp_path / "out")
    assert code == 0
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["changes.csv", "images", "labels"]
    assert not (tmp_path / "out/images/._c0.nii.gz").exists()
    assert "a workspace of autoseg" in told.line("autoseg_workspace", "skipped")


def test_what_was_changed_before_is_not_overwritten(tmp_path):
    folder = plain(tmp_path / "data")
    (folder / "changes.csv").write_text("what,when\nall,May\n")
    assert fixed(folder, tmp_path / "out")[0] == 0
    assert (tmp_path / "out/changes.csv").read_text() == "what,when\nall,May\n"
    assert (tmp_path / "out/changes_2.csv").is_file()


def test_an_empty_folder_in_place_of_an_image(tmp_path):
    folder = plain(tmp_path / "data")
    (folder / "images/c0.nii.gz").unlink()
    (folder / "images/c0.nii.gz").mkdir()
    code, told = fixed(folder, tmp_path / "out")
    assert code == 3
    assert "an empty folder, expected a file" in told.line("images/c0.nii.gz", "left out")


def test_impostors_are_left_out(tmp_path):
    folder = plain(tmp_path / "data")
    impostor(folder / "images", "DICOM").rename(folder / "images/c0.nii.gz")
    impostor(folder / "images", "Git LFS").rename(folder / "images/c1.nii.gz")
    code, told = fixed(folder, tmp_path / "out")
    assert code == 3
    assert "a DICOM file" in told.line("c0 ", "left out")
    assert "Git LFS" in told.line("c1 ", "left out")
    assert sorted(p.name for p in (tmp_path / "out/images").iterdir()) == ["c2.nii.gz", "c3.nii.gz"]


# ---- the command


def test_the_command(tmp_path, capsys):
    folder = plain(tmp_path / "data")
    label = array(folder / "labels/c0.nii.gz")
    label[label == 1] = 255
    save(folder / "labels/c0.nii.gz", label, AFFINE)
    arguments = ["check", str(folder), "--labels", "x=1", "--fix", str(tmp_path / "out")]
    assert main([*arguments, "--map", "255=1"]) == 0
    assert "255 is 1" in capsys.readouterr().out
    assert main([*arguments[:2], "--map", "255=1"]) == 2
    assert "--fix OUT" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*arguments, "--map", "255:1"])
    with pytest.raises(SystemExit):
        main([*arguments, "--map", "1=2,1=3"])
    for number in ("nan", "inf", "1e39", "x"):
        with pytest.raises(SystemExit):
            main([*arguments, "--nan-to", number])


def test_nifti_helper_is_what_the_tests_think(tmp_path):
    assert nib.load(nifti(tmp_path / "a.nii.gz")).shape == (6, 5, 4)


def test_a_table_that_spells_accents_otherwise_than_the_disk(tmp_path):
    """Composed on the disk, decomposed in the table for the images, and outside of the table's folder."""
    plain(tmp_path / "K\u00f6ln")
    lines = [f"../Ko\u0308ln/images/c{i}.nii.gz,../K\u00f6ln/labels/c{i}.nii.gz" for i in range(4)]
    table = tmp_path / "lists" / "t.csv"
    table.parent.mkdir()
    table.write_bytes("\r\n".join(["image,label", *lines]).encode())
    assert checked(table)[0] == 0
    copy = tmp_path / "copy"
    assert fixed(table, copy)[0] == 0
    assert len([*copy.rglob("*.nii.gz")]) == 8  # images, too: nothing leads back to the original
    shutil.rmtree(tmp_path / "K\u00f6ln")
    assert checked(copy)[0] == 0
