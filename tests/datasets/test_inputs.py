"""Images to segment are sorted into cases by the rule that the training images followed."""

import unicodedata
from pathlib import Path

import pytest

import tiny
from autoseg.datasets.dataset import Dataset, discover, images_in, parse_options
from autoseg.datasets.inputs import FileNames
from autoseg.errors import UsageError


def ids(cases) -> list[str]:
    return [case_id for case_id, _ in cases]


def files_of(cases) -> list[list[str]]:
    return [[file.name for file in files] for _, files in cases]


def plain(root: Path, images: str, labels: str, channels=("",), ids=("a", "b", "c")) -> Path:
    """images/ and labels/ whose files are called by patterns of {id} and {channel}."""
    for number, case_id in enumerate(ids):
        for index, channel in enumerate(channels):
            tiny.nifti(root / images.format(id=case_id, channel=channel), tiny.image(10 * number + index))
        tiny.nifti(root / labels.format(id=case_id), tiny.label(1, 2))
    return root


def rule_of(dataset: Dataset) -> FileNames:
    assert dataset.file_names is not None
    return dataset.file_names


FLAT, LABELS = "images/{id}{channel}.nii.gz", "labels/{id}.nii.gz"
LAYOUTS = {  # pattern of the images, of the labels, the channels, the rule
    "whole names": (FLAT, LABELS, ("",), FileNames("suffix", ("",))),
    "one channel": (FLAT, LABELS, ("_0000",), FileNames("suffix", ("_0000",))),
    "numbered from 1": (FLAT, LABELS, ("_0001",), FileNames("suffix", ("_0001",))),
    "two, from 1": (FLAT, LABELS, ("_0001", "_0002"), FileNames("suffix", ("_0001", "_0002"))),
    "0 and 2": (FLAT, LABELS, ("_0000", "_0002"), FileNames("suffix", ("_0000", "_0002"))),
    "digits of the id": ("images/s_{id}.nii.gz", "labels/s_{id}.nii.gz", ("",), FileNames("suffix", ("",))),
    "folders": ("{id}/{channel}.nii", "{id}/seg.nii", ("t1", "flair"), FileNames("folder", ("flair", "t1"))),
    "folders with ids": (
        "HGG/{id}/{id}_{channel}.nii", "HGG/{id}/{id}_seg.nii", ("t1", "flair"), FileNames("folder", ("flair", "t1"))
    ),
    "folders among images": ("images/{id}/{channel}.nii", LABELS, ("ct", "pet"), FileNames("folder", ("ct", "pet"))),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_images_that_a_model_was_trained_on_are_found_again(tmp_path, layout):
    images, labels, channels, rule = LAYOUTS[layout]
    case_ids = ("0001", "0002", "0003") if layout == "digits of the id" else ("a", "b", "c")
    dataset, problems = discover(plain(tmp_path, images, labels, channels, case_ids))
    assert problems == []
    assert dataset.file_names == rule
    top = tmp_path / images.split("/")[0] if "images/" in images or "HGG" in images else tmp_path
    cases, faults = images_in([top], len(dataset.channels), dataset.channels, rule)
    assert [(case_id, tuple(map(str, files))) for case_id, files in cases] == [(c.id, c.images) for c in dataset.cases]
    assert [fault for fault in faults if fault.severity == "error"] == []
    if "HGG" in images:
        assert images_in([tmp_path], len(dataset.channels), (), rule)[0] == cases  # and from one level above


def test_renamed_channels_are_found_by_the_names_of_their_files(tmp_path):
    root = plain(tmp_path, "{id}/{channel}.nii", "{id}/seg.nii", ("t1", "flair"))
    dataset, _ = discover(root, parse_options(channels="A,B"))
    assert dataset.channels == ("A", "B")
    assert files_of(images_in([root], 2, dataset.channels, rule_of(dataset))[0]) == [["flair.nii", "t1.nii"]] * 3
    dataset, _ = discover(root, parse_options(channels="T1"))
    cases, faults = images_in([root], 1, dataset.channels, rule_of(dataset))
    assert files_of(cases) == [["t1.nii"]] * 3
    assert [(Path(f.file).name, f.severity) for f in faults] == [("flair.nii", "warning")] * 3


def test_one_case_folder_is_one_case(tmp_path):
    root = plain(tmp_path, "{id}/{channel}.nii", "{id}/seg.nii", ("t1", "flair"))
    rule = FileNames("folder", ("flair", "t1"))
    assert images_in([root / "b"], 2, (), rule) == ([("b", (root / "b/flair.nii", root / "b/t1.nii"))], [])


def touch(folder: Path, *files: str) -> list[Path]:
    return [tiny.text(folder / file, "x") for file in files]


def test_a_file_of_another_channel_is_named(tmp_path):
    """A second channel beside the one that was learnt is no further case."""
    touch(tmp_path, "a_0000.nii", "a_0001.nii", "b.nii")
    cases, faults = images_in([tmp_path], 1, (), FileNames("suffix", ("_0000",)))
    assert ids(cases) == ["a", "b"]
    assert [(f.case, f.severity, "end in _0000" in f.what) for f in faults] == [("a_0001", "error", True)]


def test_a_case_without_one_of_its_channels_is_named_with_its_ending(tmp_path):
    touch(tmp_path, "a_0001.nii", "a_0002.nii", "b_0001.nii", "c.nii")
    cases, faults = images_in([tmp_path], 2, (), FileNames("suffix", ("_0001", "_0002")))
    assert ids(cases) == ["a", "c"]  # c.nii may hold both channels; its reader will see
    assert [(f.case, f.remedy) for f in faults] == [("b", "add the file whose name ends in _0002")]


def test_whole_names_stay_whole(tmp_path):
    touch(tmp_path, "s_0000.png", "s_0001.png", "s_0002.png")
    cases, faults = images_in([tmp_path], 3, ("R", "G", "B"), FileNames("suffix", ("",)))
    assert (ids(cases), faults) == (["s_0000", "s_0001", "s_0002"], [])


def test_flat_files_for_a_model_trained_on_case_folders(tmp_path):
    files = touch(tmp_path, "p_t1.nii", "p_flair.nii", "q-T1.nii", "q-FLAIR.nii", "r_t1.nii")
    cases, faults = images_in([tmp_path], 2, (), FileNames("folder", ("flair", "t1")))
    assert cases == [("p", (files[1], files[0])), ("q", (files[3], files[2]))]
    assert [f.case for f in faults] == ["r"]


def test_case_folders_for_a_model_trained_on_flat_files(tmp_path):
    touch(tmp_path, "p/p_0000.nii", "p/p_0001.nii", "p/seg.nii", "q/x_0000.nii", "q/x_0001.nii", "q/extra.nii")
    touch(tmp_path, "r/t1.nii", "r/t2.nii", "s/x_0000.nii", "s/x_0001.nii", "s/y_0000.nii", "s/y_0001.nii")
    cases, faults = images_in([tmp_path], 2, ("T1", "CT"), FileNames("suffix", ("_0000", "_0001")))
    assert ids(cases) == ["p", "q", "x", "y"]  # s holds several cases
    assert [(f.case, f.severity) for f in faults] == [("q", "warning"), ("r", "error")]
    assert "the folder contains t1, t2; the model needs T1, CT" in faults[1].what


def test_channels_are_never_guessed_where_the_rule_is_known(tmp_path):
    touch(tmp_path, "p/first.nii", "p/second.nii")
    assert images_in([tmp_path], 2, ("t1", "flair"), FileNames("folder", ("flair", "t1")))[0] == []


def test_entries_of_a_folder_to_segment_are_named(tmp_path):
    touch(tmp_path, "a.nii", "a.json", "notes.docx", "more/b.nii", "c.mgz")
    (tmp_path / "d.nii").symlink_to("/nowhere")
    cases, faults = images_in([tmp_path, tmp_path / "d.nii"], 1, (), FileNames("suffix", ("",)))
    assert ids(cases) == ["a"]
    assert sorted((Path(f.file).name, f.severity) for f in faults) == [
        ("c.mgz", "error"), ("d.nii", "error"), ("more", "error"), ("notes.docx", "warning")
    ]  # fmt: skip


def test_segmentations_of_slicer_among_images_are_named_and_not_used(tmp_path):
    rule = FileNames("suffix", ("",))
    files = touch(tmp_path / "flat", "x.nrrd", "x.seg.nrrd", "Y.SEG.NRRD", "y.nrrd")
    for given in ([tmp_path / "flat"], files):
        cases, faults = images_in(given, 1, (), rule)
        assert ids(cases) == ["x", "y"]
        assert sorted((Path(f.file).name, f.severity) for f in faults) == [
            ("Y.SEG.NRRD", "warning"), ("x.seg.nrrd", "warning")
        ]  # fmt: skip
        assert all("is a segmentation of 3D Slicer, not an image" in f.what for f in faults)
    touch(tmp_path / "folders", "p/t1.nrrd", "p/t1.seg.nrrd", "deep/q/t1.nrrd", "deep/q/t1.seg.nrrd")
    cases, faults = images_in([tmp_path / "folders"], 1, (), FileNames("folder", ("t1",)))
    assert (ids(cases), [f.severity for f in faults]) == (["p", "q"], ["warning"] * 2)
    with pytest.raises(UsageError, match=r"x\.seg\.nrrd is a segmentation of 3D Slicer, expected an image"):
        images_in([files[1]], 1, (), rule)
    touch(tmp_path / "alone", "x.seg.nrrd")
    with pytest.raises(UsageError, match="contains segmentations of 3D Slicer and no image"):
        images_in([tmp_path / "alone"], 1, (), rule)


def test_the_folder_of_the_segmentations_is_not_looked_into(tmp_path):
    """`autoseg predict -i scans -o scans/out`, given again."""
    touch(tmp_path, "a.nii", "out/a.nii")
    assert images_in([tmp_path], 1, (), FileNames("suffix", ("",)), tmp_path / "out")[1] == []
    (fault,) = images_in([tmp_path], 1, (), FileNames("suffix", ("",)), tmp_path / "elsewhere")[1]
    assert fault.severity == "error"


def test_entries_among_case_folders_are_named(tmp_path):
    touch(tmp_path, "p/t1.nii", "notes.docx", "empty/readme.txt", "deep/q/t1.nii", "deep/r/x.mgz", "u/v/w/t1.nii")
    cases, faults = images_in([tmp_path], 1, (), FileNames("folder", ("t1",)))
    assert ids(cases) == ["p", "q"]
    assert sorted((Path(f.file).name, f.severity) for f in faults) == [
        ("empty", "warning"), ("notes.docx", "warning"), ("w", "error"), ("x.mgz", "error")
    ]  # fmt: skip


def test_two_inputs_of_one_output_name(tmp_path):
    files = touch(tmp_path, "x/a.nii", "y/A.nii", "y/b.nii")
    cases, faults = images_in([tmp_path / "x", tmp_path / "y"], 1, (), FileNames("suffix", ("",)))
    assert ids(cases) == ["b"]
    assert sorted(f.file for f in faults) == sorted(str(file) for file in files[:2])


def test_ids_are_composed_in_whatever_form_the_disk_has_them(tmp_path):
    nfd, nfc = (unicodedata.normalize(form, "café") for form in ("NFD", "NFC"))
    touch(tmp_path, f"{nfd}/t1.nii")
    assert ids(images_in([tmp_path], 1, (), FileNames("folder", ("t1",)))[0]) == [nfc]


def test_rules_that_cases_do_not_share(tmp_path):
    root = plain(tmp_path, FLAT, LABELS, ("_0000",), ("a", "b"))
    plain(root, FLAT, LABELS, ("",), ("c",))
    assert discover(root)[0].file_names == FileNames("suffix", ("_0000",))
    assert ids(images_in([root / "images"], 1, (), FileNames("suffix", ("_0000",)))[0]) == ["a", "b", "c"]
    rows = "case,image,label\np,images/a_0000.nii.gz,labels/a.nii.gz\nq,images/b_0000.nii.gz,labels/b.nii.gz\n"
    assert discover(tiny.text(root / "t.csv", rows))[0].file_names is None


def test_channels_of_a_table_are_found_by_their_endings(tmp_path):
    for number in (1, 2):
        for index, name in enumerate(("T1w", "FLAIR", "seg")):
            tiny.nifti(
                tmp_path / f"d/s{number}_{name}.nii", tiny.label(1) if name == "seg" else tiny.image(index + number)
            )
    rows = "".join(f"s{n},d/s{n}_T1w.nii,d/s{n}_FLAIR.nii,d/s{n}_seg.nii\n" for n in (1, 2))
    dataset, _ = discover(tiny.text(tmp_path / "t.csv", "case,image_0,image_1,label\n" + rows))
    assert dataset.file_names == FileNames("suffix", ("_T1w", "_FLAIR"))


@pytest.mark.parametrize(
    ("images", "labels", "offered"),
    [("imagesTr", "labelsTr", "imagesTr"), ("images", "masks", "images"), ("imagesTs", "labelsTr", "imagesTs")],
)
def test_a_dataset_is_not_a_folder_of_images(tmp_path, images, labels, offered):
    """Its folders would be taken for cases, labels among them."""
    root = tmp_path / "my data"
    for folder in (images, labels):
        tiny.nifti(root / folder / "a_0000.nii.gz", tiny.image(1))
    with pytest.raises(UsageError, match="my data is a dataset with labels, expected a folder of images") as caught:
        images_in([root], 1, ("MR",), FileNames("suffix", ("_0000",)))
    assert caught.value.remedy == f"name the folder of images in it: -i '{root / offered}'"
    assert ids(images_in([root / offered], 1, ("MR",), FileNames("suffix", ("_0000",)))[0]) == ["a"]
