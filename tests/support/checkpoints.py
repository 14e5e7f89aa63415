"""Checkpoints of folds that never trained: `from checkpoints import checkpoint_of`."""

from typing import Any

from torch import nn

from autoseg.models.versions import Checkpoint, Position, RuntimeSettings
from autoseg.planning.plan import Plan
from autoseg.records import to_plain

RUNTIME = RuntimeSettings("float32", channels_last=False, compiled=False, chain="host", forward_seconds=0.1)


def checkpoint_of(plan: Plan | None, weights_of: nn.Module | None = None, /, **more: Any) -> Checkpoint:
    """A checkpoint of fold 0 after 40 steps, with the weights of a network or none; any field may be given."""
    fields = {
        "plan": to_plain(plan) if plan else {}, "configuration": plan.recommended if plan else "3d_fullres", "fold": 0,
        "train": ("a", "b", "c"), "validation": ("d",), "contents": {}, "init_from": None, "plugins": (),
        "finished": False, "position": Position(step=40), "history": (), "runtime": RUNTIME,
        "optimizer": {}, "scaler": {},
        "network": weights_of.state_dict() if weights_of else {}, "average": None, "average_steps": 0, "plateau": None,
        "cooling_since": None, "learning_rate_factor": 1.0, "micro_batches": 1, "rollbacks": 0,
    }  # fmt: skip
    return Checkpoint(**(fields | more))
