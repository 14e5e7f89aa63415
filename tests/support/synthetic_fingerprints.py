"""Fingerprints made up for tests of the planning rules: every case alike, except where a test says otherwise."""

from collections.abc import Mapping, Sequence

from autoseg.imaging.labels import LabelSet
from autoseg.planning.fingerprint import VERSION, CaseFingerprint, ChannelStatistics, ComponentSizes, Fingerprint

STATISTICS = ChannelStatistics(mean=80.0, median=90.0, std=40.0, min=-200.0, max=400.0, p00_5=-50.0, p99_5=250.0)


def label_set(entries: int) -> LabelSet:
    """Labels whose table has so many entries, background included."""
    return LabelSet({f"label{i}": i for i in range(1, entries)})


def boxes(count: int, extent_voxels: Sequence[int], spacing: Sequence[float]) -> ComponentSizes:
    """So many equal solid boxes."""
    z, y, x = (float(e * s) for e, s in zip(extent_voxels, spacing, strict=True))
    described = min(count, 64)
    return ComponentSizes(count, (z * y * x,) * described, ((z, y, x),) * described)


def case(
    number: int,
    spacing: Sequence[float],
    shape: Sequence[int],
    components: Mapping[str, ComponentSizes],
    names: Sequence[str],
    before_crop: Sequence[int] | None = None,
) -> CaseFingerprint:
    """One case whose labels fill their components' volumes exactly."""
    voxel = spacing[0] * spacing[1] * spacing[2]
    volumes = {n: sum(c.volumes_mm3) * c.count / len(c.volumes_mm3) / voxel for n, c in components.items()}
    return CaseFingerprint(
        id=f"case{number:04d}",
        shape=tuple(before_crop or shape),
        shape_after_crop=tuple(shape),
        spacing=tuple(float(s) for s in spacing),
        class_voxels={name: round(volumes.get(name, 0)) for name in names},
        components=dict(components),
        ignored_voxels=0,
        foreground_outside_crop=0,
        digest=f"{number:032x}",
    )


def fingerprint(cases: Sequence[CaseFingerprint], labels: LabelSet, channels: Sequence[str] = ("MR",)) -> Fingerprint:
    return Fingerprint(
        version=VERSION,
        channels=tuple(channels),
        labels=tuple(labels.values),
        cases=tuple(cases),
        statistics=(STATISTICS,) * len(channels),
        notes=(),
    )


def uniform(
    spacing: Sequence[float],
    shape: Sequence[int],
    num_cases: int,
    labels: LabelSet,
    components: Mapping[str, ComponentSizes] | None = None,
    channels: Sequence[str] = ("MR",),
) -> Fingerprint:
    """Equal cases; unless given, each label is one box of half the image."""
    if components is None:
        half = [max(1, extent // 2) for extent in shape]
        components = {name: boxes(1, half, spacing) for name in labels.values}
    names = list(labels.values)
    return fingerprint([case(i, spacing, shape, components, names) for i in range(num_cases)], labels, channels)
