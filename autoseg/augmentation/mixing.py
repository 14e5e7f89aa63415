"""Mixing of samples: CutMix, MixUp, and components of foreground pasted from one sample into another.

Options for sparse labels, off in every default. The other sample is the next one of the batch (the first after the
last), as it was before any mixing. So a mixed sample depends on its batch; the batches of a training are fixed by their
step, and a resumed training sees the same ones.

Targets stay class indices. CutMix moves image and target alike. MixUp mixes intensities only: the target is that of the
image with the larger share, and no soft target is made of the two, so it is a disturbance of the image, weaker than the
original. A pasted component is the part of a foreground label that hangs together with one voxel drawn from all
foreground, as far as it lies in a window around it; what surrounds the component is not blended.

Sources: CutMix, Yun et al., ICCV 2019; MixUp, Zhang et al., ICLR 2018; pasting, Ghiasi et al., CVPR 2021, and for
lesions Yang et al., MICCAI 2021.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from autoseg.augmentation.presets import Augmentation


@dataclass(frozen=True)
class Mixing:
    """What was drawn for one sample."""

    box: tuple[slice, ...] | None = None  # voxels that come from the other sample
    share: float = 0.0  # of the other image
    window: tuple[slice, ...] | None = None  # where a component of the other sample is pasted
    seed: int = 0  # of the choice of the component


def draw_mixing(table: Augmentation, patch_size: tuple[int, ...], rng: np.random.Generator) -> Mixing:
    """Draw how one sample is mixed with another."""
    cut, blended, pasted = rng.random(3) < (table.cutmix, table.mixup, table.paste)
    if not (cut or blended or pasted):
        return Mixing()

    def a_box(share_of_edges: float) -> tuple[slice, ...]:
        lengths = [max(round(share_of_edges * n), 1) for n in patch_size]
        starts = [int(rng.integers(n - m, endpoint=True)) for n, m in zip(patch_size, lengths, strict=True)]
        return tuple(slice(start, start + m) for start, m in zip(starts, lengths, strict=True))

    return Mixing(
        a_box(rng.uniform(*table.cutmix_share) ** (1 / len(patch_size))) if cut else None,
        rng.uniform(*table.mixup_share) if blended else 0.0,
        a_box(table.paste_window) if pasted else None,
        int(rng.integers(2**62)),
    )


def mix(images: Tensor, targets: Tensor, mixings: Sequence[Mixing], ignore_index: int | None) -> None:
    """Mix the samples of a batch, in place.

    Args:
        images, targets: (B, C, *patch) float32 and (B, n, *patch) class indices from 0; the first of the n maps is the
            target, the others are moved with it.
        ignore_index: class index that is not foreground, or None.
    """
    if all(m.box is None and not m.share and m.window is None for m in mixings):
        return
    before = images.clone(), targets.clone()
    for i, mixing in enumerate(mixings):
        other_image, other_target = (array[(i + 1) % len(mixings)] for array in before)
        if mixing.box is not None:
            box: tuple[Any, ...] = (slice(None), *mixing.box)
            images[i][box] = other_image[box]
            targets[i][box] = other_target[box]
        if mixing.share:
            images[i].lerp_(other_image, mixing.share)
        if mixing.window is not None:
            generator = torch.Generator(images.device).manual_seed(mixing.seed)
            lengths = [part.stop - part.start for part in mixing.window]
            component, where = find_component(other_target[0], lengths, ignore_index, generator)
            window: tuple[Any, ...] = (slice(None), *mixing.window)
            for array, other in ((images[i], other_image), (targets[i], other_target)):
                array[window] = torch.where(component, other.flatten(1)[:, where], array[window])


def find_component(
    labels: Tensor, lengths: Sequence[int], ignore_index: int | None, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Choose a voxel of foreground, and what hangs together with it in a window around it.

    Args:
        labels: (*patch) class indices.
        lengths: of the window; not more than the patch has.

    Returns:
        Mask (*lengths), empty where there is no foreground, and the flat index in the patch of each of its voxels. What
        hangs together is followed as far as max(lengths) steps lead; what winds further is cut off.
    """
    foreground = labels > 0
    if ignore_index is not None:
        foreground &= labels != ignore_index
    keys = torch.rand(labels.shape, generator=generator, device=labels.device)
    chosen = (keys + 1).mul_(foreground).argmax()  # 0 where there is none
    where, rest = torch.zeros((), dtype=torch.int64, device=labels.device), chosen
    for axis, (n, length) in enumerate(zip(labels.shape, lengths, strict=True)):
        stride = int(np.prod(labels.shape[axis + 1 :]))
        start = (rest // stride - length // 2).clamp(0, n - length)
        rest = rest % stride
        line = start + torch.arange(length, device=labels.device)
        where = where[..., None] + stride * line
    of_label = labels.take(where) == labels.take(chosen)
    of_label &= foreground.take(where)
    component = (where == chosen) & of_label
    spread = F.max_pool2d if labels.ndim == 2 else F.max_pool3d
    for _ in range(max(lengths)):  # steps over faces, edges or corners
        component = (spread(component[None, None].float(), 3, stride=1, padding=1)[0, 0] > 0) & of_label
    return component, where
