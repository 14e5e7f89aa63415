"""The folder of a fold: held by one training, set aside when another begins, put back where that fails."""

from pathlib import Path

import pytest

from autoseg.errors import StateError
from autoseg.nn.distributed import Ranks
from autoseg.training.fold_folder import held
from autoseg.workspace import FULL, begun_folds, fold_of, fold_order, write_text


def names(model: Path) -> list[str]:
    return sorted(path.name.partition("-")[0] for path in model.iterdir())


@pytest.fixture
def fold(tmp_path) -> Path:
    write_text(tmp_path / "fold_0" / "last.pt", "old")
    return tmp_path / "fold_0"


def test_nothing_is_set_aside_before_the_training_begins(fold):
    with held(fold, True, Ranks()) as folder:
        assert names(fold.parent) == ["fold_0"]
        assert folder.where_it_lies(fold / "last.pt") == folder.aside.resolve() / "last.pt"
        folder.begin()
        assert names(fold.parent) == ["fold_0", "fold_0.before"]
        assert (folder.aside / "last.pt").read_text() == "old"
        assert not (fold / "last.pt").exists()
        folder.begin()  # once is enough
        with pytest.raises(StateError, match="another process is training"), held(fold, False, Ranks()):
            pass


def test_what_fails_before_leaves_the_fold_as_it_was(fold):
    with pytest.raises(ZeroDivisionError), held(fold, True, Ranks()):
        raise ZeroDivisionError
    assert names(fold.parent) == ["fold_0"]
    assert (fold / "last.pt").read_text() == "old"


def test_it_is_put_back_where_the_new_one_cannot_begin(fold):
    with held(fold, True, Ranks()) as folder:
        folder.begin()
        folder.put_back()
    assert (fold / "last.pt").read_text() == "old"
    assert names(fold.parent) == ["fold_0", "fold_0.failed"]


@pytest.mark.parametrize("restart", [False, True])
def test_without_something_to_replace_nothing_gets_another_name(tmp_path, restart):
    for _ in range(2):  # the second time, the folder is there and holds a lock alone
        with held(tmp_path / "fold_1", restart, Ranks()) as folder:
            assert folder.aside is None
            folder.begin()
            assert folder.where_it_lies(tmp_path / "last.pt") == tmp_path.resolve() / "last.pt"
    assert names(tmp_path) == ["fold_1"]


def test_folders_of_folds_are_known_by_their_names(tmp_path):
    assert [fold_of(Path(name)) for name in ("fold_0", "fold_12", "fold_full")] == [0, 12, FULL]
    others = ("fold_0.before-20260101-000000", "fold_", "fold_x", "full", "3", "fold_-1", "fold_²")
    assert [fold_of(Path(name)) for name in others] == [None] * len(others)
    for name in ("fold_10", "fold_full", "fold_2", "fold_2.before-1", "fold_3"):
        write_text(tmp_path / name / ("last.pt" if name != "fold_3" else "log.txt"), "")
    assert list(begun_folds(tmp_path).items()) == [
        (2, tmp_path / "fold_2"), (10, tmp_path / "fold_10"), (FULL, tmp_path / "fold_full"),
    ]  # fmt: skip
    assert sorted([FULL, 3, 1], key=fold_order) == [1, 3, FULL]
