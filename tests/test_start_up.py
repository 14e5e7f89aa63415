"""What is chosen when a fold begins, on machines that are made up: a clock that networks and streams move forward."""

import copy
import math
from dataclasses import asdict, dataclass, field, replace
from types import SimpleNamespace

import pytest
import torch
from synthetic_fingerprints import label_set, uniform
from synthetic_memory import ElementMemory
from torch import Tensor, nn

from autoseg.augmentation import AUGMENTATIONS
from autoseg.data.splits import Split
from autoseg.errors import UsageError
from autoseg.nn import precision
from autoseg.nn.blocks import Stage, conv_stage, set_dropout
from autoseg.nn.networks import build_network
from autoseg.nn.precision import beside, channels_last, first_stage, to_channels_last
from autoseg.plan import Plan, Training
from autoseg.planner import make_plan
from autoseg.start_up import (
    CHAIN_BATCHES,
    CHECKPOINT_COST_SECONDS,
    VALIDATION_MARGIN,
    VALIDATION_SECONDS_PER_CASE,
    Choices,
    apply,
    choose,
    choose_chain,
    has_compiler,
    measure_chain,
    possible_chains,
    seconds_per_sample,
    step_seconds,
    validation_seconds,
    why_not_compile,
    worker_count,
)

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
LABELS = label_set(3)
HOUR = 3600.0


def plan_of(**training) -> Plan:
    found = uniform((2.0, 1.0, 1.0), (12, 20, 24), 5, LABELS, channels=("MR",))
    made = make_plan(dataset="test", channels=("MR",), labels=LABELS, fingerprint=found, memory=ElementMemory())
    return replace(made, training=replace(made.training, **training))


# ---- a machine that is made up


@dataclass
class Machine:
    """Seconds of a pass of one sample through a stage, and through the rest of the network, by how they are run.

    Ways: "float32", "bfloat16", "last" (bfloat16, channels last), "compiled" (bfloat16), "both". `wrong` is added to
    the results of a way.
    """

    stage: dict[str, float]
    rest: dict[str, float]
    wrong: dict[str, float] = field(default_factory=dict)
    now: float = 0.0
    compiling: bool = False  # compiled code is what runs
    passes: list[str] = field(default_factory=list)

    def __deepcopy__(self, memo) -> "Machine":
        return self

    def way(self, weight: Tensor) -> str:
        last = weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
        if not torch.is_autocast_enabled("cpu"):
            return "float32"
        return {(0, 0): "bfloat16", (1, 0): "last", (0, 1): "compiled", (1, 1): "both"}[last, self.compiling]


class FakeStage(Stage):
    def __init__(self, machine: Machine) -> None:
        super().__init__(nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1))
        self.machine = machine

    def forward(self, x: Tensor) -> Tensor:
        way = self.machine.way(self[1].weight)
        self.machine.now += self.machine.stage[way] * len(x)
        self.machine.passes.append(f"stage {way}")
        return super().forward(x)


class FakeNetwork(nn.Module):
    """One stage and a head; logits of two stages."""

    def __init__(self, machine: Machine) -> None:
        super().__init__()
        self.machine = machine
        self.stage = FakeStage(machine)
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, image: Tensor) -> list[Tensor]:
        way = self.machine.way(self.stage[1].weight)
        self.machine.now += self.machine.rest[way] * len(image)
        self.machine.passes.append(f"network {way}")
        logits = self.head(self.stage(image))
        return [logits + self.machine.wrong.get(way, 0.0), logits]


