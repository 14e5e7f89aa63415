"""The commands: parse, call one function of the pipeline, print. No logic, and no heavy import before it is needed."""

import argparse
import io
import os
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from autoseg import __version__
from autoseg.arguments import above, cpu_rate, duration, finite, mapping, name, positive, share, whole
from autoseg.errors import AutosegError, OutOfMemory, Stopped, UsageError
from autoseg.rules import MAX_EPOCHS, MAX_GIGABYTES, MAX_WORKERS
from autoseg.suggestions import DEFAULT_WORKSPACE, LESS_MEMORY, complete

if TYPE_CHECKING:
    from autoseg.dataset import IntakeOptions
    from autoseg.workspace import FoldName

MAX_FOLD = 9999
INTERRUPTED = 130
OUT_OF_MEMORY_REMEDY = f"{LESS_MEMORY}, or use a machine with more"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code (see CONTRIBUTING.md for the codes)."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that lacks a character shows its code
            stream.reconfigure(errors="backslashreplace")
    parser = build_parser()
    options = parser.parse_args(arguments)
    try:
        return options.run(options) or 0
    except Stopped as stopped:
        typed = sys.argv[1:] if arguments is None else arguments
        again = [a for a in typed if a != "--restart" or stopped.restart_due]
        command = shlex.join(["autoseg", *again])
        if "TORCHELASTIC_RUN_ID" in os.environ:
            command = f"the torchrun command as it was, of which this is a part: {command}"
        if os.environ.get("RANK", "0") == "0":  # of several processes that train together, one says it
            print(f"{stopped}\n  -> go on with: {command}", file=sys.stderr)
        return stopped.exit_code
    except AutosegError as error:
        print(f"error: {complete(str(error), getattr(options, 'workspace', None))}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from the last checkpoint", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # `autoseg ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if not _is_out_of_memory(error):
            raise
        remedy = complete(OUT_OF_MEMORY_REMEDY, getattr(options, "workspace", None))
        print(f"error: out of memory: {error}\n  -> {remedy}", file=sys.stderr)
        return OutOfMemory.exit_code


def _is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out; torch is asked, which has many words for it, where the command has imported it."""
    if "torch" not in sys.modules:
        return isinstance(error, MemoryError)
    from autoseg.nn.training_step import is_out_of_memory

    return is_out_of_memory(error)


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
        prog="autoseg", description="Self-configuring segmentation of medical images.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"autoseg {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(called: str, help: str) -> argparse.ArgumentParser:
        return commands.add_parser(called, help=help, allow_abbrev=False)

    demo = command("demo", help="synthetic data through the whole pipeline: does this installation work?")
    demo.add_argument(
        "-o", "--out", type=Path, default=Path("autoseg_demo"), help="where to put it (default: %(default)s)"
    )
    demo.add_argument(
        "--time-budget", type=duration, default=None,
        help="time per fold, e.g. 25s, instead of a fixed number of steps; the machine's speed then decides",
    )  # fmt: skip
    demo.add_argument("--seed", type=int, default=0, help="of the trainings (default: %(default)s)")
    demo.add_argument("--data-only", action="store_true", help="write the dataset and stop")
    demo.set_defaults(run=run_demo)

    check = command("check", help="what was understood of a dataset, what is wrong with it, what to do")
    add_intake(check)
    check.add_argument(
        "--fix", type=Path, default=None, metavar="OUT",
        help="write a corrected copy to this new folder and list every change; the data set itself is never written. A "
        "case whose faults cannot be mended without a guess is left out of the copy and named (exit code 3)",
    )  # fmt: skip
    check.add_argument(
        "--map", type=mapping, default=None, metavar="OLD=NEW,...",
        help="with --fix: label values to change, e.g. 255=1,7=0 (write --map=-1=0 where the first is negative)",
    )  # fmt: skip
    check.add_argument("--nan-to", type=finite, default=None, metavar="VALUE", help="with --fix: for NaN and infinity")
    check.set_defaults(run=run_check)

    plan = command("plan", help="measure a dataset, decide everything, preprocess it")
    add_intake(plan)
    add_workspace(plan)
    plan.add_argument(
        "-c", "--configurations", default="", help="to preprocess, e.g. 2d,3d_fullres (default: recommended)"
    )
    plan.add_argument(
        "--vram", type=above(0, MAX_GIGABYTES), default=None, metavar="GB", help="plan for a GPU of this memory"
    )
    plan.add_argument(
        "--preset", choices=("s", "m", "l", "xl"), default=None,
        help="s: CPU; m, l, xl: residual encoders for 8, 24, 40 GB (default: plain U-Net for the machine at hand)",
    )  # fmt: skip
    plan.add_argument(
        "--network", type=name, default=None, help="architecture, e.g. attention_unet (default: the preset's)"
    )
    plan.add_argument(
        "--rules", choices=("autoseg", "nnunet"), default="autoseg", help="nnunet: its rules alone (default: autoseg)"
    )
    plan.add_argument("--no-preprocess", action="store_true", help="decide only")
    plan.add_argument("--explain", action="store_true", help="print every decision with its reason")
    plan.add_argument(
        "--time-budget", type=duration, default=None,
        help="wall time per fold, to train for and to size a CPU's steps by (default: the recipe's epochs, and 1h)",
    )  # fmt: skip
    plan.add_argument(
        "--cpu-rate", type=cpu_rate, default="measured", metavar="RATE",
        help="speed of the CPU planned for: measured, reference (the same plan on every machine), or times the "
        "reference, e.g. 0.5 (default: measured)",
    )  # fmt: skip
    add_settings(plan)
    plan.set_defaults(run=run_plan)

    train = command("train", help="train folds and predict their held-out cases")
    add_workspace(train)
    train.add_argument(
        "-f", "--folds", nargs="+", default=["all"],
        help="0 | 0 2 | 0,2 | 0..4 | all | full: one model on all cases, none held out (default: all)",
    )  # fmt: skip
    add_model(train)
    length = train.add_mutually_exclusive_group()
    length.add_argument("--epochs", type=whole(1, MAX_EPOCHS), default=None, help="length of each fold's training")
    length.add_argument("--steps", type=positive, default=None, help="the same, in optimiser steps")
    length.add_argument("--time-budget", type=duration, default=None, help="wall time per fold, e.g. 10m, 2h")
    train.add_argument(
        "--init-from",
        type=Path,
        default=None,
        metavar="MODEL",
        help="begin with what fits of a trained model's weights",
    )
    train.add_argument(
        "--stop-after", type=duration, default=None, help="save and stop after so long, e.g. 3h55m; goes on later"
    )
    train.add_argument(
        "--checkpoint-every", type=duration, default=60.0, metavar="TIME", help="at the latest (default: 60s)"
    )
    train.add_argument("--device", default="auto", help="auto | cpu | cuda | cuda:1 | mps (default: auto)")
    train.add_argument(
        "--restart", action="store_true", help="retrain these folds from scratch (the old folders are renamed)"
    )
    train.add_argument(
        "--finish", action="store_true", help="let begun folds cool down now, end, and predict their held-out cases"
    )
    several = train.add_mutually_exclusive_group()
    several.add_argument("--gpus", default=None, help="one fold per GPU at the same time: all, or numbers such as 0,2")
    several.add_argument(
        "--slurm", default=None, metavar="KEY=VALUE,...",
        help="submit the folds to a cluster: partition=gpu,time=24h[,gpus=1,cpus=8,mem=64G,account=...]",
    )  # fmt: skip
    add_settings(train)
    train.set_defaults(run=run_train)

    evaluate = command("evaluate", help="cross-validation table, or two folders against each other")
    add_workspace(evaluate)
    add_model(evaluate)
    evaluate.add_argument("--predictions", type=Path, help="folder of segmentations")
    evaluate.add_argument("--references", type=Path, help="folder of expert labels")
    evaluate.add_argument("--labels", help="liver=1,tumour=2 (default: those of the workspace, or the values found)")
    evaluate.add_argument(
        "--test", action="store_true", help="the ensemble on the dataset's held-out test cases; scored once"
    )
    evaluate.add_argument("--csv", type=Path, help="also write one row per case and label")
    evaluate.add_argument(
        "--workers", type=whole(1, MAX_WORKERS), default=None, help="processes (default: from cores and memory)"
    )
    evaluate.set_defaults(run=run_evaluate)

    predict = command("predict", help="segment images with the ensemble of the trained folds")
    add_workspace(predict)
    predict.add_argument("-i", "--images", type=Path, nargs="+", required=True, help="a folder, or files")
    predict.add_argument("-o", "--out", type=Path, required=True, help="folder for the segmentations")
    add_model(predict)
    predict.add_argument(
        "-m", "--models", nargs="+", default=[], metavar="MODEL",
        help="average these, as their folders are called: 3d_fullres-unet 2d-unet",
    )  # fmt: skip
    predict.add_argument(
        "-f", "--folds", nargs="+", default=["all"],
        help="which folds form the ensemble: 0,2 | full (default: all that are trained; full only where it alone is)",
    )  # fmt: skip
    predict.add_argument(
        "--unfinished", action="store_true", help="also use folds that are not trained to the end, as they stand"
    )
    predict.add_argument("--device", default="auto", help="auto | cpu | cuda | mps (default: auto)")
    predict.add_argument("--step", type=share, default=0.5, help="tile distance as a share of the tile (default: 0.5)")
    predict.add_argument(
        "--no-mirroring", action="store_true", help="no test-time flips: faster, a little less accurate"
    )
    predict.add_argument(
        "--tile", type=float, metavar="N",
        help="tiles up to N times as long as the training patch: faster, less accurate on small images (default: 1)",
    )  # fmt: skip
    predict.set_defaults(run=run_predict)

    status = command("status", help="where this workspace stands and what to type next")
    add_workspace(status)
    status.set_defaults(run=run_status)

    calibrate = command("calibrate", help="measure this machine's memory and speed, for the plans made on it")
    calibrate.add_argument("--device", default="auto", help="auto | cpu | cuda | cuda:1 (default: auto)")
    calibrate.set_defaults(run=run_calibrate)

    env = command("env", help="versions and hardware")
    env.set_defaults(run=run_env)
    return parser


def add_workspace(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-w",
        "--workspace",
        type=Path,
        default=DEFAULT_WORKSPACE,
        help="where everything is kept (default: %(default)s)",
    )


def add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-c", "--configuration", type=name, default=None, help="default: the recommended one")
    parser.add_argument("--network", type=name, default=None, help="default: the one that was planned for")


def add_settings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set", dest="settings", action="append", default=[], metavar="KEY=VALUE",
        help="change a value of the plan, e.g. training.learning_rate=0.001",
    )  # fmt: skip


def add_intake(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", type=Path, help="folder of images and labels, or a CSV/TSV that lists them")
    parser.add_argument("--channels", help="what the channels are, e.g. CT or T1,FLAIR")
    parser.add_argument("--labels", help="names and values, e.g. liver=1,tumour=2")
    parser.add_argument("--regions", help="unions of label values predicted as one, e.g. whole=1+2,core=2")
    parser.add_argument(
        "--ignore", type=whole(-(2**31), 2**31 - 1), help="label value that marks voxels nobody annotated"
    )
    parser.add_argument("--patient-regex", help="its first group, found in the case id, names the patient")
    parser.add_argument("--skip-bad", action="store_true", help="leave faulty cases out instead of refusing")
    parser.add_argument(
        "--workers", type=whole(1, MAX_WORKERS), default=None, help="processes (default: from cores and memory)"
    )


def parse_folds(text: str) -> "tuple[FoldName, ...] | None":
    """Folds of "0", "0,2", "0 2", "0..4", "full"; None for "all"."""
    if text.strip() == "all":
        return None
    folds: list[FoldName] = []
    for part in re.split(r"[,\s]+", text.strip()):
        match = re.fullmatch(r"([0-9]{1,20})\.\.([0-9]{1,20})", part)
        if match and int(match[1]) <= int(match[2]):
            folds.extend(range(int(match[1]), min(int(match[2]), MAX_FOLD + 1) + 1))
        elif re.fullmatch("[0-9]{1,20}", part):
            folds.append(int(part))
        elif part == "full":
            folds.append("full")
        else:
            raise UsageError(f"-f {text!r} names no folds", remedy="write 0, 0,2, 0..4, all or full")
    return tuple(dict.fromkeys(folds))


def run_demo(options: argparse.Namespace) -> int:
    from autoseg.demo import run, write_dataset

    if options.data_only:
        print(f"wrote {write_dataset(options.out / 'dataset')}")
        return 0
    return run(options.out, time_budget_seconds=options.time_budget, seed=options.seed)


def run_check(options: argparse.Namespace) -> int:
    from autoseg.pipeline import check_dataset, fix_dataset

    if options.fix is not None:
        return fix_dataset(
            options.dataset, options.fix, _intake(options), mapping=options.map, non_finite_to=options.nan_to,
            workers=options.workers,
        )  # fmt: skip
    if options.map is not None or options.nan_to is not None:
        raise UsageError("--map and --nan-to change values in a copy", remedy="say where it is to be: --fix OUT")
    return check_dataset(options.dataset, _intake(options), workers=options.workers)


def run_plan(options: argparse.Namespace) -> None:
    from autoseg.pipeline import PlanOptions, plan_dataset
    from autoseg.workspace import Workspace

    plan_dataset(
        options.dataset,
        Workspace(options.workspace),
        PlanOptions(
            intake=_intake(options),
            rules=options.rules,
            preset=options.preset,
            network=options.network,
            vram_gb=options.vram,
            time_budget_seconds=options.time_budget,
            cpu_rate=options.cpu_rate,
            explain=options.explain,
            configurations=tuple(filter(None, options.configurations.split(","))),
            skip_bad=options.skip_bad,
            settings=tuple(options.settings),
            workers=options.workers,
            preprocess=not options.no_preprocess,
        ),
    )


def run_train(options: argparse.Namespace) -> None:
    from autoseg.pipeline import TrainOptions, train_folds
    from autoseg.workspace import Workspace

    workspace = Workspace(options.workspace)
    if options.finish and (options.restart or options.init_from):
        other = "--restart" if options.restart else "--init-from"
        raise UsageError(f"--finish ends what was begun, {other} begins", remedy="leave one of them out")
    chosen = TrainOptions(
        folds=parse_folds(" ".join(options.folds)),
        configuration=options.configuration,
        network=options.network,
        epochs=options.epochs,
        steps=options.steps,
        time_budget_seconds=options.time_budget,
        device=options.device,
        restart=options.restart,
        finish=options.finish,
        init_from=options.init_from,
        stop_after_seconds=options.stop_after,
        checkpoint_seconds=options.checkpoint_every,
        settings=tuple(options.settings),
    )
    if options.gpus is not None:
        from autoseg.pipeline.fleet import train_on_gpus

        train_on_gpus(workspace, chosen, options.gpus)
    elif options.slurm is not None:
        from autoseg.pipeline.slurm import parse_slurm, submit_folds

        submit_folds(workspace, chosen, parse_slurm(options.slurm))
    else:
        train_folds(workspace, chosen)


def run_evaluate(options: argparse.Namespace) -> None:
    from autoseg.pipeline import cross_validate, evaluate_folders, score_test_set
    from autoseg.workspace import Workspace

    workspace = Workspace(options.workspace)
    if (options.predictions is None) != (options.references is None):
        raise UsageError("--predictions and --references go together", remedy="give both, or neither")
    if options.test:
        score_test_set(workspace, options.configuration, network=options.network)
    elif options.predictions is not None:
        evaluate_folders(
            options.predictions, options.references, workspace, labels=options.labels, csv=options.csv,
            workers=options.workers,
        )  # fmt: skip
    else:
        cross_validate(
            workspace, options.configuration, network=options.network, csv=options.csv, workers=options.workers
        )


def run_predict(options: argparse.Namespace) -> None:
    from autoseg.pipeline import predict_images
    from autoseg.workspace import Workspace

    predict_images(
        Workspace(options.workspace), options.images, options.out, configuration=options.configuration,
        network=options.network, models=tuple(options.models), folds=parse_folds(" ".join(options.folds)),
        device=options.device, step=options.step, mirroring=False if options.no_mirroring else None,
        tile=options.tile, unfinished=options.unfinished,
    )  # fmt: skip


def run_status(options: argparse.Namespace) -> None:
    from autoseg.status import status
    from autoseg.workspace import Workspace

    print(status(Workspace(options.workspace)))


def run_calibrate(options: argparse.Namespace) -> None:
    from autoseg.pipeline import calibrate_device

    calibrate_device(options.device)


def run_env(options: argparse.Namespace) -> None:
    from autoseg.status import environment

    print(environment())


def _intake(options: argparse.Namespace) -> "IntakeOptions":
    from autoseg.dataset import parse_options

    return parse_options(
        channels=options.channels, labels=options.labels, regions=options.regions, ignore=options.ignore,
        patient_regex=options.patient_regex,
    )  # fmt: skip
