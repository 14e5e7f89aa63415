"""Rules of values: names of a table that grows. Ranges are tested with the records that use them (test_plan_rules)."""

from dataclasses import dataclass
from typing import Annotated

import pytest

from autoseg.errors import StateError
from autoseg.records import from_plain
from autoseg.rules import REGISTER, check_fields, one_of

TABLE = {"first": 1}


@dataclass(frozen=True)
class Named:
    name: Annotated[str, one_of(TABLE)]
    late: Annotated[str, one_of(lambda: TABLE)]

    def __post_init__(self) -> None:
        check_fields(self)


def test_a_name_is_one_of_those_that_the_table_has_when_it_is_checked(monkeypatch):
    for field in ("name", "late"):
        plain = {"name": "first", "late": "first"} | {field: "second"}
        with pytest.raises(StateError) as caught:
            from_plain(Named, plain, "plan")
        assert caught.value.what == f"plan.{field}: expected one of 'first', found 'second'"
        assert caught.value.remedy == REGISTER
        with monkeypatch.context() as patch:
            patch.setitem(TABLE, "second", 2)
            assert getattr(from_plain(Named, plain, "plan"), field) == "second"
            with pytest.raises(StateError, match="expected one of 'first', 'second', found 'third'"):
                from_plain(Named, plain | {field: "third"}, "plan")


def test_a_record_made_by_hand_is_answered_alike():
    with pytest.raises(StateError) as caught:
        Named("second", "first")
    assert str(caught.value) == f"name: expected one of 'first', found 'second'\n  -> {REGISTER}"
