"""Nearly identical images across folds, and in training and test set: named with their folds; a clean set is silent."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

import tiny
from autoseg.commands.evaluate import leakage_or_warn
from autoseg.datasets.dataset import discover
from autoseg.datasets.splits import Split, Splits
from autoseg.errors import StorageError
from autoseg.evaluation import leakage
from autoseg.evaluation.leakage import Leakage, check_leakage, describe, find_leakage
from autoseg.lines import shown_by
from autoseg.records import load
from autoseg.workspace import Workspace

SHAPE = (12, 16, 14)
IDS = [f"c{number:02d}" for number in range(12)]
FOLDS = Splits(
    1, 0, tuple(Split(k, tuple(sorted(set(IDS[:11]) - set(IDS[k::4]))), tuple(i for i in IDS[k::4] if i != "c11"))
                for k in range(4)), (), (),
)  # fmt: skip


def person(seed: int) -> np.ndarray:
    return ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=SHAPE), 1.5).astype(np.float32) * 100


@pytest.fixture
def root(tmp_path):
    """Eleven training cases and a test case."""
    folder = tiny.nnunet(tmp_path / "data", IDS[:11])
    for number, name in enumerate(IDS[:11]):
        tiny.nifti(folder / f"imagesTr/{name}_0000.nii.gz", person(number))
        tiny.nifti(folder / f"labelsTr/{name}.nii.gz", tiny.label(1, 2, shape=SHAPE))
    tiny.nifti(folder / "imagesTs/c11_0000.nii.gz", person(11))
    tiny.nifti(folder / "labelsTs/c11.nii.gz", tiny.label(1, 2, shape=SHAPE))
    return folder


def plant(folder, name: str, image: np.ndarray, part: str = "imagesTr") -> None:
    tiny.nifti(folder / f"{part}/{name}_0000.nii.gz", np.ascontiguousarray(image, dtype=np.float32))


def found(folder) -> Leakage:
    return find_leakage(discover(folder)[0], FOLDS, workers=0)


def test_a_clean_set_is_silent(root, tmp_path):
    assert found(root).pairs == ()
    said: list[str] = []
    with shown_by(said.append):
        check_leakage(Workspace(tmp_path / "ws"), discover(root)[0], FOLDS, workers=0)
    assert said == []
    assert load(Leakage, tmp_path / "ws" / "leakage.json").cases == 12


def test_pairs_carry_their_folds_and_what_they_do(root):
    plant(root, "c05", person(0)[::-1] + np.random.default_rng(0).normal(0, 2, SHAPE))  # fold 1 and fold 0
    plant(root, "c06", person(2))  # both are held out by fold 2
    plant(root, "c11", person(3) * 5 + 2, "imagesTs")
    pairs = {(p.first, p.second): p for p in found(root).pairs}
    assert set(pairs) == {("c00", "c05"), ("c02", "c06"), ("c03", "c11")}
    assert [(p.folds, p.leaks, p.identical) for p in (pairs[key] for key in sorted(pairs))] == [
        (("0", "1"), True, False),
        (("2", "2"), False, True),  # a fold holds both out: no score is wrong
        (("3", "test"), True, False),
    ]
    assert pairs["c00", "c05"].patients == ("c00", "c05")


def test_cases_of_one_patient_are_no_leak(root):
    plant(root, "c05", person(0))
    tiny.text(
        root / "patients.csv", "case,patient\n" + "".join(f"{i},{'x' if i in ('c00', 'c05') else i}\n" for i in IDS)
    )
    assert found(root).pairs == ()


def test_a_few_lines_name_cases_folds_and_what_to_do(root, tmp_path):
    for copy, number in (("c01", 0), ("c03", 2), ("c05", 4), ("c07", 6)):
        plant(root, copy, person(number) + 1)
    lines = describe(found(root), Workspace(tmp_path))
    assert len(lines) == 5
    assert "4 pairs of cases of different patients" in lines[0]
    assert "(held out by fold 0)" in lines[1] + lines[2] + lines[3]
    assert "and 1 more" in lines[4]
    assert "patients.csv (columns case, patient, such as" in lines[4]


def test_images_are_compared_once_and_folds_are_always_those_of_today(root, tmp_path, monkeypatch):
    plant(root, "c05", person(0))
    workspace, dataset = Workspace(tmp_path / "ws"), discover(root)[0]
    with shown_by(None):
        first = check_leakage(workspace, dataset, FOLDS, workers=0)
        monkeypatch.setattr(leakage, "_look", lambda case: pytest.fail("an image is read again"))
        together = Splits(1, 0, (Split(0, tuple(IDS[6:11]), tuple(IDS[:6])),), (), ())
        second = check_leakage(workspace, dataset, together, workers=0)
    assert (first.leaks, second.leaks) == (first.pairs, ())
    assert second.pairs[0].folds == ("0", "0")
    monkeypatch.undo()
    plant(root, "c05", person(5))
    with shown_by(None):
        assert check_leakage(workspace, dataset, FOLDS, workers=0).pairs == ()  # the file changed


def test_an_unreadable_image_is_named_and_the_others_are_compared(root, tmp_path):
    plant(root, "c05", person(0))
    dataset = discover(root)[0]
    (root / "imagesTr/c09_0000.nii.gz").write_bytes(b"nothing")
    seen = find_leakage(dataset, FOLDS, workers=0)
    assert seen.unreadable == ("c09",)
    assert [(p.first, p.second) for p in seen.pairs] == [("c00", "c05")]
    unread = "not compared across folds, because they cannot be read: c09"
    assert unread in describe(seen, Workspace(tmp_path))[-1]
    assert describe(replace(seen, pairs=()), Workspace(tmp_path)) == [f"note: images {unread}"]


def test_a_comparison_that_fails_is_a_warning_because_scores_are_written(root, tmp_path, monkeypatch):
    def full(*_):
        raise StorageError("the disk is full", remedy="free space")

    monkeypatch.setattr(leakage, "save", full)
    said: list[str] = []
    with shown_by(said.append):
        leakage_or_warn(Workspace(tmp_path / "ws"), discover(root)[0], FOLDS, 0)
    (line,) = said
    assert line.startswith("WARNING: images were not compared across folds: StorageError: the disk is full")
