"""Shared fixtures. Real data come from `--data DIR`; tests that need them skip where it is not given."""

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
