"""A plan with a cascade for tiny images: `from cascaded import with_cascade`.

Networks of two stages that train in seconds: `3d_lowres` sees images at twice the spacing of `3d_fullres`, `3d_cascade`
its segmentations at full resolution.
"""

from dataclasses import replace

from autoseg.planning.plan import NetworkSpec, Plan

NETWORK = NetworkSpec(
    name="unet",
    features=(8, 16),
    strides=((1, 1, 1), (2, 2, 2)),
    kernel_sizes=((3, 3, 3), (3, 3, 3)),
    blocks=(1, 1),
    decoder_blocks=(1,),
)


def with_cascade(plan: Plan) -> Plan:
    """The plan with a small 3d_fullres, and the two configurations of a cascade of it."""
    full = replace(plan.configurations["3d_fullres"], patch_size=(8, 16, 16), batch_size=2, network=NETWORK)
    z, y, x = full.spacing
    low = replace(full, data="3d_lowres", spacing=(2 * z, 2 * y, 2 * x), patch_size=(6, 10, 12))
    cascade = replace(full, cascade_from="3d_lowres")
    made = {"3d_fullres": full, "3d_lowres": low, "3d_cascade": cascade}
    return replace(plan, configurations={**plan.configurations, **made}, recommended="3d_fullres")
