"""The memory model: bytes counted by hand, the allocator's own count, errors planted in the model, sizes it infers."""

import importlib.util
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from autoseg.nn.losses import DeepSupervision, build_loss, dice_ce
from autoseg.nn.memory import model
from autoseg.nn.memory.calibration import Trial
from autoseg.nn.memory.model import (
    DEFAULT_TERMS,
    DeviceTerms,
    StepKind,
    StepMemory,
    TracedStep,
    inference_bytes,
    trace_forward,
    trace_step,
)
from autoseg.nn.memory.trace import LiveBytes
from autoseg.nn.optimization import OPTIMIZERS
from autoseg.nn.sliding_window import Tiling, stream_logits
from autoseg.nn.training_step import clipped_gradients, loss_of, update
from small_networks import small_network

BENCHMARK = Path(__file__).parents[3] / "benchmarks" / "memory.py"
specification = importlib.util.spec_from_file_location("benchmark_memory", BENCHMARK)
assert specification is not None
assert specification.loader is not None
benchmark = importlib.util.module_from_spec(specification)
sys.modules["benchmark_memory"] = benchmark
specification.loader.exec_module(benchmark)

FEATURES = (8, 16, 32)
STRIDES = [(1, 1, 1), (2, 2, 2), (2, 2, 2)]
CRITERION = DeepSupervision(dice_ce(ignore_index=None, class_weights=None, batch_dice=False))


def unet(out_channels=3, **options) -> Trial:
    return replace(Trial("unet", FEATURES, out_channels, (16, 16, 16), 2), **options)


def step_bytes(trial: Trial, *, patch=None, batch=None, dtype="bfloat16", rules="cpu", **options) -> int:
    kind = StepKind(trial.in_channels, **{"optimizer": "sgd", "dtype": dtype, "rules": rules, **options})
    size = patch or trial.patch_size, batch or trial.batch_size
    return trace_step(trial.build, trial.criterion(), kind, *size).peak


# ---- counted by hand


class OneConvolution(nn.Module):
    """1x1 convolution without bias: 2 channels to 3 heads, 6 weights."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(2, 3, 1, bias=False)

    def forward(self, image: Tensor) -> list[Tensor]:
        return [self.convolution(image)]


def total(logits: list[Tensor], target: Tensor) -> Tensor:
    return logits[0].sum()


def one_convolution(**options) -> model.StepCost:
    kind = StepKind(2, **{"optimizer": "sgd", "rules": "cpu", "dtype": "float32", **options})
    return trace_step(OneConvolution, total, kind, (10, 20), 4)


WEIGHT, IMAGE, TARGET, LOGITS = 6 * 4, 4 * 2 * 200 * 4, 4 * 200 * 1, 4 * 3 * 200 * 4


def test_one_convolution_by_hand():
    """Weights, momentum, image, target, logits and a scalar loss: the logits are freed when the loss is known, and
    their gradient is an expanded scalar, which takes 4 bytes. So the peak is at the loss."""
    cost = one_convolution()
    assert cost.peak == 2 * WEIGHT + IMAGE + TARGET + LOGITS + 4
    assert cost.parameters == 6


def test_operations_of_one_convolution_by_hand():
    """800 voxels x 6 weights x 2 operations, forward and for the weights' gradient; the image needs none."""
    assert one_convolution().flops == 2 * (800 * 6 * 2)


def test_half_precision_by_hand():
    """Image and weights are copied into two bytes each, logits take two; the sum is a float32 under no autocast."""
    assert one_convolution(dtype="bfloat16").peak == 2 * WEIGHT + IMAGE + TARGET + (WEIGHT + IMAGE + LOGITS) // 2 + 2


def test_blocks_of_cuda_by_hand():
    """12.5, 1.5625, 18.75 blocks of 512 bytes for image, target, logits; weights, momentum and loss begin one each."""
    assert (IMAGE / 512, TARGET / 512, LOGITS / 512) == (12.5, 1.5625, 18.75)
    assert one_convolution(rules="cuda").peak == 512 * (1 + 1 + 13 + 2 + 19 + 1)


def test_averaged_weights_are_one_more_copy():
    assert one_convolution(averaged=True).peak - one_convolution().peak == WEIGHT


@pytest.mark.thorough
def test_adamw_remembers_one_more_copy_than_sgd():
    """And a float32 counter of steps for each of the parameters, which CUDA keeps in main memory."""
    trial = unet()
    network = trial.build()
    parameters = list(network.parameters())
    copy = sum(4 * p.numel() for p in parameters)
    assert step_bytes(trial, optimizer="adamw") - step_bytes(trial) == copy + 4 * len(parameters)


