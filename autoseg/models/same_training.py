"""What decides the weights of a fold, and so whether two trainings are the same: the one rule.

`plan`, `train`, `status`, `evaluate` and `predict` all ask here. The rule names what counts:

    what the network sees      channels, orientation, axis order, normalisation, resampling, spacing, patch
    what it learns             labels, network, batch, every training setting but those that only cost or predict
    from which cases           by id, and by content: digests of the image and of the label as they were read
    from where                 the model whose weights it began with

Nothing else does: not the name or the place of the dataset, not what a label is called, not the reasons in a plan, nor
its other configurations, costs and measurements, nor a field that a later version of the plan adds. Statistics of the
foreground count where a normalisation uses them.

Plans are compared as plain data: what was written before a field with a default was added lacks that field.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from autoseg.imaging.normalize import STATISTICS, uses_statistics
from autoseg.messages import counted
from autoseg.planning.plan import LENGTHS, Resampling, Training
from autoseg.planning.tables import all_loss_options
from autoseg.records import to_plain

SEEN = ("channels", "labels", "orientation", "axis_order", "normalization", "resampling")  # of a plan
OF_CONFIGURATION = ("spacing", "patch_size", "batch_size", "batch_dice", "network", "cascade_from", "prompts")
WITHOUT_EFFECT = ("workers", "test_time_mirroring")  # training settings that no weight follows from
PARTS = ("image", "label", "segmentation by the previous stage")  # of a case's content

Contents = Mapping[str, Sequence[str]]  # case id -> digest of each of PARTS, "" where it has none


@dataclass(frozen=True)
class Basis:
    """What the weights of one fold follow from."""

    plan: Mapping[str, Any]  # plain
    configuration: str
    train: tuple[str, ...]  # case ids
    validation: tuple[str, ...]
    contents: Contents
    init_from: str | None


def decisive(plan: Mapping[str, Any], name: str) -> dict[str, Any]:
    """What decides the weights of a configuration, of a plan as plain data: key -> value, JSON alone."""
    training = to_plain(Training()) | dict(plan["training"])
    kept = {field.name: training[field.name] for field in fields(Training) if field.name not in WITHOUT_EFFECT}
    kept["loss_options"] = all_loss_options(kept["loss"], kept["loss_options"])
    seen = what_is_seen(plan, name)
    configuration = plan["configurations"].get(name)
    if configuration is not None:
        seen[f"configurations.{name}"] |= {key: configuration.get(key) for key in OF_CONFIGURATION}
    return json.loads(json.dumps(seen | {f"training.{key}": value for key, value in kept.items()}))


def what_is_seen(plan: Mapping[str, Any], name: str) -> dict[str, Any]:
    """What folds that predict together must share: how images are read, prepared and cut, and what is predicted."""
    kept = {key: plan.get(key) for key in SEEN}
    kept["normalization"] = [_normalization(channel) for channel in plan["normalization"]]
    kept["labels"] = _labels(plan["labels"])
    rules = plan["resampling"]
    kept["resampling"] = {key: rules.get(key, value) for key, value in to_plain(Resampling()).items()}
    configuration = plan["configurations"].get(name)
    if configuration is None:
        return kept | {f"configurations.{name}": None}
    copy = plan["configurations"].get(configuration["data"], configuration)  # whose preprocessed cases it reads
    parts = {key: configuration.get(key) for key in ("spacing", "patch_size", "cascade_from")}
    parts["preprocessed"] = [len(copy["patch_size"]), copy["spacing"]]
    if configuration.get("prompts") is not None:
        parts["prompts"] = configuration["prompts"]
    return kept | {f"configurations.{name}": parts}


def _labels(labels: Mapping[str, Any]) -> dict[str, Any]:
    """Values and unions of values, in their order; what they are called is learnt by nobody."""
    return {
        "values": sorted(labels["values"].values()),
        "regions": [list(union) for union in labels.get("regions", {}).values()],
        "region_values": list(labels.get("region_values", ())),
        "ignore": labels.get("ignore"),
        "things": sorted((t["core"], t["border"], t.get("border_mm", 0.0)) for t in labels.get("things", {}).values()),
    }


def _normalization(channel: Mapping[str, Any]) -> dict[str, Any]:
    used = uses_statistics(channel["scheme"])
    return {key: value for key, value in channel.items() if used or key not in STATISTICS}


def plan_differences(begun: Mapping[str, Any], now: Mapping[str, Any], name: str) -> dict[str, tuple[Any, Any]]:
    """Key -> (value then, value now) of everything decisive in which two plans, as plain data, differ."""
    before, after = decisive(begun, name), decisive(now, name)
    return {key: (before.get(key), after[key]) for key in after if before.get(key) != after[key]}


def describe_differences(found: Mapping[str, tuple[Any, Any]]) -> str:
    """ "normalization, training.seed differ (training.seed 3 then, 5 now)", with the values that fit a line."""
    shown = []
    for key, (before, after) in found.items():
        if isinstance(before, dict) and isinstance(after, dict):
            inner = {f"{key}.{k}": (before.get(k), v) for k, v in after.items() if before.get(k) != v}
        else:
            inner = {key: (before, after)}
        for name, values in inner.items():
            texts = [json.dumps(value, ensure_ascii=False) for value in values]
            if all(len(text) <= 40 for text in texts):
                shown.append(f"{name} {texts[0]} then, {texts[1]} now")
    return f"{', '.join(found)} differ" + (f" ({'; '.join(shown[:4])})" if shown else "")


def options_between(begun: Mapping[str, Any], now: Mapping[str, Any], name: str) -> list[str] | None:
    """Options of `autoseg train` under which a plan decides what another one did; None where none can.

    Training settings, the length among them, and a configuration's batch can be set; what the network sees cannot.
    """
    found = plan_differences(begun, now, name)
    configuration = f"configurations.{name}"
    before, after = found.pop(configuration, (None, None))
    if any(not key.startswith("training.") for key in found):
        return None
    options: list[str] = []
    for key in () if before == after else after or {}:
        if before is None or after is None or (key == "preprocessed" and before.get(key) != after[key]):
            return None
        options += _settings(f"{configuration}.{key}", before.get(key), after[key])
    for key, (value, now_value) in found.items():
        setting = key.removeprefix("training.")
        if setting not in LENGTHS:
            options += _settings(key, value, now_value)
        elif value is not None:
            options += _length(setting, value)
    return options


def _settings(key: str, before: Any, after: Any) -> list[str]:
    """Options that set a value to what it was, part by part; none where it is that."""
    if before == after:
        return []
    if isinstance(before, dict) and isinstance(after, dict) and set(before) == set(after):
        return [word for part in before for word in _settings(f"{key}.{part}", before[part], after[part])]
    return ["--set", f"{key}={json.dumps(before)}"]


def _length(setting: str, value: float) -> list[str]:
    if setting == "time_budget_seconds":
        return ["--time-budget", f"{value:g}s"]
    return [f"--{setting}", str(value)]


def content_differences(begun: Contents, now: Contents, cases: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Case id -> which of PARTS have another content now; cases of which either is unknown are left out."""
    found = {}
    for case in cases:
        pairs = zip(PARTS, begun.get(case, ()), now.get(case, ()), strict=False)
        if changed := tuple(part for part, before, after in pairs if before and after and before != after):
            found[case] = changed
    return found


def describe_contents(found: Mapping[str, Sequence[str]]) -> str:
    """ "the label of case_003 has changed", "the image and the label of a and 2 other cases have changed"."""
    first = next(iter(found))
    parts = " and ".join(f"the {part}" for part in found[first])
    others = len(found) - 1
    many = f" and {counted(others, 'other case')}" if others else ""
    return f"{parts} of {first}{many} {'has' if len(found) == 1 and len(found[first]) == 1 else 'have'} changed"
