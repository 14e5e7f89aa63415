"""Options are the keywords of a function: which there are, what they may be, what they are by default."""

from typing import Annotated, Any, Literal

import pytest

from autoseg.planning.options import REQUIRED, check_options, options_of, with_defaults
from autoseg.planning.tables import all_loss_options
from autoseg.rules import FieldError, between

GIVEN = ("heads", "weights")


def sharp(*, heads: int, weights: object, power: Annotated[float, between(1, 4)] = 2.0, anything=None, **rest: Any):
    """A loss with a ruled option and one without any annotation."""


def needy(*, heads: int, mode: Literal["a", "b"]):
    """One whose option has no default."""


class Wide:
    """A network, whose keywords are those of its `__init__`."""

    def __init__(self, *, heads: int, width: Annotated[int, between(1, 9)] = 3, rates: tuple[int, ...] = (1, 2)):
        pass


def refusal(function, options: dict) -> str:
    with pytest.raises(FieldError) as caught:
        check_options(options, function, GIVEN, name="it", where="options")
    return caught.value.what


def test_options_are_the_keywords_that_are_not_given():
    assert list(options_of(sharp, GIVEN)) == ["power", "anything"]
    assert options_of(needy, GIVEN)["mode"].default is REQUIRED
    assert list(options_of(Wide, GIVEN)) == ["width", "rates"]


@pytest.mark.parametrize(
    ("function", "options"),
    [
        (sharp, {}), (sharp, {"power": 4}), (sharp, {"anything": {"a": [1, None]}}), (needy, {"mode": "b"}),
        (Wide, {"width": 9, "rates": [4]}),
    ],
)  # fmt: skip
def test_options_that_fit(function, options):
    check_options(options, function, GIVEN, name="it", where="options")


@pytest.mark.parametrize(
    ("function", "options", "message"),
    [
        (sharp, {"power": 5}, "options.power: expected 1 to 4, found 5"),
        (sharp, {"power": "2"}, "options.power: expected a value of type float, found '2'"),
        (sharp, {"pwoer": 2}, "options.pwoer: expected one of 'power', 'anything', which it takes, found 'pwoer'"),
        (sharp, {"heads": 2}, "options.heads: expected one of 'power', 'anything', which it takes, found 'heads'"),
        (sharp, {"rest": 2}, "options.rest: expected one of 'power', 'anything', which it takes, found 'rest'"),
        (needy, {}, "options: expected 'mode', which it needs and has no default for"),
        (needy, {"mode": "c"}, "options.mode: expected one of 'a', 'b', found 'c'"),
        (Wide, {"width": 1.5}, "options.width: expected a value of type int, found 1.5"),
        (Wide, {"rates": [1, "x"]}, "options.rates[1]: expected a value of type int, found 'x'"),
        (lambda **rest: None, {"x": 1}, "options.x: expected no options, which it takes, found 'x'"),
    ],
)
def test_options_that_do_not_fit_are_named(function, options, message):
    assert refusal(function, options) == message


def test_options_with_their_defaults():
    assert with_defaults({"power": 3.0}, sharp, GIVEN) == {"power": 3.0, "anything": None}
    assert with_defaults({}, needy, GIVEN) == {}
    assert all_loss_options("dice_focal", {}) == {"focal_gamma": 2.0, "boundary_weight": 0.0}
    assert all_loss_options("gone", {"x": 1}) == {"x": 1}  # of a loss that is not registered
