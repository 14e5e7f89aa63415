"""A fold without autotuning: what it uses is the same on every machine."""

import pytest

from autoseg.errors import UsageError
from autoseg.models.versions import RuntimeSettings
from made_up_machine import Machine, choices_of, usual_machine


@pytest.fixture
def machine(monkeypatch) -> Machine:
    return usual_machine(monkeypatch)


def test_without_autotuning_nothing_that_is_timed_decides(machine):
    chosen, said = choices_of(machine, autotune=False, chain="auto")
    # bfloat16 would be twice as fast
    assert chosen == RuntimeSettings("float32", False, False, "worker", forward_seconds=20.0)
    assert said == "not autotuned: float32, augmentation by the worker chain"
    machine.stage["last"] = machine.rest["last"] = machine.stage["bfloat16"] = machine.rest["bfloat16"] = 0.01
    assert choices_of(machine, autotune=False, chain="auto")[0] == chosen
    assert "network bfloat16" not in machine.passes


def test_without_autotuning_what_the_plan_names_is_taken(machine):
    chosen, _ = choices_of(machine, autotune=False, chain="host", autocast="bfloat16")
    assert (chosen.dtype, chosen.chain) == ("bfloat16", "host")
    with pytest.raises(UsageError, match=r"training.chain=host does not support"):
        choices_of(machine, autotune=False, chain="host", augmentation="sparse")
