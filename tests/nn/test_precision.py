"""Ways to run a network: hand-made trials, a stopped clock, and networks that compute wrongly in half precision."""

import copy
import math

import pytest
import torch
from torch import nn

from autoseg.nn import precision
from autoseg.nn.blocks import conv_stage, set_dropout
from autoseg.nn.networks import build_network
from autoseg.nn.precision import (
    DTYPES,
    MOST_REPEATS,
    REPEATS,
    TRIAL_SECONDS,
    PrecisionTrial,
    autocast,
    beside,
    candidates,
    channels_last,
    choose,
    first_stage,
    forward_seconds,
    measure,
    to_channels_last,
)

CPU = torch.device("cpu")


def trial(dtype, seconds, difference=0.0):
    return PrecisionTrial(dtype, seconds, seconds / 3, difference)


# ---- choose ----


@pytest.mark.parametrize(
    ("bfloat16", "chosen"),
    [
        (trial("bfloat16", 0.5, 0.01), "bfloat16"),
        (trial("bfloat16", 0.89, 0.01), "bfloat16"),  # just faster than nine tenths
        (trial("bfloat16", 0.91, 0.01), "float32"),  # faster, but not by the margin
        (trial("bfloat16", 0.9, 0.01), "float32"),
        (trial("bfloat16", 100.0, 0.01), "float32"),
        (trial("bfloat16", 0.1, 0.21), "float32"),  # fast and wrong
        (trial("bfloat16", 0.1, 0.19), "bfloat16"),
        (trial("bfloat16", 0.1, math.nan), "float32"),
        (trial("bfloat16", 0.1, math.inf), "float32"),
    ],
)
def test_a_dtype_must_be_right_and_faster_by_the_margin(bfloat16, chosen):
    assert choose([trial("float32", 1.0), bfloat16]).dtype == chosen


def test_the_fastest_right_one_wins():
    trials = [
        trial("float32", 1.0),
        trial("bfloat16", 0.6, 0.001),
        trial("float16", 0.4, 0.01),
        trial("wrong", 0.2, 0.5),
    ]
    assert choose(trials) is trials[2]
    assert choose(trials[:2]) is trials[1]
    assert choose(trials[:1]) is trials[0]


# ---- measure ----


class TwoStages(nn.Module):
    """Two convolutions, logits finest first; `error` is added under autocast alone."""

    def __init__(self, error=0.0):
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(1, 2, 2, 2)
        self.error = error
        self.dtypes = []

    def forward(self, image):
        logits = [self.fine(image), self.coarse(image)]
        self.dtypes.append(logits[0].dtype)
        if torch.is_autocast_enabled("cpu"):
            logits[0] = logits[0] + self.error
        return logits


@pytest.fixture
def image():
    torch.manual_seed(0)
    return torch.randn(2, 1, 16, 16)


def test_measuring_leaves_weights_and_gradients_as_they_were(image):
    network = TwoStages()
    network.fine.bias.requires_grad_(False)
    network.fine.weight.grad = torch.randn_like(network.fine.weight)
    weights = {name: value.clone() for name, value in network.state_dict().items()}
    gradients = {name: None if p.grad is None else p.grad.clone() for name, p in network.named_parameters()}
    random = torch.random.get_rng_state()
    measure(network, image, ("float32", "bfloat16"))
    for name, value in network.state_dict().items():
        assert torch.equal(value, weights[name]), name
    for name, parameter in network.named_parameters():
        expected = gradients[name]
        assert (parameter.grad is None) == (expected is None), name
        assert expected is None or torch.equal(parameter.grad, expected), name
    assert torch.equal(torch.random.get_rng_state(), random)
    assert network.training


def test_every_dtype_is_run_as_often_as_asked_for(image):
    network = TwoStages()
    trials = measure(network, image, ("float32", "bfloat16"), repeats=3)
    assert [t.dtype for t in trials] == ["float32", "bfloat16"]
    assert network.dtypes == [torch.float32, torch.bfloat16] * 3


