"""What consumers are given, and that an ensemble decides the same row by row as it would at once."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from autoseg.datasets.dataset import Case, load_case
from autoseg.errors import UsageError
from autoseg.imaging.labels import LabelSet
from autoseg.imaging.logit_rows import decide_row
from autoseg.inference import member as member_module
from autoseg.inference import rows_on_disk, streaming
from autoseg.inference.member import EnsembleMember, decide
from autoseg.inference.options import InferenceOptions
from autoseg.inference.rows_on_disk import RowsOnDisk
from autoseg.inference.streaming import empty_labels, hand_over
from autoseg.inference.worthwhile import keep_labels
from autoseg.models.build import head_probabilities
from autoseg.nn.rolling_sums import Block
from bright import model_of, picture, plan_of
from files import nifti

LABELS = LabelSet({"a": 2, "b": 5})
REGIONS = LabelSet({"a": 2, "b": 5}, {"whole": (2, 5), "core": (5,)}, (2, 5))


class Mixing(nn.Module):
    """Logits with context, from fixed random weights."""

    def __init__(self, heads: int, dims: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = torch.randn(heads, 1, *[3] * dims, generator=generator) / 50
        self.dims = dims

    def forward(self, image: Tensor) -> list[Tensor]:
        convolve = torch.nn.functional.conv2d if self.dims == 2 else torch.nn.functional.conv3d
        return [convolve(image - 100, self.weight, padding=1)]


def loaded_of(folder, shape=(13, 17, 19), spacing=(1.0, 1.0, 1.0), seed=0):
    path = nifti(folder / f"{seed}.nii", picture(shape, seed), np.diag([*spacing[::-1], 1.0]))
    return load_case(Case("a", "a", (str(path),), None), None)


def member_of(spacing, labels=LABELS, seed=0, **options):
    network = Mixing(labels.num_heads, len(spacing), seed)
    return EnsembleMember(model_of(spacing, plan=plan_of(labels), network=network), InferenceOptions(**options))


def at_once(members, loaded) -> list[np.ndarray]:
    """Logits (K, Z, Y, X) of every member, resampled as a whole."""
    found = []
    for member in members:
        prepared = member.prepare(loaded)
        logits = member.logits(prepared.image)
        found.append(prepared.placement.back(logits.numpy(), member.model.plan.resampling))
    return found


class Keeping:
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.rows: list[slice] = []
        self.logits: list[list[np.ndarray]] = []

    def take(self, rows, logits) -> None:
        self.rows.append(rows)
        self.logits.append([of_member.numpy().copy() for of_member in logits])


SPACINGS = [(1.0, 1.0, 1.0), (1.5, 0.7, 2.0), (0.6, 1.9, 1.0), (4.0, 1.0, 1.0), (1.3, 1.3)]


@pytest.mark.parametrize("labels", [LABELS, REGIONS])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_a_member_decides_by_its_resampled_logits(tmp_path, spacing, labels):
    loaded = loaded_of(tmp_path)
    member = member_of(spacing, labels)
    (logits,) = at_once([member], loaded)
    expected = np.zeros(loaded.image.shape[1:], np.uint8)
    box = tuple(slice(*edges) for edges in member.prepare(loaded).placement.box)
    expected[box] = labels.decide(head_probabilities(torch.from_numpy(logits)[None], labels.has_regions)[0].numpy())
    found = decide([member], loaded)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, expected)
    keeping = Keeping()
    np.testing.assert_array_equal(decide([member], loaded, [keeping]), expected)  # by whole rows
    np.testing.assert_allclose(np.concatenate([part[0] for part in keeping.logits], axis=1), logits, atol=1e-4)


@pytest.mark.parametrize("labels", [LABELS, REGIONS])
def test_members_on_different_grids_move_forward_together(tmp_path, labels, monkeypatch):
    """Chunks of a few rows, the same of every member, in order; the mean of the probabilities decides."""
    loaded = loaded_of(tmp_path)
    members = [member_of(spacing, labels, seed) for seed, spacing in enumerate(SPACINGS)]
    logits = at_once(members, loaded)
    shape = members[0].prepare(loaded).placement.shape_after_crop
    monkeypatch.setattr(streaming, "CHUNK_BYTES", 4 * 4 * labels.num_heads * len(members) * shape[1] * shape[2])
    keeping = Keeping()
    found = decide(members, loaded, [keeping])
    assert keeping.rows == [slice(z, min(z + 4, shape[0])) for z in range(0, shape[0], 4)]
    for number, expected in enumerate(logits):
        parts = [part[number] for part in keeping.logits]
        np.testing.assert_allclose(np.concatenate(parts, axis=1), expected, atol=1e-4)
    mean = np.mean([head_probabilities(torch.from_numpy(one)[None], labels.has_regions)[0] for one in logits], axis=0)
    box = tuple(slice(*edges) for edges in members[0].prepare(loaded).placement.box)
    np.testing.assert_array_equal(found[box], labels.decide(mean))
    np.testing.assert_array_equal(decide(members, loaded), found)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.integers(1, 5), st.integers(1, 3))
def test_rows_are_handed_over_in_chunks(rows, chunk, members):
    logits = torch.randn(members, 2, rows, 3, 4)
    keeping = Keeping()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streaming, "CHUNK_BYTES", 4 * 24 * members * chunk)
        hand_over([iter(one.unbind(1)) for one in logits], [keeping], (rows, 3, 4))
    for number in range(members):
        found = np.concatenate([part[number] for part in keeping.logits], axis=1)
        np.testing.assert_array_equal(found, logits[number])
    assert max(r.stop - r.start for r in keeping.rows) <= chunk


def test_very_large_labels_are_in_a_file(monkeypatch):
    monkeypatch.setattr(streaming, "MAPPED_BYTES", 99)
    assert type(empty_labels((4, 4, 4), LABELS)) is np.ndarray
    mapped = empty_labels((4, 5, 5), LABELS)
    assert isinstance(mapped, np.memmap)
    assert mapped.dtype == np.uint8
    assert not mapped.any()
    mapped[1, 2, 3] = 7
    assert mapped.sum() == 7
    many = LabelSet({f"label {n}": n for n in range(1, 300)})
    assert empty_labels((2, 2, 2), many).dtype == np.uint16


# ---- large images


def test_a_large_image_is_read_from_a_file(tmp_path, monkeypatch):
    loaded = loaded_of(tmp_path)
    plain = decide([member_of((1.5, 0.7, 2.0))], loaded)
    monkeypatch.setattr(rows_on_disk, "LARGE", 1000)
    member = member_of((1.5, 0.7, 2.0))
    np.testing.assert_array_equal(decide([member], loaded), plain)
    assert isinstance(member.prepare(loaded).image, RowsOnDisk)


def test_rows_on_disk_by_hand():
    image = np.random.default_rng(0).normal(size=(3, 7, 5, 4)).astype(np.float32)
    on_disk = RowsOnDisk(image[:, ::-1].transpose(0, 1, 3, 2))  # a view in another order
    assert on_disk.shape == (3, 7, 4, 5)
    expected = image[:, ::-1].transpose(0, 1, 3, 2)
    np.testing.assert_array_equal(on_disk[:, 2:5], expected[:, 2:5])
    np.testing.assert_array_equal(on_disk[1:2, 6:7], expected[1:2, 6:7])
    np.testing.assert_array_equal(on_disk[:, :], expected)


def test_where_there_is_no_room_an_image_stays_in_memory(monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(rows_on_disk, "LARGE", 10)
    monkeypatch.setattr(rows_on_disk, "RowsOnDisk", full)
    image = np.zeros((1, 2, 3, 4), np.float32)
    assert rows_on_disk.kept(image) is image


# ---- memory that runs out


def test_a_case_goes_on_where_memory_ran_out(tmp_path, caplog):
    """A tile in the middle fails once: its sums move, it is repeated, and the labels are the same."""
    loaded = loaded_of(tmp_path)
    plain = decide([member_of((1.0, 1.0, 1.0))], loaded)
    calls = []

    class Once(Mixing):
        def forward(self, image: Tensor) -> list[Tensor]:
            calls.append(len(image))
            if len(calls) == 5:
                raise MemoryError
            return super().forward(image)

    model = model_of((1.0,) * 3, plan=plan_of(LABELS), network=Once(3, 3, 0))
    np.testing.assert_array_equal(decide([EnsembleMember(model)], loaded), plain)
    assert "out of memory" in caplog.text


# ---- a cascade that computes some tiles only


class Follower(nn.Module):
    """Sees the image and two channels of the previous stage; label 2 in the body, whatever that said."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, image: Tensor) -> list[Tensor]:
        self.calls += len(image)
        return [torch.stack([torch.zeros_like(image[:, 0])] * 2 + [torch.ones_like(image[:, 0])], dim=1)]


