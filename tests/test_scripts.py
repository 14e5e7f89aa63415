"""Programs of users: what is called at the top of a script is done once, whatever processes it starts."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from phantom import tiny_dataset

ROOT = Path(__file__).parents[1]
SETTINGS = {"training.iterations_per_epoch": 2, "training.workers": 2, "training.autocast": "float32"}
MAP = "from autoseg.processes import map_in_processes"


def python(folder: Path, *arguments: str, given: str | None = None) -> subprocess.CompletedProcess:
    """Run Python in a folder, in a session of its own, with this copy of autoseg."""
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, input=given, capture_output=True, text=True, check=False, timeout=600,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def run(folder: Path, script: str) -> subprocess.CompletedProcess:
    (folder / "script.py").write_text(script)
    return python(folder, "script.py")


UNGUARDED = f"""
{MAP}
print("once")
print(map_in_processes(abs, [-1, -2, 3], title="abs", workers=2), __name__, __file__, __spec__)
"""


@pytest.mark.thorough
def test_a_script_without_a_guard_is_run_once(tmp_path):
    found = run(tmp_path, UNGUARDED)
    assert found.stderr == ""
    assert found.stdout == f"once\n[1, 2, 3] __main__ {tmp_path / 'script.py'} None\n"


@pytest.mark.thorough
@pytest.mark.parametrize("how", ["-c", "-"])
def test_so_is_what_comes_from_nowhere(tmp_path, how):
    text = UNGUARDED.replace(", __file__", "")
    found = python(tmp_path, "-c", text) if how == "-c" else python(tmp_path, "-", given=text)
    assert (found.stderr, found.stdout) == ("", "once\n[1, 2, 3] __main__ None\n")


@pytest.mark.thorough
def test_a_script_with_a_guard_is_known_in_the_workers(tmp_path):
    found = run(
        tmp_path,
        f"""
{MAP}

def square(number):
    return number**2

if __name__ == "__main__":
    print(map_in_processes(square, [1, 2, 3], title="squares", workers=2))
""",
    )
    assert (found.stderr, found.stdout) == ("", "[1, 4, 9]\n")


@pytest.mark.thorough
def test_a_call_above_the_guard_is_refused_by_the_worker(tmp_path):
    tiny_dataset(tmp_path / "data", cases=2)
    found = run(
        tmp_path,
        """
import autoseg

autoseg.check_dataset("data", workers=2, say=None)

if __name__ == "__main__":
    print("the end")
""",
    )
    assert (found.returncode, found.stdout) == (1, "")
    worker, _, script = found.stderr.rpartition("Traceback")
    assert "autoseg.check_dataset() is called by a script that a worker process imports" in worker
    assert 'move the call below the line `if __name__ == "__main__":`' in worker
    assert "a worker process ended with exit code 1 during 'check" in script
    assert "read its output above" in script


@pytest.mark.slow
def test_a_dataset_is_planned_by_a_script_with_workers(tmp_path):
    tiny_dataset(tmp_path / "data", cases=5)
    found = run(
        tmp_path,
        """
import autoseg
print("once")
plan = autoseg.plan_dataset("data", workspace="ws", cpu_rate="reference", workers=2, say=None)
print(plan.recommended)
""",
    )
    assert (found.stderr, found.stdout) == ("", "once\n3d_fullres\n")
    assert (tmp_path / "ws" / "preprocessed" / "3d_fullres" / "case_04.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("forks", [True, False], ids=["forked", "spawned, as on macOS"])
def test_folds_are_trained_by_a_script_with_workers(tmp_path, forks):
    tiny_dataset(tmp_path / "data", cases=5)
    found = run(
        tmp_path,
        f"""
import autoseg
from autoseg.dataloading import shared_memory, stream, workers
for module in (shared_memory, stream, workers):
    module.FORKS = {forks}
print("once")
autoseg.plan_dataset("data", workspace="ws", cpu_rate="reference", workers=2, say=None)
folds = autoseg.train_folds("ws", folds=[0], steps=4, device="cpu", settings={SETTINGS}, say=None)
print([(fold.fold, fold.steps, sorted(fold.pseudo_dice), fold.folder.as_posix()) for fold in folds])
print(list(autoseg.cross_validate("ws", workers=2, say=None).summary))
""",
    )
    assert found.stderr == ""
    assert found.stdout.splitlines() == [
        "once",
        "[(0, 4, ['organ_1', 'organ_2'], 'ws/models/3d_fullres-unet/fold_0')]",
        "['organ_1', 'organ_2']",
    ]
    assert "epoch   2" in (tmp_path / "ws/models/3d_fullres-unet/fold_0/log.txt").read_text()
