"""A page on this machine that segments and corrects images with the trained models, and an interface for programs."""

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from autoseg.commands.decision import open_with_rule
from autoseg.commands.inputs import open_plan
from autoseg.commands.predict import PredictOptions, open_exported
from autoseg.commands.refine import open_prompted
from autoseg.errors import StateError, UsageError
from autoseg.inference.options import SpeedName
from autoseg.lines import LOG
from autoseg.messages import dataset_of
from autoseg.planning.plan import Plan
from autoseg.workspace import FoldName, Workspace

if TYPE_CHECKING:  # torch, starlette and uvicorn are imported when something is served
    from autoseg.models.decision import Rule
    from autoseg.models.model import Model
    from autoseg.serve.saving import TrainingSet
    from autoseg.serve.server import Server

PORT = 8765


@dataclass(frozen=True)
class ServeOptions:
    """What is served, and to whom."""

    configuration: str | None = None  # None: the recommended one
    network: str | None = None  # None: as planned
    folds: tuple[FoldName, ...] | None = None  # None: all that are trained, or FULL where it alone is
    speed: SpeedName = "accurate"  # of segmenting; a click averages no flips
    device: str = "auto"
    folder: Path | None = None  # images that the page may choose from; None: files are uploaded
    training_set: Path | None = None  # data set that corrected cases are added to; None: that of the workspace
    port: int = PORT  # of 127.0.0.1; 0: any that is free
    max_upload: int = 2 * 10**9  # bytes of a visitor at a time
    browser: bool = True  # open the page in a browser


def serve(workspace: Workspace, options: ServeOptions = ServeOptions()) -> None:
    """Serve until Ctrl-C.

    Raises:
        StateError: a model is not trained, or a data set cannot be added to.
        StorageError: the port is in use.
        UsageError: an extra is not installed, or there is no such folder.
    """
    with _ended_by_signals(), open_server(workspace, options) as server:
        LOG.info(f"open {server.address}")
        LOG.info("the address holds a token: whoever has it can use this server; Ctrl-C ends it")
        if options.browser:
            server.open_in_browser()
        with suppress(KeyboardInterrupt):
            server.run()
    LOG.info("ended; uploaded files are removed")


def open_server(workspace: Workspace, options: ServeOptions = ServeOptions()) -> "Server":
    """Open the models and the port; `run` or `start` serves, `close` ends it. Raises as `serve`."""
    require_extra()
    if options.folder is not None and not options.folder.is_dir():
        raise UsageError(f"--folder {options.folder} is not a folder", remedy="name a folder of images")
    from autoseg.models.decision import PLAIN
    from autoseg.serve.app import Served
    from autoseg.serve.engine import Engine
    from autoseg.serve.folder import Folder
    from autoseg.serve.server import Server

    chosen = PredictOptions(
        configuration=options.configuration, network=options.network, folds=options.folds, device=options.device,
        speed=options.speed,
    )  # fmt: skip
    opened = open_exported(workspace, chosen)
    plan = opened[0].plan if opened else open_plan(workspace, options.network)
    models, rule = open_with_rule(workspace, plan, opened, chosen)
    prompted, of_it, missing = _prompted(workspace, models, rule, chosen)
    LOG.info(f"segments: {', '.join(model.name for model in models)}; corrects: {_named(prompted) or missing}")
    engine = Engine(models, rule, chosen.inference_options(), prompted, of_it or PLAIN)
    training_set, refused = _training_set(workspace, engine.plan, options)
    folder = Folder(options.folder, engine.plan) if options.folder is not None else None

    return Server(
        lambda worker, visitors: Served(
            engine, worker, visitors, folder, training_set, refused, missing, options.max_upload, workspace.root
        ),
        options.port,
    )


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """SIGTERM, and a terminal that closes, end the body as Ctrl-C does: what was uploaded is removed."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, action in before.items():
            signal.signal(number, action)


def require_extra() -> None:
    """Raises UsageError where starlette or uvicorn is not installed."""
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise UsageError(
            f"serve needs starlette and uvicorn, and {error.name} is not installed",
            remedy="pip install 'autoseg-med[serve]'",
        ) from None


def _prompted(
    workspace: Workspace, models: "Sequence[Model]", rule: "Rule", options: PredictOptions
) -> "tuple[Model | None, Rule | None, str]":
    """The model that prompts correct with and its rule, or what would enable corrections."""
    own = next((model for model in models if model.configuration.prompts is not None), None)
    if own is not None:
        return own, rule if len(models) == 1 else None, ""
    try:
        model, of_it = open_prompted(workspace, options)
    except StateError as error:
        return None, None, f"{error.what}, which would enable corrections; {error.remedy}"
    return model, of_it, ""


def _training_set(workspace: Workspace, plan: Plan, options: ServeOptions) -> "tuple[TrainingSet | None, str]":
    """The data set that cases are added to, or why there is none. Raises StateError where the named one cannot be."""
    from autoseg.serve.saving import TrainingSet

    root = options.training_set or dataset_of(workspace.root)
    try:
        return TrainingSet(root.expanduser().absolute(), plan, workspace.root), ""
    except StateError as error:
        if options.training_set is not None:
            raise
        return None, f"{error.what}; {error.remedy}"


def _named(model: "Model | None") -> str:
    return model.name if model else ""
