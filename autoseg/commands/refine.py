"""One case corrected by prompts: `autoseg refine`, and what opens the models of those who correct."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from autoseg.commands.decision import apply_decision
from autoseg.commands.inputs import open_plan
from autoseg.commands.predict import PredictOptions, exported_files, open_exported, open_models_for
from autoseg.datasets.dataset import Case, images_in
from autoseg.errors import DataError, StateError, UsageError
from autoseg.imaging.labels import LabelSet
from autoseg.imaging.prompts import Kind, Place, Prompt, prompt_of
from autoseg.lines import LOG
from autoseg.messages import counted, suggest
from autoseg.planning.prompted import prompted_of
from autoseg.workspace import Workspace

if TYPE_CHECKING:  # torch is imported when something is segmented
    import numpy as np

    from autoseg.datasets.dataset import LoadedCase
    from autoseg.models.decision import Rule
    from autoseg.models.model import Model
    from autoseg.planning.plan import Plan

BACKGROUND = "background"
FORMS: dict[Kind, str] = {"click": "Z,Y,X:LABEL", "scribble": "Z,Y,X/Z,Y,X:LABEL", "box": "Z,Y,X/Z,Y,X:LABEL"}


@dataclass(frozen=True)
class AskedPrompt:
    """A prompt as a person gives it: the label by its name or value, voxels in the order of the file's axes."""

    kind: Kind
    points: tuple[Place, ...]  # of a box: its first and last voxel
    label: str

    def __str__(self) -> str:
        return "/".join(",".join(map(str, point)) for point in self.points) + f":{self.label}"

    def of(self, labels: LabelSet) -> Prompt:
        """The prompt, with its label as a class index. Raises UsageError where there is no such label."""
        return prompt_of(self.kind, self.points, label_index(labels, self.label))


@dataclass(frozen=True)
class RefinedCase:
    """What prompts made of a case."""

    case: str
    file: Path  # the corrected segmentation
    changed: int  # voxels that are not what they were at the beginning
    voxels: dict[str, int]  # of each label
    seconds: tuple[float, ...]  # of each prompt


def label_index(labels: LabelSet, name: str) -> int:
    """The class index of a label by its name, or by its value in files; of background by either, too.

    Raises:
        UsageError: there is no such label.
    """
    names = {BACKGROUND: 0, "0": 0} | {str(value): i for i, value in enumerate(labels.values.values(), start=1)}
    names |= {label: i for i, label in enumerate(labels.values, start=1)}
    if name not in names:
        raise UsageError(
            f"there is no label {name!r}", remedy=f"the labels are {', '.join((BACKGROUND, *labels.values))}"
        )
    return names[name]


def parse_prompt(kind: Kind, text: str) -> AskedPrompt:
    """Read a prompt as it is typed: "30,41,22:liver", a scribble "30,41,22/30,48,25:liver".

    Raises:
        UsageError: it has another form.
    """
    places, colon, label = text.rpartition(":")
    wrong = UsageError(f"--{kind} {text!r}: expected {FORMS[kind]}", remedy="such as --click 30,41,22:1")
    try:
        points = tuple(tuple(int(i) for i in place.split(",")) for place in places.split("/"))
    except ValueError:
        raise wrong from None
    number = {"click": 1, "box": 2}.get(kind, max(len(points), 2))
    if not colon or not label or len(points) != number or {len(point) for point in points} - {2, 3}:
        raise wrong
    if len({len(point) for point in points}) > 1:
        raise wrong
    return AskedPrompt(kind, points, label)


def parse_text(text: str) -> AskedPrompt:
    """Read a prompt of any kind: "click 30,41,22:liver". Raises UsageError."""
    kind, _, rest = text.strip().partition(" ")
    for known in FORMS:
        if kind == known:
            return parse_prompt(known, rest.strip())
    raise UsageError(f"the prompt {text!r} is not of a known kind", remedy='such as "click 30,41,22:liver"')


