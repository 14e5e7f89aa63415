"""Lesions found against false alarms per image, over all thresholds: the FROC curve.

A detector is used at one threshold, which depends on the reader. FROC says what share of the lesions is found at each
number of false alarms per image that a reader would accept. As in LUNA16, the score is the mean of that share at 1/8,
1/4, 1/2, 1, 2, 4 and 8 false alarms per image (Setio et al., "Validation, comparison, and combination of algorithms",
Medical Image Analysis 2017).

`candidates` reads them from the probability map of one image, `froc` makes the curve of all images: what is kept of an
image are a few numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

FALSE_ALARMS = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)  # per image
LEAST_PROBABILITY = 0.05  # of a voxel, for it to belong to a candidate


@dataclass(frozen=True)
class Candidates:
    """What a detector claims in one image."""

    lesions: int  # in the reference
    found: tuple[float, ...]  # of each lesion that is hit: the highest score of a candidate on it
    alarms: tuple[float, ...]  # scores of candidates on no lesion


@dataclass(frozen=True)
class Froc:
    """Points of the curve, from the highest threshold to the lowest."""

    thresholds: np.ndarray  # (n,) float64: candidates from this score on
    false_alarms: np.ndarray  # (n,) float64 per image
    sensitivity: np.ndarray  # (n,) float64 share of the lesions; NaN without any

    def at(self, false_alarms: float) -> float:
        """The share of the lesions that is found with at most so many false alarms per image; 0 below the curve."""
        allowed = self.sensitivity[self.false_alarms <= false_alarms]
        return float(allowed[-1]) if len(allowed) else 0.0

    @property
    def score(self) -> float:
        """The mean share at FALSE_ALARMS."""
        return float(np.mean([self.at(number) for number in FALSE_ALARMS]))


def candidates(
    probability: np.ndarray,
    reference: np.ndarray,
    *,
    least: float = LEAST_PROBABILITY,
    ignored: np.ndarray | None = None,
) -> Candidates:
    """Find the candidates of one image: components of the voxels of at least the probability `least`.

    The score of a candidate is its highest probability. It hits every lesion, a component of the reference, with which
    it shares a voxel; one that hits none is a false alarm. Components are joined over faces, edges and corners.

    Args:
        probability: float, of the lesion.
        reference: bool, of the same shape.
        ignored: bool, voxels that are not annotated: neither candidates nor lesions are there.

    Raises:
        ValueError: shapes differ.
    """
    if probability.shape != reference.shape:
        raise ValueError(f"probability {probability.shape} and reference {reference.shape} differ in shape")
    annotated = np.ones(reference.shape, bool) if ignored is None else ~ignored
    structure = np.ones((3,) * reference.ndim, bool)
    claimed, count = ndimage.label((probability >= least) & annotated, structure=structure)
    truth, lesions = ndimage.label(reference.astype(bool) & annotated, structure=structure)
    scores = np.zeros(count + 1)
    np.maximum.at(scores, claimed.reshape(-1), probability.reshape(-1).astype(np.float64))
    both = (claimed > 0) & (truth > 0)
    found = np.zeros(lesions + 1)
    np.maximum.at(found, truth[both], scores[claimed[both]])
    hits = np.zeros(count + 1, dtype=bool)
    hits[claimed[both]] = True
    hits[0] = True  # no candidate
    return Candidates(lesions, tuple(map(float, found[1:][found[1:] > 0])), tuple(map(float, scores[~hits])))


def froc(images: Sequence[Candidates]) -> Froc:
    """The curve of all images together.

    Raises:
        ValueError: no image.
    """
    if not images:
        raise ValueError("a FROC curve needs an image")
    found = np.sort([score for image in images for score in image.found])
    alarms = np.sort([score for image in images for score in image.alarms])
    lesions = sum(image.lesions for image in images)
    thresholds = np.unique(np.concatenate([found, alarms]))[::-1]
    of_found = len(found) - np.searchsorted(found, thresholds)
    of_alarms = len(alarms) - np.searchsorted(alarms, thresholds)
    shares = of_found / lesions if lesions else np.full(len(thresholds), np.nan)
    return Froc(thresholds, of_alarms / len(images), shares)
