"""The benchmark of a step on a GPU, run dry: it must be right at the first attempt where GPUs are rare."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from autoseg.nn.memory.calibration import NNUNET_3D, Trial

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu_step.py"


@pytest.fixture(scope="module")
def lines(tmp_path_factory) -> list[str]:
    """What a dry run writes, which is what it prints."""
    out = tmp_path_factory.mktemp("gpu_step") / "gpu_step.md"
    command = [sys.executable, str(SCRIPT), "--dry-run", "--out", str(out)]
    done = subprocess.run(command, cwd=out.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == out.read_text()
    return done.stdout.splitlines()


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


@pytest.mark.thorough
def test_every_way_is_measured(lines):
    begin = next(i for i, line in enumerate(lines) if line.startswith("| dtype"))
    rows = [cells(line) for line in lines[begin + 2 : begin + 10]]
    answers = ("no", "yes")
    ways = {(dtype, last, code) for dtype in ("float32", "bfloat16") for last in answers for code in answers}
    assert {tuple(row[:3]) for row in rows} == ways
    assert rows[0][:3] == ["float32", "no", "no"]  # the reference
    assert rows[0][4:6] == ["1.00", "0.00%"]
    for dtype, _, _, milliseconds, share, off, *_ in rows:
        assert float(milliseconds) > 0
        assert float(share) > 0
        assert (0.05 < float(off.rstrip("%")) < 5) == (dtype == "bfloat16")  # it rounds to 2^-9
        assert (float(off.rstrip("%")) < 0.01) == (dtype == "float32")
    assert sum(line.startswith("chosen: ") for line in lines) == 1


@pytest.mark.thorough
def test_steps_with_and_without_augmentation_are_compared(lines):
    times = {cells(line)[0]: float(cells(line)[1]) for line in lines if line.startswith(("| with", "| the chain"))}
    assert set(times) == {"without", "with", "the chain alone"}
    assert all(value > 0 for value in times.values())
    ratio = next(line for line in lines if line.startswith("with over without"))
    assert float(ratio.split()[3].rstrip(",")) == pytest.approx(times["with"] / times["without"], rel=0.05)


def test_the_script_imports_what_needs_torch_and_numpy_alone():
    tree = ast.parse(SCRIPT.read_text())
    found = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    ours = {module for module in found if module and module.startswith("autoseg")}
    assert ours
    assert all(module.startswith(("autoseg.augmentation.", "autoseg.nn.")) for module in ours)
    assert not any(isinstance(node, ast.Import) and "autoseg" in ast.unparse(node) for node in ast.walk(tree))


def test_the_network_is_nnunets():
    with torch.device("meta"):
        network = Trial("unet", NNUNET_3D, 3, (128, 128, 128), 2).build()
    assert sum(parameter.numel() for parameter in network.parameters()) == pytest.approx(31.20e6, rel=1e-3)
