"""Python files of a user's own, which register networks, losses and other entries in the tables: `--plugin FILE.py`.

A plugin is code, and it is run with all rights of who runs it. So it is imported for one reason alone: a person named
it on the command line of the command that runs. Nothing is imported because a workspace, a dataset, a plan or a
checkpoint says so. A checkpoint keeps the name and the digest of each plugin it was trained with, no more; who opens it
must name the same files again, and they are compared.

What is run is the content whose digest was taken, also in other processes: a file is read once per command.
"""

import hashlib
import importlib.abc
import importlib.util
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoseg.errors import StateError, UsageError

LOADED: list["Plugin"] = []  # those of the command that runs


@dataclass(frozen=True)
class Plugin:
    """One file that was named on the command line."""

    path: Path  # as it was named
    content: bytes

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    def recorded(self) -> dict[str, str]:
        """What a checkpoint keeps of it."""
        return {"name": self.path.name, "sha256": self.sha256}


def load_plugins(paths: Iterable[Path]) -> None:
    """Import the files that the command line names, in their order; LOADED holds them from now on, and no others.

    Raises:
        UsageError: a file is missing, is not Python, or raises an error when it is imported; or two have one name.
    """
    read: dict[str, Plugin] = {}
    for path in paths:
        plugin = _read(path)
        other = read.setdefault(path.name, plugin)
        if other.content != plugin.content:
            raise UsageError(
                f"--plugin {other.path} and --plugin {path} have the same name but differ",
                remedy="rename one of them: a checkpoint identifies plugins by name and content",
            )
    import_plugins(tuple(read.values()))


def import_plugins(plugins: Sequence[Plugin]) -> None:
    """Run the content of plugins that were read; processes that a command starts begin with this."""
    LOADED[:] = ()
    for plugin in plugins:
        _run(plugin)
        LOADED.append(plugin)


def plugin_options(*, resolved: bool = False) -> list[str]:
    """The options that name the plugins of this command again; `resolved`: by paths that hold in any folder."""
    return [word for plugin in LOADED for word in ("--plugin", str(plugin.path.resolve() if resolved else plugin.path))]


def recorded_plugins() -> list[dict[str, str]]:
    """What a checkpoint keeps of the plugins of this command: plain data."""
    return [plugin.recorded() for plugin in LOADED]


def require_plugins(recorded: Iterable[Mapping[str, Any]], what: object) -> None:
    """Ask for the plugins that something was trained with: they must be among those of this command.

    Args:
        recorded: as `recorded_plugins` gave them to a checkpoint.
        what: was trained with them, in words or as a path.

    Raises:
        StateError: one is not named on the command line, or has another content today.
    """
    digests = {plugin.path.name: plugin.sha256 for plugin in LOADED}
    for known in recorded:
        name, sha256 = str(known["name"]), str(known["sha256"])
        if name not in digests:
            raise StateError(
                f"{what} was trained with the plugin {name} (sha256 {sha256[:12]}), which this command does not name",
                remedy=f"if you have that file and trust it, repeat the command with --plugin {shlex.quote(name)}, "
                "with the path to it",
            )
        if digests[name] != sha256:
            raise StateError(
                f"{what} was trained with a plugin {name} of sha256 {sha256[:12]}; the file that --plugin names has "
                f"{digests[name][:12]}",
                remedy="restore the previous file (shasum -a 256 FILE.py shows its digest), or retrain the fold from "
                "scratch: train --restart",
            )


class Imported:
    """Stands before what is sent to a process that is not forked: plugins are imported there before that is read."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _imported, (tuple(LOADED),)


def _imported(plugins: Sequence[Plugin]) -> Imported:
    import_plugins(plugins)
    return Imported()


class _Source(importlib.abc.SourceLoader):
    """Gives the import system the content that was read, and no other."""

    def __init__(self, plugin: Plugin) -> None:
        self.plugin = plugin

    def get_filename(self, fullname: str) -> str:
        return str(self.plugin.path)

    def get_data(self, path: str | bytes) -> bytes:
        return self.plugin.content


def _read(path: Path) -> Plugin:
    if path.suffix != ".py":
        raise UsageError(f"--plugin {path} is not a Python file", remedy="name a file that ends in .py")
    try:
        return Plugin(path, path.read_bytes())
    except FileNotFoundError:
        raise UsageError(f"--plugin {path} does not exist", remedy="check the path") from None
    except OSError as error:
        raise UsageError(f"--plugin {path} cannot be read: {error.strerror}", remedy="name a readable file") from None


def _run(plugin: Plugin) -> None:
    """Import the content as a module of its own name, under which what it defines is found in other processes."""
    name = f"autoseg_plugin_{plugin.sha256[:16]}"
    spec = importlib.util.spec_from_loader(name, _Source(plugin))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # whatever a user's code may raise
        del sys.modules[name]
        text = str(error).splitlines()[0] if str(error) else ""
        raise UsageError(
            f"--plugin {plugin.path} cannot be imported: {_place(error, plugin)}{type(error).__name__}: {text}",
            remedy="fix the file; python FILE.py shows where it fails",
        ) from error


def _place(error: BaseException, plugin: Plugin) -> str:
    """ "line 12: ", the last line of the plugin that an error came through; of a syntax error, its own."""
    lines = [error.lineno] if isinstance(error, SyntaxError) and error.filename == str(plugin.path) else []
    trace = error.__traceback__
    while trace:
        if trace.tb_frame.f_code.co_filename == str(plugin.path):
            lines.append(trace.tb_lineno)
        trace = trace.tb_next
    return f"line {lines[-1]}: " if lines else ""
