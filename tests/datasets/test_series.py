"""DICOM series as images of a training set and of `predict`: ids, patients, labels by name, what is stored."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pydicom", reason="DICOM needs the extra dicom")

import dicom
import tiny
from autoseg.datasets.checks.problems import check
from autoseg.datasets.dataset import discover, images_in, load_case, parse_options
from autoseg.errors import DataError, UsageError
from autoseg.imaging.formats.readers import write_labels
from autoseg.imaging.geometry import Geometry
from autoseg.records import to_plain

GRID = Geometry(shape=(7, 12, 10), spacing=(2.5, 0.8, 0.7), origin=(-11.0, 22.5, -333.25))
IDS = ("a", "b", "c", "d")


def image(number: int) -> np.ndarray:
    return (dicom.phantom() + 7 * number).astype(np.int16)


def segmented(array: np.ndarray) -> np.ndarray:
    return np.where(array > 500, 2, np.where(array > 250, 1, 0)).astype(np.uint8)


def dataset(root: Path, patients=("P1", "P1", "P2", "P3"), labels: str = "nifti") -> Path:
    """images/<case>/ are series; labels are NIfTI, or DICOM."""
    for number, (case_id, patient) in enumerate(zip(IDS, patients, strict=True)):
        folder = dicom.slices(root / "images" / case_id, image(number), GRID, patient=patient, series=number + 1)
        (root / "labels").mkdir(exist_ok=True)
        if labels == "nifti":
            write_labels(root / f"labels/{case_id}.nii.gz", segmented(image(number)), like=folder)
        else:
            pytest.importorskip("highdicom", reason="DICOM output needs the extra dicom")
            from autoseg.imaging.formats import dicom_output

            names = {"Liver": 1, "GTV-1": 2} if number % 2 else {"GTV-1": 2, "liver": 1}
            dicom_output.write(root / f"labels/{case_id}.dcm", labels, segmented(image(number)), folder, names)
    return root


def errors(problems):
    return [problem for problem in problems if problem.severity == "error"]


def test_series_folders_are_the_images_of_a_training_set(tmp_path):
    found, problems = discover(dataset(tmp_path), parse_options(channels="CT", labels="liver=1,tumour=2"))
    assert errors(problems) == []
    assert [case.id for case in found.cases] == list(IDS)
    assert [Path(case.images[0]).name for case in found.cases] == list(IDS)
    checked, measured = check(found, measure_of, known=problems, workers=0)
    assert errors(checked) == []
    assert measured == dict.fromkeys(IDS, (1, 7, 12, 10))
    loaded = load_case(found.cases[1], found.labels, channels=found.channels)
    assert np.array_equal(loaded.image[0], image(1))
    assert np.array_equal(loaded.target, segmented(image(1)))


def measure_of(case):
    return case.image.shape


@pytest.mark.thorough
@pytest.mark.parametrize("kind", ["dicom-seg", "rtstruct"])
def test_structures_are_labels_by_name(tmp_path, kind):
    found, problems = discover(dataset(tmp_path, labels=kind), parse_options(channels="CT"))
    assert errors(problems) == []
    assert sorted(name.lower() for name in found.labels.values) == ["gtv-1", "liver"]
    assert any("those that the label files name" in note for note in found.notes)
    checked, _ = check(found, known=problems, workers=0)
    assert errors(checked) == []
    values = {name.lower(): value for name, value in found.labels.values.items()}
    for number, case in enumerate(found.cases):
        target = load_case(case, found.labels).target
        for name, value in (("liver", 1), ("gtv-1", 2)):
            index = sorted(values.values()).index(values[name]) + 1
            assert np.array_equal(target == index, segmented(image(number)) == value)


def test_labels_chosen_by_name(tmp_path):
    root = dataset(tmp_path, labels="rtstruct")
    found, problems = discover(root, parse_options(labels="LIVER=7"))
    assert found.labels.values == {"LIVER": 7}
    assert any("structures that are not labels: GTV-1" in note for note in found.notes)
    assert np.array_equal(load_case(found.cases[0], found.labels).target, segmented(image(0)) == 1)
    _, problems = discover(root, parse_options(labels="liver=1,spleen=2"))
    (problem,) = errors(problems)
    assert "no label file has a structure named 'spleen'" in problem.what
    assert "GTV-1" in problem.remedy


def test_dicom_and_other_label_files_together_need_values(tmp_path):
    root = dataset(tmp_path, labels="dicom-seg")
    (root / "labels/b.dcm").unlink()
    write_labels(root / "labels/b.nii.gz", segmented(image(1)), like=root / "images/b")
    with pytest.raises(DataError, match="3 of 4 label files are DICOM"):
        discover(root)
    found, problems = discover(root, parse_options(labels="liver=1,GTV 1=2"))
    checked, _ = check(found, known=problems, workers=0)
    assert errors(checked) == []


def test_patients_come_from_the_headers_as_hashes(tmp_path):
    found, problems = discover(dataset(tmp_path), parse_options(labels="liver=1,tumour=2"))
    patients = {case.id: case.patient for case in found.cases}
    assert found.patients_known
    assert patients["a"] == patients["b"]
    assert len(set(patients.values())) == 3
    assert any("3 patients in 4 cases" in note for note in found.notes)
    text = str(to_plain(found)) + str(problems)
    for secret in ("P1", "P2", "Secret"):
        assert secret not in text.replace(str(tmp_path), "")


def test_one_id_for_all_cases_does_not_make_them_one_patient(tmp_path):
    found, _ = discover(dataset(tmp_path, patients=("ANON",) * 4), parse_options(labels="liver=1,tumour=2"))
    assert not found.patients_known
    assert len({case.patient for case in found.cases}) == 4
    assert any("have the same PatientID" in note for note in found.notes)


def test_a_table_of_patients_wins_and_a_case_without_an_id_is_named(tmp_path):
    root = dataset(tmp_path, patients=("P1", "", "P2", "P1"))
    found, problems = discover(root, parse_options(labels="liver=1,tumour=2"))
    assert [problem.what for problem in problems if "PatientID" in problem.what]
    assert {case.id: case.patient for case in found.cases}["b"] == "b"
    tiny.text(root / "patients.csv", "case,patient\na,x\nb,x\nc,y\nd,z\n")
    found, _ = discover(root, parse_options(labels="liver=1,tumour=2"))
    assert [case.patient for case in found.cases] == ["x", "x", "y", "z"]


def test_channels_are_series_in_the_folder_of_a_case(tmp_path):
    for number, case_id in enumerate(IDS[:2]):
        for channel, name in enumerate(("CT", "PET")):
            where = tmp_path / "images" / case_id / name
            dicom.slices(where, image(number) + channel, GRID, series=10 * number + channel)
        (tmp_path / "labels").mkdir(exist_ok=True)
        write_labels(tmp_path / f"labels/{case_id}.nii.gz", segmented(image(number)), like=where)
    found, problems = discover(tmp_path, parse_options(channels="CT,PET", labels="liver=1,tumour=2"))
    assert errors(problems) == []
    assert [[Path(file).name for file in case.images] for case in found.cases] == [["CT", "PET"]] * 2
    cases, faults = images_in([tmp_path / "images"], 2, found.channels, found.file_names)
    assert faults == []
    assert [case_id for case_id, _ in cases] == ["a", "b"]
    assert [[file.name for file in files] for _, files in cases] == [["CT", "PET"]] * 2


def test_a_faulty_series_is_a_problem_of_its_case(tmp_path):
    root = dataset(tmp_path)
    sorted((root / "images/c").iterdir())[3].write_bytes(b"nonsense")
    found, problems = discover(root, parse_options(labels="liver=1,tumour=2"))
    checked, measured = check(found, measure_of, known=problems, workers=0)
    (problem,) = errors(checked)
    assert problem.case == "c"
    assert "damaged or not a DICOM file" in problem.what
    assert sorted(measured) == ["a", "b", "d"]


def test_a_corrected_copy_leaves_out_a_faulty_series_with_all_its_slices(tmp_path):
    from autoseg.commands.fix import fix_dataset

    root = dataset(tmp_path / "set")
    sorted((root / "images/c").iterdir())[3].write_bytes(b"nonsense")
    options = parse_options(channels="CT", labels="liver=1,tumour=2")
    fix_dataset(root, tmp_path / "copy", options, workers=0)
    assert sorted(path.name for path in (tmp_path / "copy/images").iterdir()) == ["a", "b", "d"]
    assert sorted(path.name for path in (tmp_path / "copy/labels").iterdir()) == [f"{n}.nii.gz" for n in "abd"]
    for file in (root / "images/a").iterdir():
        assert (tmp_path / "copy/images/a" / file.name).read_bytes() == file.read_bytes()


def test_a_changed_slice_is_a_change_of_the_dataset(tmp_path):
    from autoseg.preprocessing import sources
    from autoseg.records import save
    from autoseg.workspace import Workspace

    found, _ = discover(dataset(tmp_path / "set"), parse_options(channels="CT", labels="liver=1,tumour=2"))
    workspace = Workspace(tmp_path / "ws")
    workspace.root.mkdir()
    save(workspace.sources, sources.measure(found, workers=0))
    assert sources.changed_since(workspace, found.cases) == []
    slice_of_b = sorted(Path(found.cases[1].images[0]).iterdir())[2]
    content = slice_of_b.read_bytes()
    slice_of_b.write_bytes(content)  # a new time, the same bytes
    assert sources.changed_since(workspace, found.cases) == []
    slice_of_b.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert sources.changed_since(workspace, found.cases) == [found.cases[1].images[0]]
    slice_of_b.unlink()
    assert sources.changed_since(workspace, found.cases) == [found.cases[1].images[0]]


# ---- images to segment ----------------------------------------------------------------------------------------------


def ids(cases):
    return [case_id for case_id, _ in cases]


def test_one_series_many_and_nested_ones(tmp_path):
    for patient in ("p1", "p2"):
        for series in ("ct", "late"):
            dicom.slices(tmp_path / f"all/{patient}/study/{series}", image(0), GRID)
    (tmp_path / "all/p1/DICOMDIR").write_bytes(b"")
    assert ids(images_in([tmp_path / "all/p1/study/ct"], 1)[0]) == ["ct"]
    cases, faults = images_in([tmp_path / "all/p1/study"], 1)
    assert (ids(cases), faults) == (["ct", "late"], [])
    cases, faults = images_in([tmp_path / "all"], 1)
    assert ids(cases) == ["p1_study_ct", "p1_study_late", "p2_study_ct", "p2_study_late"]
    assert faults == []
    cases, _ = images_in([tmp_path / "all/p1"], 1)
    assert ids(cases) == ["ct", "late"]


def test_a_slice_given_by_name_names_its_folder(tmp_path):
    folder = dicom.slices(tmp_path / "ct", image(0), GRID)
    with pytest.raises(UsageError, match="one slice of a DICOM series") as error:
        images_in([next(folder.iterdir())], 1)
    assert str(folder) in error.value.remedy


def test_a_volume_in_one_file_is_an_image(tmp_path):
    path = dicom.enhanced(tmp_path / "scan.dcm", image(0), GRID)
    cases, faults = images_in([path], 1)
    assert (ids(cases), faults) == (["scan"], [])
    dicom.enhanced(tmp_path / "other.dcm", image(1), GRID)
    assert ids(images_in([tmp_path], 1)[0]) == ["other", "scan"]


def test_the_rule_of_training_finds_series(tmp_path):
    found, _ = discover(dataset(tmp_path), parse_options(labels="liver=1,tumour=2"))
    cases, faults = images_in([tmp_path / "images"], 1, found.channels, found.file_names)
    assert (ids(cases), faults) == (list(IDS), [])
    cases, faults = images_in([tmp_path / "images/b"], 1, found.channels, found.file_names)
    assert ids(cases) == ["b"]


def test_slices_among_other_images_are_reported(tmp_path):
    dicom.slices(tmp_path, image(0), GRID)
    tiny.nifti(tmp_path / "x.nii.gz", tiny.image(1))
    cases, faults = images_in([tmp_path], 1)
    assert ids(cases) == ["x"]
    assert "7 DICOM files outside a folder of their own" in faults[0].what
