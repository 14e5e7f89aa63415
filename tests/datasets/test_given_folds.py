"""Folds that a dataset brings along are honoured as they are, or refused with what came and what to do."""

import json
import unicodedata
from pathlib import Path

import pytest

import tiny
from autoseg.datasets.checks.problems import check, without_bad_cases
from autoseg.datasets.dataset import discover
from autoseg.datasets.splits import Split
from autoseg.errors import DataError

IDS = ("a", "b", "c", "d")


def dataset_with(root: Path, folds: object, name="splits_final.json", ids=IDS) -> Path:
    root = tiny.nnunet(root, ids)
    tiny.text(root / name, folds if isinstance(folds, str) else json.dumps(folds))
    return root


def fold(train, val) -> dict[str, list]:
    return {"train": list(train), "val": list(val)}


REFUSED = {  # the folds -> words of the message, whether training on all cases is offered
    "val empty": ([fold(IDS, [])], "fold 0 has 4 training cases and no validation case", True),
    "val is train": ([fold(IDS, IDS)], "fold 0 trains and validates on the same 4 cases", True),
    "train empty": ([fold("abc", "d"), fold([], IDS)], "fold 1 has 4 validation cases and no training case", True),
    "one case on both sides": ([fold("abc", "cd")], "trains and validates on the same case: c", False),
    "nobody known": ([fold("xy", "z"), fold("abc", "d")], "fold 0 has 0 training cases and no validation case", True),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_folds_that_cannot_be_trained_are_refused(tmp_path, kind):
    folds, what, train_all = REFUSED[kind]
    root = dataset_with(tmp_path, folds)
    dataset, problems = discover(root)
    refusal = [problem for problem in problems if problem.stays]
    assert [(problem.severity, Path(problem.file).name) for problem in refusal] == [("error", "splits_final.json")]
    assert what in refusal[0].what
    assert "remove it: autoseg then makes its own folds" in refusal[0].remedy
    assert ("autoseg train -f full" in refusal[0].remedy) == train_all
    assert dataset.splits is None
    with pytest.raises(DataError, match=r"splits_final\.json.*leaving cases out does not fix it"):
        without_bad_cases(dataset, problems)  # --skip-bad makes no folds of its own instead


@pytest.mark.parametrize(
    "folds",
    [[], {}, {"train": ["a"], "val": ["b"]}, [["a"], ["b"]], [{"train": ["a"]}], [{"train": "abc", "val": ["d"]}],
     [{"train": ["a"], "val": None}], [{"train": [["a"]], "val": ["b"]}], 3],
)  # fmt: skip
def test_what_is_no_list_of_folds(tmp_path, folds):
    root = dataset_with(tmp_path, folds)
    with pytest.raises(DataError, match=r'splits_final\.json is not a list of folds.*\{"train": \[ids\]'):
        discover(root)


def test_sound_folds_are_honoured(tmp_path):
    """A single split, in any spelling of the file's name, and cases that are validated twice."""
    root = dataset_with(tmp_path, [fold("abc", "d"), fold("ab", "cd")], "Splits_Final.JSON")
    dataset, problems = discover(root)
    assert dataset.splits == (Split(0, ("a", "b", "c"), ("d",)), Split(1, ("a", "b"), ("c", "d")))
    assert [(p.severity, p.what) for p in problems] == [
        ("warning", "1 cases are in the validation set of several folds: d")
    ]


def test_ids_of_folds_as_people_write_them(tmp_path):
    """Files, folders, other letters, numbers without their zeros, accents in another form."""
    nfc, nfd = (unicodedata.normalize(form, "Müller") for form in ("NFC", "NFD"))
    ids = ("001", "002", nfd, "Case", "x.y")
    folds = [fold([1, "002.nii.gz", nfc], ["imagesTr/case_0000.nii.gz", "x.y"])]
    dataset, problems = discover(dataset_with(tmp_path, folds, ids=ids))
    assert dataset.splits == (Split(0, ("001", "002", nfc), ("Case", "x.y")),)
    assert [(p.severity, p.what) for p in problems] == [
        ("warning", "2 ids are not spelt like the cases: '1' for '001', 'imagesTr/case_0000.nii.gz' for 'Case'")
    ]


def test_an_id_that_matches_no_case_is_an_error(tmp_path):
    root = dataset_with(tmp_path, [fold(["a", "b", "gone"], ["c", "d", "t"])])
    tiny.nifti(root / "imagesTs/t_0000.nii.gz", tiny.image(99))
    tiny.nifti(root / "labelsTs/t.nii.gz", tiny.label(1, 2))
    dataset, problems = discover(root)
    assert [(p.case, p.severity, p.what) for p in problems] == [
        ("gone", "error", "the folds list a case that does not exist"),
        ("t", "error", "the folds list a case that does not exist (it is a test case)"),
    ]
    assert without_bad_cases(dataset, problems[:1]).splits == (Split(0, ("a", "b"), ("c", "d")),)
    many = dataset_with(tmp_path / "many", [fold(["a", "b", *map(str, range(900, 909))], ["c", "d"])])
    (problem,) = discover(many)[1]
    assert (problem.case, "9 do not, 900, 901, 902, 903, 904 and 4 more" in problem.what) == (None, True)


def test_a_case_that_vanished_is_reported_once_and_not_by_its_folds_again(tmp_path):
    root = dataset_with(tmp_path, [fold("abc", "d")])
    for path in (root / "imagesTr/c_0000.nii.gz", root / "labelsTr/c.nii.gz"):
        path.unlink()
        path.symlink_to("/nowhere")
    assert [(p.case, Path(p.file).parent.name) for p in discover(root)[1]] == [
        ("c_0000", "imagesTr"),
        ("c", "labelsTr"),
    ]


def test_folds_that_lose_a_side_with_bad_cases(tmp_path):
    root = dataset_with(tmp_path, [fold("abc", "d"), fold("abd", "c")])
    (root / "labelsTr/d.nii.gz").unlink()
    dataset, problems = discover(root)
    left = without_bad_cases(dataset, problems)
    assert left.splits == (Split(1, ("a", "b"), ("c",)),)
    assert "given fold 0 has lost all its training or all its validation cases: 1 folds remain" in left.notes[-1]
    (root / "labelsTr/c.nii.gz").unlink()
    dataset, problems = discover(root)
    with pytest.raises(DataError, match="given fold 0, 1"):
        without_bad_cases(dataset, problems)


def test_folds_in_a_pickle_are_not_passed_over(tmp_path):
    root = dataset_with(tmp_path, "never opened", "splits_final.pkl")
    (problem,) = discover(root)[1]
    assert (problem.severity, Path(problem.file).name) == ("error", "splits_final.pkl")
    tiny.text(root / "splits_final.json", [fold("abc", "d")])
    assert discover(root)[1] == []


# ---- folds in tables ------------------------------------------------------------------------------------------------


def table(root: Path, header: str, *values: str) -> Path:
    """t.csv of four cases with further columns."""
    tiny.nnunet(root, IDS)
    rows = [f"imagesTr/{i}_0000.nii.gz,labelsTr/{i}.nii.gz,{value}\n" for i, value in zip(IDS, values, strict=True)]
    return tiny.text(root / "t.csv", f"image,label,{header}\n" + "".join(rows))


@pytest.mark.parametrize(
    ("header", "values", "what"),
    [
        ("fold", "0000", "fold 0 has 4 validation cases and no training case"),
        ("fold", ("-1",) * 4, "fold 0 has 4 training cases and no validation case"),
        ("split", ("val",) * 4, "fold 0 has 4 validation cases and no training case"),
    ],
)
def test_a_table_whose_folds_cannot_be_trained(tmp_path, header, values, what):
    dataset, problems = discover(table(tmp_path, header, *values))
    assert dataset.splits is None
    assert [(p.what, p.stays) for p in problems] == [(what, True)]
    assert "columns fold" in problems[0].remedy
    assert "-f full" in problems[0].remedy


def test_folds_that_are_no_whole_numbers_lose_only_their_cases(tmp_path):
    """With --skip-bad the folds of the others stay as they are."""
    dataset, problems = discover(table(tmp_path, "fold", "0", "1", "0.5", ""))
    assert [(p.case, p.severity) for p in problems] == [("c", "error"), ("d", "error")]
    assert "'0.5' is not a whole number" in problems[0].what
    assert dataset.splits == (Split(0, ("b",), ("a",)), Split(1, ("a",), ("b",)))
    assert without_bad_cases(dataset, problems).splits == dataset.splits


def test_folds_counted_from_one_are_renumbered_and_that_is_said(tmp_path):
    dataset, problems = discover(table(tmp_path, "fold", "1", "2", "4", "-1"))
    assert problems == []
    assert [(s.fold, s.validation, "d" in s.train) for s in dataset.splits] == [
        (0, ("a",), True), (1, ("b",), True), (2, ("c",), True)
    ]  # fmt: skip
    assert any("1 is fold 0, 2 is fold 1, 4 is fold 2" in note for note in dataset.notes)


@pytest.mark.parametrize(
    ("header", "values", "note"),
    [("split", ("train",) * 4, "split names no validation case"), ("fold", ("",) * 4, "fold is empty")],
)
def test_a_table_without_folds_says_whose_folds_are_used(tmp_path, header, values, note):
    dataset, problems = discover(table(tmp_path, header, *values))
    assert (dataset.splits, problems) == (None, [])
    assert any(note in n and "own folds" in n and "-f full" in n for n in dataset.notes)


def test_two_sources_of_folds(tmp_path):
    path = table(tmp_path, "fold,split", "0,val", "0,train", "1,train", "1,train")
    tiny.text(tmp_path / "splits_final.json", [fold("abc", "d")])
    dataset, problems = discover(path)
    assert [split.validation for split in dataset.splits] == [("a", "b"), ("c", "d")]
    assert [(p.severity, "fold and split" in p.what) for p in problems] == [("warning", True)]
    assert any("splits_final.json is not used" in note for note in dataset.notes)


@pytest.mark.parametrize("form", ["validation list", "folds in the entries"])
def test_folds_of_a_data_list(tmp_path, form):
    """MONAI's data lists have a list of validation cases, or a fold in each entry."""
    tiny.nnunet(tmp_path, IDS)
    entries = [{"image": f"imagesTr/{i}_0000.nii.gz", "label": f"labelsTr/{i}.nii.gz"} for i in IDS]
    description = {"labels": {"0": "background", "1": "one", "2": "two"}, "training": entries}
    if form == "validation list":
        description |= {"training": entries[:3], "validation": entries[3:]}
        expected = (Split(0, ("a_0000", "b_0000", "c_0000"), ("d_0000",)),)
    else:
        description["training"] = [entry | {"fold": n % 2} for n, entry in enumerate(entries)]
        expected = (
            Split(0, ("b_0000", "d_0000"), ("a_0000", "c_0000")), Split(1, ("a_0000", "c_0000"), ("b_0000", "d_0000"))
        )  # fmt: skip
    tiny.text(tmp_path / "dataset.json", description)
    dataset, problems = discover(tmp_path)
    assert problems == []
    assert dataset.splits == expected


# ---- patients -------------------------------------------------------------------------------------------------------


def patients_of(root: Path, text: str, name="patients.csv", ids=IDS):
    tiny.nnunet(root, ids)
    (root / name).write_bytes(text.encode("utf-8"))
    dataset, problems = discover(root)
    return {case.id: case.patient for case in dataset.cases}, problems


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("case,patient\na,p\nb,p\nc,q\nd,q\n", "patients.csv"),
        ("\ufeffCase;Patient\r\na;p\r\nb;p\r\nc;q\r\nd;q\r\n", "patients.csv"),
        ("case\tpatient\na\tp\nb\tp\nc\tq\nd\tq\n", "Patients.CSV"),
        ("sep=;\r\ncase;patient\r\n a ; p \r\nb;p\r\nc;q\r\nd;q\r\n;;\r\n", "patients.csv"),
        ("\r\n\r\ncase,patient\ra,p\rb,p\rc,q\rd,q\r", "PATIENTS.csv"),
        ("case,patient\na.nii.gz,p\nimagesTr/b_0000.nii.gz,p\nlabelsTr\\c.nii.gz,q\nd,q\nd,q\n", "patients.csv"),
    ],
)
def test_patients_csv_as_programs_write_it(tmp_path, text, name):
    found, problems = patients_of(tmp_path, text, name)
    assert (found, problems) == ({"a": "p", "b": "p", "c": "q", "d": "q"}, [])


