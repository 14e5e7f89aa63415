"""A batch of images to segment: the sound ones are, what is wrong with the others is listed at the end, exit code 3."""

import errno
from pathlib import Path

import numpy as np
import pytest

from autoseg.commands.predict import PredictOptions, predict_images
from autoseg.datasets.dataset import Case, Dataset, images_in
from autoseg.datasets.inputs import FileNames
from autoseg.errors import DataError, StorageError, UsageError
from autoseg.imaging.formats.readers import read_labels, write_labels
from autoseg.imaging.labels import LabelSet
from autoseg.inference import predict as module
from autoseg.records import save
from autoseg.workspace import Workspace
from bright import THRESHOLD, Bright, model_of, picture, plan_of
from files import nifti
from hostile import cut

WHOLE = FileNames("suffix", ("",))
CPU = PredictOptions(device="cpu")
pytestmark = pytest.mark.usefixtures("on_screen")


@pytest.fixture
def workspace(tmp_path, monkeypatch) -> Workspace:
    """A workspace whose model segments what is bright."""
    plan = plan_of(file_names=WHOLE)
    made = Workspace(tmp_path / "workspace")
    save(made.plan, plan)
    monkeypatch.setattr("autoseg.models.model.open_model", lambda *a, **k: model_of((1.0, 1.0, 1.0), plan=plan))
    return made


def batch(folder: Path, *names: str) -> Path:
    for seed, name in enumerate(names):
        nifti(folder / name, picture((8, 9, 10), seed), np.eye(4))
    return folder


def test_sound_images_are_segmented_and_all_faults_listed_at_the_end(workspace, tmp_path, capsys):
    folder = batch(tmp_path / "in", "a.nii", "b.nii", "c.nii", "d.nii", "e.nii.gz")
    cut(folder / "b.nii", 500).replace(folder / "b.nii")
    holes = picture((8, 9, 10)).astype(np.float32)
    holes[2, 3, 4] = np.nan
    nifti(folder / "d.nii", holes, np.eye(4))
    (folder / "f.nii").symlink_to("/nowhere")
    with pytest.raises(DataError, match=r"3 files could not be segmented \(listed above\); 3 segmentations are in"):
        predict_images(workspace, [folder], tmp_path / "out", CPU)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.nii", "c.nii", "e.nii.gz"]
    lines = capsys.readouterr().out.splitlines()
    lines = lines[next(n for n, line in enumerate(lines) if line.startswith("3 segmentations in")) :]
    assert lines[1] == f"3 errors, 0 warnings in {folder}"
    assert [line.split()[:3] for line in lines[3:]] == [
        ["error", "f", "f.nii"], ["error", "b", "b.nii"], ["error", "d", "d.nii"]
    ]  # fmt: skip
    assert "1 NaN voxels" in lines[5]


def test_a_batch_without_a_sound_image_writes_nothing(workspace, tmp_path):
    folder = batch(tmp_path / "in", "a.nii")
    (folder / "a.nii").rename(folder / "a.mgz")
    with pytest.raises(DataError, match=r"1 file could not be segmented .* 0 segmentations"):
        predict_images(workspace, [folder], tmp_path / "out", CPU)
    assert not (tmp_path / "out").exists()


def test_what_is_only_worth_a_look_ends_well(workspace, tmp_path, capsys):
    folder = batch(tmp_path / "in", "a.nii")
    (folder / "letter.docx").write_text("text")
    out = tmp_path / "out"
    assert predict_images(workspace, [folder], out, CPU) == [out / "a.nii"]
    assert "0 errors, 1 warning" in capsys.readouterr().out
    predict_images(workspace, [folder], out, CPU)
    assert f"note: 1 of them replaced files in {out}" in capsys.readouterr().out


def test_the_rule_of_the_model_counts_not_that_of_a_plan_made_since(workspace, tmp_path, monkeypatch):
    trained = plan_of(file_names=FileNames("suffix", ("_0001",)))
    monkeypatch.setattr("autoseg.models.model.open_model", lambda *a, **k: model_of((1.0, 1.0, 1.0), plan=trained))
    folder = batch(tmp_path / "in", "a_0001.nii")
    (made,) = predict_images(workspace, [folder], tmp_path / "out", CPU)
    assert made.name == "a.nii"


