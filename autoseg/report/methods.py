"""A paragraph for the methods section of a paper, written from the records. It states what was done, nothing else."""

from collections.abc import Sequence

import numpy as np

from autoseg import __version__
from autoseg.evaluation.intervals import DRAWS
from autoseg.messages import counted
from autoseg.planning.request import text
from autoseg.report.gathered import Gathered
from autoseg.report.numbers import interval_text

NORMALISED = {
    "ct": "clipped to the 0.5th and 99.5th percentile of the foreground of the training data, then standardised with "
    "its mean and standard deviation",
    "zscore": "standardised to zero mean and unit variance in each image",
}
LOSSES = {
    "dice_ce": "the sum of Dice loss and cross-entropy",
    "dice_bce": "the sum of Dice loss and binary cross-entropy, one sigmoid output per region",
    "dice_focal": "the sum of Dice loss and focal loss",
    "dice_topk": "the sum of Dice loss and cross-entropy over the worst voxels",
    "tversky": "the Tversky loss",
    "mask_classification": "the sum of Dice loss and cross-entropy, and of a class and mask loss of queries matched to "
    "the segments of a patch",
}
NETWORKS = {
    "unet": "U-Net", "residual_unet": "U-Net with a residual encoder", "attention_unet": "attention U-Net",
    "unet_plusplus": "U-Net++", "deeplab": "DeepLabv3+", "segformer": "SegFormer", "swin_unet": "Swin U-Net",
    "transunet": "TransUNet", "fcn": "fully convolutional network",
    "mask_transformer": "mask-classification transformer on a U-Net",
}  # fmt: skip
OPTIMISERS = {"sgd": "stochastic gradient descent with Nesterov momentum", "adamw": "AdamW"}
SCHEDULES = {
    "poly": "a polynomially decaying learning rate",
    "cosine": "a cosine-shaped learning rate",
    "one_cycle": "a learning rate that rises linearly for a tenth of the training and falls along a cosine",
    "reduce_on_plateau": "a learning rate that is reduced where validation stagnates",
}


def paragraph(of: Gathered, torch_version: str | None) -> str:
    """The paragraph, in plain text."""
    sentences = [*_data(of), *_preparation(of), *_network(of, torch_version), *_training(of), *_evaluation(of)]
    return " ".join(sentences)


def _data(of: Gathered) -> list[str]:
    channels = ", ".join(of.plan.channels)
    labels = _listed(list(of.plan.labels.scored))
    if of.fingerprint is None or of.dataset is None:
        return [f"We trained a network to segment {labels} in {channels} images."]
    cases = of.fingerprint.cases
    patients = len({case.patient for case in of.dataset.cases})
    known = f" of {counted(patients, 'patient')}" if of.dataset.patients_known else ""
    spacing = np.median([case.spacing for case in cases], axis=0)
    shape = np.median([case.shape for case in cases], axis=0)
    return [
        f"We used {counted(len(cases), 'image')}{known} ({channels}) with reference segmentations of {labels}.",
        f"The median voxel spacing was {text(tuple(spacing))} mm and the median size {text(tuple(shape))} voxels "
        "(slices, rows, columns).",
    ]


def _preparation(of: Gathered) -> list[str]:
    configuration = of.plan.configurations.get(of.configuration)
    if configuration is None:
        return []
    order = of.plan.resampling.image_order
    schemes = list(dict.fromkeys(one.scheme for one in of.plan.normalization))
    how = _listed([NORMALISED.get(scheme, f"normalised by the scheme {scheme}") for scheme in schemes])
    return [
        f"All settings were derived from the data by autoseg {__version__}.",
        f"Images were cropped to nonzero voxels, resampled to {text(configuration.spacing)} mm with splines of order "
        f"{order}, and intensities were {how}.",
    ]


def _network(of: Gathered, torch_version: str | None) -> list[str]:
    configuration = of.plan.configurations.get(of.configuration)
    if configuration is None:
        return []
    network = configuration.network
    size = f", {configuration.cost.parameters / 1e6:.3g} million parameters" if configuration.cost else ""
    torch = f" (PyTorch {torch_version})" if torch_version else ""
    return [
        f"The network{torch} was a {network.dims}-D {NETWORKS.get(network.name, network.name)} with "
        f"{len(network.strides)} resolution stages and {network.features[0]} to {network.features[-1]} features{size}; "
        f"it saw patches of {text(configuration.patch_size)} voxels, {configuration.batch_size} per step."
    ]


def _training(of: Gathered) -> list[str]:
    training, trained = of.plan.training, [fold for fold in of.folds if fold.history]
    supervision = ", with deep supervision" if training.deep_supervision else ""
    average = (
        f" Weights were averaged exponentially with a decay of {training.weight_average:g}."
        if training.weight_average
        else ""
    )
    length = ""
    if trained:
        steps = [fold.history[-1].step for fold in trained]
        length = f" for {min(steps)} to {max(steps)} steps" if min(steps) < max(steps) else f" for {steps[0]} steps"
    return [
        f"It was trained{length} with {LOSSES.get(training.loss, f'the loss {training.loss}')}{supervision}, "
        f"{OPTIMISERS.get(training.optimizer, training.optimizer)} (weight decay {training.weight_decay:g}) and "
        f"{SCHEDULES.get(training.schedule, training.schedule)} of at most {training.learning_rate:g}. Patches were "
        f"augmented with the preset '{training.augmentation}' of the software; {training.foreground_fraction:.0%} were "
        f"centred on foreground.{average}"
    ]


def _evaluation(of: Gathered) -> list[str]:
    found = []
    if of.splits is not None and of.splits.splits:
        by = "by patient, so that no patient was in training and validation at the same time"
        kept = by if of.dataset is not None and of.dataset.patients_known else "by case"
        found.append(f"Data were divided into {counted(len(of.splits.splits), 'fold')} {kept}.")
    if of.scores is None:
        return found
    cases = of.scores.cases
    found.append(
        f"Each of {counted(len(cases), 'image')} was segmented by the network of the fold that held it out, with "
        "overlapping patches" + (" and mirroring at test time" if of.plan.training.test_time_mirroring else "") + "."
    )
    results = []
    for label in of.scores.summary:
        known = [(case.case, v) for case in cases if (v := case.scores[label]["dice"]) is not None]
        if known:
            values = [value for _, value in known]
            groups = [of.patients.get(case, case) for case, _ in known]
            results.append(f"{np.mean(values):.3f} (95 % interval {interval_text(values, groups)}) for {label}")
    if results:
        found.append(
            f"The mean Dice was {_listed(results)}; intervals are percentiles of a bootstrap over patients with "
            f"{DRAWS} draws."
        )
    return found


def _listed(parts: Sequence[str]) -> str:
    """ "a, b and c"; of many, the first ones."""
    if len(parts) > 12:
        return f"{', '.join(parts[:12])} and {len(parts) - 12} others"
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
