"""Label files against label files, worked out by hand."""

import csv
import dataclasses
import itertools
import math
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
from autoseg.errors import DataError
from autoseg.evaluation.evaluate import (
    CaseScore,
    ScoreJob,
    Summary,
    columns_of,
    confusion_table,
    labels_found,
    mean_over_labels,
    pair_folders,
    score_case,
    score_cases,
    summarise,
    summary_table,
    total_confusion,
    write_csv,
)
from autoseg.evaluation.intervals import interval_of_mean
from autoseg.evaluation.surfaces import SURFACE_METRICS, surface_distances
from autoseg.imaging.labels import LabelSet
from files import itk_image, nifti, png, stack

X, Y, Z = 0.5, 1.0, 2.0  # mm
AFFINE = np.diag([X, Y, Z, 1.0])
ONE = LabelSet({"organ": 1})

OVERLAP = ("dice", "iou", "recall", "precision", "volume_error", "volume_error_ml")
SHAPES = ("hd95", "hd", "assd", "nsd", "boundary_f1", "boundary_iou", "lesion_f1", "pq", "sq")


def volume(*rows: list[int]) -> np.ndarray:
    """Labels (len(rows), 1, x): one row of voxels per slice."""
    return np.array(rows, dtype=np.uint8)[:, None]


def score(folder: Path, labels: LabelSet, reference: np.ndarray, segmentation: np.ndarray) -> CaseScore:
    folder.mkdir(exist_ok=True)
    return score_case(
        ScoreJob(
            "case",
            nifti(folder / "reference.nii", reference, AFFINE),
            nifti(folder / "segmentation.nii", segmentation, AFFINE),
            labels,
        )
    )


# ---- one case


def test_scores_by_hand(tmp_path):
    """`shifted` is moved by one voxel, `missed` not found, `invented` in the segmentation alone, `absent` nowhere.

    Voxels are 0.5 x 1 x 2 mm: 0.001 ml.
    """
    labels = LabelSet({"shifted": 1, "missed": 2, "invented": 5, "absent": 7})
    result = score(
        tmp_path,
        labels,
        volume([1, 1, 1, 0, 0], [2, 2, 0, 0, 0]),
        volume([0, 1, 1, 1, 0], [0, 0, 0, 0, 5]),
    )
    assert result.case == "case"
    assert result.confusion == (
        (3, 1, 0, 1, 0),
        (1, 2, 0, 0, 0),
        (2, 0, 0, 0, 0),
        (0, 0, 0, 0, 0),
        (0, 0, 0, 0, 0),
    )
    assert result.voxel_ml == pytest.approx(0.001)
    assert result.diagonal_mm == pytest.approx(math.hypot(2 * Z, 5 * X))  # the one line has no extent
    assert result.tolerances_mm == dict.fromkeys(labels.values, 1.0)
    shown = {label: {metric: values[metric] for metric in OVERLAP} for label, values in result.scores.items()}
    assert shown == {
        "shifted": {"dice": pytest.approx(2 / 3), "iou": 1 / 2, "recall": pytest.approx(2 / 3),
                    "precision": pytest.approx(2 / 3), "volume_error": 0, "volume_error_ml": 0},
        "missed": {"dice": 0, "iou": 0, "recall": 0, "precision": None, "volume_error": -1,
                   "volume_error_ml": pytest.approx(-0.002)},
        "invented": {"dice": 0, "iou": 0, "recall": None, "precision": 0, "volume_error": None,
                     "volume_error_ml": pytest.approx(0.001)},
        "absent": dict.fromkeys(OVERLAP) | {"volume_error_ml": 0},
    }  # fmt: skip
    for label in ("missed", "invented"):
        assert {m: result.scores[label][m] for m in SHAPES} == {
            "hd95": None, "hd": None, "assd": None, "nsd": 0, "boundary_f1": 0, "boundary_iou": 0,
            "lesion_f1": 0, "pq": 0, "sq": None,
        }  # fmt: skip
    assert {result.scores["absent"][metric] for metric in SHAPES} == {None}


