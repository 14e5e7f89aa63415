"""Where the voxels of a NIfTI file are in space: the header can state it in three ways, which need not agree.

    nifti_geometry   header -> Geometry, with what is odd about the header as remarks

The *sform* is an affine, the *qform* a rotation with the voxel sizes of *pixdim*; each has a code, and 0 means that it
is absent. The rule, for images and labels alike: the sform where its code is set and it is a grid; otherwise the
qform where its code is set and it is one; with both codes 0, only the voxel sizes are used, and the file has no
position. ITK 5.4 treats a sheared sform alike. A sform and a qform that mirror each other are refused: one of them
swaps left and right, and the file does not show which.
"""

import math
from dataclasses import dataclass, replace

import nibabel as nib
import numpy as np

from autoseg.errors import DataError
from autoseg.imaging.geometry import (
    NO_PLACE,
    Axes3,
    Geometry,
    Remark,
    corner_distance_voxels,
    geometry_from_steps,
    orientation_code,
)  # fmt: skip

MM_PER_UNIT = {1: 1e3, 2: 1.0, 3: 1e-3}  # NIfTI's codes of metre, millimetre and micrometre
SIZE_TOLERANCE = 1e-3  # relative: the same voxel size, written twice
PLACE_TOLERANCE = 0.1  # voxels: the same place, written twice
QUATERNION_EXCESS = 1e-2  # of the squared length of (b, c, d) over 1 that counts as rounding
HALF_TURN = 3 * float(np.finfo(np.float32).eps)  # 1 - length below this is a rotation by 180 degrees (nibabel's bound)


@dataclass(frozen=True)
class _Form:
    """One of the affines of a header."""

    name: str  # sform, qform
    code: int
    affine: np.ndarray  # (4, 4), RAS, in the units of the header
    geometry: Geometry | None  # None: it is not a grid
    fault: str = ""  # why it is not


def nifti_geometry(header: nib.Nifti1Header, shape: Axes3, *, flat: bool, file: str) -> Geometry:
    """Read the grid of a NIfTI header.

    Args:
        shape: (Z, Y, X).
        flat: the image has two axes.

    Raises:
        DataError: no form is a grid, or the sform mirrors the qform.
    """
    scale = MM_PER_UNIT.get(int(header["xyzt_units"]) & 7, 1.0)
    sform = _sform(header, shape, scale, flat, file)
    qform = _qform(header, shape, scale, flat, file)
    remarks = []
    if sform is not None and sform.geometry is not None:
        used, geometry = sform, sform.geometry
        remarks += _against_qform(sform, qform, file)
        remarks += _against_pixdim(header, sform.geometry, scale)
    elif qform is not None and qform.geometry is not None:
        used, geometry = qform, qform.geometry
        if sform is not None:
            what = f"the sform is not a grid ({sform.fault}); the qform is, and is used: {_sizes(geometry)}"
            remedy = "write one sound affine into the header: nibabel's set_sform(image.get_qform(), 1)"
            remarks.append(Remark("unsound sform", what, remedy))
    elif sform is not None or qform is not None:
        raise _no_grid(sform, qform, file)
    else:
        return _unplaced(header, shape, scale, flat, file)
    x, y, z = used.affine[:3, 3] + 0.0  # -0 becomes 0
    stated = f"({x:.6g}, {y:.6g}, {z:.6g}){_unit(header)} (RAS, {used.name})"
    return replace(geometry, stated_origin=stated, remarks=tuple(remarks))


def _sform(header: nib.Nifti1Header, shape: Axes3, scale: float, flat: bool, file: str) -> _Form | None:
    code = int(header["sform_code"])
    if code <= 0:
        return None
    affine = np.vstack([[header[f"srow_{axis}"] for axis in "xyz"], [[0, 0, 0, 1]]]).astype(np.float64)
    return _form("sform", code, affine, shape, scale, flat, file)


