"""Objects in two instance maps: which were found, which split, which merged. Lesions are the components of a mask.

An instance map holds a whole number per voxel: 0 where no object is, and its own number for each object; numbers need
not match between maps, nor follow each other. All functions are pure; counts of several images are added (`pooled`).

The matching rule: a reference object and a segmented one can match if their IoU reaches the threshold. Pairs are taken
in the order of their IoU, largest first, and an object is matched once. Above an IoU of 0.5 no object can have two
candidates, and the order does not matter.

LESION_METRICS, of the 26-connected components of a label, use two thresholds. A lesion is found from an IoU of 0.1 on
(`lesion_*`): small ones are hit rather than outlined. Panoptic quality is defined from 0.5 on.

                          no object in either    none in the reference    none in the segmentation
    lesion_sensitivity    NaN                    NaN                      0
    lesion_precision      NaN                    0                        NaN
    lesion_f1, pq, rq     NaN                    0                        0
    sq                    NaN                    NaN                      NaN
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

FOUND_IOU = 0.1  # from which a lesion counts as found
PANOPTIC_IOU = 0.5  # from which objects match in panoptic quality
IOU_THRESHOLDS = tuple(percent / 100 for percent in range(50, 100, 5))
_DENSE = 1 << 20  # up to which numbers are counted in a table
PART = 0.1  # share of an object's voxels that a piece must hold for the object to be split, or merged, by it


@dataclass(frozen=True)
class ObjectOverlaps:
    """The objects of two instance maps, and the pairs of them that share a voxel."""

    reference_sizes: np.ndarray  # (n,) int64 voxels, objects in the order of their numbers
    segmentation_sizes: np.ndarray  # (m,) int64
    pairs: np.ndarray  # (k, 2) int64 indices into the two
    shared: np.ndarray  # (k,) int64 voxels that both objects hold

    @property
    def iou(self) -> np.ndarray:
        """Of each pair, float64 (k,)."""
        sizes = self.reference_sizes[self.pairs[:, 0]] + self.segmentation_sizes[self.pairs[:, 1]]
        return self.shared / (sizes - self.shared)


@dataclass(frozen=True)
class Detection:
    """Objects matched at a threshold."""

    tp: int  # objects of the reference that have a match
    fp: int  # segmented objects without one
    fn: int  # objects of the reference without one
    iou_sum: float  # over the matches


def object_overlaps(
    reference: np.ndarray, segmentation: np.ndarray, *, ignored: np.ndarray | None = None
) -> ObjectOverlaps:
    """Count the voxels that the objects of two instance maps share.

    Args:
        reference, segmentation: whole numbers, equal shapes; 0 is background.
        ignored: bool, voxels that belong to no object of either map.

    Raises:
        ValueError: shapes differ, values are not whole numbers, or one is negative.
    """
    if reference.shape != segmentation.shape:
        raise ValueError(f"reference {reference.shape} and segmentation {segmentation.shape} differ in shape")
    maps = []
    for name, array in (("reference", reference), ("segmentation", segmentation)):
        if array.dtype.kind not in "iub":
            raise ValueError(f"the {name} holds {array.dtype}, not whole numbers")
        if array.size and array.min() < 0:
            raise ValueError(f"the {name} holds {array.min()}: numbers of objects are not negative")
        maps.append(np.where(ignored, 0, array) if ignored is not None else array)
    both = (maps[0] != 0) & (maps[1] != 0)
    (first, first_sizes), (second, second_sizes) = (_numbered(array, both) for array in maps)
    width = max(len(second_sizes), 1)
    codes, shared = _counted(first * width + second)
    return ObjectOverlaps(first_sizes, second_sizes, np.stack(np.divmod(codes, width), axis=1), shared)


def matches(overlaps: ObjectOverlaps, threshold: float) -> np.ndarray:
    """Match objects one to one from an IoU on: indices int64 into `overlaps.pairs`, largest IoU first.

    Raises:
        ValueError: a threshold that is not above 0 and at most 1.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"an IoU of {threshold} cannot be a threshold: it is above 0 and at most 1")
    iou = overlaps.iou
    taken: tuple[set[int], set[int]] = (set(), set())
    chosen = []
    for index in np.argsort(-iou, kind="stable"):
        if iou[index] < threshold:
            break
        pair = overlaps.pairs[index]
        if pair[0] not in taken[0] and pair[1] not in taken[1]:
            taken[0].add(int(pair[0]))
            taken[1].add(int(pair[1]))
            chosen.append(index)
    return np.array(chosen, dtype=np.int64)


def detected(overlaps: ObjectOverlaps, threshold: float = PANOPTIC_IOU) -> Detection:
    """Count the objects that match from an IoU on, and those that do not."""
    matched = matches(overlaps, threshold)
    n = len(matched)
    return Detection(
        n, len(overlaps.segmentation_sizes) - n, len(overlaps.reference_sizes) - n, float(overlaps.iou[matched].sum())
    )


