"""The planning rules, numbered. Every value they choose is recorded with its reason, and printed by `autoseg plan`.

    1  space           1.1 spacing  1.2 spacing guard  1.3 axis order  1.4 configurations  1.5 objects
    2  intensities     2.1 normalisation  2.2 resampling
    3  configuration   3.0 step  3.1 first patch  3.2 patch wanted  3.3 patch  3.4 network  3.5 batch  3.6 batch Dice
                       3.7 receptive field  3.8 memory  3.9 nnU-Net  3.10 preprocessed copies  3.11 lowres
                       3.12 steps
    4  recommended     4.1 configuration
    5  training        5.1 recipe  5.2 loss  5.3 class weights  5.4 foreground  5.5 cases  5.6 classes  5.7 mirroring
                       5.8 patience
    6  what would change the plan

`rules="nnunet"` follows only nnU-Net v2: its plain planner, or with a preset its residual-encoder planners.
`rules="autoseg"` adds rules for sizes and counts of components (`planning/sparsity.py`), keeps left and right apart,
counts bytes where nnU-Net counts elements, and plans for a CPU where no GPU is requested.
`planning/space.py` makes the choices of section 1, `planning/configurations.py` those of section 3 and
`planning/recipe.py` those of section 5; `budget.py` holds the numbers, `topology.py` the
arithmetic of patches, `cost.py` the memory model's answers.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, cast

import numpy as np

from autoseg.datasets.objects import border_width, describe_objects
from autoseg.errors import UsageError
from autoseg.imaging.labels import LabelSet
from autoseg.imaging.normalize import scheme_for
from autoseg.messages import typed_duration
from autoseg.planning.budget import CPU, GPU, PRESETS, Budget, Preset
from autoseg.planning.configurations import Sizing, View, plan_configuration
from autoseg.planning.cost import Memory, TracedMemory
from autoseg.planning.fingerprint import Fingerprint
from autoseg.planning.pace import ENOUGH_STEPS, Pace, pace_of
from autoseg.planning.plan import VERSION, ChannelNormalization, Configuration, Plan, Resampling
from autoseg.planning.recipe import base_recipe, plan_training
from autoseg.planning.request import Request, Rules, Wishes, describe, text, validate
from autoseg.planning.space import ANISOTROPY, Space, plan_space
from autoseg.planning.tables import NETWORKS, loss_traits
from autoseg.planning.topology import initial_patch, shrinking

__all__ = ["Rules", "Wishes", "describe", "make_plan", "with_network"]

MASKED_BELOW = 0.75  # of the image: z-scores are taken inside the body where its box is smaller (nnU-Net v2)
FEW_SLICES = 4  # at most this many thick slices are a set of slices rather than a volume
NO_LOW_PASS = 1e9  # an anti-alias factor that is never reached
PATCH_SHARE = 0.25  # of the median image's voxels: a patch that covers less needs a lower resolution (nnU-Net v2)
LOWRES_STEP = 1.03  # factor of the search for the lower resolution (nnU-Net v2)
LOWRES_SAVES = 2.0  # times fewer voxels, or a lower resolution is not worth training (nnU-Net v2)


def make_plan(
    *,
    dataset: str,
    channels: Sequence[str],
    labels: LabelSet,
    fingerprint: Fingerprint,
    wishes: Wishes = Wishes(),
    memory: Memory | None = None,
    pace: Pace | None = None,
) -> Plan:
    """Derive the plan of a dataset.

    Args:
        dataset: its name.
        channels: names of the channels, in order.
        wishes: rules, network, device and overrides.
        memory: predicts the cost of training steps; None: traces them.
        pace: of the CPU, and the time of a fold, that steps are sized for; None: not known, and steps are as large as
            measurements justify. Not used in a plan for a GPU.

    Raises:
        UsageError: wishes that exclude each other, an override of the wrong length or not positive, or a GPU too
            small for any plan.
        StateError: the fingerprint was made for other channels or labels.
    """
    budget = _budget(wishes.rules, wishes.preset, wishes.device, wishes.vram_gb)
    pace = pace if budget.gigabytes is None else None
    asked = Request(
        channels=tuple(channels), labels=labels, fingerprint=fingerprint, rules=wishes.rules,
        preset=wishes.preset or ("s" if budget is CPU else None),
        network=_network(wishes.network, budget, wishes.rules),
        budget=pace.limits(budget) if pace else budget, memory=cast(Memory, memory), pace=pace,
        orientation=wishes.orientation,
        patch_size=None if wishes.patch_size is None else tuple(wishes.patch_size),
        spacing=None if wishes.spacing is None else tuple(wishes.spacing), batch_size=wishes.batch_size,
    )  # fmt: skip
    validate(asked)
    if memory is None:
        asked = replace(asked, memory=TracedMemory(labels, base_recipe(asked), asked.device, pace=pace))
    return _planned(asked, dataset)


def _planned(asked: Request, dataset: str) -> Plan:
    """Apply the numbered rules in order: space, intensities, configurations, recommendation, training."""
    space, choices = plan_space(asked.fingerprint, asked.spacing, asked.ours)
    for choice in choices:
        asked.decide(*choice)
    if asked.patch_size is not None and len(asked.patch_size) == 3:
        asked = replace(asked, patch_size=tuple(asked.patch_size[axis] for axis in space.axis_order))
    names = _plan_names(asked, space)
    for thing, measured in asked.fingerprint.objects.items():
        width = border_width(measured)
        asked.decide(f"1.5 objects ({thing})", f"core, border {width}", describe_objects(thing, measured))
    normalization = _plan_normalization(asked)
    resampling = _plan_resampling(asked)
    _plan_step_limits(asked)
    configurations = _plan_configurations(asked, space, names)
    recommended = _recommend(asked, space)
    training = plan_training(asked, space, configurations[recommended])
    _say_what_would_change(asked, configurations)
    return Plan(
        version=VERSION,
        dataset=dataset,
        channels=asked.channels,
        labels=asked.labels,
        orientation=asked.orientation,
        axis_order=space.axis_order,
        normalization=normalization,
        resampling=resampling,
        configurations=configurations,
        recommended=recommended,
        training=training,
        rules=asked.rules,
        preset=asked.preset,
        device=asked.device,
        vram_gb=asked.budget.gigabytes,
        fingerprint=asked.fingerprint.hash,
        decisions=(*asked.decisions, *asked.changes),
    )


def with_network(plan: Plan, fingerprint: Fingerprint, network: str, memory: Memory | None = None) -> Plan:
    """The same plan with another network: patches, batches and the optimiser are chosen again.

    Preprocessing stays the same, so that models of both read the same preprocessed copies and can form an ensemble.
    `decisions` are those about the network.

    Raises:
        UsageError: there is no such network, or the plan's GPU is too small for it.
    """
    budget = _budget(plan.rules, plan.preset, plan.device, plan.vram_gb)
    pace = pace_of(plan)
    asked = Request(
        channels=plan.channels,
        labels=plan.labels,
        fingerprint=fingerprint,
        rules=plan.rules,
        preset=plan.preset,
        network=_network(network, budget, plan.rules),
        budget=pace.limits(budget) if pace else budget,
        memory=cast(Memory, memory),
        pace=pace,
        orientation=plan.orientation,
    )
    validate(asked)
    recipe = base_recipe(asked)
    if memory is None:
        asked = replace(asked, memory=TracedMemory(plan.labels, recipe, asked.device, pace=pace))
    stored = dict(zip(plan.axis_order, _full_spacing(plan), strict=True))
    space, _ = plan_space(fingerprint, [stored[axis] for axis in range(3)], asked.ours)
    configurations = {}
    for name, old in plan.configurations.items():
        if old.prompts:  # added to the plan of a network when its prompts are trained
            continue
        grid = space.at((*space.spacing[: 3 - old.dims], *old.spacing))
        new = plan_configuration(asked, grid, name, old.dims, cascade_from=old.cascade_from)
        configurations[name] = replace(new, data=old.data, batch_dice=old.batch_dice)
    training = replace(
        plan.training, optimizer=recipe.optimizer, learning_rate=recipe.learning_rate, weight_decay=recipe.weight_decay
    )
    if loss_traits(recipe.loss).queries or loss_traits(plan.training.loss).queries:  # not every network has them
        training = replace(training, loss=recipe.loss, loss_options=recipe.loss_options)
    decisions = (*asked.decisions, *asked.changes)
    return replace(plan, configurations=configurations, training=training, decisions=decisions)


def _full_spacing(plan: Plan) -> Sequence[float]:
    """Target spacing (3,) in the plan's axis order; that across slices is unknown in a plan of only slices."""
    if "3d_fullres" in plan.configurations:
        return plan.configurations["3d_fullres"].spacing
    return (1.0, *plan.configurations["2d"].spacing)


