"""Intensities that drown an image, grey and colours, files compressed twice: the same for check and predict."""

import gzip
import struct

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

import files
import hostile
from autoseg.datasets.checks.problems import check
from autoseg.datasets.checks.voxels import padding, spoilt, to_channels
from autoseg.datasets.dataset import Case, discover, load_case, parse_options
from autoseg.errors import DataError
from autoseg.imaging.formats.readers import read_image, read_labels
from autoseg.imaging.geometry import Geometry, Volume
from autoseg.imaging.labels import LabelSet

RNG = np.random.default_rng(3)
TISSUE = RNG.normal(100, 20, (1, 10, 20, 20)).astype(np.float32)  # 4000 voxels


def with_values(*values, fill=None, share=0.0):
    image = TISSUE.copy()
    if fill is not None:
        image[:, :, : round(20 * share)] = fill
    image.reshape(-1)[: len(values)] = values
    return image


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (with_values(1e30), "1 voxel of 1e+30 (0.00025 of all)"),
        (with_values(-1e30, 1e33), "2 voxels of -1e+30 to 1e+33"),
        (with_values(fill=-3.4e38, share=0.5), "2000 voxels of -3.4e+38 (0.5 of all)"),
        (with_values(1e9), "1 voxel of 1e+09"),
        (with_values(1e13, *[2e13 + i * 1e10 for i in range(40)]), "41 voxels of 1e+13"),
        (np.concatenate([TISSUE, with_values(1e30)]), "1e+30"),  # the second channel
        (TISSUE * 1e-12, "differ by"),
        (np.float32(1e10) + np.arange(8, dtype=np.float32).reshape(1, 2, 2, 2) * 1024, "too far from 0"),
    ],
)  # fmt: skip
def test_values_that_drown_all_others(image, said):
    image = image.astype(np.float32)
    found = spoilt(image)
    assert said in found
    normalised = (image - image.mean(dtype=np.float64)) / max(image.std(dtype=np.float64), 1e-8)
    assert np.percentile(normalised, 45) - np.percentile(normalised, 5) < 1.5  # and that is what it does, or worse


@pytest.mark.parametrize(
    "image",
    [
        TISSUE,
        with_values(1e4),  # bright, and yet the rest keeps its contrast: its deviation is an eighth
        with_values(fill=-32768, share=0.3),
        with_values(fill=0, share=0.9),
        TISSUE * 1e6,
        TISSUE * 1e-4,
        np.zeros_like(TISSUE),
        np.where(TISSUE > 100, TISSUE, TISSUE * 1e-8),  # half of it is as good as 0, the other half is tissue
        10 ** RNG.uniform(-6, 6, (1, 10, 20, 20)).astype(np.float32),  # all magnitudes, without a gap
        (TISSUE > 120).astype(np.float32),
    ],
)
def test_images_that_keep_their_contrast(image):
    assert spoilt(image.astype(np.float32)) == ""


def test_a_gap_of_the_sample_is_no_gap_of_the_image():
    """Voxels between the bulk and the highest value that the first look passes over."""
    image = np.ones(400_001, np.float32) + RNG.uniform(0, 1, 400_001).astype(np.float32)
    image[1:40:2] = np.geomspace(3, 1e7, 20)  # every fifth voxel is looked at
    assert spoilt(image.reshape(1, 1, 1, -1)) == ""


@pytest.mark.parametrize(
    ("fill", "share", "said"),
    [(-32768, 0.3, "-32768 fills 30%"), (-9999, 0.1, "-9999 fills 10%"), (32767, 0.2, "32767 fills 20%")],
)
def test_padding_far_outside_is_named(fill, share, said):
    assert padding(with_values(fill=fill, share=share)[0]).startswith(said)


@pytest.mark.parametrize(("fill", "share"), [(0, 0.5), (-100, 0.5), (255, 0.2), (4000, 0.2)])
def test_ordinary_backgrounds_and_saturation_are_not(fill, share):
    assert padding(with_values(fill=fill, share=share)[0]) == ""