def pooled(detections: Iterable[Detection]) -> Detection:
    """Objects of several images together."""
    rows = [(d.tp, d.fp, d.fn, d.iou_sum) for d in detections]
    tp, fp, fn, iou_sum = map(sum, zip(*rows, strict=True)) if rows else (0, 0, 0, 0.0)
    return Detection(int(tp), int(fp), int(fn), float(iou_sum))


def sensitivity(detection: Detection) -> float:
    """TP / (TP + FN): the share of the reference's objects that was found; NaN if there is none."""
    return _ratio(detection.tp, detection.tp + detection.fn)


def precision(detection: Detection) -> float:
    """TP / (TP + FP): the share of the segmented objects that are right; NaN if there is none."""
    return _ratio(detection.tp, detection.tp + detection.fp)


def recognition_quality(detection: Detection) -> float:
    """RQ, the F1 of objects: 2 TP / (2 TP + FP + FN); NaN without any object."""
    return _ratio(2 * detection.tp, 2 * detection.tp + detection.fp + detection.fn)


def segmentation_quality(detection: Detection) -> float:
    """SQ, the mean IoU of the matches; NaN without any."""
    return _ratio(detection.iou_sum, detection.tp)


def panoptic_quality(detection: Detection) -> float:
    """PQ = RQ x SQ (Kirillov et al., "Panoptic segmentation", CVPR 2019); NaN without any object, 0 without a match."""
    return _ratio(2 * detection.iou_sum, 2 * detection.tp + detection.fp + detection.fn)


def average_precision(
    images: Sequence[ObjectOverlaps], thresholds: Sequence[float] = IOU_THRESHOLDS
) -> dict[float, float]:
    """TP / (TP + FP + FN) over all objects of the images, at each IoU threshold; NaN without any object.

    This is the average precision of cell segmentation (Data Science Bowl 2018, StarDist, Cellpose). Their headline
    number is its mean over the thresholds. Objects have no confidence here, by which detectors rank them.
    """
    found = {}
    for threshold in thresholds:
        all_of_them = pooled(detected(overlaps, threshold) for overlaps in images)
        found[threshold] = _ratio(all_of_them.tp, all_of_them.tp + all_of_them.fp + all_of_them.fn)
    return found


def splits_and_merges(overlaps: ObjectOverlaps) -> tuple[int, int]:
    """Count reference objects that were cut in pieces, and segmented objects that join several.

    A segmented object is a piece of the reference object that holds more than half of it, if it covers at least a
    tenth of that object; a reference object with two pieces or more is split. With the maps exchanged: a segmented
    object is a merger if it holds more than half of each of two or more reference objects that cover at least a tenth
    of it.
    """
    first, second = overlaps.pairs.T
    of_reference = overlaps.shared / overlaps.reference_sizes[first]
    of_segmentation = overlaps.shared / overlaps.segmentation_sizes[second]
    pieces = np.bincount(first[(of_segmentation > 0.5) & (of_reference >= PART)])
    joined = np.bincount(second[(of_reference > 0.5) & (of_segmentation >= PART)])
    return int(np.count_nonzero(pieces >= 2)), int(np.count_nonzero(joined >= 2))


@dataclass(frozen=True)
class Lesions:
    """The components of a label, matched at both thresholds."""

    found: Detection  # at FOUND_IOU
    outlined: Detection  # at PANOPTIC_IOU


def lesions(reference_mask: np.ndarray, segmentation_mask: np.ndarray) -> Lesions:
    """Match the components of two masks: voxels that share a face, an edge or a corner belong together."""
    maps = [ndimage.label(m, structure=np.ones((3,) * m.ndim, bool))[0] for m in (reference_mask, segmentation_mask)]
    overlaps = object_overlaps(*maps)
    return Lesions(detected(overlaps, FOUND_IOU), detected(overlaps, PANOPTIC_IOU))


LESION_METRICS: dict[str, Callable[[Lesions], float]] = {
    "lesion_sensitivity": lambda lesions: sensitivity(lesions.found),
    "lesion_precision": lambda lesions: precision(lesions.found),
    "lesion_f1": lambda lesions: recognition_quality(lesions.found),
    "lesion_tp": lambda lesions: float(lesions.found.tp),
    "lesion_fp": lambda lesions: float(lesions.found.fp),
    "lesion_fn": lambda lesions: float(lesions.found.fn),
    "pq": lambda lesions: panoptic_quality(lesions.outlined),
    "rq": lambda lesions: recognition_quality(lesions.outlined),
    "sq": lambda lesions: segmentation_quality(lesions.outlined),
}


def _numbered(array: np.ndarray, where: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The index int64 of the object of each voxel `where`; and the objects' sizes, in the order of their numbers."""
    numbers, sizes = _counted(array[array != 0])
    return np.searchsorted(numbers, array[where]), sizes


def _counted(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The different numbers among many, sorted, and how often each occurs."""
    if numbers.size and numbers.max() < max(_DENSE, numbers.size):
        counts = np.bincount(numbers)
        present = np.flatnonzero(counts)
        return present, counts[present]
    return np.unique(numbers, return_counts=True)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")
