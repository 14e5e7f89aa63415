"""What is written beside a segmentation, as extras of `predict_cases`: probabilities, uncertainty, statistics.

    ProbabilityOutput   OUT/probabilities/CASE/
    CaseReport          OUT/statistics/CASE.json, CASE.objects.csv of things and, where asked for, OUT/uncertainty/CASE/
                        and the expected Dice

Each serves all cases of a call, one after the other. A case that fails leaves nothing behind: what was begun of it is
deleted when the next one begins, or by `close`.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from torch import Tensor

from autoseg.datasets.dataset import LoadedCase
from autoseg.imaging.geometry import Box
from autoseg.inference.agreement import Agreement, AgreementCounter
from autoseg.inference.ensemble import Ensemble
from autoseg.inference.object_statistics import collect_objects, object_rows, write_objects
from autoseg.inference.on_image import OnImage
from autoseg.inference.probabilities import ProbabilityWriter
from autoseg.inference.statistics import (
    VERSION,
    CaseStatistics,
    ExpectedDice,
    collect,
    measure,
    unit_of,
    with_expected_dice,
    with_uncertainty,
    write_case,
)
from autoseg.inference.streaming import Consumer
from autoseg.inference.uncertainty import UncertaintyWriter

Expecting = Callable[[Agreement], tuple[Mapping[str, ExpectedDice], ExpectedDice | None]]


class Member(Protocol):
    """What is used of a member of an ensemble: how the image was cropped."""

    def prepare(self, loaded: LoadedCase) -> "Prepared": ...


class Placed(Protocol):
    @property
    def box(self) -> Box: ...


class Prepared(Protocol):
    @property
    def placement(self) -> Placed: ...


class Several:
    """Hands the same rows to several consumers."""

    def __init__(self, consumers: Sequence[Consumer]) -> None:
        self.consumers = tuple(consumers)

    def take(self, rows: slice, logits: Sequence[Tensor]) -> None:
        for consumer in self.consumers:
            consumer.take(rows, logits)


class ProbabilityOutput:
    """Writes the probabilities of every case."""

    name = "probabilities"

    def __init__(self, out: Path, ensemble: Ensemble) -> None:
        self.out, self.ensemble = out, ensemble
        self._writer: ProbabilityWriter | None = None

    def begin(self, loaded: LoadedCase, members: Sequence[Member], path: Path) -> Consumer:
        """Start a case; see `ProbabilityWriter` for what is raised."""
        self.close()
        place = OnImage.of(loaded, members[0].prepare(loaded).placement.box)
        heads = self.ensemble.models[0].plan.heads
        folder = self.out / self.name / loaded.id
        self._writer = ProbabilityWriter(folder, loaded.id, heads, place, Path(loaded.file), self.ensemble.model_of)
        return self._writer

    def finish(self, labels: np.ndarray) -> None:
        """Complete the case."""
        assert self._writer is not None, "begin comes first"
        self._writer.finish()
        self._writer = None

    def close(self) -> None:
        """Delete what is left of a case that failed."""
        if self._writer is not None:
            self._writer.abandon()
        self._writer = None


class CaseReport:
    """Measures every case: its labels, and how sure the ensemble is of them."""

    def __init__(
        self,
        out: Path,
        ensemble: Ensemble,
        *,
        uncertainty: bool = False,
        expected: Expecting | None = None,
        patients: Mapping[str, tuple[str, int]] | None = None,
    ) -> None:
        """Prepare for cases.

        Args:
            out: folder of the segmentations.
            uncertainty: also write the maps of entropy and disagreement.
            expected: agreement of the members -> expected Dice of each label, and of their mean; None: not known.
            patients: case -> patient, and its place among the patient's scans.
        """
        self.out, self.ensemble, self.uncertainty, self.expected = out, ensemble, uncertainty, expected
        self.patients = patients or {}
        self.name = "statistics" + ("+uncertainty" if uncertainty else "")
        self.of_cases: dict[str, ExpectedDice] = {}  # case -> expected mean Dice, of those that were measured
        self._loaded: LoadedCase | None = None
        self._segmentation = ""
        self._maps: UncertaintyWriter | None = None
        self._counter: AgreementCounter | None = None

    def begin(self, loaded: LoadedCase, members: Sequence[Member], path: Path) -> Consumer | None:
        """Start a case."""
        self.close()
        self._loaded, self._segmentation = loaded, path.name
        heads = self.ensemble.models[0].plan.heads
        if self.uncertainty:
            place = OnImage.of(loaded, members[0].prepare(loaded).placement.box)
            folder, weights = self.out / "uncertainty" / loaded.id, self.ensemble.weights
            self._maps = UncertaintyWriter(folder, loaded.id, heads, place, Path(loaded.file), weights)
        if self.expected is not None:
            self._counter = AgreementCounter(heads, self.ensemble.fold_of)
        consumers = [consumer for consumer in (self._maps, self._counter) if consumer is not None]
        return Several(consumers) if consumers else None

    def finish(self, labels: np.ndarray) -> None:
        """Measure and write a case; labels (Z, Y, X) are class indices in the axis order of its arrays."""
        loaded, plan = self._loaded, self.ensemble.models[0].plan
        assert loaded is not None, "begin comes first"
        stored, geometry = np.ascontiguousarray(loaded.to_stored(labels)), loaded.geometry
        patient, number = self.patients.get(loaded.id, (None, 0))
        case = CaseStatistics(
            version=VERSION,
            case=loaded.id,
            segmentation=self._segmentation,
            shape=geometry.shape,
            spacing=geometry.spacing if geometry.sized else None,
            unit=unit_of(geometry)[0],
            labels=measure(stored, loaded.to_stored(loaded.image), geometry, plan.labels, plan.channels),
            patient=patient,
            place_in_series=number,
        )
        if self._maps is not None:
            case = with_uncertainty(case, self._maps.finish(stored))
            self._maps = None
        if self._counter is not None and self.expected is not None:
            case = with_expected_dice(case, *self.expected(self._counter.result()))
            if case.expected_dice is not None:
                self.of_cases[case.case] = case.expected_dice
        if plan.labels.things:
            values = plan.labels.to_file_values(stored, geometry.spacing)
            rows = object_rows(values, loaded.to_stored(loaded.image), geometry, plan.labels, plan.channels)
            write_objects(self.out, loaded.id, rows, plan.channels)
        write_case(self.out, case)
        self._loaded = self._counter = None

    def collect(self) -> None:
        """Put the cases of the folder together: statistics.json, statistics.csv, and objects.csv of things."""
        collect(self.out)
        if self.ensemble.models[0].plan.labels.things:
            collect_objects(self.out)

    def close(self) -> None:
        """Delete what is left of a case that failed."""
        if self._maps is not None:
            self._maps.abandon()
        self._loaded = self._maps = self._counter = None
