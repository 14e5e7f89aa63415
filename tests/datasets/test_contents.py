"""Every entry of a folder of images or labels is used or named: each kind of entry that people have there."""

import json
import os
import shlex
from pathlib import Path

import nibabel
import numpy as np
import pytest
from nibabel.cmdline import convert

import tiny
from autoseg.datasets.contents import Problem, contents, stray_folders
from autoseg.datasets.dataset import discover
from autoseg.errors import DataError
from autoseg.imaging.formats.readers import read_image

DICOM = bytes(128) + b"DICM" + bytes(100)


def plain(root: Path, ids=("a", "b", "c")) -> Path:
    """A sound dataset of images/ and labels/."""
    for number, case_id in enumerate(ids):
        tiny.nifti(root / f"images/{case_id}.nii.gz", tiny.image(number))
        tiny.nifti(root / f"labels/{case_id}.nii.gz", tiny.label(1, 2))
    return root


def put(path: Path, content: bytes = b"something") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def named(problems: list[Problem], name: str) -> list[Problem]:
    return [problem for problem in problems if Path(problem.file).name == name]


ANNEX = "../.git/annex/objects/Xx/Yy/SHA256E-s9--x.nii.gz/SHA256E-s9--x.nii.gz"
ENTRIES = {  # what makes the entry d.* of a folder -> its name, words of the message, words of the remedy, severity
    "annex": ("d.nii.gz", "git-annex link", "datalad get", "error"),
    "dangling": ("d.nii.gz", "a link to a file that does not exist: /nowhere/d.nii.gz", "copy", "error"),
    "loop": ("d.nii.gz", "is a link to itself", "replace it with the file", "error"),
    "pipe": ("d.nii.gz", "a device or a pipe", "replace it with a file", "error"),
    "icloud": (".d.nii.gz.icloud", "iCloud", "download", "error"),
    "pair": ("d.hdr", "with d.img, a .hdr/.img pair", "nib-convert", "error"),
    "half": ("d.img.gz", "half of a .hdr/.img pair", "copy d.hdr here", "error"),
    "freesurfer": ("d.mgz", "FreeSurfer", "nib-convert", "error"),
    "minc": ("d.mnc", "MINC", "convert", "error"),
    "blank": ("d.nii.gz ", "blanks after its extension", "mv '", "error"),
    "part": ("d.nii.gz.part", "unfinished download", "again", "error"),
    "chrome": ("d.nii.gz.crdownload", "unfinished download", "again", "error"),
    "bz2": ("d.nii.bz2", "compressed", "decompress", "error"),
    "old": ("d.nii.gz.old", ".nii.gz.old", "rename it: d.nii.gz", "error"),
    "hidden by Windows": ("d.nii.gz.txt", ".nii.gz.txt", "rename it: d.nii.gz", "error"),
    "no ending": ("d", "first bytes are those of an image", "rename", "error"),
    "dvc": ("d.nii.gz.dvc", "DVC", "dvc pull", "error"),
    "shortcut": ("d.nii.gz.lnk", "shortcut", "copy the file", "error"),
    "backup": ("a.nii.gz~", "a.nii.gz is next to it", "nothing", "warning"),
    "document": ("d.docx", "not an image of a known format", "convert", "warning"),
    "folder like a file": ("d.nii.gz", "is a folder, expected a .nii.gz file", "remove", "error"),
    "folder of images": ("more", "its files are not used (1 files, such as d.nii.gz)", "move its images", "error"),
    "empty folder": ("more", "contains no image", "nothing", "warning"),
}


def make(kind: str, folder: Path) -> None:
    path = folder / ENTRIES[kind][0]
    if kind in ("annex", "dangling", "loop"):
        path.symlink_to({"annex": ANNEX, "dangling": "/nowhere/d.nii.gz", "loop": path.name}[kind])
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "pair":
        put(path)
        put(path.with_suffix(".img"))
    elif kind in ("folder like a file", "empty folder"):
        path.mkdir()
    elif kind == "folder of images":
        tiny.nifti(path / "d.nii.gz", tiny.image(9))
    elif kind in ("no ending", "hidden by Windows"):
        put(path, (folder / "a.nii.gz").read_bytes())
    else:
        put(path)


@pytest.mark.parametrize("folder", ["images", "labels"])
@pytest.mark.parametrize("kind", ENTRIES)
def test_an_entry_that_is_no_image_is_named(tmp_path, kind, folder):
    root = plain(tmp_path)
    make(kind, root / folder)
    dataset, problems = discover(root)
    assert [case.id for case in dataset.cases] == ["a", "b", "c"]
    name, what, remedy, severity = ENTRIES[kind]
    (problem,) = named(problems, name)
    assert what in problem.what
    assert remedy in problem.remedy
    assert problem.severity == severity
    assert problems == [problem]  # and nothing else is said