def test_a_reference_of_the_dataset_is_never_overwritten(workspace, tmp_path):
    folder = batch(tmp_path / "in", "a.nii")
    label = nifti(tmp_path / "labels/a.nii", picture((8, 9, 10)), np.eye(4))
    case = Case("a", "a", (str(folder / "a.nii"),), str(label))
    labels = LabelSet({"organ": 7})
    save(workspace.dataset, Dataset(1, "d", str(tmp_path), "plain", ("MR",), labels, (case,), (), False, None, ()))
    before = label.read_bytes()
    with pytest.raises(UsageError, match=r"labels/a\.nii is a label of the dataset"):
        predict_images(workspace, [folder], tmp_path / "labels", CPU)
    assert label.read_bytes() == before


def cases_in(folder: Path) -> list[Case]:
    return [Case(i, i, tuple(map(str, files)), None) for i, files in images_in([folder], 1, (), WHOLE)[0]]


def test_a_full_disk_ends_the_batch_at_once(tmp_path, monkeypatch):
    def full(*arguments, **options):
        raise StorageError("no space left", remedy="free some") from OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(module, "write_labels", full)
    faults = []
    with pytest.raises(StorageError, match="no space left"):
        module.predict_cases(
            [model_of((1.0,) * 3)], cases_in(batch(tmp_path / "in", "a.nii", "b.nii")), tmp_path / "out", faults=faults
        )
    assert faults == []


class Small(Bright):
    """Has no memory for bright images of more than 9 rows."""

    def forward(self, image):
        if image.shape[-2] > 9 and image.max() > THRESHOLD:
            raise MemoryError("Unable to allocate 117. TiB for an array")
        return super().forward(image)


def test_an_image_that_needs_too_much_memory_does_not_end_the_batch(tmp_path):
    folder = batch(tmp_path / "in", "a.nii", "c.nii")
    nifti(folder / "b.nii", picture((8, 20, 10)), np.eye(4))
    model = model_of((1.0,) * 3, network=Small(), patch=(8, 16, 12))
    nifti(folder / "a.nii", np.where(picture((8, 9, 10)) > THRESHOLD, 50, 0).astype(np.int16), np.eye(4))
    nifti(folder / "c.nii", np.where(picture((8, 9, 10)) > THRESHOLD, 60, 0).astype(np.int16), np.eye(4))
    faults = []
    made = module.predict_cases([model], cases_in(folder), tmp_path / "out", faults=faults)
    assert [prediction.case for prediction in made] == ["a", "c"]
    assert [(fault.case, "not enough memory to segment it: Unable to allocate" in fault.what) for fault in faults] == [
        ("b", True)
    ]
    assert read_labels(made[0].path).array.max() == 0
    with pytest.raises(MemoryError):
        module.predict_cases([model], cases_in(folder), tmp_path / "again")


def test_an_error_of_the_program_is_not_taken_for_a_fault_of_an_image(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "segment", lambda *a: [][0])
    with pytest.raises(IndexError):
        module.predict_cases([model_of((1.0,) * 3)], cases_in(batch(tmp_path, "a.nii")), tmp_path / "out", faults=[])


def test_a_file_in_the_place_of_the_output_folder_is_refused(workspace, tmp_path):
    folder, out = batch(tmp_path / "in", "a.nii"), tmp_path / "out"
    out.write_text("notes")
    with pytest.raises(UsageError, match="out is a file, expected a folder"):
        predict_images(workspace, [folder], out, CPU)
    with pytest.raises(StorageError, match="cannot be written"):  # below it: named, not a traceback
        write_labels(out / "a.nii", np.zeros((8, 9, 10), np.uint8), like=folder / "a.nii")
    assert out.read_text() == "notes"


def test_an_image_given_twice_is_segmented_once(workspace, tmp_path, capsys):
    folder = batch(tmp_path / "in", "a.nii", "b.nii")
    predict_images(workspace, [folder, folder / "a.nii", folder / "a.nii"], tmp_path / "out", CPU)
    assert "2 segmentations in" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"models": ("2d-unet",), "configuration": "2d"}, "-m cannot be combined"),
        ({"models": ("2d-unet",), "network": "unet"}, "-m cannot be combined"),
        ({"step": 0.0}, "--step 0.0 leaves gaps"),
        ({"tile": 9.0}, "--tile 9.0 is not a valid multiple"),
    ],
)
def test_options_that_cannot_be_are_refused_before_anything_is_read(options, what):
    with pytest.raises(UsageError, match=what):
        PredictOptions(**options)
