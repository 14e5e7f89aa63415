"""Shared fixtures. Real data come from `--data DIR`; tests that need them skip where it is not given."""

from collections.abc import Iterator
from pathlib import Path

import pytest


def pytest_addoption(parser):
    parser.addoption("--data", type=Path, default=None, help="folder of real datasets (see benchmarks/README.md)")


@pytest.fixture(scope="session")
def data_dir(request) -> Path:
    folder = request.config.getoption("--data")
    if folder is None or not folder.is_dir():
        pytest.skip("real data not given: pass --data=DIR, or make DATA=DIR (see benchmarks/README.md)")
    return folder


@pytest.fixture(params=[True, False], ids=["in pieces", "at once"])
def pieces(request, monkeypatch):
    """The device chain works as on a CPU, and as on a GPU."""
    monkeypatch.setattr("autoseg.augmentation.deform.in_pieces", lambda device: request.param)


@pytest.fixture(scope="module")
def in_this_process() -> Iterator[None]:
    """Cases are few and small: no processes are started for them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("autoseg.processes.available_cores", lambda: 1)
        yield