def test_what_is_passed_over_without_a_word(tmp_path):
    root = plain(tmp_path)
    for name in ("a.json", "notes.txt", "README", "README.md", "Thumbs.db", "desktop.ini", "x.bval", "x.bvec", "t.csv",
                 ".DS_Store", "._a.nii.gz", "a.nii.gz.json"):  # fmt: skip
        put(root / "images" / name)
    (root / "images/__MACOSX").mkdir()
    (root / "labels/fetch.json").symlink_to(ANNEX)
    assert discover(root)[1] == []


def test_what_a_program_left_beside_an_image_hides_no_case(tmp_path):
    root = plain(tmp_path)
    for name in ("a.mat", "b.gif", "b.hdr", "b.img"):
        put(root / "images" / name)
    problems = discover(root)[1]
    assert [(Path(p.file).name, p.severity) for p in problems] == [
        ("a.mat", "warning"), ("b.gif", "warning"), ("b.hdr", "warning"), ("b.img", "warning")
    ]  # fmt: skip
    assert all(p.what.endswith(f"not used, {Path(p.file).stem}.nii.gz is next to it") for p in problems)


@pytest.mark.parametrize("ending", [".mgz", ".hdr"])
def test_the_conversion_that_is_suggested_works_as_typed(tmp_path, ending):
    root = plain(tmp_path / "a folder")
    array = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    image = (nibabel.MGHImage if ending == ".mgz" else nibabel.Nifti1Pair)(array.astype(np.float32), np.eye(4))
    nibabel.save(image, root / f"images/d{ending}")
    (problem,) = [p for p in discover(root)[1] if Path(p.file).parent.name == "images"]
    program, *arguments = shlex.split(problem.remedy.removeprefix("convert it: ").split(";")[0])
    assert program == "nib-convert"
    assert convert.main(arguments) is None
    np.testing.assert_array_equal(read_image(root / "images/d.nii.gz").array[0], array.T)


def test_the_voxels_of_a_metaimage_header_are_no_stray_file(tmp_path):
    put(tmp_path / "a.mhd", b"NDims = 3\nElementDataFile = A.zraw\n")
    put(tmp_path / "A.zraw")
    assert contents(tmp_path).problems == []
    put(tmp_path / "b.raw")
    assert [Path(p.file).name for p in contents(tmp_path).problems] == ["b.raw"]


def test_a_case_whose_files_are_missing_is_named_once_for_each(tmp_path):
    """The label of a vanished image is no orphan beside it, and a label that cannot be used is not missing as well."""
    root = plain(tmp_path, ("a", "b", "c", "d"))
    (root / "images/d.nii.gz").unlink()
    (root / "images/d.nii.gz").symlink_to(ANNEX)
    (root / "labels/c.nii.gz").rename(root / "labels/c.mgz")
    problems = discover(root)[1]
    assert [(p.case, Path(p.file).name) for p in problems] == [("d", "d.nii.gz"), ("c", "c.mgz")]


def test_dicom_is_recognised_by_ending_name_and_content(tmp_path):
    root = plain(tmp_path)
    for name in ("IM0001", "1.2.840.113619.2", "x.dcm", "y.IMA", "DICOMDIR"):
        put(root / "images" / name, DICOM if "." not in name or name[0] == "1" else b"")
    (problem,) = discover(root)[1]
    assert "5 DICOM files" in problem.what
    assert f"{root}/images/NAME/" in problem.remedy
    put(root / "images/series/IM0001", DICOM)  # a folder of slices is an image
    (problem, image) = discover(root)[1]
    assert (image.case, "missing label" in image.what) == ("series", True)


def test_a_folder_of_dicom_series_is_named_where_no_layout_fits(tmp_path):
    put(tmp_path / "p1/IM0001", DICOM)
    with pytest.raises(DataError, match=r"DICOM files, such as .*p1/IM0001") as error:
        discover(tmp_path)
    assert "images/CASE/" in error.value.remedy


def test_series_among_case_folders_are_named(tmp_path):
    for case_id in ("p", "q"):
        tiny.nifti(tmp_path / f"{case_id}/ct.nii", tiny.image(ord(case_id)))
        tiny.nifti(tmp_path / f"{case_id}/seg.nii", tiny.label(1))
    put(tmp_path / "r/IM0001", DICOM)
    (tmp_path / "scripts").mkdir()
    put(tmp_path / "p/raw/IM0001", DICOM)
    (tmp_path / "q/pet.nii").symlink_to("/nowhere")
    tiny.nifti(tmp_path / "loose.nii", tiny.image(3))
    problems = discover(tmp_path)[1]  # p/raw is a channel, which q lacks
    assert sorted((Path(p.file).name, p.severity) for p in problems) == [
        ("IM0001", "error"), ("loose.nii", "warning"), ("pet.nii", "error"), ("q", "error"), ("scripts", "warning")
    ]  # fmt: skip


def nnunet(root: Path, ending: object) -> Path:
    root = tiny.nnunet(root, ["a", "b"])
    description = json.loads((root / "dataset.json").read_text()) | {"file_ending": ending}
    tiny.text(root / "dataset.json", description)
    return root


