"""The tables that names in a plan are checked against, and the options of what is named.

Each is imported on first use, because it needs torch, which takes seconds to load. It is looked up again for every
name, so that functions registered from outside the package are found.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from autoseg.planning.options import check_options, with_defaults

if TYPE_CHECKING:
    from autoseg.nn.losses import Traits


def networks() -> Mapping[str, Callable[..., Any]]:
    from autoseg.nn.networks import NETWORKS

    return NETWORKS


def losses() -> Mapping[str, Callable[..., Any]]:
    from autoseg.nn.losses import LOSSES

    return LOSSES


def optimizers() -> Mapping[str, Callable[..., Any]]:
    from autoseg.nn.optimization import OPTIMIZERS

    return OPTIMIZERS


def schedules() -> Mapping[str, Callable[[float], float]]:
    from autoseg.nn.optimization import SCHEDULES

    return SCHEDULES


def check_network_options(name: str, options: Mapping[str, Any], where: str) -> None:
    """Raise FieldError for an option that the network called `name` does not take, or not with this value."""
    from autoseg.nn.networks import GIVEN, NETWORKS

    check_options(options, NETWORKS[name], GIVEN, name=name, where=where)


def check_loss_options(name: str, options: Mapping[str, Any], where: str) -> None:
    """Raise FieldError for an option that the loss called `name` does not take, or not with this value."""
    from autoseg.nn.losses import GIVEN, LOSSES

    check_options(options, LOSSES[name], GIVEN, name=name, where=where)


def loss_traits(name: str) -> "Traits":
    """What a plan must know of the loss called `name`."""
    from autoseg.nn.losses import traits_of

    return traits_of(name)


def all_loss_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of the loss called `name`, with its defaults for those that are not set; unchanged if it is unknown."""
    from autoseg.nn.losses import GIVEN, LOSSES

    return with_defaults(options, LOSSES[name], GIVEN) if name in LOSSES else dict(options)
