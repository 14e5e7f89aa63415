"""Files of one image's outlines: JSON of labelme, and GeoJSON as QuPath writes it.

    outlines_of     the content of a file -> its objects, the size of its image, remarks
    reads           whether the content of a JSON file is one of these

labelme: `shapes` of the types polygon, rectangle, circle and mask; shapes with one label and one `group_id` are parts
of one object. GeoJSON: features with a Polygon or MultiPolygon; the name is that of `classification`. Lines and points
have no area and are not used.
"""

import base64
import binascii
import io
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from autoseg.errors import DataError
from autoseg.imaging.formats.contours import Polygon
from autoseg.imaging.formats.outlines import Disc, Outline, Part, Patch, Rings, is_ignored, polygon
from autoseg.imaging.geometry import Remark
from autoseg.messages import counted, some

UNNAMED = "object"  # the label of objects without a name
NO_AREA = ("line", "linestrip", "point", "points", "Point", "MultiPoint", "LineString", "MultiLineString")
POLYGONS = (None, "", "polygon", "rotation", "oriented_rectangle")  # shape types of labelme and X-AnyLabeling
CORRECT = "correct it in the program that drew it, and export it again"
LARGEST_PATCH = 2**28  # pixels of one mask


@dataclass(frozen=True)
class Drawn:
    """The objects of one image, as a file describes them."""

    outlines: tuple[Outline, ...]
    shape: tuple[int, int] | None  # (rows, columns) of the image they were drawn on, where the file says so
    remarks: tuple[Remark, ...] = ()


def reads(content: Any) -> bool:
    """Whether the content of a JSON file is that of labelme or GeoJSON."""
    return _is_labelme(content) or _features(content) is not None


def outlines_of(content: Any, path: Path) -> Drawn:
    """Read the objects of a file.

    Args:
        content: of the JSON file.

    Raises:
        DataError: it is neither of these formats, or an object cannot be read; all such objects are named.
    """
    if _is_labelme(content):
        return _labelme(content, path)
    if (features := _features(content)) is not None:
        return _geojson(features, path)
    raise DataError(
        f"{path} is JSON, but holds no outlines: expected `shapes` (labelme), features (GeoJSON) or `images` and "
        "`annotations` (COCO)",
        remedy="export the labels in one of these formats, or as label maps",
    )


def collect(faults: Sequence[str], path: Path | str) -> None:
    """Raise DataError where objects cannot be read, naming the first of them."""
    if faults:
        more = f"; and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise DataError(f"{path}: {'; '.join(faults[:3])}{more}", remedy=CORRECT)


# ---- labelme --------------------------------------------------------------------------------------------------------


def _is_labelme(content: Any) -> bool:
    return isinstance(content, dict) and isinstance(content.get("shapes"), list)


def _labelme(content: dict[str, Any], path: Path) -> Drawn:
    groups: dict[object, Outline] = {}
    faults: list[str] = []
    useless: list[str] = []
    for place, shape in enumerate(content["shapes"]):
        where = f"shapes[{place}]"
        if not isinstance(shape, dict):
            faults.append(f"{where} is not an object: {str(shape)[:40]}")
            continue
        label = shape.get("label")
        name = label.strip() if isinstance(label, str) and label.strip() else UNNAMED if label is None else str(label)
        kind = shape.get("shape_type")
        if kind in NO_AREA:
            useless.append(f"{kind} {name!r}")
            continue
        try:
            parts = _parts_of_shape(kind, shape)
        except ValueError as error:
            faults.append(f"{where} ({name!r}): {error}")
            continue
        group = shape.get("group_id")
        key: object = place if group is None else (name, str(group))
        before = groups.get(key, Outline(name, (), is_ignored(name)))
        groups[key] = replace(before, parts=before.parts + parts)
    collect(faults, path)
    height, width = content.get("imageHeight"), content.get("imageWidth")
    return Drawn(tuple(groups.values()), size_of(height, width), tuple(without_area(useless)))


def size_of(height: Any, width: Any) -> tuple[int, int] | None:
    """The size that a file states, (rows, columns); None where it states none."""
    for number in (height, width):
        if isinstance(number, bool) or not isinstance(number, (int, float)) or not 0 < number < 2**31:
            return None
    return int(height), int(width)


def without_area(what: Sequence[str]) -> list[Remark]:
    """A remark about lines and points."""
    if not what:
        return []
    lines = f"{counted(len(what), 'line or point', 'lines or points')} without an area: not used ({some(what, 3)})"
    return [Remark("no area", lines, "nothing, or draw them as polygons")]


