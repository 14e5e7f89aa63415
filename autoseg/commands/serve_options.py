"""The options of `autoseg serve`."""

import argparse
from pathlib import Path

from autoseg.commands.arguments import nbytes, whole
from autoseg.commands.shared_options import add_model, add_plugins, add_workspace


def add_serve(parser: argparse.ArgumentParser) -> None:
    add_workspace(parser)
    add_model(parser)
    add_plugins(parser)
    parser.add_argument(
        "-f", "--folds", nargs="+", default=["all"],
        help="which folds form the ensemble: 0,2 | full (default: all trained folds; full only if no other is)",
    )  # fmt: skip
    parser.add_argument(
        "--speed", choices=("accurate", "balanced", "fast"), default="accurate",
        help="of segmenting an image, as for predict; clicks average no flips (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--folder", type=Path, default=None, metavar="DIR", help="images that the page may choose from, and save beside"
    )
    parser.add_argument(
        "--training-set", type=Path, default=None, metavar="DIR",
        help="data set, images/ next to labels/, that corrected cases are added to (default: that of the workspace)",
    )  # fmt: skip
    parser.add_argument(
        "--port", type=whole(0, 65535), default=8765,
        help="of 127.0.0.1, which is the only address that is served; 0: any free one (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--max-upload", type=nbytes, default="2GB", metavar="SIZE",
        help="of all files that a person has uploaded at a time, e.g. 500MB (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--device", default="auto", help="auto | cpu | cuda | cuda:1 | mps (default: auto)")
    parser.add_argument("--no-browser", action="store_true", help="print the address and open nothing")