def test_views_and_in_place_operations_take_nothing():
    with LiveBytes() as watched:
        a = torch.zeros(100)
        b = a.view(10, 10)[2:, 1:].T
        b += 1
        F.leaky_relu_(a)
        assert watched.live == 400
        c = b + 1
        assert watched.live == 400 + 4 * 72
        del c
        assert watched.live == 400
        del a
        assert watched.live == 400  # the view still holds it
        del b
    assert watched.live == 0


@pytest.mark.thorough
def test_after_a_step_only_weights_and_momentum_are_left():
    trial = unet()
    step = TracedStep(trial.build, trial.criterion(), StepKind(1, "sgd", rules="cpu"))
    copy = 4 * step.parameters
    for batch in (1, 3):
        step((16, 16, 16), batch)
        assert step._bytes.live == 2 * copy
        assert all(p.grad is None for p in step.network.parameters())


def test_the_slope_of_gather_is_written_in_place():
    """As with plain tensors: zeros of the whole map, and no copy of them."""
    with FakeTensorMode(), LiveBytes() as watched:
        logits = torch.empty(1, 50, 1000, requires_grad=True)
        watched.start()
        logits.gather(1, torch.zeros(1, 1, 1000, dtype=torch.int64)).sum().backward()
        assert 2 * logits.nbytes <= max(watched.timeline) < 2.5 * logits.nbytes


# ---- the allocator's own count

SAME_STEP = {
    "2-D": (Trial("unet", FEATURES, 2, (64, 48), 4), "float32"),
    "2-D bfloat16": (Trial("unet", FEATURES, 2, (96, 64), 8), "bfloat16"),
    "3-D": (Trial("unet", FEATURES, 3, (24, 24, 24), 2), "bfloat16"),
    "105 classes": (Trial("unet", FEATURES, 105, (16, 16, 16), 1), "bfloat16"),
    "anisotropic": (Trial("unet", FEATURES, 4, (6, 48, 48), 2, flat=2), "float32"),
    "residual": (Trial("residual_unet", FEATURES, 3, (32, 24, 24), 1), "bfloat16"),
    "attention": (Trial("attention_unet", FEATURES, 20, (24, 24, 24), 2), "bfloat16"),
    "adamw": (Trial("unet", (32, 64, 64), 2, (8, 8, 8), 1, optimizer="adamw"), "float32"),
    "checkpointing": (Trial("unet", FEATURES, 2, (24, 24, 24), 2, checkpointing=True), "bfloat16"),
    "4 channels": (Trial("unet", FEATURES, 14, (24, 24, 24), 1, in_channels=4), "float32"),
}


@pytest.mark.thorough
@pytest.mark.parametrize(("trial", "dtype"), SAME_STEP.values(), ids=SAME_STEP)
def test_trace_agrees_with_the_allocator(trial, dtype):
    real, with_scratch = benchmark.allocator_peak(trial, dtype)
    assert trial.trace(dtype, "cpu").peak == pytest.approx(real, rel=0.01)
    assert with_scratch >= real


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("forgotten", "trial"),
    [
        ("the gradients", Trial("unet", (32, 64, 128), 2, (8, 8), 1)),
        ("the optimiser's momentum", Trial("unet", (32, 64, 128), 2, (8, 8), 1)),
        ("the finest head's loss", Trial("unet", FEATURES, 20, (16, 16, 16), 2)),
    ],
)
def test_what_is_forgotten_is_noticed(forgotten, trial):
    real, _ = benchmark.allocator_peak(trial, "float32")
    assert trial.trace("float32", "cpu").peak == pytest.approx(real, rel=0.01)
    with benchmark.PLANTED[forgotten]():
        assert trial.trace("float32", "cpu").peak < 0.99 * real