def test_distances_are_in_millimetres_of_the_reference_grid(tmp_path):
    """Two voxels, moved by one voxel along z: 2 mm. Moved by three along x: 1.5 mm."""
    along_z = score(tmp_path / "z", ONE, volume([1, 0, 0, 0], [0, 0, 0, 0]), volume([0, 0, 0, 0], [1, 0, 0, 0]))
    along_x = score(tmp_path / "x", ONE, volume([1, 0, 0, 0], [0, 0, 0, 0]), volume([0, 0, 0, 1], [0, 0, 0, 0]))
    assert [s.scores["organ"]["hd95"] for s in (along_z, along_x)] == pytest.approx([2.0, 1.5])
    assert [s.scores["organ"]["nsd"] for s in (along_z, along_x)] == [0.5, 0.5]  # half of each contour


def test_ignored_voxels_count_nowhere(tmp_path):
    """Without the last two voxels, of which nobody knows, the segmentation is perfect but for one voxel."""
    labels = LabelSet({"organ": 1, "other": 3}, ignore=255)
    result = score(tmp_path, labels, volume([1, 1, 0, 3, 255, 255]), volume([1, 0, 0, 3, 1, 3]))
    assert result.confusion == ((1, 0, 0), (1, 1, 0), (0, 0, 1))
    assert result.scores["organ"]["dice"] == pytest.approx(2 / 3)
    assert result.scores["organ"]["precision"] == 1
    assert result.scores["organ"]["hd"] == pytest.approx(X)  # not 2 mm, as far as the ignored claim lies
    assert {m: result.scores["other"][m] for m in (*OVERLAP, *SHAPES)} == {
        "dice": 1, "iou": 1, "recall": 1, "precision": 1, "volume_error": 0, "volume_error_ml": 0,
        "hd95": 0, "hd": 0, "assd": 0, "nsd": 1, "boundary_f1": 1, "boundary_iou": 1,
        "lesion_f1": 1, "pq": 1, "sq": 1,
    }  # fmt: skip


def test_a_label_in_one_slice_of_a_volume_has_two_sides(tmp_path):
    """Its box has an extent of 1, the image has not: surfaces are measured as in the whole image."""
    reference, segmentation = np.zeros((2, 4, 6, 7), np.uint8)
    reference[1, 1:4, 1:4], segmentation[1, 1:5, 2:5] = 1, 1
    found = score(tmp_path, ONE, reference, segmentation).scores["organ"]
    whole = surface_distances(reference > 0, segmentation > 0, (Z, Y, X))
    assert {name: found[name] for name in SURFACE_METRICS} == pytest.approx(
        {name: metric(whole) for name, metric in SURFACE_METRICS.items()}
    )


def test_the_tolerance_is_that_of_the_label(tmp_path):
    """Two labels, both moved by two voxels of 0.5 mm, with tolerances of 1 and of 0.9 mm."""
    labels = LabelSet({"near": 1, "far": 2})
    reference, segmentation = volume([1, 0, 0, 0, 2, 0, 0]), volume([0, 0, 1, 0, 0, 0, 2])
    paths = []
    for name, array in (("reference", reference), ("segmentation", segmentation)):
        paths.append(nifti(tmp_path / f"{name}.nii", array, AFFINE))
    found = score_case(ScoreJob("case", *paths, labels, tolerances_mm={"far": 0.9}))
    assert found.tolerances_mm == {"near": 1.0, "far": 0.9}
    assert [found.scores[label]["nsd"] for label in labels.values] == [1, 0.5]  # ends are 0.5 and 1 mm off


def test_centre_lines_are_compared_where_it_is_asked_for(tmp_path):
    labels = LabelSet({"vessel": 1, "organ": 2})
    array = np.zeros((3, 20, 20), np.uint8)
    array[1, 2:18, 4], array[1, 2:18, 12:16] = 1, 2
    path = nifti(tmp_path / "a.nii", array, AFFINE)
    for tubes, expected in (((), [None, None]), (("vessel",), [1, None]), (("all",), [1, 1])):
        scores = score_case(ScoreJob("case", path, path, labels, tubes=tubes)).scores
        assert [scores[label]["centreline_dice"] for label in labels.values] == expected


