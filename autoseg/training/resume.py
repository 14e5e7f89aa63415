"""Whether a training may resume from its folder, and what to report where it may not.

The rule of what is the same training is that of `same_training`; here it is applied to a checkpoint, and every refusal
names the command that works.
"""

from dataclasses import replace
from pathlib import Path

from autoseg.dataloading.store import CaseStore
from autoseg.errors import StateError
from autoseg.messages import suggest
from autoseg.models.same_training import (
    content_differences,
    describe_contents,
    describe_differences,
    options_between,
    plan_differences,
)
from autoseg.models.versions import Checkpoint
from autoseg.planning.plan import LENGTHS, Training
from autoseg.preprocessing.cascade import previous_digest
from autoseg.preprocessing.sources import plan_again
from autoseg.records import from_plain, to_plain
from autoseg.training.setup import FoldOptions, TrainingTask, place
from autoseg.workspace import FULL

KEPT = "(the old folder is renamed)"


def contents_of(task: TrainingTask) -> dict[str, tuple[str, ...]]:
    """Digests of what a fold's cases hold today (see `same_training.PARTS`). Raises StateError: a case is missing."""
    store = CaseStore(task.workspace.preprocessed(task.configuration.data))
    cases = (*task.split.train, *task.split.validation)
    found: dict[str, tuple[str, ...]] = {case: store.info(case).content for case in cases}
    if task.configuration.cascade_from is None:
        return found
    folder = task.workspace.previous_stage(task.configuration_name, task.configuration.network.name)
    return {case: (*parts, previous_digest(folder, case)) for case, parts in found.items()}


def require_same_training(saved: Checkpoint, task: TrainingTask, options: FoldOptions) -> None:
    """Refuse to resume under another plan, with other cases, contents or weights than a fold was begun with.

    What counts is defined in `same_training`. A fold that is resumed need not be given the model it began from again.
    The content of a finished fold's cases is not checked: see `remarks_on_contents`.

    Args:
        saved: its checkpoint.

    Raises:
        StateError: says what differs and what can be done.
    """
    _require_same_plan(saved, task, options)
    _require_same_cases(saved, task, options)
    _require_same_beginning(saved, task, options)
    changed = content_differences(saved.contents, task.contents, task.split.train)
    if changed and not saved.finished:
        raise StateError(
            f"{task.folder} is not trained to the end, and since it began {describe_contents(changed)}: the fold would "
            "be trained partly on the old content, partly on the new",
            remedy=f"retrain from scratch: {again(task, options, '--restart')} {KEPT}; or restore the previous files "
            f"and plan again: {plan_again(task.workspace)}",
        )


def remarks_on_contents(saved: Checkpoint, task: TrainingTask, options: FoldOptions) -> list[str]:
    """What a fold's owner should know of cases whose content changed since they were trained on or held out."""
    remarks = []
    if saved.finished and (changed := content_differences(saved.contents, task.contents, task.split.train)):
        remarks.append(
            f"note: since it was trained, {describe_contents(changed)}; to retrain it from scratch: "
            f"{again(task, options, '--restart')}"
        )
    if changed := content_differences(saved.contents, task.contents, task.split.validation):
        what = f"note: of its held-out cases, {describe_contents(changed)}: "
        if not saved.finished:
            remarks.append(f"{what}the training resumes and validates on the new content")
        else:
            network, where = task.configuration.network.name, task.workspace.root
            evaluate = suggest("evaluate", workspace=where, configuration=task.configuration_name, network=network)
            remarks.append(f"{what}its weights stay valid; score it again: {evaluate}")
    return remarks


def with_settings_of(saved: Checkpoint, task: TrainingTask) -> TrainingTask:
    """The task under the training settings that its checkpoint was begun with, the length among them."""
    training = from_plain(Training, saved.plan["training"], f"{task.folder}: plan.training")
    return replace(task, plan=replace(task.plan, training=training))


def nothing_to_finish(task: TrainingTask) -> StateError:
    """The refusal to finish what has not learnt anything."""
    return StateError(
        f"{task.folder} holds no trained step to finish",
        remedy=f"train it: {suggest(*command_of_fold(task), workspace=task.workspace.root)}",
    )


