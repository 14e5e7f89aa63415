"""Names of uploaded files lead nowhere else, and no more bytes are stored than may be."""

import asyncio

import pytest

from autoseg.serve import uploads
from autoseg.serve.refusals import Refused
from autoseg.serve.uploads import Draft, readable, safe_name, safe_parts


async def in_parts(*parts: bytes):
    for part in parts:
        yield part


def received(draft, name, *parts, room=10**9, announced=None):
    return asyncio.run(draft.receive(name, in_parts(*parts), room, announced))


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("scan.nii.gz", ["scan.nii.gz"]),
        ("patient 7/T1 (2).nii.gz", ["patient 7", "T1 (2).nii.gz"]),
        ("../../etc/passwd", ["etc", "passwd"]),
        ("/etc/passwd", ["etc", "passwd"]),
        ("a/../../b.nii", ["a", "b.nii"]),
        ("C:\\scans\\a.nii", ["C_", "scans", "a.nii"]),
        ("..\\..\\a.nii", ["a.nii"]),
        (".hidden.nii", ["hidden.nii"]),
        ("-rf.nii", ["rf.nii"]),
        ("a\x00b\n.nii", ["a_b_.nii"]),
        ("caf\u0065\u0301.nii", ["caf\u00e9.nii"]),
        ("con.nii", ["_con.nii"]),
        ("<script>.nii", ["_script_.nii"]),
        ("1/2/3/4/5/6/7/8.nii", ["3", "4", "5", "6", "7", "8.nii"]),
    ],
)
def test_names_become_safe(name, parts):
    assert safe_parts(name) == parts


@pytest.mark.parametrize("name", ["", "..", "/", "a/..", "./.", "a/", "   "])
def test_a_name_without_a_file_is_refused(name):
    with pytest.raises(Refused) as refused:
        safe_parts(name)
    assert refused.value.status == 400


def test_long_names_keep_their_extension():
    assert safe_name("x" * 500 + ".nii.gz").endswith("x.nii.gz")
    assert len(safe_name("x" * 500 + ".nii.gz")) == uploads.LONGEST


def test_files_are_stored_inside_and_counted(tmp_path):
    draft = Draft(tmp_path / "d")
    path = received(draft, "../../a/b.nii", b"12", b"345")
    assert path == draft.folder / "a" / "b.nii"
    assert (path.read_bytes(), draft.nbytes, draft.files) == (b"12345", 5, 1)
    draft.remove()
    assert [*tmp_path.iterdir()] == []


def test_too_many_bytes_are_refused_before_or_while_they_come_and_leave_nothing(tmp_path):
    draft = Draft(tmp_path / "d")
    received(draft, "a.nii", b"123", room=5)
    for parts, announced in (((b"456",), 3), ((b"4", b"56"), None)):
        with pytest.raises(Refused) as refused:
            received(draft, "b.nii", *parts, room=5, announced=announced)
        assert (refused.value.status, draft.nbytes, draft.files) == (413, 3, 1)
        assert [one.name for one in draft.folder.iterdir()] == ["a.nii"]
    assert "--max-upload" in refused.value.what


def test_a_full_disk_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(uploads, "DISK_LEFT", 10**18)
    with pytest.raises(Refused) as refused:
        received(Draft(tmp_path / "d"), "a.nii", b"1")
    assert refused.value.status == 507


def test_two_files_of_one_name_are_refused(tmp_path):
    draft = Draft(tmp_path / "d")
    received(draft, "a.nii", b"1")
    with pytest.raises(Refused, match="two files are called"):
        received(draft, "./a.nii", b"2")
    with pytest.raises(Refused):
        received(draft, "a.nii/b.nii", b"2")
    assert (draft.folder / "a.nii").read_bytes() == b"1"


def test_sizes_are_readable():
    assert [readable(n) for n in (5, 2000, 2_500_000, 2 * 10**9)] == ["5 bytes", "2 kB", "2.5 MB", "2 GB"]
