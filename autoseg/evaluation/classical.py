"""Segmentations without a network: thresholds, superpixels and a watershed, with a few numbers that data decide.

    Classical       one image: its segmentations by any recipe, each step done once
    OBJECT_METHODS  the table of methods for instances
    typical_radius  of the objects of reference maps

Each method finds a foreground and splits it into objects:

    otsu_components        Otsu's threshold (1979) of the smoothed image; its connected components
    otsu_watershed         the same foreground, split by a watershed on the distance to its edge
    local_watershed        brighter than the surroundings by a share of Otsu's contrast; split likewise
    superpixels_watershed  SLIC superpixels (Achanta et al., 2012) on both sides of Otsu's threshold of their means;
                           split likewise

The watershed floods from the peaks of the smoothed distance; a peak is left out where a higher one is near. Lengths are
multiples of a radius, either that of the training objects, or that of the image's own foreground.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

OBJECT_METHODS = ("otsu_components", "otsu_watershed", "local_watershed", "superpixels_watershed")
SUPERPIXELS = 20000  # of an image, at most
MOST_VOXELS = 2**25  # of an image that is cut into superpixels; above, the method finds nothing
COMPACTNESS = 0.1  # of superpixels, for intensities from 0 to 1
SURROUNDINGS = 4.0  # radii: standard deviation of the window of local thresholds
Array = np.ndarray


@dataclass(frozen=True)
class ObjectRecipe:
    """One way to find the objects of an image."""

    method: str  # of OBJECT_METHODS
    channel: int = 0
    bright: bool = True  # objects are brighter than the background
    fill: bool = True  # holes belong to the foreground around them
    smoothing: float = 1.0  # standard deviation of the image's smoothing, in voxels of the finest axis
    contrast: float = 0.1  # local_watershed: share of the contrast between Otsu's classes
    radius_mm: float | None = None  # of objects; None: of the foreground of the image itself
    rounding: float = 0.2  # standard deviation of the smoothing of the distance, in radii
    apart: float = 0.8  # distance between peaks, in radii
    smallest: float = 0.1  # smaller objects are left out: share of the volume of a ball of that radius


class Classical:
    """One image, on which recipes are tried: what several of them have in common is computed once."""

    def __init__(self, image: Array, spacing: Sequence[float]) -> None:
        """Args: image: (C, Z, Y, X) or (C, Y, X) float; spacing: mm of each of its axes in space."""
        self.flat = image.ndim == 4 and image.shape[1] == 1
        self.shape = image.shape[1:]
        self.image = image[:, 0] if self.flat else image
        self.spacing = tuple(float(s) for s in (spacing[1:] if self.flat else spacing))
        self._done: dict[tuple, Any] = {}

    def objects(self, recipe: ObjectRecipe) -> Array:
        """Instance map int32 of the image's shape: 0 background, 1..n objects.

        Raises:
            ValueError: there is no such method.
        """
        if recipe.method not in OBJECT_METHODS:
            raise ValueError(f"there is no method {recipe.method!r}: {', '.join(OBJECT_METHODS)}")
        foreground = self.foreground(recipe)
        radius = recipe.radius_mm or self._own_radius(recipe)
        if recipe.method == "otsu_components":
            pieces = self._once(("pieces", *_source(recipe)), lambda: ndimage.label(foreground)[0])
        else:
            key = ("split", *_source(recipe), radius, recipe.rounding, recipe.apart)
            pieces = self._once(key, lambda: self._split(foreground, recipe, radius))
        least = recipe.smallest * _ball(radius, len(self.spacing)) / math.prod(self.spacing)
        return _numbered(pieces, least).reshape(self.shape)

    def foreground(self, recipe: ObjectRecipe) -> Array:
        """Voxels that belong to some object; bool."""
        kind = recipe.method.split("_")[0]
        made = {"otsu": self._otsu, "local": self._local, "superpixels": self._superpixels}[kind]

        def make() -> Array:
            found = made(recipe)
            return np.asarray(ndimage.binary_fill_holes(found), dtype=bool) if recipe.fill else found

        return self._once(("foreground", *_source(recipe)), make)

    def smoothed(self, channel: int, bright: bool, smoothing: float) -> Array:
        """A channel, smoothed, and negated where objects are dark; float32."""

        def make() -> Array:
            values = self.image[channel] if bright else -self.image[channel]
            sigma = [smoothing * min(self.spacing) / s for s in self.spacing]
            return ndimage.gaussian_filter(values.astype(np.float32), sigma)

        return self._once(("smoothed", channel, bright, smoothing), make)

    def _otsu(self, recipe: ObjectRecipe) -> Array:
        values = self.smoothed(recipe.channel, recipe.bright, recipe.smoothing)
        return values > otsu(values)

    def _local(self, recipe: ObjectRecipe) -> Array:
        values = self.smoothed(recipe.channel, recipe.bright, recipe.smoothing)
        inside = values > otsu(values)
        if not inside.any() or inside.all():
            return np.zeros(values.shape, bool)
        contrast = float(values[inside].mean() - values[~inside].mean())
        radius = recipe.radius_mm or self._own_radius(_like_otsu(recipe))
        around = ndimage.gaussian_filter(values, [SURROUNDINGS * radius / s for s in self.spacing], truncate=2)
        return values > around + recipe.contrast * contrast

    def _superpixels(self, recipe: ObjectRecipe) -> Array:
        from skimage.segmentation import slic

        values = self.smoothed(recipe.channel, recipe.bright, recipe.smoothing)
        low, high = np.percentile(values, (0.5, 99.5))
        if low == high or values.size > MOST_VOXELS:
            return np.zeros(values.shape, bool)
        radius = recipe.radius_mm or self._own_radius(_like_otsu(recipe))
        number = int(np.clip(values.size * np.prod(self.spacing) / _ball(radius / 2, values.ndim), 2, SUPERPIXELS))
        scaled = np.clip((values - low) / (high - low), 0, 1)
        cells = slic(scaled, number, COMPACTNESS, channel_axis=None, spacing=self.spacing, start_label=0)
        means = (np.bincount(cells.ravel(), values.ravel()) / np.maximum(np.bincount(cells.ravel()), 1))[cells]
        return means > otsu(means)

    def _depth(self, recipe: ObjectRecipe) -> Array:
        """Distance to the edge of the foreground, mm; the border of the image is not an edge."""
        foreground = self.foreground(recipe)
        return self._once(
            ("depth", *_source(recipe)),
            lambda: (
                ndimage.distance_transform_edt(foreground, sampling=self.spacing).astype(np.float32)
                if not foreground.all()
                else np.zeros(foreground.shape, np.float32)
            ),
        )

    def _own_radius(self, recipe: ObjectRecipe) -> float:
        """The median over components of the foreground of how deep they are, mm; a voxel's width at least."""

        def make() -> float:
            pieces, count = ndimage.label(self.foreground(recipe))
            deepest = ndimage.maximum(self._depth(recipe), pieces, np.arange(1, count + 1)) if count else []
            large = [depth for depth in deepest if depth > 1.5 * min(self.spacing)]
            return float(max(np.median(large) if large else 0.0, min(self.spacing)))

        return self._once(("radius", *_source(recipe)), make)

    def _split(self, foreground: Array, recipe: ObjectRecipe, radius: float) -> Array:
        """A watershed of the foreground on its smoothed depth; int32."""
        from skimage.morphology import local_maxima
        from skimage.segmentation import watershed

        depth = self._depth(recipe)
        smooth = ndimage.gaussian_filter(depth, [recipe.rounding * radius / s for s in self.spacing])
        smooth[~foreground] = 0
        peaks = np.argwhere(local_maxima(smooth) & foreground)
        heights = smooth[tuple(peaks.T)]
        kept = peaks[_apart(peaks * np.array(self.spacing), heights, recipe.apart * radius)]
        seeds = np.zeros(depth.shape, np.int32)
        seeds[tuple(kept.T)] = np.arange(1, len(kept) + 1)
        return watershed(-smooth, seeds, mask=foreground)

    def _once(self, key: tuple, make: Callable[[], Any]) -> Any:
        if key not in self._done:
            self._done[key] = make()
        return self._done[key]


