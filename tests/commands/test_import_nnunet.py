"""A model in nnU-Net's form, imported and used: the labels are those its own networks give, worked out beside it."""

import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from autoseg.commands.import_nnunet import import_nnunet
from autoseg.commands.predict import PredictOptions, predict_images
from autoseg.errors import StateError, UsageError
from autoseg.imaging.formats.readers import read_labels
from autoseg.models.model import open_model
from autoseg.models.pretrained import open_source
from autoseg.workspace import FULL, Workspace
from commands import outcome
from files import affine_along, nifti
from nnunet_models import PATCH, SPACING, Net, dataset, mirrored_mean, plans, with_cascade, write_json, write_model

CPU = PredictOptions(device="cpu")


def volume(seed: int = 0, shape: tuple[int, ...] = PATCH[3]) -> np.ndarray:
    return np.random.default_rng(seed).normal(100, 30, shape).astype(np.float32)


def standardised(image: np.ndarray) -> torch.Tensor:
    """z-scores of a volume, as a batch of one with one channel."""
    return torch.from_numpy((image - image.mean()) / image.std())[None, None]


def predicted(workspace: Workspace, image: np.ndarray, folder: Path, options: PredictOptions = CPU) -> np.ndarray:
    """What the imported model says about a volume that lies in space as no canonical one does."""
    path = nifti(folder / "in" / "case_0000.nii.gz", image, affine_along("RAI", SPACING[3]))
    (made,) = predict_images(workspace, [path], folder / "out", options)
    assert nib.load(made).affine == pytest.approx(nib.load(path).affine)
    return read_labels(made).array


def test_labels_are_those_of_the_mirrored_folds_together(tmp_path):
    """One tile, as large as the patch; two folds, whose logits are averaged; the axes as they are stored."""
    nets = {0: Net(seed=1), 3: Net(seed=2)}
    folder = write_model(tmp_path / "nnUNetTrainer__nnUNetPlans__3d_fullres", nets, mirror=(0, 2))
    workspace = import_nnunet(folder, tmp_path / "model")
    image = volume()
    logits = torch.stack([mirrored_mean(net, standardised(image), (0, 2)) for net in nets.values()]).mean(0)
    expected = logits.argmax(0).numpy()
    assert len(np.unique(expected)) == 3  # otherwise the test shows little
    np.testing.assert_array_equal(predicted(workspace, image, tmp_path), expected)
    alone = mirrored_mean(nets[3], standardised(image), (0, 2)).argmax(0).numpy()
    assert (alone != expected).any()
    only = predicted(workspace, image, tmp_path / "3", PredictOptions(device="cpu", folds=(3,)))
    np.testing.assert_array_equal(only, alone)


def test_axes_are_permuted_as_the_plans_say(tmp_path):
    found = plans() | {"transpose_forward": [1, 0, 2], "transpose_backward": [1, 0, 2]}
    net = Net(seed=4)
    workspace = import_nnunet(
        write_model(tmp_path / "t__p__3d_fullres", {0: net}, found, mirror=()), tmp_path / "model"
    )
    image = volume(1, (8, 4, 8))  # the patch once its axes are permuted
    path = nifti(tmp_path / "in" / "case_0000.nii.gz", image, affine_along("RAI", (1.0, 2.0, 1.0)))
    (made,) = predict_images(workspace, [path], tmp_path / "out", CPU)
    seen = standardised(np.ascontiguousarray(image.transpose(1, 0, 2)))
    expected = mirrored_mean(net, seen, ()).argmax(0).numpy().transpose(1, 0, 2)
    np.testing.assert_array_equal(read_labels(made).array, expected)


def test_regions_are_written_in_their_order(tmp_path):
    regions = dataset({"background": 0, "whole": [1, 2], "core": [2]}, regions_class_order=[1, 2])
    net = Net(heads=2, seed=5)
    folder = write_model(tmp_path / "t__p__3d_fullres", {"all": net}, None, regions)
    workspace = import_nnunet(folder, tmp_path / "model")
    image = volume(2)
    whole, core = mirrored_mean(net, standardised(image), (0, 1, 2)).numpy() > 0
    expected = np.where(core, 2, np.where(whole, 1, 0))
    assert len(np.unique(expected)) == 3
    np.testing.assert_array_equal(predicted(workspace, image, tmp_path), expected)
    model = open_model(workspace, "3d_fullres", "unet", folds=None, device=torch.device("cpu"))
    assert model.folds == (FULL,)
    widest = max(model.networks[0].parameters(), key=torch.numel)  # laid out as a CPU computes it fastest
    assert widest.is_contiguous(memory_format=torch.channels_last_3d)
    assert not widest.is_contiguous()