def _budget(rules: Rules, preset: Preset | None, device: Literal["cpu", "gpu"], vram_gb: float | None) -> Budget:
    if vram_gb is not None and not 0 < vram_gb < math.inf:
        raise UsageError(f"{vram_gb} GB of GPU memory are not a positive number", remedy="write --vram 8")
    if preset is not None and preset not in PRESETS:
        raise UsageError(f"there is no preset {preset!r}", remedy=f"there are: {', '.join(PRESETS)}")
    if preset == "s":
        if vram_gb is not None or rules == "nnunet":
            raise UsageError(
                "preset s is autoseg's recipe for a CPU: it excludes --vram and nnU-Net's rules",
                remedy="choose m, l or xl",
            )
        return CPU
    if preset is None and device == "cpu" and vram_gb is None and rules == "autoseg":
        return CPU
    budget = PRESETS[preset] if preset else GPU
    return budget if vram_gb is None else budget.scaled(vram_gb)


def _network(name: str | None, budget: Budget, rules: Rules) -> str:
    name = name or budget.network
    if name not in NETWORKS:
        raise UsageError(f"there is no network {name!r}", remedy=f"there are: {', '.join(NETWORKS)}")
    if rules == "nnunet" and name != budget.network:
        raise UsageError(
            f"nnU-Net's rules do not plan {name} here",
            remedy="they plan unet, or residual_unet with --preset m, l or xl; omit --rules nnunet for others",
        )
    return name


