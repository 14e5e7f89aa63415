"""One patch through the device chain: `from device_chain import run`."""

import numpy as np
import torch

from autoseg.augmentation.chain import DeviceChain
from autoseg.augmentation.presets import Augmentation
from synthetic_patches import generator

CPU = torch.device("cpu")


def apply(chain: DeviceChain, image: np.ndarray, target: np.ndarray, draw) -> tuple[np.ndarray, np.ndarray]:
    images, targets = chain([torch.from_numpy(image)], [torch.from_numpy(target)], [draw], CPU)
    return images[0].numpy(), targets[0].numpy()


def run(table: Augmentation, image: np.ndarray, target=None, rng=None, **settings):
    """Image and target after the chain; patch size and image size are the same unless given."""
    target = np.ones(image.shape[1:], np.int8) if target is None else target
    chain = DeviceChain(
        table, channels=len(image), **({"patch_size": image.shape[1:], "mirror_axes": ()} | settings)
    )  # fmt: skip
    return apply(chain, image, target, chain.draw(generator() if rng is None else rng))
