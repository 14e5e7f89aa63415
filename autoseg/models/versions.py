"""Versions of checkpoints: which this autoseg writes, and older ones as it writes them."""

from typing import Any

from autoseg.errors import StateError
from autoseg.planning.plan import Plan

CHECKPOINT_VERSION = 4
UNKNOWN = "an unknown model, or from random weights"  # what a fold of an older version began from


def upgrade_checkpoint(plain: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint of an older version, as this version writes it. Raises StateError for one of a newer version."""
    if plain["version"] > CHECKPOINT_VERSION:
        raise StateError(
            f"the checkpoint is of version {plain['version']}, this autoseg knows {CHECKPOINT_VERSION} and older ones",
            remedy="install the version of autoseg that wrote it",
        )
    plain = plain | {"plan": Plan.upgrade(plain["plan"])}
    for version, upgrade in enumerate((_upgrade_from_1, _upgrade_from_2, _upgrade_from_3), start=1):
        if plain["version"] == version:
            plain = upgrade(plain)
    return {"contents": {}} | plain  # of older versions it is not known what their cases held


def _upgrade_from_1(plain: dict[str, Any]) -> dict[str, Any]:
    """Version 2 keeps all choices made at start-up, the middle of an epoch, and what depends on validation."""
    choices = {
        "dtype": plain["dtype"], "channels_last": False, "compiled": False, "chain": "host",
        "forward_seconds": plain["forward_seconds"],
    }  # fmt: skip
    added: dict[str, Any] = {
        "scaler": {}, "plateau": None, "cooling_since": None, "learning_rate_factor": 1.0, "micro_batches": 1,
        "retreats": 0,
    }  # fmt: skip
    kept = {key: value for key, value in plain.items() if key not in ("dtype", "forward_seconds")}
    return kept | added | {"version": 2, "choices": choices}


def _upgrade_from_2(plain: dict[str, Any]) -> dict[str, Any]:
    """Version 3 waits for the pseudo Dice, too, before it sees a plateau."""
    plateau = plain["plateau"]
    if plateau:
        loss = {"averages": (plateau["average"], None), "bests": (plateau["best"], None)}
        plateau = {key: value for key, value in plateau.items() if key not in ("average", "best")} | loss
    return plain | {"version": 3, "plateau": plateau}


def _upgrade_from_3(plain: dict[str, Any]) -> dict[str, Any]:
    """Version 4 knows which model a fold began from, and watches other samples: values of before are no measure."""
    plateau = plain["plateau"]
    if plateau:
        plateau = plateau | {"averages": (), "bests": (), "waited": 0}
    return plain | {"version": 4, "init_from": UNKNOWN, "plateau": plateau}
