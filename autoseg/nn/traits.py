"""What a plan must know of a loss; torch is not needed for it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

Made = TypeVar("Made", bound=Callable[..., Any])


@dataclass(frozen=True)
class Traits:
    """What a plan must know of a loss: the attribute `traits` of its function."""

    # "labels": one label per voxel, no regions; "regions": each label becomes a region; "either": as the labels are
    predicts: Literal["labels", "regions", "either"] = "either"
    cross_entropy: bool = True  # which class weights and voxel weights weight
    queries: bool = False  # it reads the queries of a network, beside its logits (`autoseg.nn.queries`)


def with_traits(traits: Traits) -> Callable[[Made], Made]:
    """Give a loss its traits."""

    def give(function: Made) -> Made:
        function.traits = traits  # type: ignore[attr-defined]
        return function

    return give
