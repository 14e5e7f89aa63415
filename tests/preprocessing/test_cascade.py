"""From one stage to the next: the previous stage's files on the cascade's grid, made once, and never out of date."""

import shlex
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from autoseg.dataloading.store import CaseStore
from autoseg.datasets.dataset import Dataset, IntakeOptions, discover
from autoseg.errors import StateError
from autoseg.imaging.labels import OUTSIDE
from autoseg.planning.plan import ChannelNormalization, Plan
from autoseg.preprocessing.cascade import open_previous, prepare_previous
from autoseg.preprocessing.prepare import prepare
from autoseg.preprocessing.preprocess import preprocess
from autoseg.workspace import Workspace
from phantom import tiny_dataset
from plans import plan_of, with_cascade
from synthetic_fingerprints import label_set

LABELS = label_set(3)


def cascade_of(labels=LABELS) -> Plan:
    return with_cascade(plan_of(labels, normalization=(ChannelNormalization("zscore"),)))


# ---- the grid


@pytest.mark.parametrize("wanted", [(2.0, 1.0, 1.0), (1.5, 1.5, 0.7), (6.0, 1.0, 1.0)])
def test_a_segmentation_comes_to_the_grid_as_a_target_does(wanted):
    """Except that it does not know where the body ends."""
    rng = np.random.default_rng(0)
    image = np.pad(rng.uniform(1, 2, (1, 8, 15, 13)), ((0, 0), (1, 0), (2, 3), (0, 4))).astype(np.float32)
    image[0, 1:4, 2:8, :6] = 0  # a notch in the body
    target = np.kron(rng.integers(0, 3, (3, 4, 5)), np.ones((3, 5, 4), np.int16))[:9, :20, :17].astype(np.int16)
    assert target.shape == image.shape[1:]
    plan = cascade_of()
    made = prepare(image, target, (2.0, 1.0, 1.0), plan, replace(plan.configurations["3d_cascade"], spacing=wanted))
    found = made.placement.to_grid(target, plan.resampling)
    assert found.shape == made.image.shape[1:]
    assert found.min() == 0
    unsure = made.target == OUTSIDE
    assert 0 < unsure.mean() < 0.4
    assert (found[~unsure] == made.target[~unsure]).mean() > 0.97  # where the notch touches, -1 has a vote of its own
    solid = prepare(np.maximum(image, 1), target, (2.0, 1.0, 1.0), plan, plan.configurations["3d_cascade"])
    np.testing.assert_array_equal(solid.placement.to_grid(target, plan.resampling), solid.target)


# ---- files


@pytest.fixture
def prepared(tmp_path) -> tuple[Workspace, Plan, Dataset, dict[str, Path]]:
    """Three preprocessed cases in different orientations; the 'previous stage' has found the reference."""
    folder = tiny_dataset(tmp_path / "data", cases=3, orientations=("LPS", "RAS", "PIR"))
    dataset, _ = discover(folder, IntakeOptions())
    workspace, plan = Workspace(tmp_path / "workspace"), cascade_of(dataset.labels)
    preprocess(dataset, plan, "3d_cascade", workspace, workers=0)
    sources = {}
    for case in dataset.cases:
        path = workspace.fold("3d_lowres", "unet", 0) / "validation" / f"{case.id}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(Path(case.label).read_bytes())
        sources[case.id] = path
    return workspace, plan, dataset, sources


def bring(prepared) -> list[str]:
    workspace, plan, dataset, sources = prepared
    return prepare_previous(workspace, plan, "3d_cascade", dataset.cases, sources, workers=0)


def opened(prepared, name="3d_cascade") -> Path | None:
    workspace, plan, dataset, _ = prepared
    return open_previous(workspace, name, plan.configurations[name], [case.id for case in dataset.cases])


def written(folder: Path) -> dict[str, tuple[int, int]]:
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in sorted(folder.iterdir())}


def test_a_flawless_previous_stage_is_the_target_of_the_store(prepared):
    workspace, _, dataset, _ = prepared
    assert bring(prepared) == []
    folder = opened(prepared)
    assert folder == workspace.previous_stage("3d_cascade", "unet")
    files = {f"{case.id}{ending}" for case in dataset.cases for ending in (".npy", ".json")}
    assert {path.name for path in folder.iterdir()} == files | {".lock"}
    for case in dataset.cases:
        stored = CaseStore(workspace.preprocessed("3d_fullres")).open(case.id)
        found = np.load(folder / f"{case.id}.npy")
        assert found.dtype == stored.target.dtype
        np.testing.assert_array_equal(found, np.maximum(stored.target, 0))
        assert found.max() == 2