def otsu(values: Array) -> float:
    """Otsu's threshold: values above it are the brighter class; the value itself where there is one only."""
    from skimage.filters import threshold_otsu

    if values.min() == values.max():
        return float(values.min())
    return float(threshold_otsu(hist=histogram(values)))


def histogram(values: Array) -> tuple[Array, Array]:
    """Counts of 256 equal bins, and the largest number within each, so that a bin as threshold divides at its edge."""
    counts, edges = np.histogram(values, 256)
    return counts, np.nextafter(edges[1:].astype(values.dtype if values.dtype.kind == "f" else float), -np.inf)


def typical_radius(volumes_mm: Sequence[float], dims: int) -> float:
    """Radius in mm of the disc or ball that has the median of these areas or volumes; 1 where there is none."""
    if not len(volumes_mm):
        return 1.0
    return float((np.median(volumes_mm) / _ball(1.0, dims)) ** (1 / dims))


def _apart(places: Array, heights: Array, least: float) -> Array:
    """Indices of peaks that keep a distance, mm: the highest first, each unless one that was taken is nearer."""
    order = np.argsort(-heights, kind="stable")
    taken = np.zeros(len(places), bool)
    gone = np.zeros(len(places), bool)
    if not len(places):
        return np.flatnonzero(taken)
    tree = cKDTree(places)
    for index in order:
        if gone[index]:
            continue
        taken[index] = True
        near = tree.query_ball_point(places[index], least)
        gone[near] = True
    return np.flatnonzero(taken)


def _numbered(pieces: Array, least: float) -> Array:
    """The same objects without those of fewer voxels, numbered 1..n; int32."""
    sizes = np.bincount(pieces.ravel())
    keep = sizes >= max(least, 1)
    keep[0] = False
    table = np.zeros(len(sizes), np.int32)
    table[keep] = np.arange(1, np.count_nonzero(keep) + 1)
    return table[pieces]


def _ball(radius: float, dims: int) -> float:
    """Area of a disc or volume of a ball."""
    return np.pi * radius**2 if dims == 2 else 4 / 3 * np.pi * radius**3


def _source(recipe: ObjectRecipe) -> tuple:
    """What the foreground of a recipe depends on."""
    kind = recipe.method.split("_")[0]
    own = () if kind == "otsu" else (recipe.radius_mm,)
    contrast = recipe.contrast if kind == "local" else 0.0
    return (kind, recipe.channel, recipe.bright, recipe.fill, recipe.smoothing, *own, contrast)


def _like_otsu(recipe: ObjectRecipe) -> ObjectRecipe:
    return replace(recipe, method="otsu_components")
