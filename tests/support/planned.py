"""Plans of synthetic fingerprints, made at once, and the pair behind golden/: `from planned import decided, plan`."""

from autoseg.imaging.labels import LabelSet
from autoseg.planning.fingerprint import Fingerprint
from autoseg.planning.plan import Plan
from autoseg.planning.planner import make_plan
from synthetic_fingerprints import boxes, case, fingerprint
from synthetic_memory import ElementMemory

ONE = (1.0, 1.0, 1.0)


def plan(found: Fingerprint, labels: LabelSet, **options) -> Plan:
    options = {"memory": ElementMemory()} | options
    return make_plan(dataset="test", channels=found.channels, labels=labels, fingerprint=found, **options)


def decided(made: Plan, step: str) -> tuple[str, str]:
    """Value and reason of the one decision whose step starts like this."""
    (found,) = [d for d in made.decisions if d.step.startswith(step)]
    return found.value, found.reason


def golden_pair() -> dict[str, tuple[Fingerprint, LabelSet]]:
    """Ten CT cases of 120 x 256 x 256 voxels, 2 x 1 x 1 mm; one of the ten is stored with slices of 1 mm."""
    labels = LabelSet({"organ": 1, "lesion": 2})
    spacings = [(1.0, 1.0, 1.0)] * 2 + [(2.0, 1.0, 1.0)] * 8
    dense_parts = {"organ": boxes(1, (60, 128, 128), (2, 1, 1)), "lesion": boxes(1, (30, 64, 64), (2, 1, 1))}
    dense = [case(i, s, (120, 256, 256), dense_parts, labels.values) for i, s in enumerate(spacings)]
    sparse = []
    for i, spacing in enumerate(spacings):
        parts = {"organ": boxes(1, (4, 4, 4), (2, 1, 1))}
        if i < 4:
            parts["lesion"] = boxes(2, (0.45, 2, 2), (2, 1, 1))  # 0.9 mm thick: lost where 1 mm become 2 mm
        sparse.append(case(i, spacing, (120, 256, 256), parts, labels.values))
    return {
        name: (fingerprint(cases, labels, ("CT",)), labels) for name, cases in (("dense", dense), ("sparse", sparse))
    }
