"""Folders of tiny trained models in nnU-Net v2's form, with networks that stand for its own.

    PlainNet, ResidualNet   networks that compute, and name their weights, as nnU-Net's documentation says
    plans, dataset          its JSON files as dicts, to be changed by a test
    write_fold, write_model a checkpoint; a whole folder

Nothing of autoseg or of nnU-Net is used here: what an import must reproduce is computed by other code.
"""

import copy
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

CONV, NORM, UP = [
    {2: two, 3: three}
    for two, three in (
        (nn.Conv2d, nn.Conv3d), (nn.InstanceNorm2d, nn.InstanceNorm3d), (nn.ConvTranspose2d, nn.ConvTranspose3d)
    )
]  # fmt: skip
FEATURES = (4, 6, 8)
STRIDES = {3: ((1, 1, 1), (1, 2, 2), (2, 2, 2)), 2: ((1, 1), (2, 2), (2, 2))}
KERNELS = {3: ((1, 3, 3), (3, 3, 3), (3, 3, 3)), 2: ((3, 3), (3, 3), (3, 3))}
BLOCKS, RESIDUAL_BLOCKS, DECODER_BLOCKS = (2, 1, 2), (1, 2, 1), (1, 2)  # of the decoder, the bottleneck's end first
PATCH = {3: (4, 8, 8), 2: (8, 8)}
SPACING = {3: (2.0, 1.0, 1.0), 2: (1.0, 1.0)}