@pytest.mark.thorough
@pytest.mark.parametrize("things", [[], [1]], ids=["classes", "things"])
def test_a_step_with_a_matching_takes_what_is_traced(things):
    """Matching and components have no values in a trace, and the shapes they have in a real step."""
    options = {"things": things, "most_things": 5, "points": 64}
    given = {"regions": (), "ignore_index": 3, "class_weights": None, "batch_dice": False, "options": options}
    criterion = DeepSupervision(build_loss("mask_classification", **given))

    def build() -> nn.Module:
        return small_network("mask_transformer", 2, out_channels=3)

    traced = trace_step(build, criterion, StepKind(1, "sgd", rules="cpu"), (16, 16), 2)
    network = build()
    optimizer, scaler = OPTIMIZERS["sgd"](network.parameters(), 1e-2, 1e-5), torch.amp.GradScaler("cpu", enabled=False)
    with LiveBytes() as watched:
        image, target = torch.randn(2, 1, 16, 16), torch.randint(0, 4, (2, 16, 16), dtype=torch.uint8)
        for _ in range(2):
            optimizer.zero_grad(set_to_none=True)
            watched.start()
            loss = loss_of(network, criterion, image, target, dtype="bfloat16")
            clipped_gradients(loss, network, optimizer, scaler, 1.0)
            del loss
            update(optimizer, scaler)
    seen = watched.read()
    assert traced.peak == pytest.approx(int(seen.live.max()), rel=0.01)
    assert traced.flops == seen.flops


# ---- what must be more, or less


@pytest.mark.thorough
def test_more_of_anything_never_takes_less():
    trial = unet()
    patches = [step_bytes(trial, patch=(edge,) * 3) for edge in (8, 12, 16, 32)]
    batches = [step_bytes(trial, batch=n) for n in (1, 2, 3, 8)]
    classes = [step_bytes(unet(out_channels=n)) for n in (2, 3, 13, 14, 50, 105)]
    for figures in (patches, batches, classes):
        assert figures == sorted(figures)
        assert figures[-1] > figures[0]


@pytest.mark.thorough
def test_checkpointing_lowers_the_peak_and_costs_operations():
    trial = unet(patch_size=(32, 32, 32))
    kept, again = trial.trace("bfloat16", "cuda"), replace(trial, checkpointing=True).trace("bfloat16", "cuda")
    assert again.peak < 0.8 * kept.peak
    assert kept.flops * 1.2 < again.flops < kept.flops * 4 / 3  # three passes become four, the heads are not repeated
    assert again.parameters == kept.parameters


@pytest.mark.thorough
def test_logits_of_coarser_stages_take_memory():
    """Of four stages' three maps of logits two have a loss."""
    trial = Trial("unet", (8, 16, 16, 16), 50, (64, 64), 2)
    assert step_bytes(trial, deep_supervision=False) < 0.98 * step_bytes(trial)


def test_cuda_updates_all_parameters_at_once():
    """Where weights outweigh maps the peak is in the optimiser: weight decay makes a copy of all gradients."""
    trial = Trial("unet", (32, 64, 128), 2, (8, 8), 1)
    copy = 4 * sum(p.numel() for p in trial.build().parameters())
    assert step_bytes(trial, rules="cuda") > 3.9 * copy  # weights, momentum, gradients, their copy
    assert step_bytes(trial, rules="cpu") < 3.9 * copy


# ---- any size from a few traces


def model_of(trial: Trial, **options) -> StepMemory:
    kind = StepKind(1, **{"optimizer": "sgd", **options})
    return StepMemory(trial.build, trial.criterion(), kind, strides=trial.strides)


@pytest.mark.thorough
@pytest.mark.parametrize(("network", "rules"), [("unet", "cpu"), ("residual_unet", "cuda"), ("attention_unet", "cpu")])
def test_inferred_sizes_agree_with_traces(network, rules):
    trial = replace(unet(20), network=network)
    model = model_of(trial, rules=rules)
    model((16, 16, 16), 2)
    for patch, batch in [((16, 16, 20), 2), ((32, 24, 40), 1), ((64, 64, 64), 7)]:
        inferred = model(patch, batch)
        assert model.traces == 4
        traced = replace(trial, patch_size=patch, batch_size=batch).trace("bfloat16", rules)
        assert inferred.peak == pytest.approx(traced.peak, rel=1e-6 if rules == "cpu" else 5e-3)
        assert (inferred.flops, inferred.parameters) == (traced.flops, traced.parameters)


@pytest.mark.thorough
@pytest.mark.parametrize("patch", [(16, 16, 16), (13, 16, 18)])
def test_batches_of_one_patch_take_two_traces(patch):
    trial = replace(unet(20), patch_size=patch)
    model = model_of(trial, rules="cpu")
    for batch in (3, 1, 4, 9):
        found = model(patch, batch)
        traced = replace(trial, batch_size=batch).trace("bfloat16", "cpu")
        assert (found.peak, found.flops) == (traced.peak, traced.flops)
    assert model.traces == 2


