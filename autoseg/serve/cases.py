"""One image that is open: read, segmented, corrected, and what a page needs to know of it.

Methods that compute are called by the one thread of `work.Worker`; `info` and the bytes for a viewer by others. What is
handed to a viewer while a prompt is being answered is either what was there before it or what is there after it.
"""

import base64
import threading
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from autoseg.datasets.dataset import Case, LoadedCase
from autoseg.errors import UsageError
from autoseg.imaging.components import bounding_box
from autoseg.imaging.geometry import Axes3, Box
from autoseg.imaging.prompts import Prompt, prompt_of
from autoseg.inference.interactive import Refinement
from autoseg.serve.engine import BACKGROUND, Engine, Label
from autoseg.serve.images import affine, nifti_bytes, steps_for, thinned, window_of
from autoseg.serve.refusals import Refused, refusal
from autoseg.serve.uploads import Draft, new_id
from autoseg.serve.work import Job

MOST_POINTS = 2000  # of a scribble
MOST_PROMPTS = 500  # of a case: what each replaced is kept for undo
KINDS = ("click", "scribble", "box")
NEEDS_PROMPTS = "only a model with prompts corrects segmentations"


@dataclass(frozen=True)
class Changed:
    """What a prompt, or its undoing, changed."""

    box: Box
    voxels: int
    values: np.ndarray  # (Z, Y, X) of the box, as label files hold them

    def document(self) -> dict[str, Any]:
        """As JSON: the values zlib-compressed, in base64."""
        values = self.values.astype(self.values.dtype.newbyteorder("<"), copy=False)
        data = base64.b64encode(zlib.compress(np.ascontiguousarray(values).tobytes(), 1)).decode()
        return {"box": self.box, "voxels": self.voxels, "dtype": values.dtype.name, "data": data}