def test_only_what_has_changed_is_made_anew(prepared):
    workspace, plan, dataset, sources = prepared
    bring(prepared)
    folder = workspace.previous_stage("3d_cascade", "unet")
    before = written(folder)
    assert bring(prepared) == []
    assert written(folder) == before

    image = nib.load(sources["case_01"])  # its fold was trained anew
    nib.save(nib.Nifti1Image(np.zeros(image.shape, np.uint8), image.affine), sources["case_01"])
    with pytest.raises(StateError, match=r"(?s)case_01\.npy is out of date.*case_01\.nii\.gz.*train -c 3d_cascade"):
        opened(prepared)
    assert bring(prepared) == ["case_01"]
    assert not np.load(folder / "case_01.npy").any()
    assert {name for name, stamp in written(folder).items() if stamp != before[name]} == {"case_01.npy", "case_01.json"}
    assert opened(prepared) == folder

    finer = plan.configurations["3d_fullres"]
    finer = replace(finer, spacing=(2.0, 0.8, 0.8))  # the cases were preprocessed anew
    plan = replace(plan, configurations=plan.configurations | {"3d_fullres": finer})
    plan = replace(plan, configurations=plan.configurations | {"3d_cascade": replace(finer, cascade_from="3d_lowres")})
    preprocess(dataset, plan, "3d_cascade", workspace, workers=0)
    again = (workspace, plan, dataset, sources)
    with pytest.raises(StateError, match="out of date"):
        opened(again)
    assert bring(again) == ["case_00", "case_01", "case_02"]
    store = CaseStore(workspace.preprocessed("3d_fullres"))
    for case in dataset.cases:
        assert np.load(folder / f"{case.id}.npy").shape == store.info(case.id).shape
    assert opened(again) == folder


def test_what_is_missing_is_named_with_what_to_run(prepared):
    workspace, _, _, sources = prepared
    command = shlex.join(["autoseg", "train", "-c", "3d_cascade", "--network", "unet", "-w", str(workspace.root)])
    with pytest.raises(StateError, match=r"no segmentation of case_00 by 3d_lowres") as caught:
        opened(prepared)
    assert caught.value.remedy.endswith(command)
    assert opened(prepared, "3d_fullres") is None  # no cascade
    bring(prepared)
    folder = workspace.previous_stage("3d_cascade", "unet")
    (folder / "case_02.json").write_text("{}")
    with pytest.raises(StateError, match="no segmentation of case_02"):
        opened(prepared)
    assert bring(prepared) == []  # nothing was known of it
    assert opened(prepared) == folder
    sources["case_02"].unlink()
    with pytest.raises(StateError, match="out of date"):
        opened(prepared)


def test_a_process_that_dies_in_between_leaves_no_case(prepared, monkeypatch):
    *_, sources = prepared
    bring(prepared)
    image = nib.load(sources["case_00"])
    nib.save(nib.Nifti1Image(np.zeros(image.shape, np.uint8), image.affine), sources["case_00"])

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("autoseg.preprocessing.cascade.save", killed)
    with pytest.raises(KeyboardInterrupt):
        bring(prepared)
    with pytest.raises(StateError, match="no segmentation of case_00"):
        opened(prepared)


def test_a_case_that_no_fold_holds_out_is_refused(prepared):
    workspace, plan, dataset, sources = prepared
    del sources["case_01"]
    with pytest.raises(StateError, match=r"segmentation of case_01 by a fold of 3d_lowres.*no fold holds it out"):
        prepare_previous(workspace, plan, "3d_cascade", dataset.cases, sources, workers=0)


def test_a_segmentation_of_another_image_is_refused(prepared):
    *_, sources = prepared
    nib.save(nib.Nifti1Image(np.zeros((3, 4, 5), np.uint8), np.eye(4)), sources["case_01"])
    with pytest.raises(StateError, match=r"case_01\.nii\.gz has \(.*voxels"):
        bring(prepared)
