"""Whether the fields of a plan agree with each other: what `records.load` asks for once each field is sound by itself.

A configuration may name others: whose preprocessed cases it reads, whose segmentation it refines, which one it
continues with prompts. And the loss must fit the labels.
"""

from typing import TYPE_CHECKING

from autoseg.planning.tables import loss_traits
from autoseg.rules import FieldError, check_same_length, in_entries

if TYPE_CHECKING:
    from autoseg.planning.plan import Configuration, Plan


def check_plan(plan: "Plan") -> None:
    """Raise FieldError where fields of a plan contradict each other."""
    check_same_length(plan, ("normalization",), len(plan.channels), "one per channel")
    known = f"one of configurations: {', '.join(plan.configurations)}"
    if plan.recommended not in plan.configurations:
        raise FieldError(f"recommended: expected {known}, found {plan.recommended!r}")
    for name, configuration in plan.configurations.items():
        _check_references(plan, name, configuration, known)
        _check_prompts(plan, name, configuration, known)
    _check_loss(plan)


def _check_references(plan: "Plan", name: str, configuration: "Configuration", known: str) -> None:
    """Check whose preprocessed cases a configuration reads, and whose segmentation it refines."""
    place, copied, before = f"configurations.{name}", configuration.data, configuration.cascade_from
    if copied not in plan.configurations:
        raise FieldError(f"{place}.data: expected {known}, found {copied!r}")
    if before is None:
        return
    if before not in plan.configurations or before == name:
        raise FieldError(f"{place}.cascade_from: expected another {known}, found {before!r}")
    if plan.configurations[before].cascade_from is not None:
        raise FieldError(f"{place}.cascade_from: expected one that is not a cascade itself, found {before!r}")


def _check_prompts(plan: "Plan", name: str, configuration: "Configuration", known: str) -> None:
    """Check which configuration one with prompts continues."""
    if configuration.prompts is None:
        return
    place, continued = f"configurations.{name}.prompts", configuration.prompts.continues
    if continued not in plan.configurations or continued == name:
        raise FieldError(f"{place}.continues: expected another {known}, found {continued!r}")
    if plan.configurations[continued].prompts is not None:
        raise FieldError(f"{place}.continues: expected one without prompts, found {continued!r}")
    if configuration.cascade_from is not None:
        raise FieldError(f"{place}: expected null, because {name} is a cascade")
    if plan.labels.things:
        raise FieldError(f"{place}: expected null, because the labels are objects with borders")


def _check_loss(plan: "Plan") -> None:
    """Check that labels and loss fit together."""
    training, heads, loss = plan.training, plan.heads, loss_traits(plan.training.loss)
    if heads.has_regions and loss.predicts == "labels":
        raise FieldError(
            "training.loss: expected dice_bce or another loss for labels that form regions, found "
            f"{training.loss}, which predicts one label per voxel",
            remedy="set training.loss to dice_bce, or plan without regions",
        )
    if training.class_weights is not None and len(training.class_weights) != heads.num_heads:
        raise FieldError(
            f"training.class_weights: expected {in_entries(heads.num_heads)}, because the network has "
            f"{heads.num_heads} heads, found {len(training.class_weights)}",
            remedy="give one weight per head: background and labels, or regions; or null for none",
        )
    if training.component_weight and not loss.cross_entropy:
        raise FieldError(
            f"training.component_weight: expected 0, because {training.loss} has no cross-entropy to weight, "
            f"found {training.component_weight:g}",
            remedy="--set training.component_weight=0, or another loss",
        )
