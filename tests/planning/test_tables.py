"""Names in a plan are checked as strictly without torch as with it."""

import subprocess
import sys
from pathlib import Path

import pytest

from autoseg.nn.losses import GIVEN as GIVEN_TO_LOSSES
from autoseg.nn.losses import traits_of
from autoseg.nn.networks import GIVEN as GIVEN_TO_NETWORKS
from autoseg.planning.options import REQUIRED, options_of
from autoseg.planning.tables import (
    LOSSES,
    NETWORKS,
    OPTIMIZERS,
    SCHEDULES,
    _defaults_in_source,
    _in_source,
    _traits_in_source,
    all_loss_options,
    loss_traits,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "dense.plan.json"
TABLES = pytest.mark.parametrize("names", [NETWORKS, LOSSES, OPTIMIZERS, SCHEDULES], ids=lambda names: names.table)


def python(code: str) -> list[str]:
    """What another process prints: this one has loaded torch."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@TABLES
def test_the_source_holds_the_keys_of_the_table(names):
    assert list(_in_source(names.module, names.table)) == list(names.loaded()) != []


@pytest.mark.parametrize(("names", "given"), [(NETWORKS, GIVEN_TO_NETWORKS), (LOSSES, GIVEN_TO_LOSSES)])
def test_no_entry_of_the_package_needs_an_option(names, given):
    """Otherwise a plan without options could not be checked without torch."""
    for function in names.loaded().values():
        assert REQUIRED not in [option.default for option in options_of(function, given).values()]


@pytest.mark.parametrize("name", LOSSES.loaded())
def test_the_source_holds_the_defaults_of_the_losses(name):
    defaults = all_loss_options(name, {})
    assert _defaults_in_source("nn.losses", "LOSSES", name) == defaults
    assert set(defaults) == set(options_of(LOSSES.loaded()[name], GIVEN_TO_LOSSES))


@pytest.mark.parametrize("name", LOSSES.loaded())
def test_the_source_holds_the_traits_of_the_losses(name):
    assert _traits_in_source("nn.losses", "LOSSES", name) == traits_of(name) == loss_traits(name)


@pytest.mark.thorough
def test_a_plan_is_read_without_torch():
    code = f"""
import sys, pathlib
from autoseg.planning.plan import Plan
from autoseg.records import load
plan = load(Plan, pathlib.Path({str(GOLDEN)!r}))
print(plan.recommended, "torch" in sys.modules)
"""
    assert python(code) == ["3d_fullres False"]


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("training.loss", "dice", "one of 'dice_ce'"), ("training.optimizer", "SGD", "one of 'sgd', 'adamw'"),
        ("training.schedule", "", "one of 'poly'"),
        ("configurations.2d.network.name", "u_net", "'unet', 'residual_unet'"),
        ("training.loss_options.gamma", "1", "one of 'boundary_weight', which dice_ce takes"),
        ("training.loss_options.boundary_weight", "-1", "0 or more"),
    ],
)  # fmt: skip
def test_what_no_table_holds_is_refused_in_a_fresh_process(key, value, expected):
    code = f"""
import pathlib
from autoseg.errors import UsageError
from autoseg.planning.plan import Plan
from autoseg.records import load, override
plan = load(Plan, pathlib.Path({str(GOLDEN)!r}))
try:
    override(plan, [{f"{key}={value}"!r}])
except UsageError as error:
    print(error.what.replace(chr(10), " "))
"""
    (line,) = python(code)
    assert expected in line
    assert f"plan.{key.rpartition('.')[0]}" in line


def test_what_was_registered_is_known_and_what_was_removed_is_not(monkeypatch):
    monkeypatch.setitem(LOSSES.loaded(), "my_loss", lambda **given: None)
    monkeypatch.delitem(LOSSES.loaded(), "tversky")
    assert "my_loss" in LOSSES
    assert "tversky" not in LOSSES
    assert "my_loss" in list(LOSSES)
