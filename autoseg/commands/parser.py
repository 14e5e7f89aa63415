"""The command line: every command with its options, their types and their defaults. No heavy import."""

import argparse
import difflib
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from autoseg import __version__
from autoseg.commands.arguments import (
    above,
    cpu_rate,
    duration,
    finite,
    mapping,
    name,
    percentage,
    positive,
    share,
    whole,
)
from autoseg.commands.evidence_options import add_compare, add_evaluate, add_learning_curve, add_rank, add_report
from autoseg.commands.prompt_options import add_refine
from autoseg.commands.serve_options import add_serve
from autoseg.commands.shared_options import (
    add_intake,
    add_json,
    add_model,
    add_no_report,
    add_plugins,
    add_settings,
    add_workspace,
)
from autoseg.errors import Misuse
from autoseg.rules import MAX_EPOCHS, MAX_GIGABYTES, MAX_WORKERS

FORMATS = (  # of label files
    *("nii.gz", "nii", "seg.nrrd", "nrrd", "mha", "mhd", "tif", "tiff", "png", "bmp"), "dicom-seg", "rtstruct",
)  # fmt: skip

INVALID_CHOICE = re.compile(r"invalid choice: '(.*?)'")


class Parser(argparse.ArgumentParser):
    """Reports errors as argparse does, says in the exception what they are, and names what was probably meant."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """As argparse, but what a command does not know is its error: the usage shown is that of the command."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return found, unknown

    def error(self, message: str) -> NoReturn:
        unknown = message.removeprefix("unrecognized arguments: ")
        if unknown == message:
            unknown = ""
        if unknown and not unknown.startswith("-") and Path(unknown).is_dir() and "-w" in self._option_string_actions:
            message += f" (a workspace needs an option in front of it: -w {unknown})"
        meant = self._meant(message, unknown)
        lists = f"{self.prog} --help lists the {'commands' if self._subparsers else 'options'}"
        self.print_usage(sys.stderr)
        print(f"{self.prog}: error: {message}", file=sys.stderr)
        if meant:
            print(f"  -> did you mean {meant}?", file=sys.stderr)
        raise Misuse(message, remedy=f"did you mean {meant}? {lists}" if meant else lists)

    def _meant(self, message: str, unknown: str) -> str:
        """The command, value or option that is spelled most like one that does not exist; "": none is like it."""
        typed, known = unknown.partition(" ")[0].partition("=")[0], list(self._option_string_actions)
        if found := INVALID_CHOICE.search(message):
            typed, known = found[1], [str(value) for action in self._actions for value in action.choices or ()]
        elif not typed.startswith("--"):
            return ""
        return next(iter(difflib.get_close_matches(typed, known, 1)), "")


def build_parser() -> argparse.ArgumentParser:
    """The whole command line. What it parses has the name of the command in `command`."""
    parser = Parser(prog="autoseg", description="Self-configuring segmentation of medical images.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"autoseg {__version__}")
    commands = parser.add_subparsers(title="commands", dest="command", required=True, metavar="COMMAND")
    for called, (help, add_options) in COMMANDS.items():
        add_options(commands.add_parser(called, help=help, allow_abbrev=False))
    return parser


def add_demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-o", "--out", type=Path, default=Path("autoseg_demo"), help="output folder (default: %(default)s)"
    )
    parser.add_argument(
        "--time-budget", type=duration, default=None,
        help="time per fold, e.g. 25s, instead of a fixed number of steps; results then depend on the machine's speed",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="random seed of the trainings (default: %(default)s)")
    parser.add_argument("--data-only", action="store_true", help="write the dataset and stop")


def add_check(parser: argparse.ArgumentParser) -> None:
    add_intake(parser)
    parser.add_argument(
        "--fix", type=Path, default=None, metavar="OUT",
        help="write a corrected copy to this new folder and list every change; the data set itself stays unchanged. "
        "A case that cannot be repaired without a guess is left out of the copy and listed (exit code 3)",
    )  # fmt: skip
    parser.add_argument(
        "--map", type=mapping, default=None, metavar="OLD=NEW,...",
        help="with --fix: label values to change, e.g. 255=1,7=0 (write --map=-1=0 where the first is negative)",
    )  # fmt: skip
    parser.add_argument(
        "--nan-to", type=finite, default=None, metavar="VALUE", help="with --fix: replaces NaN and infinity"
    )
    add_json(parser)


