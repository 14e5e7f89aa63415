"""Time to segment a fold's validation cases without the network, measured on one of them before training.

Reading, cropping, resampling there and back, deciding and writing process whole volumes: for large images in few tiles
they take longer than the network. The case is not the largest one, and time is proportional to the volume.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from autoseg.dataloading.store import CaseStore
from autoseg.datasets.dataset import Case, load_case
from autoseg.imaging.formats.readers import write_labels
from autoseg.inference.label_files import output_ending
from autoseg.inference.member import EnsembleMember
from autoseg.inference.predict import segment
from autoseg.models.model import Model
from autoseg.nn.rolling_sums import Block
from autoseg.nn.sliding_window import Image, Window
from autoseg.planning.plan import Plan
from autoseg.workspace import Workspace


def seconds_beside_network(
    workspace: Workspace, plan: Plan, name: str, cases: Sequence[Case], device: torch.device
) -> float:
    """Seconds to read, resample, decide and write all these cases, extrapolated from one.

    Args:
        name: of the configuration, whose preprocessed copies exist: they give the size of the cases.
    """
    if not cases:
        return 0.0
    store = CaseStore(workspace.preprocessed(plan.configurations[name].data))
    volumes = [float(np.prod(store.info(case.id).shape)) for case in cases]
    number = case_to_measure(volumes)
    began = time.perf_counter()
    _segment_without_network(plan, name, cases[number], device)
    return (time.perf_counter() - began) * sum(volumes) / volumes[number]


def case_to_measure(volumes: Sequence[float]) -> int:
    """Index of the representative case: the smallest of those with at least half the median volume."""
    middle = statistics.median(volumes)
    return min((n for n, volume in enumerate(volumes) if 2 * volume >= middle), key=lambda n: volumes[n])


class _WithoutNetwork(EnsembleMember):
    """A member whose networks take no time: their logits are 0."""

    def stream(
        self, image: Image, *, whole_rows: bool = False, chosen: Callable[[Window], bool] | None = None
    ) -> Iterator[Block]:
        _, z, y, x = image.shape
        for row in range(z):
            logits = torch.zeros((self.model.plan.heads.num_heads, 1, y, x), device=self.model.device)
            yield Block(slice(row, row + 1), slice(0, y), logits, torch.ones_like(logits[0]))


def _segment_without_network(plan: Plan, name: str, case: Case, device: torch.device) -> None:
    """Run `predict_cases` for one case with logits of 0, and discard the result."""
    loaded = load_case(case, None, channels=plan.channels, orientation=plan.orientation, axis_order=plan.axis_order)
    model = Model(plan, name, folds=(), networks=(), dtype="float32", forward_seconds=0.0, device=device)
    segmentation = segment([_WithoutNetwork(model)], loaded)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"case{output_ending(case)}"
        write_labels(path, plan.labels.to_file_values(segmentation, loaded.geometry.spacing), like=Path(case.images[0]))