class CompiledFake(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        machine = self.inner.machine
        machine.compiling = True
        try:
            return self.inner(x)
        finally:
            machine.compiling = False


USUAL = {"float32": 2.0, "bfloat16": 1.0, "last": 1.0, "compiled": 1.0, "both": 1.0}


@pytest.fixture
def machine(monkeypatch) -> Machine:
    """In bfloat16 twice as fast as in float32; another layout and compiling make no difference. A pass takes 10 s."""
    torch.manual_seed(0)
    made = Machine(stage=dict(USUAL), rest={way: 9 * seconds for way, seconds in USUAL.items()})
    monkeypatch.setattr(precision, "_now", lambda device: made.now)
    monkeypatch.setattr(precision, "compiled", CompiledFake)
    monkeypatch.setattr("autoseg.start_up.has_compiler", lambda device_type: True)
    monkeypatch.setattr("autoseg.start_up.available_cores", lambda: 4)
    return made


def choices_of(machine: Machine, *, seconds: float | None = HOUR / 2, image=None, device=CPU, **training):
    """What is chosen, and what was said."""
    plan = plan_of(**{"chain": "host", **training})
    said: list[str] = []
    image = torch.randn(2, 1, 8, 8) if image is None else image

    def no_stream(chain: str):
        raise AssertionError("a chain that is named is not measured")

    network = FakeNetwork(machine)
    chosen = choose(network, plan, plan.configurations["2d"], no_stream, image, device, 1, said.append, seconds)
    return chosen, " | ".join(said)


# ---- the traps: how the network runs


def test_half_precision_that_is_faster_and_right_is_chosen(machine):
    chosen, said = choices_of(machine)
    assert chosen == Choices("bfloat16", False, False, "host", forward_seconds=10.0)
    assert "float32 40000 ms" in said  # two samples of 20 s
    assert "-> bfloat16" in said


def test_half_precision_that_is_88_times_slower_is_not_chosen(machine):
    machine.stage["bfloat16"], machine.rest["bfloat16"] = 2.0 * 88, 18.0 * 88
    chosen, _ = choices_of(machine)
    assert (chosen.dtype, chosen.forward_seconds) == ("float32", 20.0)


@pytest.mark.parametrize("error", [5.0, math.nan, math.inf])
def test_half_precision_that_computes_wrongly_is_not_chosen(machine, error):
    machine.wrong["bfloat16"] = error
    assert choices_of(machine)[0].dtype == "float32"


def test_a_dtype_that_is_named_is_taken(machine):
    assert choices_of(machine, autocast="float32")[0].dtype == "float32"
    assert "network bfloat16" not in machine.passes
    machine.stage["bfloat16"], machine.rest["bfloat16"] = 99.0, 99.0
    assert choices_of(machine, autocast="bfloat16")[0].dtype == "bfloat16"


def test_a_layout_without_gain_on_a_stage_is_tried_no_further(machine):
    machine.stage["last"] = 0.91  # faster, but not by the margin
    machine.rest["last"] = 0.1
    chosen, said = choices_of(machine)
    assert not chosen.channels_last
    assert "channels last 1820 ms against 2000 for a stage -> not channels last" in said
    assert "network last" not in machine.passes


def test_a_layout_that_gains_on_a_stage_and_on_the_network_is_adopted(machine):
    machine.stage["last"], machine.rest["last"] = 0.5, 8.0
    chosen, said = choices_of(machine)
    assert chosen.channels_last
    assert "channels last 17000 ms against 20000 for the network -> channels last" in said
    assert chosen.forward_seconds == 10.0  # predictions keep the usual layout


def test_a_layout_that_is_slower_on_the_whole_network_is_not_adopted(machine):
    machine.stage["last"], machine.rest["last"] = 0.5, 12.4  # 24 % slower in all, pytorch's issue 59168
    chosen, said = choices_of(machine)
    assert not chosen.channels_last
    assert "25800 ms against 20000 for the network -> not channels last" in said


def test_a_layout_that_computes_wrongly_is_not_adopted(machine):
    machine.stage["last"], machine.rest["last"], machine.wrong["last"] = 0.1, 0.9, 5.0
    chosen, said = choices_of(machine)
    assert not chosen.channels_last
    assert "off by" in said.split("for the network")[1]


def test_compiling_that_gains_is_adopted_in_a_long_training(machine):
    machine.stage["compiled"], machine.rest["compiled"] = 0.5, 7.0
    chosen, said = choices_of(machine, seconds=HOUR)
    assert chosen.compiled
    assert not chosen.channels_last
    assert "compiled 15000 ms against 20000 for the network -> compiled" in said
    short, said = choices_of(machine, seconds=HOUR - 1)
    assert not short.compiled
    assert "not compiled: 60 min of training are too short, 60 needed" in said


def test_compiling_is_tried_in_the_layout_that_was_chosen(machine):
    machine.stage |= {"last": 0.5, "both": 0.2, "compiled": 0.2}
    machine.rest |= {"last": 7.0, "both": 5.0, "compiled": 0.1}
    chosen, said = choices_of(machine, seconds=HOUR)
    assert (chosen.channels_last, chosen.compiled) == (True, True)
    assert "compiled 10400 ms against 15000 for the network" in said


@pytest.mark.parametrize("what", ["stage", "rest"])
def test_compiling_that_is_not_worth_it_is_not_adopted(machine, what):
    machine.stage["compiled"] = 0.95 if what == "stage" else 0.5
    machine.rest["compiled"] = 0.1 if what == "stage" else 9.0
    chosen, said = choices_of(machine, seconds=HOUR)
    assert not chosen.compiled
    assert "-> not compiled" in said
    assert ("network compiled" in machine.passes) == (what == "rest")


def test_compiling_that_raises_falls_back_and_says_so(machine, monkeypatch):
    class Broken(CompiledFake):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("InductorError: g++ not found\nand a long trace")

    monkeypatch.setattr(precision, "compiled", Broken)
    chosen, said = choices_of(machine, seconds=HOUR)
    assert chosen == Choices("bfloat16", False, False, "host", forward_seconds=10.0)
    assert said.endswith("not compiled: RuntimeError: InductorError: g++ not found")


def test_compiling_is_not_tried_without_a_compiler(machine, monkeypatch):
    monkeypatch.setattr("autoseg.start_up.has_compiler", lambda device_type: False)
    monkeypatch.setattr(precision, "compiled", lambda module: pytest.fail("tried"))
    chosen, said = choices_of(machine, seconds=10 * HOUR)
    assert not chosen.compiled
    assert "not compiled: no compiler here" in said


def test_the_length_of_the_training_follows_from_the_step_where_it_is_not_known(machine):
    """A step of the plan's batch takes 10 s per sample: so many steps are an hour, and one fewer are not."""
    machine.stage["compiled"], machine.rest["compiled"] = 0.5, 7.0
    samples = plan_of().configurations["2d"].batch_size
    steps = math.ceil(HOUR / 10 / samples)
    assert choices_of(machine, seconds=None, steps=steps)[0].compiled
    assert not choices_of(machine, seconds=None, steps=steps - 1)[0].compiled
    epochs = {"steps": None, "epochs": steps, "iterations_per_epoch": 1}
    assert choices_of(machine, seconds=None, **epochs)[0].compiled


@pytest.mark.parametrize(
    ("device", "seconds", "tried"),
    [
        ("cpu", 3599, False), ("cpu", 3600, True), ("cuda", 2999, False), ("cuda", 3001, True), ("cuda", 60, False),
    ],
)  # fmt: skip
def test_compiling_must_pay(device, seconds, tried, monkeypatch):
    """Five minutes are won back by a tenth of 50 minutes."""
    monkeypatch.setattr("autoseg.start_up.has_compiler", lambda device_type: True)
    assert (why_not_compile(seconds, device) == "") == tried


@pytest.mark.parametrize(
    ("device", "programs", "triton", "found"),
    [
        ("cpu", {"g++"}, False, True), ("cpu", {"cl"}, False, True), ("cpu", {"mine"}, False, True),
        ("cpu", {"gfortran"}, True, False), ("cuda", {"g++"}, True, True), ("cuda", {"g++"}, False, False),
        ("cuda", set(), True, False), ("mps", {"g++"}, True, False),
    ],
)  # fmt: skip
def test_where_a_compiler_exists(device, programs, triton, found, monkeypatch):
    monkeypatch.setenv("CXX", "mine")
    monkeypatch.setattr("shutil.which", lambda name: name if name in programs else None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: triton or None)
    assert has_compiler(device) == found


def test_choosing_leaves_the_network_and_the_generator_alone(machine):
    machine.stage["last"], machine.rest["last"] = 0.5, 8.0
    network = FakeNetwork(machine)
    set_dropout(network, 0.5)
    before, random = copy.deepcopy(network.state_dict()), torch.random.get_rng_state()
    plan = plan_of(chain="host")
    choose(network, plan, plan.configurations["2d"], None, torch.zeros(2, 1, 8, 8), CPU, 1, lambda text: None, HOUR)
    assert torch.equal(torch.random.get_rng_state(), random)
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])
        assert value.stride() == before[name].stride()
    assert all(module.training for module in network.modules())
    assert not network.stage._forward_pre_hooks
    assert all(parameter.grad is None for parameter in network.parameters())


