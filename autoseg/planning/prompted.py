"""The configuration of a network that takes prompts: a trained one, with further input channels.

Everything else is as in the configuration it continues: spacing, patch, network, preprocessed cases. Its folds begin
with the weights of the folds of that one, and with weights of 0 for the new channels, so that before its first step it
segments as that one does.
"""

from dataclasses import replace

from autoseg.errors import UsageError
from autoseg.planning.plan import Plan, PromptInput

SUFFIX = "_prompts"
RADIUS = 2.5  # voxels of the finest axis: a click is a ball of 81 cubic voxels


def with_prompts(plan: Plan, name: str) -> tuple[Plan, str]:
    """A plan that has a configuration with prompts beside the named one, and the name of that; as it is, if it has it.

    Raises:
        UsageError: the configuration is a cascade, or its labels are objects with borders.
    """
    configuration = plan.configurations[name]
    if configuration.prompts is not None:
        return plan, name
    prompted = name + SUFFIX
    if prompted in plan.configurations:
        return plan, prompted
    if configuration.cascade_from is not None:
        raise UsageError(
            f"--prompts: {name} is a cascade, whose network already sees a mask, that of its previous stage",
            remedy=f"train prompts for another configuration: -c {configuration.cascade_from}",
        )
    if plan.labels.things:
        raise UsageError(
            f"--prompts: the labels are objects ({', '.join(plan.labels.things)}), which are not corrected by prompts",
            remedy="plan in another workspace without --instances, with one value for all objects",
        )
    radius = RADIUS * min(configuration.spacing)
    added = replace(configuration, prompts=PromptInput(name, float(f"{radius:.4g}")))
    return replace(plan, configurations=plan.configurations | {prompted: added}), prompted


def kept_prompts(plan: Plan, earlier: Plan) -> Plan:
    """A new plan with prompts, of the same radius, for the configurations that had them in an earlier one."""
    for configuration in earlier.configurations.values():
        prompts = configuration.prompts
        if prompts and prompts.continues in plan.configurations and not plan.labels.things:
            plan, name = with_prompts(plan, prompts.continues)
            kept = replace(plan.configurations[name], prompts=prompts)
            plan = replace(plan, configurations=plan.configurations | {name: kept})
    return plan


def prompted_of(plan: Plan, name: str | None) -> str | None:
    """The configuration with prompts that belongs to a name: itself, or the one that continues it; None: there is none.

    Args:
        name: None: the recommended configuration.
    """
    name, configuration = plan.configuration(name)
    if configuration.prompts is not None:
        return name
    return next((n for n, c in plan.configurations.items() if c.prompts and c.prompts.continues == name), None)
