"""Trained models into one file that one can hand on: weights and records, nothing to run.

`write_archive` writes what `manifest` lists into a ZIP file (`container`), the same bytes for the same model. Weights
are safetensors: those that each fold predicts with.
"""

import hashlib
import importlib.metadata
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from autoseg import __version__
from autoseg.errors import StateError
from autoseg.messages import suggest
from autoseg.models import safetensors
from autoseg.models.agreements import Agreement
from autoseg.models.build import build_plan_network
from autoseg.models.container import Content, write
from autoseg.models.identity import weights_digest
from autoseg.models.manifest import (
    CARD,
    FINGERPRINT,
    MANIFEST,
    PLAN,
    VERSION,
    ArchivedFold,
    ArchivedModel,
    File,
    Manifest,
    NeededPlugin,
)
from autoseg.models.model import ready
from autoseg.planning.plan import Configuration, Plan
from autoseg.records import dumps
from autoseg.workspace import FoldName


@dataclass(frozen=True)
class FoldToExport:
    """One trained fold."""

    fold: FoldName
    plan: Plan  # without anything that names a case
    network: nn.Module  # with the weights it predicts with
    dtype: str
    forward_seconds: float
    epochs: int
    steps: int
    cases: int
    plugins: tuple[dict[str, str], ...]


@dataclass(frozen=True)
class ModelToExport:
    """The folds of one configuration and network, and the records that were made with them."""

    configuration_name: str
    folds: Sequence[FoldToExport]
    previous: str | None = None  # name of the previous stage's model
    records: Mapping[str, str] = field(default_factory=dict)  # file name -> JSON

    @property
    def configuration(self) -> Configuration:
        return self.folds[0].plan.configurations[self.configuration_name]

    @property
    def name(self) -> str:
        return f"{self.configuration_name}-{self.configuration.network.name}"


@dataclass(frozen=True)
class About:
    """What an archive says beside its models."""

    predicts: tuple[str, ...]
    card: str  # Markdown
    fingerprint: str | None  # JSON; None: the training data are not known
    case_ids_kept: bool = False
    left_out: tuple[str, ...] = ()


def write_archive(path: Path, models: Sequence[ModelToExport], about: About) -> Manifest:
    """Write models into one file, atomically; equal models give equal files.

    Raises:
        StorageError: the disk is full or refuses.
    """
    contents = [Content.of_text(CARD, about.card)]
    contents += [Content.of_text(FINGERPRINT, about.fingerprint)] if about.fingerprint else []
    archived = {}
    for model in models:
        folder = f"models/{model.name}"
        plans = _plans(model, folder)
        contents += [Content.of_text(name, text) for name, text in plans.items()]
        contents += [Content.of_text(f"{folder}/{name}", text) for name, text in sorted(model.records.items())]
        contents += [_weights(f"{folder}/fold_{fold.fold}.safetensors", fold.network) for fold in model.folds]
        archived[model.name] = _archived(model, folder, plans)
    plan = models[0].folds[0].plan
    manifest = Manifest(
        format="autoseg model",
        version=VERSION,
        dataset=plan.dataset,
        channels=plan.channels,
        labels=plan.labels.values,
        regions=plan.labels.regions,
        predicts=about.predicts,
        models=archived,
        case_ids_kept=about.case_ids_kept,
        left_out=about.left_out,
        made_with=_versions(),
        files=tuple(File(content.name, content.size, _digest(content)) for content in contents),
    )
    write(path, [Content.of_text(MANIFEST, dumps(manifest)), *contents])
    return manifest


def roundtrip(model: ModelToExport) -> Agreement:
    """The logits of one patch, by the first fold as it is and by its weights written and read again.

    Raises:
        StateError: weights are not finite.
    """
    _require_finite(model)
    fold, configuration = model.folds[0], model.configuration
    data = bytearray().join(_Pieces(fold.network))
    copy = build_plan_network(fold.plan, configuration)
    copy.load_state_dict(safetensors.read(memoryview(data), f"fold {fold.fold}"))
    shape = (1, fold.plan.input_channels(configuration), *configuration.patch_size)
    image = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        logits = [network(image)[0].float() for network in (fold.network, ready(copy))]
    return Agreement(
        what="archive against workspace",
        on=f"fold {fold.fold} of {model.name}, one patch of random numbers",
        measure="largest difference of logits",
        value=float((logits[0] - logits[1]).abs().max()),
        limit=0.0,
        weights=weights_digest(fold.network),
    )


def _plans(model: ModelToExport, folder: str) -> dict[str, str]:
    """Name of a file -> a plan: that of the first fold, and of each fold that has another one."""
    first = dumps(model.folds[0].plan)
    found = {f"{folder}/{PLAN}": first}
    for fold in model.folds[1:]:
        if (text := dumps(fold.plan)) != first:
            found[f"{folder}/plan-fold_{fold.fold}.json"] = text
    return found


def _archived(model: ModelToExport, folder: str, plans: Mapping[str, str]) -> ArchivedModel:
    folds = []
    for fold in model.folds:
        own = f"{folder}/plan-fold_{fold.fold}.json"
        folds.append(
            ArchivedFold(
                fold=fold.fold,
                weights=f"{folder}/fold_{fold.fold}.safetensors",
                plan=own if own in plans else f"{folder}/{PLAN}",
                dtype=fold.dtype,
                forward_seconds=fold.forward_seconds,
                epochs=fold.epochs,
                steps=fold.steps,
                cases=fold.cases,
                plugins=tuple(NeededPlugin(one["name"], one["sha256"]) for one in fold.plugins),
            )
        )
    return ArchivedModel(
        configuration=model.configuration_name,
        network=model.configuration.network.name,
        spacing=model.configuration.spacing,
        patch_size=model.configuration.patch_size,
        parameters=sum(parameter.numel() for parameter in model.folds[0].network.parameters()),
        folds=tuple(folds),
        previous=model.previous,
    )


def _require_finite(model: ModelToExport) -> None:
    for fold in model.folds:
        for key, tensor in fold.network.state_dict().items():
            if not tensor.isfinite().all():
                raise StateError(
                    f"fold {fold.fold} of {model.name} has weights that are not finite, the first in {key}",
                    remedy=f"export other folds (-f), or retrain it: {suggest('train', '-f', fold.fold, '--restart')}",
                )


def _weights(name: str, network: nn.Module) -> Content:
    pieces = _Pieces(network)
    return Content(name, pieces, sum(map(len, pieces)), stored=True)


@dataclass(frozen=True)
class _Pieces:
    """The weights of a network as pieces of a file, made each time they are asked for."""

    network: nn.Module

    def __iter__(self) -> Iterator[bytes]:
        return safetensors.chunks(self.network.state_dict())


def _digest(content: Content) -> str:
    digest = hashlib.sha256()
    for chunk in content.chunks:
        digest.update(chunk)
    return digest.hexdigest()


def _versions() -> dict[str, str]:
    libraries = {name: importlib.metadata.version(name) for name in ("torch", "numpy")}
    return {"autoseg": __version__, "python": platform.python_version(), **libraries}
