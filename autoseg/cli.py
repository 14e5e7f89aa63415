"""The commands: parse, call one function of the pipeline, print. No logic, and no heavy import before it is needed."""

import argparse
import io
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from autoseg.commands.answers import OPTION, Answer, Outcome, answer
from autoseg.commands.arguments import parse_folds
from autoseg.commands.parser import build_parser
from autoseg.errors import AutosegError, DataError, Misuse, OutOfMemory, Stopped, UsageError
from autoseg.lines import show, shown_by
from autoseg.messages import LESS_MEMORY, complete
from autoseg.plugins import load_plugins

if TYPE_CHECKING:
    from autoseg.datasets.dataset import IntakeOptions

INTERRUPTED = 130
OUT_OF_MEMORY_REMEDY = f"{LESS_MEMORY}, or use a machine with more"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code (see CONTRIBUTING.md for the codes)."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that lacks a character shows its code
            stream.reconfigure(errors="backslashreplace")
    typed = list(sys.argv[1:] if arguments is None else arguments)
    if OPTION in typed:
        return answer(lambda: _outcome(typed, misuse=True))
    return _outcome(typed).code


def _outcome(typed: Sequence[str], *, misuse: bool = False) -> Outcome:
    """Run one command, print what it says, and return how it ended.

    Args:
        misuse: whether a command line that cannot be parsed is an outcome, too, instead of the end of this process.
    """
    command = typed[0] if typed and typed[0] in RUN else None
    try:
        options = build_parser().parse_args(typed)
    except Misuse as error:
        if not misuse:
            raise
        return Outcome(command, 2, error=error)
    workspace = getattr(options, "workspace", None)
    try:
        with shown_by(show):
            load_plugins(getattr(options, "plugins", ()))
            found = RUN[options.command](options)
        return Outcome(command, found.code, found.result) if isinstance(found, Answer) else Outcome(command, found or 0)
    except Stopped as stopped:
        again = [a for a in typed if a != "--restart" or stopped.restart_due]
        again += [option for option in stopped.resumed_with if option not in again]
        resume = shlex.join(["autoseg", *again])
        if "TORCHELASTIC_RUN_ID" in os.environ:
            resume = f"rerun the same torchrun command, which this process is part of: {resume}"
        if os.environ.get("RANK", "0") == "0":  # of several processes that train together, one says it
            print(f"{stopped}\n  -> resume with: {resume}", file=sys.stderr)
        return Outcome(command, stopped.exit_code, error=type(stopped)(stopped.what, remedy=f"resume with: {resume}"))
    except AutosegError as error:
        return _refused(command, error, workspace)
    except KeyboardInterrupt as error:
        print("\nstopped; run the same command to resume from the last checkpoint", file=sys.stderr)
        return Outcome(command, INTERRUPTED, error=error)
    except BrokenPipeError:  # `autoseg ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Outcome(command, 0)
    except Exception as error:
        if not (full := as_out_of_memory(error)):
            raise
        return _refused(command, full, workspace)


def _refused(command: str | None, error: AutosegError, workspace: Path | None) -> Outcome:
    """Print an error of a user, its suggestions completed."""
    error.what, error.remedy = complete(error.what, workspace), complete(error.remedy, workspace)
    print(f"error: {error}", file=sys.stderr)
    return Outcome(command, error.exit_code, error.result, error)


def as_out_of_memory(error: Exception) -> OutOfMemory | None:
    """The error of ours for memory that ran out, which torch reports in several types; None for another error."""
    full = isinstance(error, MemoryError)
    if "torch" in sys.modules:
        from autoseg.nn.training_step import is_out_of_memory

        full = is_out_of_memory(error)
    return OutOfMemory(f"out of memory: {error}", remedy=OUT_OF_MEMORY_REMEDY) if full else None


def run_demo(options: argparse.Namespace) -> int:
    from autoseg.demo.run import run, write_dataset

    if options.data_only:
        print(f"wrote {write_dataset(options.out / 'dataset')}")
        return 0
    return run(options.out, time_budget_seconds=options.time_budget, seed=options.seed)


def run_check(options: argparse.Namespace) -> Answer:
    from autoseg.commands.check import check_dataset
    from autoseg.commands.fix import fix_dataset

    if options.fix is not None:
        fixed = fix_dataset(
            options.dataset, options.fix, _intake(options), mapping=options.map, non_finite_to=options.nan_to,
            workers=options.workers,
        )  # fmt: skip
        return Answer(fixed, 0 if fixed.complete else DataError.exit_code)
    if options.map is not None or options.nan_to is not None:
        raise UsageError("--map and --nan-to change values in a copy", remedy="name the folder of the copy: --fix OUT")
    report = check_dataset(options.dataset, _intake(options), workers=options.workers)
    return Answer(report, 0 if report.usable else DataError.exit_code)


