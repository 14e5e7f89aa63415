"""One case corrected from the command line and from Python, and what is refused, with weights that never trained."""

import json

import numpy as np
import pytest

import autoseg
from autoseg.commands.refine import AskedPrompt, label_index, parse_prompt
from autoseg.errors import AutosegError, StateError, UsageError
from autoseg.imaging.formats.readers import read_labels
from autoseg.imaging.labels import LabelSet
from autoseg.imaging.prompts import Click, InBox, Scribble
from autoseg.planning.prompted import with_prompts
from autoseg.workspace import Workspace
from commands import outcome
from exported import plan_for_tests, workspace_of
from files import nifti
from phantom import tiny_case

AFFINE = np.diag([-1.0, -1.0, 2.0, 1.0])
SHAPE = (9, 16, 20)
LABELS = LabelSet({"liver": 7, "tumour": 9})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A workspace whose recommended configuration has prompts, and an image."""
    root = tmp_path_factory.mktemp("refine")
    plan = plan_for_tests().with_settings(["training.test_time_mirroring=false"])
    plan, name = with_prompts(plan, plan.recommended)
    workspace_of(root / "workspace", plan, configurations=(plan.recommended, name), folds=(0,))
    nifti(root / "image.nii.gz", tiny_case(np.random.default_rng(0), SHAPE)[0][0], AFFINE)
    return root


def refined(capsys, folder, *options):
    code, said = outcome(
        capsys, "refine", folder / "image.nii.gz", "-w", folder / "workspace", "-o", folder / "out.nii.gz",
        "--device", "cpu", *options,
    )  # fmt: skip
    return code, said


@pytest.mark.parametrize(
    ("kind", "text", "prompt"),
    [
        ("click", "1,2,3:liver", Click((1, 2, 3), 1)),
        ("click", "1,2,3:9", Click((1, 2, 3), 2)),
        ("click", "2,3:background", Click((2, 3), 0)),
        ("scribble", "1,2,3/1,2,9/4,4,4:0", Scribble(((1, 2, 3), (1, 2, 9), (4, 4, 4)), 0)),
        ("box", "5,2,3/1,4,3:tumour", InBox((1, 2, 3), (6, 5, 4), 2)),
    ],
)
def test_prompts_as_they_are_typed(kind, text, prompt):
    assert parse_prompt(kind, text).of(LABELS) == prompt


@pytest.mark.parametrize(
    ("kind", "text"),
    [("click", "1,2,3"), ("click", "1,2:"), ("click", "a,2,3:1"), ("click", "1:1"), ("click", "1,2,3,4:1"),
     ("click", "1,2,3/1,2,3:1"), ("scribble", "1,2,3:1"), ("box", "1,2,3/2,3:1"), ("box", "1,2,3/2,3,4/5,6,7:1")],
)  # fmt: skip
def test_other_forms_are_refused(kind, text):
    with pytest.raises(UsageError, match=f"--{kind} '{text}': expected"):
        parse_prompt(kind, text)


def test_names_come_before_values():
    assert label_index(LabelSet({"7": 1, "b": 7}), "7") == 1
    with pytest.raises(UsageError, match="there is no label 'spleen'") as refused:
        label_index(LABELS, "spleen")
    assert refused.value.remedy == "the labels are background, liver, tumour"


def test_what_was_clicked_is_in_the_file_and_python_gives_the_same(capsys, folder):
    code, said = refined(
        capsys, folder, "--click", "4,8,10:2", "--scribble", "1,3,4/1,3,15:background", "--click", "0,0,0:1"
    )
    assert code == 0, said
    assert "3 prompts" in said
    written = read_labels(folder / "out.nii.gz").array
    assert (written[4, 8, 10], written[0, 0, 0]) == (2, 1)
    assert not written[1, 3, 4:16].any()
    array = tiny_case(np.random.default_rng(0), SHAPE)[0][0]
    with autoseg.Predictor(folder / "workspace", "3d_fullres_prompts", device="cpu", say=None) as predictor:
        correction = predictor.refine(array, (2.0, 1.0, 1.0), "LPS", clicks=[((4, 8, 10), 2)])
        np.testing.assert_array_equal(predictor.predict(array, (2.0, 1.0, 1.0)).shape, SHAPE)
        correction.scribble([(1, 3, 4), (1, 3, 15)], "background")
        before = correction.labels
        correction.click((0, 0, 0), 1)
        np.testing.assert_array_equal(correction.labels, written)
        assert correction.prompts == 3
        assert correction.undo()
        np.testing.assert_array_equal(correction.labels, before)
        with pytest.raises(AutosegError, match="outside"):
            correction.click((0, 0, 20), 1)
        with pytest.raises(AutosegError, match="expected voxels"):
            correction.scribble(3, 1)
        with pytest.raises(AutosegError, match="pairs of a voxel and a label"):
            predictor.refine(array, (2.0, 1.0, 1.0), clicks=[(1, 2, 3)])
        begun = predictor.refine(array, (2.0, 1.0, 1.0), mask=written)
        np.testing.assert_array_equal(begun.labels, written)
        with pytest.raises(AutosegError, match="values"):
            predictor.refine(array, (2.0, 1.0, 1.0), mask=written + 5)


def test_a_mask_is_corrected_and_the_answer_is_a_record(capsys, folder):
    mask = np.zeros(SHAPE, np.uint8)
    mask[2:5, 4:9, 6:12] = 1
    nifti(folder / "mask.nii.gz", mask, AFFINE)
    code, said = refined(capsys, folder, "--mask", folder / "mask.nii.gz", "--json")
    assert code == 0
    found = json.JSONDecoder().raw_decode(said[said.index("{") :])[0]["result"]
    assert (found["changed"], found["voxels"], found["seconds"]) == (0, {"label1": 90, "label2": 0}, [])
    np.testing.assert_array_equal(read_labels(folder / "out.nii.gz").array, mask)


def test_refusals_name_what_to_do(capsys, folder, tmp_path):
    nifti(tmp_path / "other.nii.gz", np.zeros((9, 16, 19), np.uint8), AFFINE)
    nifti(tmp_path / "nine.nii.gz", np.full(SHAPE, 9, np.uint8), AFFINE)
    for options, code, words in (
        (("--click", "4,8,10:9"), 2, "there is no label '9'"),
        (("--click", "9,0,0:1"), 2, "lies outside the image"),
        (("--mask", tmp_path / "other.nii.gz"), 3, "other.nii.gz"),
        (("--mask", tmp_path / "nine.nii.gz"), 3, "unexpected label values [9]"),
        (("-c", "3d_lowres"), 4, "train one: autoseg train --prompts"),
    ):
        found, said = refined(capsys, folder, *options)
        assert found == code, said
        assert words in said
    found, said = outcome(
        capsys, "refine", folder / "image.nii.gz", tmp_path / "nine.nii.gz", "-w", folder / "workspace", "-o", "o.nii"
    )
    assert (found, "2 cases (image, nine)" in said) == (2, True)
    found, said = outcome(
        capsys, "refine", folder / "image.nii.gz", "-w", folder / "workspace", "-o", folder / "image.nii.gz"
    )
    assert (found, "would be overwritten" in said) == (2, True)


def test_prompts_are_trained_of_trained_folds_alone(folder, tmp_path):
    plan = plan_for_tests()
    workspace_of(tmp_path / "bare", plan, folds=())
    from autoseg.commands.folds import Folds, TrainOptions
    from autoseg.commands.prompts import continued_fold, with_prompts_planned

    workspace = Workspace(tmp_path / "bare")
    options = with_prompts_planned(workspace, TrainOptions(prompts=True))
    assert options.configuration == "3d_fullres_prompts"
    assert with_prompts_planned(workspace, options) == options  # a phase of a launcher, whose plan has it already
    folds = Folds.open(workspace, options)
    with pytest.raises(StateError, match="fold 1 of 3d_fullres, which prompts are to be trained for") as refused:
        continued_fold(folds, "3d_fullres_prompts", 1, restart=False)
    assert "train -f 1 -c 3d_fullres" in refused.value.remedy.replace(f"-w {workspace.root} ", "")
    with pytest.raises(UsageError, match="--init-from"):
        TrainOptions(prompts=True, init_from=tmp_path)


def test_a_prompt_reads_as_it_was_typed():
    assert str(AskedPrompt("box", ((1, 2, 3), (4, 5, 6)), "liver")) == "1,2,3/4,5,6:liver"
