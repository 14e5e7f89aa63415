"""The planning rules, numbered. Every value they choose is recorded with its reason, and printed by `autoseg plan`.

    1  space           1.1 spacing  1.2 spacing guard  1.3 axis order  1.4 configurations
    2  intensities     2.1 normalisation  2.2 resampling
    3  configuration   3.1 first patch  3.2 patch wanted  3.3 patch  3.4 network  3.5 batch  3.6 batch Dice
                       3.7 receptive field  3.8 preprocessed copies
    4  recommended     4.1 configuration
    5  training        5.1 recipe  5.2 loss  5.3 class weights  5.4 foreground  5.5 cases  5.6 classes  5.7 mirroring

`rules="nnunet"` follows nnU-Net v2's plain planner alone. `rules="autoseg"` adds what sizes and counts of components
say (`planning/sparsity.py`), keeps left and right apart, and plans for a CPU where no GPU is asked for.
`planning/space.py` makes the choices of section 1, `budget.py` holds the numbers, `topology.py` the arithmetic of
patches and networks.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal, cast

import numpy as np

from autoseg.errors import UsageError
from autoseg.fingerprint import Fingerprint
from autoseg.imaging.labels import LabelSet
from autoseg.imaging.normalize import scheme_for
from autoseg.plan import VERSION, ChannelNormalization, Configuration, NetworkSpec, Plan, Resampling, Training
from autoseg.planning import sparsity, topology
from autoseg.planning.budget import CPU, GIGABYTES, GPU, affordable_batch
from autoseg.planning.decisions import Orientation, Request, Rules, describe, text, validate
from autoseg.planning.laterality import fixed_order, left_right_pair
from autoseg.planning.space import ANISOTROPY, Space, plan_space

__all__ = ["Rules", "describe", "make_plan"]

MASKED_BELOW = 0.75  # of the image: z-scores are taken inside the body where its box is smaller (nnU-Net v2)
FEW_SLICES = 4  # so few thick slices are a set of slices rather than a volume
LEFT_RIGHT_AXIS = 2  # of an image in canonical orientation
NO_LOW_PASS = 1e9  # an anti-alias factor that nothing reaches


def make_plan(
    *,
    dataset: str,
    channels: Sequence[str],
    labels: LabelSet,
    fingerprint: Fingerprint,
    orientation: Orientation = "canonical",
    rules: Rules = "autoseg",
    device: Literal["cpu", "gpu"] = "cpu",
    vram_gb: float | None = None,
    patch_size: Sequence[int] | None = None,
    spacing: Sequence[float] | None = None,
    batch_size: int | None = None,
) -> Plan:
    """Derive the plan of a dataset.

    Args:
        dataset: its name.
        channels: names of the channels, in order.
        vram_gb: plan for a GPU with so much memory, whatever `device` says; a GPU without it is taken to have 8.
        patch_size: voxels; overrides the patch of 3d_fullres (Z, Y, X), or of 2d (its two axes).
        spacing: mm (Z, Y, X); overrides the target spacing.
        batch_size: overrides the batch size of all configurations.

    Overrides are in the axis order of the images; the plan permutes them.

    Raises:
        UsageError: an override of the wrong length, or not positive.
        StateError: the fingerprint was made for other channels or labels.
    """
    if vram_gb is not None and not 0 < vram_gb < math.inf:
        raise UsageError(f"{vram_gb} GB of GPU memory are not a positive number", remedy="write --vram 8")
    on_gpu = device == "gpu" or vram_gb is not None or rules == "nnunet"
    gigabytes = (GIGABYTES if vram_gb is None else vram_gb) if on_gpu else None
    asked = Request(
        channels=tuple(channels),
        labels=labels,
        fingerprint=fingerprint,
        rules=rules,
        budget=CPU if gigabytes is None else GPU.scaled(gigabytes / GIGABYTES),
        orientation=orientation,
        patch_size=None if patch_size is None else tuple(patch_size),
        spacing=None if spacing is None else tuple(spacing),
        batch_size=batch_size,
    )
    validate(asked)
    space, choices = plan_space(fingerprint, asked.spacing, asked.ours)
    for choice in choices:
        asked.decide(*choice)
    if asked.patch_size is not None and len(asked.patch_size) == 3:
        asked = replace(asked, patch_size=tuple(asked.patch_size[axis] for axis in space.axis_order))
    names = _plan_names(asked, space)
    normalization = _plan_normalization(asked)
    resampling = _plan_resampling(asked)
    configurations = {name: _plan_configuration(asked, space, name, dims) for name, dims in names.items()}
    configurations = _share_copies(asked, space, configurations)
    recommended = _recommend(asked, space)
    training = _plan_training(asked, space, configurations[recommended])
    return Plan(
        version=VERSION,
        dataset=dataset,
        channels=asked.channels,
        labels=labels,
        orientation=orientation,
        axis_order=space.axis_order,
        normalization=normalization,
        resampling=resampling,
        configurations=configurations,
        recommended=recommended,
        training=training,
        device="gpu" if on_gpu else "cpu",
        vram_gb=gigabytes,
        fingerprint=fingerprint.hash,
        decisions=tuple(asked.decisions),
    )


def _plan_names(asked: Request, space: Space) -> dict[str, int]:
    """Configurations to make -> their dimensions."""
    shape = f"median shape after resampling is {text(tuple(space.median_shape))}"
    if space.median_shape[0] > 1:
        asked.decide("1.4 configurations", "2d, 3d_fullres", shape)
        return {"2d": 2, "3d_fullres": 3}
    asked.decide("1.4 configurations", "2d", f"{shape}: single slices, with nothing to see across them")
    return {"2d": 2}


# ---- 2  intensities


def _plan_normalization(asked: Request) -> tuple[ChannelNormalization, ...]:
    kept = float(np.median([case.relative_size_after_crop for case in asked.fingerprint.cases]))
    planned = []
    for name, known in zip(asked.channels, asked.fingerprint.statistics, strict=True):
        scheme = cast(Literal["ct", "zscore", "rescale_to_0_1", "rgb_to_0_1", "none"], scheme_for(name))
        inside = scheme == "zscore" and kept < MASKED_BELOW
        reason = f"by the channel's name; foreground {known.mean:.4g} ± {known.std:.4g}"
        if scheme == "zscore":
            reason += f"; the body's box is {kept:.0%} of the image, below {MASKED_BELOW:.0%} the body is masked"
        asked.decide(f"2.1 normalisation ({name})", f"{scheme}, inside the mask" if inside else scheme, reason)
        planned.append(
            ChannelNormalization(
                scheme=scheme,
                inside_mask=inside,
                mean=known.mean,
                std=known.std,
                p00_5=known.p00_5,
                p99_5=known.p99_5,
            )
        )
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


# ---- 3  one configuration


def _plan_configuration(asked: Request, space: Space, name: str, dims: int) -> Configuration:
    spacing, median = tuple(map(float, space.spacing[-dims:])), tuple(map(float, space.median_shape[-dims:]))
    fit = _plan_patch(asked, space, name, dims)
    chosen, budget = fit.topology, asked.budget
    features = topology.feature_counts(chosen.stages, budget.base_features, budget.max_features[dims])
    convolutions = topology.CONVOLUTIONS_PER_STAGE
    network = NetworkSpec(
        name="unet",
        features=features,
        strides=chosen.strides,
        kernel_sizes=chosen.kernel_sizes,
        blocks=(convolutions,) * chosen.stages,
        decoder_blocks=(convolutions,) * (chosen.stages - 1),
    )
    asked.decide(
        f"3.4 network ({name})",
        f"{chosen.stages} stages, {features[0]} to {features[-1]} features",
        f"pools {text(network.num_pools)}; bottleneck {text(chosen.bottleneck)}; axes are halved together while "
        f"their spacings are within a factor of {topology.ISOTROPIC_WITHIN:g}, down to {budget.min_edge} voxels",
    )
    voxels = math.prod(space.median_shape.tolist()) * len(asked.fingerprint.cases)
    batch, reason = affordable_batch(budget, dims, fit.elements, math.prod(chosen.patch_size), voxels)
    if asked.batch_size is not None:
        batch, reason = asked.batch_size, f"given; by rule it would be {batch}"
    asked.decide(f"3.5 batch ({name})", batch, reason)
    batch_dice, reason = dims == 2, "nnU-Net v2's rule: over the batch in 2-D, per sample in 3-D"
    if asked.ours:
        sparse, why = sparsity.batch_dice(
            asked.fingerprint, sparsity.filled_share(space.table, chosen.patch_size, spacing)
        )
        batch_dice, reason = batch_dice or sparse, (why if sparse else f"{reason}; {why}")
    asked.decide(f"3.6 batch Dice ({name})", "over the batch" if batch_dice else "per sample", reason)
    field = topology.receptive_field(network.strides, network.kernel_sizes, network.blocks, network.decoder_blocks)
    asked.decide(
        f"3.7 receptive field ({name})",
        field,
        f"voxels seen by one output voxel, of a patch of {text(chosen.patch_size)}",
    )
    return Configuration(
        data=name,
        spacing=spacing,
        median_shape=median,
        patch_size=chosen.patch_size,
        batch_size=batch,
        batch_dice=batch_dice,
        network=network,
        receptive_field=field,
        memory_estimate=fit.elements,
    )


def _plan_patch(asked: Request, space: Space, name: str, dims: int) -> topology.Fit:
    """Rules 3.1 to 3.3: the largest patch of which two fit the budget, shaped to cover what it must show."""
    spacing, median = space.spacing[-dims:].tolist(), space.median_shape[-dims:].tolist()
    budget, labels = asked.budget, asked.labels
    limit = budget.elements[dims] / budget.min_batch
    first: Sequence[float] = topology.initial_patch(spacing, median)
    reason = f"equal edges in mm, {topology.START_VOXELS[dims]:.3g} voxels, within the median shape"
    if asked.ours and budget.trim_patch:
        first = topology.trimmed(spacing, first, budget.min_edge)
        reason += ", rounded down: padding costs time"
    if asked.patch_size is not None and len(asked.patch_size) == dims:
        first, reason, limit = asked.patch_size, "given", math.inf
    asked.decide(f"3.1 first patch ({name})", first, reason)

    def fit_patch(needed: Sequence[float]) -> topology.Fit:
        return topology.fit_patch(
            spacing,
            first,
            median_shape=median,
            needed=needed,
            limit=limit,
            base_features=budget.base_features,
            max_features=budget.max_features[dims],
            # entries of the label table, as nnU-Net counts them: background, labels or regions, ignore
            num_classes=1 + (len(labels.regions) or labels.num_labels) + (labels.ignore is not None),
            min_edge=budget.min_edge,
            compact=asked.ours and budget.compact_patch,
        )

    fit = fit_patch([0.0] * dims)
    sparing = ""
    if asked.ours:
        needed = np.minimum(sparsity.wanted_extent(space.table)[-dims:] / spacing, median).tolist()
        value, why, covering = _cover(fit, fit_patch, needed)
        asked.decide(f"3.2 patch wanted ({name})", value, why)
        sparing = ", sparing the axes that 3.2 needs" if covering is not fit else ""
        fit = covering
    reason = f"{fit.steps} steps of shrinking{sparing}; {fit.elements:.4g} elements a sample"
    if math.isfinite(limit):
        reason += f", at most {limit:.4g} for {budget.min_batch} samples a step"
    if not fit.fits:
        reason += "; more is not possible: this exceeds the budget"
    asked.decide(f"3.3 patch ({name})", fit.topology.patch_size, reason)
    return fit


def _cover(
    fit: topology.Fit, fit_patch: Callable[[Sequence[float]], topology.Fit], needed: Sequence[float]
) -> tuple[str, str, topology.Fit]:
    """Rule 3.2: try for a patch that covers what is needed (voxels); returns value, reason and patch.

    A need that cannot be met shapes nothing: a patch drawn out for one axis in vain is worse than a compact one.
    """
    wanted = f"at least {text([round(edge) for edge in needed])}"
    what = (
        f"{sparsity.CONTEXT:g} times the {sparsity.TYPICAL_QUANTILE:.0%} quantile of the extents of each label's "
        "components, within the median shape"
    )
    if not any(needed):
        return "nothing", "no component is known", fit
    if _meets(fit, needed):
        return wanted, f"{what}: covered", fit
    sparing = fit_patch(needed)
    if _meets(sparing, needed):
        return wanted, f"{what}: covered by shrinking the other axes", sparing
    return wanted, f"{what}: not covered", fit


def _meets(fit: topology.Fit, needed: Sequence[float]) -> bool:
    # half a voxel of tolerance: extents in mm are rounded
    return fit.fits and all(edge + 0.5 >= need for edge, need in zip(fit.topology.patch_size, needed, strict=True))


def _share_copies(asked: Request, space: Space, configurations: dict[str, Configuration]) -> dict[str, Configuration]:
    """Let 2d read the preprocessed copy of 3d_fullres where the two would be equal."""
    if "3d_fullres" not in configurations:
        return configurations
    if space.slices_stay:
        asked.decide("3.8 preprocessed copies", "3d_fullres for both", "no case is resampled across its slices")
        return configurations | {"2d": replace(configurations["2d"], data="3d_fullres")}
    asked.decide("3.8 preprocessed copies", "one each", "2d keeps the slices of each case, 3d_fullres resamples them")
    return configurations


# ---- 4  recommended


def _recommend(asked: Request, space: Space) -> str:
    """3-D wherever there is depth; slices where they are so thick, and so few, that neighbours say little."""
    slices, thick = float(space.median_shape[0]), space.anisotropy
    if slices <= 1:
        name, reason = "2d", "single slices"
    elif thick > ANISOTROPY and slices <= FEW_SLICES:
        name, reason = "2d", f"{slices:g} slices, each {thick:.3g} times as thick as its voxels are wide"
    else:
        name, reason = "3d_fullres", f"{slices:g} slices, each {thick:.3g} times as thick as its voxels are wide"
    asked.decide("4.1 recommended", name, reason)
    return name


# ---- 5  training


def _plan_training(asked: Request, space: Space, chosen: Configuration) -> Training:
    """Adapt the budget's recipe to the labels; sampling and weights are those of the recommended configuration."""
    recipe, labels = asked.budget.training, asked.labels
    asked.decide(
        "5.1 recipe",
        f"{recipe.optimizer}, {recipe.schedule}, {recipe.epochs} epochs of {recipe.iterations_per_epoch}",
        f"learning rate {recipe.learning_rate:g}, weight decay {recipe.weight_decay:g}; the recipe of this budget",
    )
    if labels.has_regions:
        recipe = replace(recipe, loss="dice_bce")
    why = "regions overlap: one sigmoid each" if labels.has_regions else "labels exclude each other: one softmax"
    asked.decide("5.2 loss", recipe.loss, why)
    if not asked.ours:
        asked.decide(
            "5.4 foreground", recipe.foreground_fraction, "nnU-Net v2's share of patches centred on foreground"
        )
        return replace(recipe, augmentation="nnunet")
    found = asked.fingerprint
    if chosen.dims == 3:
        patch, shapes, spacings = chosen.patch_size, space.shapes, np.broadcast_to(space.spacing, space.shapes.shape)
    else:  # a slice of the case as it is: resampled in the plane alone
        patch = (1, *chosen.patch_size)
        shapes = np.column_stack((space.case_shapes[:, 0], space.shapes[:, 1:]))
        spacings = np.column_stack((space.case_spacings[:, 0], np.broadcast_to(space.spacing[1:], (len(shapes), 2))))
    filled = sparsity.filled_share(space.table, chosen.patch_size, chosen.spacing)
    weights, why = sparsity.class_weights(found, labels, filled)
    asked.decide("5.3 class weights", f"{min(weights):.3g} to {max(weights):.3g}" if weights else "none", why)
    fraction, why = sparsity.foreground_fraction(sparsity.foreground_chance(space.table, shapes, spacings, patch))
    asked.decide("5.4 foreground", fraction, why)
    cases, why = sparsity.case_sampling(found)
    asked.decide("5.5 cases", cases, why)
    classes, why = sparsity.class_sampling(found)
    asked.decide("5.6 classes", classes, why)
    return replace(
        recipe,
        class_weights=weights,
        foreground_fraction=fraction,
        case_sampling=cases,
        class_sampling=classes,
        mirror_axes=_plan_mirroring(asked, space),
    )