class OpenCase:
    """A case of one visitor.

    Args:
        case: its files.
        upload: what it came with; None: it is in the folder that is served.
        beside: where its segmentation may be written next to it.
    """

    def __init__(self, engine: Engine, case: Case, *, upload: Draft | None = None, beside: Path | None = None) -> None:
        self.id = new_id()
        self.engine, self.case, self.upload, self.beside = engine, case, upload, beside
        self.loaded: LoadedCase | None = None
        self.refinement: Refinement | None = None
        self.segmented = False
        self.remarks: list[str] = []
        self.jobs: list[Job] = []
        self.segmenting: Job | None = None  # the last job that segmented it
        self._failure: dict[str, object] | None = None
        self.revision = 0  # how often its labels were changed
        self.seconds = 0.0  # that the last prompt took
        self.counts = np.zeros(engine.plan.labels.num_labels + 1, np.int64)  # voxels of each class index
        self.objects: dict[str, int] = {}
        self._indices: np.ndarray | None = None
        self._values: np.ndarray | None = None  # with numbered objects, which take long to make
        self._window = (0.0, 1.0)
        self._lock = threading.Lock()

    # ---- called by the thread that computes

    def open(self, job: Job) -> None:
        """Read it. Raises what is wrong with it."""
        loaded, remarks = self.engine.load(self.case)
        self._window = window_of(loaded.image[0])
        self.remarks = [f"{one.what} ({one.remedy})" if one.remedy else one.what for one in remarks]
        self._indices = np.zeros(loaded.geometry.shape, np.min_scalar_type(self.engine.plan.labels.num_labels))
        self.counts[0] = self._indices.size
        self.loaded = loaded

    def segment(self, job: Job) -> None:
        """Segment it; what was corrected before is replaced."""
        found = self.engine.segment(self._open(), job.report)
        self._replace(found)
        self.segmented = True

    def correct(self, prompt: Prompt, job: Job) -> Changed:
        """Answer a prompt.

        Raises:
            UsageError: the model takes no prompts, a voxel outside of the image, or no such label.
        """
        if self.refinement is None:
            made = self.engine.refine(self._open(), self.indices)
            with self._lock:
                self.refinement, self._indices = made, None
        if len(self.refinement.prompts) >= MOST_PROMPTS:
            raise Refused(409, f"{MOST_PROMPTS} prompts were given", remedy="save, or segment it again")
        before = self.refinement.labels.copy()
        try:
            with self._lock:
                self.refinement.add(prompt)
        except UsageError:  # found before anything was changed
            raise
        except BaseException:
            with self._lock:
                self.refinement, self._indices = None, before
            raise
        return self._changed(before)

    def undo(self, job: Job) -> Changed | None:
        """Take back the last prompt; None where there is none."""
        if self.refinement is None:
            return None
        before = self.refinement.labels.copy()
        with self._lock:
            if not self.refinement.undo():
                return None
        return self._changed(before)

    def saliency_bytes(self, name: str, most: int | None, job: Job) -> tuple[bytes, str]:
        """Where the models looked for a label, as NIfTI on the grid of the image, and what should be known of it.

        Raises:
            UsageError: there is no such label.
        """
        found, note = self.engine.saliency(self._open(), self.indices, name)
        return self._bytes(found, most, (0.0, 1.0)), note

    # ---- called by any thread

    @property
    def indices(self) -> np.ndarray:
        """(Z, Y, X) class indices in the axis order of the files."""
        if self.refinement is not None:
            return self.refinement.labels
        assert self._indices is not None, "the case is not read"
        return self._indices

    @property
    def busy(self) -> bool:
        """Whether a job of it waits or runs."""
        self.jobs = [job for job in self.jobs if not job.over]
        return bool(self.jobs)

    def values(self) -> np.ndarray:
        """(Z, Y, X), what its label file holds."""
        with self._lock:
            if self._values is None:
                made = self.engine.values(self.indices, self._open())
                if not self.engine.plan.labels.things:
                    return made
                self._values = made
            return self._values

    def image_bytes(self, channel: int, most: int | None = None) -> bytes:
        """A channel as NIfTI; `most`: voxels along an axis. Raises Refused where there is no such channel."""
        loaded = self._open()
        if not 0 <= channel < len(loaded.image):
            raise Refused(404, f"there is no channel {channel}", remedy=f"name one of 0 to {len(loaded.image) - 1}")
        return self._bytes(loaded.to_stored(loaded.image[channel]), most, window_of(loaded.image[channel]))

    def label_bytes(self, most: int | None = None) -> bytes:
        """Its labels as NIfTI, on the grid of the image."""
        return self._bytes(self.values(), most, None)

    def info(self) -> dict[str, Any]:
        """What a page shows of it."""
        known: dict[str, Any] = {
            "id": self.id, "name": self.case.id, "files": [Path(file).name for file in self.case.images],
            "source": "upload" if self.upload else "folder", "open": self.loaded is not None,
            "beside": self.beside.name if self.beside else None,
        }  # fmt: skip
        if self.loaded is None:
            return known
        geometry = self.loaded.geometry
        prompts = len(self.refinement.prompts) if self.refinement else 0
        return known | {
            "shape": geometry.shape, "spacing": geometry.spacing, "flat": geometry.flat, "sized": geometry.sized,
            "channels": self.engine.plan.channels, "affine": affine(geometry), "window": self._window,
            "segmented": self.segmented, "prompts": prompts, "revision": self.revision,
            "seconds": round(self.seconds, 3), "remarks": self.remarks,
            "labels": [self._label(label) for label in self.engine.labels],
        }  # fmt: skip

    def failed(self) -> dict[str, object]:
        """Why segmenting it failed: error and remedy."""
        error = self.segmenting.result.exception() if self.segmenting else None
        if self._failure is None and error is not None:
            self._failure = refusal(error)[1]
        return self._failure or {}

    def close(self) -> None:
        """Give up its jobs and release its memory."""
        for job in self.jobs:
            job.cancel()
        self.refinement = None
        self.loaded = self._indices = self._values = None

    def require_labels(self) -> None:
        """Raises Refused where there is nothing to save."""
        if not self.segmented and not (self.refinement and self.refinement.prompts):
            raise Refused(409, f"{self.case.id} is not segmented yet", remedy="segment it first")

    # ---- its parts

    def _open(self) -> LoadedCase:
        if (loaded := self.loaded) is None:
            raise Refused(410, f"{self.case.id} is closed", remedy="open it again")
        return loaded

    def _replace(self, indices: np.ndarray) -> None:
        counts = counted_classes(indices, len(self.counts))
        values = self.engine.values(indices, self._open()) if self.engine.plan.labels.things else None
        with self._lock:
            self.refinement, self._indices, self._values = None, indices, values
        self.counts, self.revision = counts, self.revision + 1
        self.objects = {} if values is None else _objects(values, self.engine)

    def _changed(self, before: np.ndarray) -> Changed:
        after = self.indices
        differ = before != after
        self.revision += 1
        if not differ.any():
            return Changed(((0, 0), (0, 0), (0, 0)), 0, np.zeros((0, 0, 0), np.uint8))
        box = bounding_box(differ)
        inside = tuple(slice(*edges) for edges in box)
        parts = [counted_classes(array[inside], len(self.counts)) for array in (before, after)]
        self.counts = self.counts - parts[0] + parts[1]
        values = self.engine.values(after[inside], self._open())
        return Changed(box, int(np.count_nonzero(differ[inside])), values)

    def _bytes(self, array: np.ndarray, most: int | None, window: tuple[float, float] | None) -> bytes:
        geometry = self._open().geometry
        steps: Axes3 = (1, 1, 1) if most is None else steps_for(array.shape, most)
        return nifti_bytes(*thinned(array, geometry, steps), window)

    def _label(self, label: Label) -> dict[str, Any]:
        geometry = self._open().geometry
        voxels = int(sum(self.counts[index] for index in (label.index, *label.also)))
        size = float(np.prod(geometry.spacing)) * voxels
        sized = geometry.sized
        return {
            "name": label.name, "value": label.value, "colour": label.colour, "voxels": voxels,
            "ml": round(size / 1000, 6) if sized and not geometry.flat else None,
            "mm2": round(size, 6) if sized and geometry.flat else None,
            "objects": self.objects.get(label.name) if label.objects else None,
        }  # fmt: skip


