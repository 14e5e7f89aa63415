"""Options that several commands have in common."""

import argparse
from pathlib import Path

from autoseg.commands.answers import OPTION
from autoseg.commands.arguments import name, whole
from autoseg.messages import DEFAULT_WORKSPACE
from autoseg.rules import MAX_WORKERS


def add_workspace(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-w", "--workspace", type=Path, default=DEFAULT_WORKSPACE,
        help="folder of plans, data and models (default: %(default)s)",
    )  # fmt: skip


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(OPTION, action="store_true", help="print one JSON document instead, also for errors")


def add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-c", "--configuration", type=name, default=None, help="default: the recommended one")
    parser.add_argument("--network", type=name, default=None, help="default: the planned one")


def add_no_report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--no-report", action="store_true", help="do not write report.html at the end")


def add_settings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set", dest="settings", action="append", default=[], metavar="KEY=VALUE",
        help="change a value of the plan, e.g. training.learning_rate=0.001",
    )  # fmt: skip


def add_plugins(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--plugin", dest="plugins", action="append", type=Path, default=[], metavar="FILE.py",
        help="first run this Python file, which registers networks, losses and the like of your own; it runs with "
        "your permissions: name only files that you trust",
    )  # fmt: skip


def add_intake(parser: argparse.ArgumentParser, *, planned: str = "") -> None:
    """Options of commands that read a dataset; `planned` says what they take if none is named, where one may be."""
    help = "folder of images and labels, or a CSV/TSV that lists them"
    if planned:
        parser.add_argument("dataset", type=Path, nargs="?", default=None, help=f"{help} (default: {planned})")
    else:
        parser.add_argument("dataset", type=Path, help=help)
    parser.add_argument("--channels", help="what the channels are, e.g. CT or T1,FLAIR")
    parser.add_argument("--labels", help="names and values, e.g. liver=1,tumour=2")
    parser.add_argument("--regions", help="unions of label values, each predicted as one, e.g. whole=1+2,core=2")
    parser.add_argument(
        "--ignore", type=whole(-(2**31), 2**31 - 1), help="label value that marks voxels nobody annotated"
    )
    add_instances(parser)
    parser.add_argument("--patient-regex", help="regular expression on the case id whose first group is the patient")
    parser.add_argument("--skip-bad", action="store_true", help="leave faulty cases out instead of stopping")
    add_plugins(parser)
    add_workers(parser)


def add_instances(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--instances", metavar="NAMES",
        help="kinds of objects that are separated, e.g. nuclei: label files hold a number for each object",
    )  # fmt: skip
    parser.add_argument(
        "--divisor", type=whole(2, 10**6),
        help="with --labels and --instances: objects are stored as value x divisor + number (default: 1000)",
    )  # fmt: skip


def add_workers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--workers", type=whole(0, MAX_WORKERS), default=None,
        help="worker processes; 0: none (default: from cores and memory)",
    )  # fmt: skip
