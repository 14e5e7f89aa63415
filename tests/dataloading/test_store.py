"""The case store: what goes in comes out, and a process that dies leaves nothing half done."""

import errno
import hashlib
import json
import os
import resource
import signal
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from autoseg.dataloading import store as module
from autoseg.dataloading.store import CaseInfo, CaseStore, class_locations, float16_suffices
from autoseg.errors import DataError, StateError, StorageError
from autoseg.imaging.placement import Placement
from stored_cases import whole


@pytest.fixture(autouse=True)
def no_flushing(monkeypatch, request):
    """Waiting for the disk takes its time, and no test can tell the difference but the one that asks for it."""
    if request.node.name != "test_sealing_waits_for_the_disk_before_it_vouches":
        monkeypatch.setattr(module, "_flush", lambda folder: None)


CROPPED = Placement(
    spacing=(2.0, 0.5, 0.5),
    target_spacing=(2.0, 0.5, 0.5),
    box=((1, 5), (0, 6), (2, 9)),
    shape_before_crop=(6, 6, 9),
    shape_after_crop=(4, 6, 7),
    shape=(4, 6, 7),
)


def info_of(
    case_id: str, key: str = "k", num_labels: int = 2, ignore_index: int | None = None, placement: Placement = CROPPED
) -> CaseInfo:
    return CaseInfo(case_id, key, placement, num_labels, ignore_index)


