"""NRRD and MetaImage headers written by hand: units, what is missing, what stands twice."""

import numpy as np
import pytest
import SimpleITK as sitk

from autoseg.errors import DataError
from autoseg.imaging.formats.readers import read_geometry, read_image, read_labels, write_labels

VOXELS = np.arange(120, dtype="<i2").reshape(4, 5, 6)  # (z, y, x)
DIRECTIONS = "space directions: (2,0,0) (0,3,0) (0,0,4)"  # x, y, z
SIZES, ORIGINS = "ElementSpacing = 2 3 4, ElementSize = 2 3 5", "Offset = 1 2 3, Position = 1 2 9"
LPS = ("space: left-posterior-superior", DIRECTIONS, "space origin: (1,2,3)")


def nrrd(folder, *lines: str):
    head = ("NRRD0004", "type: short", "dimension: 3", "sizes: 6 5 4", "encoding: raw", "endian: little", *lines)
    path = folder / "a.nrrd"
    path.write_bytes("\n".join(head).encode() + b"\n\n" + VOXELS.tobytes())
    return path


def mha(folder, *lines: str):
    head = ("ObjectType = Image", "NDims = 3", "BinaryData = True", "BinaryDataByteOrderMSB = False", *lines)
    tail = ("DimSize = 6 5 4", "ElementType = MET_SHORT", "ElementDataFile = LOCAL", "")
    path = folder / "a.mha"
    path.write_bytes("\n".join((*head, *tail)).encode() + VOXELS.tobytes())
    return path


def kinds(geometry):
    return [remark.kind for remark in geometry.remarks]


@pytest.mark.parametrize(
    ("unit", "mm"),
    [("mm", 1.0), ("um", 1e-3), ("\u00b5m", 1e-3), ("cm", 10.0), ("m", 1e3), ("nm", 1e-6), ("", 1.0), ("pixel", 1.0)],
)  # fmt: skip
def test_units_become_millimetres(tmp_path, unit, mm):
    grid = read_geometry(nrrd(tmp_path, *LPS, f'space units: "{unit}" "{unit}" "{unit}"'))
    assert grid.spacing == pytest.approx((4 * mm, 3 * mm, 2 * mm))
    assert grid.origin == pytest.approx((mm, 2 * mm, 3 * mm))
    grid = read_geometry(nrrd(tmp_path, "spacings: 2 3 4", f'units: "{unit}" "{unit}" "{unit}"'))
    assert grid.spacing == pytest.approx((4 * mm, 3 * mm, 2 * mm))
    if unit in ("um", "mm", "cm"):
        grid = read_geometry(mha(tmp_path, "Offset = 1 2 3", "ElementSpacing = 2 3 4", f"DistanceUnits = {unit}"))
        assert grid.spacing == pytest.approx((4 * mm, 3 * mm, 2 * mm))
        assert grid.origin == pytest.approx((mm, 2 * mm, 3 * mm))


def test_units_that_differ_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"a\.nrrd: its axes have different units of length: um, um, mm"):
        read_geometry(nrrd(tmp_path, *LPS, 'space units: "um" "um" "mm"'))


def test_spacings_that_are_not_numbers_are_refused(tmp_path):
    with pytest.raises(DataError, match="spacings: 2 3 nan"):
        read_geometry(nrrd(tmp_path, "spacings: 2 3 nan"))


def test_what_has_no_place_says_so(tmp_path):
    for path in (nrrd(tmp_path, "spacings: 2 3 4"), mha(tmp_path, "ElementSpacing = 2 3 4")):
        grid = read_geometry(path)
        assert (grid.placed, grid.sized, grid.spacing, kinds(grid)) == (False, True, (4.0, 3.0, 2.0), ["no place"])
    for path in (nrrd(tmp_path), mha(tmp_path)):
        assert (read_geometry(path).placed, read_geometry(path).sized) == (False, False)
    for path in (nrrd(tmp_path, *LPS), mha(tmp_path, "Offset = 1 2 3", "ElementSpacing = 2 3 4")):
        grid = read_geometry(path)
        assert (grid.placed, grid.sized, kinds(grid)) == (True, True, [])


@pytest.mark.parametrize(
    ("lines", "kind", "words"),
    [
        (("ElementSpacing = 2 3 4", "ElementSize = 2 3 5"), "two voxel sizes", SIZES),
        (("ElementSize = 2 3 5", "ElementSpacing = 2 3 4"), "two voxel sizes", SIZES),
        (("Offset = 1 2 3", "Position = 1 2 9", "ElementSpacing = 2 3 4"), "two origins", ORIGINS),
    ],
)  # fmt: skip
def test_what_stands_twice_is_named_and_read_as_itk_reads_it(tmp_path, lines, kind, words):
    path = mha(tmp_path, *lines, "TransformMatrix = 1 0 0 0 1 0 0 0 1")
    grid = read_geometry(path)
    (remark,) = grid.remarks
    assert remark.kind == kind
    assert words in remark.what
    assert "the first is used" in remark.what
    image = sitk.ReadImage(str(path))
    assert (grid.spacing[::-1], grid.origin) == (image.GetSpacing(), image.GetOrigin())


def test_what_stands_twice_and_agrees_is_no_contradiction(tmp_path):
    path = mha(tmp_path, "ElementSpacing = 2 3 4", "ElementSize = 2.0 3.0 4.001", "Offset = 1 2 3", "Position = 1 2 3")
    assert kinds(read_geometry(path)) == []


def test_the_origin_is_quoted_as_it_stands(tmp_path):
    ras = ("space: right-anterior-superior", DIRECTIONS, "space origin: (1,2,3)")
    grid = read_geometry(nrrd(tmp_path, *ras))
    assert grid.origin == (-1.0, -2.0, 3.0)
    assert grid.stated_origin == "(1,2,3) mm (right-anterior-superior)"
    assert (
        read_geometry(mha(tmp_path, "Offset = 1 2 3", "ElementSpacing = 2 3 4")).stated_origin == "(1, 2, 3) mm (LPS)"
    )


@pytest.mark.parametrize("unit", ["mm", "um", "cm", "nm"])
def test_a_label_map_keeps_the_unit_of_its_image(tmp_path, unit):
    """The numbers stay where both formats know the unit, for programs that do not; otherwise they become mm."""
    labels = (VOXELS % 3).astype(np.uint8)
    for like in (
        nrrd(tmp_path, *LPS, f'space units: "{unit}" "{unit}" "{unit}"'),
        mha(tmp_path, "Offset = 1 2 3", "ElementSpacing = 2 3 4", f"DistanceUnits = {unit}"),
    ):
        if like.suffix == ".mha" and unit == "nm":
            continue
        for ending in (".nrrd", ".mha", ".mhd"):
            out = tmp_path / f"out{ending}"
            write_labels(out, labels, like)
            assert np.array_equal(read_labels(out).array, labels)
            assert read_geometry(out).spacing == pytest.approx(read_geometry(like).spacing)
            numbers = 1e-6 if unit == "nm" else 1.0
            assert sitk.ReadImage(str(out)).GetSpacing() == pytest.approx((2 * numbers, 3 * numbers, 4 * numbers))
    assert read_image(out).array.shape == (1, 4, 5, 6)
