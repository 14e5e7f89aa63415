"""What refining boundaries by a dense CRF would do to held-out cases, each segmented by the networks of its own fold.

The few candidates differ in their reach, which is one or two voxels of the configuration, and in whether neighbours
count whatever they look like. One is accepted only where it is better beyond chance on cases it was not chosen on, as
every other choice (`evaluation.choose`). Networks run once per case; all candidates see the same scores.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from autoseg.datasets.dataset import Case, load_case
from autoseg.evaluation.choose import HeldOutCases, Tried, mean_dice, try_out
from autoseg.evaluation.metrics import confusion_matrix
from autoseg.imaging.components import as_slices
from autoseg.imaging.dense_crf import DenseCrf, refine
from autoseg.inference.member import EnsembleMember, Preparations, decide, parts_of
from autoseg.inference.streaming import Scores
from autoseg.lines import LOG
from autoseg.models.decision import Choice, Rule

if TYPE_CHECKING:
    from autoseg.models.model import Model
    from autoseg.workspace import FoldName

# reach in voxels, smoothness, appearance, contrast; the mildest first
GRID = ((1, 1, 0, 1.0), (1, 0, 2, 0.5), (1, 1, 2, 0.5), (2, 1, 2, 0.5), (2, 0, 5, 0.25))


def candidates(spacing: Sequence[float]) -> list[DenseCrf]:
    """CRFs to try for networks of this spacing, mm (two or three axes)."""
    voxel = min(spacing)
    return [DenseCrf(reach * voxel, smooth, alike, contrast) for reach, smooth, alike, contrast in GRID]


def choose_crf(
    models: "Mapping[FoldName, Sequence[Model]]",
    cases: "Mapping[FoldName, Sequence[Case]]",
    held: HeldOutCases,
    offsets: Mapping[str, float],
) -> tuple[DenseCrf | None, Choice]:
    """Try all candidates on the held-out cases of every fold.

    Args:
        models: of each fold, those that predict.
        cases: of each fold, those it holds out; in the order of `held`.
        offsets: what is added to logits before they decide.

    Returns:
        The candidate that is accepted, or None, and the choice with its figures.

    Raises:
        DataError: an image or a label cannot be read.
    """
    from tqdm import tqdm

    first = next(iter(models.values()))[0]
    if first.plan.heads.has_regions:
        return None, Choice("crf", "", "-", False, "regions may overlap: a CRF is of labels that exclude each other")
    tried = candidates(first.configuration.spacing)
    LOG.info(f"\n{len(tried)} CRFs on {len(held.cases)} held-out cases, each segmented by its own fold")
    found: list[list[float]] = []
    with tqdm(total=len(held.cases), desc="crf", disable=None, leave=False) as bar:
        for fold, of_fold in cases.items():
            shared = Preparations()
            members = [EnsembleMember(model, preparations=shared) for model in models[fold]]
            for case in of_fold:
                found.append(dice_of_case(members, case, tried, offsets))
                shared.forget()
                bar.update()
    baseline, *scores = np.array(found).T
    choice, at = try_out(Tried("crf", "", tuple(map(str, tried)), np.array(scores), baseline), held, 1)
    return (tried[at] if at >= 0 else None), choice


def dice_of_case(
    members: Sequence[EnsembleMember], case: Case, tried: Sequence[DenseCrf], offsets: Mapping[str, float]
) -> list[float]:
    """Mean Dice over labels of one case: as it is, then refined by each candidate."""
    plan = members[0].model.plan
    loaded = load_case(
        case, plan.labels, channels=plan.channels, orientation=plan.orientation, axis_order=plan.axis_order
    )
    assert loaded.target is not None, "held-out cases have a label"
    placement, rule = members[0].prepare(loaded).placement, Rule(dict(offsets))
    scores = Scores(plan.heads, placement.shape_after_crop, parts_of(members), rule.logit_offsets(plan.heads))
    plain = decide(members, loaded, [scores], rule)
    found = []
    for crf in (None, *tried):
        labels = plain.copy()
        if crf is not None:
            inside = labels[as_slices(placement.box)]
            refine(inside, scores.values, placement.crop(loaded.image), loaded.spacing, crf)
        confusion = confusion_matrix(
            loaded.target, labels, plan.labels.num_labels + 1, ignore_index=plan.labels.ignore_index
        )
        found.append(mean_dice(confusion, plan.labels))
    return found
