"""An exported model, opened and checked; torch is not needed for it.

`open_archive` checks that the manifest and the files are those that `exporting` wrote: names, sizes, sha256. What is in
the files is checked where it is read: records here, strictly, and weights by `opening`, against the network of their
plan.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from autoseg.errors import StateError
from autoseg.models.container import Container
from autoseg.models.manifest import MANIFEST, ArchivedFold, Manifest
from autoseg.planning.plan import Plan
from autoseg.plugins import require_plugins
from autoseg.records import loads, to_plain

R = TypeVar("R")
AGAIN = "get the file again from where it came from, or export the model again"


@dataclass(frozen=True)
class Archive:
    """An exported model that was opened and checked."""

    container: Container
    manifest: Manifest

    @property
    def path(self) -> Path:
        return self.container.path

    @property
    def identity(self) -> str:
        """Digest of all it holds: equal for equal models, whatever compressed them."""
        return hashlib.sha256(self.container.read(MANIFEST)).hexdigest()

    def has(self, name: str) -> bool:
        return name in self.container.names

    def record(self, record_type: type[R], name: str) -> R:
        """One of its records. Raises StateError where it is missing, or does not fit."""
        return _record(record_type, self.container, name)

    def plan(self, fold: ArchivedFold) -> Plan:
        """The plan a fold was trained under. Raises StateError where it needs a plugin that is not loaded."""
        require_plugins([to_plain(plugin) for plugin in fold.plugins], self.path)
        return self.record(Plan, fold.plan)


def is_archive(path: Path) -> bool:
    """Whether a path is to be opened as an archive: a file that is called .zip, whatever it holds."""
    return path.suffix.lower() == ".zip" and not path.is_dir()


def open_archive(path: Path) -> Archive:
    """Open an exported model and check every file of it against the manifest; no network is built.

    Raises:
        StateError: it is refused; the message names the entry.
    """
    container = Container(path)
    if MANIFEST not in container.names:
        raise StateError(f"{path} holds no {MANIFEST}: it is not a model that autoseg exported", remedy=AGAIN)
    manifest = _record(Manifest, container, MANIFEST)
    listed = {file.name: file for file in manifest.files}
    for name in listed.keys() - set(container.names):
        raise container.refused(name, "is listed in the manifest and missing")
    for name in set(container.names) - listed.keys() - {MANIFEST}:
        raise container.refused(name, "is not listed in the manifest")
    for file in manifest.files:
        if container.size_of(file.name) != file.size:
            found = container.size_of(file.name)
            raise container.refused(file.name, f"has {found} bytes, the manifest says {file.size}")
        if container.sha256(file.name) != file.sha256:
            raise container.refused(file.name, "has other content than the manifest says: its sha256 differs")
    return Archive(container, manifest)


def models_named(archive: Archive, configuration: str | None, network: str | None) -> Sequence[str]:
    """The models of an archive that a configuration and a network name. Raises StateError where it has none."""
    if configuration is None and network is None:
        return archive.manifest.predicts
    known = archive.manifest.models
    found = [
        name
        for name, model in known.items()
        if configuration in (None, model.configuration) and network in (None, model.network)
    ]
    if configuration is None:
        found = [name for name in found if name in archive.manifest.predicts]
    if not found:
        asked = " with ".join(filter(None, (configuration, network)))
        raise StateError(f"{archive.path} holds no model {asked}", remedy=f"it holds: {', '.join(known)}")
    return found


def measured_with(record_type: type[R], path: Path, model: str, file: str) -> R | None:
    """What a file holds beside one of its models, such as speeds.json; None where nothing was measured."""
    archive, name = open_archive(path), f"models/{model}/{file}"
    return archive.record(record_type, name) if archive.has(name) else None


def _record(record_type: type[R], container: Container, name: str) -> R:
    try:
        text = container.read(name).decode("utf-8")
    except UnicodeDecodeError as error:
        raise container.refused(name, f"is not text: {error}") from None
    return loads(record_type, text, f"{container.path}: {name}", remedy=AGAIN)
