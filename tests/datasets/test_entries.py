"""What an entry of a folder is, by its name. Most of it is tested with the folders it stands in (test_contents)."""

from pathlib import Path

from autoseg.datasets.entries import foreign, stem
from autoseg.imaging.formats.readers import READERS


def test_a_format_that_was_added_is_known_inside_names_and_in_advice(tmp_path, monkeypatch):
    assert stem(Path("case.voxels.bak")) == "case.voxels.bak"
    assert ".voxels" not in foreign(tmp_path / "unknown.xyz").remedy
    monkeypatch.setitem(READERS, ".voxels", READERS[".nii"])
    assert stem(Path("case.voxels.bak")) == "case"
    assert foreign(tmp_path / "unknown.xyz").remedy.endswith(".jpeg, .voxels")
    assert foreign(tmp_path / "case.voxels.bak").what == "its extension is unknown: .voxels.bak"