def test_slices_are_segmented_one_by_one(tmp_path):
    net = Net(2, residual=True, seed=6)
    found = plans(2, residual=True)
    folder = write_model(tmp_path / "t__p__2d", {0: net}, found, name="2d", mirror=(0, 1))
    workspace = import_nnunet(folder, tmp_path / "model")
    image = volume(3, (3, 8, 8))
    z_scores = standardised(image)
    slices = [mirrored_mean(net, z_scores[:, :, z], (0, 1)).argmax(0) for z in range(3)]
    np.testing.assert_array_equal(predicted(workspace, image, tmp_path), torch.stack(slices).numpy())


def write_cascade(root: Path) -> tuple[Path, Net, Net]:
    """A cascade whose stages share one grid, so that nothing is resampled between them."""
    found, low, high = with_cascade(plans()), Net(seed=7), Net(channels=3, seed=8)
    write_model(root / "T__P__3d_lowres", {0: low}, found, name="3d_lowres", mirror=(1,))
    cascade = write_model(root / "T__P__3d_cascade_fullres", {0: high}, found, name="3d_cascade_fullres", mirror=())
    return cascade, low, high


@pytest.mark.thorough
def test_a_cascade_sees_the_segmentation_of_its_previous_stage(tmp_path):
    folder, low, high = write_cascade(tmp_path / "results")
    workspace = import_nnunet(folder, tmp_path / "model")
    image = volume(4)
    before = mirrored_mean(low, standardised(image), (1,)).argmax(0)
    channels = torch.stack([(before == label).float() for label in (1, 2)])[None]
    expected = mirrored_mean(high, torch.cat([standardised(image), channels], 1), ()).argmax(0).numpy()
    np.testing.assert_array_equal(predicted(workspace, image, tmp_path), expected)
    lowres = PredictOptions(device="cpu", configuration="3d_lowres")
    np.testing.assert_array_equal(predicted(workspace, image, tmp_path / "low", lowres), before.numpy())


