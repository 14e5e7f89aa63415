"""The tables that names in a plan are checked against, and the options of what is named.

The tables are those of `nn`, which needs torch, and torch takes seconds to load. While it is not loaded, the keys of a
table are read from the source that defines it, where one line adds an entry, and so are the traits of a loss: plans
that name these and set no options are checked without torch. Any other name, and every option, is checked against the
table itself, which also has what was registered from outside the package. Once a table is loaded, it alone counts.
"""

import ast
import functools
import importlib
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from autoseg.nn.traits import Traits
from autoseg.planning.options import check_options, with_defaults

PACKAGE = Path(__file__).parents[1]


class Names(Collection[str]):
    """The names of one table, in its order.

    Args:
        module: below autoseg, with dots; it may be the name of a folder, whose __init__ defines the table.
        table: the name of the dict.
    """

    def __init__(self, module: str, table: str) -> None:
        self.module, self.table = module, table

    def loaded(self) -> Mapping[str, Callable[..., Any]]:
        """The table itself; its module is imported where it is not yet."""
        return getattr(importlib.import_module(f"autoseg.{self.module}"), self.table)

    def known_unloaded(self, name: object) -> bool:
        """Whether the module is not imported and its source has an entry of this name."""
        return f"autoseg.{self.module}" not in sys.modules and name in _in_source(self.module, self.table)

    def __contains__(self, name: object) -> bool:
        return self.known_unloaded(name) or name in self.loaded()

    def __iter__(self) -> Iterator[str]:
        return iter(self.loaded())

    def __len__(self) -> int:
        return len(self.loaded())


NETWORKS = Names("nn.networks", "NETWORKS")
LOSSES = Names("nn.losses", "LOSSES")
OPTIMIZERS = Names("nn.optimization", "OPTIMIZERS")
SCHEDULES = Names("nn.optimization", "SCHEDULES")


def check_network_options(name: str, options: Mapping[str, Any], where: str) -> None:
    """Raise FieldError for an option that the network called `name` does not take, or not with this value."""
    if options or not NETWORKS.known_unloaded(name):  # no network of the package has an option without a default
        from autoseg.nn.networks import GIVEN

        check_options(options, NETWORKS.loaded()[name], GIVEN, name=name, where=where)


def check_loss_options(name: str, options: Mapping[str, Any], where: str) -> None:
    """Raise FieldError for an option that the loss called `name` does not take, or not with this value."""
    if options or not LOSSES.known_unloaded(name):  # no loss of the package has an option without a default
        from autoseg.nn.losses import GIVEN

        check_options(options, LOSSES.loaded()[name], GIVEN, name=name, where=where)


def loss_traits(name: str) -> Traits:
    """What a plan must know of the loss called `name`."""
    if LOSSES.known_unloaded(name) and (traits := _traits_in_source(LOSSES.module, LOSSES.table, name)) is not None:
        return traits
    from autoseg.nn.losses import traits_of

    return traits_of(name)


def all_loss_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of the loss called `name`, with its defaults for those that are not set; unchanged if it is unknown."""
    if LOSSES.known_unloaded(name) and (defaults := _defaults_in_source(LOSSES.module, LOSSES.table, name)) is not None:
        return defaults | dict(options)
    from autoseg.nn.losses import GIVEN

    losses = LOSSES.loaded()
    return with_defaults(options, losses[name], GIVEN) if name in losses else dict(options)


@functools.cache
def _source(module: str) -> tuple[ast.stmt, ...]:
    """The statements of a module, read without running it; none where its source is not there."""
    path = PACKAGE.joinpath(*module.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    try:
        return tuple(ast.parse(file.read_bytes()).body)
    except (OSError, SyntaxError):
        return ()


@functools.cache
def _in_source(module: str, table: str) -> dict[str, ast.expr]:
    """Key -> value of a dict that a module defines literally, as they are written."""
    for node in _source(module):
        if isinstance(node, ast.AnnAssign) and isinstance(node.value, ast.Dict) and ast.unparse(node.target) == table:
            pairs = zip(node.value.keys, node.value.values, strict=True)
            return {key.value: value for key, value in pairs if isinstance(key, ast.Constant)}  # type: ignore[misc]
    return {}


def _function_in_source(module: str, table: str, name: str) -> ast.FunctionDef | None:
    """The function that a table names; None where its module does not define it."""
    called = ast.unparse(_in_source(module, table)[name])
    return next((node for node in _source(module) if isinstance(node, ast.FunctionDef) and node.name == called), None)


def _defaults_in_source(module: str, table: str, name: str) -> dict[str, Any] | None:
    """Keywords with a literal default of the function that a table names; None where not all of them have one."""
    if (function := _function_in_source(module, table, name)) is None:
        return None
    pairs = zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True)
    try:
        return {one.arg: ast.literal_eval(default) for one, default in pairs if default is not None}
    except ValueError:
        return None


def _traits_in_source(module: str, table: str, name: str) -> Traits | None:
    """The traits that `@with_traits(Traits(...))` gives to a function; None where they are not written like this."""
    if (function := _function_in_source(module, table, name)) is None:
        return None
    if not function.decorator_list:
        return Traits()
    try:
        match function.decorator_list:
            case [
                ast.Call(
                    func=ast.Name(id="with_traits"),
                    args=[ast.Call(func=ast.Name(id="Traits"), args=[], keywords=given)],
                )
            ]:
                return Traits(**{str(one.arg): ast.literal_eval(one.value) for one in given})
    except (ValueError, TypeError):
        pass
    return None
