"""What is chosen when a fold begins, on a machine that is made up: a clock that networks move forward."""

import copy
import math
from dataclasses import asdict, replace

import pytest
import torch
from torch import Tensor, nn

from autoseg.models.versions import RuntimeSettings
from autoseg.nn import precision
from autoseg.nn.blocks import set_dropout
from autoseg.training.autotune import (
    apply,
    choose,
    choose_dtype,
    has_compiler,
    seconds_per_sample,
    why_not_compile,
    worker_count,
)
from made_up_machine import HOUR, CompiledFake, FakeNetwork, Machine, choices_of, usual_machine
from plans import plan_of


@pytest.fixture
def machine(monkeypatch) -> Machine:
    return usual_machine(monkeypatch)


# ---- the traps: how the network runs


def test_half_precision_that_is_faster_and_right_is_chosen(machine):
    chosen, said = choices_of(machine)
    assert chosen == RuntimeSettings("bfloat16", False, False, "host", forward_seconds=10.0)
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
    assert "not compiled: 60 min of training are too few, 60 needed" in said


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
    assert chosen == RuntimeSettings("bfloat16", False, False, "host", forward_seconds=10.0)
    assert said.endswith("not compiled: RuntimeError: InductorError: g++ not found")


def test_compiling_is_not_tried_without_a_compiler(machine, monkeypatch):
    monkeypatch.setattr("autoseg.training.autotune.has_compiler", lambda device_type: False)
    monkeypatch.setattr(precision, "compiled", lambda module: pytest.fail("tried"))
    chosen, said = choices_of(machine, seconds=10 * HOUR)
    assert not chosen.compiled
    assert "not compiled: no compiler found" in said


def test_the_length_of_the_training_follows_from_the_step_where_it_is_not_known(machine):
    """A step of the plan's batch takes 10 s per sample: so many steps are an hour, and one fewer are not."""
    machine.stage["compiled"], machine.rest["compiled"] = 0.5, 7.0
    samples = plan_of().configurations["2d"].batch_size
    steps = math.ceil(HOUR / 10 / samples)
    assert choices_of(machine, seconds=None, epochs=None, steps=steps)[0].compiled
    assert not choices_of(machine, seconds=None, epochs=None, steps=steps - 1)[0].compiled
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
    monkeypatch.setattr("autoseg.training.autotune.has_compiler", lambda device_type: True)
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
    configuration, image = plan.configurations["2d"], torch.zeros(2, 1, 8, 8)
    choose(network, plan, configuration, None, image, workers=1, seconds=HOUR)
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

    monkeypatch.setattr("autoseg.training.autotune.measure", full)
    assert seconds_per_sample(network, image, trial, 1) == 12.0


def test_where_float32_does_not_fit_half_precision_must_do(machine, monkeypatch):
    """A plan may fill the device with a batch of one, in half precision."""
    real, asked = precision.measure, []

    def measure(network, image, dtypes, repeats=None):
        asked.append(dtypes)
        if "float32" in dtypes:
            raise torch.OutOfMemoryError("no room")
        return real(network, image, dtypes, repeats)

    monkeypatch.setattr("autoseg.training.autotune.measure", measure)
    trial, told = choose_dtype(FakeNetwork(machine), torch.zeros(1, 1, 8, 8), "auto")
    assert (trial.dtype, asked) == ("bfloat16", [("float32", "bfloat16"), ("bfloat16",)])
    assert told == "float32 does not fit the memory -> bfloat16"
    with pytest.raises(torch.OutOfMemoryError):
        choose_dtype(FakeNetwork(machine), torch.zeros(1, 1, 8, 8), "float32")


# ---- apply


PLAIN = RuntimeSettings("float32", channels_last=False, compiled=False, chain="host", forward_seconds=1.0)


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


def test_compiling_in_place_keeps_keys_and_results(network, monkeypatch, said):
    monkeypatch.setattr("autoseg.training.autotune.has_compiler", lambda device_type: True)
    calls = Compilation(monkeypatch).calls
    image, keys = torch.randn(1, 1, 4, 4), list(network.state_dict())
    expected = network(image)[0]
    apply(replace(PLAIN, compiled=True), network, image)
    assert said == []
    assert calls == [{"dynamic": False}]
    assert list(network.state_dict()) == keys
    assert torch.allclose(network(image)[0], expected)


def test_compiling_that_fails_later_falls_back_and_says_so(network, monkeypatch, said):
    monkeypatch.setattr("autoseg.training.autotune.has_compiler", lambda device_type: True)
    calls = Compilation(monkeypatch, broken=True).calls
    image = torch.randn(1, 1, 4, 4)
    expected = network(image)[0]
    apply(replace(PLAIN, compiled=True), network, image)
    assert calls == [{"dynamic": False}, {"disable": True}]
    assert len(said) == 1
    assert said[0].startswith("not compiled: ")
    assert torch.equal(network(image)[0], expected)


def test_a_fold_that_comes_to_a_machine_without_a_compiler_goes_on(network, monkeypatch, said):
    monkeypatch.setattr("autoseg.training.autotune.has_compiler", lambda device_type: False)
    calls = Compilation(monkeypatch).calls
    apply(replace(PLAIN, compiled=True), network, None)
    assert not calls
    assert said == ["not compiled, although the fold started compiled: no compiler found"]


def test_choices_are_plain_data():
    assert RuntimeSettings(**asdict(PLAIN)) == PLAIN
    assert {type(value) for value in asdict(PLAIN).values()} == {str, bool, float}


# ---- workers


@pytest.mark.parametrize(("wanted", "device", "cores", "count"), [
    (3, "cpu", 8, 3), (0, "cuda", 8, 0), (None, "cpu", 8, 1), (None, "cpu", 1, 1), (None, "cuda", 8, 7),
    (None, "cuda", 1, 1), (None, "cuda", 64, 12), (None, "mps", 4, 3),
])  # fmt: skip
def test_worker_count(wanted, device, cores, count, monkeypatch):
    monkeypatch.setattr("autoseg.training.autotune.available_cores", lambda: cores)
    assert worker_count(wanted, torch.device(device)) == count
