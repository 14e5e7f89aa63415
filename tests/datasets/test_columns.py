"""Further columns of the table of patients, groups of cases, and folds that leave one group out."""

import pytest

from autoseg.datasets.columns import groups_of, require_whole_patients
from autoseg.datasets.dataset import Dataset, IntakeOptions, discover
from autoseg.datasets.group_folds import folds_by_group
from autoseg.errors import UsageError
from autoseg.records import load, save
from phantom import tiny_dataset

CASES = [f"case_{i:02d}" for i in range(6)]


def found(folder, text, name="patients.csv", **options) -> tuple[Dataset, list]:
    root = tiny_dataset(folder / "data", cases=6)
    for table in ("patients.csv", "participants.tsv"):
        (root / table).unlink(missing_ok=True)
    (root / name).write_text(text)
    return discover(root, IntakeOptions(**options))


def test_columns_are_kept_as_written(tmp_path):
    text = "Case,Patient,Site, sex \n" + "".join(f"{c},p{i},{'AB'[i % 2]},\n" for i, c in enumerate(CASES))
    dataset, problems = found(tmp_path, text.replace("A,\n", "A,f\n", 1))
    assert dataset.columns == {"site": {c: "AB"[i % 2] for i, c in enumerate(CASES)}, "sex": {"case_00": "f"}}
    assert problems == []
    save(tmp_path / "dataset.json", dataset)
    assert load(Dataset, tmp_path / "dataset.json") == dataset


def test_a_pattern_names_the_patients_and_the_table_the_columns(tmp_path):
    text = "case,patient,site\n" + "".join(f"{c}.nii.gz,x,{i // 3}\n" for i, c in enumerate(CASES))
    dataset, _ = found(tmp_path, text, patient_regex=r"(\d+)")
    assert [case.patient for case in dataset.cases] == [f"{i:02d}" for i in range(6)]
    assert dataset.columns["site"] == {c: str(i // 3) for i, c in enumerate(CASES)}


def test_a_table_of_participants_gives_all_cases_of_each(tmp_path):
    text = "participant_id\tage\ncase_00\t7\ncase_0\t3\ncase_01\t9\n"
    dataset, _ = found(tmp_path, text, "participants.tsv")
    assert dataset.columns == {"age": {"case_00": "7", "case_01": "9"}}


def test_the_longest_participant_that_begins_a_case_is_its_own(tmp_path):
    text = "participant_id\tage\ncase\t3\ncase_00\t7\n"
    dataset, _ = found(tmp_path, text, "participants.tsv", patient_regex=r"(\d+)")
    assert dataset.columns == {"age": {case: "7" if case == "case_00" else "3" for case in CASES}}


def test_a_table_of_patients_without_cases_counts_for_the_cases_of_each(tmp_path):
    root = tiny_dataset(tmp_path / "data", cases=6)
    rows = [f"imagesTr/{c}_0000.nii.gz,labelsTr/{c}.nii.gz,p{i // 2},{'UV'[i // 4]}" for i, c in enumerate(CASES)]
    (root / "all.csv").write_text("\n".join(["image,label,patient,scanner", *rows]))
    dataset, _ = discover(root / "all.csv")
    assert sorted(dataset.columns["scanner"].values()) == ["U"] * 4 + ["V"] * 2


def test_two_values_for_one_case_are_reported(tmp_path):
    text = "case,patient,site\n" + "".join(f"{c},p{i},A\n" for i, c in enumerate(CASES)) + "case_03,p3,B\n"
    dataset, problems = found(tmp_path, text)
    assert dataset.columns["site"]["case_03"] == "A"
    assert [(p.case, p.severity) for p in problems] == [("case_03", "warning")]
    assert "two values of site for one case: A and B" in problems[0].what


# ---- groups


def test_groups_are_sorted_as_numbers_where_all_are():
    columns = {"age": {"a": "10", "b": "9", "c": "10"}, "site": {"a": "b", "b": "A"}}
    assert [*groups_of(columns, "age", "abc").items()] == [("9", ["b"]), ("10", ["a", "c"])]
    assert [*groups_of(columns, "Site", "abc").items()] == [("A", ["b"]), ("b", ["a"])]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("scanner", "no such column, it has: empty, one, site"),
        ("one", "only 'A' for these 3 cases, expected two groups or more"),
        ("empty", "no value for these 3 cases"),
    ],
)
def test_a_column_that_forms_no_groups_is_refused(name, message):
    columns = {"site": {"a": "A", "b": "B"}, "one": {"a": "A"}, "empty": {"elsewhere": "A"}}
    with pytest.raises(UsageError, match=message):
        groups_of(columns, name, "abc")
    with pytest.raises(UsageError, match="none beside case and patient"):
        groups_of({}, name, "abc")


# ---- folds

PATIENTS = {"a": "p1", "b": "p1", "c": "p2", "d": "p3", "e": "p4"}
SITES = {"site": {"a": "oslo", "b": "oslo", "c": "bern", "d": "ulm", "e": "bern"}}


def test_each_fold_leaves_one_group_out():
    splits = folds_by_group(SITES, "site", PATIENTS, seed=3)
    assert [(s.fold, s.train, s.validation) for s in splits.splits] == [
        (0, ("a", "b", "d"), ("c", "e")),
        (1, ("c", "d", "e"), ("a", "b")),
        (2, ("a", "b", "c", "e"), ("d",)),
    ]
    assert splits.group == "site"
    assert splits.notes == (
        "each fold leaves one site out: fold 0: bern (2 cases), fold 1: oslo (2 cases), fold 2: ulm (1 case)",
    )


def test_known_groups_keep_their_folds():
    """A site that comes first in the alphabet gets the last number, because folds may be trained."""
    before = folds_by_group(SITES, "site", PATIENTS, seed=3)
    more = {"site": SITES["site"] | {"f": "aachen", "g": "ulm"}}
    after = folds_by_group(more, "Site", PATIENTS | {"f": "p5", "g": "p6"}, seed=3, existing=before)
    assert [s.validation for s in after.splits] == [("c", "e"), ("a", "b"), ("d", "g"), ("f",)]


def test_a_patient_in_two_groups_is_refused():
    sites = {"site": SITES["site"] | {"b": "ulm"}}
    with pytest.raises(UsageError, match=r"1 patient with cases in several groups, such as p1 in oslo and ulm: p1"):
        folds_by_group(sites, "site", PATIENTS, seed=3)
    require_whole_patients({"x": ["a", "b"]}, PATIENTS, "site")


def test_a_case_without_a_group_is_refused():
    with pytest.raises(UsageError, match="1 case without a value: f"):
        folds_by_group(SITES, "site", PATIENTS | {"f": "p5"}, seed=3)
