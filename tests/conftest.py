"""Shared fixtures. Real data come from `--data DIR`; tests that need them skip where it is not given.

With several workers (pytest-xdist, `--dist loadfile`) one of them runs all tests of a file, so that its fixtures are
made once, and torch has one thread in each.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from autoseg.lines import show, shown_by

settings.register_profile("autoseg", deadline=None)  # no test asserts a duration
settings.load_profile("autoseg")

if "PYTEST_XDIST_WORKER" in os.environ:  # before torch is imported
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_addoption(parser):
    parser.addoption("--data", type=Path, default=None, help="folder of real datasets (see benchmarks/README.md)")


@pytest.fixture(scope="session")
def data_dir(request) -> Path:
    folder = request.config.getoption("--data")
    if folder is None or not folder.is_dir():
        pytest.skip("real data not given: pass --data=DIR, or make DATA=DIR (see benchmarks/README.md)")
    return folder


@pytest.fixture
def said() -> Iterator[list[str]]:
    """The lines that are shown while the test runs, outside of commands and functions that show theirs themselves."""
    lines: list[str] = []
    with shown_by(lines.append):
        yield lines


@pytest.fixture
def on_screen() -> Iterator[None]:
    """Lines are shown on standard output while the test runs, as those of a command are."""
    with shown_by(show):
        yield


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
