"""Each layout, built of tiny files: its cases, channels and labels, and what is said where they do not fit together."""

import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
from autoseg.datasets.dataset import Case, discover, load_case, parse_options
from autoseg.datasets.pairing import by_channel
from autoseg.datasets.splits import Split
from autoseg.errors import DataError, UsageError
from autoseg.imaging.labels import LabelSet


def names(case: Case) -> list[str]:
    return [Path(file).name for file in case.images]


def ids(cases) -> list[str]:
    return [case.id for case in cases]


def faults(problems) -> list[tuple[str | None, str]]:
    """(case, first words) of each problem."""
    return [(problem.case, " ".join(problem.what.split()[:2])) for problem in problems]


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
    (tmp_path / "masks/slice_0002.png").unlink()
    assert faults(discover(tmp_path)[1]) == [("slice_0002", "missing label:")]


def test_of_two_cases_the_one_with_fewer_channels_lacks_one(tmp_path):
    for file in ("a_0000", "a_0001", "b_0000"):
        tiny.nifti(tmp_path / f"images/{file}.nii", tiny.image(1))
        tiny.nifti(tmp_path / f"labels/{file[0]}.nii", tiny.label(1))
    assert faults(discover(tmp_path)[1]) == [("b", "missing channel")]


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
    with pytest.raises(DataError, match="contains any label"):
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


@pytest.mark.parametrize(
    "pattern",
    ["BraTS_{id}/BraTS_{id}_{name}.nii.gz", "BraTS_{id}/{name}.nii", "HGG/BraTS_{id}/BraTS_{id}-{name}.nii.gz"],
)
def test_folder_per_case(tmp_path, pattern):
    dataset, problems = discover(tiny.brats(tmp_path, pattern))
    assert problems == []
    assert ids(dataset.cases) == ["BraTS_001", "BraTS_002", "BraTS_003"]
    assert dataset.channels == ("flair", "t1", "t1ce")
    assert ["t1ce" in name for name in names(dataset.cases[0])] == [False, False, True]
    assert all("seg" in Path(case.label).name for case in dataset.cases)
    assert dataset.labels.values == {"label_1": 1, "label_2": 2, "label_4": 4}


def test_channels_of_case_folders_are_chosen_by_name(tmp_path):
    root = tiny.brats(tmp_path, "{id}/{name}.nii")
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


def test_the_name_of_a_folder_is_no_part_of_a_channel_by_chance(tmp_path):
    for number, case_id in enumerate(("c", "t", "p")):
        for index, name in enumerate(("ct", "t1")):
            tiny.nifti(tmp_path / f"images/{case_id}/{name}.nii", tiny.image(2 * number + index))
        tiny.nifti(tmp_path / f"labels/{case_id}.nii", tiny.label(1))
    dataset, problems = discover(tmp_path)
    assert (problems, dataset.channels) == ([], ("ct", "t1"))
    for case_id in ("c", "t", "p"):
        (tmp_path / f"images/{case_id}/t1.nii").unlink()
    dataset, problems = discover(tmp_path)
    assert (problems, dataset.channels) == ([], ("ct",))
