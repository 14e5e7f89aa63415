"""Tables of images, patients and folds: as written, and as people get them wrong."""

from pathlib import Path

import pytest

import tiny
from autoseg.datasets.dataset import Case, discover, parse_options
from autoseg.datasets.splits import Split
from autoseg.datasets.tables import scans_of_patients
from autoseg.errors import DataError, UsageError


def names(case: Case) -> list[str]:
    return [Path(file).name for file in case.images]


def ids(cases) -> list[str]:
    return [case.id for case in cases]


def faults(problems) -> list[tuple[str | None, str]]:
    """(case, first words) of each problem."""
    return [(problem.case, " ".join(problem.what.split()[:2])) for problem in problems]


def table(path: Path, lines: str, separator=",") -> Path:
    for number in range(4):
        tiny.nifti(path.parent / f"data/s{number}.nii", tiny.image(number))
        tiny.nifti(path.parent / f"data/m{number}.nii", tiny.label(1, 2))
    return tiny.text(path, lines.replace(",", separator))


@pytest.mark.parametrize(("name", "separator"), [("list.csv", ","), ("list.csv", ";"), ("list.tsv", "\t")])
def test_table_given_itself_or_in_its_folder(tmp_path, name, separator):
    lines = "\ufeffImage,Label,Patient,Split\n" + "".join(
        f"data/s{n}.nii,data/m{n}.nii,p{n // 2},{'test' if n > 1 else 'train'}\n" for n in range(4)
    )
    path = table(tmp_path / name, lines, separator)
    dataset, problems = discover(path)
    assert problems == []
    assert (dataset.layout, ids(dataset.cases), ids(dataset.test_cases)) == ("table", ["s0", "s1"], ["s2", "s3"])
    assert [case.patient for case in (*dataset.cases, *dataset.test_cases)] == ["p0", "p0", "p1", "p1"]
    tiny.text(tmp_path / "participants.tsv", "participant_id\ns0\n")
    assert discover(path)[0].cases == dataset.cases  # the column comes first
    tiny.text(tmp_path / "patients.csv", "case,patient\ns0,unused\n")
    again, _ = discover(tmp_path)
    assert again.cases == dataset.cases
    table(tmp_path / "second.csv", lines)
    with pytest.raises(UsageError, match=r"second\.csv"):
        discover(tmp_path)


def test_table_with_channels_folds_and_faults(tmp_path):
    lines = (
        "case,image_1,image_0,label,fold\n"
        "a,data/s1.nii,data/s0.nii,data/m0.nii,0\n"
        "b,data/s3.nii,data/s2.nii,data/m1.nii,1.0\n"
        "c,,data/s2.nii,data/gone.nii,1\n"
        "d,data/s3.nii,data/s2.nii,,0\n"
    )
    dataset, problems = discover(table(tmp_path / "t.csv", lines))
    assert names(dataset.cases[0]) == ["s0.nii", "s1.nii"]
    assert [case.fold for case in dataset.cases] == [0, 1, 1, 0]
    assert dataset.splits == (Split(0, ("b", "c"), ("a", "d")), Split(1, ("a", "d"), ("b", "c")))
    assert sorted(faults(problems)) == [("c", "does not"), ("c", "missing channel"), ("d", "missing label:")]


def test_table_with_named_channels_and_a_validation_split(tmp_path):
    lines = (
        "image_t1,image_t2,label,split\n"
        "data/s0.nii,data/s1.nii,data/m0.nii,train\n"
        "data/s2.nii,data/s3.nii,data/m1.nii,val\n"
    )
    dataset, problems = discover(table(tmp_path / "t.csv", lines))
    assert problems == []
    assert dataset.channels == ("t1", "t2")
    assert dataset.splits == (Split(0, ("s0",), ("s2",)),)
    dataset, _ = discover(tmp_path / "t.csv", parse_options(channels="t2,t1"))
    assert names(dataset.cases[0]) == ["s1.nii", "s0.nii"]


def test_table_whose_files_have_equal_names_takes_ids_from_their_folders(tmp_path):
    for number in (1, 2):
        tiny.nifti(tmp_path / f"sub-0{number}/anat/T1w.nii", tiny.image(number))
        tiny.nifti(tmp_path / f"sub-0{number}/anat/dseg.nii", tiny.label(1))
    rows = "".join(f"sub-0{n}/anat/T1w.nii,sub-0{n}/anat/dseg.nii\n" for n in (1, 2))
    dataset, problems = discover(tiny.text(tmp_path / "t.csv", "image,label\n" + rows))
    assert problems == []
    assert ids(dataset.cases) == ["sub-01_anat_T1w", "sub-02_anat_T1w"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [("", "no rows"), ("image,mask\nx,y\n", "not a table of images"), ("image,label\na,b,c\n", "row 2 has 3 fields")],
)
def test_a_table_that_cannot_be_used(tmp_path, lines, message):
    with pytest.raises(DataError, match=message):
        discover(tiny.text(tmp_path / "t.csv", lines))


def test_an_id_that_is_no_file_name_is_reported(tmp_path):
    lines = "case,image,label\nx/../y,data/s0.nii,data/m0.nii\ngood,data/s1.nii,data/m1.nii\n"
    dataset, problems = discover(table(tmp_path / "t.csv", lines))
    assert ids(dataset.cases) == ["good"]
    assert [(p.case, "file name" in p.what) for p in problems] == [("x/../y", True)]