def plain(root, images, label=None):
    """images/ and labels/ of NIfTI arrays (Z, Y, X)."""
    for i, image in enumerate(images):
        mask = np.zeros(image.shape, np.uint8)
        mask[2:5, 2:5, 2:5] = 1
        files.nifti(root / f"images/c{i}.nii.gz", image)
        files.nifti(root / f"labels/c{i}.nii.gz", mask)
    return root


def errors(root, **options):
    dataset, known = discover(root, parse_options(**options))
    problems = check(dataset, known=known, workers=0)[0]
    return dataset, {p.case: p.what for p in problems if p.severity == "error"}, [p for p in problems if p not in known]


def test_what_check_refuses_is_refused_by_whoever_reads_the_case(tmp_path):
    images = [RNG.normal(100, 20, (10, 20, 20)).astype(np.float32) for _ in range(3)]
    images[1][3, 3, 3] = 1e30
    images[2][:, :9] = -3.4e38
    dataset, found, _ = errors(plain(tmp_path, images))
    assert found.keys() == {"c1", "c2"}
    for case in dataset.cases:
        if case.id in found:
            with pytest.raises(DataError, match=case.id) as caught:
                load_case(case, None, channels=dataset.channels)
            assert found[case.id] in caught.value.what
        else:
            load_case(case, None, channels=dataset.channels)


def test_padding_is_a_warning_and_none_for_ct(tmp_path):
    images = [RNG.normal(100, 20, (10, 20, 20)).astype(np.int16) for _ in range(2)]
    images[0][:, :9] = -32768
    root = plain(tmp_path, images)
    assert [p.severity for p in errors(root)[2] if "-32768 fills" in p.what] == ["warning"]
    assert not [p for p in errors(root, channels="CT")[2] if "-32768 fills" in p.what]


# ---- scaling and packing --------------------------------------------------------------------------------------------


def scaled(path, slope, intercept, array=None):
    """NIfTI of integers with a scaling written into its header."""
    source = files.nifti(path.with_name("source.nii"), array)
    raw = bytearray(source.read_bytes())
    struct.pack_into("<ff", raw, hostile.SLOPE, slope, intercept)
    path.write_bytes(raw)
    return path


def test_scalings_that_leave_one_value(tmp_path):
    for slope, intercept in ((1, 1e12), (1e-12, 100)):
        path = scaled(tmp_path / "a.nii", slope, intercept)
        with pytest.raises(DataError, match=r"a\.nii: the header's scaling .* makes every voxel"):
            read_image(path)
    with pytest.raises(DataError, match=r"a\.nii: the header's scaling .* makes every voxel 0"):
        read_labels(scaled(tmp_path / "a.nii", 1e-9, 0))  # every label would be rounded to 0
    for slope, intercept in ((0, 5), (np.nan, 0), (2, 0)):
        values = read_image(scaled(tmp_path / "b.nii", slope, intercept)).array
        assert values.max() == files.voxels().max() * (2 if slope == 2 else 1)


def test_labels_under_a_scaling(tmp_path):
    labels = files.voxels((4, 5, 6), 3, np.uint16)
    assert np.array_equal(read_labels(scaled(tmp_path / "a.nii", 2, 0, labels)).array, 2 * labels.astype(int))
    with pytest.raises(DataError, match=r"found 0\.5 \(with the header's slope 0\.5 and intercept 0\)"):
        read_labels(scaled(tmp_path / "a.nii", 0.5, 0, np.clip(labels, 0, 1)))
    files.nifti(tmp_path / "b.nii.gz", labels.astype(np.float32) * 0.9999)
    assert np.array_equal(read_labels(tmp_path / "b.nii.gz").array, labels)


def test_a_file_that_is_packed_twice_is_recognised(tmp_path):
    raw = files.nifti_bytes(RNG.normal(0, 1, (20, 20, 20)).astype(np.float32))
    (tmp_path / "a b.nii.gz").write_bytes(gzip.compress(gzip.compress(raw)))
    with pytest.raises(DataError, match="compressed twice") as caught:
        read_image(tmp_path / "a b.nii.gz")
    assert "gunzip < 'a b.nii.gz'" in caught.value.remedy
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(b"\x89PNG\r\n\x1a\n" + bytes(100)))
    with pytest.raises(DataError, match="PNG image, gzip-compressed"):
        read_image(tmp_path / "b.nii.gz")
    (tmp_path / "c.nii.gz").write_bytes(gzip.compress(raw))
    assert read_image(tmp_path / "c.nii.gz").array.shape == (1, 20, 20, 20)