class Block(nn.Module):
    """Convolution, normalisation and, unless it is off, leaky ReLU; listed twice."""

    def __init__(self, dims, cin, cout, kernel, stride, *, bias=True, affine=True, active=True) -> None:
        super().__init__()
        self.conv = CONV[dims](cin, cout, kernel, stride, tuple(k // 2 for k in kernel), bias=bias)
        self.norm = NORM[dims](cout, eps=1e-5, affine=affine)
        parts = [self.conv, self.norm, nn.LeakyReLU()] if active else [self.conv, self.norm]
        self.all_modules = nn.Sequential(*parts)

    def forward(self, x: Tensor) -> Tensor:
        return self.all_modules(x)


class Stacked(nn.Module):
    def __init__(self, dims, cin, cout, kernel, stride, number, **how) -> None:
        super().__init__()
        ones = (1,) * dims
        blocks = [Block(dims, cin, cout, kernel, stride, **how)]
        self.convs = nn.Sequential(*blocks, *(Block(dims, cout, cout, kernel, ones, **how) for _ in range(number - 1)))

    def forward(self, x: Tensor) -> Tensor:
        return self.convs(x)


class Residual(nn.Module):
    def __init__(self, dims, cin, cout, kernel, stride, **how) -> None:
        super().__init__()
        ones = (1,) * dims
        self.conv1 = Block(dims, cin, cout, kernel, stride, **how)
        self.conv2 = Block(dims, cout, cout, kernel, ones, **how, active=False)
        pool = {2: nn.AvgPool2d, 3: nn.AvgPool3d}[dims](stride, stride)
        project = Block(dims, cin, cout, ones, ones, **how | {"bias": False}, active=False)
        self.skip = nn.Sequential(*([pool] if stride != ones else []), *([project] if cin != cout else []))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.leaky_relu(self.conv2(self.conv1(x)) + self.skip(x), 0.01)


class Blocks(nn.Module):
    def __init__(self, dims, cin, cout, kernel, stride, number, **how) -> None:
        super().__init__()
        ones = (1,) * dims
        blocks = [Residual(dims, cin, cout, kernel, stride, **how)]
        self.blocks = nn.Sequential(
            *blocks, *(Residual(dims, cout, cout, kernel, ones, **how) for _ in range(number - 1))
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x)


class Encoder(nn.Module):
    def __init__(self, dims: int, channels: int, residual: bool, **how) -> None:
        super().__init__()
        ones = (1,) * dims
        self.stem = Stacked(dims, channels, FEATURES[0], KERNELS[dims][0], ones, 1, **how) if residual else None
        incoming = [FEATURES[0] if residual else channels, *FEATURES[:-1]]
        stages = []
        for cin, cout, kernel, stride, number in zip(
            incoming, FEATURES, KERNELS[dims], STRIDES[dims], RESIDUAL_BLOCKS if residual else BLOCKS, strict=True
        ):
            stage = (Blocks if residual else Stacked)(dims, cin, cout, kernel, stride, number, **how)
            stages.append(stage if residual else nn.Sequential(stage))
        self.stages = nn.Sequential(*stages)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.stem(x) if self.stem else x
        return [x := stage(x) for stage in self.stages]


class Decoder(nn.Module):
    def __init__(self, encoder: Encoder, dims: int, heads: int, *, bias: bool = True, affine: bool = True) -> None:
        super().__init__()
        self.encoder = encoder
        ones = (1,) * dims
        stages, transposed, layers = [], [], []
        for place, number in zip((1, 0), DECODER_BLOCKS, strict=True):
            maps, stride = FEATURES[place], STRIDES[dims][place + 1]
            transposed.append(UP[dims](FEATURES[place + 1], maps, stride, stride, bias=bias))
            kernel = KERNELS[dims][place]
            stages.append(Stacked(dims, 2 * maps, maps, kernel, ones, number, bias=bias, affine=affine))
            layers.append(CONV[dims](maps, heads, 1))
        self.stages, self.transpconvs = nn.ModuleList(stages), nn.ModuleList(transposed)
        self.seg_layers = nn.ModuleList(layers)

    def forward(self, skips: Sequence[Tensor]) -> Tensor:
        x = skips[-1]
        for transposed, stage, skip in zip(self.transpconvs, self.stages, skips[-2::-1], strict=True):
            x = stage(torch.cat([transposed(x), skip], 1))
        return self.seg_layers[-1](x)


class Net(nn.Module):
    """A U-Net of nnU-Net's with random weights, none of them at its neutral value."""

    def __init__(
        self, dims: int = 3, channels: int = 1, heads: int = 3, *, residual: bool = False, seed: int = 0, **how
    ) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.encoder = Encoder(dims, channels, residual, **how)
            self.decoder = Decoder(self.encoder, dims, heads, **how)
            for parameter in self.parameters():
                nn.init.normal_(parameter, 0.3, 0.5)
            noise = torch.randn(2, channels, *PATCH[dims])
        self.eval()
        with torch.no_grad():  # every label is found somewhere
            self.decoder.seg_layers[-1].bias -= self(noise).transpose(0, 1).flatten(1).mean(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))


def architecture(dims: int, residual: bool, *, bias: bool = True, affine: bool = True) -> dict[str, Any]:
    kind = "ResidualEncoderUNet" if residual else "PlainConvUNet"
    counts = {"n_blocks_per_stage": list(RESIDUAL_BLOCKS)} if residual else {"n_conv_per_stage": list(BLOCKS)}
    return {
        "network_class_name": f"dynamic_network_architectures.architectures.unet.{kind}",
        "arch_kwargs": {
            "n_stages": 3, "features_per_stage": list(FEATURES), "conv_op": f"torch.nn.modules.conv.Conv{dims}d",
            "kernel_sizes": [list(kernel) for kernel in KERNELS[dims]],
            "strides": [list(stride) for stride in STRIDES[dims]],
            **counts, "n_conv_per_stage_decoder": list(DECODER_BLOCKS), "conv_bias": bias,
            "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dims}d",
            "norm_op_kwargs": {"eps": 1e-5, "affine": affine}, "dropout_op": None, "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU", "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }  # fmt: skip


def configuration(dims: int, *, channels: int = 1, residual: bool = False, **how) -> dict[str, Any]:
    def resampling(which: str, seg: bool, order: int) -> dict[str, Any]:
        keywords = {"is_seg": seg, "order": order, "order_z": 0, "force_separate_z": None}
        name = f"resampling_fn_{which}"
        return {name: "resample_data_or_seg_to_shape", f"{name}_kwargs": keywords}

    return {
        "data_identifier": "nnUNetPlans", "preprocessor_name": "DefaultPreprocessor", "batch_size": 2,
        "patch_size": list(PATCH[dims]), "median_image_size_in_voxels": [float(edge) for edge in PATCH[dims]],
        "spacing": list(SPACING[dims]), "normalization_schemes": ["ZScoreNormalization"] * channels,
        "use_mask_for_norm": [False] * channels,
        **resampling("data", False, 3), **resampling("seg", True, 1), **resampling("probabilities", False, 1),
        "architecture": architecture(dims, residual, **how), "batch_dice": False,
    }  # fmt: skip


def plans(dims: int = 3, channels: int = 1, residual: bool = False, **how) -> dict[str, Any]:
    """plans.json of a model with one configuration, 3d_fullres or 2d."""
    statistics = {"mean": 99.5, "median": 99.0, "std": 20.25, "min": -5.0, "max": 210.0}
    statistics |= {"percentile_00_5": 40.0, "percentile_99_5": 160.0}
    name = "3d_fullres" if dims == 3 else "2d"
    return {
        "dataset_name": "Dataset007_Tiny", "plans_name": "nnUNetPlans", "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2], "transpose_backward": [0, 1, 2], "label_manager": "LabelManager",
        "experiment_planner_used": "ExperimentPlanner",
        "foreground_intensity_properties_per_channel": {str(c): statistics for c in range(channels)},
        "configurations": {name: configuration(dims, channels=channels, residual=residual, **how)},
    }  # fmt: skip


def with_cascade(found: dict[str, Any]) -> dict[str, Any]:
    """The same plans with a configuration of lower resolution and a cascade that refines it."""
    found = copy.deepcopy(found)
    lowres = copy.deepcopy(found["configurations"]["3d_fullres"]) | {"next_stage": "3d_cascade_fullres"}
    found["configurations"]["3d_lowres"] = lowres
    cascade = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
    found["configurations"]["3d_cascade_fullres"] = cascade
    return found


def dataset(labels: dict[str, Any] | None = None, channels: int = 1, **more: Any) -> dict[str, Any]:
    """dataset.json."""
    labels = {"background": 0, "one": 1, "two": 2} if labels is None else labels
    names = {str(number): f"MR{number}" for number in range(channels)}
    return {"channel_names": names, "labels": labels, "file_ending": ".nii.gz", "numTraining": 1, **more}


def held(net: nn.Module, name: str = "3d_fullres", mirror: Sequence[int] | None = (0, 1, 2)) -> dict[str, Any]:
    """What nnU-Net puts into a checkpoint, the numbers of numpy that it logs among them."""
    return {
        "network_weights": net.state_dict(), "optimizer_state": {"state": {}, "param_groups": []},
        "grad_scaler_state": None, "_best_ema": np.float64(0.75), "current_epoch": 3,
        "logging": {"train_losses": [np.float32(-0.5), np.float64(-0.625)], "lrs": [0.01], "n": [np.int64(4)]},
        "init_args": {"plans": {"a": 1}, "configuration": name, "fold": 0, "device": torch.device("cpu")},
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": None if mirror is None else tuple(mirror),
    }  # fmt: skip


def write_json(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def write_model(
    folder: Path,
    nets: dict[int | str, nn.Module],
    the_plans: dict | None = None,
    the_dataset: dict | None = None,
    **how,
) -> Path:
    """A model's folder: its JSON files, and a fold for each network."""
    write_json(folder / "plans.json", the_plans or plans())
    write_json(folder / "dataset.json", the_dataset or dataset())
    for fold, net in nets.items():
        (folder / f"fold_{fold}").mkdir(parents=True, exist_ok=True)
        torch.save(held(net, **how), folder / f"fold_{fold}" / "checkpoint_final.pth")
    return folder


def mirrored_mean(net: nn.Module, image: Tensor, axes: Sequence[int]) -> Tensor:
    """Mean logits (K, *s) over all flips of a batch of one, (1, C, *s); `axes` count from the first spatial one."""
    total = []
    for number in range(2 ** len(axes)):
        flips = [axis + 2 for place, axis in enumerate(axes) if number >> place & 1]
        with torch.inference_mode():
            total.append(net(image.flip(flips)).flip(flips))
    assert len(total) == math.prod([2] * len(axes))
    return torch.stack(total).mean(0)[0]
