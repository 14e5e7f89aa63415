"""Grids that do not fit the rest of their data set, and honest mixtures that do."""

import numpy as np
import pytest

import tiny
from autoseg.datasets.checks.grids import header_notes, mixed_sizes, odd_grids, partly_placed
from autoseg.datasets.checks.problems import check
from autoseg.datasets.dataset import discover
from autoseg.imaging.geometry import Geometry, Remark


def grids(*cases: tuple[tuple[float, ...], tuple[int, ...]], **more) -> dict[str, tuple[str, Geometry]]:
    """(spacing, shape) in (Z, Y, X) -> case id -> (file, grid)."""
    return {f"c{n}": (f"c{n}.nii", Geometry(shape, spacing, **more)) for n, (spacing, shape) in enumerate(cases)}


def found(cases) -> dict[str | None, str]:
    return {problem.case: problem.severity for problem in odd_grids(cases)}


BODY = ((1.5, 1.2, 1.0), (28, 32, 36))


def scaled(factor: float) -> tuple[tuple[float, ...], tuple[int, ...]]:
    return tuple(s * factor for s in BODY[0]), BODY[1]


@pytest.mark.parametrize("cases", [2, 3, 4, 5, 6, 60])
@pytest.mark.parametrize(
    ("factor", "severity"), [(1e3, "error"), (1e-3, "error"), (1e6, "error"), (10, "warning"), (0.1, "warning"),
                             (25.4, "warning"), (1 / 25.4, "warning"), (5, None), (1, None)]
)  # fmt: skip
def test_one_case_in_another_unit_is_named(cases, factor, severity):
    problems = odd_grids(grids(scaled(factor), *[scaled(1)] * (cases - 1)))
    expected = ["c0"] if cases > 2 else ["c0", "c1"]  # of two, nobody knows which is wrong
    assert [problem.case for problem in problems] == (expected if severity else [])
    assert {problem.severity for problem in problems} == ({severity} if severity else set())


def test_the_message_has_both_sizes_the_factor_and_the_unit():
    (problem,) = odd_grids(grids(*[scaled(1)] * 5, scaled(1000)))
    assert problem.file == "c5.nii"
    assert problem.what == (
        "voxels of 1500 x 1200 x 1000 mm, an image of 42000 x 38400 x 36000 mm: 1000 times larger than 5 other cases "
        "(such as c2: 1.5 x 1.2 x 1 mm, 42 x 38.4 x 36 mm)"
    )
    assert "metres or micrometres read as millimetres" in problem.remedy
    (problem,) = odd_grids(grids(*[scaled(1)] * 5, scaled(1 / 25.4)))
    assert "25.4 times smaller" in problem.what
    assert "inches" in problem.remedy


def test_half_a_set_in_another_unit_is_named_on_both_sides():
    assert found(grids(*[scaled(1)] * 3, *[scaled(0.001)] * 3)) == {f"c{n}": "error" for n in range(6)}
    assert found(grids(*[scaled(1)] * 4, *[scaled(0.001)] * 2)) == {"c4": "error", "c5": "error"}


def test_three_units_in_one_set():
    assert found(grids(scaled(0.001), *[scaled(1)] * 4, scaled(1000))) == {"c0": "error", "c5": "error"}


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_one_axis_in_another_unit(axis):
    spacing = tuple(s * (1000 if a == axis else 1) for a, s in enumerate(BODY[0]))
    assert found(grids(*[scaled(1)] * 5, (spacing, BODY[1]))) == {"c5": "error"}


def test_axes_are_compared_in_one_orientation():
    """Slices of 100 mm by 0.2 mm, stored in three orders of axes, are one kind of image."""
    upright = Geometry((40, 64, 64), (100.0, 0.2, 0.2))
    turned = Geometry((64, 40, 64), (0.2, 100.0, 0.2), direction=((0, 1, 0), (0, 0, 1), (1, 0, 0)))
    assert odd_grids({"a": ("a.nii", upright), "b": ("b.nii", turned), "c": ("c.nii", turned)}) == []


@pytest.mark.parametrize(
    "cases",
    [
        # head CT of 0.3 mm, body CT of 1.5 mm in slices of 10 mm, thin slices of half a body
        [((0.5, 0.3, 0.3), (320, 640, 640)), ((10.0, 1.5, 1.5), (40, 320, 320)), ((0.5, 0.7, 0.7), (900, 512, 512))],
        # a cropped organ beside whole bodies
        [((1.0, 1.0, 1.0), (35, 50, 40)), ((1.0, 1.0, 1.0), (900, 512, 512)), ((5.0, 0.9, 0.9), (60, 512, 512))],
        # one slice of 8 mm beside a volume
        [((8.0, 1.0, 1.0), (1, 256, 256)), ((1.0, 1.0, 1.0), (180, 256, 256)), ((1.2, 1.0, 1.0), (160, 256, 256))],
        # a PET and a CT of nearly one size
        [((5.0, 5.0, 5.0), (44, 44, 44)), ((0.5, 0.5, 0.5), (400, 400, 400))],
        [((1.0, 1.0, 1.0), (3, 4, 5))],
    ],
)
def test_honest_mixtures_are_left_alone(cases):
    for repeated in (1, 2, 10):
        assert odd_grids(grids(*cases * repeated)) == []


def test_a_whole_set_in_micrometres_is_microscopy():
    assert odd_grids(grids(*[scaled(1e-3), scaled(1.5e-3)] * 3)) == []
    assert odd_grids(grids(*[((1.0, 1e-6, 1e-6), (1, 900, 900))] * 3, flat=True)) == []


