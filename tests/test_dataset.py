"""Every layout, built of tiny files whose answer is known; and the arrays of a case against voxels placed by hand."""

import unicodedata
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from autoseg.data.splits import Split
from autoseg.dataset import Case, Dataset, IntakeOptions, discover, images_in, load_case, parse_options
from autoseg.errors import DataError, UsageError
from autoseg.imaging.labels import LabelSet
from autoseg.loading import class_indices, count_values, grid_differences
from autoseg.pairing import by_channel
from autoseg.records import from_plain, to_plain


def names(case: Case) -> list[str]:
    return [Path(file).name for file in case.images]


def ids(cases) -> list[str]:
    return [case.id for case in cases]


def faults(problems) -> list[tuple[str | None, str]]:
    """(case, first words) of each problem."""
    return [(problem.case, " ".join(problem.what.split()[:2])) for problem in problems]


# --- options --------------------------------------------------------------------------------------------------------


def test_options_are_read_as_written():
    options = parse_options(
        channels="CT, MR", labels="liver=1,tumour = 2", regions="whole=1+2,core=2", ignore="255", patient_regex="(p\\d)"
    )
    assert options == IntakeOptions(
        ("CT", "MR"), {"liver": 1, "tumour": 2}, {"whole": (1, 2), "core": (2,)}, 255, "(p\\d)"
    )
    assert parse_options() == IntakeOptions()


@pytest.mark.parametrize(
    ("option", "text"),
    [
        ("channels", "CT,"),
        ("channels", "CT,ct"),
        ("labels", "liver"),
        ("labels", "liver="),
        ("labels", "liver=one"),
        ("labels", "liver=1+2"),
        ("labels", "liver=1,liver=2"),
        ("regions", "whole=1+"),
        ("ignore", "none"),
    ],
)
def test_an_option_that_cannot_be_read_is_named(option, text):
    with pytest.raises(UsageError, match=f"--{option}"):
        parse_options(**{option: text})


# --- nnU-Net --------------------------------------------------------------------------------------------------------


def test_nnunet_layout(tmp_path):
    root = tiny.nnunet(tmp_path / "Dataset001_Toy", ["b", "a"], ("T1", "T2"), name="Toy", numTraining=2)
    tiny.text(root / "imagesTr/._a_0000.nii.gz", "left by macOS")
    tiny.text(root / "splits_final.json", [{"train": ["a"], "val": ["b"]}, {"train": ["b"], "val": ["a"]}])
    dataset, problems = discover(root)
    assert problems == []
    assert (dataset.name, dataset.layout, dataset.channels) == ("Toy", "nnU-Net", ("T1", "T2"))
    assert ids(dataset.cases) == ["a", "b"]
    assert names(dataset.cases[0]) == ["a_0000.nii.gz", "a_0001.nii.gz"]
    assert dataset.cases[0].label == str(root / "labelsTr/a.nii.gz")
    assert dataset.labels == LabelSet({"one": 1, "two": 2})
    assert dataset.splits == (Split(0, ("a",), ("b",)), Split(1, ("b",), ("a",)))


def test_nnunet_regions_and_ignore_label(tmp_path):
    labels = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3, "ignore": 4}
    root = tiny.nnunet(tmp_path, labels=labels, regions_class_order=[1, 2, 3])
    dataset, _ = discover(root)
    assert dataset.labels.values == {"label_1": 1, "label_2": 2, "enhancing": 3}
    assert dataset.labels.regions == {"whole": (1, 2, 3), "core": (2, 3), "enhancing": (3,)}
    assert (dataset.labels.region_values, dataset.labels.ignore) == ((1, 2, 3), 4)


def test_nnunet_dict_of_paths(tmp_path):
    image = tiny.nifti(tmp_path / "elsewhere/scan.nii.gz", tiny.image(0))
    tiny.nifti(tmp_path / "data/manual.nii", tiny.label(1))
    listed = {
        "x": {"images": [str(image)], "label": "manual.nii"},
        "y": {"images": ["gone.nii"], "label": "manual.nii"},
    }
    description = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "organ": 1}, "dataset": listed}
    tiny.text(tmp_path / "data/dataset.json", description)
    dataset, problems = discover(tmp_path / "data")
    assert ids(dataset.cases) == ["x", "y"]
    assert dataset.cases[0].images == (str(image),)
    assert [(p.case, Path(p.file).name) for p in problems] == [("y", "gone.nii")]