# ---- grey and colours -----------------------------------------------------------------------------------------------


def pictures(root, *kinds):
    """One picture and mask per kind: grey, equal (grey stored as RGB), colour, alpha (equal with opacity)."""
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for i, kind in enumerate(kinds):
        grey = np.random.default_rng(i).integers(0, 255, (20, 30), dtype=np.uint8)
        array = {
            "grey": grey,
            "equal": np.stack([grey] * 3, -1),
            "colour": np.stack([grey, grey // 2, 255 - grey], -1),
            "alpha": np.stack([grey, grey, grey, np.full_like(grey, 255)], -1),
        }[kind]
        Image.fromarray(array).save(root / f"images/p{i}.png")
        Image.fromarray((grey > 128).astype(np.uint8)).save(root / f"masks/p{i}.png")
    return root


@pytest.mark.parametrize(
    ("kinds", "channels", "noted"),
    [
        (("grey", "grey"), ("image",), ""),
        (("equal", "equal"), ("image",), "2 of 2 images"),
        (("grey", "equal", "alpha"), ("image",), "2 of 3 images"),
        (("equal", "colour"), ("R", "G", "B"), ""),
        (("grey", "colour"), ("R", "G", "B"), ""),
        (("colour", "grey"), ("R", "G", "B"), ""),
    ],
)
def test_sets_of_grey_and_coloured_pictures_have_the_same_channels(tmp_path, kinds, channels, noted):
    dataset, found, problems = errors(pictures(tmp_path, *kinds))
    assert dataset.channels == channels
    assert found == {}
    assert [noted in note for note in dataset.notes if "store grey as colours" in note] == ([True] if noted else [])
    assert [p.what.split(",")[0] for p in problems] == (
        ["1 pictures are grey"] if "grey" in kinds and "colour" in kinds else []
    )
    for case in dataset.cases:
        assert len(load_case(case, dataset.labels, channels=dataset.channels).image) == len(channels)
    grey = next(i for i, kind in enumerate(kinds) if kind in ("grey", "equal"))
    stored = np.random.default_rng(grey).integers(0, 255, (20, 30), dtype=np.uint8)
    assert (load_case(dataset.cases[grey], None, channels=channels).image == stored).all()


def test_declared_channels_are_kept_and_colours_are_never_dropped(tmp_path):
    root = pictures(tmp_path, "equal", "equal")
    assert len(errors(root, channels="R,G,B")[0].channels) == 3
    root = pictures(tmp_path / "mixed", "equal", "colour")
    assert errors(root, channels="mono")[1] == {"p1": "3 channels instead of 1 (mono)"}


def test_a_missing_channel_is_not_made_up():
    one = Volume(np.ones((1, 1, 2, 2), np.float32), Geometry((1, 2, 2), (1, 1, 1), flat=True))
    assert len(to_channels(one, "a.png", ("R", "G", "B"), 1).array) == 3
    assert len(to_channels(one, "a.png", ("T1", "T2", "PD"), 1).array) == 1
    assert len(to_channels(one, "a.nii.gz", ("R", "G", "B"), 1).array) == 1
    assert len(to_channels(one, "a.png", ("R", "G", "B"), 3).array) == 1


def test_nifti_of_three_equal_channels_stays_as_it_is(tmp_path):
    """Three series of one scan may be equal by mistake, which `check` reports."""
    array = np.stack([files.voxels()] * 3)
    nib.save(nib.Nifti1Image(array.T, files.AFFINE), tmp_path / "a.nii.gz")
    case = Case("a", "a", (str(tmp_path / "a.nii.gz"),), None)
    assert len(load_case(case, None, channels=("x",)).image) == 3
    assert LabelSet({"a": 1}).colours == {}