def _parts_of_shape(kind: Any, shape: dict[str, Any]) -> tuple[Part, ...]:
    """Parts of one shape; none of a polygon with fewer than three points, which encloses nothing."""
    points = _points(shape.get("points"))
    if kind in POLYGONS:
        return (Rings((points,)),) if len(points) > 2 else ()
    if kind == "rectangle":
        if len(points) == 4:
            return (Rings((points,)),)
        (x0, y0), (x1, y1) = _two(points, "a rectangle")
        return (Rings((np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)]),)),)
    if kind == "circle":
        (x, y), (x1, y1) = _two(points, "a circle")
        return (Disc(x, y, math.hypot(x1 - x, y1 - y)),)
    if kind == "mask":
        (x, y), _ = _two(points, "a mask")
        mask = _picture(shape.get("mask"))
        return (Patch(round(y), round(x), mask),)
    raise ValueError(f"the shape type {kind!r} is not known: expected polygon, rectangle, circle or mask")


def _points(points: Any) -> Polygon:
    if not isinstance(points, list) or not all(isinstance(p, list) and len(p) in (2, 3) for p in points):
        raise ValueError(f"its points are not a list of [x, y]: {str(points)[:40]}")
    return polygon([number for point in points for number in point[:2]])


def _two(points: Polygon, what: str) -> list[list[float]]:
    if len(points) != 2:
        raise ValueError(f"{what} has {counted(len(points), 'point')}, expected 2")
    return points.tolist()


def _picture(text: Any) -> np.ndarray:
    """The mask in a PNG that is stored as text."""
    from PIL import Image

    try:
        data = base64.b64decode(text, validate=True)
        with warnings.catch_warnings(), Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            warnings.simplefilter("ignore")
            if image.width * image.height > LARGEST_PATCH:
                raise ValueError(f"its mask has {image.width} x {image.height} pixels")
            return np.asarray(image.convert("L")) > 0
    except (TypeError, binascii.Error, OSError, SyntaxError) as error:
        raise ValueError(f"its mask is not a PNG file as text ({error})") from None


# ---- GeoJSON --------------------------------------------------------------------------------------------------------


def _features(content: Any) -> list[Any] | None:
    """The features of a collection, of a list (as older QuPath writes), or the only one; None: not GeoJSON."""
    if isinstance(content, dict) and content.get("type") == "FeatureCollection":
        features = content.get("features")
        return features if isinstance(features, list) else None
    one = [content] if isinstance(content, dict) and content.get("type") == "Feature" else content
    if isinstance(one, list) and all(isinstance(f, dict) and f.get("type") == "Feature" for f in one):
        return one
    return None


def _geojson(features: list[Any], path: Path) -> Drawn:
    outlines: list[Outline] = []
    faults: list[str] = []
    useless: list[str] = []
    nuclei = 0
    for place, feature in enumerate(features):
        where = f"features[{place}]"
        geometry = feature.get("geometry") if isinstance(feature, dict) else None
        if not isinstance(geometry, dict):
            faults.append(f"{where} has no geometry")
            continue
        name = _name_of(feature.get("properties"))
        nuclei += "nucleusGeometry" in feature
        if geometry.get("type") in NO_AREA:
            useless.append(f"{geometry['type']} {name!r}")
            continue
        try:
            outlines.append(Outline(name, _parts_of_geometry(geometry), is_ignored(name)))
        except ValueError as error:
            faults.append(f"{where} ({name!r}): {error}")
    collect(faults, path)
    remarks = without_area(useless)
    if nuclei:
        what = f"the nuclei in {counted(nuclei, 'cell')} are not used: cells are read by their own outline"
        remarks.append(Remark("nuclei", what, "nothing; to learn nuclei, export them as objects of their own"))
    return Drawn(tuple(outlines), None, tuple(remarks))


def _name_of(properties: Any) -> str:
    """The label of a feature: its classification, otherwise what programs other than QuPath write."""
    known = properties if isinstance(properties, dict) else {}
    for key in ("classification", "label", "class"):
        value = known.get(key)
        value = value.get("name") if isinstance(value, dict) else value
        if isinstance(value, str) and value.strip():
            return value.strip()
    return UNNAMED


def _parts_of_geometry(geometry: dict[str, Any]) -> tuple[Part, ...]:
    coordinates, kind = geometry.get("coordinates"), geometry.get("type")
    if kind not in ("Polygon", "MultiPolygon"):
        raise ValueError(f"the geometry {kind!r} is not known: expected Polygon or MultiPolygon")
    polygons = [coordinates] if kind == "Polygon" else coordinates
    if not isinstance(polygons, list) or not all(isinstance(rings, list) for rings in polygons):
        raise ValueError(f"its coordinates are not those of a {kind}: {str(coordinates)[:40]}")
    parts = []
    for rings in polygons:
        lines = [_points(ring) for ring in rings]
        if lines and len(lines[0]) > 2:
            parts.append(Rings(tuple(line for line in lines if len(line) > 2)))
    return tuple(parts)