def test_a_batch_that_was_tried_in_part_is_measured_whole(machine, monkeypatch):
    trial = precision.PrecisionTrial("bfloat16", 12.0, 4.0, 0.0)
    network, image = FakeNetwork(machine), torch.zeros(4, 1, 8, 8)
    machine.rest["bfloat16"] = 1.0
    assert seconds_per_sample(network, image, trial, 1) == 2.0  # 1 s for the stage, 1 s for the rest
    assert seconds_per_sample(network, image, trial, 4) == 3.0  # nothing is left to measure

    def full(*args):
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr("autoseg.start_up.measure", full)
    assert seconds_per_sample(network, image, trial, 1) == 12.0


# ---- two ways beside each other


def test_another_layout_gives_the_same_network():
    torch.manual_seed(0)
    for dims in (2, 3):
        settings = {"in_channels": 1, "num_heads": 3, "features": (4, 8), "blocks": (2, 2), "decoder_blocks": (2,)}
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
        name, in_channels=1, num_heads=2, features=(4, 8), strides=[(1, 1), (2, 2)], kernel_sizes=[(3, 3)] * 2,
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


# ---- apply


PLAIN = Choices("float32", channels_last=False, compiled=False, chain="host", forward_seconds=1.0)


class Compilation:
    """Stands for `nn.Module.compile`: what it was told, and code that is eager or breaks."""

    def __init__(self, monkeypatch, broken: bool = False) -> None:
        self.calls: list[dict] = []
        original = nn.Module.compile

        def backend(graph, inputs):
            if broken:
                raise RuntimeError("no such instruction")
            return graph.forward

        def compile(module: nn.Module, **settings) -> None:
            self.calls.append(settings)
            original(module, backend=backend, **settings)

        monkeypatch.setattr(nn.Module, "compile", compile)


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1)

    def forward(self, image: Tensor) -> list[Tensor]:
        return [self.second(self.first(image))]


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return Small()


