"""All cases into the store: as `prepare` makes them, once, and again where something has changed."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import tiny
from autoseg.dataloading.store import CaseStore
from autoseg.datasets.dataset import Dataset, discover, load_case
from autoseg.errors import DataError, StateError
from autoseg.planning.plan import ChannelNormalization, Configuration, Plan, Resampling
from autoseg.preprocessing import preprocess as module
from autoseg.preprocessing.prepare import prepare
from autoseg.preprocessing.preprocess import preprocess
from autoseg.workspace import Workspace
from phantom import tiny_dataset
from plans import plan_of
from synthetic_fingerprints import label_set

LABELS = label_set(3)
RAW = ChannelNormalization("none")
LINEAR = Resampling(image_order=1, antialias_factor=1e9)


def at(plan: Plan, spacing: tuple[float, ...], name: str = "3d_fullres") -> Configuration:
    """A configuration of the plan, at another spacing."""
    return replace(plan.configurations[name], spacing=spacing)


@pytest.fixture
def dataset(tmp_path) -> Dataset:
    found, problems = discover(tiny_dataset(tmp_path / "data", cases=4, channels=2, orientations=("LPS", "PIR")))
    assert [p for p in problems if p.severity == "error"] == []
    return found


@pytest.fixture
def made(monkeypatch) -> list[str]:
    """Which cases were prepared, in order."""
    cases: list[str] = []
    real = module._store_case

    def store_case(job) -> None:
        cases.append(job[0].id)
        real(job)

    monkeypatch.setattr(module, "_store_case", store_case)
    return cases


def plan_for(dataset: Dataset, **changes) -> Plan:
    return plan_of(dataset.labels, dataset.channels, **changes)


ALL = [f"case_{i:02d}" for i in range(4)]


def test_what_is_stored_is_what_prepare_makes(dataset, tmp_path):
    """As prediction will call it, for cases in different orientations and an order of axes of the plan's own."""
    plan = plan_for(dataset, axis_order=(2, 0, 1))
    store = preprocess(dataset, plan, "3d_fullres", Workspace(tmp_path / "w"), workers=0)
    assert store.folder == tmp_path / "w" / "preprocessed" / "3d_fullres"
    assert list(store.ids()) == ALL
    for case in dataset.cases:
        loaded = load_case(case, plan.labels, orientation=plan.orientation, axis_order=plan.axis_order)
        expected = prepare(loaded.image, loaded.target, loaded.spacing, plan, plan.configurations["3d_fullres"])
        stored = store.open(case.id)
        np.testing.assert_allclose(stored.image, expected.image, atol=0.01)
        np.testing.assert_array_equal(stored.target, expected.target)
        info = stored.info
        assert info.placement == expected.placement
        assert info.placement.spacing == loaded.spacing == (1.0, 2.0, 1.0)
        assert info.placement.shape_before_crop == loaded.image.shape[1:]
        assert info.shape == expected.target.shape
        assert (info.num_labels, info.ignore_index) == (2, None)
        assert store.verify(case.id)


def test_processes_make_the_same(dataset, tmp_path):
    plan = plan_for(dataset)
    stores = [preprocess(dataset, plan, "3d_fullres", Workspace(tmp_path / f"w{n}"), workers=n) for n in (0, 2)]
    assert stores[0].ids() == stores[1].ids()
    for case in ALL:
        assert stores[0].info(case) == stores[1].info(case)  # with the hashes of the arrays


def test_what_is_there_is_left_alone(dataset, made, tmp_path):
    workspace, plan = Workspace(tmp_path / "w"), plan_for(dataset)
    store = preprocess(dataset, plan, "3d_fullres", workspace, workers=0)
    assert made == ALL
    before = {path.name: path.stat().st_mtime_ns for path in store.folder.glob("case*")}
    other_recipe = replace(plan, training=replace(plan.training, learning_rate=0.5), recommended="2d", decisions=())
    for again in (plan, other_recipe):
        preprocess(dataset, again, "3d_fullres", workspace, workers=0)
    assert made == ALL
    assert {path.name: path.stat().st_mtime_ns for path in store.folder.glob("case*")} == before


def test_only_what_is_missing_is_made(dataset, made, tmp_path):
    workspace, plan = Workspace(tmp_path / "w"), plan_for(dataset)
    store = preprocess(dataset, plan, "3d_fullres", workspace, workers=0)

    def made_now(of: Dataset = dataset, under: Plan = plan) -> list[str]:
        made.clear()
        preprocess(of, under, "3d_fullres", workspace, workers=0)
        assert all(store.verify(case.id) for case in of.cases)
        return list(made)

    store.discard("case_02")
    assert made_now() == ["case_02"]
    store.path("case_01", "image").write_bytes(b"half of a fi")
    assert made_now() == ["case_01"]
    for number, file in ((0, dataset.cases[0].images[1]), (3, dataset.cases[3].label)):
        os.utime(file, (1, 1))  # another file under the same name
        assert made_now() == [ALL[number]]
    assert made_now() == []
    raw = replace(plan, normalization=(RAW, RAW))
    assert made_now(under=raw) == ALL
    assert made_now(under=raw) == []
    assert made_now() == ALL  # and back
    for changes in ({"axis_order": (1, 0, 2)}, {"orientation": "as_stored"}, {"resampling": LINEAR}):
        assert made_now(under=replace(plan, **changes)) == ALL
    finer = replace(plan, configurations=plan.configurations | {"3d_fullres": at(plan, (1.0, 1.0, 1.0))})
    assert made_now(under=finer) == ALL