class Half(nn.Module):
    """Label 1 where the image is bright."""

    def forward(self, image: Tensor) -> list[Tensor]:
        bright = (image[:, :1] > 100).float()
        return [torch.cat([1 - bright, bright, -torch.ones_like(bright)], dim=1)]


def cascade(network: nn.Module, patch=(8, 8, 8)):
    previous = model_of((1.0,) * 3, plan=plan_of(LABELS), network=Half())
    model = model_of((1.0,) * 3, plan=previous.plan, network=network, patch=patch)
    made = replace(model.configuration, cascade_from="3d_fullres")
    plan = replace(model.plan, configurations=model.plan.configurations | {"3d_cascade": made})
    return replace(model, plan=plan, configuration_name="3d_cascade", previous=previous)


def test_a_cascade_computes_worthwhile_tiles_only(tmp_path):
    """A bright cube in the middle of a dark body: the tiles that hold its surface are computed, all others keep 0."""
    image = np.random.default_rng(0).integers(40, 60, (24, 24, 24)).astype(np.int16)
    image[8:12, 8:12, 8:12] = 150
    path = nifti(tmp_path / "image.nii", image, np.eye(4))
    loaded = load_case(Case("a", "a", (str(path),), None), None)
    everything, some = Follower(), Follower()
    options = InferenceOptions(mirroring=False, step=1.0)
    assert (decide([EnsembleMember(cascade(everything), options)], loaded) == 2).all()
    found = decide([EnsembleMember(cascade(some), replace(options, top_k=0.5))], loaded)
    assert some.calls < everything.calls == 27
    computed = np.zeros(found.shape, bool)
    computed[8:16, 8:16, 8:16] = True  # the cube's faces are within its own tile, and touch the neighbours at 7
    assert (found[computed] == 2).all()
    assert set(np.unique(found[~computed])) <= {0, 2}
    assert (found == 0).sum() > found.size / 2
    one = Follower()
    found = decide([EnsembleMember(cascade(one), replace(options, top_k=0.01))], loaded)
    assert one.calls == 1
    np.testing.assert_array_equal(found == 2, computed)