def test_a_segmentation_cannot_ignore(tmp_path):
    """The ignore value is for references; a segmentation that holds it where voxels are annotated is refused."""
    labels = LabelSet({"organ": 1}, ignore=255)
    with pytest.raises(
        DataError, match=r"segmentation\.nii contains the ignore value 255 on 1 voxels .*reference\.nii"
    ):
        score(tmp_path, labels, volume([1, 1, 0, 255]), volume([1, 0, 255, 0]))
    result = score(tmp_path, labels, volume([1, 1, 0, 255]), volume([1, 0, 0, 255]))  # where the reference does, too
    assert result.confusion == ((1, 0), (1, 1))


def test_regions_are_scored_instead_of_labels(tmp_path):
    """whole: 3 voxels found and 1 too many, 2*3/(2*3+1). core: 1 of 1 found and 1 too many, 2/3."""
    labels = LabelSet({"oedema": 1, "core": 4}, {"whole": (1, 4), "core": (4,)}, (1, 4))
    result = score(tmp_path, labels, volume([1, 4, 1, 0, 0]), volume([4, 4, 1, 0, 1]))
    assert list(result.scores) == ["whole", "core"]
    assert result.scores["whole"]["dice"] == pytest.approx(6 / 7)
    assert result.scores["whole"]["recall"] == 1
    assert result.scores["core"]["dice"] == pytest.approx(2 / 3)
    assert result.scores["core"]["precision"] == pytest.approx(1 / 2)


rows = st.lists(st.sampled_from([0, 1, 4, 9]), min_size=6, max_size=6)


@settings(max_examples=15, deadline=None)
@given(rows, rows)
def test_overlap_is_that_of_sets(tmp_path_factory, reference, segmentation):
    """Dice and recall as sets of voxels have them; nothing is undefined that both sets define."""
    result = score(
        tmp_path_factory.getbasetemp() / "sets", LabelSet({"a": 1, "b": 4}, ignore=9), volume(reference),
        volume([s if s < 9 else 0 for s in segmentation]),
    )  # fmt: skip
    for name, value in (("a", 1), ("b", 4)):
        wanted = {i for i, v in enumerate(reference) if v == value}
        found = {i for i, v in enumerate(segmentation) if v == value and reference[i] != 9}
        shared, either = len(wanted & found), len(wanted) + len(found)
        assert result.scores[name]["dice"] == (pytest.approx(2 * shared / either) if either else None)
        assert result.scores[name]["recall"] == (pytest.approx(shared / len(wanted)) if wanted else None)


@pytest.mark.parametrize(
    "moved",
    [
        (np.zeros((1, 1, 6), np.uint8), AFFINE),  # another shape
        (np.zeros((1, 1, 5), np.uint8), np.diag([0.6, Y, Z, 1.0])),  # other voxels
        (np.zeros((1, 1, 5), np.uint8), np.diag([-X, Y, Z, 1.0])),  # running the other way from the same corner
        (np.zeros((1, 1, 5), np.uint8), AFFINE + 0.1 * np.eye(4, k=3)),  # 0.1 mm away: a fifth of a voxel
    ],
    ids=["shape", "spacing", "direction", "origin"],
)
def test_other_grids_are_refused_and_both_files_named(tmp_path, moved):
    reference = nifti(tmp_path / "expert.nii", np.zeros((1, 1, 5), np.uint8), AFFINE)
    segmentation = nifti(tmp_path / "network.nii", *moved)
    with pytest.raises(DataError, match=r"network\.nii.*another grid.*expert\.nii"):
        score_case(ScoreJob("case", reference, segmentation, ONE))


def test_a_segmentation_in_another_order_of_axes_is_reordered(tmp_path):
    """The segmentation's x axis runs the other way, over the same place: 2 of its 3 voxels are right."""
    reference = nifti(tmp_path / "expert.nii", np.array([[[0, 1, 1, 0, 0]]], np.uint8), AFFINE)
    reversed_x = np.diag([-X, Y, Z, 1.0]) + 4 * X * np.eye(4, k=3)
    segmentation = nifti(tmp_path / "network.nii", np.array([[[0, 0, 1, 1, 1]]], np.uint8), reversed_x)
    assert score_case(ScoreJob("case", reference, segmentation, ONE)).scores["organ"]["dice"] == pytest.approx(4 / 5)