def test_a_run_that_was_killed_goes_on(dataset, made, tmp_path, monkeypatch):
    workspace, plan = Workspace(tmp_path / "w"), plan_for(dataset)
    real = CaseStore.commit

    def die_at_the_third(store, case_id, *rest):
        if case_id == "case_02":
            raise KeyboardInterrupt
        return real(store, case_id, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(CaseStore, "commit", die_at_the_third)
        with pytest.raises(KeyboardInterrupt):
            preprocess(dataset, plan, "3d_fullres", workspace, workers=0)
    made.clear()
    preprocess(dataset, plan, "3d_fullres", workspace, workers=0)
    assert made == ["case_02", "case_03"]


def test_a_case_that_left_the_dataset_is_discarded(dataset, made, tmp_path):
    workspace, plan = Workspace(tmp_path / "w"), plan_for(dataset)
    store = preprocess(dataset, plan, "3d_fullres", workspace, workers=0)
    made.clear()
    preprocess(replace(dataset, cases=dataset.cases[1:]), plan, "3d_fullres", workspace, workers=0)
    assert made == []
    assert list(store.ids()) == ALL[1:]
    assert not list(store.folder.glob("*case_00*"))
    assert "case_00" not in (store.folder / "manifest.sha256").read_text()


def test_two_configurations_share_one_copy(dataset, made, tmp_path):
    """Where 2d reads the copy of 3d_fullres, neither makes what the other has made."""
    workspace, plan = Workspace(tmp_path / "w"), plan_for(dataset)
    assert plan.configurations["2d"].data == "3d_fullres"
    for first, second in (("3d_fullres", "2d"), ("2d", "3d_fullres")):
        space = Workspace(workspace.root / first)
        made.clear()
        stores = [preprocess(dataset, plan, name, space, workers=0) for name in (first, second, first)]
        assert len({store.folder for store in stores}) == 1
        assert made == ALL
    own = replace(plan.configurations["2d"], data="2d", spacing=(1.0, 2.0))
    own_plan = replace(plan, configurations=plan.configurations | {"2d": own})
    made.clear()
    store = preprocess(dataset, own_plan, "2d", Workspace(workspace.root / "2d"), workers=0)
    assert made == ALL
    placement = store.info("case_00").placement
    assert placement.shape[0] == placement.shape_after_crop[0]
    assert placement.shape[2] == round(placement.shape_after_crop[2] / 2)


def test_a_shared_copy_must_suit_both(dataset, tmp_path):
    plan = plan_for(dataset)
    edited = replace(plan, configurations=plan.configurations | {"2d": at(plan, (0.5, 0.5), "2d")})
    with pytest.raises(StateError, match=r"2d reads the preprocessed copy of 3d_fullres") as caught:
        preprocess(dataset, edited, "2d", Workspace(tmp_path / "w"), workers=0)
    assert "configurations.2d.data=2d" in caught.value.remedy
    preprocess(dataset, edited, "3d_fullres", Workspace(tmp_path / "w"), workers=0)


def test_a_configuration_that_does_not_exist(dataset, tmp_path):
    with pytest.raises(StateError, match="no configuration '4d'"):
        preprocess(dataset, plan_for(dataset), "4d", Workspace(tmp_path / "w"), workers=0)


def test_a_source_file_that_is_gone_is_named(dataset, tmp_path):
    workspace, plan = Workspace(tmp_path / "w"), plan_for(dataset)
    Path(dataset.cases[1].images[0]).unlink()
    with pytest.raises(DataError, match=r"case_01_0000\.nii\.gz of case case_01"):
        preprocess(dataset, plan, "3d_fullres", workspace, workers=0)


def test_an_ignore_label_is_kept(tmp_path):
    found, _ = discover(tiny_dataset(tmp_path / "data", cases=2))
    labels = replace(found.labels, values={"organ_1": 1}, ignore=2)
    found = replace(found, labels=labels)
    plan = plan_for(found)
    store = preprocess(found, plan, "3d_fullres", Workspace(tmp_path / "w"), workers=0)
    assert store.info("case_00").ignore_index == 2
    loaded = load_case(found.cases[0], labels)
    assert store.info("case_00").class_voxels[2] == (loaded.target == 2).sum() > 0


# ---- what cannot be


@pytest.mark.parametrize("factor", [1e-3, 1e3])
def test_a_case_in_another_unit_is_named_by_its_file(tmp_path, factor):
    image = np.random.default_rng(0).normal(100, 10, (1, 12, 20, 24)).astype(np.float32)
    tiny.nifti(tmp_path / "images/i.nii", image[0], (2.0 * factor, factor, factor))
    tiny.nifti(tmp_path / "labels/i.nii", np.ones((12, 20, 24), np.uint8), (2.0 * factor, factor, factor))
    dataset, _ = discover(tmp_path)
    plan = replace(plan_of(), labels=dataset.labels)
    with pytest.raises(DataError, match=r"images/i\.nii: 12 x 20 x 24 voxels of"):
        preprocess(dataset, plan, "3d_fullres", Workspace(tmp_path / "w"), workers=0)


def test_copies_from_before_filters_could_be_chosen_stay_valid():
    """The digest of settings is that of then, whatever fields the plan gained; another filter is another copy."""
    plan = plan_of(label_set(3), ("MR",))
    before = "5a3124f92ef6aebf2f4d75fff18251f5653ba6810186ac22786c0b4bb5bab387"
    assert module._settings_hash(plan, plan.configurations["3d_fullres"]) == before
    other = replace(plan, resampling=replace(plan.resampling, filter="lanczos"))
    assert module._settings_hash(other, plan.configurations["3d_fullres"]) != before
