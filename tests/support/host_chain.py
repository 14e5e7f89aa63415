"""One patch through the host chain: `from host_chain import run`."""

import numpy as np

from autoseg.augmentation.host_chain import build_chain
from autoseg.augmentation.presets import Augmentation
from synthetic_patches import generator


def run(table: Augmentation, image: np.ndarray, target=None, rng=None, **settings):
    """Image and target after the chain; patch size and image size are the same unless given."""
    target = np.ones(image.shape[1:], np.int8) if target is None else target
    chain = build_chain(table, **({"patch_size": image.shape[1:], "mirror_axes": ()} | settings))
    return chain(image, target, generator() if rng is None else rng)