def test_a_segmentation_without_a_place_is_compared_voxel_by_voxel(tmp_path):
    labels = np.array([[[0, 1, 1, 0, 0]]], np.uint8)
    reference = nifti(tmp_path / "expert.nii", labels, AFFINE)
    unplaced = tiny.unplaced(nifti(tmp_path / "network.nii", labels, AFFINE))
    for job in (ScoreJob("case", reference, unplaced, ONE), ScoreJob("case", unplaced, reference, ONE)):
        assert score_case(job).scores["organ"]["dice"] == 1


def test_rounding_of_a_header_is_no_other_grid(tmp_path):
    labels = np.array([[[0, 1, 1]]], np.uint8)
    reference = nifti(tmp_path / "expert.nii", labels, AFFINE)
    segmentation = nifti(tmp_path / "network.nii", labels, AFFINE + 0.04 * np.eye(4, k=3))  # 0.08 voxels
    assert score_case(ScoreJob("case", reference, segmentation, ONE)).scores["organ"]["dice"] == 1


@pytest.mark.parametrize("culprit", ["expert.nii", "network.nii"])
def test_values_that_are_no_label_are_counted_and_their_file_named(tmp_path, culprit):
    files = {}
    for name in ("expert.nii", "network.nii"):
        files[name] = nifti(tmp_path / name, volume([0, 3, 3, 1] if name == culprit else [0, 0, 0, 1]), AFFINE)
    with pytest.raises(DataError, match=rf"{culprit} .*\{{3: 2\}}"):
        score_case(ScoreJob("case", files["expert.nii"], files["network.nii"], ONE))


def test_pictures_do_not_say_where_they_lie(tmp_path):
    """A stack of TIFF pages without spacing is compared with a NIfTI of the same shape, in the NIfTI's millimetres."""
    labels = np.zeros((3, 4, 5), np.uint8)
    labels[1, 1, 1] = 1
    moved = np.roll(labels, 1, axis=0)
    for reference, segmentation in (
        (nifti(tmp_path / "a.nii", labels, AFFINE), stack(tmp_path / "a.tif", moved)),
        (stack(tmp_path / "b.tif", labels), nifti(tmp_path / "b.nii", moved, AFFINE)),
    ):
        result = score_case(ScoreJob("case", reference, segmentation, ONE))
        assert result.scores["organ"]["hd95"] == pytest.approx(Z)
    with pytest.raises(DataError, match="another grid"):
        score_case(ScoreJob("case", tmp_path / "a.nii", stack(tmp_path / "c.tif", labels[:2]), ONE))


# ---- two folders


def test_folders_are_paired_by_name_whatever_the_format(tmp_path):
    labels = np.array([[[0, 1], [1, 1]]], np.uint8)
    references, predictions = tmp_path / "references", tmp_path / "predictions"
    for folder in (references, predictions):
        folder.mkdir()
    itk_image(references / "b.c.nrrd", labels)
    itk_image(predictions / "b.c.mha", labels)
    png(references / "a.png", labels[0])
    stack(predictions / "a.tif", labels[0])
    itk_image(predictions / "extra.mha", labels)  # nobody asked for it
    (references / "notes.txt").write_text("not a label map")
    (references / "._a.png").write_bytes(b"macOS writes such files")
    jobs = pair_folders(predictions, references, ONE)
    assert [(job.case, job.reference.name, job.segmentation.name) for job in jobs] == [
        ("a", "a.png", "a.tif"),
        ("b.c", "b.c.nrrd", "b.c.mha"),
    ]
    assert [s.scores["organ"]["dice"] for s in score_cases(jobs, workers=0)] == [1, 1]


