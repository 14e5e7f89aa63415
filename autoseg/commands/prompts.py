"""Training prompts: the configuration that a trained one is continued as, and the fold that each fold begins with."""

from dataclasses import replace
from pathlib import Path

from autoseg.commands.folds import Folds, TrainOptions
from autoseg.commands.inputs import open_plan
from autoseg.errors import StateError
from autoseg.lines import LOG
from autoseg.messages import suggest
from autoseg.planning.prompted import with_prompts
from autoseg.records import save
from autoseg.workspace import FoldName, Workspace


def with_prompts_planned(workspace: Workspace, options: TrainOptions) -> TrainOptions:
    """Add a configuration with prompts to the plan where it lacks one; return the options with its name.

    Raises:
        StateError: nothing has been planned, or there is no such configuration.
        UsageError: the configuration cannot take prompts.
    """
    plan = open_plan(workspace, options.network)
    before, configuration = plan.configuration(options.configuration)
    extended, name = with_prompts(plan, before)
    if extended is not plan:
        path = workspace.plan_for(configuration.network.name)
        save(path if path.exists() and open_plan(workspace) != plan else workspace.plan, extended)
        added = extended.configurations[name].prompts
        assert added is not None
        LOG.info(f"{name}: {before} with prompts, balls of {added.radius_mm:g} mm for clicks; added to the plan")
    return replace(options, configuration=name)


def continued_fold(folds: Folds, name: str, fold: FoldName, *, restart: bool) -> Path | None:
    """The folder of the trained fold that a fold of a configuration with prompts begins with: the same cases held out.

    None where the fold has begun with it: it is resumed, also where the workspace has moved since.

    Raises:
        StateError: it is not trained to the end.
    """
    from autoseg.models.begun import read_begun

    configuration = folds.plan.configurations[name]
    assert configuration.prompts is not None
    before = configuration.prompts.continues
    folder = folds.folder(before, fold)
    own = None if restart else read_begun(folds.folder(name, fold))
    if own and own.basis.init_from and Path(own.basis.init_from).parts[-2:] == folder.parts[-2:]:
        return None
    begun = read_begun(folder)
    if begun is None or not begun.finished:
        train = suggest("train", "-f", fold, workspace=folds.workspace.root, configuration=before)
        raise StateError(
            f"fold {fold} of {before}, which prompts are to be trained for, is not trained to the end",
            remedy=f"train it first: {train}",
        )
    return folder