def test_other_tiles_keep_the_labels_of_the_stage_before(tmp_path):
    """Bright above, dark below: the surface is in the middle layer of tiles, which makes label 2 of it."""
    image = np.random.default_rng(0).integers(40, 60, (24, 24, 24)).astype(np.int16)
    image[:12] += 100
    path = nifti(tmp_path / "image.nii", image, np.diag([-1.0, -1.0, 1.0, 1.0]))
    loaded = load_case(Case("a", "a", (str(path),), None), None)
    options = InferenceOptions(mirroring=False, step=1.0, top_k=1.0)
    found = decide([EnsembleMember(cascade(Follower()), options)], loaded)
    np.testing.assert_array_equal(found, np.repeat([1, 2, 0], 8)[:, None, None].repeat(24, 1).repeat(24, 2))


def test_labels_that_are_kept_decide_as_they_are():
    """As regions: label 2 (core) is in both, label 1 in the whole alone."""
    labels = np.array([[[0, 1, 2, 1]]])
    covered = torch.tensor([[[0.0, 0.0, 0.0, 1.0]]])
    for heads, expected in ((LABELS, [0, 1, 2, 0]), (REGIONS, [0, 1, 2, 0])):
        logits = torch.full((heads.num_heads, 1, 1, 4), -1.0)
        keep_labels(Block(slice(0, 1), slice(0, 1), logits, covered), labels, heads)
        regions = heads.region_indices if heads.has_regions else None
        assert decide_row(logits.numpy(), regions, np.dtype(np.uint8)).ravel().tolist() == expected


def test_an_image_without_surfaces_keeps_its_labels(tmp_path):
    path = nifti(tmp_path / "image.nii", np.full((9, 9, 9), 150, np.int16), np.eye(4))
    loaded = load_case(Case("a", "a", (str(path),), None), None)
    network = Follower()
    options = InferenceOptions(mirroring=False, top_k=1.0)
    assert (decide([EnsembleMember(cascade(network), options)], loaded) == 1).all()
    assert network.calls == 0


@pytest.mark.parametrize("share", [0.0, -1.0, 1.5])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(UsageError, match="share"):
        InferenceOptions(top_k=share)


def test_a_model_without_a_previous_stage_has_no_worthwhile_tiles():
    with pytest.raises(UsageError, match="3d_fullres-unet has no previous stage"):
        member_of((1.0,) * 3, top_k=0.2)


def test_a_previous_stage_is_kept_as_labels(tmp_path, monkeypatch):
    """Of a cascade: labels (Z, Y, X) alone, whose channels are made of the rows that a layer of tiles sees."""
    seen = []
    real = member_module.one_hot
    monkeypatch.setattr(member_module, "one_hot", lambda labels, n: seen.append(labels.shape[0]) or real(labels, n))
    loaded = loaded_of(tmp_path, (30, 17, 19))
    decide([EnsembleMember(cascade(Follower()), InferenceOptions(mirroring=False))], loaded)
    assert set(seen) == {8}
