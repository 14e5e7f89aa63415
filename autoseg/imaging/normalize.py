"""Normalise the intensities of one channel for the network, and choose the scheme by the channel's name.

The formulas are nnU-Net v2's. A scheme is one function `(channel, mask, statistics) -> float32` and one line in
NORMALIZERS; its name is used in `plan.json`, and selects it when a channel has that name. No scheme writes into its
input. A constant channel becomes exactly 0.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import Annotated

import numpy as np

from autoseg.errors import DataError, UsageError
from autoseg.rules import between

_EPS = 1e-8  # smallest divisor
_CHUNK = 1 << 20  # voxels squared in float64 at once
_RGB_MAX = 255.0
_AIR_HU = -900.0  # air is -1000 HU; noise and partial volume lift a sampled minimum a little, never by 100
_LOWEST_HU = -10000.0  # scanners pad with -1024, -2000 or -3024
_HIGHEST_HU = 32767.0  # 16-bit storage; metal saturates
_DENSE_HU = 2500.0  # compact bone ends below; only metal and teeth are denser, far less than one voxel in a hundred


Intensity = Annotated[float, between(-3.4e38, 3.4e38)]  # the range of float32


@dataclass(frozen=True, kw_only=True)
class ForegroundStatistics:
    """Intensities of one channel in the foreground of the whole dataset.

    The fingerprint's record (`ChannelStatistics`) and the plan's (`ChannelNormalization`) extend it. The defaults are
    for a channel whose normalisation needs no statistics.
    """

    mean: Intensity = 0.0
    std: Annotated[float, between(0, 3.4e38)] = 1.0
    p00_5: Intensity = 0.0
    p99_5: Intensity = 0.0

    @property
    def foreground(self) -> dict[str, float]:
        """Only these values, by name: to copy them from one record to another."""
        return {name: getattr(self, name) for name in STATISTICS}


STATISTICS = tuple(field.name for field in fields(ForegroundStatistics))


Normalizer = Callable[[np.ndarray, np.ndarray | None, ForegroundStatistics], np.ndarray]


def normalize(
    channel: np.ndarray,
    scheme: str,
    *,
    mask: np.ndarray | None = None,
    statistics: ForegroundStatistics = ForegroundStatistics(),
) -> np.ndarray:
    """Normalise one channel (Z, Y, X) by a named scheme; float32, same shape.

    Args:
        channel: intensities, float32.
        scheme: a key of NORMALIZERS.
        mask: bool (Z, Y, X), the imaged body: "zscore" measures inside it and writes 0 outside. The others ignore it.
        statistics: of the dataset's foreground; of the schemes here, only "ct" uses them.

    Raises:
        UsageError: no such scheme.
        DataError: intensities that the scheme does not accept.
    """
    if scheme not in NORMALIZERS:
        raise UsageError(f"there is no normalisation {scheme!r}", remedy=f"choose one of {', '.join(NORMALIZERS)}")
    return NORMALIZERS[scheme](channel, mask, statistics)


def _ct(channel: np.ndarray, mask: np.ndarray | None, statistics: ForegroundStatistics) -> np.ndarray:
    """Clip to the foreground's 0.5th..99.5th percentile, subtract its mean, divide by its standard deviation."""
    if statistics.p00_5 >= statistics.p99_5:  # the window contains one value
        return np.zeros(channel.shape, dtype=np.float32)
    clipped = np.clip(channel.astype(np.float32, copy=False), statistics.p00_5, statistics.p99_5)
    clipped -= statistics.mean
    clipped /= max(statistics.std, _EPS)
    return clipped


def _zscore(channel: np.ndarray, mask: np.ndarray | None, statistics: ForegroundStatistics) -> np.ndarray:
    """Subtract the channel's own mean and divide by its standard deviation; inside the mask only, if there is one."""
    if mask is None:
        return _standardised(channel)
    normalized = np.zeros(channel.shape, dtype=np.float32)
    if mask.any():
        normalized[mask] = _standardised(channel[mask])
    return normalized


def _standardised(values: np.ndarray) -> np.ndarray:
    centred = np.subtract(values, np.float32(values.mean(dtype=np.float64)), dtype=np.float32, order="C")
    flat = centred.reshape(-1)
    parts = (flat[start : start + _CHUNK] for start in range(0, flat.size, _CHUNK))
    squares = sum(float(np.square(part, dtype=np.float64).sum()) for part in parts)
    centred /= max((squares / flat.size) ** 0.5, _EPS)
    return centred


def _rescale_to_0_1(channel: np.ndarray, mask: np.ndarray | None, statistics: ForegroundStatistics) -> np.ndarray:
    """Map the channel's own minimum to 0 and its maximum to 1."""
    lowest, highest = float(channel.min()), float(channel.max())
    rescaled = channel.astype(np.float32, copy=False) - np.float32(lowest)
    rescaled /= max(highest - lowest, _EPS)
    return rescaled


