"""Images read by rows: the same labels as of the whole image, in every format and layout; what cannot be is said."""

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
import torch

from autoseg.datasets.dataset import Case
from autoseg.errors import DataError, OutOfMemory
from autoseg.imaging.formats import rows as rows_module
from autoseg.imaging.formats.readers import read_labels
from autoseg.imaging.formats.rows import RawLabels, open_rows, write_rows
from autoseg.imaging.labels import LabelSet, Thing
from autoseg.imaging.normalize import NORMALIZERS, ForegroundStatistics, by_parts
from autoseg.inference import by_rows
from autoseg.inference.options import InferenceOptions
from autoseg.inference.predict import predict_cases
from autoseg.planning.plan import ChannelNormalization
from bright import model_of, plan_of
from files import affine_along, nifti

LABELS = LabelSet({"a": 2, "b": 300})
REGIONS = LabelSet({"a": 2, "b": 5}, {"whole": (2, 5), "core": (5,)}, (2, 5))
ONCE = InferenceOptions(mirroring=False)


class Mixing(torch.nn.Module):
    """Logits with context, from fixed random weights."""

    def __init__(self, heads: int, channels: int, dims: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = torch.randn(heads, channels, *[3] * dims, generator=generator)
        self.convolve = torch.nn.functional.conv2d if dims == 2 else torch.nn.functional.conv3d

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        return [self.convolve(image, self.weight, padding=1)]


def model_for(dims: int, channels: int = 1, labels=LABELS, scheme: str = "zscore", **changes):
    own = ChannelNormalization(scheme, mean=90.0, std=30.0, p00_5=20.0, p99_5=180.0)
    plan = plan_of(labels, ("MR", "b", "c")[:channels])
    plan = replace(plan, normalization=(own,) * channels, grids=None, **changes)
    return model_of((1.0,) * dims, plan=plan, network=Mixing(labels.num_heads, channels, dims), patch=(8, 16, 16))


def both(model, case: Case, folder: Path, monkeypatch) -> list[np.ndarray]:
    """Labels of an image that is held, and of the same one by rows."""
    found = []
    for name, least in (("held", 2**40), ("rows", 1)):
        monkeypatch.setattr(by_rows, "FROM_VOXELS", least)
        monkeypatch.setattr(rows_module, "CHUNK_BYTES", 4000)
        (made,) = predict_cases([model], [case], folder / name, ONCE)
        found.append(read_labels(made.path).array)
        assert sorted(path.name for path in (folder / name).iterdir()) == [made.path.name]
    return found


def case_of(path: Path) -> Case:
    return Case("a", "a", (str(path),), None)


def picture(channels: int = 1, dtype=np.uint8) -> np.ndarray:
    """(Y, X) or (Y, X, C), with margins of 0 about it and a few dark voxels within."""
    shape = (61, 83) if channels == 1 else (61, 83, channels)
    image = np.zeros(shape, dtype)
    image[3:50, 7:80] = np.random.default_rng(0).integers(1, 200, image[3:50, 7:80].shape)
    return image


WRITTEN = {
    "strips": {}, "deflate": {"compression": "zlib"}, "tiles": {"compression": "zlib", "tile": (16, 32)},
    "big-endian": {"byteorder": ">"}, "strips of 7": {"rowsperstrip": 7, "compression": "zlib"},
    "plain tiles": {"tile": (16, 16)},
}  # fmt: skip


@pytest.mark.thorough
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("written", WRITTEN)
def test_pictures(tmp_path, monkeypatch, written, dtype):
    tifffile.imwrite(tmp_path / "a.tif", picture(dtype=dtype), **WRITTEN[written])
    held, rows = both(model_for(2), case_of(tmp_path / "a.tif"), tmp_path, monkeypatch)
    np.testing.assert_array_equal(held, rows)
    assert set(np.unique(rows)) == {0, 2, 300}


@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_colours(tmp_path, monkeypatch, planar):
    image = picture(3) if planar == "contig" else np.moveaxis(picture(3), -1, 0)
    tifffile.imwrite(tmp_path / "a.tif", image, photometric="rgb", planarconfig=planar, compression="zlib")
    held, rows = both(model_for(2, 3, REGIONS, "rgb_to_0_1"), case_of(tmp_path / "a.tif"), tmp_path, monkeypatch)
    np.testing.assert_array_equal(held, rows)
    assert len(np.unique(rows)) > 1


@pytest.mark.thorough
@pytest.mark.parametrize("axes", ["LPS", "RAS", "LAI"])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("dims", [2, 3])
def test_volumes(tmp_path, monkeypatch, axes, ending, dims):
    """Stored in any of the flipped orders; the scaling of the header is applied."""
    image = np.zeros((19, 33, 41), np.int16)
    image[2:18, 1:30, 5:] = np.random.default_rng(0).integers(1, 200, (16, 29, 36))
    path = nifti(tmp_path / f"a{ending}", image, affine_along(axes, (1.0, 1.0, 1.0), (3.0, 4.0, 5.0)))
    held, rows = both(model_for(dims), case_of(path), tmp_path, monkeypatch)
    np.testing.assert_array_equal(held, rows)
    assert len(np.unique(rows)) == 3
    made = [nib.load(tmp_path / name / f"a{ending}") for name in ("held", "rows")]
    np.testing.assert_array_equal(made[0].affine, made[1].affine)


@pytest.mark.parametrize("scheme", sorted(NORMALIZERS))
def test_every_scheme_by_parts(scheme):
    channel = np.random.default_rng(0).uniform(0, 255, (7, 30, 20)).astype(np.float32)
    statistics = ForegroundStatistics(mean=90.0, std=30.0, p00_5=20.0, p99_5=180.0)
    make = by_parts(scheme, lambda: (channel[z : z + 2] for z in range(0, 7, 2)), statistics)
    whole = NORMALIZERS[scheme](channel, None, statistics)
    np.testing.assert_allclose(np.concatenate([make(channel[:3]), make(channel[3:])]), whole, atol=1e-6)
    assert by_parts("of a plugin", lambda: [channel], statistics) is None


def test_what_has_to_be_held_is_said_before_memory_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(by_rows, "FROM_VOXELS", 1)
    monkeypatch.setattr(by_rows, "free_memory", lambda: 1000)
    image = np.random.default_rng(0).integers(1, 200, (9, 20, 20)).astype(np.int16)
    cases = {
        "its axes have to be turned": (affine_along("SPL", (1.0,) * 3, (0.0,) * 3), {}),
        "another size than the plan's": (affine_along("LPS", (2.0, 1.0, 1.0), (0.0,) * 3), {}),
    }
    for number, (why, (affine, changes)) in enumerate(cases.items()):
        case = case_of(nifti(tmp_path / f"{number}.nii", image, affine))
        with pytest.raises(OutOfMemory, match=rf"takes at least .* it cannot be segmented by rows: .*{why}"):
            predict_cases([model_for(3, **changes)], [case], tmp_path / "out", ONCE)
    case = case_of(nifti(tmp_path / "a.nii", image, np.diag([-1.0, -1.0, 1.0, 1.0])))
    for models, options, why in (
        ([model_for(3)] * 2, ONCE, "several models"),
        ([model_for(3)], replace(ONCE, skip_empty=True), "tiles are chosen"),
        ([model_for(3, channels=2)], ONCE, "it has 1 channels, the model 2"),
    ):  # fmt: skip
        with pytest.raises(OutOfMemory, match=why):
            predict_cases(models, [case], tmp_path / "out", options)
    several = Case("a", "a", (case.images[0], case.images[0]), None)
    other = case_of(tmp_path / "a.mha")
    sitk.WriteImage(sitk.GetImageFromArray(image), other.images[0])
    for one, channels, why in ((several, 2, "in several files"), (other, 1, "its format is not read by rows")):
        with pytest.raises(OutOfMemory, match=why):
            predict_cases([model_for(3, channels)], [one], tmp_path / "out", ONCE)
    monkeypatch.setattr(by_rows, "free_memory", lambda: 10**9)
    (made,) = predict_cases([model_for(3)] * 2, [case], tmp_path / "out", ONCE)  # there is the memory
    assert made.path.exists()


def test_a_mask_with_holes_is_refused_and_one_without_is_not(tmp_path, monkeypatch):
    image = np.random.default_rng(0).integers(1, 200, (9, 20, 20)).astype(np.int16)
    path = nifti(tmp_path / "a.nii", image, np.diag([-1.0, -1.0, 1.0, 1.0]))
    model = model_for(3)
    masked = replace(model.plan, normalization=(replace(model.plan.normalization[0], inside_mask=True),))
    held, rows = both(replace(model, plan=masked), case_of(path), tmp_path, monkeypatch)
    np.testing.assert_array_equal(held, rows)
    image[4, 10, 10] = 0
    nifti(path, image, np.diag([-1.0, -1.0, 1.0, 1.0]))
    with pytest.raises(OutOfMemory, match="whose holes have to be filled"):
        predict_cases([replace(model, plan=masked)], [case_of(path)], tmp_path / "out", ONCE)


def test_faults_of_voxels_are_those_of_an_image_that_is_held(tmp_path, monkeypatch):
    monkeypatch.setattr(by_rows, "FROM_VOXELS", 1)
    image = np.random.default_rng(0).uniform(1, 200, (9, 20, 20)).astype(np.float32)
    image[3, 4, 5] = np.nan
    case = case_of(nifti(tmp_path / "a.nii", image, np.diag([-1.0, -1.0, 1.0, 1.0])))
    with pytest.raises(DataError, match="1 NaN voxels"):
        predict_cases([model_for(3)], [case], tmp_path / "out", ONCE)
    path = tmp_path / "b.nii.gz"
    nifti(path, image, np.eye(4))
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(DataError, match=r"truncated|damaged"):
        predict_cases([model_for(3)], [case_of(path)], tmp_path / "out", ONCE)
    tifffile.imwrite(tmp_path / "c.tif", picture())
    content = (tmp_path / "c.tif").read_bytes()
    (tmp_path / "c.tif").write_bytes(content[:-500])
    with pytest.raises(DataError):
        predict_cases([model_for(2)], [case_of(tmp_path / "c.tif")], tmp_path / "out", ONCE)


def test_labels_are_verified(tmp_path, monkeypatch):
    tifffile.imwrite(tmp_path / "a.tif", picture())
    labels = RawLabels((1, 61, 83), 300)
    labels.put((slice(0, 1), slice(3, 50), slice(7, 80)), np.full((1, 47, 73), 300))
    write_rows(tmp_path / "out.tif", labels, tmp_path / "a.tif")
    assert (read_labels(tmp_path / "out.tif").array[0, 3:50, 7:80] == 300).all()
    monkeypatch.setattr(rows_module, "_tiles", lambda _: (np.zeros((256, 256), np.uint16) for _ in range(1)))
    with pytest.raises(rows_module.StorageError, match="reads back differently"):
        write_rows(tmp_path / "other.tif", labels, tmp_path / "a.tif")
    assert not (tmp_path / "other.tif").exists()
    assert not list(tmp_path.glob(".*"))


def test_kinds_of_pictures_that_are_held(tmp_path):
    tifffile.imwrite(tmp_path / "white.tif", picture(), photometric="miniswhite")
    assert open_rows(tmp_path / "white.tif") is None
    assert open_rows(tmp_path / "a.png") is None


THINGS = {
    "instances": LabelSet({"a core": 1, "a border": 2}, things={"a": Thing(1, 2, 2.0)}),
    "panoptic": LabelSet({"a core": 1, "b": 2, "a border": 3}, things={"a": Thing(1, 3, 2.0)}, divisor=1000),
}


@pytest.mark.thorough
@pytest.mark.parametrize("kind", THINGS)
@pytest.mark.parametrize("band", [1, 5, 10**6])
def test_objects_are_grown_by_rows_too(tmp_path, monkeypatch, kind, band):
    monkeypatch.setattr(by_rows, "BAND_VOXELS", band * 83)
    tifffile.imwrite(tmp_path / "a.tif", picture(dtype=np.uint16))
    held, rows = both(model_for(2, labels=THINGS[kind]), case_of(tmp_path / "a.tif"), tmp_path, monkeypatch)
    np.testing.assert_array_equal(held, rows)
    assert len(np.unique(rows)) > 20


def test_objects_of_a_volume_are_grown_by_rows_too(tmp_path, monkeypatch):
    image = np.zeros((9, 30, 40), np.int16)
    image[1:8, 3:28, 2:38] = np.random.default_rng(1).integers(1, 200, (7, 25, 36))
    nifti(tmp_path / "a.nii", image, affine_along("SPL", (1.0, 1.0, 1.0)))
    monkeypatch.setattr(by_rows, "BAND_VOXELS", 3 * 30 * 40)
    held, rows = both(model_for(3, labels=THINGS["instances"]), case_of(tmp_path / "a.nii"), tmp_path, monkeypatch)
    np.testing.assert_array_equal(held, rows)
    assert len(np.unique(rows)) > 20
