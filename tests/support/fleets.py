"""Stand-ins for folds side by side: `from fleets import Told, with_gpus`."""

from collections.abc import Callable

import pytest


def with_gpus(monkeypatch: pytest.MonkeyPatch, count: int, visible: str | None) -> None:
    """A machine of so many GPUs, of which CUDA_VISIBLE_DEVICES names some or is not set."""
    monkeypatch.setattr("torch.cuda.device_count", lambda: count)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)


class Told(list):
    """Collects what is said; `when` does something at once when a line holds a text."""

    def __init__(self) -> None:
        self.actions: list[tuple[str, Callable[[], object]]] = []

    def when(self, text: str, act: Callable[[], object]) -> None:
        self.actions.append((text, act))

    def __call__(self, line: str) -> None:
        self.append(line)
        for action in [action for action in self.actions if action[0] in line]:
            self.actions.remove(action)
            action[1]()