def prompt_in(document: dict[str, Any], engine: Engine, no_prompts: str = "") -> Prompt:
    """The prompt that a document asks for.

    Args:
        document: {"kind": one of KINDS, "points": [[z, y, x], ...], "label": a name}; of a box two opposite voxels.
        no_prompts: what would enable corrections, where no model takes prompts.

    Raises:
        UsageError: it cannot be understood.
        Refused: no model with prompts is trained.
    """
    if engine.prompted is None:
        raise Refused(409, NEEDS_PROMPTS, remedy=no_prompts)
    kind, points, name = (document.get(key) for key in ("kind", "points", "label"))
    if kind not in KINDS:
        raise UsageError(f"kind: {kind!r} is not a kind of prompt", remedy=f"give one of {', '.join(KINDS)}")
    index = engine.index_of(name) if isinstance(name, str) else None
    if index is None:
        known = ", ".join([BACKGROUND, *(label.name for label in engine.labels)])
        raise UsageError(f"label: there is no label {name!r}", remedy=f"give one of {known}")
    least, most = {"click": (1, 1), "scribble": (1, MOST_POINTS), "box": (2, 2)}[kind]
    if not isinstance(points, list) or not all(map(_is_voxel, points)) or not least <= len(points) <= most:
        wanted = {"click": "one voxel", "scribble": f"1 to {MOST_POINTS} voxels", "box": "two opposite voxels"}[kind]
        raise UsageError(f"points: expected {wanted} for a {kind}", remedy="give [[z, y, x], ...], counted from 0")
    voxels = [tuple(point) for point in points]
    return prompt_of(kind, voxels, index)


def counted_classes(indices: np.ndarray, classes: int) -> np.ndarray:
    """How many voxels (Z, Y, X) have each class index; plane by plane, as counting widens them to 64 bits."""
    total = np.zeros(classes, np.int64)
    for plane in indices:
        total += np.bincount(plane.ravel(), minlength=classes)
    return total


def _objects(values: np.ndarray, engine: Engine) -> dict[str, int]:
    """How many objects of each thing there are."""
    of, numbers = engine.plan.labels, np.unique(values)
    if not of.divisor:
        return {name: int(np.count_nonzero(numbers)) for name in of.things}
    return {name: int(np.count_nonzero(numbers // of.divisor == thing.core)) for name, thing in of.things.items()}


def _is_voxel(point: object) -> bool:
    return (
        isinstance(point, list)
        and len(point) in (2, 3)
        and all(isinstance(i, int) and not isinstance(i, bool) and abs(i) < 2**31 for i in point)
    )
