"""autoseg: self-configuring segmentation of medical images.

The Python interface is the functions that the commands call, loaded when they are first asked for, so that
`import autoseg.nn` needs torch and numpy alone.
"""

import importlib
import os
from typing import Any

__version__ = "0.1.0"

# The threads of an operation wait for each other by spinning, with GNU's OpenMP up to 300,000 turns before they sleep.
# Where another process takes a core from one of them, the others burn the time it would need: a step takes two to four
# times as long (benchmarks/README.md, section 20). After 3,000 turns they sleep. OpenMP reads this when torch is
# imported; what the user has set stays.
if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & set(os.environ):
    os.environ["GOMP_SPINCOUNT"] = "3000"

PUBLIC = {  # name -> the module that has it
    "plan_dataset": "autoseg.commands.plan",
    "train_folds": "autoseg.commands.train",
    "cross_validate": "autoseg.commands.evaluate",
    "score_test_set": "autoseg.commands.evaluate",
    "predict_images": "autoseg.commands.predict",
}


def __getattr__(name: str) -> Any:
    if name in PUBLIC:
        return getattr(importlib.import_module(PUBLIC[name]), name)
    raise AttributeError(f"module 'autoseg' has no attribute {name!r}; it has {', '.join(PUBLIC)}")


def __dir__() -> list[str]:
    return sorted([*globals(), *PUBLIC])
