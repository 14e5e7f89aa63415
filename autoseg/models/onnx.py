"""A fold's network as ONNX, for programs without torch; compared with torch by onnxruntime.

One file per fold: image (B, C, *s) float32, prepared as the plan says, to logits (B, K, *s) float32 at full resolution.
The batch may have any size. So may the image, in steps of the product of the strides, where the network allows it; one
that is tied to its patch, or whose export fixes the size, takes tiles of the size of the patch alone.

A file is kept only if onnxruntime computes the same from it as torch: for the patch, for a batch of another size, and
for another image size where it may vary. Preparing the image, tiles, flips, averaging over folds and the way back to
the image's grid are not in it: docs/onnx.md shows them.
"""

import contextlib
import io
import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from autoseg.errors import StateError, UsageError
from autoseg.models.agreements import Agreement
from autoseg.models.build import build_plan_network
from autoseg.models.identity import weights_digest
from autoseg.models.model import Model, ready
from autoseg.nn.networks import layout_of
from autoseg.planning.plan import Configuration
from autoseg.workspace import FoldName

TOLERANCE = 1e-3  # largest difference of logits to torch
OPSET = 18
NEEDED = ("onnx", "onnxruntime", "onnxscript")
INPUT, OUTPUT = "image", "logits"
WHAT = "ONNX against torch"


@dataclass(frozen=True)
class OnnxFile:
    """One exported network."""

    path: Path
    model: str
    fold: FoldName
    any_size: bool  # whether the image may have other sizes than the patch: multiples of `steps`
    steps: tuple[int, ...]  # voxels
    difference: float  # largest of the logits, to torch
    weights: str  # digest of those that were exported

    @property
    def agreement(self) -> Agreement:
        size = "the patch, another batch and another size" if self.any_size else "the patch and another batch"
        on = f"fold {self.fold} of {self.model}, random numbers: {size}"
        measure = "largest difference of logits"
        return Agreement(WHAT, on, measure, self.difference, TOLERANCE, self.weights)


class Finest(nn.Module):
    """The network of a fold, without the list around its logits."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        return self.network(image)[0]


class OnnxNetwork(nn.Module):
    """An exported network in the place of the one of torch, computed by onnxruntime on the CPU."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        import onnxruntime

        self.session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def forward(self, image: Tensor) -> list[Tensor]:
        """Logits (B, K, *s) float32 of images (B, C, *s), as the only stage."""
        (logits,) = self.session.run([OUTPUT], {INPUT: image.float().numpy()})
        return [torch.from_numpy(logits)]


def export_fold(model: Model, number: int, path: Path) -> OnnxFile:
    """Export one fold, and compare the file with torch.

    Args:
        number: of the fold among those of the model.
        path: of the file to write.

    Raises:
        StateError: torch cannot export this network, or the file computes something else.
        UsageError: the `onnx` extra is not installed.
    """
    require_libraries()
    plan, configuration, fold = model.plan, model.configuration, model.folds[number]
    network = build_plan_network(plan, configuration)  # a copy on the CPU, in float32, without checkpointing
    network.load_state_dict(model.networks[number].state_dict())
    finest = Finest(ready(network)).eval()
    steps = steps_of(configuration)
    tied = layout_of(configuration.network.name).sees == "patch"
    failures = []
    for any_size in (False,) if tied else (True, False):
        images = _images(plan.input_channels(configuration), configuration.patch_size, steps if any_size else None)
        try:
            _export(finest, images[0], path, steps if any_size else None)
            difference = _difference(finest, path, images)
        except Exception as error:  # torch and onnxruntime raise whatever they like
            failures.append((str(error) or type(error).__name__).strip().splitlines()[0][:200])
            continue
        if difference <= TOLERANCE:
            digest = weights_digest(model.networks[number])
            return OnnxFile(path, model.name, fold, any_size, steps, difference, digest)
        failures.append(f"its logits differ by {difference:.3g}, at most {TOLERANCE:g} are allowed")
    path.unlink(missing_ok=True)
    raise StateError(
        f"fold {fold} of {model.name} cannot be exported as ONNX: {failures[-1]}",
        remedy="export the model as MODEL.zip, or train a network that ONNX has all operations of, such as unet",
    )


def steps_of(configuration: Configuration) -> tuple[int, ...]:
    """Voxels that the edges of an image are a multiple of, so that every stage halves without a remainder."""
    spec = configuration.network
    return tuple(math.prod(stride[axis] for stride in spec.strides) for axis in range(spec.dims))


def require_libraries() -> None:
    """Raise UsageError where the `onnx` extra is not installed."""
    from importlib.util import find_spec

    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise UsageError(
            f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed",
            remedy=f"python -m pip install {' '.join(NEEDED)}",
        )


def _images(channels: int, patch: Sequence[int], steps: Sequence[int] | None) -> list[Tensor]:
    """What is compared: batches of two, three and one, and an image that is a step longer along each axis."""
    shapes = [(2, channels, *patch), (3, channels, *patch), (1, channels, *patch)]
    if steps:
        shapes.append((1, channels, *(edge + step for edge, step in zip(patch, steps, strict=True))))
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def _export(network: nn.Module, image: Tensor, path: Path, steps: Sequence[int] | None) -> None:
    """Write the ONNX file; with `steps` the size of the image may vary, otherwise only the batch."""
    axes: dict[int, Any] = {0: torch.export.Dim("batch", min=1)}
    for axis, step in enumerate(steps or (), start=2):
        edge = torch.export.Dim(f"edge_{axis}", min=1)
        axes[axis] = step * edge if step > 1 else edge
    path.parent.mkdir(parents=True, exist_ok=True)
    with _quiet(), torch.inference_mode():
        torch.onnx.export(
            network, (image,), str(path), input_names=[INPUT], output_names=[OUTPUT], opset_version=OPSET, dynamo=True,
            dynamic_shapes=(axes,), external_data=False, verbose=False,
        )  # fmt: skip


def _difference(network: nn.Module, path: Path, images: Sequence[Tensor]) -> float:
    """Largest difference of logits between torch and onnxruntime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found = 0.0
    for image in images:
        with torch.inference_mode():
            expected = network(image)
        (logits,) = session.run([OUTPUT], {INPUT: image.numpy()})
        if logits.shape != tuple(expected.shape):
            raise ValueError(f"it gives logits of shape {logits.shape}, torch {tuple(expected.shape)}")
        found = max(found, float((torch.from_numpy(logits) - expected).abs().max()))
    if not math.isfinite(found):
        raise ValueError("its logits are not finite")
    return found


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch prints on the way: what matters of it is raised."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
