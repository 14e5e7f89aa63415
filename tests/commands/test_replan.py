"""Planning again: options are as they were typed, statistics of trained folds stay where they hardly differ."""

import json
from dataclasses import replace

import pytest

from autoseg.cli import _intake
from autoseg.commands.parser import build_parser
from autoseg.commands.plan import PlanOptions, _as_typed, plan_dataset
from autoseg.commands.replan import Replanning, with_kept_statistics
from autoseg.datasets.dataset import IntakeOptions, parse_options
from autoseg.errors import DataError, UsageError
from autoseg.planning.plan import Plan
from autoseg.records import load, save
from autoseg.workspace import Workspace, write_text
from phantom import tiny_dataset
from plans import plan
from synthetic_fingerprints import label_set, uniform

LABELS = label_set(3)
pytestmark = pytest.mark.usefixtures("on_screen")


@pytest.fixture
def made() -> Plan:
    found = plan(uniform((2.0, 1.0, 1.0), (12, 20, 24), 5, LABELS, channels=("CT",)), LABELS)
    (channel,) = found.normalization
    assert channel.scheme == "ct"
    return replace(found, normalization=(replace(channel, mean=100.0, std=50.0, p00_5=-100.0, p99_5=300.0),))


@pytest.fixture
def workspace(tmp_path, made) -> Workspace:
    """One with a fold that was begun under the plan."""
    found = Workspace(tmp_path)
    save(found.plan, made)
    write_text(found.fold("3d_fullres", "unet", 0) / "last.pt", "")
    return found


def measured(made: Plan, **changes) -> Plan:
    return replace(made, normalization=(replace(made.normalization[0], **changes),))


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({"mean": 100.9, "std": 49.1}, True),  # a fiftieth of 50 is 1
        ({"mean": 101.1}, False),
        ({"p99_5": 298.9}, False),
        ({"scheme": "zscore"}, False),
        ({"inside_mask": True}, False),
    ],
)
def test_statistics_of_trained_folds_are_kept_where_they_hardly_differ(workspace, made, changes, kept, said):
    today = measured(made, **changes)
    found = with_kept_statistics(today, workspace)
    assert found == (made if kept else today)
    assert bool(said) == kept


def test_without_trained_folds_what_is_measured_counts(workspace, made):
    (workspace.fold("3d_fullres", "unet", 0) / "last.pt").unlink()
    today = measured(made, mean=100.5)
    assert with_kept_statistics(today, workspace) == today


def test_records_of_trained_folds_are_kept_where_they_change(workspace, made):
    before = workspace.plan.read_bytes()
    replanning = Replanning(workspace)
    replanning.keep(workspace.plan)
    save(workspace.plan, made)
    assert replanning.kept() == []
    replanning.keep(workspace.plan)
    save(workspace.plan, measured(made, mean=0.0))
    (said,) = replanning.kept()
    (aside,) = workspace.root.glob("plan.before-*.json")
    assert str(aside) in said
    assert aside.read_bytes() == before
    assert load(Plan, aside) == made


def test_a_workspace_without_folds_keeps_nothing(tmp_path, made):
    workspace = Workspace(tmp_path)
    save(workspace.plan, made)
    Replanning(workspace).keep(workspace.plan)
    assert list(tmp_path.glob("plan.before-*")) == []


def test_a_dataset_is_planned_again_with_the_options_it_was_planned_with():
    intake = parse_options(
        channels="CT,MR", labels="liver=1,the tumour=2", regions="whole=1+2", ignore=255, patient_regex=r"^(sub-\\d+)"
    )
    options = PlanOptions(
        intake, rules="nnunet", preset="m", network="residual_unet", vram_gb=8.5, configurations=("2d", "3d_fullres"),
        skip_bad=True, settings=("training.seed=3", "training.class_weights=[1, 2]"), workers=3, preprocess=False,
    )  # fmt: skip
    typed = build_parser().parse_args(["plan", "DATASET", *_as_typed(options)])
    again = PlanOptions(
        _intake(typed), typed.rules, typed.preset, typed.network, typed.vram, typed.time_budget, typed.cpu_rate,
        configurations=tuple(typed.configurations.split(",")), skip_bad=typed.skip_bad, settings=tuple(typed.settings),
    )  # fmt: skip
    assert again == replace(options, workers=None, preprocess=True)  # which change no plan
    assert _as_typed(PlanOptions(IntakeOptions())) == ()


def test_the_dataset_json_of_a_dataset_is_never_overwritten(tmp_path):
    folder = tmp_path / "my data"
    text = '{"channel_names": {"0": "MR"}, "labels": {"background": 0, "a": 1}, "numTraining": 1}'
    write_text(folder / "dataset.json", text)
    (folder / "imagesTr").mkdir()
    for root in (folder, tmp_path / "another"):
        with pytest.raises(UsageError, match="dataset") as caught:
            plan_dataset(root, Workspace(folder))
        assert "-w OTHER_WORKSPACE" in str(caught.value.remedy)
    assert f"plan '{folder}'" in _refusal(folder)
    assert (folder / "dataset.json").read_text() == text
    assert sorted(path.name for path in folder.iterdir()) == ["dataset.json", "imagesTr"]


def _refusal(folder) -> str:
    with pytest.raises(UsageError) as caught:
        plan_dataset(folder, Workspace(folder))
    return str(caught.value.remedy)


def test_folds_that_cannot_be_used_are_not_left_out_with_skip_bad(tmp_path, capsys):
    dataset = tiny_dataset(tmp_path / "data", cases=3)
    ids = sorted(path.name.removesuffix(".nii.gz") for path in (dataset / "labelsTr").iterdir())
    (dataset / "splits_final.json").write_text(json.dumps([{"train": ids, "val": []}]))
    with pytest.raises(DataError, match=r"has 1 error \(listed above\)") as caught:
        plan_dataset(dataset, Workspace(tmp_path / "my space"))
    assert "--skip-bad" not in str(caught.value.remedy)
    assert "autoseg train -f full -w '" in capsys.readouterr().out
