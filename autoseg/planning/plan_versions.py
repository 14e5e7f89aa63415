"""Plans of older versions, as this version writes them: a setting that was added has the value that changes nothing."""

from typing import Any

VERSION = 4


def upgraded_plan(plain: dict[str, Any]) -> dict[str, Any]:
    """Plain data of any version up to this one; what is of none of them is returned as it is."""
    for version, upgrade in enumerate((_from_1, _from_2, _from_3), start=1):
        if plain.get("version") == version:
            plain = upgrade(plain)
    return plain


def _from_1(plain: dict[str, Any]) -> dict[str, Any]:
    """Version 2 names the proxy of memory, and adds the cascade, checkpointing, costs, rules, presets and losses."""
    added = {"cascade_from": None, "checkpointing": False, "cost": None}
    configurations = {}
    for name, configuration in plain["configurations"].items():
        kept = {key: value for key, value in configuration.items() if key != "memory_estimate"}
        configurations[name] = kept | {"elements": configuration["memory_estimate"]} | added
    losses = {
        "momentum": None, "focal_gamma": 2.0, "topk_share": 0.1, "tversky_alpha": 0.3, "tversky_beta": 0.7,
        "boundary_weight": 0.0,
    }  # fmt: skip
    return plain | {
        "version": 2, "configurations": configurations, "rules": "autoseg",
        "preset": "s" if plain["device"] == "cpu" else None, "training": losses | plain["training"],
    }  # fmt: skip


def _from_2(plain: dict[str, Any]) -> dict[str, Any]:
    """Version 3 adds a length in steps, the end at a plateau, dropout, weights of components, the device chain.

    Trainings resume as they were begun: without an end at a plateau, on the host chain.
    """
    added = {"steps": None, "patience": 0, "component_weight": 0.0, "dropout": 0.0, "chain": "host"}
    return plain | {"version": 3, "training": added | plain["training"]}


def _from_3(plain: dict[str, Any]) -> dict[str, Any]:
    """Version 4 has one length of a training; before, a time budget ruled over steps, and steps over epochs."""
    training = dict(plain["training"])
    lengths = ("time_budget_seconds", "steps", "epochs")
    ruling = next((name for name in lengths if training[name] is not None), None)
    training |= {name: None for name in lengths if name != ruling}
    return plain | {"version": 4, "training": training}
