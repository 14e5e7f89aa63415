"""Records to JSON and back: nothing is lost, and what does not fit is refused with its exact place."""

import json
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autoseg.augmentation.presets import AUGMENTATIONS
from autoseg.errors import StateError, UsageError
from autoseg.imaging.labels import LabelSet
from autoseg.planning.plan import Configuration, NetworkSpec, Training
from autoseg.records import OtherVersion, _dumps, from_plain, load, override, save, to_plain
from autoseg.rules import exactly


@dataclass(frozen=True)
class Inner:
    size: tuple[int, int]
    scheme: Literal["ct", "zscore", 3]
    weight: float = 1.0


@dataclass(frozen=True)
class Outer:
    name: str
    flag: bool
    count: int | None
    ratio: float | None
    items: tuple[Inner, ...]
    by_number: dict[int, str]
    by_name: dict[str, Inner]
    free: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Checked:
    """A record with a rule of its own."""

    low: int
    high: int

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise UsageError(f"low {self.low} is above high {self.high}", remedy="swap them")


@dataclass(frozen=True)
class Holder:
    ranges: tuple[Checked, ...]


INNER = Inner(size=(3, 4), scheme="ct", weight=0.5)
OUTER = Outer(
    name='Äpfel "und" \\ \n Birnen',
    flag=True,
    count=None,
    ratio=2.0,
    items=(INNER, replace(INNER, scheme=3)),
    by_number={7: "seven", -1: "minus one"},
    by_name={"a": INNER},
    free={"x": [1, 2.5, None, {"y": True}]},
)
PLAIN_OUTER = {
    "name": OUTER.name, "flag": True, "count": None, "ratio": 2.0,
    "items": [{"size": [3, 4], "scheme": "ct", "weight": 0.5}, {"size": [3, 4], "scheme": 3, "weight": 0.5}],
    "by_number": {"7": "seven", "-1": "minus one"},
    "by_name": {"a": {"size": [3, 4], "scheme": "ct", "weight": 0.5}},
    "free": {"x": [1, 2.5, None, {"y": True}]},
}  # fmt: skip

relaxed = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])

inners = st.builds(
    Inner,
    size=st.tuples(st.integers(), st.integers()),
    scheme=st.sampled_from(["ct", "zscore", 3]),
    weight=st.floats(allow_nan=False, allow_infinity=False),
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda values: st.lists(values, max_size=4) | st.dictionaries(st.text(), values, max_size=4),
    max_leaves=8,
)
outers = st.builds(
    Outer,
    name=st.text(),
    flag=st.booleans(),
    count=st.none() | st.integers(),
    ratio=st.none() | st.floats(allow_nan=False, allow_infinity=False),
    items=st.lists(inners, max_size=3).map(tuple),
    by_number=st.dictionaries(st.integers(), st.text(), max_size=3),
    by_name=st.dictionaries(st.text(), inners, max_size=3),
    free=st.dictionaries(st.text(), json_values, max_size=3),
)


# Round trips


def test_plain_form_is_as_written_by_hand():
    assert to_plain(OUTER) == PLAIN_OUTER
    assert from_plain(Outer, PLAIN_OUTER) == OUTER


@relaxed
@given(outers)
def test_through_json_and_back_nothing_changes(record):
    text = _dumps(to_plain(record))
    back = from_plain(Outer, json.loads(text))
    assert back == record
    assert [type(item) for item in back.items] == [Inner] * len(record.items)
    assert all(type(key) is int for key in back.by_number)


@relaxed
@given(json_values)
def test_layout_on_the_page_changes_no_value(value):
    text = _dumps(value)
    assert json.loads(text) == value


def test_short_lists_stay_on_one_line_and_long_ones_do_not(tmp_path):
    save(tmp_path / "a.json", replace(OUTER, by_number=dict.fromkeys(range(20), "x" * 9)))
    lines = (tmp_path / "a.json").read_text(encoding="utf-8").splitlines()
    assert ' "count": null,' in lines
    assert ' "by_name": {"a": {"size": [3, 4], "scheme": "ct", "weight": 0.5}},' in lines
    assert '  "13": "xxxxxxxxx",' in lines
    assert max(map(len, lines)) < 120


