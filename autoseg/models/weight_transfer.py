"""Weights of one network for another: what has the same name and shape is copied, channels and heads are assigned.

Input channels and heads are the two axes in which two networks of a kind may differ and yet share all the rest. Which
tensors they run through is not guessed from names or numbers, for every network has them elsewhere and in other layers:
it is seen where the shapes change when the same network is built with one more of them (`differing_axes`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

# For each channel or head here, the indices of those in the source that it is the mean of; one, as a rule
Origins = Sequence[tuple[int, ...]]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Transfer:
    """What became of the tensors of a network: name -> number of parameters, each in one of three."""

    kept: dict[str, int]  # as in the source
    adapted: dict[str, int]  # put together from the source's channels or heads
    new: dict[str, int]  # as the network was built
    misfits: dict[str, tuple[Shape, Shape]]  # of the new: those the source has in another shape; there, here
    in_source: int  # parameters of the source

    @property
    def share(self) -> float:
        """Parameters that come from the source, of those that could: as many as the smaller network has."""
        here = sum(sum(part.values()) for part in (self.kept, self.adapted, self.new))
        return (sum(self.kept.values()) + sum(self.adapted.values())) / min(here, self.in_source)


def differing_axes(network: nn.Module, other: nn.Module) -> dict[str, int]:
    """Of the tensors whose shapes differ between two networks with the same layers: the one axis that does."""
    shapes = {name: tensor.shape for name, tensor in other.state_dict().items()}
    found = {}
    for name, tensor in network.state_dict().items():
        if tensor.shape != shapes[name]:
            (found[name],) = (i for i, (a, b) in enumerate(zip(tensor.shape, shapes[name], strict=True)) if a != b)
    return found


def transfer(
    source: Mapping[str, Tensor],
    network: nn.Module,
    *,
    channel_axes: Mapping[str, int],
    head_axes: Mapping[str, int],
    channels: Origins,
    heads: Origins,
) -> Transfer:
    """Copy into `network` whatever fits of the `source`, a state_dict of the same kind of network.

    A tensor fits if the source has one of its name and shape; along the axis of channels or heads it may be longer or
    shorter. A channel without an origin begins with weights of 0: the network does at first what the source did without
    it, and as the weights beside them are not 0, these learn at once. A head without an origin stays as it was built,
    and so does a tensor without any origin.

    Args:
        channel_axes, head_axes: tensor -> the axis along which it has one entry per input channel, or per head. One
            that is in both goes by the channels.
        channels, heads: where each one here comes from.
    """
    kept, adapted, new, misfits = {}, {}, {}, {}
    for name, own in network.state_dict().items():  # these share their storage with the network
        theirs, parameters = source.get(name), own.numel()
        axis, origins = None, None
        if name in channel_axes:
            axis, origins = channel_axes[name], channels
        elif name in head_axes:
            axis, origins = head_axes[name], heads
        if theirs is None or not _fits(theirs.shape, own.shape, axis, origins or ()):
            new[name] = parameters
            if theirs is not None:
                misfits[name] = tuple(theirs.shape), tuple(own.shape)
        elif axis is None or origins is None or _same(origins, theirs.shape[axis]):
            own.copy_(theirs)
            kept[name] = parameters
        elif not any(origins):
            new[name] = parameters
        else:
            otherwise = torch.zeros_like(own) if name in channel_axes else own.clone()
            own.copy_(_put_together(theirs.to(own), axis, origins, otherwise))
            adapted[name] = parameters
    return Transfer(kept, adapted, new, misfits, sum(tensor.numel() for tensor in source.values()))


def _fits(there: Shape, here: Shape, axis: int | None, origins: Origins) -> bool:
    """Whether two shapes are the same but for the length along `axis`; all origins must be there."""
    if axis is None or len(there) != len(here):
        return there == here
    others = there[:axis] + there[axis + 1 :] == here[:axis] + here[axis + 1 :]
    return others and here[axis] == len(origins) and all(i < there[axis] for origin in origins for i in origin)


def _same(origins: Origins, length: int) -> bool:
    return list(origins) == [(i,) for i in range(length)]


def _put_together(theirs: Tensor, axis: int, origins: Origins, otherwise: Tensor) -> Tensor:
    """Means of slices of `theirs` along an axis, and slices of `otherwise` where there is no origin."""
    parts = [
        theirs[(slice(None),) * axis + (list(origin),)].mean(axis, keepdim=True)
        if origin
        else otherwise.narrow(axis, i, 1)
        for i, origin in enumerate(origins)
    ]
    return torch.cat(parts, axis)
