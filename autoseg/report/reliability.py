"""How far probabilities of held-out cases can be trusted, where they exist: the numbers of a reliability diagram.

`autoseg predict --probabilities` writes one map per class. Those of held-out cases, by the fold that held them out,
are in `validation/probabilities/CASE/` of that fold. The confidence of a voxel is the largest of its probabilities;
voxels far from every object are background for sure and would hide everything else, so only those count that are within
MARGIN voxels of the reference or the segmentation.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage

from autoseg.datasets.loading import read_label
from autoseg.errors import AutosegError
from autoseg.imaging.formats.readers import read_image
from autoseg.report.gathered import Gathered

BINS = 10
MARGIN = 2  # voxels
MOST_CASES = 24  # that are read


@dataclass(frozen=True)
class Reliability:
    """Bins by confidence, and the expected calibration error."""

    bins: tuple[dict[str, float], ...]  # confidence, accuracy, share of voxels; empty bins are left out
    error: float
    cases: int


def measured(of: Gathered) -> Reliability | None:
    """Read the probabilities of held-out cases; None where there are none, or the heads are regions."""
    if of.scores is None or of.plan.labels.has_regions:
        return None
    totals = np.zeros((3, BINS))
    cases = 0
    for fold in of.scores.folds:
        folder = of.workspace.fold(of.configuration, of.network, fold.fold) / "validation" / "probabilities"
        for score in fold.cases:
            if cases < MOST_CASES and (folder / score.case / "probabilities.json").exists() and score.case in of.cases:
                try:
                    totals += _case(of, folder / score.case, score.case)
                except (AutosegError, OSError, ValueError):
                    continue
                cases += 1
    return summary(totals, cases) if cases else None


def summary(totals: np.ndarray, cases: int) -> Reliability:
    """Bins and expected calibration error of sums of voxels, confidence and right voxels, (3, bins)."""
    counts, confidence, right = totals
    known = counts > 0
    mean, accuracy = confidence[known] / counts[known], right[known] / counts[known]
    share = counts[known] / counts.sum()
    rows = zip(mean, accuracy, share, strict=True)
    bins = tuple({"confidence": float(c), "accuracy": float(a), "share": float(s)} for c, a, s in rows)
    return Reliability(bins, float((share * np.abs(mean - accuracy)).sum()), cases)


def binned(probabilities: np.ndarray, reference: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """Voxels, sums of confidence and right voxels of each bin, (3, BINS).

    Args:
        probabilities: (K, Z, Y, X).
        reference: class indices (Z, Y, X).
        counted: bool, the voxels that count.
    """
    confidence = probabilities.max(axis=0)[counted]
    right = (probabilities.argmax(axis=0) == reference)[counted]
    index = np.minimum((confidence * BINS).astype(int), BINS - 1)
    return np.stack([np.bincount(index, weights, BINS) for weights in (np.ones(index.size), confidence, right)])


def _case(of: Gathered, folder: Path, case_id: str) -> np.ndarray:
    files = sorted((path for path in folder.iterdir() if path.suffix in (".nii", ".tif")), key=_number)
    probabilities = np.stack([read_image(path).array[0] for path in files])
    label = read_label(of.cases[case_id], of.plan.labels)
    reference = of.plan.labels.to_indices(label.array, label.geometry.spacing)
    near = ndimage.binary_dilation((reference > 0) | (probabilities.argmax(axis=0) > 0), iterations=MARGIN)
    if of.plan.labels.ignore_index is not None:
        near &= reference != of.plan.labels.ignore_index
    return binned(probabilities, reference, near)


def _number(path: Path) -> int:
    """Files are called 0_background, 1_liver, ..."""
    return int(path.name.partition("_")[0])
