"""autoseg: self-configuring segmentation of medical images.

The Python interface (`autoseg.api`) is loaded when it is first asked for, so that `import autoseg.nn` needs torch and
numpy alone.
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for editors and type checkers; at run time, `__getattr__` loads them
    from autoseg.api.datasets import check_dataset as check_dataset
    from autoseg.api.datasets import fix_dataset as fix_dataset
    from autoseg.api.datasets import measure_floor as measure_floor
    from autoseg.api.datasets import plan_dataset as plan_dataset
    from autoseg.api.evidence import compare as compare
    from autoseg.api.evidence import learning_curve as learning_curve
    from autoseg.api.files import describe_model as describe_model
    from autoseg.api.files import export_model as export_model
    from autoseg.api.files import export_onnx as export_onnx
    from autoseg.api.files import import_nnunet as import_nnunet
    from autoseg.api.held_out import choose_decision as choose_decision
    from autoseg.api.held_out import learn_expected_dice as learn_expected_dice
    from autoseg.api.held_out import measure_speeds as measure_speeds
    from autoseg.api.models import calibrate_device as calibrate_device
    from autoseg.api.models import cross_validate as cross_validate
    from autoseg.api.models import evaluate_folders as evaluate_folders
    from autoseg.api.models import predict_images as predict_images
    from autoseg.api.models import score_test_set as score_test_set
    from autoseg.api.models import status as status
    from autoseg.api.models import train_folds as train_folds
    from autoseg.api.predictor import Predictor as Predictor
    from autoseg.api.prompts import measure_clicks as measure_clicks
    from autoseg.api.prompts import refine_image as refine_image
    from autoseg.api.ranking import rank_cases as rank_cases
    from autoseg.api.ranking import rank_images as rank_images
    from autoseg.api.report import write_report as write_report
    from autoseg.api.robustness import compare_groups as compare_groups
    from autoseg.api.robustness import measure_calibration as measure_calibration
    from autoseg.api.robustness import measure_shifts as measure_shifts
    from autoseg.errors import AutosegError as AutosegError
    from autoseg.errors import Stopped as Stopped

__version__ = "0.1.0"

# The threads of an operation wait for each other by spinning, with GNU's OpenMP up to 300,000 turns before they sleep.
# Where another process takes a core from one of them, the others burn the time it would need: a step takes two to four
# times as long (benchmarks/README.md, section 20). After 3,000 turns they sleep. OpenMP reads this when torch is
# imported; what the user has set stays.
if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & set(os.environ):
    os.environ["GOMP_SPINCOUNT"] = "3000"

PUBLIC = {  # name -> the module that has it
    "check_dataset": "autoseg.api.datasets",
    "fix_dataset": "autoseg.api.datasets",
    "plan_dataset": "autoseg.api.datasets",
    "measure_floor": "autoseg.api.datasets",
    "train_folds": "autoseg.api.models",
    "cross_validate": "autoseg.api.models",
    "score_test_set": "autoseg.api.models",
    "evaluate_folders": "autoseg.api.models",
    "measure_speeds": "autoseg.api.held_out",
    "measure_shifts": "autoseg.api.robustness",
    "measure_calibration": "autoseg.api.robustness",
    "measure_clicks": "autoseg.api.prompts",
    "compare_groups": "autoseg.api.robustness",
    "learn_expected_dice": "autoseg.api.held_out",
    "choose_decision": "autoseg.api.held_out",
    "compare": "autoseg.api.evidence",
    "write_report": "autoseg.api.report",
    "learning_curve": "autoseg.api.evidence",
    "predict_images": "autoseg.api.models",
    "refine_image": "autoseg.api.prompts",
    "rank_cases": "autoseg.api.ranking",
    "rank_images": "autoseg.api.ranking",
    "export_model": "autoseg.api.files",
    "export_onnx": "autoseg.api.files",
    "describe_model": "autoseg.api.files",
    "import_nnunet": "autoseg.api.files",
    "calibrate_device": "autoseg.api.models",
    "status": "autoseg.api.models",
    "Predictor": "autoseg.api.predictor",
    "AutosegError": "autoseg.errors",
    "Stopped": "autoseg.errors",
}


def __getattr__(name: str) -> Any:
    if name in PUBLIC:
        return getattr(importlib.import_module(PUBLIC[name]), name)
    raise AttributeError(f"module 'autoseg' has no attribute {name!r}; it has {', '.join(PUBLIC)}")


def __dir__() -> list[str]:
    return sorted([*globals(), *PUBLIC])