def _plan_names(asked: Request, space: Space) -> dict[str, int]:
    """Configurations at full resolution -> their dimensions."""
    shape = f"median shape after resampling is {text(tuple(space.median_shape))}"
    if space.median_shape[0] > 1:
        asked.decide("1.4 configurations", "2d, 3d_fullres", f"{shape}; lower resolutions follow from the patch (3.11)")
        return {"2d": 2, "3d_fullres": 3}
    asked.decide("1.4 configurations", "2d", f"{shape}: single slices have no third dimension")
    return {"2d": 2}


# ---- 2  intensities


def _plan_normalization(asked: Request) -> tuple[ChannelNormalization, ...]:
    kept = float(np.median([case.relative_size_after_crop for case in asked.fingerprint.cases]))
    planned = []
    for name, known in zip(asked.channels, asked.fingerprint.statistics, strict=True):
        scheme = scheme_for(name)
        inside = scheme == "zscore" and kept < MASKED_BELOW
        reason = f"by the channel's name; foreground {known.mean:.4g} ± {known.std:.4g}"
        if scheme == "zscore":
            reason += f"; the body's box is {kept:.0%} of the image (below {MASKED_BELOW:.0%}, a mask is used)"
        asked.decide(f"2.1 normalisation ({name})", f"{scheme}, inside the mask" if inside else scheme, reason)
        planned.append(ChannelNormalization(scheme, inside, **known.foreground))
    for note in asked.fingerprint.notes:
        asked.decide("2.1 note", "measured", note)
    return tuple(planned)


def _plan_resampling(asked: Request) -> Resampling:
    resampling = Resampling() if asked.ours else Resampling(antialias_factor=NO_LOW_PASS)
    reason = f"an axis more than {resampling.anisotropy_threshold:g} times coarser is resampled separately"
    if asked.ours:
        reason += f"; axes that shrink by more than {resampling.antialias_factor:g} are low-pass filtered first"
    orders = f"order {resampling.image_order}, {resampling.coarse_axis_order} across slices"
    asked.decide("2.2 resampling", orders, reason)
    return resampling


# ---- 3  configurations


def _plan_step_limits(asked: Request) -> None:
    """Rule 3.0: maximum cost of a CPU's step."""
    pace = asked.pace
    if pace is None:
        return
    limits = {dims: f"{count:.3g} elements in {dims}-D" for dims, count in asked.budget.elements.items()}
    rates = ", ".join(f"{rate / 1e9:.3g} in {dims}-D" for dims, rate in sorted(pace.flops_per_second.items()))
    held = [f"{dims}-D" for dims, count in asked.budget.elements.items() if count < CPU.elements[dims]]
    reason = f"G operations per second of training: {rates} ({pace.source}); a fold of {typed_duration(pace.seconds)} "
    if held:
        reason += f"would make fewer than {ENOUGH_STEPS} steps of the usual size: smaller in {' and '.join(held)}"
    else:
        reason += f"makes {ENOUGH_STEPS} steps of the usual size; no measurement favours larger ones"
    asked.decide("3.0 step", ", ".join(limits.values()), reason)


def _plan_configurations(asked: Request, space: Space, names: dict[str, int]) -> dict[str, Configuration]:
    """Those of full resolution, and 3d_lowres and the cascade where a patch covers little of an image."""
    configurations = {name: plan_configuration(asked, space, name, dims) for name, dims in names.items()}
    if "3d_fullres" not in configurations:
        return configurations
    configurations = _share_copies(asked, space, configurations)
    fullres = configurations["3d_fullres"]
    coarse = _plan_lowres(asked, space, fullres)
    if coarse is None:
        return configurations
    # nnU-Net v2's rule: where a patch covers little of an image, a label may be absent from most
    fullres = replace(fullres, batch_dice=True)
    lowres = plan_configuration(asked, coarse, "3d_lowres", 3)
    cascade = _plan_cascade(asked, space, fullres)
    return configurations | {"3d_fullres": fullres, "3d_lowres": lowres, "3d_cascade": cascade}