@pytest.mark.parametrize("ending", [".nii.gz", "nii.gz", ".NII.GZ", " .nii.gz"])
def test_images_of_another_ending_than_declared(tmp_path, ending):
    root = nnunet(tmp_path, ending)
    tiny.picture(root / "imagesTr/a_0000.png", np.zeros((4, 5), np.uint8))  # a preview
    tiny.nifti(root / "imagesTr/c_0000.nii", tiny.image(7))  # a case that would vanish
    dataset, problems = discover(root)
    assert [case.id for case in dataset.cases] == ["a", "b"]
    assert sorted((Path(p.file).name, p.severity) for p in problems) == [
        ("a_0000.png", "warning"), ("c_0000.nii", "error")
    ]  # fmt: skip
    assert all("file_ending" in p.what for p in problems)


@pytest.mark.parametrize("ending", [".npy", ["x"], 3])
def test_a_declared_ending_that_is_none(tmp_path, ending):
    dataset, problems = discover(nnunet(tmp_path, ending))
    assert [case.id for case in dataset.cases] == ["a", "b"]
    assert [("file_ending is" in p.what, p.severity) for p in problems] == [(True, "warning")]


def test_two_formats_of_one_case_are_named(tmp_path):
    root = plain(tmp_path)
    tiny.nifti(root / "images/a.nii", tiny.image(5))
    (problem,) = discover(root)[1]
    assert problem.what == "duplicate id: a.nii has the same name"


def test_what_a_list_leaves_out_and_what_is_not_there(tmp_path):
    for name in ("x", "y"):
        tiny.nifti(tmp_path / f"imagesTr/{name}.nii.gz", tiny.image(ord(name)))
        tiny.nifti(tmp_path / f"labelsTr/{name}.nii.gz", tiny.label(1))
    (tmp_path / "labelsTr/z.nii.gz").symlink_to(ANNEX)
    put(tmp_path / "imagesTr/w.mgz")
    entries = [{"image": f"imagesTr/{n}.nii.gz", "label": f"labelsTr/{n}.nii.gz"} for n in ("x", "z")]
    tiny.text(tmp_path / "dataset.json", {"labels": {"0": "background", "1": "l"}, "training": entries})
    problems = discover(tmp_path)[1]
    assert sorted((Path(p.file).parent.name, Path(p.file).name, p.what.split(",")[0]) for p in problems) == [
        ("imagesTr", "w.mgz", "is a FreeSurfer volume"),
        ("imagesTr", "y.nii.gz", "no training entry of dataset.json lists this image"),
        ("imagesTr", "z.nii.gz", "does not exist"),
        ("labelsTr", "y.nii.gz", "no training entry of dataset.json belongs to this label"),
        ("labelsTr", "z.nii.gz", "is a git-annex link whose content is not on this machine"),
    ]


def test_folders_that_are_not_used_because_of_others(tmp_path):
    root = plain(tmp_path)
    tiny.nifti(root / "masks/a.nii.gz", tiny.label(1))
    tiny.nifti(root / "labelsTs/t.nii.gz", tiny.label(1))
    problems = discover(root)[1]
    assert [(Path(p.file).name, p.severity) for p in problems] == [("masks", "warning"), ("labelsTs", "warning")]
    root = tiny.nnunet(tmp_path / "nnunet")
    tiny.text(root / "list.csv", "image,label,fold\nimagesTr/a_0000.nii.gz,labelsTr/a.nii.gz,0\n")
    (problem,) = discover(root)[1]
    assert (Path(problem.file).name, problem.severity) == ("list.csv", "warning")


def test_a_linked_folder_that_is_not_there(tmp_path):
    root = tiny.nnunet(tmp_path)
    (root / "imagesTs").symlink_to("/nowhere")
    with pytest.raises(DataError, match="imagesTs is a link to a file that does not exist"):
        discover(root)


def test_stray_folders_count_links_that_lead_nowhere_too(tmp_path):
    (tmp_path / "more/deep").mkdir(parents=True)
    (tmp_path / "more/deep/x.nii.gz").symlink_to("/nowhere")
    (problem,) = stray_folders(contents(tmp_path))
    assert "(1 files, such as x.nii.gz)" in problem.what


def test_folders_that_cannot_be_listed_are_named(tmp_path, monkeypatch):
    root = plain(tmp_path)
    tiny.nifti(root / "images/locked/d.nii.gz", tiny.image(5))
    listed = Path.iterdir

    def locked(folder: Path):
        if folder.name == "locked":
            raise PermissionError(13, "Permission denied")
        return listed(folder)

    monkeypatch.setattr(Path, "iterdir", locked)
    (problem,) = discover(root)[1]
    assert (problem.severity, problem.what) == ("error", "the folder cannot be listed: Permission denied")
    for case_id in ("a", "b", "c"):  # now a dataset of case folders
        (root / f"images/{case_id}").mkdir()
        (root / f"images/{case_id}.nii.gz").rename(root / f"images/{case_id}/ct.nii.gz")
    (problem,) = discover(root)[1]
    assert (problem.case, problem.what) == ("locked", "the folder cannot be listed: Permission denied")