def test_held_out_test_set(tmp_path):
    root = tiny.nnunet(tmp_path, ["a", "b"])
    tiny.nifti(root / "imagesTs/c_0000.nii.gz", tiny.image(9))
    dataset, _ = discover(root)
    assert dataset.test_cases == ()
    assert any("labelsTs" in note for note in dataset.notes)
    tiny.nifti(root / "labelsTs/c.nii.gz", tiny.label(1))
    dataset, problems = discover(root)
    assert ids(dataset.test_cases) == ["c"]
    assert problems == []


def test_a_patient_in_training_and_test_set_is_an_error_naming_both_cases(tmp_path):
    root = tiny.nnunet(tmp_path, ["a", "b"])
    tiny.nifti(root / "imagesTs/c_0000.nii.gz", tiny.image(9))
    tiny.nifti(root / "labelsTs/c.nii.gz", tiny.label(1))
    tiny.text(root / "patients.csv", "case,patient\na,p1\nb,p2\nc,p2\n")
    _, problems = discover(root)
    assert [(p.case, p.severity) for p in problems] == [("c", "error")]
    assert "(c)" in problems[0].what
    assert "(b)" in problems[0].what


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"labels": {"liver": "one"}}, "liver"),
        ({"labels": {"background": 0}}, "no foreground label"),
        ({"labels": {"whole": [1, 2]}}, "1 regions but 0 values"),
        ({"labels": {"whole": [0, 2]}, "regions_class_order": [1]}, "background"),
        ({"channel_names": {"1": "CT"}}, "channel names"),
    ],
)
def test_a_dataset_json_that_makes_no_sense_is_named(tmp_path, broken, message):
    root = tiny.nnunet(tmp_path, **{"labels": {"one": 1}} | {k: v for k, v in broken.items() if k == "labels"})
    more = {k: v for k, v in broken.items() if k != "labels"}
    description = {"channel_names": {"0": "MRI"}, "labels": {"one": 1}} | broken | more
    tiny.text(root / "dataset.json", description)
    with pytest.raises(DataError, match=rf"dataset\.json.*{message}"):
        discover(root)


def test_invalid_json_is_named_with_its_line(tmp_path):
    tiny.text(tmp_path / "dataset.json", '{\n"labels": }')
    with pytest.raises(DataError, match=r"dataset\.json is not valid JSON.*line 2"):
        discover(tmp_path)


# --- MSD ------------------------------------------------------------------------------------------------------------


def msd(root: Path, training, **more) -> Path:
    labels = {"0": "background", "1": "edema", "2": "core"}
    tiny.text(root / "dataset.json", {"name": "Brain", "labels": labels, "training": training, **more})
    return root