def test_the_best_of_the_repeats_counts(image, monkeypatch):
    # three readings per pass: start, after the forward pass, after the backward pass
    readings = iter([0, 5, 10, 100, 101, 103, 200, 203, 212, 300, 302, 304])
    monkeypatch.setattr(precision, "_now", lambda device: float(next(readings)))
    first, second = measure(TwoStages(), image, ("float32", "bfloat16"), repeats=2)
    assert (first.seconds, first.forward_seconds) == (10, 3)
    assert (second.seconds, second.forward_seconds) == (3, 1)
    assert choose([first, second]) is second


@pytest.mark.parametrize(
    ("float32", "bfloat16", "passes"),
    [
        (1.0, 5.5, 2),  # one pass may have been held up by another process
        (1.0, 4.5, REPEATS),  # soon over, though hopeless
        (3.0, 14.5, REPEATS),  # slower, but other work may be the reason
        (3.0, 15.5, 2),
        (1.0, 30.5, 1),  # no stall is as bad
        (3.0, 90.5, 1),
        (0.001, 4.5, REPEATS),  # so long may warming up take
    ],
)
def test_a_dtype_that_is_far_slower_is_run_no_more_than_it_takes_to_see(float32, bfloat16, passes, image, monkeypatch):
    network = TwoStages()
    clock = [0.0]

    def now(device):
        """Time passes with the forward pass."""
        clock[0] += {torch.float32: float32, torch.bfloat16: bfloat16}[network.dtypes.pop()] if network.dtypes else 0
        return clock[0]

    seen = []
    network.register_forward_hook(lambda *_: seen.append(network.dtypes[-1]))
    monkeypatch.setattr(precision, "_now", now)
    trials = measure(network, image, ("float32", "bfloat16"))
    assert (seen.count(torch.float32), seen.count(torch.bfloat16)) == (REPEATS, passes)
    assert [t.seconds for t in trials] == pytest.approx([float32, bfloat16])


@pytest.mark.parametrize(("seconds", "rounds"), [(5.0, 3), (0.6, 3), (0.4, 4), (0.25, 6), (0.01, 10)])
def test_trials_go_on_while_they_are_short(seconds, rounds, image, monkeypatch):
    """Two dtypes: three rounds at least, ten at most, and as many as it takes to spend three seconds."""
    assert (TRIAL_SECONDS, REPEATS, MOST_REPEATS) == (3.0, 3, 10)
    network, clock = TwoStages(), Stalling({torch.float32: seconds, torch.bfloat16: seconds})
    clock.watch(network)
    monkeypatch.setattr(precision, "_now", clock.now)
    measure(network, image, ("float32", "bfloat16"))
    assert len(clock.passes) == 2 * rounds
    clock.passes.clear()
    beside(network, network, image, "float32")
    assert len(clock.passes) == 2 * rounds + 1  # and the reference


@pytest.mark.parametrize("stalled", [{1}, {3}, {3, 5}, {1, 5}, {0, 2}])
def test_a_dtype_that_stalls_is_chosen_all_the_same(stalled, image, monkeypatch):
    """bfloat16 takes half the time of float32, in passes 1, 3, 5; some passes take ten times as long as they should."""
    network = TwoStages()
    clock = Stalling({torch.float32: 1.2, torch.bfloat16: 0.6}, stalled)
    clock.watch(network)
    monkeypatch.setattr(precision, "_now", clock.now)
    trials = measure(network, image, ("float32", "bfloat16"))
    assert choose(trials).dtype == "bfloat16"
    assert [t.seconds for t in trials] == pytest.approx([1.2, 0.6])


class Stalling:
    """A clock that forward passes move, some of them by ten times as much."""

    def __init__(self, seconds: dict, stalled=frozenset()) -> None:
        self.seconds, self.stalled = seconds, stalled
        self.passes: list[torch.dtype] = []
        self.time = 0.0

    def watch(self, network: nn.Module) -> None:
        def passed(*_) -> None:
            dtype = network.dtypes[-1]
            self.time += self.seconds[dtype] * (10 if len(self.passes) in self.stalled else 1)
            self.passes.append(dtype)

        network.register_forward_hook(passed)

    def now(self, device: torch.device) -> float:
        return self.time