def run_plan(options: argparse.Namespace) -> Answer:
    from autoseg.commands.plan import PlanOptions, plan_dataset
    from autoseg.workspace import Workspace

    plan = plan_dataset(
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
            group=options.group,
        ),
    )
    return Answer(plan)


def run_floor(options: argparse.Namespace) -> Answer:
    from autoseg.commands.floor import FloorOptions, measure_floor
    from autoseg.workspace import Workspace

    chosen = FloorOptions(_intake(options), tune=options.tune, skip_bad=options.skip_bad, workers=options.workers)
    return Answer(measure_floor(options.dataset, Workspace(options.workspace), chosen))


def run_train(options: argparse.Namespace) -> None:
    from autoseg.commands.folds import TrainOptions
    from autoseg.commands.train import train_folds
    from autoseg.workspace import Workspace

    workspace = Workspace(options.workspace)
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
        prompts=options.prompts,
        stop_after_seconds=options.stop_after,
        checkpoint_seconds=options.checkpoint_every,
        settings=tuple(options.settings),
        report=not options.no_report,
    )
    if options.gpus is not None:
        from autoseg.launch.local_gpus import train_on_gpus

        train_on_gpus(workspace, chosen, options.gpus)
    elif options.slurm is not None:
        from autoseg.launch.slurm import parse_slurm, submit_folds

        submit_folds(workspace, chosen, parse_slurm(options.slurm))
    else:
        train_folds(workspace, chosen)


def run_evaluate(options: argparse.Namespace) -> Answer:
    from autoseg.commands.ways_to_evaluate import evaluate_as_asked

    return Answer(evaluate_as_asked(options))


def run_compare(options: argparse.Namespace) -> Answer:
    from autoseg.commands.compare import CompareOptions, compare
    from autoseg.workspace import Workspace

    chosen = CompareOptions(
        references=options.references, labels=options.labels, patients=options.patients, metric=options.metric,
        csv=options.csv, workers=options.workers,
    )  # fmt: skip
    return Answer(compare(options.a, options.b, Workspace(options.workspace), chosen))


def run_report(options: argparse.Namespace) -> Answer:
    from autoseg.commands.report import write_report
    from autoseg.workspace import Workspace

    made = write_report(
        Workspace(options.workspace), options.configuration, network=options.network, out=options.out,
        saliency=options.saliency,
    )  # fmt: skip
    return Answer(made)


def run_learning_curve(options: argparse.Namespace) -> Answer:
    from autoseg.commands.learning_curve import LearningCurveOptions, learning_curve
    from autoseg.workspace import Workspace

    chosen = LearningCurveOptions(
        folds=parse_folds(" ".join(options.folds)), shares=options.shares, configuration=options.configuration,
        network=options.network, epochs=options.epochs, steps=options.steps, time_budget_seconds=options.time_budget,
        device=options.device, restart=options.restart, stop_after_seconds=options.stop_after,
        settings=tuple(options.settings),
    )  # fmt: skip
    return Answer(learning_curve(Workspace(options.workspace), chosen))


def run_predict(options: argparse.Namespace) -> Answer:
    from autoseg.commands.predict import PartlySegmented, PredictOptions, predict_images
    from autoseg.workspace import Workspace

    chosen = PredictOptions(
        configuration=options.configuration, network=options.network, models=tuple(options.models),
        folds=parse_folds(" ".join(options.folds)), unfinished=options.unfinished, device=options.device,
        speed=options.speed, step=options.step, mirroring=False if options.no_mirroring else None, tile=options.tile,
        top_k=options.top_k, skip_empty=options.skip_empty, decision=not options.no_decision, shard=options.shard,
        resume=options.resume,
        format=options.format, probabilities=options.probabilities, uncertainty=options.uncertainty,
        statistics=options.statistics, coco=options.coco, patients=options.patients, saliency=tuple(options.saliency),
        saliency_stage=options.saliency_stage, saliency_method=options.saliency_method,
    )  # fmt: skip
    workspace = Workspace(options.workspace)
    try:
        if options.device == "all" or "," in options.device:
            from autoseg.launch.several_devices import devices_of, predict_on_devices

            files = predict_on_devices(workspace, options.images, options.out, chosen, devices_of(options.device))
        else:
            files = predict_images(workspace, options.images, options.out, chosen)
    except PartlySegmented as partly:
        partly.result = {"files": partly.written, "failed": partly.failed}
        raise
    return Answer({"files": files, "failed": ()})


