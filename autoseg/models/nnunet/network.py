"""The network of a configuration of nnU-Net's as one of autoseg's, and its weights under autoseg's names.

Source: dynamic_network_architectures (PlainConvUNet, ResidualEncoderUNet). nnU-Net keeps every weight under several
names, because a block lists its parts twice and the decoder holds the encoder; it counts decoder stages from the
bottleneck, autoseg from the finest.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autoseg.errors import AutosegError, StateError
from autoseg.models.nnunet.description import EPSILON, PLANS, Description, configuration_of
from autoseg.planning.plan import NetworkSpec
from autoseg.records import from_plain

NETWORKS = {"PlainConvUNet": "unet", "ResidualEncoderUNet": "residual_unet"}


@dataclass(frozen=True)
class Architecture:
    """A network that autoseg has, and which of its weights nnU-Net's has not."""

    spec: NetworkSpec
    biased: bool  # convolutions have a bias; without one it is 0 here
    affine: bool  # normalisations have a scale and a shift; without them they are 1 and 0 here


def architecture_of(described: Description, name: str) -> Architecture:
    """The network of a configuration.

    Raises:
        StateError: autoseg has no network that computes the same; the message says what it lacks.
    """
    configuration = configuration_of(described, name)
    where = f"configurations.{name}.architecture"
    built = _entry(described, configuration, "architecture", dict, f"configurations.{name}")
    class_name = str(built.get("network_class_name")).rpartition(".")[2]
    if class_name not in NETWORKS:
        raise described.refused(PLANS, f"{where}: the network is {class_name}, autoseg has {' and '.join(NETWORKS)}")
    given = _entry(described, built, "arch_kwargs", dict, where)
    dims = len(_entry(described, configuration, "patch_size", list, f"configurations.{name}"))
    residual = class_name == "ResidualEncoderUNet"
    _require_known_parts(described, given, dims, residual, where)
    features = given["features_per_stage"]
    stages = int(given.get("n_stages") or len(features))
    blocks = given["n_blocks_per_stage" if residual else "n_conv_per_stage"]
    decoder = given["n_conv_per_stage_decoder"]
    norm = given.get("norm_op_kwargs") or {}
    try:
        plain = {
            "name": NETWORKS[class_name],
            "features": _each(features, stages),
            "strides": [_each(stride, dims) for stride in _each(given["strides"], stages)],
            "kernel_sizes": [_each(kernel, dims) for kernel in _each(given["kernel_sizes"], stages)],
            "blocks": _each(blocks, stages),
            "decoder_blocks": _each(decoder, stages - 1)[::-1],  # nnU-Net begins at the bottleneck
        }
        spec = from_plain(NetworkSpec, plain, where)
    except (AutosegError, TypeError, ValueError) as error:
        raise described.refused(PLANS, f"{where}: {getattr(error, 'what', error)}") from None
    if set(spec.strides[0]) != {1}:
        raise described.refused(PLANS, f"{where}.strides[0]: the first stage has the stride {list(spec.strides[0])}, "
                                "in autoseg's networks it has the resolution of the image")  # fmt: skip
    return Architecture(spec, bool(given.get("conv_bias", False)), bool(norm.get("affine", False)))


def _require_known_parts(
    described: Description, given: Mapping[str, Any], dims: int, residual: bool, where: str
) -> None:
    """Refuse a network with parts that autoseg's has not."""
    required = {"features_per_stage", "strides", "kernel_sizes", "n_conv_per_stage_decoder"}
    required |= {"n_blocks_per_stage" if residual else "n_conv_per_stage"}
    if missing := required - given.keys():
        raise described.refused(PLANS, f"{where}.arch_kwargs lacks {min(missing)}", "copy the model again")
    norm, nonlin = given.get("norm_op_kwargs") or {}, given.get("nonlin_kwargs") or {}
    features = given["features_per_stage"]
    first = features[0] if isinstance(features, list) and features else features
    parts = {
        "conv_op": (_last(given.get("conv_op")), f"Conv{dims}d"),
        "norm_op": (_last(given.get("norm_op")), f"InstanceNorm{dims}d"),
        "norm_op_kwargs.eps": (norm.get("eps", EPSILON), EPSILON),
        "norm_op_kwargs.track_running_stats": (norm.get("track_running_stats", False), False),
        "nonlin": (_last(given.get("nonlin")), "LeakyReLU"),
        "nonlin_kwargs.negative_slope": (nonlin.get("negative_slope", 0.01), 0.01),
        "nonlin_first": (given.get("nonlin_first", False), False),
        "block": (_last(given.get("block", "BasicBlockD")), "BasicBlockD"),
        "bottleneck_channels": (given.get("bottleneck_channels"), None),
        "stem_channels": (given.get("stem_channels") or first, first),
    }
    for key, (found, expected) in parts.items():
        if found != expected:
            raise described.refused(PLANS, f"{where}.arch_kwargs.{key} is {found}; autoseg's networks have {expected}")
    known = required | {key.partition(".")[0] for key in parts}
    known |= {"n_stages", "conv_bias", "deep_supervision", "dropout_op", "dropout_op_kwargs"}  # dropout: in training
    if unknown := given.keys() - known:
        raise described.refused(PLANS, f"{where}.arch_kwargs.{min(unknown)} is not known to autoseg")