def _rgb_to_0_1(channel: np.ndarray, mask: np.ndarray | None, statistics: ForegroundStatistics) -> np.ndarray:
    """Divide 8-bit intensities by 255."""
    lowest, highest = float(channel.min()), float(channel.max())
    if not (lowest >= 0 and highest <= _RGB_MAX):
        raise DataError(
            f"a colour channel has values from {lowest:g} to {highest:g}, expected 0 to 255",
            remedy="name the channel after another scheme, for example --channels zscore or --channels rescale_to_0_1",
        )
    return channel.astype(np.float32, copy=False) / np.float32(_RGB_MAX)


def _none(channel: np.ndarray, mask: np.ndarray | None, statistics: ForegroundStatistics) -> np.ndarray:
    """Leave intensities unchanged."""
    return channel.astype(np.float32, copy=True)


NORMALIZERS: dict[str, Normalizer] = {
    "ct": _ct,
    "zscore": _zscore,
    "rescale_to_0_1": _rescale_to_0_1,
    "rgb_to_0_1": _rgb_to_0_1,
    "none": _none,
}

_BY_THE_IMAGE_ALONE = ("zscore", "rescale_to_0_1", "rgb_to_0_1", "none")


def by_parts(
    scheme: str, parts: Callable[[], Iterable[np.ndarray]], statistics: ForegroundStatistics
) -> Callable[[np.ndarray], np.ndarray] | None:
    """A scheme without a mask as a function of any part of a channel: the same values as of the whole, to rounding.

    Args:
        parts: gives all parts of the channel, float32; called each time that all are needed.

    Returns:
        None where the scheme is not one of those here: it may need all of the channel at once.
    """
    if scheme == "zscore":
        total, count = 0.0, 0
        for part in parts():
            total, count = total + float(part.sum(dtype=np.float64)), count + part.size
        mean = np.float32(total / count)
        squares = sum(float(np.square(part - mean, dtype=np.float64).sum()) for part in parts())
        divisor = max((squares / count) ** 0.5, _EPS)
        return lambda part: _shifted(part, mean, divisor)
    if scheme == "rescale_to_0_1":
        ends = [(float(part.min()), float(part.max())) for part in parts()]
        lowest, highest = min(low for low, _ in ends), max(high for _, high in ends)
        return lambda part: _shifted(part, np.float32(lowest), max(highest - lowest, _EPS))
    if scheme in ("ct", "none", "rgb_to_0_1"):
        return lambda part: NORMALIZERS[scheme](part, None, statistics)
    return None


def _shifted(part: np.ndarray, offset: np.float32, divisor: float) -> np.ndarray:
    shifted = np.subtract(part, offset, dtype=np.float32)
    shifted /= divisor
    return shifted


def uses_statistics(scheme: str) -> bool:
    """Whether a scheme depends on the dataset's foreground; assumed unless the scheme is known not to.

    If it does, weights trained under other statistics do not match.
    """
    return scheme not in _BY_THE_IMAGE_ALONE


_SCHEME_OF_CHANNEL = {  # names of channels that are not the name of a scheme
    "nonorm": "none",
    "r": "rgb_to_0_1",
    "g": "rgb_to_0_1",
    "b": "rgb_to_0_1",
    "red": "rgb_to_0_1",
    "green": "rgb_to_0_1",
    "blue": "rgb_to_0_1",
}


def scheme_for(channel_name: str) -> str:
    """The normalisation that a channel's name selects; "zscore" for any other name (nnU-Net v2's rule).

    The name of a scheme ("CT", "zscore", "rescale_to_0_1", "rgb_to_0_1", "none", or one that was added), "noNorm"; also
    R, G, B, red, green, blue and names that begin with "rgb". Upper and lower case alike.
    """
    name = channel_name.strip().lower()
    if name in NORMALIZERS:
        return name
    if name.startswith("rgb"):
        return "rgb_to_0_1"
    return _SCHEME_OF_CHANNEL.get(name, "zscore")


def looks_like_hounsfield(sample: np.ndarray) -> bool:
    """Whether intensities drawn from a whole image look like Hounsfield units.

    They are integers (to 1e-3, 19 of 20 of them), reach down to air (-900 or below, but no lower than scanners pad),
    and reach above water, nearly all of them no higher than bone. A CT cropped inside the body or clipped to a window
    shows no air and is not recognised.
    """
    values = np.asarray(sample, dtype=np.float64).ravel()
    if values.size == 0 or not np.isfinite(values).all():
        return False
    integer_like = np.mean(np.abs(values - np.round(values)) < 1e-3) >= 0.95
    reaches_air = _LOWEST_HU <= values.min() <= _AIR_HU
    reaches_tissue = 0 < values.max() <= _HIGHEST_HU and np.percentile(values, 99) <= _DENSE_HU
    return bool(integer_like and reaches_air and reaches_tissue)