def test_nothing_chosen_changes_nothing(network, monkeypatch):
    calls = Compilation(monkeypatch).calls
    strides = [p.stride() for p in network.parameters()]
    apply(PLAIN, network)
    assert not calls
    assert [p.stride() for p in network.parameters()] == strides
    apply(replace(PLAIN, channels_last=True), network)
    assert [p.stride() for p in network.parameters()] != strides


def test_compiling_in_place_keeps_keys_and_results(network, monkeypatch):
    monkeypatch.setattr("autoseg.start_up.has_compiler", lambda device_type: True)
    calls = Compilation(monkeypatch).calls
    image, keys = torch.randn(1, 1, 4, 4), list(network.state_dict())
    expected = network(image)[0]
    apply(replace(PLAIN, compiled=True), network, image, pytest.fail)
    assert calls == [{"dynamic": False}]
    assert list(network.state_dict()) == keys
    assert torch.allclose(network(image)[0], expected)


def test_compiling_that_fails_later_falls_back_and_says_so(network, monkeypatch):
    monkeypatch.setattr("autoseg.start_up.has_compiler", lambda device_type: True)
    calls = Compilation(monkeypatch, broken=True).calls
    image, said = torch.randn(1, 1, 4, 4), []
    expected = network(image)[0]
    apply(replace(PLAIN, compiled=True), network, image, said.append)
    assert calls == [{"dynamic": False}, {"disable": True}]
    assert len(said) == 1
    assert said[0].startswith("not compiled: ")
    assert torch.equal(network(image)[0], expected)