def _share_copies(asked: Request, space: Space, configurations: dict[str, Configuration]) -> dict[str, Configuration]:
    """Let 2d read the preprocessed copy of 3d_fullres where the two would be equal."""
    if space.slices_stay:
        asked.decide("3.10 preprocessed copies", "3d_fullres for both", "no case is resampled across its slices")
        return configurations | {"2d": replace(configurations["2d"], data="3d_fullres")}
    asked.decide("3.10 preprocessed copies", "one each", "2d keeps the slices of each case, 3d_fullres resamples them")
    return configurations


def _plan_lowres(asked: Request, space: Space, fullres: Configuration) -> Space | None:
    """Rule 3.11: the finest lower resolution at which a patch covers PATCH_SHARE of an image; None if none is needed.

    nnU-Net v2's search: all axes grow by LOWRES_STEP, but first those finer than half the coarsest. Where bytes limit
    the patch, the elements of the patch that fitted at full resolution replace them during the search.
    """
    share = math.prod(fullres.patch_size) / float(np.prod(space.median_shape))
    shown = f"a patch of 3d_fullres covers {share:.0%} of the median image"
    if share >= PATCH_SHARE:
        asked.decide("3.11 lowres", "not needed", f"{shown}; {PATCH_SHARE:.0%} is enough")
        return None
    budget = asked.budget
    if asked.by_memory:
        budget = replace(budget, patch_elements=budget.patch_elements | {3: float(fullres.elements)})
    coarse = space
    while share < PATCH_SHARE:
        fine = coarse.spacing.max() / coarse.spacing > 2
        growing = fine if fine.any() else np.ones(3, dtype=bool)
        coarse = space.at((coarse.spacing * np.where(growing, LOWRES_STEP, 1.0)).tolist())
        view = View("3d_lowres", 3, coarse, len(asked.channels), len(asked.fingerprint.cases))
        first = initial_patch(view.spacing, view.median_shape)
        patches = shrinking(
            view.spacing, first, median_shape=view.median_shape, needed=[0.0] * 3, min_edge=budget.min_edge,
            compact=asked.ours and budget.compact_patch,
        )  # fmt: skip
        fit = Sizing(replace(asked, budget=budget), view).fit(patches)
        share = math.prod(fit.topology.patch_size) / float(np.prod(coarse.median_shape))
    saved = float(np.prod(space.median_shape) / np.prod(coarse.median_shape))
    reason = f"{shown}; at this spacing {share:.0%}, with {saved:.3g} times fewer voxels"
    if saved < LOWRES_SAVES:
        asked.decide("3.11 lowres", "dropped", f"{reason}: less than {LOWRES_SAVES:g} times fewer does not pay")
        return None
    asked.decide("3.11 lowres", tuple(coarse.spacing), f"{reason}; 3d_cascade refines its segmentation")
    return coarse


def _plan_cascade(asked: Request, space: Space, fullres: Configuration) -> Configuration:
    """3d_fullres, with the segmentation of 3d_lowres as further channels, which may reduce its patch."""
    start = fullres.patch_size if asked.by_memory else None
    planned = plan_configuration(asked, space, "3d_cascade", 3, cascade_from="3d_lowres", start=start)
    return replace(planned, data=fullres.data, batch_dice=True)


# ---- 4  recommended


def _recommend(asked: Request, space: Space) -> str:
    """3-D wherever there is depth; 2-D where slices are so thick and few that neighbours carry little information."""
    slices, thick = float(space.median_shape[0]), space.anisotropy
    if slices <= 1:
        name, reason = "2d", "single slices"
    elif thick > ANISOTROPY and slices <= FEW_SLICES:
        name, reason = "2d", f"{slices:g} slices, each {thick:.3g} times as thick as its voxels are wide"
    else:
        name, reason = "3d_fullres", f"{slices:g} slices, each {thick:.3g} times as thick as its voxels are wide"
    asked.decide("4.1 recommended", name, reason)
    return name


# ---- 6  what would change the plan


def _say_what_would_change(asked: Request, configurations: dict[str, Configuration]) -> None:
    if asked.device == "cpu":
        asked.change("device", "--vram GB, or --preset m, l, xl", "plan for a GPU: larger patches, larger networks")
    known = all(c.cost is not None and c.cost.seconds_per_step is not None for c in configurations.values())
    if not (known and asked.memory.measured):
        reason = "measures this machine, and replaces conservative memory estimates"
        asked.change("device", "autoseg calibrate", reason)
    if "3d_lowres" in configurations:
        asked.change(
            "cascade", "-c 3d_cascade", "trains 3d_lowres first: for structures that 3d_fullres confuses locally"
        )
