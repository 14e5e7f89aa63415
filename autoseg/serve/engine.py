"""What the server computes with: the models that `predict` would use, and the one that clicks correct with.

The models are opened once, by `autoseg.commands.serve`. A case is read, checked and segmented as `predict` does it, so
that both give the same labels; it is corrected by `Refinement`. One thread calls this.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from autoseg.datasets.dataset import Case, LoadedCase
from autoseg.errors import OutOfMemory
from autoseg.imaging.components import as_slices
from autoseg.imaging.formats.readers import read_geometry
from autoseg.imaging.formats.segments import segments_of
from autoseg.imaging.geometry import Remark
from autoseg.inference.interactive import Refinement
from autoseg.inference.member import EnsembleMember, Preparations
from autoseg.inference.options import InferenceOptions
from autoseg.inference.predict import load_for, segment, unlike_training
from autoseg.inference.saliency import Asked, explain
from autoseg.models.decision import PLAIN, Rule
from autoseg.models.model import Model, require_common
from autoseg.processes import free_memory

ARRAYS = 6  # float32 arrays of an image's size that opening and segmenting it takes
BACKGROUND = "background"

Report = Callable[[float], None]  # a share from 0 to 1


@dataclass(frozen=True)
class Label:
    """A label as it is listed."""

    index: int  # class index
    name: str
    value: int  # in label files
    colour: str  # "#rrggbb"
    also: tuple[int, ...] = ()  # further class indices that belong to it: the border of objects
    objects: bool = False  # files number its objects


class Engine:
    """Models in memory.

    Args:
        models: an ensemble: the mean of their probabilities decides.
        rule: by which labels are decided.
        options: tiles and mirroring.
        prompted: the model that prompts correct with; None: there is none.
        prompted_rule: by which its answers are decided.

    Raises:
        StateError: the models were trained on different channels, labels or orientations.
    """

    def __init__(
        self,
        models: Sequence[Model],
        rule: Rule = PLAIN,
        options: InferenceOptions = InferenceOptions(),
        prompted: Model | None = None,
        prompted_rule: Rule = PLAIN,
    ) -> None:
        require_common({model.name: model.plan for model in (*models, *([prompted] if prompted else []))})
        self.models, self.rule, self.prompted = tuple(models), rule, prompted
        self.plan, self.prompted_rule = models[0].plan, prompted_rule
        self.labels = labels_of(self)
        self._for_clicks = replace(options, mirroring=False, even_flips=False, top_k=None, skip_empty=False)
        self._preparations = Preparations()
        self._members = [EnsembleMember(model, options, self._preparations) for model in models]

    def load(self, case: Case) -> tuple[LoadedCase, list[Remark]]:
        """Read a case, and say what is odd about it.

        Raises:
            DataError: it cannot be read, or differs too much from the training data.
            OutOfMemory: it does not fit into memory.
        """
        voxels = sum(math.prod(read_geometry(path).shape) for path in case.images)
        if 4 * ARRAYS * voxels > free_memory():
            raise OutOfMemory(
                f"{case.id} has {voxels:.3g} voxels, for which the free memory does not suffice",
                remedy="close other cases; or use predict on the command line, which reads large images by rows",
            )
        loaded = load_for(self.plan, case)
        remarks = [remark for _, remark in loaded.remarks] + unlike_training(self.models, loaded)
        return loaded, remarks

    def segment(self, loaded: LoadedCase, report: Report) -> np.ndarray:
        """Class indices (Z, Y, X) of a case, in the axis order of its files, as `predict` finds them."""
        stages = [stage for member in self._members for stage in _stages(member)]
        done = [0.0] * len(stages)

        def watch(number: int) -> Callable[[int, int], None]:
            def progress(tiles: int, of: int) -> None:
                done[number] = tiles / of
                report(sum(done) / len(done))

            return progress

        for number, stage in enumerate(stages):
            stage.progress = watch(number)
        return np.ascontiguousarray(segment(self._members, loaded, rule=self.rule))

    def saliency(self, loaded: LoadedCase, indices: np.ndarray, name: str) -> tuple[np.ndarray, str]:
        """Where the models looked for a label of a case, as `predict --saliency` shows it by their bottlenecks.

        Args:
            indices: (Z, Y, X) class indices of the case, in the axis order of its files.

        Returns:
            (Z, Y, X) float32 from 0 to 1 in that order, and what should be known of it.

        Raises:
            UsageError: there is no such label.
        """
        label = next((one for one in self.labels if one.name == name and one.objects), None)
        core = name if label is None else [*self.plan.labels.values][label.index - 1]
        labels = loaded.from_stored(indices)
        found = explain(self.models, loaded, labels, Asked(core), preparations=self._preparations)
        whole = np.zeros(labels.shape, np.float32)
        whole[as_slices(found.box)] = next(made.values for made in found.maps if made.name == "saliency")
        return loaded.to_stored(whole), found.note

    def refine(self, loaded: LoadedCase, mask: np.ndarray) -> Refinement:
        """Begin to correct class indices (Z, Y, X) in the axis order of the files."""
        assert self.prompted is not None
        return Refinement(self.prompted, loaded, self._for_clicks, self.prompted_rule, mask=mask)

    def values(self, indices: np.ndarray, loaded: LoadedCase) -> np.ndarray:
        """What label files hold for class indices (Z, Y, X)."""
        return self.plan.labels.to_file_values(indices, loaded.geometry.spacing)

    def index_of(self, name: str) -> int | None:
        """The class index of a label, 0 of "background"; None where there is no such label."""
        if name == BACKGROUND and name not in self.plan.labels.values:
            return 0
        return next((label.index for label in self.labels if label.name == name), None)


def labels_of(engine: Engine) -> tuple[Label, ...]:
    """The labels of a plan, in the order of their values; core and border of objects as one."""
    of, found = engine.plan.labels, []
    index = {value: number for number, value in enumerate(of.values.values(), start=1)}
    borders = {thing.border for thing in of.things.values()}
    things = {thing.core: (name, thing) for name, thing in of.things.items()}
    for segment_ in segments_of(of):
        if segment_.value in borders:
            continue
        name = segment_.name
        also: tuple[int, ...] = ()
        if segment_.value in things:
            name, thing = things[segment_.value]
            also = (index[thing.border],)
        colour = f"#{segment_.red:02x}{segment_.green:02x}{segment_.blue:02x}"
        found.append(Label(index[segment_.value], name, segment_.value, colour, also, bool(also)))
    return tuple(found)


def _stages(member: EnsembleMember) -> list[EnsembleMember]:
    """A member and, of a cascade, what runs before it."""
    return [*(_stages(member.previous) if member.previous else []), member]
