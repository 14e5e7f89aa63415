"""What a dataset is understood to be: options, regions, records, images to predict, and real datasets."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tiny
from autoseg.datasets.dataset import Dataset, IntakeOptions, discover, images_in, parse_options
from autoseg.errors import DataError, UsageError
from autoseg.records import from_plain, to_plain


def ids(cases) -> list[str]:
    return [case.id for case in cases]


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


def test_regions_by_option_write_the_value_that_is_theirs_alone(tmp_path):
    root = tiny.brats(tmp_path, "{id}/{name}.nii")
    dataset, _ = discover(root, parse_options(regions="whole=1+2+4,core=1+4,enhancing=4"))
    assert dataset.labels.region_values == (2, 1, 4)
    with pytest.raises(UsageError, match="'core' belongs to the regions after it"):
        discover(root, parse_options(regions="core=1+4,whole=1+2+4"))
    with pytest.raises(UsageError, match="belong to no label"):
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


def ids_of(cases) -> list[str]:
    return [case_id for case_id, _ in cases]


def touch(folder: Path, *files: str) -> list[Path]:
    for file in files:
        tiny.text(folder / file, "")
    return [folder / file for file in files]


def test_images_in_a_folder_and_by_name(tmp_path):
    one = touch(tmp_path, "b.nii.gz", "a.png", "notes.txt", "._a.png")[:2]
    assert images_in([tmp_path], 1) == ([("a", (one[1],)), ("b", (one[0],))], [])
    assert images_in([one[0]], 1) == ([("b", (one[0],))], [])
    assert images_in([one[0]], 4) == ([("b", (one[0],))], [])  # one file of four channels


def test_images_with_channel_suffixes(tmp_path):
    files = touch(tmp_path, "b_0001.nii", "b_0000.nii", "a_0000.nii", "a_0001.nii")
    assert images_in([tmp_path], 2) == ([("a", (files[2], files[3])), ("b", (files[1], files[0]))], [])
    assert [case_id for case_id, _ in images_in([tmp_path], 1)[0]] == ["a_0000", "a_0001", "b_0000", "b_0001"]
    assert images_in(files[1:3], 1) == ([("a", (files[2],)), ("b", (files[1],))], [])
    files[0].unlink()
    cases, problems = images_in([tmp_path], 2)
    assert ids_of(cases) == ["a"]
    assert [(p.case, p.severity, p.what.split(" (")[0]) for p in problems] == [("b", "error", "b has 1 image files")]


def test_images_in_case_folders(tmp_path):
    touch(tmp_path, "p1/t2.nii", "p1/t1.nii", "p1/seg.nii", "p2/p2_t1.nii", "p2/p2_t2.nii")
    found, problems = images_in([tmp_path], 2, ("T2", "T1"))
    assert problems == []
    assert [(case_id, [file.name for file in files]) for case_id, files in found] == [
        ("p1", ["t2.nii", "t1.nii"]), ("p2", ["p2_t2.nii", "p2_t1.nii"])
    ]  # fmt: skip
    assert [file.name for file in images_in([tmp_path], 2)[0][0][1]] == ["t1.nii", "t2.nii"]


def test_images_that_cannot_be_predicted(tmp_path):
    files = touch(tmp_path, "x/a.nii", "y/a.nii", "z/notes.txt")
    for paths, message in (
        ([tmp_path / "gone"], "does not exist"), (files[2:], "known format"), ([tmp_path / "z"], "contains no image"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=message):
            images_in(paths, 1)
    cases, problems = images_in(files[:2], 1)
    assert cases == []
    assert [(p.file, "two images have the id a" in p.what) for p in problems] == [(str(f), True) for f in files[:2]]


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


def test_masks_in_colours_without_names_say_how_to_name_them(tmp_path):
    for i in range(2):
        mask = np.zeros((8, 8, 3), np.uint8)
        mask[1:4, 1:4] = 255, 0, 0
        mask[5:7, 1 : 4 + i] = 0, 255, 0
        for kind, array in (("images", mask[..., 0]), ("masks", mask)):
            (tmp_path / kind).mkdir(exist_ok=True)
            Image.fromarray(array).save(tmp_path / kind / f"c{i}.png")
    with pytest.raises(DataError, match="stored in 3 colours") as caught:
        discover(tmp_path, IntakeOptions())
    assert "--labels label_1=#ff0000,label_2=#00ff00" in str(caught.value.remedy)
