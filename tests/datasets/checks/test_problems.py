"""Faults planted in a dataset, each with its file, its cause and its remedy in the table; nothing else is reported."""

import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import tiny
from autoseg.datasets.checks.problems import check, problem_table, without_bad_cases
from autoseg.datasets.dataset import discover, parse_options
from autoseg.datasets.pairing import Problem
from autoseg.datasets.splits import Split
from autoseg.errors import DataError, OutOfMemory

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12345\n"
CHANNELS = ("T1", "T2")


def inspected(root: Path, measure=None, **options):
    """Discover and check in this process."""
    dataset, known = discover(root, parse_options(**options))
    problems, facts = check(dataset, measure, known=known, workers=0)
    return dataset, problems, facts


def lines(problems, case: str | None) -> list[str]:
    return [problem.what for problem in problems if problem.case == case]


def volume_of_label(loaded) -> tuple[tuple[int, ...], int]:
    return loaded.image.shape, int((loaded.target > 0).sum())


def dies(loaded) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture(scope="module")
def faulty(tmp_path_factory):
    """Twenty cases with two channels; each of seventeen has one fault, named by its id."""
    root = tmp_path_factory.mktemp("faulty")
    ids = (
        "channel_missing", "constant", "copy", "dtype_float", "empty", "healthy", "infinite", "label_missing",
        "label_shape", "label_truncated", "mirrored", "moved", "nan", "other", "pointer", "shape", "spacing", "third",
        "truncated", "unexpected",
    )  # fmt: skip
    tiny.nnunet(root, ids, CHANNELS)
    images, labels = root / "imagesTr", root / "labelsTr"
    (images / "channel_missing_0001.nii.gz").unlink()
    tiny.nifti(images / "constant_0001.nii.gz", np.full(tiny.SHAPE, 5, np.float32))
    (images / "copy_0000.nii.gz").write_bytes((images / "healthy_0000.nii.gz").read_bytes())
    tiny.nifti(labels / "dtype_float.nii.gz", tiny.label(1, 2).astype(np.float32) * 0.9)
    tiny.nifti(labels / "empty.nii.gz", tiny.label())
    holes = tiny.image(77)
    holes[0, 0, :2] = np.inf
    tiny.nifti(images / "infinite_0001.nii.gz", holes)
    (labels / "label_missing.nii.gz").unlink()
    tiny.nifti(labels / "label_shape.nii.gz", tiny.label(1, 2, shape=(3, 4, 6)))
    (labels / "label_truncated.nii.gz").write_bytes((labels / "healthy.nii.gz").read_bytes()[:-20])
    tiny.nifti(images / "mirrored_0001.nii.gz", tiny.image(78), origin=(4.0, 0.0, 1.0), axes="RPS")
    tiny.nifti(labels / "moved.nii.gz", tiny.label(1, 2), origin=(0.0, 0.0, 1.5))
    holes[0, 0, :2] = np.nan
    tiny.nifti(images / "nan_0000.nii.gz", holes)
    tiny.text(images / "pointer_0000.nii.gz", POINTER)
    tiny.nifti(images / "shape_0001.nii.gz", tiny.image(79, (3, 5, 5)))
    tiny.nifti(images / "spacing_0001.nii.gz", tiny.image(80), (1.5, 1.0, 1.0))
    content = (images / "truncated_0001.nii.gz").read_bytes()
    (images / "truncated_0001.nii.gz").write_bytes(content[: len(content) // 2])
    tiny.nifti(labels / "unexpected.nii.gz", tiny.label(1, 2, 7, 7, 7, 9))
    tiny.nifti(images / "Third_0000.nii.gz", tiny.image(81))
    tiny.nifti(images / "Third_0001.nii.gz", tiny.image(82))
    tiny.nifti(labels / "Third.nii.gz", tiny.label(1, 2))
    tiny.nifti(labels / "orphan.nii.gz", tiny.label(1, 2))
    return root, inspected(root, volume_of_label)


@pytest.mark.parametrize(
    ("case", "file", "what", "remedy"),
    [
        ("channel_missing", "channel_missing_0000.nii.gz", "missing channel 0001 (T2)", "add the file"),
        ("constant", "constant_0001.nii.gz", "constant image: channel T2 is 5 everywhere", "check it"),
        ("dtype_float", "dtype_float.nii.gz", "integers", ""),
        ("empty", "empty.nii.gz", "empty label", "nothing, if the image shows no such structure"),
        ("healthy", "healthy_0000.nii.gz", "duplicate content: the same image as", "remove one of the two cases"),
        ("infinite", "infinite_0001.nii.gz", "2 infinite voxels (0.033 of all)", "replace them"),
        ("label_missing", "label_missing_0000.nii.gz", "missing label: labelsTr has none", "add the label"),
        ("label_shape", "label_shape.nii.gz", "shape (z, y, x) (3, 4, 6) differs from (3, 4, 5)", "resample"),
        ("label_truncated", "label_truncated.nii.gz", "truncated", ""),
        ("mirrored", "mirrored_0001.nii.gz", "direction of the axes differs", "header"),
        (
            "moved",
            "moved.nii.gz",
            "origin (0, 0, 1.5) mm (RAS, sform) differs from (0, 0, 0) mm (RAS, sform)",
            "header",
        ),
        ("nan", "nan_0000.nii.gz", "2 NaN voxels", "replace them"),
        ("pointer", "pointer_0000.nii.gz", "Git LFS", "git lfs pull"),
        ("shape", "shape_0001.nii.gz", "shape (z, y, x) (3, 5, 5) differs from (3, 4, 5)", "resample"),
        ("spacing", "spacing_0001.nii.gz", "spacing (1.5, 1, 1) differs from (1, 1, 1) mm", "header"),
        ("third", "third_0000.nii.gz", "the id 'third' is also that of", "rename one"),
        ("Third", "Third_0000.nii.gz", "differs from 'third' only in upper and lower case", "rename one"),
        ("truncated", "truncated_0001.nii.gz", "truncated", ""),
        ("unexpected", "unexpected.nii.gz", "unexpected label values: 7 (3 voxels), 9 (1 voxel)", "--labels"),
        ("orphan", "orphan.nii.gz", "no image in imagesTr/ belongs to this label", "add its image"),
    ],
)
def test_each_fault_is_named_with_file_cause_and_remedy(faulty, case, file, what, remedy):
    root, (_, problems, _) = faulty
    found = [problem for problem in problems if problem.case == case]
    match = [p for p in found if what in p.what and remedy in p.remedy and Path(p.file).name == file]
    assert len(match) == 1, found
    assert match[0].remedy
    assert match[0].severity == ("warning" if case in ("constant", "empty", "healthy") else "error")
    row = next(line for line in problem_table(problems).splitlines() if match[0].what in line and f" {case} " in line)
    assert file in row
    assert match[0].remedy in row
    assert str(root) not in row.removesuffix(match[0].remedy).split(match[0].what)[0]


def test_nothing_else_is_reported(faulty):
    _, (_, problems, _) = faulty
    reported = sorted((problem.case or "", problem.severity) for problem in problems)
    assert reported == sorted([
        *((case, "error") for case in (
            "Third", "channel_missing", "dtype_float", "infinite", "label_missing", "label_shape",
            "label_truncated", "mirrored", "mirrored", "moved", "nan", "orphan", "pointer", "shape", "spacing", "third",
            "truncated", "unexpected",
        )),
        ("constant", "warning"), ("empty", "warning"), ("healthy", "warning"),
    ])  # fmt: skip


def test_only_sound_training_cases_are_measured(faulty):
    _, (_, _, facts) = faulty
    assert facts == {
        "constant": ((2, 3, 4, 5), 2), "copy": ((2, 3, 4, 5), 2), "empty": ((2, 3, 4, 5), 0),
        "healthy": ((2, 3, 4, 5), 2), "other": ((2, 3, 4, 5), 2),
    }  # fmt: skip


def test_bad_cases_can_be_left_out(faulty):
    _, (dataset, problems, _) = faulty
    remaining = without_bad_cases(dataset, problems)
    assert [case.id for case in remaining.cases] == ["constant", "copy", "empty", "healthy", "other"]
    assert "left out for their errors: Third, channel_missing" in remaining.notes[-1]
    assert not [p for p in check(remaining, workers=0)[0] if p.severity == "error"]
    everything = [Problem(case.id, "", "", "") for case in dataset.cases]
    with pytest.raises(DataError, match="every training case"):
        without_bad_cases(dataset, everything)
    assert without_bad_cases(dataset, []) == dataset


def test_left_out_cases_leave_the_folds_too(tmp_path):
    root = tiny.nnunet(tmp_path, ["a", "b", "c"])
    tiny.text(root / "splits_final.json", [{"train": ["a", "b"], "val": ["c"]}, {"train": ["c", "b"], "val": ["a"]}])
    dataset, _ = discover(root)
    remaining = without_bad_cases(dataset, [Problem("a", "", "", ""), Problem("b", "", "", "", "warning")])
    assert remaining.splits == (Split(0, ("b",), ("c",)),)


def test_the_table_shows_errors_first_and_groups_warnings(tmp_path):
    warnings = [Problem(f"c{n}", f"{tmp_path}/x/c{n}.nii", "empty label", "fine", "warning") for n in range(8)]
    table = problem_table([*warnings, Problem("bad", f"{tmp_path}/bad.nii", "is truncated", "copy it again")])
    rows = [row.split() for row in table.splitlines()]
    assert rows[0] == ["1", "error,", "8", "warnings", "in", str(tmp_path)]
    assert rows[2] == ["error", "bad", "bad.nii", "is", "truncated", "copy", "it", "again"]
    assert rows[3][:3] == ["warning", "c0", "x/c0.nii"]
    assert rows[8] == ["...", "and", "3", "more"]
    assert len(rows) == 9
    assert problem_table([]) == "no problem was found"


def test_a_label_that_no_case_shows(tmp_path):
    root = tiny.nnunet(tmp_path, labels={"one": 1, "two": 2, "three": 3}, ids=["a"])
    _, problems, _ = inspected(root)
    assert lines(problems, None) == ["label three (3) is in none of the 1 label files"]


def test_a_wrong_number_of_channels(tmp_path):
    root = tiny.nnunet(tmp_path)
    tiny.nifti(root / "imagesTr/b_0000.nii.gz", tiny.image(1, (3, *tiny.SHAPE)))
    _, problems, _ = inspected(root)
    assert lines(problems, "b") == ["3 channels instead of 1 (MRI)"]
    assert lines(problems, "a") == []


def test_flat_images_among_volumes(tmp_path):
    root = tiny.nnunet(tmp_path, ["a", "b"])
    tiny.picture(root / "imagesTr/flat_0000.png", np.arange(20, dtype=np.uint8).reshape(4, 5))
    tiny.picture(root / "labelsTr/flat.png", tiny.label(1, 2, shape=(4, 5)))
    tiny.text(root / "dataset.json", {"channel_names": {"0": "MRI"}, "labels": {"one": 1, "two": 2}})
    _, problems, _ = inspected(root)
    assert lines(problems, "flat") == ["a flat (2-D) image, but 2 cases of the dataset are not, such as a"]
    assert {problem.case for problem in problems} == {"flat"}


def test_mixed_orientations_are_a_warning(tmp_path):
    root = tiny.nnunet(tmp_path, ["a", "b", "c"])
    tiny.nifti(root / "imagesTr/c_0000.nii.gz", tiny.image(5), axes="RAS")
    tiny.nifti(root / "labelsTr/c.nii.gz", tiny.label(1, 2), axes="RAS")
    _, problems, _ = inspected(root)
    assert [(p.severity, Path(p.file).name) for p in problems] == [("warning", "c_0000.nii.gz")]
    assert "LPS 2, RAS 1" in problems[0].what


def test_masks_of_0_and_255_where_1_is_declared(tmp_path):
    root = tiny.nnunet(tmp_path, ["a", "b", "c"], labels={"cell": 1})
    for case_id, values in (("a", (1,)), ("b", (255, 255)), ("c", (1, 255))):
        tiny.nifti(root / f"labelsTr/{case_id}.nii.gz", tiny.label(*values))
    _, problems, facts = inspected(root, volume_of_label)
    assert [(p.case, p.severity) for p in problems] == [("c", "error"), (None, "warning")]
    assert "both 1 (1 voxels) and 255 (1 voxels)" in problems[0].what
    assert "255 is used where 1 is declared, in 2 of 3 label files" in problems[1].what
    assert {case_id: count for case_id, (_, count) in facts.items()} == {"a": 1, "b": 2}


def hounsfield(seed: int) -> np.ndarray:
    """Air, water and bone, as integers."""
    values = np.random.default_rng(seed).choice([-1000.0, 0.0, 40.0, 60.0, 900.0], size=(5, 20, 20))
    return values.astype(np.float32)


def test_hounsfield_units_in_a_channel_of_another_name_and_the_reverse(tmp_path):
    root = tiny.nnunet(tmp_path, ["a", "b"], ("MRI", "CT"))
    for number, case_id in enumerate(("a", "b")):
        tiny.nifti(root / f"imagesTr/{case_id}_0000.nii.gz", hounsfield(number))
        tiny.nifti(root / f"imagesTr/{case_id}_0001.nii.gz", np.abs(hounsfield(number)) + 0.25)
        tiny.nifti(root / f"labelsTr/{case_id}.nii.gz", tiny.label(1, 2, shape=(5, 20, 20)))
    _, problems, _ = inspected(root)
    assert [p.what.split(" cases")[0] for p in problems] == [
        "channel MRI looks like Hounsfield units in 2 of 2", "CT does not look like Hounsfield units in 2 of 2"
    ]  # fmt: skip
    assert {p.severity for p in problems} == {"warning"}
    assert inspected(root, channels="CT,MRI")[1] == []


def test_incomplete_cases_are_not_measured_whether_or_not_they_are_known(tmp_path):
    root = tiny.nnunet(tmp_path, ["a", "b", "c"])
    (root / "labelsTr/b.nii.gz").unlink()
    dataset, known = discover(root)
    without_images = replace(dataset.cases[2], images=())
    dataset = replace(dataset, cases=(*dataset.cases[:2], without_images))
    assert [p.case for p in known] == ["b"]
    assert check(dataset, volume_of_label, workers=0) == ([], {"a": ((1, 3, 4, 5), 2)})
    assert check(dataset, volume_of_label, workers=0, known=known) == (known, {"a": ((1, 3, 4, 5), 2)})


def test_two_equal_channels_and_two_equal_constants(tmp_path):
    root = tiny.nnunet(tmp_path, ["a", "b"], CHANNELS)
    tiny.nifti(root / "imagesTr/a_0001.nii.gz", tiny.image(0))  # what a_0000 holds
    for case_id in ("a", "b"):
        tiny.nifti(root / f"labelsTr/{case_id}.nii.gz", tiny.label(1, 2))
    _, problems, _ = inspected(root)
    assert [(p.case, p.severity, p.what) for p in problems] == [
        ("a", "warning", "the same image as channel a_0000.nii.gz")
    ]
    for case_id in ("a", "b"):
        tiny.nifti(root / f"imagesTr/{case_id}_0001.nii.gz", np.zeros(tiny.SHAPE, np.float32))
    assert {p.what.split(":")[0] for p in inspected(root)[1]} == {"constant image"}


def test_test_cases_are_checked_and_not_measured(tmp_path):
    root = tiny.nnunet(tmp_path)
    tiny.nifti(root / "imagesTs/t_0000.nii.gz", tiny.image(500))
    tiny.nifti(root / "labelsTs/t.nii.gz", tiny.label(1, 8))
    _, problems, facts = inspected(root, volume_of_label)
    assert [(p.case, p.what) for p in problems] == [("t", "unexpected label values: 8 (1 voxel)")]
    assert sorted(facts) == ["a", "b"]


def test_measuring_in_the_axis_order_asked_for(tmp_path):
    root = tiny.nnunet(tmp_path, ["a"])
    tiny.nifti(root / "imagesTr/a_0000.nii.gz", tiny.image(1), axes="SLP")
    tiny.nifti(root / "labelsTr/a.nii.gz", tiny.label(1, 2), axes="SLP")
    dataset, _ = discover(root)
    assert check(dataset, volume_of_label, workers=0)[1]["a"][0] == (1, 5, 3, 4)
    assert check(dataset, volume_of_label, workers=0, orientation="as_stored")[1]["a"][0] == (1, 3, 4, 5)


@pytest.mark.slow  # worker processes import everything anew
def test_processes_find_the_same_and_a_killed_one_is_reported(tmp_path):
    root = tiny.nnunet(tmp_path)
    tiny.nifti(root / "labelsTr/b.nii.gz", tiny.label(1, 2, 3))
    dataset, _ = discover(root)
    assert check(dataset, volume_of_label, workers=2) == check(dataset, volume_of_label, workers=0)
    with pytest.raises(OutOfMemory, match="died"):
        check(dataset, dies, workers=2)


@pytest.mark.thorough
def test_real_datasets_have_no_error(data_dir):
    for name in ("axon_sem", "ct_ts_512x512x20"):
        _, problems, facts = inspected(data_dir / name, volume_of_label)
        assert [p for p in problems if p.severity == "error"] == []
        assert facts
    assert "not named CT" in problems[0].what
    _, problems, facts = inspected(data_dir / "hippocampus", volume_of_label)
    assert problems == []
    assert len(facts) == 160
    assert min(count for _, count in facts.values()) > 1000
