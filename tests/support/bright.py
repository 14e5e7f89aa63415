"""A model that needs no training: its network looks at one voxel at a time and says whether it is bright."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

import plans
from autoseg.imaging.labels import LabelSet
from autoseg.models.model import Model
from autoseg.planning.plan import ChannelNormalization, Plan

ORGAN = LabelSet({"organ": 7})
THRESHOLD = 100.0


class Bright(nn.Module):
    """Logits of softmax heads 0 and 1: the second is higher where the (last) channel is above the threshold."""

    def forward(self, image: Tensor) -> list[Tensor]:
        above = (image[:, -1:] - THRESHOLD) / 20
        return [torch.cat([torch.zeros_like(above), above], dim=1), torch.full((1,), torch.nan)]


class Lopsided(nn.Module):
    """Logits that depend on where a voxel is in the tile, so that each flip gives others."""

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope = slope

    def forward(self, image: Tensor) -> list[Tensor]:
        where = sum(
            (axis + 1) * torch.arange(n, dtype=torch.float32).reshape([-1 if i == axis else 1 for i in range(3)])
            for axis, n in enumerate(image.shape[2:])
        )
        above = (image[:, -1:] - THRESHOLD) / 20 + self.slope * where
        return [torch.cat([torch.zeros_like(above), above], dim=1)]


def plan_of(labels=ORGAN, channels=("MR",), **changes) -> Plan:
    """A plan that leaves intensities as they are."""
    raw = (ChannelNormalization("none"),) * len(channels)
    return plans.plan_of(labels, channels, plans.ONE, (20, 24, 28), normalization=raw, **changes)


def model_of(
    spacing: tuple[float, ...], *, plan: Plan | None = None, network: nn.Module | None = None, patch=(8, 10, 12)
) -> Model:
    """A model whose configuration has this spacing: 2-D or 3-D by its length."""
    plan = plan or plan_of()
    name = {2: "2d", 3: "3d_fullres"}[len(spacing)]
    changed = replace(plan.configurations[name], spacing=spacing, patch_size=patch[-len(spacing) :])
    return Model(
        plan=replace(plan, configurations=plan.configurations | {name: changed}),
        configuration_name=name,
        folds=(0,),
        networks=(network or Bright(),),
        dtype="float32",
        forward_seconds=0.0,
        device=torch.device("cpu"),
    )


def picture(shape: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    """A body of 50 (organ 150) with unequal margins of 0 about it. No symmetry, so that nothing can be confused."""
    image = np.zeros(shape, np.int16)
    body = tuple(slice(1 + i, n - 3 + i) for i, n in enumerate(shape))
    image[body] = np.random.default_rng(seed).choice([50, 150], image[body].shape)
    image[tuple(n // 2 for n in shape)] = 0  # a hole is part of the body
    return image
