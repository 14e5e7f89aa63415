"""Folds together: each case once, means by hand, and nothing left out in silence."""

import json
from pathlib import Path

import numpy as np
import pytest

from autoseg.datasets.dataset import Case
from autoseg.errors import StateError
from autoseg.evaluation.crossval import CrossValidation, cross_validate_folds, describe, validation_jobs
from autoseg.evaluation.evaluate import ScoreJob
from autoseg.imaging.labels import LabelSet
from autoseg.records import load, save
from files import nifti

LABELS = LabelSet({"organ": 1, "lesion": 2})

# Each case is one row of voxels: reference and segmentation. Dice of organ and of lesion beside them.
CASES = {
    "a": ([1, 1, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0]),  # 1, -
    "b": ([1, 1, 2, 2, 0, 0], [1, 0, 0, 2, 0, 0]),  # 2/3, 2/3
    "c": ([1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 0, 0]),  # 0, -
}
FOLDS = {3: ("a", "b"), 1: ("c",)}


def case(folder: Path, name: str, ending: str = ".nii.gz") -> Case:
    reference = nifti(folder / "labels" / f"{name}.nii", np.array([[CASES[name][0]]], np.uint8), np.eye(4))
    return Case(name, name, (str(folder / f"{name}_0000{ending}"),), str(reference))


@pytest.fixture
def result(tmp_path) -> CrossValidation:
    jobs = {}
    for fold, names in FOLDS.items():
        for name in names:
            nifti(tmp_path / str(fold) / f"{name}.nii.gz", np.array([[CASES[name][1]]], np.uint8), np.eye(4))
        jobs[fold] = validation_jobs(tmp_path / str(fold), [case(tmp_path, name) for name in names], LABELS)
    return cross_validate_folds("3d_fullres", "unet", jobs, 5, workers=0)


def table(shown: str, number: int) -> dict[tuple[str, str], list[str]]:
    """Rows of one of the tables below the first line: the two leading words -> the rest."""
    lines = shown.split("\n\n")[number].splitlines()[2:]
    return {(words[0], words[1]): words[2:] for words in map(str.split, lines)}


def test_every_case_is_scored_once_in_its_own_fold(result):
    assert [(fold.fold, [score.case for score in fold.cases]) for fold in result.folds] == [(3, ["a", "b"]), (1, ["c"])]
    assert [score.case for score in result.cases] == ["a", "b", "c"]
    dice = {score.case: score.scores["organ"]["dice"] for score in result.cases}
    assert dice == pytest.approx({"a": 1, "b": 2 / 3, "c": 0})


def test_means_are_taken_over_cases(result):
    """Of all cases alike, not of folds: (1 + 2/3 + 0) / 3."""
    assert result.summary["organ"]["dice"].mean == pytest.approx(5 / 9)
    assert result.summary["organ"]["dice"].defined == 3
    lesion = result.summary["lesion"]["dice"]
    assert (lesion.mean, lesion.std, lesion.defined, lesion.undefined) == (pytest.approx(2 / 3), 0, 1, 2)


def test_the_table_of_folds(result):
    """Organ: 5/6 in fold 3 and 0 in fold 1, 5/12 on average, which is also how far either is from it."""
    rows = table(describe(result, LABELS), 2)
    assert rows[("organ", "dice")] == ["0.8333", "±", "0.167", "0.0000", "±", "0.000", "0.4167", "±", "0.4167"]
    assert rows[("organ", "iou")] == ["0.7500", "±", "0.250", "0.0000", "±", "0.000", "0.3750", "±", "0.3750"]
    assert rows[("organ", "precision")] == ["1.0000", "±", "0.000", "0.0000", "±", "0.000", "0.5000", "±", "0.5000"]
    assert rows[("lesion", "dice")] == ["0.6667", "±", "0.000", "-", "0.6667", "±", "0.0000"]
    assert rows[("mean", "dice")] == ["0.7500", "0.0000", "0.3750", "±", "0.3750"]
    header = describe(result, LABELS).split("\n\n")[2].splitlines()[0]
    assert header.split() == ["label", "metric", "fold", "3", "fold", "1", "folds"]