def test_a_fold_that_comes_to_a_machine_without_a_compiler_goes_on(network, monkeypatch):
    monkeypatch.setattr("autoseg.start_up.has_compiler", lambda device_type: False)
    calls, said = Compilation(monkeypatch).calls, []
    apply(replace(PLAIN, compiled=True), network, None, said.append)
    assert not calls
    assert said == ["not compiled, though the fold began so: no compiler here"]


def test_choices_are_plain_data():
    assert Choices(**asdict(PLAIN)) == PLAIN
    assert {type(value) for value in asdict(PLAIN).values()} == {str, bool, float}


# ---- the chain


@pytest.mark.parametrize(
    ("network", "preparation", "finishing", "workers", "cores", "device", "expected"),
    [
        (1.0, 0.5, 0.1, 0, 4, "cpu", 1.6),  # one after the other
        (1.0, 0.5, 0.1, 0, 4, "cuda", 1.6),
        (1.0, 0.8, 0.1, 1, 4, "cpu", 1.3),  # what the worker works is lost to the network
        (1.0, 0.8, 0.1, 2, 4, "cpu", 1.3),
        (1.0, 0.8, 0.1, 1, 1, "cpu", 1.9),
        (1.0, 8.0, 0.1, 1, 4, "cpu", 8.0),  # the worker cannot keep up
        (1.0, 8.0, 0.1, 2, 4, "cpu", 4.0),
        (1.0, 8.0, 0.1, 8, 4, "cpu", 3.1),  # more workers than cores
        (0.1, 2.0, 0.01, 8, 8, "cuda", 0.25),  # starved
        (0.1, 2.0, 0.01, 16, 8, "cuda", 0.25),
        (0.1, 0.4, 0.01, 8, 8, "cuda", 0.11),  # hidden behind the network
    ],
)
def test_seconds_of_a_step(network, preparation, finishing, workers, cores, device, expected):
    found = step_seconds(network, preparation, finishing, workers=workers, cores=cores, device_type=device)
    assert found == pytest.approx(expected)


class FakeStream:
    """Batches of two samples that take as long as they are said to; the first takes ten seconds longer."""

    def __init__(self, machine: Machine, preparation: float, finishing: float) -> None:
        self.machine = machine
        self.times = preparation, finishing
        self.steps = self.finished = 0
        self.closed = False

    def __next__(self) -> dict:
        assert not self.closed
        self.machine.now += self.times[0] + (10 if self.steps == 0 else 0)
        self.steps += 1
        return {"cases": ["a", "b"], "step": self.steps}

    def finish(self, batch: dict, device: torch.device) -> dict:
        assert batch["step"] == self.steps
        self.machine.now += self.times[1]
        self.finished += 1
        return batch

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize(("seconds", "batches"), [(0.5, CHAIN_BATCHES), (4.9, 5), (5.1, 6)])
def test_chains_are_timed_after_a_first_batch(machine, seconds, batches):
    stream = FakeStream(machine, 0.75, 0.25)
    trial = measure_chain("host", stream, CPU, seconds)
    assert (trial.chain, trial.samples) == ("host", 2)
    assert (trial.preparation, trial.finishing) == pytest.approx((0.75, 0.25))
    assert stream.steps == stream.finished == 1 + batches
    assert stream.closed


