"""What a command chains, one function per command. The Python API of autoseg is these functions.

fix_dataset     folder -> a corrected copy of it
plan_dataset    folder -> checked cases -> fingerprint -> plan -> splits -> preprocessed cases
train_folds     folds -> their held-out predictions
cross_validate  held-out predictions -> scores of every case
score_test_set  the ensemble on held-out test cases, once
predict_images  images -> segmentations of the ensemble
calibrate_device  the machine at hand -> what plans made on it may count on
"""

from autoseg.pipeline.calibration import calibrate_device
from autoseg.pipeline.folds import TrainOptions
from autoseg.pipeline.opening import choose_device, gpu_memory_gb
from autoseg.pipeline.planning import PlanOptions, check_dataset, describe_dataset, plan_dataset
from autoseg.pipeline.prediction import predict_images
from autoseg.pipeline.repairing import fix_dataset
from autoseg.pipeline.scoring import cross_validate, evaluate_folders, score_test_set
from autoseg.pipeline.training import train_folds

__all__ = [
    "PlanOptions",
    "TrainOptions",
    "calibrate_device",
    "check_dataset",
    "choose_device",
    "cross_validate",
    "describe_dataset",
    "evaluate_folders",
    "fix_dataset",
    "gpu_memory_gb",
    "plan_dataset",
    "predict_images",
    "score_test_set",
    "train_folds",
]