def test_accents_and_zeros_in_patients_csv(tmp_path):
    """Decomposed accents from a Mac, on either side, and numbers that a spreadsheet has shortened."""
    nfc, nfd = (unicodedata.normalize(form, "Müller") for form in ("NFC", "NFD"))
    ids = (f"{nfd}_a", f"{nfc}_b", "007", "A1")
    found, problems = patients_of(tmp_path, f"case,patient\n{nfc}_a,{nfd}\n{nfd}_b,{nfc}\n7,p\na1,p\n", ids=ids)
    assert found == {f"{nfc}_a": nfc, f"{nfc}_b": nfc, "007": "p", "A1": "p"}
    assert [(p.severity, p.what) for p in problems] == [
        ("warning", "2 ids are not spelt like the cases: '7' for '007', 'a1' for 'A1'")
    ]


def test_a_patient_of_no_case_is_an_error(tmp_path):
    _, problems = patients_of(tmp_path, "case,patient\na,p\nb,p\nc,q\nd,q\nb_,p\n")
    assert [(p.case, p.severity, p.what) for p in problems] == [
        ("b_", "error", "patients.csv lists a case that does not exist")
    ]
    images = tmp_path / "imagesTs"
    tiny.nifti(images / "b__0000.nii.gz", tiny.image(50))  # an image without a label is a case, too
    assert discover(tmp_path)[1] == []