def test_folds_that_cut_a_patient_in_two_are_refused(tmp_path):
    lines = "image,label,patient,fold\ndata/s0.nii,data/m0.nii,p,0\ndata/s1.nii,data/m1.nii,p,1\n"
    dataset, problems = discover(table(tmp_path / "t.csv", lines))
    assert dataset.splits is None
    assert {p.severity for p in problems} == {"error"}
    assert "s0" in problems[0].what
    assert "s1" in problems[0].what


def test_existing_splits_that_do_not_match_the_cases(tmp_path):
    root = tiny.nnunet(tmp_path, ["a", "b", "c"])
    tiny.text(root / "splits_final.json", [{"train": ["a", "old"], "val": ["b", "older"]}])
    dataset, problems = discover(root)
    assert dataset.splits == (Split(0, ("a",), ("b",)),)
    assert sorted((p.case, p.severity) for p in problems) == [
        ("c", "warning"),
        ("old", "error"),
        ("older", "error"),
    ]
    tiny.text(root / "splits_final.json", {"a": 0})
    with pytest.raises(DataError, match=r"splits_final\.json is not a list"):
        discover(root)


def test_without_patients_every_case_is_one_and_that_is_said(tmp_path):
    dataset, _ = discover(tiny.nnunet(tmp_path, ["p1_l", "p1_r"]))
    assert (dataset.patients_known, [case.patient for case in dataset.cases]) == (False, ["p1_l", "p1_r"])
    assert any("--patient-regex" in note for note in dataset.notes)


def test_patients_by_pattern(tmp_path):
    root = tiny.nnunet(tmp_path, ["p1_l", "p1_r", "p2_l"])
    tiny.text(root / "patients.csv", "case,patient\np1_l,from_file\n")
    dataset, problems = discover(root, parse_options(patient_regex=r"(p\d)_"))
    assert problems == []
    assert (dataset.patients_known, [case.patient for case in dataset.cases]) == (True, ["p1", "p1", "p2"])
    for pattern, message in ((r"p\d", "no group"), (r"(p1)", "p2_l"), (r"(p", "not a regular expression")):
        with pytest.raises(UsageError, match=message):
            discover(root, parse_options(patient_regex=pattern))


def test_patients_from_a_file(tmp_path):
    root = tiny.nnunet(tmp_path, ["a", "b", "c"])
    tiny.text(root / "patients.csv", "case,patient\na,x\nb,x\na,z\n")
    dataset, problems = discover(root)
    assert [case.patient for case in dataset.cases] == ["x", "x", "c"]
    assert [(p.case, p.severity) for p in problems] == [("a", "error"), ("c", "warning")]
    tiny.text(root / "patients.csv", "name,who\na,x\n")
    with pytest.raises(DataError, match="case and patient"):
        discover(root)


def test_patients_of_bids(tmp_path):
    root = tiny.nnunet(tmp_path, ["sub-1_ses-1_T1w", "sub-1_ses-2_T1w", "sub-10_T1w"])
    tiny.text(root / "participants.tsv", "participant_id\tage\nsub-1\t40\n10\t50\n")
    tiny.text(root / "patients.csv", "case,patient\nsub-10_T1w,x\nsub-1_ses-1_T1w,y\nsub-1_ses-2_T1w,z\n")
    assert {case.patient for case in discover(root)[0].cases} == {"x", "y", "z"}
    (root / "patients.csv").unlink()
    dataset, problems = discover(root)
    assert problems == []
    patients = {case.id: case.patient for case in dataset.cases}
    assert patients == {"sub-1_ses-1_T1w": "sub-1", "sub-1_ses-2_T1w": "sub-1", "sub-10_T1w": "10"}


def test_scans_of_a_patient_are_in_the_order_of_their_dates(tmp_path):
    path = tmp_path / "scans.csv"
    path.write_text("case,patient,date\nlater,P 1,2024-05-31\nfirst,P  1,20231201\nalone,Q,2020-01-01\n,R,\n")
    assert scans_of_patients(path) == {"first": ("P 1", 0), "later": ("P 1", 1), "alone": ("Q", 0)}
    path.write_text("id;subject;order\nb;P;10\na;P;9\n")
    assert scans_of_patients(path) == {"a": ("P", 0), "b": ("P", 1)}
    path.write_text("case,patient\nb,P\na,P\n")
    assert scans_of_patients(path) == {"b": ("P", 0), "a": ("P", 1)}


def test_a_table_of_scans_that_cannot_be_read(tmp_path):
    path = tmp_path / "scans.csv"
    path.write_text("case,patient,date\na,P,31.5.2024\n")
    with pytest.raises(DataError, match=r"'31\.5\.2024' is neither a date"):
        scans_of_patients(path)
    path.write_text("case,patient\na,P\na,Q\n")
    with pytest.raises(DataError, match="lists a case twice: a"):
        scans_of_patients(path)
    path.write_text("case,date\na,2024-05-31\n")
    with pytest.raises(DataError, match="no columns case and patient"):
        scans_of_patients(path)
