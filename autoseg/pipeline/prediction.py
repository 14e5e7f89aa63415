"""Images to segmentations, by the ensemble of the trained folds of one model, or of several."""

from collections.abc import Sequence
from pathlib import Path

from autoseg.dataset import Case, images_in
from autoseg.errors import StateError, UsageError
from autoseg.pipeline.opening import Say, choose_device, open_plan
from autoseg.suggestions import suggest
from autoseg.workspace import Workspace


def predict_images(
    workspace: Workspace,
    images: Sequence[Path],
    out: Path,
    *,
    configuration: str | None = None,
    network: str | None = None,
    models: Sequence[str] = (),
    folds: tuple[int, ...] | None = None,
    device: str = "auto",
    step: float = 0.5,
    mirroring: bool | None = None,
    say: Say = print,
) -> list[Path]:
    """Segment images with the ensemble of the trained folds; one label file per case, on the image's own grid.

    Args:
        configuration, network: of one model; None: as recommended, as planned.
        models: or models to average, as their folders are called: 3d_fullres-unet.
        folds: of each model; None: all that are trained.

    Raises:
        StateError: a model is not trained, or models were trained on different channels, labels or orientations.
        UsageError: models are given in both ways, or there is nothing to segment.
    """
    from autoseg.model import open_model
    from autoseg.predict import PredictOptions, predict_cases

    if models and (configuration or network):
        raise UsageError("-m names whole models: -c and --network say the same again", remedy="leave them out")
    plan = open_plan(workspace, network, say)
    name, chosen = plan.configuration(configuration)
    pairs = _named_models(workspace, models) if models else [(name, chosen.network.name)]
    cases = [
        Case(i, i, tuple(map(str, files)), None) for i, files in images_in(images, len(plan.channels), plan.channels)
    ]
    chosen_device = choose_device(device)
    opened = [open_model(workspace, *pair, folds=folds, device=chosen_device) for pair in pairs]
    written = predict_cases(opened, cases, out, PredictOptions(step=step, mirroring=mirroring))
    voters = [
        f"{len(model.folds)} fold{'s' * (len(model.folds) != 1)} of {pair[0]} ({pair[1]})"
        for model, pair in zip(opened, pairs, strict=True)
    ]
    say(f"{len(written)} segmentations in {out}, by {' and '.join(voters)}")
    return [prediction.path for prediction in written]


def _named_models(workspace: Workspace, names: Sequence[str]) -> list[tuple[str, str]]:
    """Configuration and network of each named model, each once."""
    known = {f"{configuration}-{network}": (configuration, network) for configuration, network in workspace.models()}
    if missing := [name for name in names if name not in known]:
        remedy = (
            f"there are: {', '.join(known)}" if known else "train first: " + suggest("train", workspace=workspace.root)
        )
        raise StateError(f"{workspace.root} holds no model {missing[0]!r}", remedy=remedy)
    return [known[name] for name in dict.fromkeys(names)]
