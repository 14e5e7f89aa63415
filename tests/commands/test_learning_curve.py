"""Learning curves: which patients each share trains on, where its model lies, what is kept and what is refused."""

import itertools
import json
import shutil
from collections.abc import Iterable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from autoseg.commands import train
from autoseg.commands.folds import Folds, TrainOptions
from autoseg.commands.learning_curve import LearningCurveOptions, learning_curve
from autoseg.datasets.dataset import Dataset
from autoseg.datasets.splits import Split, Splits
from autoseg.errors import StateError, UsageError
from autoseg.evaluation.learning_curve import LearningCurve
from autoseg.models.checkpoint import save_checkpoint
from autoseg.models.versions import Position
from autoseg.records import load
from autoseg.workspace import Workspace
from checkpoints import checkpoint_of
from commands import SHORT, copy_of, outcome, run
from phantom import tiny_dataset

SHARES = (25.0, 50.0, 75.0, 100.0)
NAME = ("3d_fullres", "unet")

pytestmark = pytest.mark.usefixtures("in_this_process")


@pytest.fixture(scope="module")
def planned(tmp_path_factory) -> Workspace:
    folder = tmp_path_factory.mktemp("curve")
    dataset = tiny_dataset(folder / "data", cases=10)
    workspace = Workspace(folder / "workspace")
    run("plan", dataset, "-w", workspace.root)
    return workspace


@pytest.fixture
def workspace(planned, tmp_path) -> Workspace:
    return copy_of(planned, tmp_path / "workspace")


@pytest.fixture
def trained(monkeypatch) -> list[tuple[str, str, tuple[str, ...]]]:
    """Trainings are replaced: each loses as many voxels of a label as 200 divided by its cases. They are listed."""
    done = []

    def made_up(pairs: Iterable[tuple[Folds, Split]], name: str, options: TrainOptions) -> None:
        for folds, split in pairs:
            folder = folds.folder(name, split.fold)
            if (folder / "last.pt").exists():
                continue
            done.append((folder.relative_to(folds.workspace.root).as_posix(), str(split.fold), split.train))
            write_fold(folds, name, split)

    monkeypatch.setattr(train, "train_prepared", made_up)
    return done


