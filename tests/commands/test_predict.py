"""A batch of images to segment: the sound ones are, what is wrong with the others is listed at the end, exit code 3."""

import errno
import os
import signal
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from autoseg.commands.predict import PredictOptions, predict_images
from autoseg.datasets.dataset import Case, Dataset, images_in
from autoseg.datasets.inputs import FileNames
from autoseg.errors import DataError, Interrupted, Stopped, StorageError, UsageError
from autoseg.imaging.formats.readers import read_labels, write_labels
from autoseg.imaging.labels import LabelSet
from autoseg.inference import predict as module
from autoseg.inference.options import InferenceOptions
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


def segmentations(out: Path) -> list[str]:
    """The label files of a folder; the record of what is finished, and its lock, are no segmentations."""
    return sorted(path.name for path in out.iterdir() if not path.name.lstrip(".").startswith("autoseg_predictions"))


def test_sound_images_are_segmented_and_all_faults_listed_at_the_end(workspace, tmp_path, capsys):
    folder = batch(tmp_path / "in", "a.nii", "b.nii", "c.nii", "d.nii", "e.nii.gz")
    cut(folder / "b.nii", 500).replace(folder / "b.nii")
    holes = picture((8, 9, 10)).astype(np.float32)
    holes[2, 3, 4] = np.nan
    nifti(folder / "d.nii", holes, np.eye(4))
    (folder / "f.nii").symlink_to("/nowhere")
    with pytest.raises(DataError, match=r"3 files could not be segmented \(listed above\); 3 segmentations are in"):
        predict_images(workspace, [folder], tmp_path / "out", CPU)
    assert segmentations(tmp_path / "out") == ["a.nii", "c.nii", "e.nii.gz"]
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

    monkeypatch.setattr("autoseg.inference.label_files.write_labels", full)
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
        ({"shard": "3/2"}, "--shard 3/2 is not a part"),
    ],
)
def test_options_that_cannot_be_are_refused_before_anything_is_read(options, what):
    with pytest.raises(UsageError, match=what):
        PredictOptions(**options)


def test_what_is_typed_has_precedence_over_the_speed():
    for given, options in (
        ({}, InferenceOptions()),
        ({"speed": "accurate"}, InferenceOptions()),
        ({"speed": "balanced"}, InferenceOptions(even_flips=True)),
        ({"speed": "balanced", "step": 0.25}, InferenceOptions(0.25, even_flips=True)),
        ({"speed": "balanced", "mirroring": False}, InferenceOptions(mirroring=False)),
        ({"speed": "fast", "mirroring": True, "step": 0.5}, InferenceOptions(mirroring=True)),
        ({"tile": 2.0}, InferenceOptions(tile=2.0)),
    ):
        assert PredictOptions(**given).inference_options() == options, given


# ---- one case ahead, one behind


def test_a_fault_is_found_in_whatever_turn_it_has(tmp_path):
    """Read ahead or not: first, in the middle and last; the sound ones between them get their own labels."""
    folder = batch(tmp_path / "in", *(f"{n}.nii" for n in range(7)))
    for n in (0, 3, 6):
        cut(folder / f"{n}.nii", 500).replace(folder / f"{n}.nii")
    faults: list = []
    made = module.predict_cases([model_of((1.0,) * 3)], cases_in(folder), tmp_path / "out", faults=faults)
    assert [fault.case for fault in faults] == ["0", "3", "6"]
    assert [prediction.case for prediction in made] == ["1", "2", "4", "5"]
    for prediction in made:
        image = picture((8, 9, 10), int(prediction.case))
        np.testing.assert_array_equal(read_labels(prediction.path).array, np.where(image > THRESHOLD, 7, 0))


def test_images_of_different_grids_do_not_mix(tmp_path):
    """Each is prepared while another one is computed: at its own spacing, cropped to its own box."""
    folder = tmp_path / "in"
    for n in range(6):
        image = np.pad(picture((8 + n, 9, 10 + 2 * n), n), ((n, 0), (0, n), (1, 1)))
        nifti(folder / f"{n}.nii", image, np.diag([1, 1, 1 + n % 2, 1]))
    together = module.predict_cases([model_of((1.0,) * 3)], cases_in(folder), tmp_path / "together")
    for case, made in zip(cases_in(folder), together, strict=True):
        (alone,) = module.predict_cases([model_of((1.0,) * 3)], [case], tmp_path / "alone")
        np.testing.assert_array_equal(read_labels(made.path).array, read_labels(alone.path).array)


def test_a_disk_that_fills_up_ends_the_batch_and_keeps_what_was_written(tmp_path, monkeypatch):
    folder, tries = batch(tmp_path / "in", *(f"{n}.nii" for n in range(6))), []

    def limited(path, *arguments, **options):
        tries.append(path.name)
        if len(tries) == 3:
            raise StorageError("no space left", remedy="free some")
        write_labels(path, *arguments, **options)

    monkeypatch.setattr("autoseg.inference.label_files.write_labels", limited)
    with pytest.raises(StorageError, match="no space left"):
        module.predict_cases([model_of((1.0,) * 3)], cases_in(folder), tmp_path / "out", faults=[])
    assert tries == ["0.nii", "1.nii", "2.nii"]
    assert segmentations(tmp_path / "out") == ["0.nii", "1.nii"]


def test_a_reading_that_finds_no_memory_beside_another_case_is_repeated(tmp_path, monkeypatch):
    folder, tries = batch(tmp_path / "in", "a.nii", "b.nii"), []

    def load(plan, case):
        tries.append(case.id)
        if tries == ["a", "b"]:
            raise MemoryError
        return load_now(plan, case)

    load_now = module.load_for
    monkeypatch.setattr(module, "load_for", load)
    made = module.predict_cases([model_of((1.0,) * 3)], cases_in(folder), tmp_path / "out", faults=[])
    assert [prediction.case for prediction in made] == ["a", "b"]
    assert tries == ["a", "b", "b"]