def add_plan(parser: argparse.ArgumentParser) -> None:
    add_intake(parser)
    add_workspace(parser)
    parser.add_argument(
        "-c", "--configurations", default="", help="which to preprocess, e.g. 2d,3d_fullres (default: recommended)"
    )
    parser.add_argument(
        "--vram", type=above(0, MAX_GIGABYTES), default=None, metavar="GB", help="plan for a GPU with this much memory"
    )
    parser.add_argument(
        "--preset", choices=("s", "m", "l", "xl"), default=None,
        help="s: CPU; m, l, xl: residual encoders for 8, 24, 40 GB (default: plain U-Net for this machine)",
    )  # fmt: skip
    parser.add_argument(
        "--network", type=name, default=None, help="architecture, e.g. attention_unet (default: the preset's)"
    )
    parser.add_argument(
        "--rules", choices=("autoseg", "nnunet"), default="autoseg", help="nnunet: only its rules (default: autoseg)"
    )
    parser.add_argument(
        "--group", default=None, metavar="COLUMN",
        help="of the table of patients, e.g. site: each fold leaves one of its values out (default: folds by patient)",
    )  # fmt: skip
    parser.add_argument("--no-preprocess", action="store_true", help="decide only")
    parser.add_argument("--explain", action="store_true", help="print every decision with its reason")
    parser.add_argument(
        "--time-budget", type=duration, default=None,
        help="wall time per fold; on a CPU it also sets the size of a step (default: the recipe's epochs, and 1h)",
    )  # fmt: skip
    parser.add_argument(
        "--cpu-rate", type=cpu_rate, default="measured", metavar="RATE",
        help="speed of the CPU planned for: measured, reference (the same plan on every machine), or times the "
        "reference, e.g. 0.5 (default: measured)",
    )  # fmt: skip
    add_settings(parser)
    add_json(parser)


def add_floor(parser: argparse.ArgumentParser) -> None:
    add_intake(parser, planned="that of the workspace, with its folds, its labels and its trained models")
    add_workspace(parser)
    parser.add_argument(
        "--tune", type=positive, default=40, metavar="N",
        help="choose the numbers of each method on at most N training images (default: %(default)s)",
    )  # fmt: skip
    add_json(parser)


def add_train(parser: argparse.ArgumentParser) -> None:
    add_workspace(parser)
    parser.add_argument(
        "-f", "--folds", nargs="+", default=["all"],
        help="0 | 0 2 | 0,2 | 0..4 | all | full: one model on all cases, none held out (default: all)",
    )  # fmt: skip
    add_model(parser)
    add_plugins(parser)
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--epochs", type=whole(1, MAX_EPOCHS), default=None, help="length of each fold's training")
    length.add_argument("--steps", type=positive, default=None, help="the same, in optimiser steps")
    length.add_argument("--time-budget", type=duration, default=None, help="wall time per fold, e.g. 10m, 2h")
    parser.add_argument(
        "--init-from", type=Path, default=None, metavar="MODEL",
        help="initialise from a trained model (matching weights only)",
    )  # fmt: skip
    parser.add_argument(
        "--prompts", action="store_true", help="continue trained folds as ones that clicks correct: `refine`, `serve`"
    )
    parser.add_argument(
        "--stop-after", type=duration, default=None,
        help="save and stop after this time, e.g. 3h55m; the same command resumes",
    )  # fmt: skip
    parser.add_argument(
        "--checkpoint-every",
        type=duration,
        default=60.0,
        metavar="TIME",
        help="longest time between checkpoints (default: 60s)",
    )
    parser.add_argument("--device", default="auto", help="auto | cpu | cuda | cuda:1 | mps (default: auto)")
    parser.add_argument(
        "--restart", action="store_true", help="retrain these folds from scratch (the old folders are renamed)"
    )
    parser.add_argument(
        "--finish",
        action="store_true",
        help="end started folds now: cool down the learning rate, then predict their held-out cases",
    )
    several = parser.add_mutually_exclusive_group()
    several.add_argument("--gpus", default=None, help="train one fold per GPU in parallel: all, or numbers such as 0,2")
    several.add_argument(
        "--slurm", default=None, metavar="KEY=VALUE,...",
        help="submit the folds to a cluster: partition=gpu,time=24h[,gpus=1,cpus=8,mem=64G,account=...]",
    )  # fmt: skip
    add_no_report(parser)
    add_settings(parser)


