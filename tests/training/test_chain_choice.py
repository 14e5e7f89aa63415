"""Which chain augments, on machines that are made up: a clock that networks and streams move forward."""

from dataclasses import replace

import pytest
import torch

from autoseg.augmentation.presets import AUGMENTATIONS
from autoseg.errors import UsageError
from autoseg.planning.plan import Training
from autoseg.training.autotune import choose
from autoseg.training.chain_choice import CHAIN_TRIALS, choose_chain, measure_chains, possible_chains, step_seconds
from made_up_machine import CPU, CUDA, HOUR, FakeNetwork, Machine, usual_machine
from plans import plan_of


@pytest.fixture
def machine(monkeypatch) -> Machine:
    return usual_machine(monkeypatch)


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
    """Batches of two samples that take as long as they are said to; the first takes ten seconds longer.

    Those of the numbers `stalled` take ten times as long to prepare.
    """

    def __init__(self, machine: Machine, preparation: float, finishing: float, stalled: tuple[int, ...] = ()) -> None:
        self.machine = machine
        self.times = preparation, finishing
        self.stalled = stalled
        self.steps = self.finished = 0
        self.closed = False

    def __next__(self) -> dict:
        assert not self.closed
        self.machine.now += self.times[0] * (10 if self.steps in self.stalled else 1) + (10 if self.steps == 0 else 0)
        self.steps += 1
        return {"cases": ["a", "b"], "step": self.steps}

    def finish(self, batch: dict, device: torch.device) -> dict:
        assert batch["step"] == self.steps
        self.machine.now += self.times[1]
        self.finished += 1
        return batch

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize(("seconds", "batches"), [(0.5, 1), (5.9, 2), (6.1, 3)])
def test_chains_are_timed_after_a_first_batch(machine, seconds, batches):
    """A batch takes a second, a trial a third of the seconds, or one batch."""
    stream = FakeStream(machine, 0.75, 0.25)
    (trial,) = measure_chains({"host": stream}, CPU, seconds)
    assert (trial.chain, trial.samples) == ("host", 2)
    assert (trial.preparation, trial.finishing) == pytest.approx((0.75, 0.25))
    assert stream.steps == stream.finished == 1 + CHAIN_TRIALS * batches
    assert stream.closed


def test_a_stall_in_one_trial_spoils_no_chain(machine):
    """Batch 4 of the faster chain, the first of its second trial, takes ten times as long."""
    streams = {"host": FakeStream(machine, 1.5, 0.0), "worker": FakeStream(machine, 1.0, 0.0, stalled=(4,))}
    host, worker = measure_chains(streams, CPU, 9.0)
    assert (host.preparation, worker.preparation) == pytest.approx((1.5, 1.0))
    assert streams["worker"].steps == 1 + 3 + 1 + 3  # the stalled batch fills its trial


def test_chains_take_turns(machine):
    order: list[str] = []

    class Noted(FakeStream):
        def __next__(self) -> dict:
            order.append(self.name)
            return super().__next__()

    streams = {"host": Noted(machine, 1.0, 0.0), "worker": Noted(machine, 1.0, 0.0)}
    for name, stream in streams.items():
        stream.name = name
    measure_chains(streams, CPU, 3.0)
    assert order == ["host", "worker"] * 4


def chain_of(machine, times, *, device=CPU, workers=1, sample_seconds=0.5, **training) -> tuple[str, list[str]]:
    """The chain chosen where a batch of two takes so many seconds to prepare and to finish, and what was measured."""
    streams: dict[str, FakeStream] = {}

    def stream_of(chain: str) -> FakeStream:
        assert chain not in streams
        return streams.setdefault(chain, FakeStream(machine, *times[chain]))

    settings = Training(**{"chain": "auto", **training})
    chosen = choose_chain(settings, stream_of, device, workers, sample_seconds, HOUR)
    assert all(stream.closed for stream in streams.values())
    return chosen, list(streams)


A100 = {"host": (2.0, 0.0), "worker": (0.7, 0.0), "device": (0.05, 0.014)}  # seconds for a batch of two


def test_the_chain_that_makes_the_shortest_step_wins(machine, monkeypatch):
    monkeypatch.setattr("autoseg.training.chain_choice.available_cores", lambda: 8)
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


def test_the_whole_choice_measures_the_chains_beside_the_network(machine, said):
    """A step takes 20 s on four cores: 2 s more for the host's 8 s, 1 s for the worker's 4 s, 3 s on the device."""
    streams = {"host": (8.0, 0.0), "worker": (4.0, 0.0), "device": (0.0, 3.0)}
    plan = plan_of()
    chosen = choose(
        FakeNetwork(machine), plan, plan.configurations["2d"], lambda chain: FakeStream(machine, *streams[chain]),
        torch.randn(2, 1, 8, 8), workers=1, seconds=HOUR / 2,
    )  # fmt: skip
    assert chosen.chain == "worker"
    assert len(said) == 2
    assert "host 8000 + 0 -> 22000, worker 4000 + 0 -> 21000, device 0 + 3000 -> 23000 -> worker" in said[1]