def write_fold(folds: Folds, name: str, split: Split) -> None:
    """A finished fold without weights, and its segmentations."""
    folder = folds.folder(name, split.fold)
    (folder / "validation").mkdir(parents=True)
    state = checkpoint_of(
        folds.plan, configuration=name, fold=split.fold, finished=True, train=split.train, validation=split.validation,
        position=Position(step=40),
    )  # fmt: skip
    save_checkpoint(folder / "last.pt", state.to_plain())
    for case in folds.cases(split):
        reference = nib.load(case.label)
        array = np.asarray(reference.dataobj).copy()
        for value in (1, 2):
            array[tuple(index[: 200 // len(split.train)] for index in np.nonzero(array == value))] = 0
        nib.save(nib.Nifti1Image(array, reference.affine), folder / "validation" / f"{case.id}.nii.gz")


@pytest.mark.thorough
def test_shares_are_trained_where_no_fold_is(workspace, trained, said):
    curve = learning_curve(workspace, LearningCurveOptions(shares=SHARES, steps=40))
    assert [place for place, *_ in trained] == [
        f"learning_curve/share_{share:g}/models/3d_fullres-unet/fold_0" for share in SHARES
    ]
    split = load(Splits, workspace.splits).splits[0]
    cases = [set(train) for *_, train in trained]
    assert [len(c) for c in cases] == [2, 4, 6, 8]
    assert all(small < large for small, large in itertools.pairwise(cases))
    assert cases[-1] == set(split.train)
    assert {case for result in curve.results for case in result.dice} == set(split.validation)
    assert not (workspace.root / "models").exists()
    assert load(LearningCurve, workspace.learning_curve) == curve
    dice = [point.dice.value for point in curve.mean.points]
    assert dice == sorted(dice)
    assert (curve.results[0].steps, curve.length, curve.results[0].patients) == (40, "40 steps", 2)
    assert curve.results[0].folder == trained[0][0]
    assert any("4 trainings of 40 steps each, on 25 % (2 patients), 50 % (4 patients)" in line for line in said)
    assert any("twice the patients (16): mean Dice 0." in line for line in said)


def test_what_is_trained_is_kept(workspace, trained):
    options = LearningCurveOptions(shares=SHARES, steps=40)
    first = learning_curve(workspace, options)
    assert learning_curve(workspace, options) == first
    assert len(trained) == 4
    shutil.rmtree(workspace.of_share("50").fold(*NAME, 0))
    learning_curve(workspace, options)
    assert [place for place, *_ in trained[4:]] == ["learning_curve/share_50/models/3d_fullres-unet/fold_0"]
    learning_curve(workspace, LearningCurveOptions(shares=(25, 37.5, 50, 100), steps=40))
    assert [place for place, *_ in trained[5:]] == ["learning_curve/share_37.5/models/3d_fullres-unet/fold_0"]


def test_restart_sets_everything_aside_at_once(workspace, trained):
    learning_curve(workspace, LearningCurveOptions(shares=SHARES, steps=40))
    learning_curve(workspace, LearningCurveOptions(shares=SHARES, steps=40, restart=True))
    assert len(trained) == 8
    assert len(list(workspace.root.glob("learning_curve/share_*/models/*/fold_0.before-*"))) == 4


def test_other_lengths_are_refused(workspace, trained):
    learning_curve(workspace, LearningCurveOptions(shares=SHARES, steps=40))
    with pytest.raises(StateError, match=r"25 % of fold 0 .*it was trained with --steps 40") as refused:
        learning_curve(workspace, LearningCurveOptions(shares=SHARES, steps=50))
    assert "autoseg learning-curve --restart" in refused.value.remedy


def test_a_fold_that_is_trained_alike_is_all_patients(workspace, trained, said):
    folds = Folds.open(workspace, TrainOptions(steps=40))
    folds.preprocess(NAME[0])
    write_fold(folds, NAME[0], folds.splits.splits[0])
    curve = learning_curve(workspace, LearningCurveOptions(shares=SHARES, steps=40))
    assert len(trained) == 3
    assert curve.results[-1].folder == "models/3d_fullres-unet/fold_0"
    assert any("fold 0 is trained in the same way and is taken" in line for line in said)
    learning_curve(copied := copy_of(workspace, workspace.root.with_name("b")), LearningCurveOptions(
        shares=SHARES, steps=40, restart=True
    ))  # fmt: skip
    assert copied.of_share("100").fold(*NAME, 0).exists()


def test_a_fold_of_another_length_is_not_taken(workspace, trained):
    folds = Folds.open(workspace, TrainOptions(steps=60))
    folds.preprocess(NAME[0])
    write_fold(folds, NAME[0], folds.splits.splits[0])
    curve = learning_curve(workspace, LearningCurveOptions(shares=SHARES, steps=40))
    assert curve.results[-1].folder == "learning_curve/share_100/models/3d_fullres-unet/fold_0"


def test_several_folds(workspace, trained, said):
    curve = learning_curve(workspace, LearningCurveOptions(folds=(0, 3), shares=SHARES, steps=40))
    assert len(trained) == 8
    held_out = {case for result in curve.results for case in result.dice}
    splits = load(Splits, workspace.splits).splits
    assert held_out == {*splits[0].validation, *splits[3].validation}
    assert any("the same 4 held-out cases of fold 0, 3 for all" in line for line in said)


def test_what_is_refused(workspace, trained):
    with pytest.raises(UsageError, match="3 shares at least, found 50,100"):
        LearningCurveOptions(shares=(50, 100, 50))
    with pytest.raises(UsageError, match="percent of the patients"):
        LearningCurveOptions(shares=(0, 50, 100))
    with pytest.raises(StateError, match=r"25 % and 30 % of the patients of fold 0 are the same 2 patients"):
        learning_curve(workspace, LearningCurveOptions(shares=(25, 30, 50, 100)))
    with pytest.raises(UsageError, match="fold full holds no case out"):
        learning_curve(workspace, LearningCurveOptions(folds=("full",)))
    with pytest.raises(UsageError, match="there is no fold 7"):
        learning_curve(workspace, LearningCurveOptions(folds=(7,)))
    with pytest.raises(StateError, match=r"plan.json does not exist|dataset.json does not exist"):
        learning_curve(Workspace(workspace.root / "none"))
    assert trained == []


@pytest.mark.parametrize("shares", ["0,50,100", "a,b", "", "50,101"])
def test_shares_that_cannot_be_typed(shares, capsys):
    code, said = outcome(capsys, "learning-curve", "--shares", shares)
    assert code == 2
    assert "are not percentages such as 12,25,50,100" in said


@pytest.mark.slow
def test_real_trainings_stop_and_resume(planned, tmp_path, capsys):
    """Each for 12 steps; --stop-after ends the first, whatever it has done, and the same command finishes."""
    workspace = copy_of(planned, tmp_path / "w")
    typed = ("learning-curve", "-w", workspace.root, "--shares", "25%,50,100", "--steps", 12, "--device", "cpu", *SHORT)
    code, said = outcome(capsys, *typed, "--stop-after", "1s")
    assert code == 75
    assert "resume with: autoseg learning-curve" in said
    code, said = outcome(capsys, *typed)
    assert code == 0
    assert "three shares can always be fitted" in said
    record = json.loads(workspace.learning_curve.read_text())
    assert [result["steps"] for result in record["results"]] == [12, 12, 12]
    dataset = load(Dataset, workspace.dataset)
    assert Path(dataset.root).exists()
    before = {path: path.stat().st_mtime_ns for path in workspace.root.glob("learning_curve/**/last.pt")}
    assert len(before) == 3
    code, said = outcome(capsys, *typed, "--json")
    assert code == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