def _plan_mirroring(asked: Request, space: Space) -> tuple[int, ...]:
    """Axes to mirror, in the plan's order; not left to right where labels tell the sides apart.

    Nor, where the budget is short of steps, along an axis on which labels keep their order: the network need not learn
    an anatomy that never comes. A 2-D configuration uses those above 0, less one: its planes are the plan's axes 1, 2.
    """
    pair = left_right_pair([*asked.labels.values, *asked.labels.regions])
    axes: tuple[int, ...] = (0, 1, 2)
    if pair is None:
        reason = "no two labels are the left and the right of one thing"
    elif asked.orientation == "canonical":
        axes = tuple(i for i in axes if space.axis_order[i] != LEFT_RIGHT_AXIS)
        reason = f"mirroring left to right would swap {pair[0]} and {pair[1]}"
    else:
        axes = ()
        reason = f"{pair[0]} and {pair[1]} are told apart, and without orientation no axis is known not to swap them"
    if not asked.budget.mirror_fixed_order:
        centroids = [case.centroids_mm for case in asked.fingerprint.cases]
        ordered = {i: order for i in axes if (order := fixed_order(centroids, space.axis_order[i]))}
        axes = tuple(i for i in axes if i not in ordered)
        reason += "".join(f"; along axis {i} {one} always lies before {other}" for i, (one, other) in ordered.items())
    asked.decide("5.7 mirroring", "axes " + ", ".join(map(str, axes)) if axes else "none", reason)
    return axes