def _qform(header: nib.Nifti1Header, shape: Axes3, scale: float, flat: bool, file: str) -> _Form | None:
    code = int(header["qform_code"])
    if code <= 0:
        return None
    vector = np.array([float(header[f"quatern_{letter}"]) for letter in "bcd"])
    sizes = header["pixdim"][1:4].astype(np.float64)
    affine = np.eye(4)
    affine[:3, 3] = [float(header[f"qoffset_{axis}"]) for axis in "xyz"]
    length = float(vector @ vector)
    if not length <= 1 + QUATERNION_EXCESS:  # not a number, too
        shown = ", ".join(f"{number:.6g}" for number in vector)
        return _Form("qform", code, affine, None, f"its quaternion (b, c, d) = ({shown}) is longer than 1")
    used = 2 if flat else 3
    if not (np.isfinite(sizes[:used]).all() and (sizes[:used] > 0).all()):
        return _Form("qform", code, affine, None, f"pixdim gives the voxel sizes {_numbers(sizes)}")
    if flat and not sizes[2] > 0:
        sizes[2] = 1.0
    if length > 1 - HALF_TURN:
        vector, length = vector / math.sqrt(length), 1.0
    a = math.sqrt(1.0 - length)
    rotation = nib.quaternions.quat2mat([a, *vector])
    sizes[2] *= -1.0 if float(header["pixdim"][0]) < 0 else 1.0  # qfac; 0 counts as 1
    affine[:3, :3] = rotation * sizes
    return _form("qform", code, affine, shape, scale, flat, file)


def _form(name: str, code: int, affine: np.ndarray, shape: Axes3, scale: float, flat: bool, file: str) -> _Form:
    with np.errstate(all="ignore"):
        in_lps = np.diag([-scale, -scale, scale, 1.0]) @ affine
    steps = in_lps[:3, 2::-1].T.copy()
    if flat:
        steps[0] = 0  # the third column of a 2-D image means nothing; the normal replaces it
    try:
        geometry = geometry_from_steps(shape, steps, in_lps[:3, 3], flat=flat, file=file)
    except DataError as error:
        return _Form(name, code, affine, None, error.what.removeprefix(f"{file}: "))
    return _Form(name, code, affine, geometry)


def _against_qform(sform: _Form, qform: _Form | None, file: str) -> list[Remark]:
    """What is odd about two forms of which the first is used.

    Raises:
        DataError: they mirror each other.
    """
    assert sform.geometry is not None
    if qform is None:
        return []
    if qform.geometry is None:
        what = f"the qform is not a grid ({qform.fault}); the sform is used: {_sizes(sform.geometry)}"
        return [Remark("unsound qform", what, "nothing, if that voxel size is correct; otherwise correct the header")]
    s, q = sform.geometry, qform.geometry
    if not s.flat and np.linalg.det(s.direction) * np.linalg.det(q.direction) < 0:
        raise DataError(
            f"{file}: sform and qform mirror each other: by the sform the axes run {orientation_code(s)}, by the qform "
            f"{orientation_code(q)}; one of them swaps left and right",
            remedy="find out which one is correct (look for a marker, or the liver), and set the other's code to 0 in "
            "all files of the case: nibabel's image.set_qform(None, 0) or image.set_sform(None, 0)",
        )
    first = 1 if s.flat else 0
    if any(abs(a - b) > SIZE_TOLERANCE * b for a, b in [*zip(s.spacing, q.spacing, strict=True)][first:]):
        what = f"two voxel sizes in one header: {_sizes(s)} by the sform, {_sizes(q)} by the qform; the sform is used"
        return [Remark("sform and qform", what, "find out which is right, and correct all files of the case")]
    if orientation_code(s) != orientation_code(q):
        codes = f"{orientation_code(s)} by the sform, {orientation_code(q)} by the qform"
        what = f"two orientations in one header: the axes run {codes}; the sform is used"
        return [Remark("sform and qform turned", what, "check that left is left, and correct the header if it is not")]
    if sform.code == qform.code and corner_distance_voxels(s, q) > PLACE_TOLERANCE:
        apart = f"up to {corner_distance_voxels(s, q):.3g} voxels apart"
        what = f"sform and qform claim the same space (code {sform.code}), but are {apart}; the sform is used"
        return [
            Remark("sform and qform apart", what, "nothing, if images and labels overlap; otherwise correct the header")
        ]
    return []


