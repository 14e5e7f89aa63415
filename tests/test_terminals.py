"""What a terminal cannot show, and a command that prints it all the same."""

import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]


def test_a_terminal_without_umlauts_gets_their_codes(tmp_path):
    """A path of another alphabet, in a terminal that knows ASCII alone: no traceback, and the right exit code."""
    done = subprocess.run(
        [sys.executable, "-m", "autoseg", "status", "-w", tmp_path / "Körper"],
        env=os.environ | {"PYTHONIOENCODING": "ascii:strict", "PYTHONPATH": str(REPOSITORY)},
        capture_output=True, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert b"Traceback" not in done.stderr
    assert done.returncode == 0
    assert rb"K\xf6rper" in done.stdout