def chain_of(machine, times, *, device=CPU, workers=1, sample_seconds=0.5, **training) -> tuple[str, list[str]]:
    """The chain chosen where a batch of two takes so many seconds to prepare and to finish, and what was measured."""
    streams: dict[str, FakeStream] = {}

    def stream_of(chain: str) -> FakeStream:
        assert chain not in streams
        return streams.setdefault(chain, FakeStream(machine, *times[chain]))

    settings = Training(**{"chain": "auto", **training})
    chosen = choose_chain(settings, stream_of, device, workers, lambda text: None, sample_seconds, HOUR)
    assert all(stream.closed for stream in streams.values())
    return chosen, list(streams)


A100 = {"host": (2.0, 0.0), "worker": (0.7, 0.0), "device": (0.05, 0.014)}  # seconds for a batch of two


def test_the_chain_that_makes_the_shortest_step_wins(machine, monkeypatch):
    monkeypatch.setattr("autoseg.start_up.available_cores", lambda: 8)
    # a step of 0.13 s: 7 workers need 0.286, 0.1 and 0.007 s for a batch
    assert chain_of(machine, A100, device=CUDA, workers=7, sample_seconds=0.065) == ("worker", list(A100))
    assert chain_of(machine, A100, device=CUDA, workers=4, sample_seconds=0.065)[0] == "device"
    assert chain_of(machine, A100, device=CUDA, workers=7, sample_seconds=0.02)[0] == "device"
    host_is_best = A100 | {"host": (0.6, 0.0), "worker": (7.0, 0.0), "device": (0.05, 0.2)}
    assert chain_of(machine, host_is_best, device=CUDA, workers=7, sample_seconds=0.065)[0] == "host"


def test_workers_compete_with_the_network_on_a_cpu(machine):
    """Four cores: 1 s for the network and 0.8 / 4 for a worker, or 0.05 / 4 and 0.15 on all cores in the training."""
    times = {"host": (3.0, 0.0), "worker": (0.8, 0.0), "device": (0.05, 0.15)}
    assert chain_of(machine, times)[0] == "device"
    assert chain_of(machine, times | {"device": (0.05, 0.25)})[0] == "worker"
    # without workers: 1.8 s or 1.3 s
    assert chain_of(machine, times | {"device": (0.05, 0.25)}, workers=0)[0] == "device"


@pytest.mark.parametrize("chain", ["host", "worker", "device"])
def test_a_chain_that_is_named_is_taken_unmeasured(machine, chain):
    assert chain_of(machine, {}, chain=chain) == (chain, [])


def test_weights_of_components_rule_out_the_device(machine):
    times = {"host": (3.0, 0.0), "worker": (0.8, 0.0), "device": (0.01, 0.01)}
    assert chain_of(machine, times)[0] == "device"
    assert chain_of(machine, times, component_weight=0.5) == ("worker", ["host", "worker"])
    with pytest.raises(UsageError, match="component_weight"):
        chain_of(machine, times, component_weight=0.5, chain="device")


@pytest.mark.parametrize("mixing", ["cutmix", "mixup", "paste"])
def test_mixing_rules_out_the_host(machine, mixing, monkeypatch):
    monkeypatch.setitem(AUGMENTATIONS, "mixed", replace(AUGMENTATIONS["default"], **{mixing: 0.1}))
    times = {"host": (0.01, 0.01), "worker": (0.8, 0.0), "device": (0.8, 0.8)}
    assert chain_of(machine, times)[0] == "host"
    assert chain_of(machine, times, augmentation="mixed") == ("worker", ["worker", "device"])
    assert chain_of(machine, {}, augmentation="mixed", component_weight=1.0) == ("worker", [])  # nothing to choose
    with pytest.raises(UsageError, match="'mixed'"):
        chain_of(machine, {}, augmentation="mixed", chain="host")