def _against_pixdim(header: nib.Nifti1Header, geometry: Geometry, scale: float) -> list[Remark]:
    """Contradictions between the voxel sizes and the sform that is used; a qform has been compared already."""
    used = 2 if geometry.flat else 3
    sizes = header["pixdim"][1 : used + 1].astype(np.float64)
    truth = np.array(geometry.spacing)[::-1][:used] / scale
    if not (np.isfinite(sizes).all() and (sizes > 0).all()):
        if not sizes.any() or int(header["qform_code"]) > 0:
            return []  # not stated, or reported with the qform
        what = f"pixdim gives the voxel sizes {_numbers(sizes)}; those of the sform are used: {_sizes(geometry)}"
    elif int(header["qform_code"]) <= 0 and (np.abs(sizes - truth) > SIZE_TOLERANCE * truth).any():
        what = f"two voxel sizes in one header: {_sizes(geometry)} by the sform, {_numbers(sizes)} (x, y, z) by pixdim"
        what += "; the sform is used"
    else:
        return []
    return [Remark("sform and pixdim", what, "find out which is right, and correct all files of the case")]


def _unplaced(header: nib.Nifti1Header, shape: Axes3, scale: float, flat: bool, file: str) -> Geometry:
    """The grid of a header whose form codes are both 0: sizes, and axes as nibabel and Analyze take them (LAS)."""
    sizes = header["pixdim"][1:4].astype(np.float64) * scale
    if not (np.isfinite(sizes[: 2 if flat else 3]).all() and (sizes[: 2 if flat else 3] > 0).all()):
        raise DataError(
            f"{file}: neither form code is set, and pixdim gives the voxel sizes {_numbers(sizes / scale)}",
            remedy="write the correct spacing into the header, or convert the file again from its source",
        )
    steps = np.diag([sizes[0], -sizes[1], sizes[2]])[::-1].copy()  # x to the left, y to the front, z up: in LPS
    if flat:
        steps[0] = 0
    centre = -(np.array(shape, dtype=np.float64) - 1) / 2 @ steps
    geometry = geometry_from_steps(shape, steps, centre, flat=flat, file=file)
    remedy = (
        "nothing, if images and labels overlap in your viewer; write an affine into the headers if other "
        "cases of the dataset, or images to predict, have one"
    )
    what = "no position in space: both form codes are 0; axes are assumed to run left, anterior and superior"
    remarks = () if flat else (Remark(NO_PLACE, what, remedy),)
    return replace(geometry, placed=False, remarks=remarks)


def _no_grid(sform: _Form | None, qform: _Form | None, file: str) -> DataError:
    faults = "; ".join(f"the {form.name}: {form.fault}" for form in (sform, qform) if form is not None)
    return DataError(
        f"{file}: its header defines no valid grid ({faults})",
        remedy="write a valid affine into the header, or convert the file again from its source; resample a sheared "
        "image to a rectangular grid",
    )


def _sizes(geometry: Geometry) -> str:
    z, y, x = geometry.spacing
    return f"{x:.6g} x {y:.6g} mm" if geometry.flat else f"{x:.6g} x {y:.6g} x {z:.6g} mm (x, y, z)"


def _numbers(sizes: np.ndarray) -> str:
    return " x ".join(f"{size:.6g}" for size in sizes)


def _unit(header: nib.Nifti1Header) -> str:
    return {1: " m", 3: " um"}.get(int(header["xyzt_units"]) & 7, " mm")
