"""Small files of outlines as programs write them: COCO, labelme, GeoJSON."""

from pathlib import Path

import numpy as np

import tiny

SIZE = (8, 10)  # rows, columns
Points = list[list[float]]


def ring(x0: float, y0: float, x1: float, y1: float) -> Points:
    """The corners of a rectangle."""
    return [[x0, y0], [x1, y0], [x1, y1], [x0, y1]]


def flat(*corners: float) -> list[float]:
    """The same as x, y, x, y, ..."""
    return [number for point in ring(*corners) for number in point]


def image(file_name: str, number: object = 1, **more: object) -> dict:
    return {"id": number, "file_name": file_name, "width": SIZE[1], "height": SIZE[0], **more}


def annotation(number: object, segmentation: object, *, image_id: object = 1, category_id: object = 1, **more) -> dict:
    return {"id": number, "image_id": image_id, "category_id": category_id, "segmentation": segmentation, **more}


def coco(path: Path, annotations: list, images: list | None = None, categories: list | None = None) -> Path:
    """Write a COCO file of one image, a.png, with the categories 1 cell and 2 nucleus."""
    images = [image("a.png")] if images is None else images
    if categories is None:
        categories = [{"id": 1, "name": "cell"}, {"id": 2, "name": "nucleus"}]
    return tiny.text(path, {"images": images, "annotations": annotations, "categories": categories})


def labelme(path: Path, shapes: list, **more: object) -> Path:
    content = {"version": "5.4.1", "flags": {}, "shapes": shapes, "imagePath": "a.png", "imageData": None}
    return tiny.text(path, content | {"imageHeight": SIZE[0], "imageWidth": SIZE[1]} | more)


def shape(label: object, points: Points, kind: object = "polygon", group: object = None, **more: object) -> dict:
    return {"label": label, "points": points, "group_id": group, "shape_type": kind, "flags": {}, **more}


def feature(name: str | None, kind: str, coordinates: list, **more: object) -> dict:
    """A feature as QuPath writes it."""
    known = {} if name is None else {"classification": {"name": name, "color": [200, 0, 0]}}
    properties = {"objectType": "annotation", **known}
    geometry = {"type": kind, "coordinates": coordinates}
    return {"type": "Feature", "id": "7f1c", "geometry": geometry, "properties": properties, **more}


def geojson(path: Path, features: list) -> Path:
    return tiny.text(path, {"type": "FeatureCollection", "features": features})


def picture(path: Path, seed: int = 0, size: tuple[int, int] = SIZE) -> Path:
    """A grey image that no other seed has."""
    return tiny.picture(path, np.random.default_rng(seed).integers(0, 255, size).astype(np.uint8))