def test_msd_layout_with_4d_files(tmp_path):
    for case_id in ("x", "y"):
        tiny.nifti(tmp_path / f"imagesTr/{case_id}.nii.gz", tiny.image(ord(case_id), (2, 3, 4, 5)))
        tiny.nifti(tmp_path / f"labelsTr/{case_id}.nii.gz", tiny.label(1, 2))
    entries = [{"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in ("x", "y", "._x")]
    root = msd(tmp_path, entries, modality={"1": "T1w", "0": "FLAIR"}, test=["./imagesTs/z.nii.gz"])
    dataset, problems = discover(root)
    assert problems == []
    assert (dataset.layout, dataset.channels, ids(dataset.cases)) == ("MSD", ("FLAIR", "T1w"), ["x", "y"])
    assert dataset.labels.values == {"edema": 1, "core": 2}
    assert any("no labels" in note for note in dataset.notes)
    loaded = load_case(dataset.cases[0], dataset.labels)
    assert loaded.image.shape == (2, 3, 4, 5)


def test_msd_description_with_files_of_nnunet_v1(tmp_path):
    for channel in (0, 1):
        tiny.nifti(tmp_path / f"imagesTr/x_000{channel}.nii.gz", tiny.image(channel))
    tiny.nifti(tmp_path / "labelsTr/x.nii.gz", tiny.label(1, 2))
    root = msd(tmp_path, [{"image": "imagesTr/x.nii.gz", "label": "labelsTr/x.nii.gz"}], modality={"0": "A", "1": "B"})
    dataset, problems = discover(root)
    assert problems == []
    assert names(dataset.cases[0]) == ["x_0000.nii.gz", "x_0001.nii.gz"]


def test_msd_collects_what_is_missing(tmp_path):
    tiny.nifti(tmp_path / "imagesTr/x.nii.gz", tiny.image(0))
    tiny.nifti(tmp_path / "labelsTr/x.nii.gz", tiny.label(1, 2))
    tiny.nifti(tmp_path / "labelsTr/orphan.nii.gz", tiny.label(1, 2))
    entries = [{"image": f"imagesTr/{n}.nii.gz", "label": f"labelsTr/{n}.nii.gz"} for n in ("x", "gone")]
    _, problems = discover(msd(tmp_path, [*entries, "x.nii.gz"], modality={"0": "MRI"}))
    assert sorted((p.case or "", Path(p.file).name) for p in problems) == [
        ("", "dataset.json"), ("gone", "gone.nii.gz"), ("gone", "gone.nii.gz"), ("orphan", "orphan.nii.gz")
    ]  # fmt: skip


# --- plain folders --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["labels", "masks", "Segmentations"])
def test_plain_layout_with_other_formats_for_labels(tmp_path, folder):
    tiny.nifti(tmp_path / "images/scan1.nii.gz", tiny.image(1))
    tiny.nifti(tmp_path / "images/scan2.NII.GZ", tiny.image(2))
    tiny.nifti(tmp_path / f"{folder}/scan1.nii", tiny.label(1, 4))
    tiny.nifti(tmp_path / f"{folder}/scan2.nii", tiny.label(4))
    dataset, problems = discover(tmp_path)
    assert problems == []
    assert (dataset.layout, ids(dataset.cases), dataset.channels) == ("plain folders", ["scan1", "scan2"], ("image",))
    assert dataset.labels.values == {"label_1": 1, "label_4": 4}
    assert any("label_1=1,label_4=4" in note for note in dataset.notes)


def test_plain_channels_by_suffix(tmp_path):
    for case_id in ("p", "q"):
        for channel in range(3):
            tiny.nifti(tmp_path / f"images/{case_id}_000{channel}.nii.gz", tiny.image(channel))
        tiny.nifti(tmp_path / f"labels/{case_id}.nii.gz", tiny.label(1))
    dataset, problems = discover(tmp_path)
    assert problems == []
    assert dataset.channels == ("channel_0", "channel_1", "channel_2")
    assert [names(case)[2] for case in dataset.cases] == ["p_0002.nii.gz", "q_0002.nii.gz"]
    dataset, _ = discover(tmp_path, parse_options(channels="T1,T2,CT", labels="lesion=1"))
    assert (dataset.channels, dataset.labels.values) == (("T1", "T2", "CT"), {"lesion": 1})


def test_digits_that_labels_have_too_belong_to_the_id(tmp_path):
    for number in range(3):
        tiny.picture(tmp_path / f"images/slice_000{number}.png", np.full((4, 5), number, np.uint8))
        tiny.picture(tmp_path / f"masks/slice_000{number}.png", tiny.label(1, shape=(4, 5)))
    dataset, problems = discover(tmp_path)
    assert problems == []
    assert ids(dataset.cases) == ["slice_0000", "slice_0001", "slice_0002"]


def test_label_names_may_say_that_they_are_labels(tmp_path):
    tiny.nifti(tmp_path / "images/scan.nii.gz", tiny.image(1))
    tiny.nifti(tmp_path / "labels/scan_seg.nii.gz", tiny.label(1))
    dataset, problems = discover(tmp_path)
    assert problems == []
    assert Path(dataset.cases[0].label).name == "scan_seg.nii.gz"


def test_colour_pictures_with_0_255_masks(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(2):
        tiny.picture(tmp_path / f"images/{number}.png", rng.integers(0, 255, (4, 5, 3), dtype=np.uint8))
        tiny.picture(tmp_path / f"masks/{number}.bmp", tiny.label(255, shape=(4, 5)))
    dataset, problems = discover(tmp_path)
    assert problems == []
    assert (dataset.channels, dataset.labels.values) == (("R", "G", "B"), {"foreground": 255})
    loaded = load_case(dataset.cases[0], dataset.labels)
    assert loaded.image.shape == (3, 1, 4, 5)
    assert loaded.target.ravel().tolist() == [1] + [0] * 19


def test_a_declared_1_is_also_met_as_255(tmp_path):
    tiny.picture(tmp_path / "images/a.png", np.arange(20, dtype=np.uint8).reshape(4, 5))
    tiny.picture(tmp_path / "labels/a.png", tiny.label(255, shape=(4, 5)))
    dataset, _ = discover(tmp_path, parse_options(labels="cell=1"))
    assert dataset.labels.aliases == {255: 1}
    assert load_case(dataset.cases[0], dataset.labels).target.ravel()[0] == 1
    dataset, _ = discover(tmp_path, parse_options(labels="cell=1", ignore=255))
    assert dataset.labels.aliases == {}
    assert load_case(dataset.cases[0], dataset.labels).target.ravel()[0] == 2


def test_255_among_other_values_is_doubted(tmp_path):
    tiny.nifti(tmp_path / "images/a.nii", tiny.image(1))
    tiny.nifti(tmp_path / "labels/a.nii", tiny.label(1, 2, 255))
    _, problems = discover(tmp_path)
    assert [(p.severity, "--ignore 255" in p.remedy) for p in problems] == [("warning", True)]
    dataset, problems = discover(tmp_path, parse_options(ignore="255"))
    assert problems == []
    assert (dataset.labels.values, dataset.labels.ignore) == ({"label_1": 1, "label_2": 2}, 255)


def test_labels_without_any_label_and_intensities_as_labels_are_refused(tmp_path):
    tiny.nifti(tmp_path / "images/a.nii", tiny.image(1))
    tiny.nifti(tmp_path / "labels/a.nii", tiny.label())
    with pytest.raises(DataError, match="holds any label"):
        discover(tmp_path)
    tiny.nifti(tmp_path / "labels/a.nii", np.arange(300, dtype=np.int16).reshape(3, 10, 10))
    with pytest.raises(DataError, match="299 different values"):
        discover(tmp_path)


def test_plain_layout_collects_what_does_not_fit(tmp_path):
    for case_id in ("a", "b", "c"):
        tiny.nifti(tmp_path / f"images/{case_id}_0000.nii.gz", tiny.image(1))
        tiny.nifti(tmp_path / f"images/{case_id}_0001.nii.gz", tiny.image(2))
        tiny.nifti(tmp_path / f"labels/{case_id}.nii.gz", tiny.label(1))
    (tmp_path / "images/a_0001.nii.gz").unlink()
    (tmp_path / "labels/b.nii.gz").unlink()
    tiny.nifti(tmp_path / "images/c_0002.nii.gz", tiny.image(3))
    tiny.nifti(tmp_path / "images/c_0001.nii", tiny.image(2))
    tiny.nifti(tmp_path / "labels/d.nii.gz", tiny.label(1))
    dataset, problems = discover(tmp_path)
    assert ids(dataset.cases) == ["a", "b", "c"]
    assert dataset.cases[1].label is None
    assert sorted(faults(problems)) == [
        ("a", "missing channel"),
        ("b", "missing label:"),
        ("c", "channel 0002,"),
        ("c", "duplicate id:"),
        ("d", "no image"),
    ]
    assert all(problem.file and problem.remedy for problem in problems)


def test_ids_that_differ_by_case_alone_are_both_reported(tmp_path):
    for case_id in ("Scan", "scan", "other"):
        tiny.nifti(tmp_path / f"images/{case_id}.nii", tiny.image(len(case_id)))
        tiny.nifti(tmp_path / f"labels/{case_id}.nii", tiny.label(1))
    _, problems = discover(tmp_path)
    assert sorted(p.case for p in problems) == ["Scan", "scan"]
    assert all(p.severity == "error" for p in problems)


def test_accents_match_however_they_are_composed(tmp_path):
    tiny.nifti(tmp_path / "images" / (unicodedata.normalize("NFD", "café") + ".nii"), tiny.image(1))
    tiny.nifti(tmp_path / "labels" / (unicodedata.normalize("NFC", "café") + ".nii"), tiny.label(1))
    dataset, problems = discover(tmp_path)
    assert problems == []
    assert ids(dataset.cases) == [unicodedata.normalize("NFC", "café")]


@settings(max_examples=40, deadline=None)
@given(
    st.dictionaries(st.sampled_from(["a", "b", "a_0000", "a_0003", "b_0001", "scan_1", "x_00000"]), st.integers(1, 4)),
    st.randoms(),
)
def test_channel_files_find_their_case_in_any_order(cases, random):
    files = [Path(f"{case_id}_{channel:04d}.nii.gz") for case_id, count in cases.items() for channel in range(count)]
    random.shuffle(files)
    if {f"{case_id}_{channel:04d}" for case_id, count in cases.items() for channel in range(count)} & set(cases):
        return  # a name that is an id and a channel of another: no one can tell
    found = by_channel(files, cases)
    assert {case_id: [channel for channel, _ in group] for case_id, group in found.items()} == {
        case_id: list(range(count)) for case_id, count in cases.items()
    }


# --- a folder per case ----------------------------------------------------------------------------------------------


def brats(root: Path, pattern: str, ids=("001", "002", "003")) -> Path:
    for case_id in ids:
        for seed, channel in enumerate(("t1", "flair", "t1ce")):
            tiny.nifti(root / pattern.format(id=case_id, name=channel), tiny.image(seed + 10 * int(case_id)))
        tiny.nifti(root / pattern.format(id=case_id, name="seg"), tiny.label(1, 2, 4))
    return root


@pytest.mark.parametrize(
    "pattern",
    ["BraTS_{id}/BraTS_{id}_{name}.nii.gz", "BraTS_{id}/{name}.nii", "HGG/BraTS_{id}/BraTS_{id}-{name}.nii.gz"],
)
def test_folder_per_case(tmp_path, pattern):
    dataset, problems = discover(brats(tmp_path, pattern))
    assert problems == []
    assert ids(dataset.cases) == ["BraTS_001", "BraTS_002", "BraTS_003"]
    assert dataset.channels == ("flair", "t1", "t1ce")
    assert ["t1ce" in name for name in names(dataset.cases[0])] == [False, False, True]
    assert all("seg" in Path(case.label).name for case in dataset.cases)
    assert dataset.labels.values == {"label_1": 1, "label_2": 2, "label_4": 4}


def test_channels_of_case_folders_are_chosen_by_name(tmp_path):
    root = brats(tmp_path, "{id}/{name}.nii")
    (root / "002/t1ce.nii").unlink()
    (root / "003/seg.nii").unlink()
    tiny.nifti(root / "001/t2.nii", tiny.image(5))
    dataset, problems = discover(root)
    assert dataset.channels == ("flair", "t1", "t1ce")
    assert sorted(faults(problems)) == [("001", "'t2' is"), ("002", "missing channel"), ("003", "missing label:")]
    dataset, problems = discover(root, parse_options(channels="T1,Flair"))
    assert (dataset.channels, names(dataset.cases[1])) == (("T1", "Flair"), ["t1.nii", "flair.nii"])
    assert ("002", "missing channel") not in faults(problems)
    dataset, _ = discover(root, parse_options(channels="A,B,C"))
    assert (dataset.channels, names(dataset.cases[0])) == (("A", "B", "C"), ["flair.nii", "t1.nii", "t1ce.nii"])
    with pytest.raises(UsageError, match="flair, t1, t1ce"):
        discover(root, parse_options(channels="T1,T3"))


def test_case_folders_among_the_images(tmp_path):
    for case_id in ("k", "l"):
        tiny.nifti(tmp_path / f"images/{case_id}/pet.nii", tiny.image(1))
        tiny.nifti(tmp_path / f"images/{case_id}/ct.nii", tiny.image(2))
    tiny.nifti(tmp_path / "labels/k.nii", tiny.label(1))
    tiny.nifti(tmp_path / "labels/m.nii", tiny.label(1))
    dataset, problems = discover(tmp_path)
    assert (dataset.channels, names(dataset.cases[0])) == (("ct", "pet"), ["ct.nii", "pet.nii"])
    assert sorted(faults(problems)) == [("l", "missing label:"), ("m", "no case")]


# --- tables ---------------------------------------------------------------------------------------------------------


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
    tiny.text(root / "splits_final.json", [{"train": ["a", "old"], "val": ["b"]}])
    dataset, problems = discover(root)
    assert dataset.splits == (Split(0, ("a",), ("b",)),)
    assert sorted((p.case, p.severity) for p in problems) == [("c", "warning"), ("old", "warning")]
    tiny.text(root / "splits_final.json", {"a": 0})
    with pytest.raises(DataError, match=r"splits_final\.json is not a list"):
        discover(root)


# --- patients -------------------------------------------------------------------------------------------------------


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
    for pattern, message in ((r"p\d", "no group"), (r"(p1)", "p2_l"), (r"(p", "no regular expression")):
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
    dataset, problems = discover(root)
    assert problems == []
    patients = {case.id: case.patient for case in dataset.cases}
    assert patients == {"sub-1_ses-1_T1w": "sub-1", "sub-1_ses-2_T1w": "sub-1", "sub-10_T1w": "10"}


# --- regions by option, no layout, records --------------------------------------------------------------------------


def test_regions_by_option_write_the_value_that_is_theirs_alone(tmp_path):
    root = brats(tmp_path, "{id}/{name}.nii")
    dataset, _ = discover(root, parse_options(regions="whole=1+2+4,core=1+4,enhancing=4"))
    assert dataset.labels.region_values == (2, 1, 4)
    with pytest.raises(UsageError, match="'core' belongs to the regions after it"):
        discover(root, parse_options(regions="core=1+4,whole=1+2+4"))
    with pytest.raises(UsageError, match="no label has"):
        discover(root, parse_options(regions="whole=1+9"))


def test_what_is_no_dataset(tmp_path):
    with pytest.raises(UsageError, match="does not exist"):
        discover(tmp_path / "gone")
    with pytest.raises(DataError, match=r"none of the layouts"):
        discover(tmp_path)
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    with pytest.raises(DataError, match="no training case"):
        discover(tmp_path)
    with pytest.raises(DataError, match=r"none of the layouts"):
        discover(tiny.text(tmp_path / "notes.txt", "nothing"))


def test_a_dataset_survives_being_written_as_json(tmp_path):
    root = tiny.nnunet(tmp_path, labels={"background": 0, "whole": [1, 2], "core": [2]}, regions_class_order=[1, 2])
    tiny.text(root / "splits_final.json", [{"train": ["a"], "val": ["b"]}])
    for options in (IntakeOptions(), parse_options(labels="x=1", ignore=2)):
        dataset, _ = discover(root, options)
        assert from_plain(Dataset, to_plain(dataset)) == dataset


# --- images to predict ----------------------------------------------------------------------------------------------


def touch(folder: Path, *files: str) -> list[Path]:
    for file in files:
        tiny.text(folder / file, "")
    return [folder / file for file in files]


def test_images_in_a_folder_and_by_name(tmp_path):
    one = touch(tmp_path, "b.nii.gz", "a.png", "notes.txt", "._a.png")[:2]
    assert images_in([tmp_path], 1) == [("a", (one[1],)), ("b", (one[0],))]
    assert images_in([one[0]], 1) == [("b", (one[0],))]
    assert images_in([one[0]], 4) == [("b", (one[0],))]  # one file of four channels


def test_images_with_channel_suffixes(tmp_path):
    files = touch(tmp_path, "b_0001.nii", "b_0000.nii", "a_0000.nii", "a_0001.nii")
    assert images_in([tmp_path], 2) == [("a", (files[2], files[3])), ("b", (files[1], files[0]))]
    assert [case_id for case_id, _ in images_in([tmp_path], 1)] == ["a_0000", "a_0001", "b_0000", "b_0001"]
    assert images_in(files[1:3], 1) == [("a", (files[2],)), ("b", (files[1],))]
    files[0].unlink()
    with pytest.raises(UsageError, match="b has 1 image files"):
        images_in([tmp_path], 2)


def test_images_in_case_folders(tmp_path):
    touch(tmp_path, "p1/t2.nii", "p1/t1.nii", "p1/seg.nii", "p2/p2_t1.nii", "p2/p2_t2.nii")
    found = images_in([tmp_path], 2, ("T2", "T1"))
    assert [(case_id, [file.name for file in files]) for case_id, files in found] == [
        ("p1", ["t2.nii", "t1.nii"]), ("p2", ["p2_t2.nii", "p2_t1.nii"])
    ]  # fmt: skip
    assert [file.name for file in images_in([tmp_path], 2)[0][1]] == ["t1.nii", "t2.nii"]


def test_images_that_cannot_be_predicted(tmp_path):
    files = touch(tmp_path, "x/a.nii", "y/a.nii", "z/notes.txt")
    for paths, message in (
        (files[:2], "the id a"), ([tmp_path / "gone"], "does not exist"), (files[2:], "known format"),
        ([tmp_path / "z"], "holds no image"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=message):
            images_in(paths, 1)


# --- arrays ---------------------------------------------------------------------------------------------------------


def test_a_case_is_brought_to_one_axis_order(tmp_path):
    """One voxel at left 1, posterior 2, superior 0 mm, stored in RAS (x to the right, y to the front)."""
    array = np.zeros((3, 4, 5), np.float32)  # stored (z, y, x)
    array[0, 1, 3] = 7  # x index 3 of 5: 1 from the left end; y index 1 of 4: 2 from the front end
    origin = (4.0, 3.0, 0.0)  # the right end lies at x = 0, the front end at y = 0
    image = tiny.nifti(tmp_path / "i.nii", array, (3.0, 1.0, 1.0), origin, "RAS")
    label = tiny.nifti(tmp_path / "l.nii", (array > 0).astype(np.uint8), (3.0, 1.0, 1.0), origin, "RAS")
    case = Case("c", "c", (str(image),), str(label))
    loaded = load_case(case, LabelSet({"dot": 1}))
    assert np.argwhere(loaded.image[0]).tolist() == [[0, 2, 1]]
    assert np.argwhere(loaded.target).tolist() == [[0, 2, 1]]
    assert (loaded.spacing, loaded.image.dtype, loaded.target.dtype) == ((3.0, 1.0, 1.0), np.float32, np.int16)
    stored = load_case(case, None, orientation="as_stored", axis_order=(1, 0, 2))
    assert stored.target is None
    assert (stored.image.shape, stored.spacing) == ((1, 4, 3, 5), (1.0, 3.0, 1.0))
    assert np.argwhere(stored.image[0]).tolist() == [[1, 0, 3]]


@settings(max_examples=20, deadline=None)
@given(
    st.permutations(["L", "P", "S"]), st.tuples(*[st.booleans()] * 3), st.permutations([0, 1, 2]),
    st.sampled_from(["canonical", "as_stored"]),
)  # fmt: skip
def test_to_stored_undoes_any_order(tmp_path_factory, axes, flips, axis_order, orientation):
    opposite = {"L": "R", "P": "A", "S": "I"}
    code = "".join(opposite[a] if flip else a for a, flip in zip(axes, flips, strict=True))
    array = np.arange(60, dtype=np.float32).reshape(3, 4, 5)
    path = tiny.nifti(tmp_path_factory.mktemp("axes") / "i.nii", array, (1.0, 2.0, 3.0), axes=code)
    loaded = load_case(Case("c", "c", (str(path),), None), None, orientation=orientation, axis_order=tuple(axis_order))
    assert np.array_equal(loaded.to_stored(loaded.image)[0], array)
    assert sorted(zip(loaded.image.shape[1:], loaded.spacing, strict=True)) == [(3, 1.0), (4, 2.0), (5, 3.0)]


def test_a_case_that_cannot_be_loaded_names_its_file(tmp_path):
    sound = tiny.nifti(tmp_path / "i.nii", tiny.image(1))
    moved = tiny.nifti(tmp_path / "moved.nii", tiny.image(2), origin=(0.5, 0, 0))
    strange = tiny.nifti(tmp_path / "strange.nii", tiny.label(1, 7))
    holes = tiny.image(3)
    holes[0, 0, 0] = np.nan
    holes = tiny.nifti(tmp_path / "holes.nii", holes)
    labels = LabelSet({"one": 1})
    for case, message in (
        (Case("c", "c", (str(sound), str(moved)), None), r"moved\.nii: origin"),
        (Case("c", "c", (str(holes),), None), r"holes\.nii: 1 NaN voxels"),
        (Case("c", "c", (str(sound),), str(strange)), r"strange\.nii: unexpected label values \[7\]"),
    ):
        with pytest.raises(DataError, match=message):
            load_case(case, labels)


def test_grids_differ_by_what_moves_a_voxel(tmp_path):
    from autoseg.imaging.readers import read_geometry

    grid = read_geometry(tiny.nifti(tmp_path / "i.nii", tiny.image(1, (10, 20, 30)), (2.0, 1.0, 1.0)))
    assert grid_differences("a.nii", grid, "b.nii", grid) == []
    for changed, words in (
        (replace(grid, spacing=(2.0, 1.0, 1.0009)), []),
        (replace(grid, spacing=(2.0, 1.0, 1.0011)), ["spacing"]),
        (replace(grid, origin=(0.0, 0.009, 0.0)), []),
        (replace(grid, origin=(0.0, 0.011, 0.0)), ["origin"]),
        (replace(grid, direction=((0, 0, 1), (0, 1, 0), (-1, 0, 0)), origin=(29.0, 0.0, 0.0)), ["origin", "direction"]),
        (replace(grid, shape=(10, 20, 31)), ["shape"]),
    ):
        assert [found.split()[0] for found in grid_differences("a.nii", changed, "b.nii", grid)] == words
    assert grid_differences("a.png", replace(grid, spacing=(1.0, 9.0, 9.0)), "b.nii", grid) == []


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from([-3, 0, 1, 4, 255, 70000]), min_size=4, max_size=4))
def test_values_are_counted_and_mapped_as_by_sorting(values):
    array = np.array(values, dtype=np.int32).reshape(1, 2, 2)
    assert count_values(array) == {v: values.count(v) for v in sorted(set(values))}
    labels = LabelSet({"a": 1, "b": 4, "c": 70000}, ignore=255, aliases={-3: 1})
    assert np.array_equal(class_indices(array, labels, sorted(set(values))), labels.to_indices(array))


# --- real data ------------------------------------------------------------------------------------------------------


def test_real_datasets_are_understood(data_dir):
    hippocampus, problems = discover(data_dir / "hippocampus")
    assert problems == []
    assert (len(hippocampus.cases), len(hippocampus.test_cases), hippocampus.channels) == (160, 41, ("MRI",))
    assert hippocampus.labels.values == {"anterior": 1, "posterior": 2}
    assert len({case.patient for case in hippocampus.cases}) == 104
    axon, problems = discover(data_dir / "axon_sem", parse_options(labels="myelin=1,axon=2"))
    assert problems == []
    assert (len(axon.cases), len({case.patient for case in axon.cases}), axon.channels) == (10, 8, ("image",))
    lesions, problems = discover(
        data_dir / "ms_lesion_mni", parse_options(labels="lesion=1", channels="FLAIR,T1,T1Gd,T2")
    )
    assert problems == []
    assert [len(case.images) for case in lesions.cases] == [4, 4, 4]
    assert ids(discover(data_dir / "ct_ts_512x512x20", parse_options(labels="organ=1"))[0].cases) == ["ts_dicom"]