def refine_case(
    workspace: Workspace,
    images: Sequence[Path],
    out: Path,
    prompts: Sequence[AskedPrompt],
    options: PredictOptions,
    *,
    mask: Path | None = None,
) -> RefinedCase:
    """Segment one case and correct it by prompts, one after the other; write the result on the image's grid.

    Args:
        images: of one case: its file, or its files in order of channel, or a DICOM series.
        out: the file to write.
        options: which model: of the recommended configuration, or of the named one, that with prompts.
        mask: the segmentation to begin with; None: the automatic one.

    Raises:
        DataError: the image or the mask cannot be read, or they do not lie on one grid.
        StateError: no model with prompts is trained.
        UsageError: the images are none or several cases; a prompt lies outside, or names no label.
    """
    from autoseg.imaging.formats.readers import write_labels
    from autoseg.inference.interactive import Refinement
    from autoseg.inference.predict import load_for

    model, rule = open_prompted(workspace, options)
    labels = model.plan.labels
    asked = [prompt.of(labels) for prompt in prompts]  # refused before anything is computed
    case = _one_case(images, model.plan)
    if any(out.resolve() == Path(file).resolve() for file in case.images):
        raise UsageError(f"{out} is the image, and would be overwritten", remedy="choose another name with -o")
    loaded = load_for(model.plan, case)
    given = None if mask is None else read_mask(mask, labels, loaded)
    refinement = Refinement(model, loaded, options.inference_options(), rule, mask=given)
    before, seconds = refinement.labels.copy(), []
    for prompt in asked:
        began = time.perf_counter()
        refinement.add(prompt)
        seconds.append(time.perf_counter() - began)
    after = refinement.labels
    write_labels(out, labels.to_file_values(after), like=loaded.file)
    counts = {name: int((after == index).sum()) for index, name in enumerate(labels.values, start=1)}
    made = RefinedCase(case.id, out, int((before != after).sum()), counts, tuple(seconds))
    mean = f" ({sum(seconds) / len(seconds):.2g} s each)" if seconds else ""
    LOG.info(
        f"{case.id}: {counted(len(prompts), 'prompt')}{mean} changed {counted(made.changed, 'voxel')}; written to {out}"
    )
    return made


def open_prompted(workspace: Workspace, options: PredictOptions) -> "tuple[Model, Rule]":
    """Load the model that prompts correct, and the rule that its automatic segmentations are decided by.

    Args:
        options: which one: the configuration that continues the named or recommended one; or an exported file.

    Raises:
        StateError: none is trained.
    """
    opened = [model for model in open_exported(workspace, options) if model.configuration.prompts]
    if files := exported_files(workspace, options):
        if not opened:
            raise StateError(
                f"{files[0]} holds no model with prompts",
                remedy="export one: autoseg export MODEL.zip -c CONFIGURATION_prompts",
            )
        return opened[0], apply_decision(workspace, opened[:1], files, optional=False)
    plan = open_plan(workspace, options.network)
    name = prompted_of(plan, options.configuration)
    before, configuration = plan.configuration(options.configuration)
    network = configuration.network.name
    if name is None or (name, network) not in workspace.models():
        train = suggest("train", "--prompts", workspace=workspace.root, configuration=before, network=network)
        raise StateError(f"no model with prompts is trained that continues {before}", remedy=f"train one: {train}")
    models = open_models_for(workspace, plan, [(name, network)], replace(options, configuration=name))
    return models[0], apply_decision(workspace, models, optional=False)


def read_mask(file: Path, labels: LabelSet, loaded: "LoadedCase") -> "np.ndarray":
    """Read a segmentation on the grid of a case: (Z, Y, X) class indices in the axis order of its files.

    Raises:
        DataError: it cannot be read, holds other values than the labels, or lies on another grid.
    """
    from autoseg.datasets.checks.grids import align
    from autoseg.imaging.formats.readers import read_image, read_labels_as

    values = read_labels_as(labels, str(file), None)
    if strange := labels.unexpected(values.array):
        raise DataError(f"{file}: unexpected label values {sorted(strange)}", remedy=f"the labels are {labels.values}")
    aligned = align(loaded.id, {loaded.file: read_image(Path(loaded.file))}, (str(file), values))
    if aligned.problems:
        raise DataError(f"{file}: {aligned.problems[0].what}", remedy=aligned.problems[0].remedy)
    return labels.to_indices(aligned.volumes[str(file)].array)


def _one_case(images: Sequence[Path], plan: "Plan") -> Case:
    found, problems = images_in(images, len(plan.channels), plan.channels, plan.file_names)
    if problems and not found:
        raise DataError(f"{problems[0].file}: {problems[0].what}", remedy=problems[0].remedy)
    if len(found) != 1:
        names = ", ".join(case for case, _ in found[:5])
        raise UsageError(
            f"the images are {counted(len(found), 'case')} ({names}), expected one",
            remedy="name the file of one case, or its files in order of channel",
        )
    case, files = found[0]
    return Case(case, case, tuple(map(str, files)), None)
