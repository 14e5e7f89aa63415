"""nnU-Net v2 trainers that end after AUTOSEG_PEER_SECONDS; read by nnU-Net itself, by way of `nnUNet_extTrainer`.

Its own training otherwise. The polynomial decay of the learning rate spans the time instead of a number of epochs; an
epoch has 25 steps, one validation batch and no picture, so that little of the time is spent on anything but steps.
"""

import os
from time import time

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.optimizer.nnUNetTrainerAdam import nnUNetTrainerAdam

STEPS = 25  # of an epoch


class Timed(nnUNetTrainer):
    """SGD with Nesterov momentum and a rate of 0.01, nnU-Net's default."""

    def __init__(self, plans, configuration, fold, dataset_json, device=torch.device("cuda")):  # noqa: B008 (its own)
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = STEPS, 1
        self.logger.plot_progress_png = lambda folder: None
        self.steps_done = 0

    def remaining(self) -> float:
        """Share of the time that is left."""
        return max(1 - (time() - self.began) / float(os.environ["AUTOSEG_PEER_SECONDS"]), 0)

    def timed_step(self) -> dict:
        for group in self.optimizer.param_groups:
            group["lr"] = self.initial_lr * self.remaining() ** 0.9
        self.steps_done += 1
        return self.train_step(next(self.dataloader_train))

    def run_training(self):
        self.began = time()
        self.on_train_start()
        while self.remaining():
            self.on_epoch_start()
            self.on_train_epoch_start()
            outputs = []
            while len(outputs) < STEPS and (self.remaining() or not outputs):
                outputs.append(self.timed_step())
            self.on_train_epoch_end(outputs)
            with torch.no_grad():
                self.on_validation_epoch_start()
                self.on_validation_epoch_end([self.validation_step(next(self.dataloader_val))])
            self.on_epoch_end()
        self.print_to_log_file("steps done:", self.steps_done)
        self.on_train_end()


class TimedAdam(Timed, nnUNetTrainerAdam):
    """AdamW with AMSGrad at a rate of 0.001: the variant that nnU-Net ships as nnUNetTrainerAdam1en3."""

    def __init__(self, plans, configuration, fold, dataset_json, device=torch.device("cuda")):  # noqa: B008 (its own)
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.initial_lr = 1e-3
