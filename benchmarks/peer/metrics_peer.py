"""Metrics of other libraries, on arrays that benchmarks/metrics.py wrote; runs with their Python, without autoseg.

    python metrics_peer.py surface-distance|monai|panoptica|speed FOLDER

The answer, the last line printed, is JSON: version, values of each case, and for `speed` the seconds of the processor.
"""

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np


def surface_distance(folder: Path) -> dict:
    """DeepMind's metrics of each pair of masks."""
    from scipy import ndimage

    np.inf = np.inf  # the package is from before NumPy 2 and SciPy 2
    for name in ("filters", "morphology"):
        if not hasattr(ndimage, name):
            setattr(ndimage, name, ndimage)
    import surface_distance as sd

    values = {}
    for name, (reference, segmentation, spacing) in pairs(folder, "masks").items():
        if reference.shape[0] == 1:
            reference, segmentation, spacing = reference[0], segmentation[0], spacing[1:]
        found = sd.compute_surface_distances(reference, segmentation, list(spacing))
        of_reference, of_segmentation = sd.compute_average_surface_distance(found)
        areas = found["surfel_areas_gt"].sum(), found["surfel_areas_pred"].sum()
        values[name] = {
            "hd": sd.compute_robust_hausdorff(found, 100),
            "hd95": sd.compute_robust_hausdorff(found, 95),
            "assd": (of_reference * areas[0] + of_segmentation * areas[1]) / sum(areas),
            "nsd": sd.compute_surface_dice_at_tolerance(found, 1.0),
            "dice": sd.compute_dice_coefficient(reference, segmentation),
        }
    return {"version": version("surface-distance"), "values": values}


def monai(folder: Path) -> dict:
    """MONAI's metrics of each pair of masks."""
    values = {}
    for name, (reference, segmentation, spacing) in pairs(folder, "masks").items():
        if reference.shape[0] == 1:
            reference, segmentation, spacing = reference[0], segmentation[0], spacing[1:]
        values[name] = of_monai(reference, segmentation, spacing)
    return {"version": version("monai"), "values": values}


def of_monai(reference: np.ndarray, segmentation: np.ndarray, spacing: tuple) -> dict:
    """What MONAI can measure of a pair of masks."""
    import torch
    from monai import metrics

    y, y_pred = (torch.from_numpy(np.ascontiguousarray(mask))[None, None] for mask in (reference, segmentation))
    tp, fp, tn, fn = (float(v) for v in metrics.get_confusion_matrix(y_pred.float(), y.float())[0, 0])
    steps = list(spacing)
    return {
        "dice": float(metrics.compute_dice(y_pred, y)),
        "iou": float(metrics.compute_iou(y_pred, y)),
        "recall": tp / (tp + fn) if tp + fn else None,
        "precision": tp / (tp + fp) if tp + fp else None,
        "specificity": tn / (tn + fp) if tn + fp else None,
        "hd": float(metrics.compute_hausdorff_distance(y_pred, y, include_background=True, spacing=steps)),
        "hd95": float(
            metrics.compute_hausdorff_distance(y_pred, y, include_background=True, percentile=95, spacing=steps)
        ),
        "assd": float(
            metrics.compute_average_surface_distance(y_pred, y, include_background=True, symmetric=True, spacing=steps)
        ),
        "nsd": float(
            metrics.compute_surface_dice(y_pred, y, [1.0], include_background=True, spacing=steps, use_subvoxels=True)
        ),
    }


def panoptica(folder: Path) -> dict:
    """Panoptica's metrics of each pair of instance maps."""
    from panoptica import InputType, NaiveThresholdMatching, Panoptica_Evaluator

    values = {}
    for name, (reference, segmentation, _) in pairs(folder, "instances").items():
        values[name] = {}
        for threshold in (0.1, 0.5, 0.7):
            evaluator = Panoptica_Evaluator(
                expected_input=InputType.UNMATCHED_INSTANCE,
                instance_matcher=NaiveThresholdMatching(matching_threshold=threshold),
            )
            result = evaluator.evaluate(segmentation.astype(np.uint16), reference.astype(np.uint16))
            result = next(iter(result.values())) if isinstance(result, dict) else result
            one = {key: float(getattr(result, key)) for key in ("tp", "fp", "fn", "rq", "sq", "pq")}
            values[name] |= {f"{key} at {threshold}": value for key, value in one.items()}
    return {"version": version("panoptica"), "values": values}


def speed(folder: Path) -> dict:
    """MONAI's metrics of every label of the large label maps."""
    import torch

    torch.set_num_threads(1)
    ((reference, segmentation, spacing),) = pairs(folder, "large").values()
    of_monai(reference[:8, :64, :64] > 0, segmentation[:8, :64, :64] > 0, spacing)  # imports
    began, wall = time.process_time(), time.perf_counter()
    values = {}
    for label in range(1, int(reference.max()) + 1):
        values[str(label)] = of_monai(reference == label, segmentation == label, spacing)
        print(f"label {label}: {time.process_time() - began:.1f} s", file=sys.stderr, flush=True)
    return {
        "version": version("monai"),
        "values": values,
        "cpu_seconds": time.process_time() - began,
        "seconds": time.perf_counter() - wall,
    }


def pairs(folder: Path, kind: str) -> dict:
    """Name -> reference, segmentation, spacing (Z, Y, X)."""
    found = {}
    for path in sorted((folder / kind).glob("*.npz")):
        with np.load(path) as file:
            found[path.stem] = file["reference"], file["segmentation"], tuple(float(s) for s in file["spacing"])
    return found


if __name__ == "__main__":
    run = {"surface-distance": surface_distance, "monai": monai, "panoptica": panoptica, "speed": speed}[sys.argv[1]]
    print(json.dumps(run(Path(sys.argv[2]))))
