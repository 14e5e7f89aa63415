"""How torch's threads wait for each other: said before torch is imported, where the user has said nothing."""

import os
import subprocess
import sys

import pytest

CODE = "import os, autoseg; print(os.environ.get('OMP_WAIT_POLICY'), os.environ.get('GOMP_SPINCOUNT'))"


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({}, "None 3000"),
        ({"GOMP_SPINCOUNT": "7"}, "None 7"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE None"),
    ],
)
def test_threads_spin_briefly_unless_the_user_says_otherwise(given, found):
    kept = {key: value for key, value in os.environ.items() if key not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    result = subprocess.run([sys.executable, "-c", CODE], env=kept | given, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == found


def test_it_is_said_before_torch_is_imported():
    """OpenMP reads it when it is loaded: no module of autoseg may bring torch along with the package itself."""
    code = "import sys, autoseg; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