def test_forward_passes_of_a_tile_are_timed_one_by_one(image, monkeypatch):
    """As in prediction: without gradients, in evaluation mode, one sample; nothing is left changed."""
    readings = iter([0, 3, 10, 11, 20, 40])
    monkeypatch.setattr(precision, "_now", lambda device: float(next(readings)))
    network, seen = TwoStages(), []
    network.fine.register_forward_hook(
        lambda module, inputs, output: seen.append((len(inputs[0]), output.requires_grad, network.training))
    )
    assert forward_seconds(network, image[:1], "bfloat16", repeats=3) == [3, 1, 20]
    assert seen == [(1, False, False)] * 3
    assert network.dtypes == [torch.bfloat16] * 3
    assert network.training
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_forward_passes_are_timed_in_the_usual_layout_and_not_compiled(image):
    """A network that keeps its channels last is copied; compiled code would be made anew for one sample."""
    network = to_channels_last(nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 2, 3)))
    assert not network[1].weight.is_contiguous()
    seen = []
    network[1].register_forward_hook(lambda module, *_: seen.append(module.weight.is_contiguous()))
    forward_seconds(network, image[:1], "float32", repeats=1)
    assert seen == [True]
    assert not network[1].weight.is_contiguous()

    def backend(graph, inputs):
        raise AssertionError("compiled")

    compiled = TwoStages()
    compiled.compile(backend=backend)
    assert len(forward_seconds(compiled, image[:1], "float32")) == REPEATS


def test_the_backward_pass_is_timed_through_every_stage(image):
    # hooks are called when a parameter's gradient is computed
    seen = []
    network = TwoStages()
    network.fine.weight.register_hook(lambda gradient: seen.append("fine"))
    network.coarse.weight.register_hook(lambda gradient: seen.append("coarse"))
    measure(network, image, ("float32",), repeats=2)
    assert sorted(seen) == ["coarse"] * 2 + ["fine"] * 2


def test_the_difference_is_in_standard_deviations_of_the_logits(image):
    network = TwoStages(error=0.0)
    spread = network.fine(image).std().item()
    reference, rounded = measure(network, image, ("float32", "bfloat16"))
    assert reference.difference == 0
    assert 0 < rounded.difference < 0.02  # bfloat16's rounding, 2^-8 relative
    network.error = 0.5
    shifted = measure(network, image, ("float32", "bfloat16"))[1]
    assert shifted.difference == pytest.approx(0.5 / spread, rel=0.02)


@pytest.mark.parametrize("error", [3.0, math.nan, math.inf])
def test_a_machine_that_computes_wrongly_is_found_out(image, error, monkeypatch):
    readings = iter([0, 50, 100, 0, 1, 2] * REPEATS)  # float32 slow, bfloat16 fast
    monkeypatch.setattr(precision, "_now", lambda device: float(next(readings)))
    trials = measure(TwoStages(error), image, ("float32", "bfloat16"))
    assert choose(trials).dtype == "float32"


# ---- two ways beside each other ----


def test_another_layout_gives_the_same_network():
    torch.manual_seed(0)
    for dims in (2, 3):
        settings = {"in_channels": 1, "out_channels": 3, "features": (4, 8), "blocks": (2, 2), "decoder_blocks": (2,)}
        network = build_network("unet", strides=[(1,) * dims, (2,) * dims], kernel_sizes=[(3,) * dims] * 2, **settings)
        image = torch.randn(2, 1, *(8,) * dims)
        other = channels_last(network)
        trials = beside(network, other, image, "float32")
        assert trials[0].difference == 0
        assert trials[1].difference < 1e-5
        names = [
            name for name, value in other.state_dict().items() if value.stride() != network.state_dict()[name].stride()
        ]
        assert names
        assert all(other.state_dict()[name].stride(1) == 1 for name in names)  # channels lie beside each other