def test_missing_predictions_are_named(tmp_path):
    for i in range(13):
        nifti(tmp_path / "references" / f"case{i:02d}.nii", volume([0, 1]), AFFINE)
    nifti(tmp_path / "predictions" / "case03.nii", volume([0, 1]), AFFINE)
    with pytest.raises(DataError, match=r"12 of 13 references") as caught:
        pair_folders(tmp_path / "predictions", tmp_path / "references", ONE)
    assert "case02, case04" in caught.value.what
    assert "case03" not in caught.value.what
    assert caught.value.what.endswith("case10 ...")  # ten of them are named


def test_folders_that_are_none_or_empty(tmp_path):
    nifti(tmp_path / "full" / "case.nii", volume([0, 1]), AFFINE)
    (tmp_path / "empty").mkdir()
    for wrong, what in (("nowhere", "is not a folder"), ("empty", "contains no label file")):
        for pair in ((wrong, "full"), ("full", wrong)):
            with pytest.raises(DataError, match=rf"{wrong} {what}"):
                pair_folders(*(tmp_path / name for name in pair), ONE)
        with pytest.raises(DataError, match=rf"{wrong} {what}"):
            labels_found(tmp_path / wrong)


def test_two_files_of_one_name_are_not_guessed_between(tmp_path):
    for ending in ("nii", "nii.gz"):
        nifti(tmp_path / "predictions" / f"case.{ending}", volume([0, 1]), AFFINE)
    nifti(tmp_path / "references" / "case.nii", volume([0, 1]), AFFINE)
    with pytest.raises(DataError, match=r"case\.nii and case\.nii\.gz"):
        pair_folders(tmp_path / "predictions", tmp_path / "references", ONE)


def test_labels_are_named_after_their_values_where_nobody_named_them(tmp_path):
    nifti(tmp_path / "a.nii", volume([0, 7, 2]), AFFINE)
    nifti(tmp_path / "b.nii", volume([7, 7, 30]), AFFINE)
    assert labels_found(tmp_path).values == {"label_2": 2, "label_7": 7, "label_30": 30}


# ---- many cases

A = {"dice": 1.0, "iou": 1.0, "recall": 1.0, "precision": 1.0, "hd95": 0.0}
B = {"dice": 0.5, "iou": 1 / 3, "recall": 0.5, "precision": 0.5, "hd95": 12.0}
MISSED = {"dice": 0.0, "iou": 0.0, "recall": 0.0, "precision": None, "hd95": None}
ABSENT = dict.fromkeys(A)
SPURIOUS = {"dice": 0.0, "iou": 0.0, "recall": None, "precision": 0.0, "hd95": None}
SCORES = (
    CaseScore("first", ((5, 1), (2, 2)), {"organ": A, "lesion": MISSED, "rare": ABSENT}, diagonal_mm=100.0),
    CaseScore("second", ((6, 0), (1, 3)), {"organ": B, "lesion": ABSENT, "rare": ABSENT}, diagonal_mm=70.0),
    CaseScore("third", ((9, 1), (0, 0)), {"organ": B, "lesion": B, "rare": ABSENT}, diagonal_mm=80.0),
)


def brief(summary: Summary) -> tuple[float | None, float | None, int, int]:
    return summary.mean, summary.std, summary.defined, summary.undefined


def test_means_leave_out_what_is_undefined_and_say_so():
    summary = summarise(SCORES)
    assert brief(summary["organ"]["dice"]) == (pytest.approx(2 / 3), pytest.approx(math.sqrt(1 / 18)), 3, 0)
    assert brief(summary["organ"]["hd95"]) == (pytest.approx(8), pytest.approx(math.sqrt(32)), 3, 0)
    assert brief(summary["lesion"]["dice"]) == (pytest.approx(0.25), pytest.approx(0.25), 2, 1)
    assert brief(summary["lesion"]["precision"]) == (pytest.approx(0.5), pytest.approx(0), 1, 2)
    assert summary["rare"]["dice"] == Summary(None, None, 0, 3)
    assert mean_over_labels(summary) == pytest.approx((2 / 3 + 1 / 4) / 2)
    assert mean_over_labels(summary, "hd95") == pytest.approx(10)
    assert mean_over_labels({"rare": summary["rare"]}) is None
    assert summarise(()) == {}


