"""Plans for networks side by side, made once, kept with their edits, made anew for other data."""

import json
from dataclasses import replace

import pytest

from autoseg.commands import inputs
from autoseg.commands.inputs import load_records, open_plan
from autoseg.datasets.dataset import Case, Dataset
from autoseg.datasets.splits import Split, Splits
from autoseg.errors import StateError, UsageError
from autoseg.planning.plan import Decision, Plan
from autoseg.records import load, save
from autoseg.workspace import Workspace
from plans import plan_of, with_cascade
from synthetic_fingerprints import label_set, uniform

LABELS = label_set(3)
FOUND = uniform((2.0, 1.0, 1.0), (12, 20, 24), 5, LABELS)


def planned_for(plan: Plan, network: str) -> Plan:
    """A plan whose configurations have another network."""
    configurations = {
        name: replace(c, network=replace(c.network, name=network)) for name, c in plan.configurations.items()
    }
    return replace(plan, configurations=configurations, decisions=(Decision("3.4 network", network, "asked for"),))


@pytest.fixture
def workspace(tmp_path) -> Workspace:
    """A planned workspace with a cascade."""
    plan = plan_of(LABELS)
    workspace = Workspace(tmp_path / "w")
    save(workspace.plan, with_cascade(plan))
    save(workspace.fingerprint, FOUND)
    return workspace


@pytest.fixture
def made(monkeypatch) -> list[str]:
    """Networks that plans were made for, at once, in place of the planner."""
    networks: list[str] = []

    def with_network(plan, fingerprint, network):
        assert fingerprint == FOUND
        networks.append(network)
        return planned_for(plan, network)

    monkeypatch.setattr(inputs, "with_network", with_network)
    return networks


def test_folds_that_name_unknown_cases_are_refused(workspace):
    cases = tuple(Case(name, name, (f"/data/{name}.nii.gz",), None) for name in "ab")
    save(workspace.dataset, Dataset(1, "tiny", "/data", "nnunet", ("MR",), LABELS, cases, (), True, None, ()))
    save(workspace.splits, Splits(1, 0, (Split(0, ("a",), ("b",)),), (), ()))
    assert load_records(workspace)[2].splits[0].validation == ("b",)
    save(workspace.splits, Splits(1, 0, (Split(0, ("a",), ("b",)), Split(1, ("b",), ("c",))), (), ()))
    with pytest.raises(
        StateError, match=r"splits.json.splits\[1\].validation: expected cases of dataset.json, found 'c'"
    ):
        load_records(workspace)


def test_the_planned_network_has_the_plan_itself(workspace, made, said):
    plan = load(Plan, workspace.plan)
    assert open_plan(workspace) == plan
    assert open_plan(workspace, "unet") == plan
    assert made == said == []
    assert not workspace.plan_for("unet").exists()


def test_another_network_has_a_plan_of_its_own_made_once(workspace, made, said):
    plan = open_plan(workspace, "swin_unet")
    assert {c.network.name for c in plan.configurations.values()} == {"swin_unet"}
    assert load(Plan, workspace.plan_for("swin_unet")) == plan
    assert len(said) == 1
    assert str(workspace.plan_for("swin_unet")) in said[0]
    assert any(line.startswith(plan.recommended) and "swin_unet" in line for line in said[0].splitlines())
    assert len(said[0].splitlines()) <= 7  # at a glance: its decisions are in the file
    assert "3.4 network" not in said[0]
    assert "1.1 spacing" not in said[0]
    edited = replace(plan, training=replace(plan.training, learning_rate=0.123))
    save(workspace.plan_for("swin_unet"), edited)
    assert open_plan(workspace, "swin_unet") == edited
    assert made == ["swin_unet"]


@pytest.mark.parametrize("field", ["fingerprint", "orientation", "normalization", "resampling", "spacing", "names"])
def test_a_plan_that_sees_other_data_is_made_anew(workspace, made, field):
    open_plan(workspace, "swin_unet")
    plan = load(Plan, workspace.plan)
    full = plan.configurations["3d_fullres"]
    changes = {
        "fingerprint": {"fingerprint": "another"},
        "orientation": {"orientation": "as_stored"},
        "normalization": {"normalization": (replace(plan.normalization[0], mean=-7.0),)},
        "resampling": {"resampling": replace(plan.resampling, image_order=1)},
        "spacing": {"configurations": plan.configurations | {"3d_fullres": replace(full, spacing=(2.0, 1.0, 0.9))}},
        "names": {"configurations": {"3d_fullres": full}},
    }[field]
    save(workspace.plan, replace(plan, **changes))
    again = open_plan(workspace, "swin_unet")
    assert made == ["swin_unet"] * 2
    assert load(Plan, workspace.plan_for("swin_unet")) == again == planned_for(replace(plan, **changes), "swin_unet")


def test_a_plan_of_another_version_is_made_again(workspace, made):
    """And what stands there is kept aside; the plan of the workspace itself is asked for first."""
    plan = open_plan(workspace, "swin_unet")
    path = workspace.plan_for("swin_unet")
    path.write_text(path.read_text().replace('"version": 1', '"version": 4', 1))
    assert open_plan(workspace, "swin_unet") == plan
    assert made == ["swin_unet"] * 2
    assert [json.loads(kept.read_text())["version"] for kept in workspace.root.glob("*.before-*.json")] == [4]
    workspace.plan.write_text(workspace.plan.read_text().replace('"version": 1', '"version": 4', 1))
    with pytest.raises(StateError, match="is of version 4; expected 1"):
        open_plan(workspace)


def test_what_leaves_the_data_alone_leaves_the_other_plan_alone(workspace, made):
    open_plan(workspace, "swin_unet")
    plan = load(Plan, workspace.plan)
    save(workspace.plan, replace(plan, training=replace(plan.training, epochs=3), decisions=()))
    open_plan(workspace, "swin_unet")
    assert made == ["swin_unet"]


def test_an_unknown_network_is_refused_by_name(workspace):
    with pytest.raises(UsageError, match="'paintbrush'") as caught:
        open_plan(workspace, "paintbrush")
    assert "unet" in caught.value.remedy
    assert not workspace.plan_for("paintbrush").exists()


def test_without_a_plan_there_is_none_for_another_network(tmp_path):
    with pytest.raises(StateError, match=r"plan\.json does not exist"):
        open_plan(Workspace(tmp_path), "swin_unet")