def test_layouts_mix_where_weights_have_four_axes_and_five():
    network = nn.ModuleList([nn.Conv2d(2, 3, 3), nn.Conv3d(2, 3, 3), nn.Linear(2, 3)])
    parameters = list(network.parameters())
    assert to_channels_last(network) is network
    assert all(one is two for one, two in zip(network.parameters(), parameters, strict=True))  # an optimiser holds them
    assert network[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert network[1].weight.is_contiguous(memory_format=torch.channels_last_3d)


def test_two_ways_take_turns_and_the_best_passes_count(monkeypatch):
    """Per pass the clock is read at its begin, after going forward and at its end."""
    passes = [(1, 9), (1, 8), (2, 6), (3, 5), (4, 4), (1, 7)]  # forward, backward: of one, other, one, other, ...
    readings = iter([t for i, (a, b) in enumerate(passes) for t in (100 * i, 100 * i + a, 100 * i + a + b)])
    monkeypatch.setattr(precision, "_now", lambda device: float(next(readings)))
    one = nn.Conv2d(1, 1, 1)
    first, second = beside(one, copy.deepcopy(one), torch.randn(1, 1, 4, 4), "float32", repeats=3)
    assert (first.seconds, first.forward_seconds) == (8, 1)
    assert (second.seconds, second.forward_seconds) == (8, 1)
    assert first.difference == second.difference == 0


def test_dropout_makes_no_difference():
    torch.manual_seed(0)
    stage = conv_stage(2, 1, 4, (3, 3), (1, 1), 2)
    set_dropout(stage, 0.5)
    assert not torch.equal(stage(torch.ones(1, 1, 8, 8)), stage(torch.ones(1, 1, 8, 8)))
    one, other = beside(stage, copy.deepcopy(stage), torch.randn(2, 1, 8, 8), "float32")
    assert one.difference == other.difference == 0
    assert stage.training


@pytest.mark.parametrize(("name", "where"), [("unet", "encoder.0"), ("residual_unet", "encoder.0")])
def test_the_first_stage_of_several_convolutions_is_found(name, where):
    """What comes in is what the stage sees; a stem of one convolution is passed over."""
    network = build_network(
        name, in_channels=1, out_channels=2, features=(4, 8), strides=[(1, 1), (2, 2)], kernel_sizes=[(3, 3)] * 2,
        blocks=(2, 2), decoder_blocks=(2,),
    )  # fmt: skip
    image = torch.randn(2, 1, 8, 8)
    stage, seen = first_stage(network, image)
    assert stage is network.get_submodule(where)
    assert seen.shape == (2, 1 if name == "unet" else 4, 8, 8)
    assert (seen is image) == (name == "unet")
    assert not any(module._forward_pre_hooks for module in network.modules())


def test_a_stem_is_better_than_no_stage():
    stem = conv_stage(2, 1, 4, (3, 3), (1, 1), 1)
    assert first_stage(nn.Sequential(stem, nn.Conv2d(4, 2, 1)), torch.zeros(1, 1, 4, 4))[0] is stem
    assert first_stage(nn.Conv2d(1, 1, 1), torch.zeros(1, 1, 4, 4)) is None


# ---- dtypes and devices ----


def test_dtype_names_are_torchs():
    assert {name: str(dtype) for name, dtype in DTYPES.items()} == {
        "float32": "torch.float32",
        "bfloat16": "torch.bfloat16",
        "float16": "torch.float16",
    }


@pytest.mark.parametrize("dtype", list(DTYPES))
def test_autocast_runs_convolutions_in_that_dtype(dtype, recwarn):
    with autocast(CPU, dtype):
        assert nn.Conv2d(1, 1, 1)(torch.zeros(1, 1, 2, 2)).dtype == DTYPES[dtype]
    assert nn.Conv2d(1, 1, 1)(torch.zeros(1, 1, 2, 2)).dtype == torch.float32
    assert not recwarn.list


def test_candidates_begin_with_float32_and_have_names():
    assert candidates(CPU) == ("float32", "bfloat16")
    assert candidates(torch.device("mps")) == ("float32",)


@pytest.mark.parametrize(("native", "second"), [(True, "bfloat16"), (False, "float16")])
def test_candidates_on_cuda_follow_the_hardware(native, second, monkeypatch):
    # emulated bfloat16 is slow: only hardware that computes it counts
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or native)
    assert candidates(torch.device("cuda")) == ("float32", second)
