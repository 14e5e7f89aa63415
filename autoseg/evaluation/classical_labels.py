"""Labels without a network: classes of intensity whose meaning is learnt from a few training images.

Two methods cut an image into parts without knowing labels:

    otsu         2 to 4 classes of a smoothed channel by Otsu's thresholds (Otsu 1979; several: Liao et al. 2001)
    superpixels  SLIC superpixels of all channels (Achanta et al., 2012)

What a part means is decided on training images: a class of intensity gets the label with which the mean Dice is
largest, which finds bright and dark objects alike; a superpixel gets the label whose mean intensity over the training
images is nearest to its own. An image is reduced to how many voxels of each label its parts hold: what a choice scores
follows from these counts alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy import ndimage

from autoseg.evaluation.classical import histogram, otsu

LABEL_METHODS = ("otsu", "superpixels")
MOST_CLASSES = 4  # of Otsu's thresholds
SUPERPIXELS = 2000  # of an image
MOST_VOXELS = 2**25  # of an image that is cut into superpixels; above, the method finds nothing
COMPACTNESS = 0.1  # of superpixels, for intensities from 0 to 1
MOST_MEANINGS = 5000  # ways to give labels to classes that are all compared; otherwise class by class
Array = np.ndarray


@dataclass(frozen=True)
class LabelRecipe:
    """One way to cut an image into parts."""

    method: str  # of LABEL_METHODS
    channel: int = 0  # otsu
    smoothing: float = 1.0  # standard deviation of the image's smoothing, in voxels of the finest axis
    classes: int = 2  # otsu


@dataclass(frozen=True)
class Parts:
    """The parts of one image."""

    counts: Array  # (n, L + 1) int64 voxels of each class index in each part; ignored voxels count nowhere
    means: Array  # (n, C) float32 mean intensity of each channel, scaled to 0..1 by the image's percentiles


def cut(image: Array, target: Array, spacing: Sequence[float], recipe: LabelRecipe, labels: int) -> Parts:
    """Cut an image into parts and count the labels in each.

    Args:
        image: (C, Z, Y, X) float.
        target: (Z, Y, X) class indices; those outside 0..labels are not counted.
        spacing: mm.
        labels: their number, L.

    Raises:
        ValueError: there is no such method.
    """
    if recipe.method not in LABEL_METHODS:
        raise ValueError(f"there is no method {recipe.method!r}: {', '.join(LABEL_METHODS)}")
    sigma = [recipe.smoothing * min(spacing) / s if n > 1 else 0 for s, n in zip(spacing, target.shape, strict=True)]
    channels = range(len(image)) if recipe.method == "superpixels" else (recipe.channel,)
    scaled = np.stack([_scaled(ndimage.gaussian_filter(image[c].astype(np.float32), sigma)) for c in channels])
    parts = _superpixels(scaled, spacing) if recipe.method == "superpixels" else _classes(scaled[0], recipe.classes)
    number = recipe.classes if recipe.method == "otsu" else int(parts.max()) + 1
    known = (target >= 0) & (target <= labels)
    codes = parts[known].astype(np.int64) * (labels + 1) + target[known]
    counts = np.bincount(codes, minlength=number * (labels + 1)).reshape(number, labels + 1)
    sizes = np.maximum(np.bincount(parts.ravel(), minlength=number), 1)
    means = np.stack([np.bincount(parts.ravel(), c.ravel(), minlength=number) / sizes for c in scaled], axis=1)
    return Parts(counts, means.astype(np.float32))


def learn_meaning(recipe: LabelRecipe, training: Sequence[Parts], scored: Mapping[str, Sequence[int]]) -> Array:
    """What parts mean, from training images.

    Args:
        scored: label or region -> its class indices.

    Returns:
        otsu: the class index of each class of intensity, (k,) int64. superpixels: the mean intensities of each class
        index, (L + 1, C) float64; infinite where no training image holds it.
    """
    if recipe.method == "otsu":
        return _best_meaning(np.sum([parts.counts for parts in training], axis=0), scored)
    weights = sum(parts.counts.T @ parts.means.astype(np.float64) for parts in training)
    sizes = np.sum([parts.counts.sum(axis=0) for parts in training], axis=0)
    return np.where(sizes[:, None] > 0, weights / np.maximum(sizes, 1)[:, None], np.inf)


def confusion_of(recipe: LabelRecipe, parts: Parts, meaning: Array) -> Array:
    """Voxels by class index of the reference (rows) and of the segmentation (columns), (L + 1, L + 1) int64."""
    labels = parts.counts.shape[1]
    if recipe.method == "otsu":
        found = meaning
    else:
        known = np.isfinite(meaning).all(axis=1)
        away = ((parts.means[:, None] - np.where(known[:, None], meaning, 0)[None]) ** 2).sum(axis=2)
        found = np.where(known[None], away, np.inf).argmin(axis=1)
    confusion = np.zeros((labels, labels), np.int64)
    np.add.at(confusion.T, found, parts.counts)
    return confusion


def dice_of(confusion: Array, scored: Mapping[str, Sequence[int]]) -> dict[str, float | None]:
    """Dice of each label or region; None where neither map holds it."""
    found: dict[str, float | None] = {}
    for name, indices in scored.items():
        chosen = list(indices)
        both = confusion[np.ix_(chosen, chosen)].sum()
        total = confusion[chosen].sum() + confusion[:, chosen].sum()
        found[name] = float(2 * both / total) if total else None
    return found


def _classes(values: Array, number: int) -> Array:
    """Classes of intensity 0..number - 1, the darkest first; all 0 where there are fewer different values."""
    from skimage.filters import threshold_multiotsu

    try:
        thresholds = [otsu(values)] if number == 2 else threshold_multiotsu(classes=number, hist=histogram(values))
    except ValueError:  # fewer grey values than classes
        return np.zeros(values.shape, np.int64)
    return np.digitize(values, thresholds, right=True)


def _superpixels(scaled: Array, spacing: Sequence[float]) -> Array:
    """Numbers from 0 of the superpixels of an image (C, Z, Y, X) from 0 to 1; all 0 where it is constant or huge."""
    from skimage.segmentation import slic

    if scaled[0].size > MOST_VOXELS or not scaled.any():
        return np.zeros(scaled.shape[1:], np.int64)
    number = min(SUPERPIXELS, max(2, scaled[0].size // 30))
    return slic(scaled, number, COMPACTNESS, channel_axis=0, spacing=spacing, start_label=0)


def _scaled(values: Array) -> Array:
    """Between its 0.5th and 99.5th percentile as 0..1; 0 where these are equal."""
    low, high = np.percentile(values, (0.5, 99.5))
    return np.clip((values - low) / (high - low), 0, 1) if high > low else np.zeros_like(values)


def _best_meaning(counts: Array, scored: Mapping[str, Sequence[int]]) -> Array:
    """The class index of each class of intensity for which the mean Dice of pooled voxels is largest."""
    number, labels = counts.shape

    def worth(meaning: Sequence[int]) -> float:
        confusion = np.zeros((labels, labels), np.int64)
        np.add.at(confusion.T, np.asarray(meaning), counts)
        return float(np.mean([dice or 0.0 for dice in dice_of(confusion, scored).values()]))

    if labels**number <= MOST_MEANINGS:
        return np.array(max(product(range(labels), repeat=number), key=worth))
    best = [int(row.argmax()) for row in counts]
    for _ in range(2):
        for place in range(number):
            changed = [[*best[:place], label, *best[place + 1 :]] for label in range(labels)]
            best[place] = max(range(labels), key=[worth(one) for one in changed].__getitem__)
    return np.array(best)
