"""Plans made at once: no image is read, and memory follows from a formula.

plan          the plan of any fingerprint
plan_of       the plan of five equal small cases, with changes
with_cascade  a plan with the two stages of a cascade, for networks that train in seconds
decided       what a plan decided in one step, and why
golden_pair   the fingerprints behind tests/golden/
"""

from collections.abc import Sequence
from dataclasses import fields, replace

from autoseg.imaging.labels import LabelSet
from autoseg.planning.fingerprint import Fingerprint
from autoseg.planning.plan import NetworkSpec, Plan, Training
from autoseg.planning.planner import Wishes, make_plan
from synthetic_fingerprints import boxes, case, fingerprint, label_set, uniform
from synthetic_memory import ElementMemory

ONE = (1.0, 1.0, 1.0)
THREE = label_set(3)  # background and two labels
WISHES = {field.name for field in fields(Wishes)}
RECIPE = {field.name for field in fields(Training)}
SMALL_UNET = NetworkSpec(
    name="unet",
    features=(8, 16),
    strides=((1, 1, 1), (2, 2, 2)),
    kernel_sizes=((3, 3, 3), (3, 3, 3)),
    blocks=(1, 1),
    decoder_blocks=(1,),
)


def plan(found: Fingerprint, labels: LabelSet, **options) -> Plan:
    """The plan of a fingerprint; `options`: wishes, and `memory` and `pace` of `make_plan`."""
    wishes = Wishes(**{name: options.pop(name) for name in WISHES & set(options)})
    options = {"memory": ElementMemory()} | options
    return make_plan(
        dataset="test", channels=found.channels, labels=labels, fingerprint=found, wishes=wishes, **options
    )


def plan_of(
    labels: LabelSet = THREE,
    channels: Sequence[str] = ("MR",),
    spacing: Sequence[float] = (2.0, 1.0, 1.0),
    shape: Sequence[int] = (12, 20, 24),
    **changes: object,
) -> Plan:
    """The plan of five equal small cases, where each label is one box; changed are its fields, or its recipe's."""
    made = plan(uniform(spacing, shape, 5, labels, channels=channels), labels)
    recipe = {name: changes.pop(name) for name in RECIPE & set(changes)}
    return replace(made, training=replace(made.training, **recipe), **changes)


def with_cascade(plan: Plan) -> Plan:
    """The plan with a small 3d_fullres, and the two configurations of a cascade of it.

    `3d_lowres` sees images at twice the spacing of `3d_fullres`, `3d_cascade` its segmentations at full resolution.
    """
    full = replace(plan.configurations["3d_fullres"], patch_size=(8, 16, 16), batch_size=2, network=SMALL_UNET)
    z, y, x = full.spacing
    low = replace(full, data="3d_lowres", spacing=(2 * z, 2 * y, 2 * x), patch_size=(6, 10, 12))
    cascade = replace(full, cascade_from="3d_lowres")
    made = {"3d_fullres": full, "3d_lowres": low, "3d_cascade": cascade}
    return replace(plan, configurations={**plan.configurations, **made}, recommended="3d_fullres")


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
