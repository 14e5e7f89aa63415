"""`autoseg rank` on trained folds: a planted label error comes first, images are ordered, what is wrong is refused."""

import json

import nibabel as nib
import numpy as np
import pytest

import autoseg
from autoseg.evaluation.label_errors import LabelErrors
from autoseg.records import load
from autoseg.workspace import Workspace
from commands import SHORT, outcome, run
from phantom import tiny_dataset

pytestmark = pytest.mark.thorough


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two trained folds on cases of which one, in the first fold, has its labels swapped."""
    folder = tmp_path_factory.mktemp("rank")
    data = tiny_dataset(folder / "data", cases=10)
    workspace = Workspace(folder / "workspace")
    run("plan", data, "-w", workspace.root)
    splits = json.loads(workspace.splits.read_text())["splits"]
    wrong = splits[0]["validation"][0]
    path = data / "labelsTr" / f"{wrong}.nii.gz"
    image = nib.load(path)
    swapped = np.array([0, 2, 1], dtype=np.uint8)[np.asarray(image.dataobj)]
    nib.save(nib.Nifti1Image(swapped, image.affine, image.header), path)
    run("plan", data, "-w", workspace.root)
    run("train", "-f", "0,1", "--steps", 60, "-w", workspace.root, *SHORT)
    return data, workspace, wrong


def test_the_planted_error_is_first_with_its_place_and_a_way_to_look_at_it(trained, tmp_path, capsys):
    _, workspace, wrong = trained
    code, said = outcome(capsys, "rank", "-w", workspace.root, "--top", "2", "--csv", tmp_path / "order.csv")
    assert code == 0, said
    (record,) = workspace.root.glob("models/*/label_errors.json")
    found = load(LabelErrors, record)
    assert found.cases[0].case == wrong
    assert found.cases[0].score > 2 * found.cases[1].score
    z, y, x = found.cases[0].place
    assert np.asarray(nib.load(found.cases[0].label).dataobj)[x, y, z] > 0  # files are stored (X, Y, Z)
    held_out = [
        name for split in json.loads(workspace.splits.read_text())["splits"][:2] for name in split["validation"]
    ]
    assert sorted(case.case for case in found.cases) == sorted(held_out)
    assert f"itksnap -g {found.cases[0].image} -s {found.cases[0].label}" in said
    assert len((tmp_path / "order.csv").read_text().splitlines()) == 1 + 2 * len(held_out)


def test_images_are_ordered_and_an_unreadable_one_is_named(trained, tmp_path, capsys):
    data, workspace, _ = trained
    for number in range(3):
        image = nib.load(data / "imagesTr" / f"case_0{number}_0000.nii.gz")
        array = np.asarray(image.dataobj).astype(np.float32)
        noisy = array + np.random.default_rng(number).normal(0, 60 * (number == 1), array.shape)
        nib.save(nib.Nifti1Image(noisy.astype(np.float32), image.affine), tmp_path / f"new_{number}_0000.nii.gz")
    (tmp_path / "new_9_0000.nii.gz").write_bytes(b"nothing")
    code, said = outcome(capsys, "rank", "-i", tmp_path, "-w", workspace.root, "--json")
    assert code == 0, said
    answer = json.loads(said[said.index("{\n") : said.rindex("}") + 1])
    assert answer["result"]["by"] == "entropy"
    assert answer["result"]["cases"][0]["case"] == "new_1"
    assert [problem["case"] for problem in answer["result"]["failed"]] == ["new_9"]
    order = autoseg.rank_images(workspace.root, [tmp_path / "new_0_0000.nii.gz"], say=None)
    assert [case.case for case in order.cases] == ["new_0"]


def test_what_cannot_be_ranked_is_refused(trained, tmp_path, capsys):
    data, workspace, _ = trained
    code, said = outcome(capsys, "rank", "-m", "3d_fullres-unet", "-w", workspace.root)
    assert code == 2
    assert "-i DIR" in said
    (tmp_path / "empty").mkdir()
    assert outcome(capsys, "rank", "-i", tmp_path / "empty", "-w", workspace.root)[0] == 2
    code, said = outcome(capsys, "rank", "-w", tmp_path / "nowhere")
    assert (code, "autoseg plan" in said) == (4, True)
    run("plan", data, "-w", tmp_path / "untrained", "--no-preprocess")
    code, said = outcome(capsys, "rank", "-w", tmp_path / "untrained")
    assert (code, "train first: autoseg train" in said) == (4, True)