def add_predict(parser: argparse.ArgumentParser) -> None:
    add_workspace(parser)
    parser.add_argument("-i", "--images", type=Path, nargs="+", required=True, help="a folder, or image files")
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder for the segmentations")
    add_model(parser)
    add_plugins(parser)
    parser.add_argument(
        "-m", "--models", nargs="+", default=[], metavar="MODEL",
        help="average these models: names of folders (3d_fullres-unet 2d-unet), or exported files (model.zip)",
    )  # fmt: skip
    parser.add_argument(
        "-f", "--folds", nargs="+", default=["all"],
        help="which folds form the ensemble: 0,2 | full (default: all trained folds; full only if no other is)",
    )  # fmt: skip
    parser.add_argument(
        "--unfinished",
        action="store_true",
        help="also use folds that are not trained to the end, in their current state",
    )
    parser.add_argument(
        "--device", default="auto",
        help="auto | cpu | cuda | mps | several, a process each: cuda:0,cuda:1 | all GPUs (default: auto)",
    )  # fmt: skip
    parser.add_argument(
        "--speed", choices=("accurate", "balanced", "fast"), default=None,
        help="balanced: half of the flips; fast: none, and tiles further apart; evaluate --speeds measures them "
        "(default: accurate)",
    )  # fmt: skip
    parser.add_argument(
        "--step", type=share, default=None, help="tile distance, a fraction of the tile (default: that of the speed)"
    )
    parser.add_argument(
        "--no-mirroring", action="store_true", help="no test-time flips: faster, slightly less accurate"
    )
    parser.add_argument(
        "--tile", type=float, metavar="N",
        help="tiles up to N times as long as the training patch: faster, less accurate on small images (default: 1)",
    )  # fmt: skip
    parser.add_argument(
        "--top-k", type=percentage, default=None, metavar="SHARE",
        help="of a cascade, compute only the tiles that the stage before it finds most worthwhile, e.g. 20%%",
    )  # fmt: skip
    parser.add_argument(
        "--skip-empty", action="store_true",
        help="leave out tiles that hold hardly anything brighter than the background: faster, may lose what is dark",
    )  # fmt: skip
    add_outputs(parser)
    parser.add_argument(
        "--no-decision", action="store_true",
        help="decide by the largest logit of the model alone, whatever evaluate --choose chose",
    )  # fmt: skip
    parser.add_argument("--shard", default=None, metavar="N/M", help="only part N of M of the cases, e.g. 2/8")
    parser.add_argument(
        "--resume", action="store_true",
        help="keep segmentations that are verified: of the same image, by the same model and options",
    )  # fmt: skip
    add_json(parser)


def add_outputs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--format", choices=FORMATS, default=None,
        help="of the segmentations, with names and colours of the labels where it has a place for them: seg.nrrd for "
        "3D Slicer, nii.gz for ITK-SNAP, dicom-seg and rtstruct for DICOM series (default: that of each image)",
    )  # fmt: skip
    parser.add_argument(
        "--probabilities", action="store_true", help="also write the probability of each label, a file each"
    )
    parser.add_argument(
        "--uncertainty", action="store_true",
        help="also write maps of entropy and disagreement, and the statistics with both; and the Dice to expect of "
        "each label, where evaluate --expected-dice was run",
    )  # fmt: skip
    parser.add_argument(
        "--statistics", action="store_true", help="also write size, place and intensities of each label and object"
    )
    parser.add_argument(
        "--coco", action="store_true", help="also write boxes and outlines of all objects: OUT/annotations.json (COCO)"
    )
    parser.add_argument(
        "--patients", type=Path, default=None, metavar="TABLE",
        help="CSV with columns case, patient and date: statistics then list each patient's scans in order",
    )  # fmt: skip
    parser.add_argument(
        "--saliency", nargs="+", default=[], metavar="LABEL[@Z,Y,X]",
        help="also write where the networks looked for a label, or for it at a voxel: Grad-CAM, and the "
        "attention of networks that have it",
    )  # fmt: skip
    parser.add_argument(
        "--saliency-stage", default=None, metavar="STAGE",
        help="by which layer: bottleneck | decoder, what makes the logits | 0, 1, ...: an encoder stage "
        "(default: bottleneck)",
    )  # fmt: skip
    parser.add_argument(
        "--saliency-method", choices=("grad_cam", "hires_cam"), default=None,
        help="weight a feature map by the mean of its gradients, or each of its voxels by its own (default: grad_cam "
        "at the bottleneck, otherwise hires_cam)",
    )  # fmt: skip


