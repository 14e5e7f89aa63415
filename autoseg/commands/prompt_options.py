"""Options of the commands that correct segmentations by prompts."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from autoseg.commands.shared_options import add_json, add_model, add_plugins, add_workspace


class _InOrder(argparse.Action):
    """Collects prompts of all kinds in the order in which they were typed, as (kind, text)."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        prompts: Sequence[tuple[str, str]] = getattr(namespace, self.dest) or ()
        setattr(namespace, self.dest, [*prompts, ((option or "").lstrip("-"), values)])


def add_refine(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "images", type=Path, nargs="+", metavar="IMAGE", help="of one case: its file, its files by channel, or a series"
    )
    add_workspace(parser)
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="FILE", help="the corrected segmentation")
    parser.add_argument(
        "--mask", type=Path, default=None, metavar="FILE",
        help="a segmentation to correct (default: the automatic one)",
    )  # fmt: skip
    add = _prompt_adder(parser)
    add("--click", "Z,Y,X:LABEL", "this voxel has this label: its name or value, or background; may be repeated")
    add("--scribble", "Z,Y,X/Z,Y,X:LABEL", "the voxels on lines from point to point have it; may be repeated")
    add("--box", "Z,Y,X/Z,Y,X:LABEL", "an object of it lies in this box, from its first to its last voxel")
    add_model(parser)
    parser.add_argument("-f", "--folds", nargs="+", default=["all"], help="which folds answer (default: all)")
    parser.add_argument("--device", default="auto", help="auto | cpu | cuda | cuda:1 | mps (default: auto)")
    parser.add_argument(
        "--speed", choices=("accurate", "balanced", "fast"), default=None,
        help="of each answer: balanced: half of the flips; fast: none (default: accurate)",
    )  # fmt: skip
    add_plugins(parser)
    add_json(parser)


def _prompt_adder(parser: argparse.ArgumentParser) -> Callable[[str, str, str], None]:
    def add(option: str, form: str, help: str) -> None:
        parser.add_argument(option, dest="prompts", action=_InOrder, default=(), metavar=form, help=help)

    return add