def test_a_fold_without_any_label_has_no_mean(tmp_path):
    empty = nifti(tmp_path / "empty.nii", np.zeros((1, 1, 6), np.uint8), np.eye(4))
    organ = nifti(tmp_path / "organ.nii", np.array([[CASES["a"][0]]], np.uint8), np.eye(4))
    jobs = {0: [ScoreJob("e", empty, empty, LABELS)], 1: [ScoreJob("a", organ, organ, LABELS)]}
    rows = table(describe(cross_validate_folds("2d", "unet", jobs, 2, workers=0), LABELS), 2)
    assert rows[("mean", "dice")] == ["-", "1.0000", "1.0000", "±", "0.0000"]


def test_the_confusion_is_that_of_all_cases(result):
    """18 voxels: of 10 of the background, 2 taken for organ; of 6 of the organ, 3 lost; of 2 of the lesion, 1."""
    rows = table(describe(result, LABELS), 3)
    assert rows[("background", "0.8000")] == ["0.2000", "0.0000", "10"]
    assert rows[("organ", "0.5000")] == ["0.5000", "0.0000", "6"]
    assert rows[("lesion", "0.5000")] == ["0.0000", "0.5000", "2"]


def test_untrained_folds_are_said(result):
    first = describe(result, LABELS).splitlines()[0]
    assert first == "3d_fullres, unet: 3 cases in 2 folds (of 5: the others are not trained)"
    complete = CrossValidation(1, "2d", "unet", result.folds, 2, result.summary)
    assert describe(complete, LABELS).splitlines()[0] == "2d, unet: 3 cases in 2 folds"


def test_pooled_statistics_and_verdicts_follow_the_tables(result):
    """Organ: 0, 2/3, 1. Its median is 2/3; of the mean over labels, too: 1, 2/3, 0."""
    assert result.summary["organ"]["dice"].median == pytest.approx(2 / 3)
    assert result.mean_dice.median == pytest.approx(2 / 3)
    assert result.per_fold["3"]["organ"]["dice"].std == pytest.approx(1 / 6)
    shown = describe(result, LABELS).split("\n\n")
    assert shown[4].splitlines()[0].split()[0] == "dice"
    lines = shown[5].splitlines()
    assert lines[0].startswith("verdict: fair, mean Dice 0.556 (good is above 0.8, poor below 0.5)")
    assert lines[1] == "WARNING: fold 1 failed: mean Dice 0.000, 0.833 in the other folds"


def test_a_record_of_an_older_version_is_read(result, tmp_path):
    save(tmp_path / "crossval.json", result)
    plain = json.loads((tmp_path / "crossval.json").read_text())
    for name in ("mean_dice", "per_fold", "bands", "flags", "coverage", "curves"):
        del plain[name]
    (tmp_path / "crossval.json").write_text(json.dumps(plain))
    older = load(CrossValidation, tmp_path / "crossval.json")
    assert older.summary == result.summary
    assert len(describe(older, LABELS).split("\n\n")) == 4


def test_the_record_survives_its_file(result, tmp_path):
    save(tmp_path / "crossval.json", result)
    assert load(CrossValidation, tmp_path / "crossval.json") == result


def test_a_missing_prediction_is_named(tmp_path):
    nifti(tmp_path / "validation" / "a.nii.gz", np.zeros((1, 1, 6), np.uint8))
    cases = [case(tmp_path, "a"), case(tmp_path, "b")]
    with pytest.raises(StateError, match=r"validation/b\.nii\.gz does not exist"):
        validation_jobs(tmp_path / "validation", cases, LABELS)


def test_predictions_bear_the_ending_of_their_images(tmp_path):
    """But never that of a format that alters values."""
    cases = [case(tmp_path, "a", ".mha"), case(tmp_path, "b", ".JPG"), case(tmp_path, "c", ".png")]
    folder = tmp_path / "validation"
    folder.mkdir()
    for name in ("a.mha", "b.png", "c.png"):
        (folder / name).touch()
    jobs = validation_jobs(folder, cases, LABELS)
    assert [(job.case, job.segmentation.name, job.reference.name) for job in jobs] == [
        ("a", "a.mha", "a.nii"),
        ("b", "b.png", "b.nii"),
        ("c", "c.png", "c.nii"),
    ]