def run_refine(options: argparse.Namespace) -> Answer:
    from autoseg.commands.predict import PredictOptions
    from autoseg.commands.refine import parse_prompt, refine_case
    from autoseg.workspace import Workspace

    prompts = [parse_prompt(kind, text) for kind, text in options.prompts]
    chosen = PredictOptions(
        configuration=options.configuration, network=options.network, folds=parse_folds(" ".join(options.folds)),
        device=options.device, speed=options.speed,
    )  # fmt: skip
    return Answer(
        refine_case(Workspace(options.workspace), options.images, options.out, prompts, chosen, mask=options.mask)
    )


def run_serve(options: argparse.Namespace) -> None:
    from autoseg.commands.serve import ServeOptions, serve
    from autoseg.workspace import Workspace

    chosen = ServeOptions(
        configuration=options.configuration, network=options.network, folds=parse_folds(" ".join(options.folds)),
        speed=options.speed, device=options.device, folder=options.folder, training_set=options.training_set,
        port=options.port, max_upload=options.max_upload, browser=not options.no_browser,
    )  # fmt: skip
    serve(Workspace(options.workspace), chosen)


def run_rank(options: argparse.Namespace) -> Answer:
    from autoseg.commands.predict import PredictOptions
    from autoseg.commands.rank import rank_cases, rank_images
    from autoseg.workspace import Workspace

    workspace = Workspace(options.workspace)
    if options.images:
        chosen = PredictOptions(
            configuration=options.configuration, network=options.network, models=tuple(options.models),
            device=options.device,
        )  # fmt: skip
        return Answer(rank_images(workspace, options.images, chosen, top=options.top, csv=options.csv))
    if options.models:
        raise UsageError("-m averages models, which orders images", remedy="name images: -i DIR; or omit -m")
    found = rank_cases(
        workspace, options.configuration, network=options.network, device=options.device, top=options.top,
        csv=options.csv,
    )  # fmt: skip
    return Answer(found)


def run_import_nnunet(options: argparse.Namespace) -> None:
    from autoseg.commands.import_nnunet import import_nnunet

    import_nnunet(options.folder, options.model)


def run_export(options: argparse.Namespace) -> Answer:
    from autoseg.commands.export import ExportOptions, export
    from autoseg.workspace import Workspace

    chosen = ExportOptions(
        configurations=tuple(options.configurations), network=options.network,
        folds=parse_folds(" ".join(options.folds)), keep_case_ids=options.keep_case_ids, compare=options.compare,
    )  # fmt: skip
    return Answer(export(Workspace(options.workspace), options.out, options.onnx, chosen))


def run_info(options: argparse.Namespace) -> Answer:
    from autoseg.commands.info import info

    found = info(options.path)
    print(found.describe())
    return Answer(found)


def run_status(options: argparse.Namespace) -> Answer:
    from autoseg.commands.status import status_of
    from autoseg.workspace import Workspace

    found = status_of(Workspace(options.workspace))
    print(found.describe())
    return Answer(found)


def run_calibrate(options: argparse.Namespace) -> None:
    from autoseg.commands.calibrate import calibrate_device

    calibrate_device(options.device)


def run_env(options: argparse.Namespace) -> Answer:
    from autoseg.environment import environment

    found = environment()
    print(found.describe())
    return Answer(found)


def _intake(options: argparse.Namespace) -> "IntakeOptions":
    from autoseg.datasets.dataset import parse_options

    return parse_options(
        channels=options.channels, labels=options.labels, regions=options.regions, ignore=options.ignore,
        patient_regex=options.patient_regex, instances=options.instances, divisor=options.divisor,
    )  # fmt: skip


RUN: dict[str, Callable[[argparse.Namespace], Answer | int | None]] = {  # command -> what runs it
    "demo": run_demo,
    "check": run_check,
    "plan": run_plan,
    "floor": run_floor,
    "train": run_train,
    "evaluate": run_evaluate,
    "compare": run_compare,
    "learning-curve": run_learning_curve,
    "report": run_report,
    "predict": run_predict,
    "refine": run_refine,
    "serve": run_serve,
    "rank": run_rank,
    "export": run_export,
    "info": run_info,
    "import-nnunet": run_import_nnunet,
    "status": run_status,
    "calibrate": run_calibrate,
    "env": run_env,
}