def test_a_whole_set_in_metres_is_told_once():
    (problem,) = odd_grids(grids(*[scaled(1000)] * 5))
    assert (problem.case, problem.severity) == (None, "warning")
    assert "42000 x 38400 x 36000 mm" in problem.what


def test_files_with_a_size_among_files_without():
    sized, unsized = grids(*[((1.0, 5e-4, 5e-4), (1, 8, 8))] * 4, flat=True), {}
    for case_id in ("u", "v"):
        unsized[case_id] = (f"{case_id}.png", Geometry((1, 8, 8), (1.0, 1.0, 1.0), flat=True, sized=False))
    assert mixed_sizes(sized) == mixed_sizes(unsized) == []
    problems = mixed_sizes(sized | unsized)
    assert [(problem.case, problem.severity) for problem in problems] == [("u", "error"), ("v", "error")]
    assert "does not state its voxel size, but 4 others do (c0 states 0.0005 x 0.0005 mm)" in problems[0].what
    rare = {"c0": sized["c0"]} | unsized
    assert [problem.case for problem in mixed_sizes(rare)] == ["c0"]
    assert odd_grids(sized | unsized) == []


def test_cases_without_a_place_among_cases_with_one():
    placed, unplaced = grids(BODY, BODY), grids(BODY, BODY, BODY, placed=False)
    assert partly_placed(placed) == partly_placed(unplaced) == []
    mixed = placed | {f"u{n}": unplaced[f"c{n}"] for n in range(3)}
    (problem,) = partly_placed(mixed)
    assert (problem.case, problem.severity) == (None, "warning")
    assert "3 of 5 cases have no position in space (u0, u1, u2), the others do" in problem.what
    flat = {"p": ("p.png", Geometry((1, 4, 5), (1.0, 1.0, 1.0), flat=True, placed=False))}
    assert partly_placed(placed | flat) == []


def test_few_remarks_are_told_one_by_one_and_many_once():
    remark = Remark("kind", "what is odd", "what to do")
    notes = [(f"c{n}", f"c{n}.nii", remark) for n in range(5)]
    assert [(p.case, p.what) for p in header_notes(notes[:3])] == [(f"c{n}", "what is odd") for n in range(3)]
    (problem,) = header_notes(notes)
    assert (problem.case, problem.severity) == (None, "warning")
    assert problem.what == "5 files alike (c0.nii, c1.nii, c2.nii, ...): what is odd"
    assert len(header_notes([*notes, ("d", "d.nii", Remark("other", "else", ""))])) == 2


# ---- whole data sets


def checked(root):
    dataset, known = discover(root)
    problems, measured = check(dataset, len_of, known=known, workers=0)
    return problems, measured


def len_of(loaded):
    return loaded.spacing


def sound(root, ids="abcdef"):
    for number, case_id in enumerate(ids):
        tiny.nifti(root / f"imagesTr/{case_id}_0000.nii.gz", tiny.image(number, (8, 9, 10)), (2.0, 1.0, 1.0))
        tiny.nifti(root / f"labelsTr/{case_id}.nii.gz", tiny.label(1, shape=(8, 9, 10)), (2.0, 1.0, 1.0))
    tiny.text(root / "dataset.json", {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "one": 1}})
    return root


def test_a_case_in_metres_is_an_error_of_check_and_not_measured(tmp_path):
    root = sound(tmp_path)
    tiny.nifti(root / "imagesTr/c_0000.nii.gz", tiny.image(9, (8, 9, 10)), (0.002, 0.001, 0.001))
    tiny.nifti(root / "labelsTr/c.nii.gz", tiny.label(1, shape=(8, 9, 10)), (0.002, 0.001, 0.001))
    problems, measured = checked(root)
    assert [(problem.case, problem.severity) for problem in problems] == [("c", "error")]
    assert sorted(measured) == list("abdef")


def test_images_without_a_place_beside_labels_with_one(tmp_path):
    root = sound(tmp_path)
    for case_id in "abcdef":
        tiny.unplaced(root / f"imagesTr/{case_id}_0000.nii.gz")
    problems, measured = checked(root)
    (problem,) = problems
    assert problem.severity == "warning"
    assert "has no position in space, but its shape and voxel size match" in problem.what
    assert len(measured) == 6


def test_labels_in_another_order_are_reordered_and_told_once(tmp_path):
    root = sound(tmp_path)
    voxels = np.zeros((8, 9, 10), np.uint8)
    voxels[1:4, 2:5, 3:5] = 1
    for case_id in "abcdef":
        mirrored = voxels[:, ::-1, ::-1]
        tiny.nifti(root / f"labelsTr/{case_id}.nii.gz", mirrored, (2.0, 1.0, 1.0), (9.0, 8.0, 0.0), "RAS")
    dataset, known = discover(root)
    problems, measured = check(dataset, centre, known=known, workers=0)
    (problem,) = problems
    assert problem.severity == "warning"
    assert "6 files alike" in problem.what
    assert "(RAS here, LPS in the image)" in problem.what
    assert "do not change its header" in problem.remedy
    assert set(measured.values()) == {((1, 2, 3), (3, 4, 4))}


def centre(loaded):
    where = np.argwhere(loaded.target == 1)
    return tuple(where.min(axis=0).tolist()), tuple(where.max(axis=0).tolist())
