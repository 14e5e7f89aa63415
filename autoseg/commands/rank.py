"""Which case next: training cases by likely label error, unlabelled images by the benefit of annotating them."""

import shlex
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from autoseg.commands.evaluate import folds_to_score, nothing_trained
from autoseg.commands.expected_dice import expected_dice_of
from autoseg.commands.folds import require_known
from autoseg.commands.inputs import load_records, open_plan
from autoseg.commands.predict import (
    PredictOptions,
    exported_files,
    models_asked_for,
    open_exported,
    open_models_for,
)
from autoseg.datasets.checks.problems import problem_table
from autoseg.datasets.dataset import Case, images_in
from autoseg.errors import UsageError
from autoseg.lines import LOG
from autoseg.messages import counted
from autoseg.nn.devices import choose_device
from autoseg.preprocessing.sources import require_in_place
from autoseg.progress import progressed
from autoseg.records import save
from autoseg.workspace import Workspace

if TYPE_CHECKING:  # torch is imported where something is segmented
    from autoseg.evaluation.annotation_value import AnnotationOrder
    from autoseg.evaluation.label_errors import LabelErrors


def rank_cases(
    workspace: Workspace,
    configuration: str | None = None,
    *,
    network: str | None = None,
    device: str = "auto",
    top: int = 20,
    csv: Path | None = None,
) -> "LabelErrors":
    """Order the training cases by likely label error, each judged by the fold that held it out.

    Every held-out case is segmented again, which takes as long as the folds' validation did. The order is kept in the
    model's label_errors.json. The largest logit decides, whatever `evaluate --choose` chose: a correction would hide
    errors.

    Args:
        top: rows of the table that is shown.
        csv: file for a row per case and label.

    Raises:
        StateError: no fold is trained.
        DataError: an image or a label cannot be read.
    """
    from autoseg.evaluation.label_errors import describe, examine_folds, ranked, to_csv
    from autoseg.models.model import open_model

    dataset, plan, splits = load_records(workspace, network)
    name, chosen = plan.configuration(configuration)
    folds, notes = folds_to_score(workspace, plan, name, splits)
    require_known(workspace, dataset, folds)
    for note in notes:
        LOG.info(note)
    if not folds:
        raise nothing_trained(workspace, name, chosen.network.name)
    known = {case.id: case for case in dataset.cases}
    held_out = {str(split.fold): [known[i] for i in split.validation] for split in folds}
    everything = [case for cases in held_out.values() for case in cases]
    require_in_place(workspace, dataset, everything)
    LOG.info(f"segmenting {counted(len(everything), 'held-out case')} again, each by its own fold")
    one = partial(open_model, workspace, name, chosen.network.name, device=choose_device(device))
    examined = examine_folds(lambda fold: one(folds=[int(fold)]), held_out)
    found = ranked(name, chosen.network.name, list(progressed(examined, len(everything), "rank")))
    save(workspace.label_errors(name, chosen.network.name), found)
    LOG.info(describe(found, top))
    if csv:
        to_csv(found, csv)
    if found.cases and found.cases[0].score > 0:
        first = found.cases[0]
        LOG.info(f"look at the first in a viewer, for example: {viewer(first.image, first.label)}")
    return found


def rank_images(
    workspace: Workspace,
    images: Sequence[Path],
    options: PredictOptions,
    *,
    top: int = 20,
    csv: Path | None = None,
) -> "AnnotationOrder":
    """Order unlabelled images by the expected benefit of annotating them.

    Images that cannot be read are listed at the end, and are in `failed` of the result. What `evaluate --choose` chose
    is not applied: uncertainty is that of the networks.

    Args:
        top, csv: as for `rank_cases`.

    Raises:
        StateError: no model is trained.
        UsageError: there is no image.
    """
    from autoseg.evaluation.annotation_value import describe, look, ordered, to_csv
    from autoseg.inference.ensemble import split

    opened = open_exported(workspace, options)
    plan = opened[0].plan if opened else open_plan(workspace, options.network)
    models = opened or open_models_for(workspace, plan, models_asked_for(workspace, plan, options), options)
    plan = models[0].plan
    found, faults = images_in(images, len(plan.channels), plan.channels, plan.file_names)
    if not found:
        if faults:
            LOG.info(problem_table(faults))
        raise UsageError(f"{images[0]}: no image fits the model", remedy="name a folder of images, or image files: -i")
    cases = [Case(case_id, case_id, tuple(map(str, files)), None) for case_id, files in found]
    chosen = options.inference_options()
    record, why = expected_dice_of(workspace, models, chosen, exported_files(workspace, options))
    if why:
        LOG.info(f"note: {why}")
    by_flips = record.score == "pairwise_dice" if record else sum(len(model.folds) for model in models) == 1
    ensemble = split(models, chosen, by="flips" if by_flips else "folds")
    looked = look(ensemble, cases, record.expected if record else None, faults)
    order = ordered(list(progressed(looked, len(cases), "rank")), faults)
    LOG.info(describe(order, top))
    if csv:
        to_csv(order, csv)
    if faults:
        LOG.info(problem_table(faults))
    return order


def viewer(image: str, label: str) -> str:
    """A command that opens an image with its label in ITK-SNAP, as text."""
    return shlex.join(["itksnap", "-g", image, "-s", label])
