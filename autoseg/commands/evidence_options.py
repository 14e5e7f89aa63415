"""Options of the commands that say how good a model is: evaluate, compare, learning-curve, report, rank."""

import argparse
from pathlib import Path

from autoseg.commands.arguments import duration, fraction, label_share, name, positive, shares, tolerances, whole
from autoseg.commands.shared_options import (
    add_instances,
    add_json,
    add_model,
    add_no_report,
    add_plugins,
    add_settings,
    add_workers,
    add_workspace,
)
from autoseg.rules import MAX_EPOCHS


def add_evaluate(parser: argparse.ArgumentParser) -> None:
    add_workspace(parser)
    add_model(parser)
    add_plugins(parser)
    parser.add_argument(
        "-m", "--model", type=Path, default=None, metavar="MODEL.zip",
        help="an exported model: score the test cases with it (--test), let it name the labels of two folders, or show "
        "what it carries: scores, --speeds, --expected-dice",
    )  # fmt: skip
    parser.add_argument("--predictions", type=Path, help="folder of segmentations")
    parser.add_argument("--references", type=Path, help="folder of expert labels")
    parser.add_argument("--labels", help="liver=1,tumour=2 (default: those of the workspace, or the values found)")
    add_instances(parser)
    parser.add_argument(
        "--tolerance",
        type=tolerances,
        metavar="MM",
        help="of nsd, boundary_f1, boundary_iou: 2 | liver=2,vessel=0.5 (default: 1)",
    )
    parser.add_argument(
        "--tubes", default=(), metavar="LABELS", help="measure centreline_dice: vessel,airway | all (default: none)"
    )
    parser.add_argument("--test", action="store_true", help="score the ensemble on the dataset's test cases, once")
    _add_measurements(parser)
    parser.add_argument(
        "--choose", nargs="*", choices=("model", "thresholds", "components", "crf"), default=None, metavar="WHAT",
        help="choose on the held-out cases what predict then applies: model (or two together), thresholds, components "
        "(default: all three), or crf, which refines boundaries and takes long; each is accepted only where it helps "
        "beyond chance",
    )  # fmt: skip
    parser.add_argument(
        "--recall", type=label_share, action="append", default=[], metavar="LABEL=SHARE",
        help="with --choose: a recall that a label must reach, e.g. lesion=0.95",
    )  # fmt: skip
    parser.add_argument("--csv", type=Path, help="also write one row per case and label")
    add_verdicts(parser)
    add_no_report(parser)
    add_workers(parser)
    add_json(parser)


def _add_measurements(parser: argparse.ArgumentParser) -> None:
    """What `evaluate` can measure of held-out cases beside their scores."""
    parser.add_argument(
        "--group", dest="groups", action="append", default=[], metavar="COLUMN",
        help="of the table of patients, e.g. site: also compare its groups of cases; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--shifts", action="store_true",
        help="measure the Dice of held-out cases under noise, blur, bias field, contrast and resolution shifts",
    )  # fmt: skip
    parser.add_argument(
        "--cases",
        type=positive,
        default=None,
        metavar="N",
        help="with --shifts: N held-out cases of each fold, at most",
    )
    parser.add_argument(
        "--calibration",
        action="store_true",
        help="measure whether probabilities of held-out cases mean what they say: reliability, ROC, FROC of lesions",
    )
    parser.add_argument(
        "--clicks", type=whole(1, 1000), default=None, metavar="N",
        help="of a model with prompts: correct held-out cases by N simulated clicks at most, and show what they bring",
    )  # fmt: skip
    parser.add_argument(
        "--speeds", action="store_true", help="measure Dice and time of each speed of predict on the held-out cases"
    )
    parser.add_argument(
        "--expected-dice", action="store_true",
        help="learn from the held-out cases what Dice predict --uncertainty may expect of new ones",
    )  # fmt: skip