def again(task: TrainingTask, options: FoldOptions, *more: object) -> str:
    """The command that trains this fold under the present plan, with further options."""
    words = [*command_of_fold(task), *_length_of(task)]
    settings = [word for setting in options.settings for word in ("--set", setting)]
    return suggest(*words, *settings, *more, workspace=task.workspace.root)


def as_begun(saved: Checkpoint, task: TrainingTask, options: FoldOptions) -> str:
    """How a fold is trained as it was begun: the command, where options of `train` can bring that about."""
    found = options_between(saved.plan, to_plain(task.plan), task.configuration_name)
    if found is None:
        return "restore the plan.json it was started with (plan keeps it as plan.before-*.json)"
    length = () if set(found) & {"--epochs", "--steps", "--time-budget"} else _length_of(task)
    settings = [word for setting in options.settings for word in ("--set", setting)]
    words = [*command_of_fold(task), *length, *settings, *found]
    return f"resume it with its own settings: {suggest(*words, workspace=task.workspace.root)}"


def command_of_fold(task: TrainingTask) -> list[str]:
    """`train -f 0 -c 3d_fullres --network unet`."""
    network = task.configuration.network.name
    return ["train", "-f", str(task.number), "-c", task.configuration_name, "--network", network]


def _length_of(task: TrainingTask) -> tuple[str, ...]:
    training = task.plan.training
    if training.time_budget_seconds is not None:
        return ("--time-budget", f"{training.time_budget_seconds:g}s")
    if training.steps is not None:
        return ("--steps", str(training.steps))
    return ("--epochs", str(training.epochs))


def _require_same_plan(saved: Checkpoint, task: TrainingTask, options: FoldOptions) -> None:
    found = plan_differences(saved.plan, to_plain(task.plan), task.configuration_name)
    if not found:
        return
    differ = describe_differences(found)
    if saved.finished and all(key in {f"training.{name}" for name in LENGTHS} for key in found):
        raise StateError(
            f"{task.folder} is trained to the end, with a different length: {differ}",
            remedy=f"to continue from its weights: {again(task, options, '--init-from', task.folder, '--restart')} "
            f"{KEPT}; or keep it unchanged by giving the length it was trained with",
        )
    raise StateError(
        f"{task.folder} was trained under a different plan: {differ}",
        remedy=f"{as_begun(saved, task, options)}; or retrain from scratch: {again(task, options, '--restart')} {KEPT}",
    )


def _require_same_cases(saved: Checkpoint, task: TrainingTask, options: FoldOptions) -> None:
    split = task.split
    source = "the dataset" if split.fold == FULL else f"fold {split.fold} of splits.json"
    for what, cases, trained in (
        ("train on", split.train, saved.train), ("hold out", split.validation, saved.validation)
    ):  # fmt: skip
        if differ := sorted(set(cases) ^ set(trained)):
            raise StateError(
                f"{task.folder} was trained with other cases: {source} now lists others to {what} "
                f"({len(differ)} differ, for instance {differ[0]})",
                remedy="restore the splits.json it was trained with, or retrain from scratch: "
                f"{again(task, options, '--restart')} {KEPT}",
            )
        if tuple(cases) != trained and not saved.finished:
            raise StateError(
                f"{task.folder}: splits.json lists the cases of fold {split.fold} in a different order than when it "
                "was started, and the order determines the remaining batches",
                remedy="restore the splits.json it was started with, or retrain from scratch: "
                f"{again(task, options, '--restart')} {KEPT}",
            )


def _require_same_beginning(saved: Checkpoint, task: TrainingTask, options: FoldOptions) -> None:
    asked, known = place(options.init_from), saved.init_from
    if asked in (None, known) or (known is not None and _is_itself(asked, known, task)):
        return
    initialised = f"from {known}" if known else "from random weights"
    raise StateError(
        f"{task.folder} was initialised {initialised}, not from {asked}",
        remedy="omit --init-from to resume, or retrain from that model: "
        f"{again(task, options, '--init-from', asked, '--restart')} {KEPT}",
    )


def _is_itself(asked: str | None, known: str, task: TrainingTask) -> bool:
    """Whether a fold that began from what it was before is asked to begin from itself once more."""
    folder = task.folder.resolve()
    before = Path(known).is_relative_to(folder.parent) and f"{folder.name}.before-" in known
    places = (folder, folder.parent, task.workspace.root.resolve())
    return before and asked is not None and (Path(asked) in places or Path(asked).parent == folder)