def _entry(described: Description, holder: Mapping[str, Any], key: str, kind: type, where: str) -> Any:
    if not isinstance(found := holder.get(key), kind):
        raise described.refused(PLANS, f"{where}.{key}: expected a {kind.__name__}, found {found!r}"[:300])
    return found


def _each(value: Any, number: int) -> list:
    """One entry for each of `number` stages or axes, of a value that may stand for all of them."""
    return list(value) if isinstance(value, (list, tuple)) else [value] * number


def _last(name: Any) -> str:
    """The name of a class without its module."""
    return str(name).rpartition(".")[2]


def converted(
    weights: Mapping[str, Tensor], architecture: Architecture, template: Mapping[str, Tensor], path: Path
) -> dict[str, Tensor]:
    """nnU-Net's weights under autoseg's names, float32; they share memory where they can.

    Args:
        weights: the state of nnU-Net's network.
        template: the state of autoseg's, of which names and shapes are used (it may be on the meta device).
        path: of the checkpoint, for messages.

    Raises:
        StateError: a weight is missing, has another shape, is not part of the network, or differs from its copy.
    """
    weights = {_unwrapped(name): tensor for name, tensor in weights.items()}
    named = {ours: name_of_weight(ours, architecture.spec) for ours in template}
    found = {}
    for ours, theirs in named.items():
        shape = tuple(template[ours].shape)
        tensor = weights.get(theirs)
        if tensor is None:
            tensor = _left_out(theirs, shape, architecture)
        if tensor is None:
            raise _unfit(path, f"the weight {theirs} is missing")
        if tuple(tensor.shape) != shape:
            raise _unfit(path, f"the weight {theirs} has the shape {list(tensor.shape)}, expected {list(shape)}")
        if not tensor.is_floating_point():
            raise _unfit(path, f"the weight {theirs} is of type {tensor.dtype}")
        found[ours] = tensor.to(torch.float32)
    known = set(named.values())
    for name, tensor in weights.items():
        if name in known:
            continue
        if (first := _first_name(name)) not in known or first not in weights:
            raise _unfit(path, f"the weight {name} belongs to a network that autoseg does not have")
        same = tensor.data_ptr() == weights[first].data_ptr() and tensor.shape == weights[first].shape
        if not same and not torch.equal(tensor, weights[first]):
            raise _unfit(path, f"the weights {name} and {first} are one weight of the network, but differ")
    return found


def name_of_weight(ours: str, spec: NetworkSpec) -> str:
    """nnU-Net's (first) name of one of our weights.

    >>> spec = NetworkSpec("unet", (8, 16), ((1, 1), (2, 2)), ((3, 3), (3, 3)), (2, 2), (2,))
    >>> name_of_weight("decoder.0.1.0.weight", spec)
    'decoder.stages.0.convs.1.conv.weight'
    """
    part, *path, kind = ours.split(".")
    if part in ("up", "decoder", "heads"):
        stage = len(spec.features) - 2 - int(path[0])
        if part == "decoder":
            return f"decoder.stages.{stage}.convs.{path[1]}.{_CONV_OR_NORM[path[2]]}.{kind}"
        return f"decoder.{'transpconvs' if part == 'up' else 'seg_layers'}.{stage}.{kind}"
    if part == "stem":
        return f"encoder.stem.convs.{path[0]}.{_CONV_OR_NORM[path[1]]}.{kind}"
    number, block, *inner = path
    if spec.name == "unet":
        return f"encoder.stages.{number}.0.convs.{block}.{_CONV_OR_NORM[inner[0]]}.{kind}"
    place = f"encoder.stages.{number}.blocks.{block}"
    if inner[0] == "first":
        return f"{place}.conv1.{_CONV_OR_NORM[inner[1]]}.{kind}"
    if inner[0] == "skip":
        pooled = int(block == "0" and set(spec.strides[int(number)]) != {1})  # what comes first in the skip
        return f"{place}.skip.{pooled}.{'conv' if int(inner[1]) == pooled else 'norm'}.{kind}"
    return f"{place}.conv2.{'conv' if inner[0] == 'second' else 'norm'}.{kind}"


_CONV_OR_NORM = {"0": "conv", "1": "norm"}  # position in a block of ours


def _unwrapped(name: str) -> str:
    """A name without what torch's wrappers (several GPUs, compiling) put before it."""
    return re.sub(r"^(module\.|_orig_mod\.)+", "", name)


def _first_name(name: str) -> str:
    """The first of the names under which nnU-Net keeps a weight."""
    name = re.sub(r"^decoder\.encoder\.", "encoder.", name)
    return re.sub(r"\.all_modules\.(\d+)\.", lambda found: ".conv." if found[1] == "0" else ".norm.", name)


def _left_out(theirs: str, shape: tuple[int, ...], architecture: Architecture) -> Tensor | None:
    """What stands for a weight that the network was built without; None where it has one."""
    if ".norm." in theirs:
        neutral = torch.ones if theirs.endswith("weight") else torch.zeros
        return None if architecture.affine else neutral(shape)
    if theirs.endswith(".bias") and "seg_layers" not in theirs and not architecture.biased:
        return torch.zeros(shape)
    return None


def _unfit(path: Path, why: str) -> StateError:
    return StateError(
        f"{path}: this model cannot be imported: {why}",
        remedy="its trainer may build another network than its plans say: predict with nnU-Net itself",
    )
