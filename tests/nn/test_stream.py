"""Streamed logits equal those of one accumulator bit for bit; what is held does not grow; memory that runs out."""

import itertools
import logging

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from autoseg.nn.rolling_sums import RollingSums
from autoseg.nn.sliding_window import Tiling, gaussian_importance, mirrored, predict_logits, stream_logits, tile_starts

CPU = torch.device("cpu")
QUICK = settings(max_examples=60, deadline=None)
STEPS = st.sampled_from([0.25, 0.3, 0.5, 0.57, 0.75, 1.0])


def convolution(cin, heads, dims, seed):
    """A random network with context: a 3-wide convolution and a non-linearity."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(heads, cin, *[3] * dims, generator=generator)
    convolve = {2: F.conv2d, 3: F.conv3d}[dims]
    return lambda tiles: convolve(tiles, weight, padding=1).tanh()


def one_accumulator(image, networks, tile, step, heads):
    """The same in the plainest way: the image padded, sums and weights of the whole of it."""
    pads = [max(t - s, 0) for s, t in zip(image.shape[1:], tile, strict=True)]
    flat = [n for p in reversed(pads) for n in (p // 2, p - p // 2)]
    padded = F.pad(image, flat)
    importance = gaussian_importance(tile)
    total, weight = torch.zeros(heads, *padded.shape[1:]), torch.zeros(padded.shape[1:])
    for start in itertools.product(*(tile_starts(s, t, step) for s, t in zip(padded.shape[1:], tile, strict=True))):
        window = tuple(slice(p, p + t) for p, t in zip(start, tile, strict=True))
        seen = padded[(slice(None), *window)][None]
        logits = networks[0](seen)
        for network in networks[1:]:
            logits = logits + network(seen)
        total[(slice(None), *window)].addcmul_(logits[0] / len(networks), importance)
        weight[window] += importance
    inner = tuple(slice(p // 2, p // 2 + s) for p, s in zip(pads, image.shape[1:], strict=True))
    return (total / weight)[(slice(None), *inner)]


def streamed(image, networks, tiling, heads, **options):
    """All blocks put together; each voxel must come once, the rows of a strip in order, and the strips of some rows."""
    logits, seen, last = torch.full((heads, *image.shape[1:]), torch.nan), [], {}
    for block in stream_logits(image, networks, tiling, out_channels=heads, device=CPU, **options):
        for place, start in (
            (("rows", block.rows.start), block.lines.start),
            (("lines", block.lines.start), block.rows.start),
        ):
            assert start > last.get(place, -1)
            last[place] = start
        assert block.logits.shape == (
            heads, block.rows.stop - block.rows.start, block.lines.stop - block.lines.start, *image.shape[3:]
        )  # fmt: skip
        assert logits[:, block.rows, block.lines].isnan().all()
        logits[:, block.rows, block.lines] = block.logits
        seen.append((block.rows, block.lines))
    assert not logits.isnan().any()
    return logits, seen


@st.composite
def volumes(draw, dims=3):
    tile = draw(st.tuples(*[st.integers(2, 9)] * dims))
    shape = draw(st.tuples(*[st.integers(1, 19)] * dims))
    return shape, tile, draw(STEPS)


@pytest.mark.thorough
@QUICK
@given(volumes(), st.booleans(), st.integers(0, 2**31))
def test_volumes_bit_for_bit(volume, whole_rows, seed):
    shape, tile, step = volume
    image = torch.randn(2, *shape, generator=torch.Generator().manual_seed(seed))
    networks = [convolution(2, 3, 3, seed=n) for n in range(2)]
    expected = one_accumulator(image, networks, tile, step, 3)
    logits, _ = streamed(image, networks, Tiling(tile, step), 3, whole_rows=whole_rows)
    assert torch.equal(logits, expected)


@QUICK
@given(volumes(dims=2), st.integers(1, 5), st.booleans())
def test_slices_bit_for_bit(volume, slices, whole_rows):
    (y, x), tile, step = volume
    image, network = torch.randn(1, slices, y, x), convolution(1, 2, 2, seed=3)
    logits, _ = streamed(image, [network], Tiling(tile, step), 2, whole_rows=whole_rows)
    for z in range(slices):
        assert torch.equal(logits[:, z], one_accumulator(image[:, z], [network], tile, step, 2))


@pytest.mark.thorough
@pytest.mark.parametrize("axes", [(), (0,), (0, 1, 2)])
@pytest.mark.parametrize("folds", [1, 3])
def test_mirrors_and_folds(axes, folds):
    image = torch.randn(1, 17, 14, 11)
    networks = [mirrored(convolution(1, 2, 3, seed=n), axes) for n in range(folds)]
    logits, seen = streamed(image, networks, Tiling((6, 5, 8)), 2)
    assert torch.equal(logits, one_accumulator(image, networks, (6, 5, 8), 0.5, 2))
    assert torch.equal(logits, predict_logits(image, networks, out_channels=2, tile=(6, 5, 8)))
    assert len(seen) > 8


def test_blocks_by_hand():
    """Rows: tiles of 4 at 0, 2 and 3 of 7: before 2 and 3 all is finished; lines: tiles of 3 at 0, 2 and 3 of 6."""
    image = torch.randn(1, 7, 6, 5)
    assert (tile_starts(7, 4, 0.5), tile_starts(6, 3, 0.5)) == ([0, 2, 3], [0, 2, 3])
    _, seen = streamed(image, [lambda tiles: tiles], Tiling((4, 3, 5)), 1)
    layers, lines = [[(0, 2)], [(2, 3)], [(3, 4), (4, 6), (6, 7)]], [(0, 2), (2, 3), (3, 4), (4, 5), (5, 6)]
    assert seen == [(slice(*r), slice(*y)) for rows in layers for y in lines for r in rows]
    _, seen = streamed(image, [lambda tiles: tiles], Tiling((4, 3, 5)), 1, whole_rows=True)
    assert seen == [(slice(*r), slice(0, 6)) for rows in layers for r in rows]


def held(rows: int, *, whole_rows: bool) -> int:
    """Elements of the sums of an image of 32 lines in tiles of 8 x 8 x 4, at most."""
    starts = (tile_starts(rows, 8, 0.5), tile_starts(32, 8, 0.5))
    sums = RollingSums(3, (rows, 32, 4), (8, 8, 4), starts, whole_rows=whole_rows, device=CPU)
    most = 0
    for layer, row in enumerate(starts[0]):
        for line in starts[1]:
            list(sums.finish_before(layer, line))
            sums.add(layer, (row, line, 0), torch.zeros(3, 8, 8, 4), torch.ones(8, 8, 4))
            most = max(most, sum(cell.numel() for cell in sums._cells.values()))
    list(sums.finish())
    assert not sums._cells
    return most


def test_what_is_held_does_not_grow_with_the_rows():
    """Of 3 heads and the weights: 4 rows of 32 lines, and 4 rows more of the two strips of 4 lines that a tile sees."""
    assert held(40, whole_rows=False) == held(400, whole_rows=False) == 4 * 4 * (4 * 32 + 4 * 8)
    assert held(40, whole_rows=True) == held(400, whole_rows=True) == 4 * 4 * 8 * 32


def test_rows_are_read_layer_by_layer():
    """An image need not be in memory: its rows are asked for once per layer of tiles."""
    whole = np.random.default_rng(0).normal(size=(2, 9, 6, 6)).astype(np.float32)

    class OnDisk:
        shape = whole.shape

        def __init__(self):
            self.asked = []

        def __getitem__(self, index):
            self.asked.append(index[1])
            return whole[index]

    image, network = OnDisk(), convolution(2, 2, 3, seed=0)
    logits, _ = streamed(image, [network], Tiling((4, 4, 6)), 2)
    assert image.asked == [slice(0, 4), slice(2, 6), slice(3, 7), slice(5, 9)]
    assert torch.equal(logits, streamed(torch.from_numpy(whole), [network], Tiling((4, 4, 6)), 2)[0])


def test_blocks_may_be_written_to_and_are_no_inference_tensors():
    image = torch.randn(1, 9, 9, 9)
    expected, _ = streamed(image, [lambda tiles: tiles], Tiling((4, 4, 4)), 1)
    for block in stream_logits(image, [lambda tiles: tiles], Tiling((4, 4, 4)), out_channels=1, device=CPU):
        assert torch.equal(block.logits, expected[:, block.rows, block.lines])
        block.logits.fill_(7)
        assert not torch.is_inference_mode_enabled()


# ---- tiles that are not computed


def test_constant_tiles_are_computed_once():
    """Nine of twelve tiles are 0 or 1 everywhere; the result is the same bit for bit."""
    image = torch.zeros(1, 8, 12, 4)
    image[:, :, 8:] = 1
    image[:, 4:, :4] = torch.randn(4, 4, 4)
    calls = []
    network = convolution(1, 2, 3, seed=0)

    def counted(tiles):
        calls.append(len(tiles))
        return network(tiles)

    without, _ = streamed(image, [counted], Tiling((4, 4, 4), 1.0), 2)
    assert calls == [1] * 6
    calls.clear()
    with_it, _ = streamed(image, [counted], Tiling((4, 4, 4), 1.0, reuse_constant=True), 2)
    assert len(calls) == 5  # 0, (0), 1; noise, 0, 1: the last one known is kept
    assert torch.equal(with_it, without)


def test_a_tile_with_constant_channels_is_known_by_all_of_them():
    image = torch.stack([torch.zeros(4, 4, 4), torch.ones(4, 4, 4)])
    image = torch.cat([image, image.flip(0), image.flip(0)], dim=1)
    network = convolution(2, 2, 3, seed=0)
    plain, _ = streamed(image, [network], Tiling((4, 4, 4), 1.0), 2)
    assert torch.equal(streamed(image, [network], Tiling((4, 4, 4), 1.0, reuse_constant=True), 2)[0], plain)


def test_tiles_that_are_not_chosen_leave_zeros():
    image = torch.randn(1, 8, 8, 4)
    tiling = Tiling((4, 4, 4), 1.0)
    calls = []
    chosen = {(0, 4, 0), (4, 0, 0)}.__contains__
    blocks = stream_logits(
        image, [lambda tiles: tiles], tiling, out_channels=1, device=CPU, chosen=chosen,
        progress=lambda *call: calls.append(call),
    )  # fmt: skip
    logits, covered = torch.empty_like(image), torch.empty(8, 8, 4)
    for block in blocks:
        logits[:, block.rows, block.lines], covered[block.rows, block.lines] = block.logits, block.covered
    kept = torch.zeros(8, 8, 4, dtype=torch.bool)
    kept[:4, 4:] = kept[4:, :4] = True
    assert torch.equal(covered > 0, kept)
    assert torch.allclose(logits[0], image[0] * kept)
    assert calls == [(1, 2), (2, 2)]
    nothing = list(stream_logits(image, [], tiling, out_channels=1, device=CPU, chosen=lambda window: False))
    assert not any(block.logits.any() for block in nothing)


# ---- memory that runs out


class Failing:
    """A network for which there is no memory the first few times that it is run on more than `most` tiles."""

    def __init__(self, times: int, most: int = 0, error: BaseException | None = None) -> None:
        self.times, self.most, self.seen = times, most, []
        self.error = error or torch.OutOfMemoryError("CUDA out of memory")
        self.network = convolution(1, 2, 3, seed=0)

    def __call__(self, tiles):
        self.seen.append(len(tiles))
        if self.times and len(tiles) > self.most:
            self.times -= 1
            raise self.error
        return self.network(tiles)


IMAGE = torch.randn(1, 10, 12, 8, generator=torch.Generator().manual_seed(0))  # 4 x 5 tiles of 4 x 4 x 8


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_batches_are_halved_and_nothing_is_computed_twice(error, caplog):
    network = Failing(2, most=2, error=error)
    with caplog.at_level(logging.WARNING, "autoseg"):
        logits, _ = streamed(IMAGE, [network], Tiling((4, 4, 8), batch=8), 2)
    assert network.seen[:4] == [8, 4, 2, 2]
    assert sum(network.seen[2:]) == 4 * 5
    assert max(network.seen[2:]) == 2
    assert torch.allclose(logits, streamed(IMAGE, [network.network], Tiling((4, 4, 8)), 2)[0], atol=1e-6)
    assert [record.message for record in caplog.records] == [
        "out of memory with 8 tiles at once: continuing with 4",
        "out of memory with 4 tiles at once: continuing with 2",
    ]


@pytest.mark.parametrize("whole_rows", [False, True])
def test_sums_are_continued_in_a_file(whole_rows, caplog):
    """In the middle of the image; the tile that failed is repeated, and no other."""
    network = Failing(0)
    original = network.network

    def late(tiles):
        if len(network.seen) == 8:
            network.times = 1
        return original(tiles)

    network.network = late
    with caplog.at_level(logging.WARNING, "autoseg"):
        logits, _ = streamed(IMAGE, [network], Tiling((4, 4, 8)), 2, whole_rows=whole_rows)
    assert len(network.seen) == 4 * 5 + 1
    assert torch.equal(logits, streamed(IMAGE, [original], Tiling((4, 4, 8)), 2)[0])
    (record,) = caplog.records
    assert record.message.startswith("out of memory: the sums of the tiles are continued in a temporary file in ")


def test_an_end_of_all_means_is_raised():
    with pytest.raises(torch.OutOfMemoryError):
        streamed(IMAGE, [Failing(100)], Tiling((4, 4, 8), batch=4), 2)


def test_other_errors_are_not_caught():
    with pytest.raises(RuntimeError, match="shape"):
        streamed(IMAGE, [Failing(1, error=RuntimeError("shape mismatch"))], Tiling((4, 4, 8), batch=4), 2)


def test_sums_that_cannot_be_allocated_are_put_into_a_file(monkeypatch):
    """The fifth allocation fails: it is the sums that leave, and what was added stays."""
    from autoseg.nn import rolling_sums

    real, places = rolling_sums._allocate, []

    def limited(shape, place, device):
        places.append(place)
        if place != "file" and len(places) >= 5:
            raise MemoryError
        return real(shape, place, device)

    monkeypatch.setattr(rolling_sums, "_allocate", limited)
    network = convolution(1, 2, 3, seed=0)
    logits, _ = streamed(IMAGE, [network], Tiling((4, 4, 8)), 2)
    assert places[:5] == ["device"] * 5
    assert set(places[5:]) == {"file"}
    monkeypatch.undo()
    assert torch.equal(logits, streamed(IMAGE, [network], Tiling((4, 4, 8)), 2)[0])