def add_import_nnunet(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder", type=Path, metavar="FOLDER",
        help="a model that nnU-Net v2 trained: the folder with plans.json, dataset.json and fold_0, ...; or the folder "
        "of a dataset in nnUNet_results, for all its configurations",
    )  # fmt: skip
    parser.add_argument("model", type=Path, metavar="MODEL", help="new folder, to predict with: predict -w MODEL")


def add_status(parser: argparse.ArgumentParser) -> None:
    add_workspace(parser)
    add_plugins(parser)
    add_json(parser)


def add_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", type=Path, nargs="?", default=None, metavar="MODEL.zip", help="the file to write")
    add_workspace(parser)
    parser.add_argument(
        "-c", "--configurations", nargs="+", type=name, default=[],
        help="which to export; several segment together (default: the recommended one)",
    )  # fmt: skip
    parser.add_argument("--network", type=name, default=None, help="default: the planned one")
    parser.add_argument(
        "-f", "--folds", nargs="+", default=["all"],
        help="which folds: 0,2 | full (default: all trained folds; full only if no other is)",
    )  # fmt: skip
    parser.add_argument(
        "--keep-case-ids", action="store_true",
        help="keep names of cases and digests of their images, which may identify patients",
    )  # fmt: skip
    parser.add_argument(
        "--compare", type=whole(0, MAX_WORKERS), default=None, metavar="N",
        help="on so many held-out cases, compare streamed with dense, the file with the workspace, ONNX with torch; 0: "
        "none (default: as many as two minutes allow, at most 2)",
    )  # fmt: skip
    parser.add_argument(
        "--onnx", type=Path, default=None, metavar="DIR",
        help="also, or only, write each fold's network as ONNX to this folder, and compare it with torch",
    )  # fmt: skip
    add_plugins(parser)
    add_json(parser)


def add_info(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", type=Path, metavar="PATH", help="an exported model, a workspace, or a checkpoint")
    add_json(parser)


def add_calibrate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", help="auto | cpu | cuda | cuda:1 (default: auto)")


# name -> what it is for, what adds its options
COMMANDS: dict[str, tuple[str, Callable[[argparse.ArgumentParser], None]]] = {
    "demo": ("test this installation: synthetic data through the whole pipeline", add_demo),
    "check": ("show how a dataset is read, its faults and how to fix them", add_check),
    "plan": ("measure a dataset, configure the training, preprocess", add_plan),
    "floor": ("score thresholds, superpixels and a watershed: is a network needed at all", add_floor),
    "train": ("train folds and predict their held-out cases", add_train),
    "evaluate": ("score the cross-validation, or one folder against another", add_evaluate),
    "compare": ("compare two models, or two folders of segmentations, case by case", add_compare),
    "learning-curve": ("train on shares of the patients: what would more of them bring", add_learning_curve),
    "report": ("write one HTML page: data, plan, training, scores, cases, provenance", add_report),
    "predict": ("segment images with the ensemble of the trained folds", add_predict),
    "refine": ("correct the segmentation of an image by clicks, scribbles and boxes", add_refine),
    "serve": ("open a page on this machine: segment images, correct them by clicks, save", add_serve),
    "rank": ("order training cases by likely label error, or images by what annotating them brings", add_rank),
    "export": ("write a trained model as one file, or its networks as ONNX", add_export),
    "info": ("show what an exported model, a workspace or a checkpoint is", add_info),
    "import-nnunet": ("convert a model that nnU-Net v2 trained into one that predicts the same", add_import_nnunet),
    "status": ("show the state of a workspace and the next command", add_status),
    "calibrate": ("measure this machine's memory and speed for new plans", add_calibrate),
    "env": ("show versions and hardware", add_json),
}