def test_saved_record_loads(tmp_path):
    save(tmp_path / "deep" / "a.json", OUTER)
    assert load(Outer, tmp_path / "deep" / "a.json") == OUTER
    assert "Äpfel" in (tmp_path / "deep" / "a.json").read_text(encoding="utf-8"), "a person reads this"


def test_file_name_that_is_not_utf8_survives(tmp_path):
    name = b"caf\xe9.nii".decode("utf-8", "surrogateescape")  # how Python hands over such a name
    save(tmp_path / "a.json", replace(OUTER, name=name))
    assert load(Outer, tmp_path / "a.json").name == name


def test_every_part_of_a_plan_survives():
    network = NetworkSpec(
        "fcn", (8, 16), ((1, 1, 1), (1, 2, 2)), ((3, 3, 3), (1, 3, 3)), (2, 2), (2,), {"scored_stages": 2}
    )
    configuration = Configuration(
        data="x", spacing=(1.0, 0.5, 0.5), median_shape=(10.0, 20.5, 20.0), patch_size=(8, 16, 16), batch_size=2,
        batch_dice=True, network=network, receptive_field=(9, 11, 11), elements=10**12,
    )  # fmt: skip
    labels = LabelSet({"b": 4, "a": 1}, ignore=9, aliases={255: 4})
    for record in (configuration, Training(class_weights=(0.5, 1.0)), labels, *AUGMENTATIONS.values()):
        back = from_plain(type(record), json.loads(_dumps(to_plain(record))))
        assert back == record
        assert type(back) is type(record)


def test_whole_number_is_accepted_where_a_float_is_expected():
    inner = from_plain(Inner, {"size": [1, 2], "scheme": "ct", "weight": 2})
    assert inner.weight == 2.0
    assert type(inner.weight) is float


# What does not fit


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["name"], 3, "plan.name: expected a value of type str, found 3"),
        (["flag"], 1, "plan.flag: expected a value of type bool, found 1"),
        (["count"], 1.0, "plan.count: expected a value of type int, found 1.0"),
        (["count"], True, "plan.count: expected a value of type int, found True"),
        (["ratio"], "2", "plan.ratio: expected a value of type float, found '2'"),
        (["ratio"], True, "plan.ratio: expected a value of type float, found True"),
        (["ratio"], math.inf, "plan.ratio: expected a finite number, found inf"),
        (["ratio"], 10**400, "plan.ratio: expected a finite number, found 1000"),
        (["items"], {}, "plan.items: expected a list, found {}"),
        (["items", 1, "size"], [1, 2, 3], "plan.items[1].size: expected a list of 2 values, found [1, 2, 3]"),
        (["items", 1, "size", 0], None, "plan.items[1].size[0]: expected a value of type int, found None"),
        (["items", 0, "scheme"], "mri", "plan.items[0].scheme: expected one of 'ct', 'zscore', 3, found 'mri'"),
        (["items", 0, "scheme"], 3.0, "plan.items[0].scheme: expected one of 'ct', 'zscore', 3, found 3.0"),
        (["items", 0, "scheme"], [], "plan.items[0].scheme: expected one of 'ct', 'zscore', 3, found []"),
        (["items", 0], [1], "plan.items[0]: expected an object (Inner), found [1]"),
        (["items", 0, "siez"], 1, "plan.items[0]: unknown key 'siez'"),
        (["by_name", "a", "weight"], None, "plan.by_name.a.weight: expected a value of type float, found None"),
        (["by_name"], [], "plan.by_name: expected an object, found []"),
        (["by_number", "seven"], "x", "plan.by_number: expected keys of type int, found 'seven'"),
        (["by_number", "07"], "x", "plan.by_number: expected keys of type int, found '07'"),
        (["by_number", "7"], 7, "plan.by_number.7: expected a value of type str, found 7"),
        (["free", "x"], [math.nan], "plan.free.x: expected plain data with finite numbers, found [nan]"),
    ],
)
def test_error_names_the_exact_place(path, value, message):
    plain = json.loads(json.dumps(PLAIN_OUTER))
    node = plain
    for step in path[:-1]:
        node = node[step]
    node[path[-1]] = value
    with pytest.raises(StateError) as caught:
        from_plain(Outer, plain, "plan")
    assert caught.value.what.startswith(message)