def add_compare(parser: argparse.ArgumentParser) -> None:
    either = "a workspace, WORKSPACE:MODEL, a model of -w, a folder of segmentations, or a CSV of evaluate"
    parser.add_argument("a", metavar="A", help=either)
    parser.add_argument("b", metavar="B", help="the same; differences are B - A")
    add_workspace(parser)
    add_plugins(parser)
    parser.add_argument(
        "--references", type=Path, default=None,
        help="folder of expert labels, for folders of segmentations (default: those of the other side's dataset)",
    )  # fmt: skip
    parser.add_argument("--labels", help="liver=1,tumour=2 (default: those of a workspace, or the values found)")
    parser.add_argument(
        "--patients", type=Path, default=None, metavar="TABLE",
        help="CSV with columns case and patient (default: those of the datasets)",
    )  # fmt: skip
    parser.add_argument("--metric", type=name, default="dice", help="the one that decides (default: %(default)s)")
    parser.add_argument("--csv", type=Path, default=None, help="also write one row per case, label and metric")
    add_workers(parser)
    add_json(parser)


def add_verdicts(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--good", type=fraction, default=0.8, metavar="DICE", help="verdict: good above this (default: %(default)s)"
    )
    parser.add_argument(
        "--poor", type=fraction, default=0.5, metavar="DICE", help="verdict: poor below this (default: %(default)s)"
    )


def add_rank(parser: argparse.ArgumentParser) -> None:
    add_workspace(parser)
    parser.add_argument(
        "-i", "--images", type=Path, nargs="+", default=[],
        help="order these unlabelled images (a folder, or files) by the expected benefit of annotating them (default: "
        "order the training cases by likely label error)",
    )  # fmt: skip
    add_model(parser)
    add_plugins(parser)
    parser.add_argument(
        "-m", "--models", nargs="+", default=[], metavar="MODEL",
        help="with -i: average these models, as for predict: names of folders, or exported files (model.zip)",
    )  # fmt: skip
    parser.add_argument("--device", default="auto", help="auto | cpu | cuda | cuda:1 | mps (default: auto)")
    parser.add_argument("--top", type=positive, default=20, metavar="N", help="rows of the table (default: 20)")
    parser.add_argument("--csv", type=Path, default=None, help="also write one row per case and label, of all cases")
    add_json(parser)


def add_report(parser: argparse.ArgumentParser) -> None:
    add_workspace(parser)
    add_model(parser)
    parser.add_argument(
        "-o", "--out", type=Path, default=None, metavar="FILE.html", help="default: report.html in the workspace"
    )
    parser.add_argument(
        "--saliency", default=None, metavar="LABEL",
        help="first explain this label in the worst, median and best held-out case; later pages show it, too",
    )  # fmt: skip
    add_plugins(parser)
    add_json(parser)


def add_learning_curve(parser: argparse.ArgumentParser) -> None:
    add_workspace(parser)
    parser.add_argument(
        "-f", "--folds", nargs="+", default=["0"],
        help="whose patients to train on, and whose held-out cases to score: 0 | 0 2 | 0..4 | all (default: 0)",
    )  # fmt: skip
    parser.add_argument(
        "--shares", type=shares, default=(12.0, 25.0, 50.0, 100.0), metavar="PERCENT,...",
        help="of the patients to train on, nested (default: 12,25,50,100)",
    )  # fmt: skip
    add_model(parser)
    add_plugins(parser)
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--epochs", type=whole(1, MAX_EPOCHS), default=None, help="length of every training")
    length.add_argument("--steps", type=positive, default=None, help="the same, in optimiser steps")
    length.add_argument("--time-budget", type=duration, default=None, help="wall time per training, e.g. 10m, 2h")
    parser.add_argument(
        "--stop-after", type=duration, default=None,
        help="save and stop after this time, e.g. 3h55m; the same command resumes",
    )  # fmt: skip
    parser.add_argument("--device", default="auto", help="auto | cpu | cuda | cuda:1 | mps (default: auto)")
    parser.add_argument(
        "--restart", action="store_true", help="retrain all shares from scratch (the old folders are renamed)"
    )
    add_settings(parser)
    add_json(parser)
