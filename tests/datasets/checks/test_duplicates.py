"""One image under two names: one patient, and a warning; in the test set or across given folds, an error."""

from pathlib import Path

import numpy as np

import tiny
from autoseg.datasets.checks.duplicates import as_one_patient
from autoseg.datasets.checks.problems import check, without_bad_cases
from autoseg.datasets.dataset import discover

IDS = ("a", "b", "c", "d", "e")


def copies(root: Path, *pairs: tuple[str, str], ids=IDS) -> Path:
    """A dataset in which the second case of each pair holds the image of the first."""
    root = tiny.nnunet(root, ids)
    for first, second in pairs:
        (root / f"imagesTr/{second}_0000.nii.gz").write_bytes((root / f"imagesTr/{first}_0000.nii.gz").read_bytes())
    return root


def inspected(root: Path):
    dataset, known = discover(root)
    problems, _ = check(dataset, known=known, workers=0)
    return dataset, problems


def patients(dataset) -> dict[str, str]:
    return {case.id: case.patient for case in (*dataset.cases, *dataset.test_cases)}


def test_copies_are_one_patient_and_a_warning_names_both(tmp_path):
    dataset, problems = inspected(copies(tmp_path, ("a", "c"), ("c", "d")))
    assert [(p.case, p.same_as, p.severity) for p in problems] == [("c", "a", "warning"), ("d", "a", "warning")]
    assert problems[0].what == ("duplicate content: the same image as a_0000.nii.gz of a; a and c count as one patient")
    assert patients(as_one_patient(dataset, problems)) == {"a": "a", "b": "b", "c": "a", "d": "a", "e": "e"}
    assert as_one_patient(dataset, []) == dataset


def test_the_other_cases_of_both_patients_join_them(tmp_path):
    root = copies(tmp_path, ("b", "c"), ("d", "e"))
    tiny.text(root / "patients.csv", "case,patient\na,p\nb,p\nc,q\nd,q\ne,r\n")
    dataset, problems = inspected(root)
    assert set(patients(as_one_patient(dataset, problems)).values()) == {"p"}
    tiny.text(root / "patients.csv", "case,patient\na,p\nb,q\nc,q\nd,r\ne,r\n")
    dataset, problems = inspected(root)
    assert "count as one patient" not in problems[0].what
    assert patients(as_one_patient(dataset, problems)) == patients(dataset)


def test_patients_that_were_joined_before_move_together(tmp_path):
    root = copies(tmp_path, ("b", "c"), ("a", "d"))
    tiny.text(root / "patients.csv", "case,patient\na,s\nb,p\nc,q\nd,p\ne,r\n")
    dataset, problems = inspected(root)
    assert patients(as_one_patient(dataset, problems)) == dict.fromkeys("abcd", "s") | {"e": "r"}


def test_labels_that_differ_are_named(tmp_path):
    root = copies(tmp_path, ("a", "c"), ("b", "d"))
    tiny.nifti(root / "labelsTr/c.nii.gz", tiny.label(1, 1, 2))  # a has 1, 2, 0
    _, problems = inspected(root)
    assert "their labels differ in 2 voxels: a.nii.gz of a and c.nii.gz of c" in problems[0].what
    assert "whose label is worse" in problems[0].remedy
    assert "labels" not in problems[1].what


def test_a_test_case_that_is_a_training_case_is_an_error(tmp_path):
    root = copies(tmp_path)
    for case_id, source in (("t", "b"), ("u", None), ("v", "u")):
        image = root / f"imagesTs/{case_id}_0000.nii.gz"
        tiny.nifti(image, tiny.image(999))
        if source == "b":
            image.write_bytes((root / "imagesTr/b_0000.nii.gz").read_bytes())
        tiny.nifti(root / f"labelsTs/{case_id}.nii.gz", tiny.label(1, 2))
    dataset, problems = inspected(root)
    assert [(p.case, p.same_as, p.severity) for p in problems] == [("t", "b", "error"), ("v", "u", "warning")]
    assert "the test score" in problems[0].what
    assert [case.id for case in without_bad_cases(dataset, problems).test_cases] == ["u", "v"]
    assert patients(as_one_patient(dataset, problems))["t"] == "t"


def test_given_folds_that_see_both_copies_are_refused(tmp_path):
    root = copies(tmp_path, ("a", "c"))
    tiny.text(
        root / "splits_final.json",
        [{"train": ["a", "b", "c"], "val": ["d", "e"]}, {"train": ["b", "c", "d", "e"], "val": ["a"]}],
    )
    _, problems = inspected(root)
    refusals = [p for p in problems if p.stays]
    assert [p.severity for p in refusals] == ["error"]
    assert "fold 1 trains on c and validates on a, which hold the same image" in refusals[0].what
    tiny.text(root / "splits_final.json", [{"train": ["a", "b", "c"], "val": ["d", "e"]}])
    assert [p for p in inspected(root)[1] if p.severity == "error"] == []


def test_one_equal_channel_of_two_is_enough_and_said_once(tmp_path):
    root = tiny.nnunet(tmp_path, ("a", "b"), ("T1", "T2"))
    (root / "imagesTr/b_0001.nii.gz").write_bytes((root / "imagesTr/a_0001.nii.gz").read_bytes())
    _, problems = inspected(root)
    assert [(Path(p.file).name, p.case, p.same_as) for p in problems] == [("b_0001.nii.gz", "b", "a")]
    (root / "imagesTr/b_0000.nii.gz").write_bytes((root / "imagesTr/a_0000.nii.gz").read_bytes())
    assert len(inspected(root)[1]) == 1


def test_the_same_voxels_in_another_format_are_found(tmp_path):
    root = copies(tmp_path)
    tiny.nifti(root / "imagesTr/b_0000.nii.gz", tiny.image(0).astype(np.float64))
    assert [(p.case, p.same_as) for p in inspected(root)[1]] == [("b", "a")]