def test_missing_key_is_named():
    with pytest.raises(StateError, match=r"^record: missing key 'scheme'"):
        from_plain(Inner, {"size": [1, 2], "weight": 1})


def test_key_with_a_default_may_be_absent():
    assert from_plain(Inner, {"size": [1, 2], "scheme": "ct"}) == Inner(size=(1, 2), scheme="ct", weight=1.0)


def test_unknown_key_is_answered_with_those_that_exist():
    with pytest.raises(StateError) as caught:
        from_plain(Inner, {"size": [1, 2], "scheme": "ct", "weight": 1, "wieght": 2})
    assert caught.value.remedy == "Inner has: size, scheme, weight"


def test_long_values_are_cut_in_messages():
    with pytest.raises(StateError) as caught:
        from_plain(int, "x" * 5000)
    assert len(caught.value.what) < 150


def test_rule_of_a_record_is_reported_with_its_place():
    with pytest.raises(StateError) as caught:
        from_plain(Holder, {"ranges": [{"low": 1, "high": 2}, {"low": 3, "high": 2}]}, "plan")
    assert caught.value.what == "plan.ranges[1]: low 3 is above high 2"
    assert caught.value.remedy == "swap them"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, [math.nan], {"a": math.inf}])
def test_non_finite_numbers_are_never_written(value):
    with pytest.raises(ValueError, match="cannot hold the value"):
        to_plain(value)


@pytest.mark.parametrize("value", [{1, 2}, b"x", object(), Path("x"), Inner])
def test_what_json_cannot_say_is_never_written(value):
    with pytest.raises(TypeError, match="cannot hold a"):
        to_plain({"a": value})


# Files


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not valid JSON: Expecting value at line 1"),
        (b'{"size": [1, 2],\n "scheme" "ct"}', "is not valid JSON: Expecting ':' delimiter at line 2"),
        (b'{"size": [1, 2], "scheme": "ct", "weight": 1, "weight": 2}', "the key 'weight' occurs twice"),
        (b"\xff\xfe{}", "cannot be read as text"),
        (b"9" * 6000, "is not valid JSON"),
        (b"[" * 200000, "is not valid JSON"),
        (b"[]", "a.json: expected an object (Inner), found []"),
        (b'{"size": [1, 2], "scheme": "ct", "weight": NaN}', "a.json.weight: expected a finite number, found nan"),
        (b'{"size": [1, 2], "scheme": "ct", "weight": 1e999}', "a.json.weight: expected a finite number, found inf"),
    ],
)
def test_damaged_file_is_refused_and_named(tmp_path, content, message):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(StateError) as caught:
        load(Inner, path)
    assert message in caught.value.what
    assert "a.json" in caught.value.what


def test_missing_file_is_answered_with_what_makes_it(tmp_path):
    with pytest.raises(StateError, match="does not exist") as caught:
        load(Inner, tmp_path / "a.json", remedy="run autoseg plan")
    assert caught.value.remedy == "run autoseg plan"
    with pytest.raises(StateError, match="cannot be read"):
        load(Inner, tmp_path)  # a folder


@dataclass(frozen=True)
class Versioned:
    version: Annotated[int, exactly(2, "2, the version of these")]
    new: int = 0

    REMEDY_FOR_OTHER_VERSIONS: ClassVar[str] = "make it again"