# ---- stopped and resumed


@pytest.mark.parametrize(("number", "error"), [(signal.SIGTERM, Stopped), (signal.SIGINT, Interrupted)])
def test_a_signal_stops_between_or_within_cases_and_resume_does_the_rest(
    workspace, tmp_path, monkeypatch, capsys, number, error
):
    """The signal comes while case c is computed: a and b are written, nothing is half written, no thread is left."""
    folder, out, seen = batch(tmp_path / "in", *(f"{n}.nii" for n in "abcde")), tmp_path / "out", []
    segment = module.segment

    def interrupted(members, loaded, *more):
        seen.append(loaded.id)
        if loaded.id == "c" and seen.count("c") == 1:
            os.kill(os.getpid(), number)
        return segment(members, loaded, *more)

    monkeypatch.setattr(module, "segment", interrupted)
    with pytest.raises(Stopped) as caught:
        predict_images(workspace, [folder], out, CPU)
    assert type(caught.value) is error
    assert caught.value.resumed_with == ("--resume",)
    assert segmentations(out) == ["a.nii", "b.nii"]
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith(("read", "write"))]
    assert predict_images(workspace, [folder], out, replace(CPU, resume=True)) == [out / f"{n}.nii" for n in "abcde"]
    assert seen == [*"abc", *"cde"]
    assert f"resuming: 2 of 5 segmentations in {out} are verified and kept" in capsys.readouterr().out


def test_resume_says_what_it_makes_again_and_why(workspace, tmp_path, capsys):
    folder, out = batch(tmp_path / "in", *(f"{n}.nii" for n in "abcd")), tmp_path / "out"
    predict_images(workspace, [folder], out, CPU)
    before = (out / "d.nii").read_bytes()
    nifti(folder / "a.nii", picture((8, 9, 10), 9), np.eye(4))
    (out / "b.nii").write_bytes((out / "b.nii").read_bytes()[:400])
    (out / "c.nii").unlink()
    capsys.readouterr()
    predict_images(workspace, [folder], out, replace(CPU, resume=True))
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == [
        f"resuming: 1 of 4 segmentations in {out} are verified and kept",
        "predicting 1 case again: its image changed: a",
        "predicting 1 case again: it is not what was written: b",
    ]
    assert lines[3].startswith("3 segmentations in")
    for n, seed in (("a", 9), ("b", 1), ("c", 2), ("d", 3)):
        image = picture((8, 9, 10), seed)
        np.testing.assert_array_equal(read_labels(out / f"{n}.nii").array, np.where(image > THRESHOLD, 7, 0))
    assert (out / "d.nii").read_bytes() == before


def test_another_model_or_other_options_are_not_resumed(workspace, tmp_path, monkeypatch, capsys):
    folder, out = batch(tmp_path / "in", "a.nii", "b.nii"), tmp_path / "out"
    predict_images(workspace, [folder], out, CPU)
    predict_images(workspace, [folder], out, replace(CPU, resume=True, step=0.25))
    assert "predicting 2 cases again: other options made it: a, b" in capsys.readouterr().out
    plan = plan_of(file_names=WHOLE)
    other = model_of((1.0, 1.0, 1.0), plan=plan, patch=(8, 8, 12))
    monkeypatch.setattr("autoseg.models.model.open_model", lambda *a, **k: other)
    predict_images(workspace, [folder], out, replace(CPU, resume=True, step=0.25))
    assert "predicting 2 cases again: another model made it: a, b" in capsys.readouterr().out
    predict_images(workspace, [folder], out, replace(CPU, resume=True, step=0.25))
    assert "resuming: 2 of 2" in capsys.readouterr().out


# ---- shards


def test_shards_together_segment_every_image_once_and_report_every_fault_once(workspace, tmp_path, capsys):
    folder = batch(tmp_path / "in", *(f"{n}.nii" for n in "abcdefg"))
    (folder / "z.nii").symlink_to("/nowhere")  # a fault of the listing
    cut(folder / "b.nii", 500).replace(folder / "b.nii")  # a fault of the second shard
    failed = []
    for number in (1, 2, 3):
        try:
            predict_images(workspace, [folder], tmp_path / "out", replace(CPU, shard=f"{number}/3"))
        except DataError as error:
            failed.append((number, [fault.case for fault in error.failed]))
    assert failed == [(1, ["z"]), (2, ["b"])]
    assert segmentations(tmp_path / "out") == [f"{n}.nii" for n in "acdefg"]
    shown = capsys.readouterr().out
    assert "shard 2/3: 2 of 7 cases: b, e\n" in shown
    assert shown.count("1 file cannot be used: shard 1/3 lists them") == 2
    predict_images(workspace, [folder / "a.nii"], tmp_path / "out", replace(CPU, shard="2/3"))
    assert "shard 2/3: 0 of 1 case: \n" in capsys.readouterr().out


def test_another_number_of_shards_resumes_what_shards_have_made(workspace, tmp_path, capsys):
    folder, out = batch(tmp_path / "in", *(f"{n}.nii" for n in "abcde")), tmp_path / "out"
    for shard in ("1/3", "2/3"):
        predict_images(workspace, [folder], out, replace(CPU, shard=shard))
    capsys.readouterr()
    predict_images(workspace, [folder], out, replace(CPU, resume=True))
    assert "resuming: 4 of 5" in capsys.readouterr().out
