"""What an axis loses before it shrinks: everything above half a period per new voxel, or its aliases remain.

A grid that is f times coarser can show waves down to a period of 2 f voxels (the Nyquist limit); shorter ones fold back
and appear as longer ones that the image does not have. Each filter here is one way to remove them, as one matrix per
axis, (n_out, n_in) with rows that sum to 1. Beyond the edge the outermost voxel continues.

    gaussian      standard deviation (f - 1) / 2 voxels, then the spline: scikit-image's rule. It never overshoots, but
                  blurs what the new grid could show, and lets through half of what is at the limit
    hamming_sinc  sinc of the new grid, three lobes each side in Hamming's window: the fewest aliases; small ringing
    lanczos       sinc of the new grid in the window of its own central lobe, three lobes each side: the sharpest
    none          nothing: the spline reads the voxels around the new centre, whatever is between them is lost

The two sincs interpolate as well: they are sampled around the centre of each new voxel, and no spline follows. A ramp
stays a ramp up to 0.01 voxels (exactly where f is a whole number).

Sources: scikit-image's `resize`; Pillow's `Image.resize`, whose LANCZOS is the same and whose HAMMING is a single lobe;
Duchon 1979 (Lanczos), Harris 1978 (Hamming).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

LOBES = 3  # of a sinc, each side
Interpolate = Callable[[np.ndarray, int], np.ndarray]  # values (n_in, ...), n_out -> (n_out, ...)
Filter = Callable[[int, int, Interpolate], np.ndarray]


def hamming(x: np.ndarray) -> np.ndarray:
    """Hamming's window over -1 to 1."""
    return 0.54 + 0.46 * np.cos(np.pi * x)


def gaussian(n_in: int, n_out: int, interpolate: Interpolate) -> np.ndarray:
    """Smooth by a Gaussian of (f - 1) / 2 voxels, then interpolate; (n_out, n_in) float64."""
    smooth = ndimage.gaussian_filter1d(np.eye(n_in), (n_in / n_out - 1) / 2, axis=0, mode="nearest")
    return interpolate(smooth, n_out)


def hamming_sinc(n_in: int, n_out: int, interpolate: Interpolate) -> np.ndarray:
    """Sample a sinc of three lobes in Hamming's window; (n_out, n_in) float64."""
    return windowed_sinc(n_in, n_out, hamming, LOBES)


def lanczos(n_in: int, n_out: int, interpolate: Interpolate) -> np.ndarray:
    """Sample a sinc of three lobes in the window of its own central lobe; (n_out, n_in) float64."""
    return windowed_sinc(n_in, n_out, np.sinc, LOBES)


def none(n_in: int, n_out: int, interpolate: Interpolate) -> np.ndarray:
    """Interpolate between the voxels as they are; (n_out, n_in) float64."""
    return interpolate(np.eye(n_in), n_out)


FILTERS: dict[str, Filter] = {
    "gaussian": gaussian,
    "hamming_sinc": hamming_sinc,
    "lanczos": lanczos,
    "none": none,
}
OVERSHOOTS = ("hamming_sinc", "lanczos")  # weights below 0: the result is clipped to the range of its image


def windowed_sinc(n_in: int, n_out: int, window: Callable[[np.ndarray], np.ndarray], lobes: int) -> np.ndarray:
    """Weights of an axis of `n_in` voxels that shrinks to `n_out`: a sinc of the new grid, cut off smoothly.

    Args:
        window: of -1 to 1; the sinc has `lobes` lobes each side within it, the central one counted once.

    Returns:
        (n_out, n_in) float64; rows sum to 1.
    """
    factor = n_in / n_out
    margin = int(np.ceil(lobes * factor)) + 1
    centres = (np.arange(n_out) + 0.5) * factor - 0.5
    distance = (np.arange(-margin, n_in + margin) - centres[:, None]) / factor  # in new voxels
    weights = np.where(np.abs(distance) < lobes, np.sinc(distance) * window(distance / lobes), 0.0)
    weights /= weights.sum(axis=1, keepdims=True)
    folded = weights[:, margin : margin + n_in].copy()
    folded[:, 0] += weights[:, :margin].sum(axis=1)
    folded[:, -1] += weights[:, margin + n_in :].sum(axis=1)
    return folded


@dataclass(frozen=True)
class LowPass:
    """Which axes are filtered before they shrink, and how."""

    filter: str  # a key of FILTERS
    above: float  # an axis whose extent shrinks by a larger factor is filtered

    def weights(self, n_in: int, n_out: int, interpolate: Interpolate) -> np.ndarray:
        """Weights (n_out, n_in) float64 that take an axis to its new extent, filtered if it shrinks by enough."""
        name = self.filter if n_in / n_out > self.above else "none"
        return FILTERS[name](n_in, n_out, interpolate)

    @property
    def overshoots(self) -> bool:
        """Whether results may leave the range of the image."""
        return self.filter in OVERSHOOTS


NO_LOW_PASS = LowPass("none", np.inf)
