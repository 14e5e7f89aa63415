"""Section 5 of the planning rules: how the folds are trained."""

from dataclasses import replace

import numpy as np

from autoseg.planning import sparsity
from autoseg.planning.laterality import fixed_order, left_right_pair, one_sided
from autoseg.planning.plan import Configuration, Training
from autoseg.planning.request import Request
from autoseg.planning.space import Space

LEFT_RIGHT_AXIS = 2  # of an image in canonical orientation
ADAMW_WEIGHT_DECAY = 1e-2


def base_recipe(asked: Request) -> Training:
    """The budget's recipe, with the optimiser for the network and the loss for the labels."""
    recipe = asked.budget.training
    rate = asked.layout.learning_rate
    if rate is not None and recipe.optimizer == "sgd":
        recipe = replace(recipe, optimizer="adamw", learning_rate=rate, weight_decay=ADAMW_WEIGHT_DECAY)
    if asked.layout.loss is not None:
        cores = asked.labels.core_indices  # each object is a segment of its own, which a query learns
        recipe = replace(recipe, loss=asked.layout.loss, loss_options={"things": cores} if cores else {})
    return replace(recipe, loss="dice_bce") if asked.labels.has_regions else recipe


def plan_training(asked: Request, space: Space, chosen: Configuration) -> Training:
    """Adapt the budget's recipe to the labels; sampling and weights are those of the recommended configuration."""
    recipe, labels = base_recipe(asked), asked.labels
    asked.decide(
        "5.1 recipe",
        f"{recipe.optimizer}, {recipe.schedule}, {recipe.epochs} epochs of {recipe.iterations_per_epoch}",
        f"learning rate {recipe.learning_rate:g}, weight decay {recipe.weight_decay:g}; the recipe of this budget",
    )
    why = "regions overlap: one sigmoid each" if labels.has_regions else "labels exclude each other: one softmax"
    if asked.layout.loss is not None:
        why += f"; {asked.network} has a loss of its own"
    asked.decide("5.2 loss", recipe.loss, why)
    if not asked.ours:
        asked.decide(
            "5.4 foreground", recipe.foreground_fraction, "nnU-Net v2's share of patches centred on foreground"
        )
        return replace(recipe, augmentation="nnunet", patience=0)  # it trains to the end of its schedule
    found = asked.fingerprint
    if chosen.dims == 3:
        patch, shapes, spacings = chosen.patch_size, space.shapes, np.broadcast_to(space.spacing, space.shapes.shape)
    else:  # a slice of the case: resampled only in the plane
        patch = (1, *chosen.patch_size)
        shapes = np.column_stack((space.case_shapes[:, 0], space.shapes[:, 1:]))
        spacings = np.column_stack((space.case_spacings[:, 0], np.broadcast_to(space.spacing[1:], (len(shapes), 2))))
    filled = sparsity.filled_share(space.table, chosen.patch_size, chosen.spacing)
    weights, why = sparsity.class_weights(found, labels, filled)
    if labels.things:
        weights, why = None, "objects: weights of their borders would make them wider"
    asked.decide("5.3 class weights", f"{min(weights):.3g} to {max(weights):.3g}" if weights else "none", why)
    fraction, why = sparsity.foreground_fraction(sparsity.foreground_chance(space.table, shapes, spacings, patch))
    asked.decide("5.4 foreground", fraction, why)
    cases, why = sparsity.case_sampling(found)
    asked.decide("5.5 cases", cases, why)
    classes, why = sparsity.class_sampling(found)
    asked.decide("5.6 classes", classes, why)
    axes = _plan_mirroring(asked, space)
    why = "epochs without a better validation loss or Dice before the training cools down and ends"
    asked.decide("5.8 patience", recipe.patience, why)
    return replace(
        recipe,
        class_weights=weights,
        foreground_fraction=fraction,
        case_sampling=cases,
        class_sampling=classes,
        mirror_axes=axes,
    )


def _plan_mirroring(asked: Request, space: Space) -> tuple[int, ...]:
    """Axes to mirror, in the plan's order; not left to right where labels depend on the side, by name or by place.

    Nor, where the budget is short of steps, along an axis on which labels keep their order: the network need not learn
    an anatomy that never occurs. A 2-D configuration uses those above 0, less one: its planes are the plan's axes 1, 2.
    """
    pair = left_right_pair([*asked.labels.values, *asked.labels.regions])
    cases = asked.fingerprint.cases
    shown = {name: sum(case.class_voxels.get(name, 0) > 0 for case in cases) for name in asked.labels.values}
    alone = one_sided([case.mirror_sides for case in cases], shown) if asked.orientation == "canonical" else None
    axes: tuple[int, ...] = (0, 1, 2)
    if pair is None and alone is not None:
        axes = tuple(i for i in axes if space.axis_order[i] != LEFT_RIGHT_AXIS)
        there = f"the label {alone.other}" if alone.other else "background"
        reason = (
            f"{alone.label} is on the same side in {alone.sided} of {alone.cases} cases, and its mirrored place "
            f"looks similar (correlation {alone.likeness:.2f}) and is {there}: mirroring would teach a contradiction"
        )
    elif pair is None:
        reason = "no two labels are a left-right pair"
    elif asked.orientation == "canonical":
        axes = tuple(i for i in axes if space.axis_order[i] != LEFT_RIGHT_AXIS)
        reason = f"mirroring left to right would swap {pair[0]} and {pair[1]}"
    else:
        axes = ()
        reason = f"{pair[0]} and {pair[1]} are a pair; without orientation, mirroring along any axis may swap them"
    if not asked.budget.mirror_fixed_order:
        centroids = [case.centroids_mm for case in asked.fingerprint.cases]
        ordered = {i: order for i in axes if (order := fixed_order(centroids, space.axis_order[i]))}
        axes = tuple(i for i in axes if i not in ordered)
        reason += "".join(f"; along axis {i}, {one} is always before {other}" for i, (one, other) in ordered.items())
    sideways = space.axis_order.index(LEFT_RIGHT_AXIS)
    known = f"left to right is axis {sideways}" if asked.orientation == "canonical" else "no axis is left to right"
    reason += f" (training.mirror_axes; {known})"
    asked.decide("5.7 mirroring", "axes " + ", ".join(map(str, axes)) if axes else "none", reason)
    return axes