def test_another_version_is_refused_before_its_keys(tmp_path):
    path = tmp_path / "a.json"
    for version, shown in (("1", "1"), ("3", "3"), ("2.0", "2.0"), ("true", "True")):
        path.write_text(f'{{"version": {version}, "old": 5}}')
        with pytest.raises(OtherVersion) as caught:
            load(Versioned, path)
        assert caught.value.what.lower() == (f"{path} is of version {shown}; expected 2, the version of these".lower())
        assert caught.value.remedy == "make it again"
    path.write_text('{"version": 2, "old": 5}')
    with pytest.raises(StateError, match="unknown key 'old'") as caught:
        load(Versioned, path)
    assert not isinstance(caught.value, OtherVersion)
    path.write_text('{"new": 5}')
    with pytest.raises(StateError, match="missing key 'version'"):
        load(Versioned, path)
    path.write_text("3")
    with pytest.raises(StateError, match="expected an object"):
        load(Versioned, path)
    path.write_text('{"version": 2, "new": 5}')
    assert load(Versioned, path) == Versioned(2, 5)


# Settings from the command line


@pytest.mark.parametrize(
    ("setting", "read"),
    [
        ("name=pears", lambda record: record.name == "pears"),
        ("name=a=b", lambda record: record.name == "a=b"),
        ("name=", lambda record: record.name == ""),
        ("flag=false", lambda record: record.flag is False),
        ("count=3", lambda record: record.count == 3),
        ("ratio=null", lambda record: record.ratio is None),
        ("ratio=1e-3", lambda record: record.ratio == 0.001),
        ("by_name.a.size=[5,6]", lambda record: record.by_name["a"].size == (5, 6)),
        ("by_name.a.scheme=zscore", lambda record: record.by_name["a"].scheme == "zscore"),
        ("by_number.7=eight", lambda record: record.by_number[7] == "eight"),
        ("free.new=[1]", lambda record: record.free.get("new") == [1]),
    ],
)
def test_setting_changes_one_value(setting, read):
    changed = override(OUTER, [setting])
    assert read(changed)
    assert not read(OUTER)
    key = setting.split(".")[0].split("=")[0]
    assert replace(changed, **{key: getattr(OUTER, key)}) == OUTER


def test_later_setting_wins():
    assert override(OUTER, ["count=3", "flag=false", "count=4"]) == replace(OUTER, count=4, flag=False)
    assert override(OUTER, []) == OUTER


@pytest.mark.parametrize(
    ("setting", "what", "remedy"),
    [
        ("count", "--set 'count' has no '='", "training.epochs=50"),
        ("cuont=3", "there is no 'cuont'", "name, flag, count, ratio, items, by_number, by_name, free"),
        ("by_name.a.wieght=3", "there is no 'by_name.a.wieght'", "size, scheme, weight"),
        ("by_name.b.weight=3", "there is no 'by_name.b'", "a"),
        ("by_number.8=nine", "there is no 'by_number.8'", "7, -1"),
        ("free.x.new=3", "there is no 'free.x.new'", "no keys"),
        ("name.x=3", "there is no 'name.x'", "no keys"),
        ("=3", "there is no ''", "name, flag"),
        ("count=many", "plan.count: expected a value of type int, found 'many'", ""),
        ("by_name.a.scheme=mri", "plan.by_name.a.scheme: expected one of", ""),
        ("ratio=NaN", "plan.ratio: expected a finite number", ""),
    ],
)
def test_setting_that_does_not_fit_is_a_mistake_of_usage(setting, what, remedy):
    with pytest.raises(UsageError) as caught:
        override(OUTER, [setting])
    assert what in caught.value.what
    assert remedy in caught.value.remedy


def test_setting_that_breaks_a_rule_is_a_mistake_of_usage():
    with pytest.raises(UsageError, match="low 5 is above high 2"):
        override(Checked(1, 2), ["low=5"])


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("momentum=1", "less than 1"),
        ("component_weight=3", "0 to 2"),
        ("dropout=1", "less than 1"),
        ("patience=-1", "0 or more"),
        ("epochs=0", "1 or more"),
        ("steps=0", "1 or more"),
        ("iterations_per_epoch=0", "1 or more"),
        ("time_budget_seconds=0", "more than 0"),
        ("learning_rate=0", "more than 0"),
        ("weight_average=1", "less than 1"),
        ("gradient_clip=0", "more than 0"),
    ],
)
def test_numbers_of_a_recipe_that_make_no_sense_are_refused(setting, expected):
    with pytest.raises(UsageError, match=expected):
        override(Training(), [setting], "training")
