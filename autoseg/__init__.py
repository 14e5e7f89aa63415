"""autoseg: self-configuring segmentation of medical images.

The Python interface is what the commands chain (`autoseg.pipeline`), loaded when it is first asked for, so that
`import autoseg.nn` needs torch and numpy alone.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

PUBLIC = ("plan_dataset", "train_folds", "cross_validate", "score_test_set", "predict_images")


def __getattr__(name: str) -> Any:
    if name in PUBLIC:
        return getattr(importlib.import_module("autoseg.pipeline"), name)
    raise AttributeError(f"module 'autoseg' has no attribute {name!r}; it has {', '.join(PUBLIC)}")


def __dir__() -> list[str]:
    return sorted([*globals(), *PUBLIC])
