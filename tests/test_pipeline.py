"""The whole line on tiny datasets: plan, train, evaluate, predict, as a user runs it."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from cascaded import with_cascade
from phantom import tiny_dataset
from PIL import Image

from autoseg import predict, train
from autoseg.cli import main
from autoseg.crossval import CrossValidation, HeldOutScores
from autoseg.data.splits import Splits
from autoseg.dataset import Dataset
from autoseg.imaging.readers import read_labels, write_labels
from autoseg.nn.checkpoint import load_checkpoint
from autoseg.plan import Plan
from autoseg.records import load, save
from autoseg.workspace import Workspace

pytestmark = pytest.mark.slow

SETTINGS = (  # nothing that is measured, and so may differ from run to run
    "training.iterations_per_epoch=12", "training.workers=0", "training.autocast=float32", "training.chain=host",
)  # fmt: skip
SHORT = [word for setting in SETTINGS for word in ("--set", setting)]


def run(*arguments: object) -> None:
    code = main([str(a) for a in arguments])
    assert code == 0, f"autoseg {' '.join(map(str, arguments))} ended with {code}"


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, Workspace]:
    """A 3-D dataset in mixed orientations, two folds trained for long enough to find the blobs."""
    folder = tmp_path_factory.mktemp("trained")
    dataset = tiny_dataset(folder / "data", cases=6, orientations=("LPS", "RAS", "PIR"))
    workspace = Workspace(folder / "workspace")
    run("plan", dataset, "-w", workspace.root)
    run("train", "-f", "0..1", "--epochs", 8, "-w", workspace.root, *SHORT)
    return dataset, workspace


def test_every_stage_leaves_its_record(trained):
    _, workspace = trained
    plan, splits = load(Plan, workspace.plan), load(Splits, workspace.splits)
    assert len(splits.splits) == 5
    assert plan.recommended == "3d_fullres"
    for fold in (0, 1):
        folder = workspace.fold("3d_fullres", "unet", fold)
        rows = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
        assert [row["step"] for row in rows] == [12 * (i + 1) for i in range(8)]
        assert rows[-1]["loss"] < rows[0]["loss"]
        names = {path.name for path in (folder / "validation").iterdir()}
        assert names == {f"{case}.nii.gz" for case in splits.splits[fold].validation}


def test_cross_validation_scores_each_held_out_case_once_and_finds_the_blobs(trained, capsys):
    _, workspace = trained
    run("evaluate", "-w", workspace.root)
    shown = capsys.readouterr().out
    result = load(CrossValidation, workspace.crossval("3d_fullres", "unet"))
    splits = load(Splits, workspace.splits)
    held_out = [case for split in splits.splits[:2] for case in split.validation]
    assert [score.case for score in result.cases] == held_out
    for name in ("organ_1", "organ_2"):
        assert result.summary[name]["dice"].mean > 0.6
        assert f"{result.summary[name]['dice'].mean:.4f}" in shown


def test_predictions_return_to_the_grid_and_header_of_the_input(trained, tmp_path):
    dataset, workspace = trained
    run("predict", "-i", dataset / "imagesTr", "-o", tmp_path / "out", "-w", workspace.root)
    images = sorted((dataset / "imagesTr").iterdir())
    assert len(list((tmp_path / "out").iterdir())) == len(images) == 6
    for image in images:
        source = nib.load(image)
        result = nib.load(tmp_path / "out" / image.name.replace("_0000", ""))
        assert result.shape == source.shape
        np.testing.assert_array_equal(result.affine, source.affine)
        for key in ("sform_code", "qform_code", "pixdim", "xyzt_units"):
            np.testing.assert_array_equal(result.header[key], source.header[key])
        reference = np.asarray(nib.load(dataset / "labelsTr" / image.name.replace("_0000", "")).dataobj)
        found, wanted = np.asarray(result.dataobj) > 0, reference > 0
        assert 2 * (found & wanted).sum() / (found.sum() + wanted.sum()) > 0.6  # on the right grid, not mirrored


def test_a_folder_against_its_references(trained, tmp_path, capsys):
    dataset, workspace = trained
    run("predict", "-i", dataset / "imagesTr", "-o", tmp_path / "out", "-w", workspace.root, "--no-mirroring")
    capsys.readouterr()
    run("evaluate", "--predictions", tmp_path / "out", "--references", dataset / "labelsTr", "-w", workspace.root,
        "--csv", tmp_path / "scores.csv")  # fmt: skip
    assert "organ_2" in capsys.readouterr().out
    assert len((tmp_path / "scores.csv").read_text().splitlines()) == 1 + 6 * 2


def test_a_finished_fold_is_left_alone_and_restarted_on_demand(trained, capsys):
    _, workspace = trained
    folder = workspace.fold("3d_fullres", "unet", 0)
    before = (folder / "last.pt").read_bytes()
    run("train", "-f", 0, "--epochs", 8, "-w", workspace.root, *SHORT)
    assert "already" in capsys.readouterr().out
    assert (folder / "last.pt").read_bytes() == before
    copy = Workspace(workspace.root.with_name("copy"))
    shutil.copytree(workspace.root, copy.root)
    run("train", "-f", 0, "--epochs", 1, "--restart", "-w", copy.root, *SHORT)
    kept = list(copy.model("3d_fullres", "unet").glob("fold_0.before-*"))
    assert [(path / "last.pt").read_bytes() for path in kept] == [before]


class Killed(BaseException):
    """Stands for whatever ends a process in the middle of a training."""


def test_a_resumed_training_equals_an_uninterrupted_one(trained, tmp_path, monkeypatch):
    """Three epochs in one go, and three epochs cut short in the third, give the same weights bit by bit."""
    _, source = trained
    states = []
    for cut_short in (False, True):
        workspace = Workspace(tmp_path / f"cut_{cut_short}")
        shutil.copytree(source.root, workspace.root, ignore=shutil.ignore_patterns("models"))
        command = ["train", "-f", 2, "--epochs", 3, "-w", workspace.root, *SHORT]
        if cut_short:
            real, calls = train.training_step, iter(range(100))

            def stop_in_the_third_epoch(*arguments, real=real, calls=calls, **options):
                if next(calls) == 30:
                    raise Killed
                return real(*arguments, **options)

            with monkeypatch.context() as patch:
                patch.setattr(train, "training_step", stop_in_the_third_epoch)
                with pytest.raises(Killed):
                    main([str(a) for a in command])
            assert load_checkpoint(workspace.fold("3d_fullres", "unet", 2) / "last.pt")["position"]["epoch"] == 2
        run(*command)
        states.append(load_checkpoint(workspace.fold("3d_fullres", "unet", 2) / "last.pt"))
    whole, resumed = states
    for key, weights in whole["network"].items():
        assert torch.equal(weights, resumed["network"][key]), key
    assert [row["loss"] for row in whole["history"]] == [row["loss"] for row in resumed["history"]]


def test_other_settings_than_a_fold_was_begun_with_are_refused(trained, capsys):
    _, workspace = trained
    code = main(["train", "-f", "0", "--epochs", "8", "-w", str(workspace.root), "--set", "training.learning_rate=0.5"])
    assert code == 4
    assert "training" in capsys.readouterr().err


def test_a_time_budget_is_kept(trained, tmp_path):
    """The schedule spans the budget: the last learning rate is the lowest, whatever the number of steps."""
    _, source = trained
    workspace = Workspace(tmp_path / "budget")
    shutil.copytree(source.root, workspace.root, ignore=shutil.ignore_patterns("models"))
    run("train", "-f", 0, "--time-budget", "12s", "-w", workspace.root, "--set", "training.workers=0")
    state = load_checkpoint(workspace.fold("3d_fullres", "unet", 0) / "last.pt")
    assert state["finished"]
    rates = [row["learning_rate"] for row in state["history"]]
    assert rates[-1] < 0.1 * max(rates)


@pytest.mark.parametrize("layout", ["nnunet", "plain"])
def test_flat_images_go_the_whole_way(layout, tmp_path):
    dataset = tiny_dataset(tmp_path / "data", cases=4, dims=2, layout=layout, patients=["a", "a", "b", "c"])
    workspace = Workspace(tmp_path / "workspace")
    run("plan", dataset, "-w", workspace.root)
    assert load(Plan, workspace.plan).recommended == "2d"
    assert len(load(Splits, workspace.splits).splits) == 3
    run("train", "-f", "0..4", "--epochs", 2, "-w", workspace.root, *SHORT)
    images = dataset / ("imagesTr" if layout == "nnunet" else "images")
    run("predict", "-i", images, "-o", tmp_path / "out", "-w", workspace.root)
    for image in images.iterdir():
        result = Image.open(tmp_path / "out" / image.name.replace("_0000", ""))
        assert result.size == Image.open(image).size
    run("evaluate", "-w", workspace.root)
    assert len(load(CrossValidation, workspace.crossval("2d", "unet")).cases) == 4


def test_a_test_set_is_scored_once(tmp_path, capsys):
    dataset = tiny_dataset(tmp_path / "data", cases=6, patients=list("aabbcc"))
    for part in ("images", "labels"):
        (dataset / f"{part}Ts").mkdir()
        for case in ("case_04", "case_05"):  # both of patient c
            for path in (dataset / f"{part}Tr").glob(f"{case}*"):
                path.rename(dataset / f"{part}Ts" / path.name)
    workspace = Workspace(tmp_path / "workspace")
    run("plan", dataset, "-w", workspace.root)
    assert main(["evaluate", "--test", "-w", str(workspace.root)]) == 4  # nothing is trained yet
    run("train", "--epochs", 2, "-w", workspace.root, *SHORT)
    run("evaluate", "--test", "-w", workspace.root)
    first = load(HeldOutScores, workspace.test)
    assert [score.case for score in first.cases] == ["case_04", "case_05"]
    capsys.readouterr()
    shutil.rmtree(workspace.root / "models")
    run("evaluate", "--test", "-w", workspace.root)
    assert "scored before" in capsys.readouterr().out
    assert load(HeldOutScores, workspace.test) == first


# Left out: case_sampling and class_sampling, tested in test_sampling.py (here every case has every label, of one size);
# component_weight, deep_supervision and patience, which have tests of their own; test_time_mirroring, which acts in
# predict; chain=device, which gives what chain=worker gives (test_patch_stream.py).
CHANGES = [
    "optimizer=sgd",
    "learning_rate=0.01",
    "weight_decay=0.5",
    "schedule=poly",
    "schedule=cosine",
    "schedule=reduce_on_plateau",
    "weight_average=0",
    "gradient_clip=0.001",
    "loss=dice_bce",
    "loss=dice_focal",
    "loss=dice_topk",
    "loss=tversky",
    "boundary_weight=0.5",
    "dropout=0.3",
    "chain=worker",
    "momentum=0.5",
    "class_weights=[1,5,9]",
    "foreground_fraction=1",
    "augmentation=none",
    "augmentation=mirror",
    "mirror_axes=[]",
    "autocast=bfloat16",
    "iterations_per_epoch=7",
    "seed=5",
]


def weights_after(source: Workspace, root: Path, *changes: str) -> torch.Tensor:
    """Train fold 3 for six steps in a copy of a planned workspace; all weights in one vector."""
    workspace = Workspace(root)
    shutil.copytree(source.root, workspace.root, ignore=shutil.ignore_patterns("models"))
    settings = [word for change in ("iterations_per_epoch=6", *changes) for word in ("--set", f"training.{change}")]
    run("train", "-f", 3, "--epochs", 1, "-w", workspace.root, *SHORT, *settings)
    state = load_checkpoint(workspace.fold("3d_fullres", "unet", 3) / "last.pt")
    return torch.cat([weight.flatten() for weight in state["average"] or state["network"].values()])


def test_the_weight_of_components_changes_the_weights(tmp_path):
    dataset = tiny_dataset(tmp_path / "data", cases=6)
    for path in (dataset / "labelsTr").iterdir():
        labels = read_labels(path).array
        labels[0, :2, 0] = 1  # beside the blob of label 1, far from it
        write_labels(path, labels, path)
    source = Workspace(tmp_path / "workspace")
    run("plan", dataset, "-w", source.root)
    base, changed = (weights_after(source, tmp_path / w, f"component_weight={w}") for w in ("0", "0.5"))
    assert not torch.equal(base, changed)


def test_every_training_setting_changes_the_weights(trained, tmp_path):
    _, source = trained
    base = weights_after(source, tmp_path / "base")
    prepared_by_a_worker = weights_after(source, tmp_path / "workers", "workers=1")
    assert torch.equal(prepared_by_a_worker, base)
    found = {change: weights_after(source, tmp_path / str(n), change) for n, change in enumerate(CHANGES)}
    assert [change for change, weights in found.items() if torch.equal(weights, base)] == []


@pytest.mark.parametrize(
    ("loss", "option"),
    [
        ("dice_focal", "focal_gamma=1"),
        ("dice_topk", "topk_share=0.5"),
        ("tversky", "tversky_alpha=0.6"),
        ("tversky", "tversky_beta=0.4"),
    ],
)
def test_every_option_of_a_loss_changes_the_weights(trained, tmp_path, loss, option):
    _, source = trained
    usual = weights_after(source, tmp_path / "usual", f"loss={loss}")
    assert not torch.equal(usual, weights_after(source, tmp_path / "changed", f"loss={loss}", option))


def test_deep_supervision_changes_the_weights(tmp_path):
    source = Workspace(tmp_path / "planned")
    run("plan", tiny_dataset(tmp_path / "data", cases=5, shape=(32, 32, 32), spacing=(1, 1, 1)), "-w", source.root)
    with_it = weights_after(source, tmp_path / "with")
    assert not torch.equal(with_it, weights_after(source, tmp_path / "without", "deep_supervision=false"))


def test_class_weights_that_do_not_fit_the_heads_are_refused(trained, tmp_path, capsys):
    _, source = trained
    shutil.copytree(source.root, tmp_path / "w", ignore=shutil.ignore_patterns("models"))
    settings = ["--set", "training.loss=dice_bce", "--set", "training.class_weights=[1,1,1]"]
    assert main(["train", "-f", "0", "--epochs", "1", "-w", str(tmp_path / "w"), *settings]) == 2
    assert "2 heads" in capsys.readouterr().err


# ---- cascades, and models side by side


@pytest.fixture(scope="module")
def cascaded(tmp_path_factory) -> tuple[Path, Workspace]:
    """All folds of 3d_lowres, two of 3d_cascade and of 3d_fullres: the cascade in one command."""
    folder = tmp_path_factory.mktemp("cascaded")
    dataset = tiny_dataset(folder / "data", cases=6, orientations=("LPS", "RAS"))
    workspace = Workspace(folder / "workspace")
    run("plan", dataset, "-w", workspace.root, "--no-preprocess")
    save(workspace.plan, with_cascade(load(Plan, workspace.plan)))
    run("train", "-c", "3d_cascade", "-f", "0..1", "--epochs", 8, "-w", workspace.root, *SHORT)
    run("train", "-c", "3d_fullres", "-f", "0..1", "--epochs", 8, "-w", workspace.root, *SHORT)
    return dataset, workspace


def copy_of(workspace: Workspace, root: Path) -> Workspace:
    shutil.copytree(workspace.root, root)
    return Workspace(root)


def dice_of(folder: Path, dataset: Path) -> float:
    """Of all foreground, over the files of a folder."""
    both = total = 0
    for path in folder.iterdir():
        found = np.asarray(nib.load(path).dataobj) > 0
        wanted = np.asarray(nib.load(dataset / "labelsTr" / path.name).dataobj) > 0
        both, total = both + (found & wanted).sum(), total + found.sum() + wanted.sum()
    return 2 * both / total


def test_a_cascade_is_trained_in_one_command(cascaded, tmp_path, capsys):
    dataset, workspace = cascaded
    for fold in range(5):
        assert load_checkpoint(workspace.fold("3d_lowres", "unet", fold) / "last.pt")["finished"]
        state_of_cascade = workspace.fold("3d_cascade", "unet", fold) / "last.pt"
        assert state_of_cascade.exists() == (fold < 2)
    weights = load_checkpoint(workspace.fold("3d_cascade", "unet", 0) / "last.pt")["network"]
    assert next(iter(weights.values())).shape[1] == 3  # one channel, two labels
    run("evaluate", "-c", "3d_cascade", "-w", workspace.root)
    result = load(CrossValidation, workspace.crossval("3d_cascade", "unet"))
    assert result.configuration == "3d_cascade"
    for name in ("organ_1", "organ_2"):
        assert result.summary[name]["dice"].mean > 0.3  # nothing learnt: 0
    run("predict", "-c", "3d_cascade", "-i", dataset / "imagesTr", "-o", tmp_path / "out", "-w", workspace.root)
    assert dice_of(tmp_path / "out", dataset) > 0.6
    capsys.readouterr()
    run("status", "-w", workspace.root)
    shown = capsys.readouterr().out
    start = shown.splitlines().index("3d_cascade-unet, after 3d_lowres")
    assert "trained and validated" in shown.splitlines()[start + 1]
    assert "not trained" in shown.splitlines()[start + 3]


def test_a_held_out_case_is_segmented_after_the_fold_that_held_it_out(cascaded, tmp_path, monkeypatch):
    """What the cascade is told of the case that fold 1 held out follows from fold 1 of 3d_lowres alone."""
    _, source = cascaded
    workspace = copy_of(source, tmp_path / "w")
    (case,) = load(Splits, workspace.splits).splits[1].validation
    written = workspace.fold("3d_cascade", "unet", 1) / "validation" / f"{case}.nii.gz"
    before = np.asarray(nib.load(written).dataobj)
    told = []
    real = predict._previous_channels
    monkeypatch.setattr(predict, "_previous_channels", lambda *a: told.append(real(*a)) or told[-1])
    written.unlink()
    run("train", "-c", "3d_cascade", "-f", 1, "--epochs", 8, "-w", workspace.root, *SHORT)
    np.testing.assert_array_equal(np.asarray(nib.load(written).dataobj), before)
    stored = np.load(workspace.previous_stage("3d_cascade", "unet") / f"{case}.npy")
    np.testing.assert_array_equal(told, [[stored == 1, stored == 2]])


def test_an_interrupted_cascade_goes_on(cascaded, tmp_path, monkeypatch, capsys):
    """Cut short within 3d_lowres, then within 3d_cascade: the weights are those of one go, bit by bit."""
    _, source = cascaded
    command = ["train", "-c", "3d_cascade", "-f", "0", "--epochs", "1", *SHORT]
    states, real = [], train.training_step
    for stops in ((), (30, 64)):
        workspace = Workspace(tmp_path / f"stops{len(stops)}")
        shutil.copytree(source.root, workspace.root, ignore=shutil.ignore_patterns("models", "3d_cascade-unet"))
        begun = 0
        for stop in stops:  # 5 folds of 12 steps, then the cascade

            def stop_at(*arguments, stop=stop, **options):
                nonlocal begun
                begun += 1
                if begun > stop:
                    raise Killed
                return real(*arguments, **options)

            with monkeypatch.context() as patch:
                patch.setattr(train, "training_step", stop_at)
                with pytest.raises(Killed):
                    main([*command, "-w", str(workspace.root)])
            begun = stop // 12 * 12  # an epoch that was cut short is begun anew
        capsys.readouterr()
        run(*command, "-w", workspace.root)
        shown = capsys.readouterr().out
        assert f"stage 1 of 2: 3d_lowres, {5 if stops else 0} of 5 folds" in shown
        assert "stage 2 of 2: 3d_cascade" in shown
        states.append(load_checkpoint(workspace.fold("3d_cascade", "unet", 0) / "last.pt")["network"])
    whole, resumed = states
    for key, weights in whole.items():
        assert torch.equal(weights, resumed[key]), key


def test_a_retrained_previous_stage_is_noticed(cascaded, tmp_path, capsys):
    _, source = cascaded
    workspace = copy_of(source, tmp_path / "w")
    held_out = load(Splits, workspace.splits).splits[3].validation
    folder = workspace.previous_stage("3d_cascade", "unet")
    before = {path.name: path.read_bytes() for path in folder.glob("*.npy")}
    run("train", "-c", "3d_lowres", "-f", 3, "--epochs", 1, "--restart", "-w", workspace.root, *SHORT)
    cascade = ("train", "-c", "3d_cascade", "-f", 0, "--epochs", 8, "-w", workspace.root, *SHORT)
    capsys.readouterr()
    run(*cascade)
    shown = capsys.readouterr().out
    assert "5 of 5 folds are trained" in shown  # with other epochs, and yet left alone
    assert "note: fold 0 of 3d_cascade learnt from older segmentations; --restart" in shown
    after = {path.name: path.read_bytes() for path in folder.glob("*.npy")}
    assert {name for name in after if after[name] != before[name]} == {f"{case}.npy" for case in held_out}
    run(*cascade)
    assert "note: fold" not in capsys.readouterr().out


def test_models_vote_with_their_probabilities(cascaded, tmp_path, monkeypatch, capsys):
    """The mean of what two models say by themselves, one of them a cascade, is what they say together."""
    dataset, workspace = cascaded
    heard, real = [], predict._to_crop
    monkeypatch.setattr(predict, "_to_crop", lambda *a: heard.append(real(*a)) or heard[-1].copy())
    said = {}
    images = ("-i", dataset / "imagesTr" / "case_00_0000.nii.gz", "-w", workspace.root)
    for models in (["3d_cascade-unet"], ["3d_fullres-unet"], ["3d_cascade-unet", "3d_fullres-unet"]):
        heard.clear()
        out = tmp_path / str(len(said))
        run("predict", *images, "-o", out, "-m", *models)
        said[tuple(models)] = list(heard), np.asarray(nib.load(out / "case_00.nii.gz").dataobj)
    assert "by 2 folds of 3d_cascade (unet) and 2 folds of 3d_fullres (unet)" in capsys.readouterr().out
    ((*_, cascade), _), ((full,), _), ((_, *together), decided) = said.values()
    np.testing.assert_array_equal(together, [cascade, full])
    np.testing.assert_array_equal(decided.T, ((cascade + full) / 2).argmax(axis=0))  # case_00 is stored as LPS
    assert main(["predict", *map(str, images), "-o", str(tmp_path / "x"), "-m", "2d-unet"]) == 4
    assert "there are: 3d_cascade-unet, 3d_fullres-unet, 3d_lowres-unet" in capsys.readouterr().err
    assert main(["predict", *map(str, images), "-o", str(tmp_path / "x"), "-m", "3d_fullres-unet", "-c", "2d"]) == 2


def test_results_of_models_stand_side_by_side(cascaded, capsys):
    _, workspace = cascaded
    run("evaluate", "-c", "3d_lowres", "-w", workspace.root)
    run("evaluate", "-c", "3d_cascade", "-w", workspace.root)
    capsys.readouterr()
    run("evaluate", "-w", workspace.root)  # 3d_fullres
    shown = capsys.readouterr().out
    assert shown.startswith("3d_fullres, unet: 2 cases in 2 folds")
    assert "\n3d_lowres, unet: mean Dice 0." in shown
    assert ", 6 cases in 5 folds" in shown
    assert "\n3d_cascade, unet: mean Dice 0." in shown
    assert "\n3d_fullres, unet: mean Dice" not in shown  # its tables are above
    for name, cases in (("3d_fullres", 2), ("3d_lowres", 6), ("3d_cascade", 2)):
        assert len(load(CrossValidation, workspace.crossval(name, "unet")).cases) == cases
    workspace.crossval("3d_cascade", "unet").unlink()
    run("evaluate", "-w", workspace.root)
    assert "3d_cascade, unet: not evaluated (autoseg evaluate -c 3d_cascade --network unet)" in capsys.readouterr().out
    run("evaluate", "-c", "3d_fullres", "-w", workspace.root)
    assert "3d_lowres" not in capsys.readouterr().out


def test_a_cascade_is_scored_on_test_cases(cascaded, tmp_path, capsys):
    _, source = cascaded
    workspace = copy_of(source, tmp_path / "w")
    dataset = load(Dataset, workspace.dataset)
    save(workspace.dataset, replace(dataset, test_cases=dataset.cases[:2]))
    assert main(["evaluate", "--test", "-c", "3d_cascade", "-w", str(workspace.root)]) == 4
    assert "fold 2 of" in capsys.readouterr().err
    run("train", "-c", "3d_cascade", "--epochs", 1, "-f", "2..4", "-w", workspace.root, *SHORT)
    run("evaluate", "--test", "-c", "3d_cascade", "-w", workspace.root)
    result = load(HeldOutScores, workspace.test)
    assert (result.configuration, [score.case for score in result.cases]) == ("3d_cascade", ["case_00", "case_01"])
    assert max(score.scores["organ_1"]["dice"] for score in result.cases) > 0.5


def test_networks_stand_side_by_side(trained, tmp_path, capsys):
    """Another network is planned from the same data, trained beside the first, and votes with it."""
    dataset, source = trained
    workspace = copy_of(source, tmp_path / "w")
    before = workspace.plan.read_bytes()
    run("train", "--network", "residual_unet", "-f", 0, "--epochs", 2, "-w", workspace.root, *SHORT)
    assert "plan for residual_unet" in capsys.readouterr().out
    assert workspace.plan.read_bytes() == before
    assert workspace.models() == (("3d_fullres", "residual_unet"), ("3d_fullres", "unet"))
    run("evaluate", "-w", workspace.root)
    run("evaluate", "--network", "residual_unet", "-w", workspace.root)
    for network, cases in (("unet", 2), ("residual_unet", 1)):
        result = load(CrossValidation, workspace.crossval("3d_fullres", network))
        assert (result.network, len(result.cases)) == (network, cases)
    assert "plan for" not in capsys.readouterr().out  # made once
    run("status", "-w", workspace.root)
    assert "\n3d_fullres-residual_unet\n  fold 0: epoch 2" in capsys.readouterr().out
    run("predict", "--network", "residual_unet", "-i", dataset / "imagesTr", "-o", tmp_path / "a", "-w", workspace.root)
    both = ("-m", "3d_fullres-unet", "3d_fullres-residual_unet")
    run("predict", *both, "-i", dataset / "imagesTr", "-o", tmp_path / "b", "-w", workspace.root)
    assert dice_of(tmp_path / "b", dataset) > 0.6
    assert main(["train", "--network", "paintbrush", "-w", str(workspace.root)]) == 2
    assert "residual_unet" in capsys.readouterr().err
