"""What a model is, as a digest: equal for equal plans and weights, wherever they are stored."""

import hashlib
import json
from collections.abc import Sequence

import torch
from torch import nn

from autoseg.models.model import Model
from autoseg.records import to_plain


def weights_digest(network: nn.Module) -> str:
    """Sha256 of a network's weights and buffers, with their names, dtypes and shapes; the same on every device."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def fold_digests(model: Model) -> dict[str, str]:
    """Fold -> digest of its weights; of a cascade, with those of the same fold of its previous stage."""
    before = model.previous and dict(zip(model.previous.folds, model.previous.networks, strict=True))
    found = {}
    for fold, network in zip(model.folds, model.networks, strict=True):
        found[str(fold)] = weights_digest(network)
        if before and fold in before:
            both = f"{found[str(fold)]} {weights_digest(before[fold])}"
            found[str(fold)] = hashlib.sha256(both.encode()).hexdigest()
    return found


def model_digest(model: Model) -> str:
    """Sha256 of what decides how a model segments: plan, configuration, arithmetic, weights, previous stage."""
    what = {
        "plan": to_plain(model.plan),
        "configuration": model.configuration_name,
        "dtype": model.dtype,
        "weights": [weights_digest(network) for network in model.networks],
        "previous": model_digest(model.previous) if model.previous else None,
    }
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def ensemble_digest(models: Sequence[Model]) -> str:
    """Sha256 of an ensemble; the order of its models does not matter."""
    return hashlib.sha256("\n".join(sorted(map(model_digest, models))).encode()).hexdigest()