def test_a_missed_object_does_not_improve_the_mean_distance():
    """The lesion is missed in the first image, whose diagonal is 100 mm, and 12 mm off in the third: 56 mm."""
    summary = summarise(SCORES)["lesion"]
    assert (summary["hd95"].mean, summary["hd95"].mean_penalised) == (12, 56)
    assert (summary["hd95"].missed, summary["hd95"].spurious) == (1, 0)
    assert (summary["dice"].missed, summary["dice"].mean_penalised) == (1, None)  # it counts as 0 there anyway
    scores = {"organ": A, "lesion": SPURIOUS, "rare": ABSENT}
    found = summarise([*SCORES, CaseScore("fourth", ((9, 1), (0, 0)), scores, diagonal_mm=200.0)])
    assert found["lesion"]["hd95"].mean_penalised == pytest.approx((100 + 12 + 200) / 3)
    assert (found["lesion"]["hd95"].missed, found["lesion"]["hd95"].spurious) == (1, 1)
    assert summarise(SCORES)["organ"]["hd95"].mean_penalised == pytest.approx(8)  # nothing to punish
    unknown = [dataclasses.replace(score, diagonal_mm=None) for score in SCORES]  # written by an older version
    assert summarise(unknown)["lesion"]["hd95"].mean_penalised is None


def test_the_middle_and_the_spread_of_a_metric():
    summary = summarise(SCORES)["organ"]["hd95"]  # 0, 12, 12
    assert (summary.median, summary.quartiles) == (12, (6, 12))


def test_intervals_are_over_patients():
    """Two scans of one patient and one of another: the mean of a draw is 2, 4 (1/2, 1/4) or their mixture."""
    cases = [
        CaseScore(name, ((1,),), {"organ": A | {"hd95": value}}) for name, value in (("a", 2.0), ("b", 2.0), ("c", 4.0))
    ]
    summary = summarise(cases, {"a": "one", "b": "one", "c": "two"})["organ"]
    assert summary["hd95"].interval == (2, 4)
    assert summary["hd95"].interval == interval_of_mean([2, 2, 4], ["one", "one", "two"])
    assert summarise(cases, {"a": "x", "b": "x", "c": "x"})["organ"]["hd95"].interval is None  # one patient
    assert summarise(cases, {})["organ"]["hd95"].interval == interval_of_mean([2, 2, 4], "abc")
    assert summarise(cases)["organ"]["hd95"].interval is None  # nobody asked


def test_the_table_says_over_how_many_cases_a_mean_is_taken():
    lines = summary_table(summarise(SCORES), "3 cases").splitlines()
    assert lines[0].split() == ["3", "cases", "dice", "iou", "recall", "precision", "hd95", "cases"]
    assert set(lines[1]) == {"-"}
    organ, lesion, rare, mean, missed = lines[2:]
    assert organ.split() == [
        "organ", "0.6667", "±", "0.236", "0.5556", "±", "0.314", "0.6667", "±", "0.236", "0.6667", "±", "0.236",
        "8.0000", "±", "5.657", "3",
    ]  # fmt: skip
    assert lesion.startswith("lesion   0.2500 ± 0.250")
    assert "0.5000 ± 0.000 (1)" in lesion  # precision, of one case where Dice has two
    assert "12.00 ± 0.00 (1)" in lesion
    assert lesion.endswith("2 (+1 undefined)")
    assert rare.split() == ["rare", "-", "-", "-", "-", "-", "0", "(+3", "undefined)"]
    assert mean.split() == ["mean", "0.4583", "0.3611", "0.4583", "0.5833", "10.00"]
    assert missed == "lesion: missed in 1 and spurious in 0 of 2 cases; with the image's diagonal for these, hd95 56.00"


