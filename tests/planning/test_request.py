"""What no plan can be made from is refused, and what was decided is printed in order and aligned."""

import math
from dataclasses import replace

import pytest

from autoseg.errors import StateError, UsageError
from autoseg.planning.planner import describe, make_plan
from plans import ONE, golden_pair, plan
from synthetic_fingerprints import label_set, uniform


@pytest.mark.parametrize(
    "options",
    [
        {"patch_size": (0, 8, 8)},
        {"patch_size": (8,)},
        {"spacing": (1, 1)},
        {"spacing": (1, 1, 0)},
        {"spacing": (1, 1, math.nan)},
        {"batch_size": 0},
        {"vram_gb": 0},
        {"vram_gb": -8},
    ],
)
def test_impossible_overrides_are_refused(options):
    labels = label_set(2)
    with pytest.raises(UsageError):
        plan(uniform(ONE, (50, 50, 50), 3, labels), labels, **options)


def test_a_fingerprint_of_other_labels_or_channels_is_refused():
    found = uniform(ONE, (50, 50, 50), 3, label_set(2))
    with pytest.raises(StateError, match="labels"):
        plan(found, label_set(3))
    with pytest.raises(StateError, match="channels"):
        make_plan(dataset="d", channels=("CT",), labels=label_set(2), fingerprint=found)
    with pytest.raises(StateError, match="no case"):
        plan(replace(found, cases=()), label_set(2))


def test_decisions_are_numbered_in_order_and_aligned():
    found, labels = golden_pair()["sparse"]
    made = plan(found, labels)
    numbers = [float(d.step.split()[0]) for d in made.decisions if not d.step.startswith("3.")]
    assert numbers == sorted(numbers)
    lines = describe(made, width=120).splitlines()
    assert max(map(len, lines)) <= 120
    column = lines[0].index(made.decisions[0].value)
    assert all(line[column - 2 : column].strip() == "" for line in lines)
    for decision in made.decisions:
        assert any(line.startswith(decision.step) for line in lines)
