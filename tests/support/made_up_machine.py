"""A machine that is made up, for what is measured when a fold begins: `from made_up_machine import FakeNetwork`.

Its clock stands still until a network moves it forward, by as much as that way to run is said to take.
"""

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, nn

from autoseg.lines import shown_by
from autoseg.nn import precision
from autoseg.nn.blocks import Stage
from autoseg.training.autotune import choose
from plans import plan_of

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
HOUR = 3600.0


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


def usual_machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """In bfloat16 twice as fast as in float32; another layout and compiling make no difference. A pass takes 10 s.

    It stands in place of the real machine, with four cores and a compiler.
    """
    torch.manual_seed(0)
    made = Machine(stage=dict(USUAL), rest={way: 9 * seconds for way, seconds in USUAL.items()})
    monkeypatch.setattr(precision, "_now", lambda device: made.now)
    monkeypatch.setattr(precision, "compiled", CompiledFake)
    monkeypatch.setattr("autoseg.training.autotune.has_compiler", lambda device_type: True)
    monkeypatch.setattr("autoseg.training.autotune.available_cores", lambda: 4)
    monkeypatch.setattr("autoseg.training.chain_choice.available_cores", lambda: 4)
    return made


def choices_of(machine: Machine, *, seconds: float | None = HOUR / 2, image=None, **training):
    """What is chosen, and what was said."""
    plan = plan_of(**{"chain": "host", **training})
    said: list[str] = []
    image = torch.randn(2, 1, 8, 8) if image is None else image

    def no_stream(chain: str):
        raise AssertionError("a chain that is named is not measured")

    network = FakeNetwork(machine)
    with shown_by(said.append):
        chosen = choose(network, plan, plan.configurations["2d"], no_stream, image, workers=1, seconds=seconds)
    return chosen, " | ".join(said)