def test_every_chain_can_do_what_plans_ask_for_by_default():
    for name in AUGMENTATIONS.keys() - {"sparse"}:
        assert possible_chains(Training(augmentation=name)) == ("host", "worker", "device")
    assert possible_chains(Training(augmentation="sparse")) == ("worker", "device")


def test_the_whole_choice_measures_the_chains_beside_the_network(machine):
    """A step takes 20 s on four cores: 2 s more for the host's 8 s, 1 s for the worker's 4 s, 3 s on the device."""
    streams = {"host": (8.0, 0.0), "worker": (4.0, 0.0), "device": (0.0, 3.0)}
    plan, said = plan_of(), []
    chosen = choose(
        FakeNetwork(machine), plan, plan.configurations["2d"], lambda chain: FakeStream(machine, *streams[chain]),
        torch.randn(2, 1, 8, 8), CPU, 1, said.append, HOUR / 2,
    )  # fmt: skip
    assert chosen.chain == "worker"
    assert len(said) == 2
    assert "host 8000 + 0 -> 22000, worker 4000 + 0 -> 21000, device 0 + 3000 -> 23000 -> worker" in said[1]


# ---- workers, and the time after the last step


@pytest.mark.parametrize(("wanted", "device", "cores", "count"), [
    (3, "cpu", 8, 3), (0, "cuda", 8, 0), (None, "cpu", 8, 1), (None, "cpu", 1, 1), (None, "cuda", 8, 7),
    (None, "cuda", 1, 1), (None, "cuda", 64, 12), (None, "mps", 4, 3),
])  # fmt: skip
def test_worker_count(wanted, device, cores, count, monkeypatch):
    monkeypatch.setattr("autoseg.start_up.available_cores", lambda: cores)
    assert worker_count(wanted, torch.device(device)) == count


class Shapes:
    """Stands for a store of cases of known shapes."""

    def __init__(self, **shapes: tuple[int, int, int]) -> None:
        self.shapes = shapes

    def info(self, case: str) -> SimpleNamespace:
        return SimpleNamespace(shape=self.shapes[case])


@pytest.mark.parametrize(
    ("name", "patch", "axes", "mirroring", "passes"),
    [
        # a: ends 20 - 16, 40 - 16, 41 - 16 need 1, 3, 4 steps of 8: 2 * 4 * 5 tiles; b fits into one
        ("3d_fullres", (16, 16, 16), (0, 1, 2), True, (2 * 4 * 5 + 1) * 8),
        ("3d_fullres", (16, 16, 16), (2,), True, (2 * 4 * 5 + 1) * 2),
        ("3d_fullres", (16, 16, 16), (0, 1, 2), False, 2 * 4 * 5 + 1),
        # slices: 20 of 4 * 5 tiles, 7 of one
        ("2d", (16, 16), (0, 1, 2), True, (20 * 4 * 5 + 7) * 4),
        ("2d", (16, 16), (0, 1, 2), False, 20 * 4 * 5 + 7),
    ],
)
def test_validation_seconds(name, patch, axes, mirroring, passes):
    """An epoch of 250 batches of 3 is watched by 75 validation samples and 37.5 training samples."""
    plan = plan_of(mirror_axes=axes, test_time_mirroring=mirroring, iterations_per_epoch=250)
    configuration = replace(plan.configurations[name], patch_size=patch, batch_size=3)
    store, split = Shapes(a=(20, 40, 41), b=(7, 16, 9), c=(90, 90, 90)), Split(0, ("c",), ("a", "b"))
    seconds = validation_seconds(store, split, plan, configuration, 0.25)
    assert (VALIDATION_MARGIN, VALIDATION_SECONDS_PER_CASE) == (1.3, 0.1)
    assert seconds == pytest.approx(1.3 * 0.25 * (passes + 112.5) + CHECKPOINT_COST_SECONDS + 0.2)