def test_patients_of_listed_images_without_labels(tmp_path):
    tiny.nnunet(tmp_path, ("a", "b"))
    entries = [{"image": f"imagesTr/{i}_0000.nii.gz", "label": f"labelsTr/{i}.nii.gz"} for i in ("a", "b")]
    listed = {
        "labels": {"0": "background", "1": "one", "2": "two"},
        "training": entries,
        "test": ["./imagesTs/t.nii.gz"],
    }
    tiny.text(tmp_path / "dataset.json", listed)
    tiny.text(tmp_path / "patients.csv", "case,patient\na_0000,p\nb_0000,q\nt,q\n")
    assert discover(tmp_path)[1] == []


def test_patients_that_differ_by_blanks_or_letters(tmp_path):
    found, problems = patients_of(tmp_path, "case,patient\na,Ann  B\nb, Ann B\nc,ann b\nd,q\n")
    assert (found["a"], found["b"], found["c"]) == ("Ann B", "Ann B", "ann b")
    assert [(p.severity, p.what) for p in problems] == [
        ("warning", "patients.csv has patients 'Ann B' and 'ann b': they count as two patients")
    ]


def test_two_ids_that_one_written_id_could_mean(tmp_path):
    _, problems = patients_of(tmp_path, "case,patient\n1,p\n", ids=("01", "001"))
    assert [(p.case, p.severity) for p in problems] == [("1", "error")]


def test_a_patients_csv_that_is_not_there(tmp_path):
    root = tiny.nnunet(tmp_path)
    (root / "patients.csv").symlink_to("../.git/annex/objects/x/y/z.csv")
    with pytest.raises(DataError, match=r"patients\.csv is a git-annex link"):
        discover(root)


def test_participants_that_begin_no_case(tmp_path):
    _, problems = patients_of(tmp_path, "participant_id\tage\nsub-01\t3\nsub-02\t4\n", "participants.tsv")
    assert [(p.severity, "any of the 2 participants" in p.what) for p in problems] == [("warning", True)]


def test_paths_with_accents_in_tables_and_lists(tmp_path):
    nfc, nfd = (unicodedata.normalize(form, "é") for form in ("NFC", "NFD"))
    tiny.nifti(tmp_path / f"d{nfd}/{nfd}.nii", tiny.image(1))
    tiny.nifti(tmp_path / f"d{nfd}/m.nii", tiny.label(1))
    dataset, problems = discover(tiny.text(tmp_path / "t.csv", f"image,label\nd{nfc}/{nfc}.nii,d{nfc}/m.nii\n"))
    assert problems == []
    assert dataset.cases[0].id == nfc
    assert check(dataset, workers=0)[0] == []
