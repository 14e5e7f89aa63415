"""What folds that are trained at the same time share, and the command that trains one of them.

Folds of one configuration are independent, so they may run side by side once what they share is there: the
preprocessed cases, and for a cascade the segmentations by its previous stage, for which all folds of that stage must be
trained. A command falls into phases accordingly, one for each configuration. `local_gpus` runs a phase on the GPUs of
this machine, `slurm` on those of a cluster.
"""

from collections.abc import Sequence
from dataclasses import fields, replace

from autoseg.commands.folds import Folds, TrainOptions
from autoseg.commands.prompts import with_prompts_planned
from autoseg.commands.train import begun_among
from autoseg.lines import LOG
from autoseg.plugins import plugin_options
from autoseg.workspace import FULL, FoldName, Workspace

FLAGS = {  # that are named differently from their field
    "settings": "--set", "checkpoint_seconds": "--checkpoint-every", "report": "--no-report",
}  # fmt: skip


def split_into_phases(workspace: Workspace, options: TrainOptions) -> list[TrainOptions]:
    """The phases of a command, in order: for each, what trains its folds, with configuration and folds named.

    A cascade has a phase before its own if folds of its previous stage are missing, which need not be those asked for.

    Raises:
        StateError: nothing is planned, or there is no such configuration.
        UsageError: there is no such fold.
    """
    if options.prompts:
        options = with_prompts_planned(workspace, options)
    folds = Folds.open(workspace, options)
    name, configuration = folds.plan.configuration(options.configuration)
    splits = folds.chosen(options.folds)
    if options.finish:
        splits = begun_among(folds, name, splits)
    folds.require_sources()
    chosen = tuple(split.fold for split in splits)
    phases = [replace(options, configuration=name, folds=chosen)]
    if before := configuration.cascade_from:
        missing = tuple(split.fold for split in folds.splits.splits if folds.unpredicted(before, split))
        count = len(folds.splits.splits)
        LOG.info(f"{before}, the previous stage: {count - len(missing)} of {count} folds are trained and validated")
        if missing:
            phases.insert(
                0, replace(options, configuration=before, folds=missing, restart=False, init_from=None, finish=False)
            )
    return phases


def preprocess_phase(workspace: Workspace, phase: TrainOptions) -> None:
    """Preprocess the cases of a phase; those that are stored are left alone."""
    folds = Folds.open(workspace, phase)
    folds.preprocess(folds.plan.configuration(phase.configuration)[0])


def bring_previous_stage(workspace: Workspace, phase: TrainOptions) -> None:
    """Bring the previous stage of a phase to its grid, once all folds of that stage are trained; else do nothing."""
    folds = Folds.open(workspace, phase)
    name, configuration = folds.plan.configuration(phase.configuration)
    if configuration.cascade_from:
        folds.bring_previous_stage(name, restart=phase.restart, chosen=folds.chosen(phase.folds))


def train_arguments(workspace: Workspace, options: TrainOptions) -> list[str]:
    """The command line, without `autoseg`, whose options are these: every field that is not at its default.

    A field `time_budget_seconds` is the option `--time-budget`, and so on for all but those of FLAGS. A tuple repeats
    its option. The plugins of this command are named, too.
    """
    arguments = ["train", f"--workspace={workspace.root}", *plugin_options(resolved=True)]
    for field in fields(options):
        value = getattr(options, field.name)
        if value == field.default:
            continue
        flag = FLAGS.get(field.name) or "--" + field.name.removesuffix("_seconds").replace("_", "-")
        if field.name == "folds":
            value = ",".join(map(str, value))
        if isinstance(value, bool):
            arguments.append(flag)
        else:
            arguments += [f"{flag}={part}" for part in (value if isinstance(value, tuple) else (value,))]
    return arguments


def folds_text(folds: Sequence[FoldName]) -> str:
    """Folds as `-f` takes them: "0..4", "0,2" or "0,2,full"."""
    first, last = folds[0], folds[-1]
    if len(folds) > 2 and first != FULL and last != FULL and list(folds) == list(range(first, last + 1)):
        return f"{first}..{last}"
    return ",".join(map(str, folds))
