"""Labels that cannot be learnt as they are: of one patient, absent, empty, ignored."""

import numpy as np
import pytest
from PIL import Image

import tiny
from autoseg.datasets.checks.annotation import blurred_mask, compare_labels, empty_label
from autoseg.datasets.checks.problems import check
from autoseg.datasets.dataset import discover, parse_options
from autoseg.datasets.pairing import Case
from autoseg.imaging.labels import LabelSet


def cases(*values, patients=None):
    """One case per tuple of label values, of a patient of its own unless patients are given."""
    people = patients or [f"p{i}" for i in range(len(values))]
    return [(Case(f"c{i}", people[i], (), f"c{i}.nii"), (0, *v)) for i, v in enumerate(values)]


LABELS = LabelSet({"organ": 1, "rare": 2})


def said(found, labels=LABELS):
    return [(problem.severity, problem.file, problem.what) for problem in compare_labels(found, labels, "root")]


def test_a_label_of_one_patient_has_consequences():
    one = said(cases(*[(1,)] * 9, (1, 2)))
    assert one == [
        (
            "warning",
            "c9.nii",
            "label of a single patient: rare (p9); the fold that holds the patient out cannot learn it, and the other "
            "folds cannot be evaluated on it",
        )
    ]
    several = cases(*[(1,)] * 8, (1, 2), (1, 2), patients=[f"p{i}" for i in range(8)] + ["twice", "twice"])
    assert "rare (twice)" in said(several)[0][2]


def test_a_label_of_fewer_patients_than_folds():
    (found,) = said(cases(*[(1,)] * 6, *[(1, 2)] * 4))
    assert found[2] == (
        "label of fewer patients than the 5 folds: rare (p6, p7, p8, p9); "
        "some folds have none in their validation cases"
    )
    assert said(cases(*[(1,)] * 5, *[(1, 2)] * 5)) == []
    assert said(cases((1, 2), (1, 2), (1,))) == []  # with three patients no label has five, and the folds are fewer


def test_many_labels_are_said_once():
    many = LabelSet({f"l{i}": i for i in range(1, 301)})
    found = cases(*[(1,)] * 5, tuple(range(1, 101)))
    texts = [what for _, _, what in said(found, many)]
    assert len(texts) == 2
    assert "200 labels are in none of the 6 label files: l101 (101), l102 (102)" in texts[0]
    assert "l105 (105) and 195 more" in texts[0]
    assert "labels of a single patient: l2 (p5), l3 (p5), l4 (p5), l5 (p5), l6 (p5) and 94 more" in texts[1]
    assert all(len(text) < 300 for text in texts)


def test_labels_beyond_8_bits():
    many = LabelSet({f"l{i}": i for i in range(1, 301)})
    (found,) = compare_labels(cases(*[tuple(range(1, 256))] * 5), many, "root")
    assert "45 labels are in none" in found.what
    assert "8 bits" in found.remedy


def test_a_set_without_any_label_has_one_fault():
    (found,) = said(cases((), (), ()))
    assert found == ("error", "root", "none of the 3 label files contains any label: there is nothing to train on")
    assert said([]) == []


def test_aliases_count_as_what_they_mean():
    labels = LabelSet({"organ": 1}, aliases={255: 1})
    assert said(cases(*[(255,)] * 3, *[(1,)] * 3), labels) == []


def test_values_that_are_never_written_are_named():
    labels = LabelSet({"fat": 1, "duct": 2, "gland": 3}, {"breast": (1, 2), "gland": (3,)}, (1, 3))
    (found,) = said(cases(*[(1, 2, 3)] * 5), labels)
    assert found == ("warning", "root", "segmentations contain 1 where duct is found, never 2")


@pytest.mark.parametrize(
    ("counts", "begins"),
    [
        ({0: 9}, "empty label: the file contains only background"),
        ({0: 9, 7: 3}, "empty label: the file contains only background and 3 ignored voxels"),
        ({7: 12}, "ignored throughout: every voxel is 7"),
        ({0: 9, 1: 1}, ""),
        ({7: 9, 1: 1}, ""),
        ({0: 9, 5: 1}, ""),  # unexpected: named as such
    ],
)
def test_an_empty_label_is_not_an_ignored_one(counts, begins):
    what, remedy = empty_label(counts, LabelSet({"organ": 1}, ignore=7))
    assert what.startswith(begins)
    assert bool(what) == bool(remedy) == bool(begins)


@pytest.mark.parametrize(
    ("counts", "blurred"),
    [
        ({0: 800, 255: 150, **dict.fromkeys((1, 2, 3, 7, 249, 250, 252, 254), 2)}, True),
        ({0: 800, 255: 150, **dict.fromkeys((1, 2, 3, 7, 249, 250, 252), 2)}, False),  # seven others
        ({0: 800, 255: 150, **dict.fromkeys((1, 2, 3, 7, 128, 250, 252, 254), 2)}, False),  # a label in the middle
        (dict.fromkeys(range(30), 10), False),
        ({0: 9, 255: 9}, False),
        ({0: 100, 255: 20, **dict.fromkeys((1, 2, 3, 7, 249, 250, 252, 254), 50)}, False),  # labels as large as any
        ({-1: 5, 0: 800, 255: 150, **dict.fromkeys((1, 2, 3, 7, 249, 250, 252, 254), 2)}, False),
    ],
)
def test_a_mask_that_was_a_jpeg(counts, blurred):
    assert bool(blurred_mask(counts)) == blurred


def test_a_real_jpeg_in_a_png_is_refused(tmp_path):
    mask = np.zeros((64, 64), np.uint8)
    mask[20:43, 17:40] = 255
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for i in range(2):
        tiny.picture(tmp_path / f"images/p{i}.png", np.random.default_rng(i).integers(0, 99, mask.shape, np.uint8))
        tiny.picture(tmp_path / f"masks/p{i}.png", mask)
    Image.fromarray(mask).save(tmp_path / "a.jpg", quality=90)
    tiny.picture(tmp_path / "masks/p1.png", np.asarray(Image.open(tmp_path / "a.jpg")))
    dataset, known = discover(tmp_path)
    found = check(dataset, known=known, workers=0)[0]
    assert [p.case for p in found if "stored with lossy compression" in p.what] == ["p1"]


def test_check_tells_them_apart(tmp_path):
    tiny.nnunet(tmp_path, [f"c{i}" for i in range(6)], ("MR",))
    tiny.nifti(tmp_path / "labelsTr/c3.nii.gz", np.full(tiny.SHAPE, 9, np.uint8))
    tiny.nifti(tmp_path / "labelsTr/c4.nii.gz", tiny.label())
    dataset, known = discover(tmp_path, parse_options(ignore="9"))
    found = {p.case: p.what for p in check(dataset, known=known, workers=0)[0] if p.case}
    assert found["c3"].startswith("ignored throughout")
    assert found["c4"].startswith("empty label")
