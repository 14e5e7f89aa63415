"""Held-out cases decided by resampled logits and by resampled probabilities, with the same trained folds.

    python benchmarks/logits_or_probabilities.py --workspace DIR [--configuration 3d_fullres] [--network unet]

DIR is a workspace whose grid is not that of its images, such as autoseg_demo/workspace. Prints the mean Dice of each
label both ways, and the mean difference with its 95 % interval over cases.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from autoseg.datasets.dataset import Dataset, load_case
from autoseg.datasets.splits import Splits
from autoseg.inference.member import EnsembleMember, decide
from autoseg.models.build import head_probabilities
from autoseg.models.model import Model, open_model
from autoseg.records import load
from autoseg.workspace import Workspace


def both_ways(model: Model, case_id: str, dataset: Dataset) -> dict[str, tuple[float, float]]:
    """Dice of each label of one case, by probabilities and by logits; labels that neither side has are left out."""
    case = next(case for case in dataset.cases if case.id == case_id)
    plan, member = model.plan, EnsembleMember(model)
    loaded = load_case(
        case, plan.labels, channels=plan.channels, orientation=plan.orientation, axis_order=plan.axis_order
    )
    prepared = member.prepare(loaded)
    logits = member.logits(np.asarray(prepared.image[:]))
    probabilities = head_probabilities(logits[None], plan.heads.has_regions)[0].numpy()
    resampled = prepared.placement.back(probabilities, plan.resampling)
    by_probabilities = prepared.placement.uncrop(plan.heads.decide(resampled))
    by_logits = decide([member], loaded)
    assert loaded.target is not None
    found = {}
    for index, name in enumerate(plan.labels.values, start=1):
        reference = loaded.target == index
        sizes = [np.count_nonzero(way == index) for way in (by_probabilities, by_logits)]
        if reference.any() or any(sizes):
            both = [np.count_nonzero((way == index) & reference) for way in (by_probabilities, by_logits)]
            dice = [2 * b / (s + np.count_nonzero(reference)) for b, s in zip(both, sizes, strict=True)]
            found[name] = (dice[0], dice[1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workspace", type=Path, required=True)
    parser.add_argument("--configuration", default="3d_fullres")
    parser.add_argument("--network", default="unet")
    options = parser.parse_args()
    workspace = Workspace(options.workspace)
    dataset, splits = load(Dataset, workspace.dataset), load(Splits, workspace.splits)
    rows: dict[str, list[tuple[float, float]]] = {}
    for split in splits.splits:
        device = torch.device("cpu")
        model = open_model(workspace, options.configuration, options.network, folds=[split.fold], device=device)
        for case_id in split.validation:
            for name, dice in both_ways(model, case_id, dataset).items():
                rows.setdefault(name, []).append(dice)
    print("| label | cases | Dice by probabilities | by logits | difference |\n|---|---|---|---|---|")
    for name, pairs in rows.items():
        found = np.array(pairs)
        change = found[:, 1] - found[:, 0]
        half = 1.96 * change.std(ddof=1) / np.sqrt(len(change))
        means = " | ".join(f"{mean:.4f}" for mean in found.mean(axis=0))
        print(f"| {name} | {len(found)} | {means} | {change.mean():+.4f} ± {half:.4f} |")


if __name__ == "__main__":
    main()
