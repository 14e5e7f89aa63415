"""Which segmentations `--resume` keeps: each reason to doubt one, records of several processes, damaged records."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from autoseg.datasets.dataset import Case
from autoseg.imaging.formats.readers import write_labels
from autoseg.inference import finished
from autoseg.inference.finished import FileState, Finished, Ledger, Made, Predictions, made_by
from autoseg.inference.options import InferenceOptions
from autoseg.inference.shards import Shard
from autoseg.records import load, save
from bright import picture
from files import nifti

MADE = Made("a" * 64, 0.5, (0, 1), 1.0)


@pytest.fixture
def case(tmp_path) -> Case:
    path = nifti(tmp_path / "in" / "c.nii", picture((8, 9, 10)))
    return Case("c", "c", (str(path),), None)


@pytest.fixture
def path(tmp_path, case) -> Path:
    """Its segmentation, which is recorded."""
    made = tmp_path / "out" / "c.nii"
    write_labels(made, (picture((8, 9, 10)) > 100).astype(np.uint8), like=Path(case.images[0]))
    ledger = Ledger(tmp_path / "out", MADE)
    ledger.add(case, made)
    ledger.save()
    return made


def doubt(case: Case, path: Path, made: Made = MADE) -> str | None:
    return Ledger(path.parent, made).doubt(case, path)


def test_what_is_verified_is_kept(case, path):
    assert doubt(case, path) is None
    os.utime(case.images[0], (1, 1))  # copied, say: its bytes are read, and are the same
    os.utime(path, (1, 1))
    assert doubt(case, path) is None


def test_what_was_never_made_is_made_without_a_reason(case, path):
    path.unlink()
    assert doubt(case, path) == ""


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (replace(MADE, model="b" * 64), "another model made it"),
        (replace(MADE, step=0.75), "other options made it"),
        (replace(MADE, mirror_axes=()), "other options made it"),
        (replace(MADE, even_flips=True), "other options made it"),  # --speed balanced
        (replace(MADE, tile=2.0), "other options made it"),
        (replace(MADE, extras=("probabilities",)), "other files were written with it"),
    ],
)
def test_another_model_or_other_options_make_it_again(case, path, made, why):
    assert doubt(case, path, made) == why


def test_other_bytes_under_its_name_are_replaced(case, path):
    whole = path.read_bytes()
    path.write_bytes(whole[:-7])
    assert doubt(case, path) == "it is not what was written"
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))  # of the same size
    assert doubt(case, path) == "it is not what was written"
    path.write_bytes(whole)
    assert doubt(case, path) is None


def test_a_changed_image_is_segmented_again(tmp_path, case, path):
    nifti(Path(case.images[0]), picture((8, 9, 10), seed=1))
    assert doubt(case, path) == "its image changed"
    assert doubt(replace(case, images=(*case.images, case.images[0])), path) == "its image changed"


def test_a_segmentation_on_another_grid_is_made_again(tmp_path, case, path):
    """Even where the record vouches for it: its bytes and those of the image are those that are recorded."""
    other = nifti(tmp_path / "other.nii", picture((8, 9, 10)), np.diag([1, 1, 2, 1]))
    write_labels(path, np.zeros((8, 9, 10), np.uint8), like=other)
    ledger = Ledger(path.parent, MADE)
    ledger.add(case, path)
    ledger.save()
    assert doubt(case, path) == "its grid is not that of its image"


def test_a_file_without_a_record_is_made_again(tmp_path, case, path):
    (tmp_path / "out" / "autoseg_predictions.json").unlink()
    assert doubt(case, path) == "there is no record of what made it"


def test_shards_write_records_of_their_own_and_everybody_reads_all(tmp_path, case, path):
    out = path.parent
    for number, name in ((1, "d"), (2, "e")):
        made = out / f"{name}.nii"
        made.write_bytes(path.read_bytes())
        ledger = Ledger(out, MADE, Shard(number, 8))
        ledger.add(replace(case, id=name), made)
        ledger.save()
    assert sorted(file.name for file in out.glob("*.json")) == [
        "autoseg_predictions.json", "autoseg_predictions_1_of_8.json", "autoseg_predictions_2_of_8.json"
    ]  # fmt: skip
    for ledger in (Ledger(out, MADE), Ledger(out, MADE, Shard(1, 2))):
        for name in "cde":
            assert ledger.doubt(replace(case, id=name), out / f"{name}.nii") is None


def test_two_processes_with_one_record_lose_nothing(tmp_path, case, path):
    """Both were opened before either wrote; one that only looks writes nothing."""
    out = path.parent
    first, second, reader = (Ledger(out, MADE) for _ in range(3))
    first.add(replace(case, id="d"), path)
    second.add(replace(case, id="e"), path)
    for ledger in (first, second, first, reader):
        ledger.save()
    assert sorted(load(Predictions, out / "autoseg_predictions.json").cases) == ["c", "d", "e"]


def test_the_record_is_saved_now_and_then_while_cases_are_added(tmp_path, case, path, monkeypatch):
    monkeypatch.setattr(finished, "SECONDS_BETWEEN_SAVES", 0.0)
    Ledger(path.parent, MADE).add(replace(case, id="d"), path)
    assert "d" in load(Predictions, path.parent / "autoseg_predictions.json").cases


@pytest.mark.parametrize(
    "damage",
    [lambda text: text[:50], lambda text: text.replace('"version": 1', '"version": 2'),
     lambda text: text.replace('"step"', '"stepp"')],
)  # fmt: skip
def test_a_damaged_record_is_named_and_replaced(case, path, damage):
    record = path.parent / "autoseg_predictions.json"
    record.write_text(damage(record.read_text()))
    ledger = Ledger(path.parent, MADE)
    assert len(ledger.unreadable) == 1
    assert "autoseg_predictions.json" in ledger.unreadable[0]
    assert ledger.doubt(case, path) == "there is no record of what made it"
    ledger.add(case, path)
    ledger.save()
    assert doubt(case, path) is None


def test_a_record_reads_back(tmp_path, case, path):
    record = load(Predictions, path.parent / "autoseg_predictions.json")
    entry = record.cases["c"]
    assert entry == Finished(FileState.of(path), (FileState.of(Path(case.images[0])),), MADE)
    save(tmp_path / "again.json", record)
    assert load(Predictions, tmp_path / "again.json") == record
    assert json.loads((tmp_path / "again.json").read_text())["cases"]["c"]["made"]["mirror_axes"] == [0, 1]


def test_a_folder_of_slices_is_one_image(tmp_path):
    folder = tmp_path / "series"
    folder.mkdir()
    for name in "ba":
        (folder / name).write_bytes(name.encode() * 5)
    state = FileState.of(folder)
    assert (state.name, state.size) == ("series", 10)
    assert state.holds_for(folder)
    (folder / "a").write_bytes(b"aaaab")
    os.utime(folder / "a", ns=(1, state.modified_ns + 1))
    assert not state.holds_for(folder)
    (folder / "a").unlink()
    assert not state.holds_for(folder)
    assert not state.holds_for(tmp_path / "nowhere")


def test_options_that_were_left_open_are_filled_in():
    class Volumes:
        pass

    made = made_by("m", InferenceOptions(step=0.5), [2, 0], 1.5, [Volumes()])
    assert made == Made("m", 0.5, (2, 0), 1.5, extras=("Volumes",))
    assert made_by("m", InferenceOptions(tile=2.0), (), 1.5).tile == 2.0
