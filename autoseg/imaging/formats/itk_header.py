"""Facts about the grid in NRRD and MetaImage headers that ITK does not report: units, missing and repeated fields.

    read_stated   header text -> StatedGrid
    with_unit     a file that ITK wrote, with a unit of length in its header

ITK reads numbers as millimetres whatever unit the header names, gives an origin to files that have none, and takes 1
for a spacing that is not a number. Its choice among repeated values is kept here, and reported.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from autoseg.errors import DataError
from autoseg.imaging.formats.tiff_spacing import MM_PER_UNIT
from autoseg.imaging.geometry import NO_PLACE, Remark

_HEADER_BYTES = 1 << 20
_SIZE_TOLERANCE = 1e-3  # relative
UNITS_WRITTEN = ("um", "cm")  # those that both formats know, besides millimetres


@dataclass(frozen=True)
class StatedGrid:
    """The grid as the text of a header states it."""

    mm_per_unit: float = 1.0
    placed: bool = True  # it has an origin or directions
    sized: bool = True  # it has a spacing
    origin: str = ""  # as written there, with its convention
    remarks: tuple[Remark, ...] = ()


def read_stated(path: Path, axes: int) -> StatedGrid:
    """Read the header of an NRRD or MetaImage file that ITK has read before.

    Args:
        axes: of the image in space, 2 or 3.

    Raises:
        DataError: units that differ from axis to axis, or a spacing that is not a number.
    """
    with open(path, "rb") as file:
        text = file.read(_HEADER_BYTES)
    return _nrrd(text, path, axes) if path.suffix.lower() == ".nrrd" else _meta_image(text, axes)


def with_unit(path: Path, mm_per_unit: float, axes: int) -> None:
    """Write the unit of length into the header of a file whose numbers ITK has written in it."""
    unit = next(name for name in UNITS_WRITTEN if MM_PER_UNIT[name] == mm_per_unit)
    content = path.read_bytes()
    if path.suffix.lower() == ".nrrd":
        at, line = content.index(b"\n\n") + 1, "space units: " + " ".join([f'"{unit}"'] * axes) + "\n"
    else:
        at, line = content.index(b"ElementSpacing"), f"DistanceUnits = {unit}\n"
    path.write_bytes(content[:at] + line.encode() + content[at:])


def _nrrd(text: bytes, path: Path, axes: int) -> StatedGrid:
    header = re.split(rb"\r?\n\r?\n", text, maxsplit=1)[0].decode("utf-8", "replace")
    fields = {key.lower(): value.strip() for key, value in re.findall(r"^([A-Za-z ]+): *(.*)$", header, re.MULTILINE)}
    placed = "space directions" in fields
    units = re.findall(r'"([^"]*)"', fields.get("space units" if placed else "units", ""))
    scales = {MM_PER_UNIT[unit.strip().lower()] for unit in units if unit.strip().lower() in MM_PER_UNIT}
    if len(scales) > 1:
        raise DataError(
            f"{path}: its axes have different units of length: {', '.join(units)}",
            remedy="write spacing, directions and origin in millimetres",
        )
    spacings = fields.get("spacings", "").split()
    if not placed and spacings and sum(_is_finite(number) for number in spacings) < axes:
        raise DataError(
            f"{path}: voxels must have a size along every axis, but its header says: spacings: {' '.join(spacings)}",
            remedy="write the correct spacing into the header, or convert the file again from its source",
        )
    origin = (
        f"{fields['space origin']} {_unit_of(units)} ({fields.get('space', 'no space')})"
        if "space origin" in fields
        else ""
    )
    remarks = () if placed or axes == 2 else (_no_place("space directions"),)
    return StatedGrid(scales.pop() if scales else 1.0, placed, placed or bool(spacings), origin, remarks)


def _meta_image(text: bytes, axes: int) -> StatedGrid:
    header = re.split(rb"^ElementDataFile", text, maxsplit=1, flags=re.MULTILINE)[0].decode("utf-8", "replace")
    fields = dict(re.findall(r"^(\w+) *= *(.*?)\s*$", header, re.MULTILINE))
    unit = fields.get("DistanceUnits", "mm").lower()
    origins = [name for name in ("Offset", "Position", "Origin") if name in fields]
    turns = [name for name in ("TransformMatrix", "Rotation", "Orientation") if name in fields]
    remarks = []
    for names, kind in (
        (["ElementSpacing", "ElementSize"], "two voxel sizes"),
        (origins, "two origins"),
        (turns, "two directions"),
    ):
        values = {name: _numbers(fields[name]) for name in names if name in fields}
        first = next(iter(values), "")
        for name, value in values.items():
            if len(value) != len(values[first]) or not np.allclose(
                value, values[first], rtol=_SIZE_TOLERANCE, atol=1e-6
            ):
                what = f"{kind} in one header: {first} = {fields[first]}, {name} = {fields[name]}; the first is used"
                remarks.append(
                    Remark(kind, what, "find out which is correct, and correct the header of all files of the case")
                )
    placed = bool(origins or turns)
    if not placed and axes > 2:
        remarks.append(_no_place("Offset nor TransformMatrix"))
    sized = "ElementSpacing" in fields or "ElementSize" in fields
    origin = f"({', '.join(fields[origins[0]].split())}) {unit} (LPS)" if origins else ""
    return StatedGrid(MM_PER_UNIT.get(unit, 1.0), placed, sized, origin, tuple(remarks))


def _no_place(missing: str) -> Remark:
    what = f"no position in space: the header has no {missing}; axes are assumed to run left, posterior and superior"
    return Remark(NO_PLACE, what, "nothing, if images and labels overlap in your viewer")


def _unit_of(units: list[str]) -> str:
    return units[0] if units and units[0] else "mm"


def _numbers(text: str) -> list[float]:
    return [float(number) for number in text.split() if _is_finite(number)]


def _is_finite(text: str) -> bool:
    try:
        return bool(np.isfinite(float(text)))
    except ValueError:
        return False