def test_tables_show_a_few_metrics_and_those_of_plugins():
    known = ["dice", "iou", "recall", "precision", "hd95", "assd", "nsd"]
    assert columns_of([*known, "mine"]) == ["dice", "iou", "recall", "precision", "hd95", "nsd", "mine"]
    scores = [CaseScore("a", ((1,),), {"organ": dict.fromkeys([*known, "mine"], 0.5)})]
    assert summary_table(summarise(scores), "cases").splitlines()[0].split()[-2:] == ["mine", "cases"]


def test_confusions_are_summed_and_shown_as_shares_of_the_reference():
    """Of 22 background voxels 20 are right; of 8 organ voxels 5."""
    total = total_confusion(SCORES)
    np.testing.assert_array_equal(total, [[20, 2], [3, 5]])
    lines = confusion_table(total, ["background", "organ"]).splitlines()
    assert [line.split() for line in lines[2:4]] == [
        ["background", "0.9091", "0.0909", "22"],
        ["organ", "0.3750", "0.6250", "8"],
    ]
    assert lines[4:] == ["accuracy 0.8333, that of predicting background alone 0.7333"]  # 25 and 22 of 30
    empty = confusion_table(np.array([[4, 0], [0, 0]]), ["background", "organ"]).splitlines()
    assert empty[3].split() == ["organ", "0.0000", "0.0000", "0"]
    nothing = confusion_table(np.zeros((2, 2), int), ["background", "organ"]).splitlines()
    assert len(nothing) == 4  # no voxel, no accuracy
    with pytest.raises(ValueError, match="zip"):
        confusion_table(total, ["background"])


def test_the_csv_has_one_row_per_case_and_label(tmp_path):
    write_csv(tmp_path / "new" / "scores.csv", SCORES)
    with open(tmp_path / "new" / "scores.csv", newline="") as file:
        table = list(csv.reader(file))
    assert table[0] == ["case", "label", "dice", "iou", "recall", "precision", "hd95", "presence", "diagonal_mm"]
    assert [row[:2] for row in table[1:]] == [
        list(pair) for pair in itertools.product(("first", "second", "third"), ("organ", "lesion", "rare"))
    ]
    assert table[2] == ["first", "lesion", "0.0", "0.0", "0.0", "", "", "missed", "100.0"]
    assert table[3][2:] == [""] * 5 + ["absent", "100.0"]
    assert [row[7] for row in table[1:] if row[1] == "organ"] == ["found"] * 3
    assert float(table[4][3]) == 1 / 3  # in full
    assert b"\r" not in (tmp_path / "new" / "scores.csv").read_bytes()


def test_references_that_cannot_be_read_are_not_left_out_of_the_mean(tmp_path):
    for folder in ("predictions", "references"):
        nifti(tmp_path / folder / "a.nii", volume([0, 1]), AFFINE)
    (tmp_path / "predictions/b.nii.gz.part").write_bytes(b"left behind")
    assert len(pair_folders(tmp_path / "predictions", tmp_path / "references", ONE)) == 1
    (tmp_path / "references/b.mgz").write_bytes(b"something")
    with pytest.raises(DataError, match=r"1 references cannot be read; the first is .*b\.mgz: is a FreeSurfer volume"):
        pair_folders(tmp_path / "predictions", tmp_path / "references", ONE)


def test_names_of_predictions_match_however_their_accents_are_composed(tmp_path):
    for folder, form in (("predictions", "NFC"), ("references", "NFD")):
        nifti(tmp_path / folder / (unicodedata.normalize(form, "café") + ".nii"), volume([0, 1]), AFFINE)
    (job,) = pair_folders(tmp_path / "predictions", tmp_path / "references", ONE)
    assert job.case == "caf\u00e9"


def test_a_reference_may_say_that_it_is_one(tmp_path):
    """As in training: images/a.nii with labels/a_seg.nii."""
    for name in ("predictions/a", "predictions/b_seg", "references/a_seg", "references/b_seg"):
        nifti(tmp_path / f"{name}.nii", volume([0, 1]), AFFINE)
    jobs = pair_folders(tmp_path / "predictions", tmp_path / "references", ONE)
    assert [(job.reference.stem, job.segmentation.stem) for job in jobs] == [("a_seg", "a"), ("b_seg", "b_seg")]