def test_a_cascade_without_its_previous_stage_is_refused(tmp_path):
    folder, *_ = write_cascade(tmp_path / "results")
    (tmp_path / "results" / "T__P__3d_lowres").rename(tmp_path / "elsewhere")
    with pytest.raises(StateError, match="refines the segmentation of 3d_lowres, which is not beside it"):
        import_nnunet(folder, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_the_folder_of_a_dataset_means_all_configurations(tmp_path, said):
    folder, *_ = write_cascade(tmp_path / "results")
    write_model(folder.with_name("T__P__3d_fullres"), {0: Net()}, with_cascade(plans()))
    workspace = import_nnunet(tmp_path / "results", tmp_path / "model")
    names = ("3d_cascade_fullres", "3d_fullres", "3d_lowres")
    assert workspace.models() == tuple((name, "unet") for name in names)
    assert [line.partition(":")[0] for line in said[:2]] == ["3d_fullres-unet", "3d_cascade_fullres-unet"]
    write_model(folder.with_name("Other__P__3d_fullres"), {0: Net()})
    with pytest.raises(UsageError, match="models of several trainers or plans: Other__P, T__P"):
        import_nnunet(tmp_path / "results", tmp_path / "second")


def test_what_is_refused_leaves_nothing_behind(tmp_path):
    """The second fold is the faulty one; the first could have been written."""
    folder = write_model(tmp_path / "results" / "t__p__3d_fullres", {0: Net(), 1: Net(heads=4)})
    with pytest.raises(StateError, match=r"fold_1.*seg_layers\.1\.weight has the shape"):
        import_nnunet(folder, tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["results"]


def test_a_hostile_fold_is_refused_and_does_not_run(tmp_path):
    class Runs:
        def __reduce__(self) -> tuple:
            return os.mkdir, (str(tmp_path / "ran"),)

    folder = write_model(tmp_path / "results" / "t__p__3d_fullres", {0: Net()})
    torch.save({"network_weights": Runs()}, folder / "fold_0" / "checkpoint_final.pth")
    with pytest.raises(StateError, match=r"it would load posix\.mkdir"):
        import_nnunet(folder, tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["results"]


def test_folds_without_a_final_checkpoint(tmp_path, capsys):
    folder = write_model(tmp_path / "results" / "My__p__3d_fullres", {0: Net(), 1: Net(seed=1)})
    (folder / "fold_0" / "checkpoint_final.pth").rename(folder / "fold_0" / "checkpoint_best.pth")
    (folder / "fold_2").mkdir()
    (folder / "fold_1" / "checkpoint_final.pth").rename(folder / "fold_1" / "checkpoint_latest.pth")
    code, said = outcome(capsys, "import-nnunet", folder, tmp_path / "model")
    assert code == 0
    assert "3d_fullres-unet: 1 fold (0); patch 4 x 8 x 8, mirrored along Z, Y, X" in said
    assert "fold_0 has no checkpoint_final.pth: checkpoint_best.pth is imported" in said
    assert "fold_1 has neither checkpoint_final.pth nor checkpoint_best.pth and is not imported" in said
    assert f"next: autoseg predict -i IMAGES -o SEGMENTATIONS -w {tmp_path / 'model'}" in said


def test_folds_that_mirror_differently_are_refused(tmp_path):
    folder = write_model(tmp_path / "t__p__3d_fullres", {0: Net()})
    write_model(folder, {1: Net(seed=1)}, mirror=(0,))
    with pytest.raises(StateError, match=r"mirror_axes is \(0,\), in fold_0 it is \(0, 1, 2\)"):
        import_nnunet(folder, tmp_path / "model")


def test_wrong_folders_and_places_are_refused(tmp_path, capsys):
    folder = write_model(tmp_path / "t__p__3d_fullres", {0: Net()})
    assert outcome(capsys, "import-nnunet", folder / "fold_0", tmp_path / "model")[0] == 2
    assert outcome(capsys, "import-nnunet", tmp_path / "nowhere", tmp_path / "model")[0] == 2
    code, said = outcome(capsys, "import-nnunet", tmp_path / "t__p__3d_fullres" / "..", folder)
    assert (code, "exists already" in said) == (2, True)
    code, said = outcome(capsys, "import-nnunet", write_json(tmp_path / "x" / "a.json", 1).parent, tmp_path / "model")
    assert (code, "holds no plans.json" in said) == (4, True)
    (folder / "fold_0" / "checkpoint_final.pth").unlink()
    code, said = outcome(capsys, "import-nnunet", folder, tmp_path / "model")
    assert (code, "holds no trained fold" in said) == (4, True)
    (tmp_path / "empty").mkdir()


def test_a_trainer_of_ones_own_is_worth_a_note(tmp_path, said):
    folder = write_model(tmp_path / "t__p__3d_fullres", {0: Net()})
    path = folder / "fold_0" / "checkpoint_final.pth"
    torch.save(torch.load(path, weights_only=False) | {"trainer_name": "MyTrainer"}, path)
    import_nnunet(folder, tmp_path / "model")
    assert any("its trainer, MyTrainer, is not nnU-Net's own" in line for line in said)


def test_an_imported_model_can_be_trained_on(tmp_path):
    """`train --init-from` opens it as any other."""
    folder = write_model(tmp_path / "t__p__3d_fullres", {0: Net(seed=9)})
    import_nnunet(folder, tmp_path / "model")
    source = open_source(tmp_path / "model")
    weight = Net(seed=9).decoder.seg_layers[-1].weight.detach()
    assert torch.equal(source.weights["heads.0.weight"], weight)


def test_the_status_of_an_imported_model(tmp_path, capsys):
    write_model(tmp_path / "t__p__3d_fullres", {0: Net(), "all": Net(seed=1)})
    import_nnunet(tmp_path / "t__p__3d_fullres", tmp_path / "model")
    code, said = outcome(capsys, "status", "-w", tmp_path / "model")
    assert (code, said.splitlines()) == (
        0,
        [
            f"{tmp_path / 'model'}: Dataset007_Tiny, models without their dataset",
            "3d_fullres-unet (recommended)",
            "  fold 0: 3 epochs",
            "  full: 3 epochs",
            f"next: autoseg predict -i IMAGES -o SEGMENTATIONS -w {tmp_path / 'model'}",
        ],
    )
