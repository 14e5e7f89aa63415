"""Folds whose data, plan or place changed, folds cut short, and the model of all cases: as a user meets them."""

import json
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from autoseg.cli import main
from autoseg.datasets.splits import Splits
from autoseg.errors import StorageError
from autoseg.evaluation.crossval import CrossValidation
from autoseg.models import checkpoint
from autoseg.models.checkpoint import load_checkpoint, save_checkpoint
from autoseg.records import load
from autoseg.training import within_memory
from autoseg.workspace import FULL, Workspace
from commands import Killed, copy_of, run
from phantom import tiny_dataset

pytestmark = pytest.mark.slow

MODEL = ("3d_fullres", "unet")
STEPS = 4  # of an epoch
SETTINGS = [
    word
    for setting in (f"iterations_per_epoch={STEPS}", "workers=0", "autocast=float32", "chain=host")
    for word in ("--set", f"training.{setting}")
]


def cut_short(monkeypatch: pytest.MonkeyPatch, after: int, *command: object) -> None:
    """Run a training that dies at a step."""
    real, done = within_memory.TrainingStep.__call__, iter(range(10_000))

    def dying(*arguments, **options):
        if next(done) == after:
            raise Killed
        return real(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(within_memory.TrainingStep, "__call__", dying)
        with pytest.raises(Killed):
            main([str(word) for word in command])


@pytest.fixture(scope="module")
def source(tmp_path_factory, in_this_process) -> tuple[Path, Workspace]:
    """Fold 0 is finished; fold 1 stands after two of its four epochs; nothing else is begun."""
    folder = tmp_path_factory.mktemp("my folds")
    dataset = tiny_dataset(folder / "my data", cases=6)
    workspace = Workspace(folder / "my work")
    run("plan", dataset, "-w", workspace.root)
    run("train", "-f", 0, "--epochs", 2, "-w", workspace.root, *SETTINGS)
    with pytest.MonkeyPatch.context() as patch:
        cut_short(patch, 2 * STEPS + 1, "train", "-f", 1, "--epochs", 4, "-w", workspace.root, *SETTINGS)
    return dataset, workspace


@pytest.fixture
def folds(source, tmp_path) -> tuple[Path, Workspace]:
    return source[0], copy_of(source[1], tmp_path / "my work")


@pytest.fixture
def failing(capsys) -> Callable[..., str]:
    """What a command that ends with a code says on stderr."""

    def fail(code: int, *command: object) -> str:
        capsys.readouterr()
        assert main([str(word) for word in command]) == code
        return capsys.readouterr().err

    return fail


@pytest.fixture
def told(capsys) -> Callable[..., str]:
    """What a command that succeeds says."""

    def say(*command: object) -> str:
        capsys.readouterr()
        run(*command)
        return capsys.readouterr().out

    return say


def state_of(workspace: Workspace, fold) -> dict:
    return load_checkpoint(workspace.fold(*MODEL, fold) / "last.pt")


def held_out_by(workspace: Workspace, fold: int) -> str:
    return load(Splits, workspace.splits).splits[fold].validation[0]


def suggested(text: str) -> list[str]:
    """The arguments of the first command that a message names."""
    found = re.search(r"autoseg ((?:train|plan|evaluate)\b.*?)(?: \(|;|, or|$)", text, re.MULTILINE)
    assert found, text
    return shlex.split(found[1])


def siblings(workspace: Workspace, fold) -> list[str]:
    return sorted(p.name.partition("-2")[0] for p in workspace.model(*MODEL).glob(f"fold_{fold}*"))


def correct(label: Path) -> None:
    """Take a third of its voxels from label 1."""
    volume = nib.load(label)
    array = np.asarray(volume.dataobj).copy()
    ones = np.flatnonzero(array == 1)
    array.flat[ones[::3]] = 0
    nib.save(nib.Nifti1Image(array, volume.affine, volume.header), label)


@pytest.fixture
def corrected(folds, tmp_path) -> Iterator[tuple[str, Callable[[], None]]]:
    """The label of the case that fold 0 holds out is corrected by some voxels; and what puts it back."""
    dataset, workspace = folds
    case = held_out_by(workspace, 0)
    path = dataset / "labelsTr" / f"{case}.nii.gz"
    kept = Path(shutil.copy2(path, tmp_path / "kept"))
    correct(path)
    yield case, lambda: shutil.copy2(kept, path)
    shutil.copy2(kept, path)


# ---- data that changed


def test_a_label_corrected_while_a_fold_is_half_trained(folds, corrected, failing, told):
    _, workspace = folds
    case, put_back = corrected
    w = ("-w", workspace.root)
    resume = ("train", "-f", 1, "--epochs", 4, *w, *SETTINGS)
    # before the dataset is planned again: nothing has checked the label
    error = failing(4, *resume)
    assert f"{case}.nii.gz is no longer as planned" in error
    plan = suggested(error)
    assert f"changed since it was planned: {folds[0] / 'labelsTr' / case}" in told("status", *w)
    said = told("evaluate", *w)
    assert f"{case}.nii.gz changed since it was planned; the scores compare with the current files" in said
    old = workspace.crossval(*MODEL).stat().st_mtime_ns

    said = told(*plan)
    assert "3d_fullres-unet: fold 0 stays valid" in said
    assert f"fold 0 of 3d_fullres-unet: of its held-out cases, the label of {case} has changed; score it again" in said
    assert f"fold 1 of 3d_fullres-unet: started with other contents: the label of {case} has changed" in said
    before = state_of(workspace, 1)["position"]
    error = failing(4, *resume)
    assert f"is not trained to the end, and since it began the label of {case} has changed" in error
    assert state_of(workspace, 1)["position"] == before

    # the fold that held it out needs no training, but is scored again
    said = told("train", "-f", 0, "--epochs", 2, *w, *SETTINGS)
    assert f"of its held-out cases, the label of {case} has changed: its weights stay valid; score it again" in said
    assert "is already trained and validated" in said
    assert "\nnext: autoseg train" in (said := told("status", *w))
    assert f"started with other contents: the label of {case} has changed" in said
    said = told("evaluate", *w)
    assert "skipping fold 1: started with other contents" in said
    assert workspace.crossval(*MODEL).stat().st_mtime_ns > old

    # put back, and planned again, it is the training it was
    put_back()
    run(*plan)
    run(*resume)
    assert state_of(workspace, 1)["finished"]


def test_a_retrained_fold_learns_the_corrected_label(folds, corrected, failing):
    _, workspace = folds
    case, _ = corrected
    run("plan", folds[0], "-w", workspace.root)
    before = state_of(workspace, 1)["contents"]
    run(*suggested(failing(4, "train", "-f", 1, "--epochs", 4, "-w", workspace.root, *SETTINGS)))
    after = state_of(workspace, 1)
    assert after["finished"]
    assert {name for name in before if before[name] != after["contents"][name]} == {case}
    assert siblings(workspace, 1) == ["fold_1", "fold_1.before"]


def test_a_finished_fold_that_learnt_from_the_old_label_is_named_and_left_alone(folds, corrected, told):
    """Fold 1, finished: its training case was corrected afterwards."""
    dataset, workspace = folds
    case, put_back = corrected
    put_back()
    run("train", "-f", 1, "--epochs", 4, "-w", workspace.root, *SETTINGS)
    weights = (workspace.fold(*MODEL, 1) / "last.pt").read_bytes()
    correct(dataset / "labelsTr" / f"{case}.nii.gz")
    run("plan", dataset, "-w", workspace.root)
    said = told("train", "-f", 1, "--epochs", 4, "-w", workspace.root, *SETTINGS)
    assert f"note: since it was trained, the label of {case} has changed; to retrain it from scratch" in said
    assert (workspace.fold(*MODEL, 1) / "last.pt").read_bytes() == weights
    said = told("status", "-w", workspace.root)
    assert f"trained and validated; since it was trained, the label of {case} has changed" in said


def test_a_renamed_dataset_is_the_same_training(source, tmp_path, failing, told):
    dataset, workspace = tmp_path / "old name", Workspace(tmp_path / "w")
    shutil.copytree(source[0], dataset)
    shutil.copytree(source[1].root, workspace.root)
    w = ("-w", workspace.root)
    said = told("plan", dataset, *w)  # another place, other times
    assert "3d_fullres-unet: fold 0,1 stay valid" in said
    renamed = dataset.rename(tmp_path / "new name")
    for command in (["train", "-f", 1, "--epochs", 4, *SETTINGS], ["evaluate"]):
        error = failing(4, *command, *w)
        assert f"{dataset} does not exist" in error
        assert (
            shlex.join(["autoseg", "plan", "NEWPLACE", "--cpu-rate", "reference", "-w", str(workspace.root)]) in error
        )
    assert f"{dataset} does not exist" in told("status", *w)
    run("predict", "-i", renamed / "imagesTr" / "case_00_0000.nii.gz", "-o", tmp_path / "out", *w)  # needs no dataset
    assert "fold 0,1 stay valid" in told("plan", renamed, *w)
    assert "is already trained and validated" in told("train", "-f", 0, "--epochs", 2, *w, *SETTINGS)
    assert f"resumed after epoch 2, step {2 * STEPS}" in told("train", "-f", 1, "--epochs", 4, *w, *SETTINGS)
    run("evaluate", *w)


def test_an_image_that_changed_is_segmented_again(folds, told):
    dataset, workspace = folds
    case = held_out_by(workspace, 0)
    path = dataset / "imagesTr" / f"{case}_0000.nii.gz"
    kept, volume = path.read_bytes(), nib.load(path)
    try:
        nib.save(nib.Nifti1Image(np.asarray(volume.dataobj)[::-1].copy(), volume.affine, volume.header), path)
        run("plan", dataset, "-w", workspace.root)
        for expected in ("1 validation case predicted", "is already trained and validated"):
            said = told("train", "-f", 0, "--epochs", 2, "-w", workspace.root, *SETTINGS)
            assert expected in said
            assert f"of its held-out cases, the image of {case} has changed" in said
    finally:
        path.write_bytes(kept)


# ---- what is advised works


def test_status_advises_what_is_not_refused(folds, told):
    """Fold 1 was begun with options of its own: they are part of the command."""
    _, workspace = folds
    said = told("status", "-w", workspace.root)
    assert "fold 1: epoch 2, step 8, pseudo Dice" in said
    assert "not trained to the end" in said
    run(*suggested(said.splitlines()[-1]))
    assert state_of(workspace, 1)["finished"]
    assert state_of(workspace, 1)["position"]["step"] == 4 * STEPS


def test_evaluate_leaves_out_what_is_not_finished_and_says_how_to_resume_it(folds, told):
    _, workspace = folds
    said = told("evaluate", "-w", workspace.root)
    assert "note: skipping fold 1: it is not trained to the end (epoch 2, step 8)" in said
    assert len(load(CrossValidation, workspace.crossval(*MODEL)).folds) == 1
    run(*suggested(said))
    run("evaluate", "-w", workspace.root)
    assert len(load(CrossValidation, workspace.crossval(*MODEL)).folds) == 2


def test_other_folds_are_neither_scored_nor_resumed(folds, failing, told):
    _, workspace = folds
    text = workspace.splits.read_text()
    splits = json.loads(text)
    zero, two = splits["splits"][0], splits["splits"][2]
    zero["validation"], two["validation"] = two["validation"], zero["validation"]
    zero["train"], two["train"] = two["train"], zero["train"]
    workspace.splits.write_text(json.dumps(splits))
    assert "trained with other cases" in told("status", "-w", workspace.root)
    assert "has no trained fold of 3d_fullres (unet)" in failing(4, "evaluate", "-w", workspace.root)
    assert "trained with other cases" in failing(4, "train", "-f", 0, "--epochs", 2, "-w", workspace.root, *SETTINGS)


# ---- nothing is set aside before all else works


@pytest.mark.parametrize(
    ("code", "wrong"),
    [
        (4, ["--init-from", "nowhere"]),
        (2, ["--device", "cuda:77"]),
        (2, ["--device", "abacus"]),
        (2, ["--set", "training.nonsense=1"]),
        (2, ["--set", "training.chain=device", "--set", "training.component_weight=1"]),
        (2, ["-f", "0,9"]),
        (2, ["--network", "paintbrush"]),
        (4, ["-c", "3d_giant"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_a_typo_beside_restart_costs_nothing(folds, failing, code, wrong):
    _, workspace = folds
    folder = workspace.fold(*MODEL, 0)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    failing(code, "train", "-f", 0, "--epochs", 2, "-w", workspace.root, *SETTINGS, "--restart", *wrong)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert siblings(workspace, 0) == ["fold_0"]


def test_missing_data_beside_restart_cost_nothing(folds, failing):
    dataset, workspace = folds
    moved = dataset.rename(dataset.with_name("moved"))
    try:
        failing(4, "train", "-f", 0, "--epochs", 2, "-w", workspace.root, *SETTINGS, "--restart")
    finally:
        moved.rename(dataset)
    assert siblings(workspace, 0) == ["fold_0"]


def test_a_disk_that_refuses_the_first_checkpoint_gives_the_fold_back(folds, failing, monkeypatch):
    _, workspace = folds
    before = (workspace.fold(*MODEL, 0) / "last.pt").read_bytes()

    def refuse(*_):
        raise StorageError("the disk is full")

    monkeypatch.setattr(checkpoint, "save_generation", refuse)
    failing(5, "train", "-f", 0, "--epochs", 2, "-w", workspace.root, *SETTINGS, "--restart")
    assert (workspace.fold(*MODEL, 0) / "last.pt").read_bytes() == before
    assert siblings(workspace, 0) == ["fold_0", "fold_0.failed"]


# ---- longer, sooner, as it stands


def test_a_finished_fold_continues_from_itself_by_the_command_of_the_refusal(folds, failing, told):
    _, workspace = folds
    first = state_of(workspace, 0)
    error = failing(4, "train", "-f", 0, "--epochs", 3, "-w", workspace.root, *SETTINGS)
    assert "is trained to the end, with a different length: training.epochs differ (training.epochs 2 then, 3" in error
    command = suggested(error)
    assert "initialised from" in told(*command)
    state = state_of(workspace, 0)
    assert (state["finished"], state["position"]["step"]) == (True, 3 * STEPS)
    kept = Path(state["init_from"])
    assert kept.name.startswith("fold_0.before-")
    for key, weights in load_checkpoint(kept / "last.pt")["network"].items():
        assert torch.equal(weights, first["network"][key])
    log = (workspace.fold(*MODEL, 0) / "log.txt").read_text()
    assert "initialised from" in log  # said while the folder was still the old one
    command.remove("--restart")  # as it is resumed
    assert "is already trained and validated" in told(*command)


def test_a_model_that_begins_from_itself_begins_each_fold_with_its_own(folds, told):
    """Another fold has learnt from the cases that this one holds out."""
    _, workspace = folds
    run("train", "-f", 1, "--epochs", 4, "-w", workspace.root, *SETTINGS)
    model = workspace.model(*MODEL)
    said = told("train", "-f", 1, "--epochs", 1, "--init-from", model, "--restart", "-w", workspace.root, *SETTINGS)
    assert f"initialised from {workspace.fold(*MODEL, 1)}" in said
    assert "WARNING: the model was trained on" not in said


def test_a_begun_fold_cools_down_and_ends_when_it_is_asked_to(folds, failing, told):
    """Two of four epochs are done; the cool-down takes a tenth of that, here one step."""
    _, workspace = folds
    said = told("train", "-f", 1, "--finish", "-w", workspace.root)
    assert "--finish: cooling down the learning rate, then training ends" in said
    state = state_of(workspace, 1)
    assert state["finished"]
    assert 2 * STEPS < state["position"]["step"] < 3 * STEPS
    assert len(list((workspace.fold(*MODEL, 1) / "validation").glob("*.nii.gz"))) == 1
    assert "is already trained and validated" in told("train", "-f", 1, "--finish", "-w", workspace.root)
    error = failing(4, "train", "-f", 3, "--finish", "-w", workspace.root)
    assert "no fold of 3d_fullres has been started" in error
    assert "fold 3 has not been started" in told("train", "-f", "1,3", "--finish", "-w", workspace.root)
    assert "leave one of them out" in failing(2, "train", "-f", 1, "--finish", "--restart", "-w", workspace.root)


def test_an_unfinished_fold_predicts_when_it_is_asked_to(folds, tmp_path, failing, told):
    dataset, workspace = folds
    image = dataset / "imagesTr" / "case_00_0000.nii.gz"
    predict = ("predict", "-i", image, "-w", workspace.root)
    said = told(*predict, "-o", tmp_path / "a")
    assert "note: skipping fold 1 of 3d_fullres-unet: it is not trained to the end (epoch 2, step 8)" in said
    assert "by 1 fold of 3d_fullres (unet)" in said
    said = told(*predict, "-o", tmp_path / "b", "--unfinished")
    assert "note: fold 1 of 3d_fullres-unet is not trained to the end: epoch 2, step 8" in said
    assert "by 2 folds of 3d_fullres (unet)" in said
    error = failing(4, *predict, "-o", tmp_path / "c", "-f", 1)
    assert "is not trained to the end: epoch 2, step 8" in error
    assert "--unfinished" in error
    run(*suggested(error.partition("cool down and end: ")[2]))
    assert "by 2 folds" in told(*predict, "-o", tmp_path / "d")


# ---- the model of all cases


def test_one_model_is_trained_on_all_cases(folds, tmp_path, failing, told, monkeypatch):
    dataset, workspace = folds
    shutil.rmtree(workspace.root / "models")
    w = ("-w", workspace.root)
    full = ("train", "-f", "full", "--epochs", 3, *w, *SETTINGS)
    cut_short(monkeypatch, STEPS + 1, *full)
    assert f"full: epoch 1, step {STEPS}; not trained to the end" in told("status", *w)
    said = told(*full)
    assert "trains on all 6 cases and holds none out" in said
    assert "training Dice organ_1" in said
    assert "pseudo Dice" not in said
    state = state_of(workspace, FULL)
    assert state["train"] == [f"case_{i:02}" for i in range(6)]
    assert (state["validation"], state["finished"], state["position"]["step"]) == ([], True, 3 * STEPS)
    rows = [json.loads(row) for row in (workspace.fold(*MODEL, FULL) / "history.jsonl").read_text().splitlines()]
    assert all("pseudo_dice" not in row and "validation_loss" not in row for row in rows)
    assert not (workspace.fold(*MODEL, FULL) / "validation").exists()
    assert "is already trained on all 6 cases" in told(*full)
    assert "full: epoch 3, step 12; trained on all cases, none is held out" in told("status", *w)
    error = failing(4, "evaluate", *w)
    assert "has no trained fold of 3d_fullres (unet) with held-out cases" in error

    image = ("-i", dataset / "imagesTr" / "case_00_0000.nii.gz", *w)
    said = told("predict", *image, "-o", tmp_path / "a")
    assert "note: full of 3d_fullres-unet was trained on all cases: no cross-validation" in said
    assert "by the model of all cases of 3d_fullres (unet)" in said
    run("train", "-f", 0, "--epochs", 1, *w, *SETTINGS)
    assert "by 1 fold of 3d_fullres (unet)" in told("predict", *image, "-o", tmp_path / "b")
    assert "by the model of all cases" in told("predict", *image, "-o", tmp_path / "c", "-f", "full")
    said = told("evaluate", *w)
    assert "full is trained on all cases: none is held out" in said
    assert [fold.fold for fold in load(CrossValidation, workspace.crossval(*MODEL)).folds] == [0]


# ---- planned again


def test_planning_again_keeps_the_plan_of_trained_folds(folds, told):
    dataset, workspace = folds
    before = workspace.plan.read_bytes()
    said = told("plan", dataset, "-w", workspace.root, "--set", "training.learning_rate=0.5")
    (kept,) = workspace.root.glob("plan.before-*.json")
    assert kept.read_bytes() == before
    assert f"saved as {kept}" in said
    assert "fold 0,1 stay valid" in said  # a learning rate can be given to train
    said = told("plan", dataset, "-w", workspace.root, "--set", "orientation=as_stored")
    assert "fold 0 of 3d_fullres-unet: trained under a different plan: orientation differ" in said
    assert "trained under a different plan" in told("status", "-w", workspace.root)


def test_another_dataset_is_not_planned_over_trained_folds(folds, tmp_path, failing):
    _, workspace = folds
    other = tiny_dataset(tmp_path / "other", cases=5)
    for path in [*other.glob("*Tr/*")]:
        path.rename(path.with_name(path.name.replace("case", "patient")))
    before = {path.name: path.read_bytes() for path in workspace.root.glob("*.json")}
    error = failing(4, "plan", other, "-w", workspace.root)
    assert "holds models of another dataset" in error
    assert "OTHER_WORKSPACE" in error
    assert {path.name: path.read_bytes() for path in workspace.root.glob("*.json")} == before


# ---- files of another version


def rewrite(path: Path, **changes) -> None:
    save_checkpoint(path, load_checkpoint(path) | changes)
    path.with_name("checkpoints.sha256").unlink(missing_ok=True)


def test_a_checkpoint_of_another_version_is_refused_and_the_command_that_is_named_works(folds, failing, told):
    _, workspace = folds
    path = workspace.fold(*MODEL, 1) / "last.pt"
    rewrite(path, version=4)
    again = ["train", "-f", 1, "--epochs", 4, "-w", workspace.root, *SETTINGS]
    error = failing(4, *again)
    assert f"{path} is a checkpoint of version 4, this autoseg reads version 1" in error
    assert "is a checkpoint of version 4" in failing(4, "train", "-f", 2, "--init-from", path, *again[3:])
    assert "is a checkpoint of version 4" in told("status", "-w", workspace.root)
    told(*suggested(error), "--epochs", 1, *SETTINGS)
    assert state_of(workspace, 1)["version"] == 1
    assert siblings(workspace, 1) == ["fold_1", "fold_1.before"]


def test_a_plan_of_another_version_is_refused_and_the_command_that_is_named_works(folds, failing, told):
    dataset, workspace = folds
    plain = json.loads(workspace.plan.read_text())
    workspace.plan.write_text(json.dumps(plain | {"version": 4, "unknown": 1}))
    for command in (["train", "-f", 0], ["status"], ["evaluate"]):
        error = failing(4, *command, "-w", workspace.root)
        assert f"{workspace.plan} is of version 4; expected 1, the version of plans that this autoseg reads" in error
        assert suggested(error) == ["plan", str(dataset), "-w", str(workspace.root)]
    told(*suggested(error))
    assert json.loads(workspace.plan.read_text()) == plain
    told("status", "-w", workspace.root)
