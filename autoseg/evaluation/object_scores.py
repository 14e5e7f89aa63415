"""Objects over many images: average precision, panoptic quality, splits and merges, with intervals over patients.

Objects are counted image by image (`ObjectCounts`), and the counts are added over images before a ratio is taken: an
image with many objects counts more than one with few, as in the Data Science Bowl, StarDist and Cellpose. A label
without objects (stuff) is one object per image, as in panoptic segmentation (Kirillov et al., CVPR 2019).
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from autoseg.evaluation.intervals import interval_of_ratio
from autoseg.evaluation.objects import IOU_THRESHOLDS, PANOPTIC_IOU, detected, object_overlaps, splits_and_merges
from autoseg.imaging.labels import LabelSet
from autoseg.messages import counted, ruled

SHOWN = (0.5, 0.75, 0.9)  # thresholds that tables have a column for


@dataclass(frozen=True)
class ObjectCounts:
    """The objects of one thing in one image, or the one object that stuff is."""

    reference: int
    segmentation: int
    matched: tuple[int, ...]  # pairs at each of IOU_THRESHOLDS
    iou_sum: float  # over the pairs at an IoU of 0.5
    splits: int
    merges: int


@dataclass(frozen=True)
class ObjectSummary:
    """The objects of one thing over images; None where there is no object in either map."""

    images: int
    reference: int
    segmentation: int
    average_precision: dict[str, float | None]  # IoU threshold -> TP / (TP + FP + FN)
    mean_average_precision: float | None  # over the thresholds 0.5 to 0.95
    interval: tuple[float, float] | None  # of the average precision at 0.5, 95 %, over patients
    pq: float | None  # panoptic quality = rq x sq
    rq: float | None  # recognition quality: F1 of objects at an IoU of 0.5
    sq: float | None  # segmentation quality: mean IoU of matches
    splits: int
    merges: int
    stuff: bool = False


def count_objects(
    labels: LabelSet, reference: np.ndarray, segmentation: np.ndarray, ignored: np.ndarray | None = None
) -> dict[str, ObjectCounts]:
    """Match the objects of every thing in two label maps, as files hold them; of stuff where there is any.

    Args:
        reference, segmentation: file values (Z, Y, X).
        ignored: bool, voxels that count in neither.
    """
    found = {}
    for name in labels.things:
        maps = [labels.objects(name, values) for values in (reference, segmentation)]
        found[name] = _counted(maps[0], maps[1], ignored)
    for name, value in labels.stuff.items():
        masks = [(labels.without_objects(values) == value).astype(np.uint8) for values in (reference, segmentation)]
        found[name] = _counted(masks[0], masks[1], ignored)
    return found


def _counted(reference: np.ndarray, segmentation: np.ndarray, ignored: np.ndarray | None) -> ObjectCounts:
    overlaps = object_overlaps(reference, segmentation, ignored=ignored)
    matched = [detected(overlaps, threshold) for threshold in IOU_THRESHOLDS]
    splits, merges = splits_and_merges(overlaps)
    return ObjectCounts(
        len(overlaps.reference_sizes), len(overlaps.segmentation_sizes), tuple(one.tp for one in matched),
        matched[IOU_THRESHOLDS.index(PANOPTIC_IOU)].iou_sum, splits, merges,
    )  # fmt: skip


def share_found(counts: Mapping[str, ObjectCounts]) -> float | None:
    """Average precision at an IoU of 0.5 of the objects of one image, of all kinds together; None without any."""
    at = IOU_THRESHOLDS.index(PANOPTIC_IOU)
    tp = sum(one.matched[at] for one in counts.values())
    return _ratio(tp, sum(one.reference + one.segmentation for one in counts.values()) - tp)


def summarise_objects(
    images: Sequence[ObjectCounts], patients: Sequence[Hashable] | None = None, *, stuff: bool = False
) -> ObjectSummary:
    """Add the counts of images.

    Args:
        patients: of each image, for the interval; None: no interval.
    """
    tp = np.sum([image.matched for image in images], axis=0)
    n, m = sum(image.reference for image in images), sum(image.segmentation for image in images)
    average = {f"{t:g}": _ratio(int(k), n + m - int(k)) for t, k in zip(IOU_THRESHOLDS, tp, strict=True)}
    defined = [value for value in average.values() if value is not None]
    at = IOU_THRESHOLDS.index(PANOPTIC_IOU)
    interval = None
    if patients is not None and defined:
        matched = [image.matched[at] for image in images]
        either = [image.reference + image.segmentation - image.matched[at] for image in images]
        interval = interval_of_ratio(matched, either, patients)
    iou = sum(image.iou_sum for image in images)
    return ObjectSummary(
        len(images), n, m, average, float(np.mean(defined)) if defined else None, interval,
        _ratio(2 * iou, n + m), _ratio(2 * int(tp[at]), n + m), _ratio(iou, int(tp[at])),
        sum(image.splits for image in images), sum(image.merges for image in images), stuff,
    )  # fmt: skip


def object_tables(found: Mapping[str, ObjectSummary]) -> str:
    """A row per thing (and stuff); below it panoptic quality of things, of stuff and of all, where there are both."""
    rows = [[
        "objects", *(f"AP {t:g}" for t in SHOWN), "AP 0.5-0.95", "PQ", "RQ", "SQ", "split", "merged", "in reference",
        "found",
    ]]  # fmt: skip
    for name, one in found.items():
        average = [one.average_precision[f"{t:g}"] for t in SHOWN]
        values = [*average, one.mean_average_precision, one.pq, one.rq, one.sq]
        rows.append([
            name, *("-" if v is None else f"{v:.4f}" for v in values), f"{one.splits}", f"{one.merges}",
            f"{one.reference}", f"{one.segmentation}",
        ])  # fmt: skip
    lines = [ruled(rows)]
    for name, one in found.items():
        first = one.average_precision["0.5"]
        if one.interval is not None and first is not None:
            low, high = one.interval
            lines.append(
                f"{name}: average precision at an IoU of 0.5 is {first:.4f} ({low:.4f} to {high:.4f}, 95 % over "
                f"patients of {counted(one.images, 'image')})"
            )
    qualities = {kind: _mean([o.pq for o in found.values() if o.stuff == stuff]) for kind, stuff in KINDS.items()}
    if all(value is not None for value in qualities.values()):
        every = _mean([one.pq for one in found.values()])
        shown = ", ".join(f"{kind} {value:.4f}" for kind, value in {**qualities, "all": every}.items())
        lines.append(f"panoptic quality: {shown}")
    return "\n".join(lines)


KINDS = {"things": False, "stuff": True}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None