@pytest.mark.thorough
def test_a_later_peak_is_found_at_other_sizes():
    """With few voxels the peak is in the optimiser, with many in the loss: both lie on the timeline."""
    trial = Trial("unet", (32, 64, 128), 2, (8, 8), 1)
    model = model_of(trial, rules="cuda", dtype="float32")
    model((8, 8), 1)
    for patch in [(8, 12), (256, 256)]:
        assert model(patch, 2).peak == pytest.approx(
            replace(trial, patch_size=patch, batch_size=2).trace("float32", "cuda").peak, rel=5e-3
        )


@pytest.mark.thorough
def test_patches_that_strides_do_not_divide_are_traced():
    trial = unet()
    model = model_of(trial, rules="cpu")
    for edge in (8, 12, 16):
        model((edge,) * 3, 2)
    seen = model.traces
    assert model((13, 16, 18), 2).peak == replace(trial, patch_size=(13, 16, 18)).trace("bfloat16", "cpu").peak
    assert model.traces == seen + 1
    model((13, 16, 18), 2)
    assert model.traces == seen + 1  # it remembers


class EveryPair(nn.Module):
    """A weight for every pair of voxels: memory grows with the square of the voxels."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))

    def forward(self, image: Tensor) -> list[Tensor]:
        tokens = image.flatten(2)
        pairs = tokens.transpose(1, 2) @ tokens
        mixed = (tokens @ pairs.softmax(dim=1)).view_as(image)
        return [torch.cat([weight * mixed for weight in self.weight], dim=1)]


@pytest.mark.thorough
def test_what_is_not_affine_is_traced():
    kind = StepKind(1, "sgd", rules="cpu")
    model = StepMemory(EveryPair, CRITERION, kind, strides=[(1, 1)])
    direct = partial(trace_step, EveryPair, CRITERION, kind)
    for patch, batch in [((8, 8), 1), ((8, 16), 2), ((32, 16), 1), ((40, 40), 3)]:
        assert model(patch, batch) == direct(patch_size=patch, batch_size=batch)


# ---- prediction


def test_inference_bytes_by_hand():
    """Two copies of 2 channels, 3 heads and the weights: 8 float32 maps of 1000 voxels."""
    assert inference_bytes(5, out_channels=3, channels=2, shape=(10, 10, 10)) == 5 + 8 * 4000


@pytest.mark.thorough
@pytest.mark.parametrize("heads", [2, 30])
def test_a_streamed_sliding_window_stays_below_what_is_predicted(heads):
    """What is predicted holds the logits of all rows; how much less is held depends on how many rows there are."""
    trial = Trial("unet", FEATURES, heads, (16, 16, 16), 2)
    network = trial.build().eval()
    network.deep_supervision = False
    with LiveBytes() as watched:
        weights = sum(4 * p.numel() for p in network.parameters())  # made outside, so not watched
        image = torch.randn(1, 40, 36, 32)
        blocks = stream_logits(
            image, [lambda x: network(x)[0]], Tiling((16, 16, 16), batch=2), out_channels=heads, device=image.device
        )
        assert sum(block.logits.numel() for block in blocks) == heads * 40 * 36 * 32
        real = max(watched.timeline) + weights
    forward = trace_forward(
        trial.build, in_channels=1, patch_size=(16, 16, 16), batch_size=2, dtype="float32", rules="cpu"
    )
    predicted = inference_bytes(forward.peak, out_channels=heads, channels=1, shape=(40, 36, 32))
    assert 0.5 * predicted < real < predicted


def test_prediction_takes_less_than_training():
    trial = unet(patch_size=(32, 32, 32))
    forward = trace_forward(trial.build, in_channels=1, patch_size=(32, 32, 32), batch_size=2)
    step = trial.trace("bfloat16", "cuda")
    assert forward.peak < step.peak / 2
    assert 2.5 * forward.flops < step.flops < 3 * forward.flops  # the image needs no gradient


# ---- the device's own terms

TERMS = DeviceTerms(1000, 200, 0.1, 50.0, "a device", "2.0", None, measured=True)


def test_device_terms_by_hand():
    assert TERMS.device_bytes(3000) == 1000 + 200 + 3300
    assert TERMS.seconds(125) == 2.5
    assert DEFAULT_TERMS.seconds(125) is None


def test_terms_say_where_they_come_from():
    assert "measured on a device" in TERMS.describe()
    assert "10% of the live bytes" in TERMS.describe()
    assert "not measured" in DEFAULT_TERMS.describe()