def a_case(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    image = np.random.default_rng(seed).standard_normal((2, 4, 6, 7)).astype(np.float32)
    target = np.zeros((4, 6, 7), np.int16)
    target[0] = -1
    target[1, 2, 3:6] = 1
    target[3, 5, 6] = 2
    return image, target


def test_what_goes_in_comes_out(tmp_path):
    store = CaseStore(tmp_path / "data")
    image, target = a_case()
    returned = store.commit("a.b", image, target, info_of("a.b"))
    case = store.open("a.b")
    assert store.ids() == ("a.b",)
    assert case.info == returned == store.info("a.b")
    assert isinstance(case.image, np.memmap)
    assert case.image.dtype == np.float16
    np.testing.assert_array_equal(case.image, image.astype(np.float16))
    assert case.target.dtype == np.int8
    np.testing.assert_array_equal(case.target, target)
    assert case.info.placement == CROPPED
    assert case.info.shape == (4, 6, 7)
    assert case.info.channels == 2
    assert case.info.class_voxels == (3 * 42 - 4, 3, 1)  # the first slice is outside: in no class
    assert case.locations[1].tolist() == [[1, 2, 3], [1, 2, 4], [1, 2, 5]]
    assert case.locations[2].tolist() == [[3, 5, 6]]
    assert case.locations[1].dtype == np.uint16
    assert case.annotated is None
    assert store.nbytes("a.b") == sum(p.stat().st_size for p in (tmp_path / "data").glob("*.npy"))


def test_classes_that_some_cases_hold(tmp_path):
    store = CaseStore(tmp_path)
    image, target = a_case()
    for case_id, classes in (("both", (1, 2)), ("one", (1,)), ("none", ()), ("ignored", (3,))):
        chosen = np.where(np.isin(target, classes), target, 0)
        if 3 in classes:
            chosen[2] = 3
        store.commit(case_id, image, chosen, info_of(case_id, ignore_index=3))
    assert store.classes_in(["both", "one", "none"]) == {1, 2}
    assert store.classes_in(["one", "none", "ignored"]) == {1}
    assert store.classes_in([]) == set()
    with pytest.raises(StateError):
        store.classes_in(["absent"])


def test_what_only_float32_can_hold_stays_exact(tmp_path):
    store = CaseStore(tmp_path)
    image, target = a_case()
    image[1, 0, 0, 0] = 1e6
    store.commit("a", image, target, info_of("a", num_labels=200))
    case = store.open("a")
    assert case.image.dtype == np.float32
    np.testing.assert_array_equal(case.image, image)
    assert case.target.dtype == np.int16  # 200 classes
    assert len(case.locations) == 200
    assert case.locations[200].shape == (0, 3)


def test_a_case_in_memory_is_the_same(tmp_path):
    store = CaseStore(tmp_path)
    store.commit("a", *a_case(), info_of("a", ignore_index=3))
    mapped, held = store.open("a"), store.open("a").in_memory()
    assert not isinstance(held.image, np.memmap)
    assert not isinstance(held.locations[1], np.memmap)
    np.testing.assert_array_equal(held.image, mapped.image)
    np.testing.assert_array_equal(held.target, mapped.target)
    np.testing.assert_array_equal(held.annotated, mapped.annotated)
    assert {k: v.tolist() for k, v in held.locations.items()} == {k: v.tolist() for k, v in mapped.locations.items()}


@pytest.mark.parametrize(
    ("largest", "suffices"),
    [(31.99, True), (40.0, True), (40.015, False), (60010.0, False), (70000.0, False)],  # 40 is exact, 40.015 is not
)
def test_float16_is_used_where_its_rounding_is_small_against_the_spread(largest, suffices):
    image = np.where(np.arange(100_000) % 2, 1.0, -1.0).astype(np.float32).reshape(1, 10, 100, 100)  # mean 0, std 1
    image[0, 0, 0, 0] = largest
    assert float16_suffices(image) is suffices
    two = np.concatenate([np.ones_like(image) * np.arange(2)[None, :, None, None].repeat(5, 1), image])
    assert float16_suffices(two) is suffices  # one channel that does not fit is enough


def test_float16_rule_on_constant_channels():
    assert float16_suffices(np.full((1, 2, 2, 2), 0.5, np.float32))  # exact
    assert not float16_suffices(
        np.full((1, 2, 2, 2), 0.1, np.float32)
    )  # not exact, and there is no spread to excuse it


@settings(max_examples=60, deadline=None)
@given(
    arrays(np.int8, st.tuples(*[st.integers(1, 6)] * 3), elements=st.integers(-1, 4)),
    st.sampled_from([None, 4]),
    st.integers(1, 50),
)
def test_locations_are_all_voxels_of_a_class_while_there_are_few(target, ignore_index, piece):
    if ignore_index is None:
        target = np.minimum(target, 3)
    before, module.VOXELS_AT_ONCE = module.VOXELS_AT_ONCE, piece
    try:
        voxels, lists = class_locations(target, 3, ignore_index)
    finally:
        module.VOXELS_AT_ONCE = before
    assert voxels == tuple((target == c).sum() for c in range(4 if ignore_index is None else 5))
    for index in (1, 2, 3):
        np.testing.assert_array_equal(lists[index - 1], np.argwhere(target == index))
    assert len(lists) == (3 if ignore_index is None else 4)
    if ignore_index is not None:
        np.testing.assert_array_equal(lists[3], np.argwhere((target >= 0) & (target != ignore_index)))


@pytest.mark.parametrize("piece", [2**22, 5000])
def test_many_voxels_are_drawn_evenly_and_always_alike(monkeypatch, piece):
    monkeypatch.setattr(module, "VOXELS_AT_ONCE", piece)
    target = np.zeros((40, 40, 50), np.int8)
    target[:, :, 10:] = 1  # 64,000 voxels
    target[0, 0, 0] = 2
    voxels, lists = class_locations(target, 2, None)
    assert voxels == (15_999, 64_000, 1)
    rows = lists[0]
    assert rows.shape == (10_000, 3)
    assert len(np.unique(rows, axis=0)) == 10_000
    assert target[tuple(rows.T)].min() == 1
    octants = np.bincount((rows[:, 0] >= 20) * 4 + (rows[:, 1] >= 20) * 2 + (rows[:, 2] >= 30), minlength=8)
    assert np.abs(octants - 1250).max() < 150  # standard deviation of a random draw: 30
    again = class_locations(target, 2, None)[1]
    np.testing.assert_array_equal(rows, again[0])
    assert lists[1].tolist() == [[0, 0, 0]]


def test_the_drawn_voxels_do_not_depend_on_the_pieces(monkeypatch):
    target = np.ones((40, 40, 50), np.int8)
    whole = class_locations(target, 1, 2)[1]
    monkeypatch.setattr(module, "VOXELS_AT_ONCE", 999)
    for one, other in zip(whole, class_locations(target, 1, 2)[1], strict=True):
        np.testing.assert_array_equal(one, other)


def test_wide_images_need_wider_coordinates():
    target = np.zeros((1, 1, 2**16 + 1), np.int8)
    target[0, 0, -1] = 1
    rows = class_locations(target, 1, None)[1][0]
    assert rows.tolist() == [[0, 0, 2**16]]
    assert rows.dtype == np.int32


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


OPERATIONS = ("_write_npy", "write_text", "unlink", "replace")


def commit_and_die(store: CaseStore, case_id: str, arrays: tuple, info: CaseInfo, operation: str, number: int) -> bool:
    """Commit in a child that dies, as if killed, just before the given call; True if it got that far."""
    child = os.fork()
    if child == 0:
        calls = 0
        owner = module if operation == "_write_npy" else Path
        original = getattr(owner, operation)

        def deadly(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls == number:
                os._exit(99)
            return original(*args, **kwargs)

        setattr(owner, operation, deadly)
        store.commit(case_id, *arrays, info)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 99


@pytest.mark.thorough
@pytest.mark.parametrize("exists", [False, True])
@pytest.mark.parametrize(("operation", "number"), [(o, n) for o in OPERATIONS for n in (1, 2, 3, 4)])
def test_a_killed_commit_leaves_the_old_case_or_none(tmp_path, operation, number, exists):
    store, reference = CaseStore(tmp_path / "killed"), CaseStore(tmp_path / "reference")
    old, new = a_case(1), a_case(2)
    for s in (store, reference):
        s.commit("other", *old, info_of("other"))
        if exists:
            s.commit("a", *old, info_of("a", key="old"))
    died = commit_and_die(store, "a", new, info_of("a", key="new"), operation, number)
    if not died:  # the commit makes fewer calls of this kind
        assert store.complete(["a"], "new") == ()
        return
    assert store.complete(["other"], "k") == ()
    if "a" in store.ids():
        if exists and store.info("a").key == "old":
            np.testing.assert_array_equal(store.open("a").image, old[0].astype(np.float16))
        assert store.verify("a")
    if operation != "unlink" or number <= 2:  # the later ones tidy up after the commit
        assert store.complete(["a"], "new") == ("a",)
    store.commit("a", *new, info_of("a", key="new"))
    reference.commit("a", *new, info_of("a", key="new"))
    store.seal()
    reference.seal()
    assert contents(store.folder) == contents(reference.folder)  # nothing left behind, nothing different


def test_a_mapped_case_survives_its_replacement(tmp_path):
    store = CaseStore(tmp_path)
    old, new = a_case(1), a_case(2)
    store.commit("a", *old, info_of("a"))
    reader = store.open("a")
    store.commit("a", *new, info_of("a"))
    np.testing.assert_array_equal(reader.image, old[0].astype(np.float16))
    np.testing.assert_array_equal(store.open("a").image, new[0].astype(np.float16))


def test_a_full_disk_leaves_the_old_case(tmp_path):
    store = CaseStore(tmp_path)
    image, target = a_case()
    store.commit("a", image, target, info_of("a"))
    before = contents(tmp_path)
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
        try:
            large = info_of("a", placement=whole((40, 60, 70)))
            store.commit("a", np.zeros((2, 40, 60, 70), np.float32), np.zeros((40, 60, 70), np.int8), large)
        except StorageError as error:
            os._exit(7 if "'a'" in error.what and "disk space" in error.remedy else 8)
        os._exit(9)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert contents(tmp_path) == before


def test_of_a_full_disk_it_is_said_how_much_a_case_needs(tmp_path, monkeypatch):
    """An image of 2 x 40 x 60 x 70 in float16, and a target of as many voxels in int8, are 0.8 MB."""

    def full(path, array):
        path.write_bytes(b"half of it")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(module, "_write_npy", full)
    large = info_of("a", placement=whole((40, 60, 70)))
    with pytest.raises(StorageError, match=rf"'a' cannot be stored in {tmp_path}: .*: it needs 0\.8 MiB there, \d"):
        CaseStore(tmp_path).commit("a", np.zeros((2, 40, 60, 70), np.float32), np.zeros((40, 60, 70), np.int8), large)
    assert list(tmp_path.iterdir()) == []


def test_only_what_is_missing_stale_or_damaged_is_made_again(tmp_path):
    store = CaseStore(tmp_path)
    names = ["a", "b", "c", "d"]
    for name in names:
        store.commit(name, *a_case(), info_of(name))
    assert store.complete(names, "k") == ()
    assert store.complete(["d", "x", "a"], "k") == ("x",)
    assert store.complete(names, "other") == ("a", "b", "c", "d")
    assert store.complete(names, {"a": "k", "b": "new", "c": "k", "d": "k"}) == ("b",)

    flip(store.path("a", "image"))  # not sealed: found by hashing
    store.path("b", "json").write_bytes(b"")
    store.path("c", "locations").unlink()
    assert store.complete(names, "k") == ("a", "b", "c")


def test_a_sealed_case_is_trusted_for_its_bytes_but_not_for_its_files(tmp_path):
    store = CaseStore(tmp_path)
    for name in ("a", "b", "c"):
        store.commit(name, *a_case(), info_of(name))
    (tmp_path / ".x.image.part").write_bytes(b"left behind")
    store.seal()
    assert not list(tmp_path.glob(".*"))
    flip(store.path("a", "image"))
    assert store.complete(["a", "b", "c"], "k") == ()  # by agreement: `verify` is for this
    assert [store.verify(name) for name in ("a", "b", "c", "x")] == [False, True, True, False]
    os.truncate(store.path("b", "target"), 150)
    assert store.complete(["a", "b", "c"], "k") == ("b",)
    with pytest.raises(StateError, match="'b'"):
        store.open("b")
    store.commit("a", *a_case(), info_of("a"))
    flip(store.path("c", "target"))  # a commit breaks the seal: all are hashed again
    assert store.complete(["a", "c"], "k") == ("c",)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_the_manifest_lists_the_hash_of_every_file(tmp_path):
    store = CaseStore(tmp_path)
    store.commit("case 1", *a_case(), info_of("case 1"))
    store.seal()
    lines = (tmp_path / "manifest.sha256").read_text().splitlines()
    listed = dict(reversed(line.split("  ", 1)) for line in lines)
    assert listed == {
        p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in tmp_path.iterdir() if p.name != "manifest.sha256"
    }
    assert len(listed) == 4


def test_sealing_waits_for_the_disk_before_it_vouches(tmp_path, monkeypatch):
    store = CaseStore(tmp_path)
    store.commit("a", *a_case(), info_of("a"))
    store.seal()
    store.commit("a", *a_case(), info_of("a"))
    events = []
    monkeypatch.setattr(os, "sync", lambda: events.append((tmp_path / "manifest.sha256").exists()))
    monkeypatch.setattr(module.sys, "platform", "linux")
    store.seal()
    assert events == [False]
    assert (tmp_path / "manifest.sha256").exists()


def test_a_discarded_case_is_gone(tmp_path):
    store = CaseStore(tmp_path)
    store.commit("a", *a_case(), info_of("a"))
    store.discard("a")
    store.discard("a")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_no_network_can_learn_from_are_refused(tmp_path, value):
    image, target = a_case()
    image[0, 1, 2, 3] = value
    with pytest.raises(DataError, match=r"'a'.*NaN or infinity"):
        CaseStore(tmp_path).commit("a", image, target, info_of("a"))
    assert list(tmp_path.iterdir()) == []


def test_a_missing_case_says_what_to_do(tmp_path):
    with pytest.raises(StateError, match="'a' is not preprocessed") as caught:
        CaseStore(tmp_path).open("a")
    assert "autoseg plan" in caught.value.remedy
    (tmp_path / "b.json").write_text("{}")
    with pytest.raises(StateError, match=r"b\.json"):
        CaseStore(tmp_path).open("b")


def test_arrays_that_do_not_fit_their_marker_are_not_opened(tmp_path):
    store = CaseStore(tmp_path)
    store.commit("a", *a_case(), info_of("a"))
    other = info_of("b", placement=whole((4, 6, 8)))
    store.commit("b", np.zeros((2, 4, 6, 8), np.float32), np.zeros((4, 6, 8), np.int8), other)
    store.path("b", "image").replace(store.path("a", "image"))
    with pytest.raises(StateError, match="shapes"):
        store.open("a")


def test_a_case_on_another_grid_than_it_says_is_not_stored(tmp_path):
    with pytest.raises(AssertionError, match="another grid"):
        CaseStore(tmp_path).commit("a", *a_case(), info_of("a", placement=whole((4, 6, 8))))
    assert list(tmp_path.iterdir()) == []


def test_a_store_of_another_layout_is_made_again(tmp_path):
    """Version 2 kept the placement in fields of the case itself: they are no longer read, and raise nothing."""
    store = CaseStore(tmp_path)
    store.commit("a", *a_case(), info_of("a"))
    store.seal()
    marker = json.loads(store.path("a", "json").read_text())
    store.path("a", "json").write_text(json.dumps(marker | marker.pop("placement") | {"version": 2}))
    assert store.complete(["a"], "k") == ("a",)
    store.commit("a", *a_case(), info_of("a"))
    assert store.complete(["a"], "k") == ()
    marker = json.loads(store.path("a", "json").read_text())
    store.path("a", "json").write_text(json.dumps(marker | {"version": 2}))  # readable, and yet of another version
    assert store.complete(["a"], "k") == ("a",)


def test_case_ids_are_file_names(tmp_path):
    for wrong in ("", "a/b", "..", ".a", "a/"):
        with pytest.raises(AssertionError):
            CaseStore(tmp_path).path(wrong, "json")
