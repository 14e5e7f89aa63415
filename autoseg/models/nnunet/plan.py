"""What a trained nnU-Net v2 model says about itself, as a plan of autoseg that predicts the same.

Whatever decides a prediction is carried over exactly or refused with the reason: there is no nearest equivalent. What
only concerns training (batch, augmentation, optimiser) is nnU-Net's default.

Source: nnU-Net v2.8.1 (label_handling, default_preprocessor, default_normalization_schemes, default_resampling,
resample_torch).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from autoseg.datasets.inputs import FileNames
from autoseg.errors import AutosegError, StateError
from autoseg.imaging.labels import LabelSet
from autoseg.models.nnunet.description import DATASET, PLANS, Description, configuration_of
from autoseg.models.nnunet.network import architecture_of
from autoseg.planning.plan import (
    VERSION,
    ChannelNormalization,
    Configuration,
    Decision,
    Plan,
    Resampling,
    Training,
    TrainingGrids,
)
from autoseg.planning.topology import Topology, feature_map_elements, receptive_field
from autoseg.records import from_plain, to_plain
from autoseg.rules import MAX_EPOCHS

SCHEMES = {
    "ZScoreNormalization": "zscore",
    "CTNormalization": "ct",
    "NoNormalization": "none",
    "RescaleTo01Normalization": "rescale_to_0_1",
    "RGBTo01Normalization": "rgb_to_0_1",
}
READERS = ("SimpleITKIO", "NibabelIO", "NaturalImage2DIO", "Tiff3DIO")  # they leave the axes as they are stored
SPLINES, TORCH = "resample_data_or_seg_to_shape", "resample_torch_fornnunet"
NEVER = 1e9  # as a ratio of spacings: no axis is resampled separately, nothing is low-pass filtered
ANISOTROPY = 3.0  # nnU-Net's default


def plan_of(described: Description, name: str, mirror_axes: Sequence[int], epochs: int) -> Plan:
    """A plan by which autoseg sees images, runs the network and writes labels as nnU-Net does.

    Args:
        name: of the configuration; that of a previous stage is in the plan, too.
        mirror_axes: axes of the patch over whose flips the prediction is averaged.
        epochs: that were trained.

    Raises:
        StateError: something decides the prediction that autoseg does not have; the message names it.
    """
    _require_known_code(described, name)
    labels = _labels(described)
    configuration = configuration_of(described, name)
    previous = configuration.get("previous_stage")
    names = [name] if previous is None else [str(previous), name]
    dims = architecture_of(described, name).spec.dims
    if any(type(axis) is not int or not 0 <= axis < dims for axis in mirror_axes):
        raise described.refused("fold_*", f"it mirrors the axes {list(mirror_axes)} of a patch of {dims} axes")
    training = Training(
        epochs=min(max(1, epochs), MAX_EPOCHS), loss="dice_bce" if labels.has_regions else "dice_ce",
        augmentation="nnunet", patience=0, mirror_axes=tuple(sorted(axis + 3 - dims for axis in mirror_axes)),
        test_time_mirroring=bool(mirror_axes),
    )  # fmt: skip
    plans = described.plans
    origin = f"{plans.get('plans_name', 'its plans')} of {described.name}"
    try:
        plan = Plan(
            version=VERSION, dataset=described.name, channels=described.channels, labels=labels,
            orientation="as_stored", axis_order=_axis_order(described),
            normalization=_normalization(described, name), resampling=_resampling(described, name),
            configurations={each: _configuration(described, each, names[0]) for each in names},
            recommended=name, training=training, rules="nnunet", preset=None, device="gpu", vram_gb=None,
            fingerprint="", decisions=(Decision("0 imported", "nnU-Net v2", f"{origin}; no rule of autoseg decided"),),
            file_names=_file_names(described), grids=_grids(described),
        )  # fmt: skip
        return from_plain(Plan, to_plain(plan), "plan")
    except (KeyError, TypeError, ValueError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise described.refused(PLANS, f"configurations.{name}: {reason}", "copy the model again") from None
    except StateError as error:
        if "cannot be imported" in error.what:
            raise
        raise described.refused(PLANS, error.what) from None


def _configuration(described: Description, name: str, first: str) -> Configuration:
    found, spec = configuration_of(described, name), architecture_of(described, name).spec
    residual = spec.name == "residual_unet"
    divisor = tuple(math.prod(stride[axis] for stride in spec.strides) for axis in range(spec.dims))
    patch = tuple(found["patch_size"])
    if any(edge % multiple for edge, multiple in zip(patch, divisor, strict=True)):
        raise described.refused(PLANS, f"configurations.{name}.patch_size: {list(patch)} is not a multiple of what the "
                                f"strides divide by, {list(divisor)}")  # fmt: skip
    convolutions = [2 * n + (stage == 0) if residual else n for stage, n in enumerate(spec.blocks)]
    heads = _labels(described).num_heads
    laid_out = Topology(patch, spec.strides, spec.kernel_sizes, divisor)
    return Configuration(
        data=name, spacing=tuple(map(float, found["spacing"])),
        median_shape=tuple(max(1.0, float(n)) for n in found.get("median_image_size_in_voxels") or patch),
        patch_size=patch, batch_size=int(found.get("batch_size") or 2), batch_dice=bool(found.get("batch_dice")),
        network=spec,
        receptive_field=receptive_field(spec.strides, spec.kernel_sizes, convolutions, spec.decoder_blocks),
        elements=feature_map_elements(laid_out, spec.features, heads, spec.blocks, spec.decoder_blocks, residual),
        cascade_from=first if name != first else None,
    )  # fmt: skip


def _labels(described: Description) -> LabelSet:
    """The labels; the value that nnU-Net writes is the index of the head, so values run from 1 without a gap."""
    declared = described.dataset.get("labels")
    if not isinstance(declared, dict) or declared.get("background") != 0:
        raise described.refused(DATASET, f"labels: expected names with values, background 0, found {declared!r}")
    unions: dict[str, tuple[int, ...]] = {}
    for name, value in declared.items():
        values = tuple(value) if isinstance(value, list) else (value,)
        if not values or any(type(number) is not int or number < 0 for number in values):
            raise described.refused(
                DATASET, f"labels.{name}: expected a value of 0 or more, or several, found {value!r}"
            )
        unions[name] = values
    ignore = unions.pop("ignore", (None,))[0]
    values_used = sorted({number for values in unions.values() for number in values})
    expected = list(range(len(values_used))) + ([len(values_used)] if ignore is not None else [])
    if values_used + ([] if ignore is None else [ignore]) != expected:
        raise described.refused(
            DATASET, f"labels: nnU-Net numbers them from 0 without a gap, ignore last, found {declared}"
        )
    has_regions = any(len(values) > 1 for values in unions.values())
    foreground = {name: values for name, values in unions.items() if set(values) != {0}}
    if mixed := [name for name, values in foreground.items() if 0 in values]:
        raise described.refused(DATASET, f"labels.{mixed[0]}: the region contains the background")
    alone = {values[0]: name for name, values in foreground.items() if len(values) == 1}
    named = {alone.get(value, f"label_{value}"): value for value in values_used if value}
    try:
        if not has_regions:
            return LabelSet(named, ignore=ignore)
        order = tuple(described.dataset.get("regions_class_order") or ())
        return LabelSet(named, foreground, order, ignore)
    except (AutosegError, TypeError) as error:
        raise described.refused(DATASET, f"labels: {getattr(error, 'what', error)}") from None


def _normalization(described: Description, name: str) -> tuple[ChannelNormalization, ...]:
    """One entry per channel."""
    found, plans = configuration_of(described, name), described.plans
    properties = plans.get("foreground_intensity_properties_per_channel") or plans.get(
        "foreground_intensity_properties_by_modality", {}
    )
    schemes, masks = found["normalization_schemes"], found["use_mask_for_norm"]
    channels = len(described.channels)
    if not len(schemes) == len(masks) == channels:
        why = f"configurations.{name}: {len(schemes)} normalisations for {channels} channels"
        raise described.refused(PLANS, why, "copy the model again")
    entries = []
    for number, (scheme, mask) in enumerate(zip(schemes, masks, strict=True)):
        if scheme not in SCHEMES:
            why = f"configurations.{name}.normalization_schemes: {scheme}; autoseg has {', '.join(SCHEMES)}"
            raise described.refused(PLANS, why)
        measured = properties.get(str(number))
        if measured is None and scheme == "CTNormalization":
            why = f"CTNormalization needs the intensities of channel {number}, which the plans do not have"
            raise described.refused(PLANS, why, "copy the model again")
        keys = {"mean": "mean", "std": "std", "p00_5": "percentile_00_5", "p99_5": "percentile_99_5"}
        statistics = {ours: float(measured[theirs]) for ours, theirs in keys.items()} if measured else {}
        masked = bool(mask) and scheme == "ZScoreNormalization"  # the others do not look at the mask
        entries.append(ChannelNormalization(scheme=SCHEMES[scheme], inside_mask=masked, **statistics))
    return tuple(entries)


def _resampling(described: Description, name: str) -> Resampling:
    """How images and logits are resampled, which autoseg does by one threshold of anisotropy."""
    found = configuration_of(described, name)
    where = f"configurations.{name}.resampling_fn"
    order, coarse, threshold = _one_resampling(described, found, "data", where)
    of_logits = _one_resampling(described, found, "probabilities", where)
    if of_logits[:2] != (1, 0):
        why = (
            f"{where}_probabilities: order {of_logits[0]}, order_z {of_logits[1]}; autoseg resamples logits by 1 and 0"
        )
        raise described.refused(PLANS, why)
    others = {"probabilities": of_logits}
    if found.get("previous_stage"):
        others["seg"] = _one_resampling(described, found, "seg", where)
    for which, (_, _, other) in others.items():
        if other != threshold:
            why = f"{where}_{which} resamples slice by slice from a ratio of {other:g}, images from {threshold:g}"
            raise described.refused(PLANS, why)
    return Resampling(
        image_order=order, coarse_axis_order=coarse, anisotropy_threshold=threshold, antialias_factor=NEVER
    )


def _one_resampling(
    described: Description, configuration: Mapping[str, Any], which: str, where: str
) -> tuple[int, int, float]:
    """Spline order, order along a coarse axis, and the ratio of spacings from which an axis is one."""
    function = configuration.get(f"resampling_fn_{which}")
    given = dict(configuration.get(f"resampling_fn_{which}_kwargs") or {})
    given.pop("is_seg", None)
    for neutral in ("num_threads", "device", "memefficient_seg_resampling"):  # how fast, not what
        given.pop(neutral, None)
    threshold = float(given.pop("separate_z_anisotropy_threshold", ANISOTROPY))
    separate = given.pop("force_separate_z", False if function == SPLINES else None)
    if function == SPLINES:
        order, coarse = int(given.pop("order", 3)), int(given.pop("order_z", 0))
    elif function == TORCH:
        order, coarse = (1, 0) if given.pop("mode", "linear") == "linear" else (-1, 0)
        coarse = 0 if given.pop("aniso_axis_mode", "nearest-exact") == "nearest-exact" else -1
    else:
        raise described.refused(PLANS, f"{where}_{which} is {function}; autoseg has {SPLINES} and {TORCH}")
    if separate or given or order not in (0, 1, 3) or coarse not in (0, 1, 3):
        keywords = configuration.get(f"resampling_fn_{which}_kwargs")
        raise described.refused(PLANS, f"{where}_{which}_kwargs: {keywords} has no equivalent in autoseg")
    return order, coarse, NEVER if separate is False else threshold


def _require_known_code(described: Description, name: str) -> None:
    """Refuse plans that name code of nnU-Net (or of a user's own) that reads, prepares or decides differently."""
    configuration = configuration_of(described, name)
    reader = described.plans.get("image_reader_writer", "SimpleITKIO")
    if reader not in READERS:
        why = f"image_reader_writer is {reader}; autoseg reads images as {', '.join(READERS)} do"
        if str(reader).endswith("WithReorient"):
            why += ", and would see them the other way round"
        raise described.refused(PLANS, why)
    for what, expected, found in (
        ("preprocessor_name", "DefaultPreprocessor", configuration.get("preprocessor_name", "DefaultPreprocessor")),
        ("label_manager", "LabelManager", described.plans.get("label_manager", "LabelManager")),
    ):
        if found != expected:
            raise described.refused(PLANS, f"{what} is {found}, whose code is not part of the model; known: {expected}")


def _axis_order(described: Description) -> tuple[int, int, int]:
    forward, backward = (described.plans.get(f"transpose_{way}") for way in ("forward", "backward"))
    if not isinstance(forward, list) or sorted(forward) != [0, 1, 2]:
        raise described.refused(PLANS, f"transpose_forward: expected an order of the axes 0, 1, 2, found {forward}")
    if backward != [forward.index(axis) for axis in range(3)]:
        raise described.refused(PLANS, f"transpose_backward: {backward} does not undo transpose_forward {forward}")
    return forward[0], forward[1], forward[2]


def _file_names(described: Description) -> FileNames | None:
    """nnU-Net's names: one file per channel, but for pictures, which may hold three."""
    channels = len(described.channels)
    if channels > 1 and described.plans.get("image_reader_writer") == "NaturalImage2DIO":
        return None
    return FileNames("suffix", tuple(f"_{channel:04d}" for channel in range(channels)))


def _grids(described: Description) -> TrainingGrids | None:
    """The range of spacings and shapes it was trained on; None where the fingerprint is not there or not sound."""
    found = described.fingerprint or {}
    try:
        spacings = [tuple(map(float, spacing)) for spacing in found["spacings"]]
        shapes = [tuple(map(int, shape)) for shape in found["shapes_after_crop"]]
        ends = [
            tuple(end(v[axis] for v in values) for axis in range(3))
            for values in (spacings, shapes)
            for end in (min, max)
        ]
        return TrainingGrids(*ends)  # type: ignore[arg-type]
    except (KeyError, TypeError, ValueError, IndexError, StateError):
        return None
