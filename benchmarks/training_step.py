"""A full training step on the CPU, data pipeline included: autoseg beside nnU-Net v2, same network, patch and batch.

    python benchmarks/training_step.py --data DIR --peer PEER_VENV [--rounds 3] [--warm 8] [--steps 12]

DIR holds `hippocampus` in nnU-Net's layout; PEER_VENV is a virtual environment with nnunetv2==2.8.1. Each side plans
and preprocesses by itself, autoseg by nnU-Net's rules; patch, batch and the number of parameters must agree, or it ends
here. Both train fold 0 with SGD and Nesterov momentum, deep supervision, Dice and cross-entropy, and nnU-Net's
augmentation (the recipe "nnunet").

A step is what the loop of either waits for: the next batch of its own workers, forward, backward, clipping, update.
Validation, logs and checkpoints are left out on both sides. The sides take turns (A B C A B C ...), each in a process
of its own that is suspended with all its workers while it is not its turn; the first `--warm` steps of a turn, in which
the queue of batches finds its level again, are not counted. Reported is the median of all counted steps.

Settings:

- nnU-Net: threads as its own command sets them on a CPU (all cores); `nnUNet_n_proc_DA` 1 and 2 (`--peer-workers`; the
  latter is what it would take by itself on two cores), of which the faster counts. It has no autocast on CPUs, and
  refuses to compile there. blosc2 files as it writes them, which its documentation prefers.
- autoseg: what its start-up chooses for a training of half an hour (too short to compile): dtype, memory layout, chain
  of augmentation; its own number of workers.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

NAME = "3d_fullres"
EXPECTED_SECONDS = 1800.0
Step = Callable[[], object]


# ---- the two sides, each in an interpreter of its own


def autoseg_side(folder: Path) -> tuple[Step, dict]:
    """A step of autoseg's training of fold 0, and what it trains."""
    import torch

    from autoseg.commands.inputs import load_records
    from autoseg.dataloading.store import CaseStore
    from autoseg.lines import shown_by
    from autoseg.models.build import build_plan_loss, build_plan_network
    from autoseg.nn.optimization import OPTIMIZERS
    from autoseg.training.autotune import apply, choose, worker_count
    from autoseg.training.batches import TrainingBatches
    from autoseg.training.validation import choose_batches
    from autoseg.training.within_memory import TrainingStep
    from autoseg.workspace import Workspace

    workspace, device = Workspace(folder / "workspace"), torch.device("cpu")
    _, plan, splits = load_records(workspace)
    plan = replace(plan, training=replace(plan.training, augmentation="nnunet"))
    training, configuration, split = plan.training, plan.configurations[NAME], splits.splits[0]
    torch.manual_seed(training.seed)
    store = CaseStore(workspace.preprocessed(configuration.data))
    network = build_plan_network(plan, configuration)
    network.deep_supervision = training.deep_supervision
    criterion = build_plan_loss(plan, configuration)
    workers = worker_count(training.workers, device)

    batches = TrainingBatches(store, split.train, plan, configuration)

    def stream_of(chain: str, processes: int = 0):
        return batches.stream(chain, worker_count=processes)

    said: list[str] = []
    samples = choose_batches(store, split.validation, plan, configuration, samples=configuration.batch_size)
    image = next(iter(samples))["image"]
    with shown_by(said.append):
        runtime = choose(network, plan, configuration, stream_of, image, workers=workers, seconds=EXPECTED_SECONDS)
        apply(runtime, network, image)
    optimizer = OPTIMIZERS[training.optimizer](
        network.parameters(), training.learning_rate, training.weight_decay, training.momentum
    )
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    stream = stream_of(runtime.chain, workers)

    one_step = TrainingStep(network, criterion, optimizer, scaler, runtime.dtype, training.gradient_clip)

    def step() -> None:
        batch = stream.finish(next(stream), device)
        one_step(batch)

    about = _about(network, configuration.patch_size, configuration.batch_size)
    return step, about | {"settings": [*said, f"workers: {workers}", f"optimizer: {training.optimizer}"]}


def peer_side(_: Path) -> tuple[Step, dict]:
    """A step of nnU-Net's training of fold 0, and what it trains."""
    import multiprocessing

    import torch
    from nnunetv2.run.run_training import get_trainer_from_args

    torch.set_num_threads(multiprocessing.cpu_count())  # as nnUNetv2_train does for -device cpu
    trainer = get_trainer_from_args("5", NAME, 0, device=torch.device("cpu"))
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    configuration = trainer.configuration_manager
    about = _about(trainer.network, configuration.patch_size, configuration.batch_size)
    settings = [f"torch {torch.__version__}, threads: {torch.get_num_threads()}, {trainer.dataset_class.__name__}"]
    return lambda: trainer.train_step(next(trainer.dataloader_train)), about | {"settings": settings}


def _about(network, patch_size, batch_size: int) -> dict:
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return {"same": {"parameters": parameters, "patch": list(map(int, patch_size)), "batch": int(batch_size)}}


SIDES = {"autoseg": autoseg_side, "peer": peer_side}


def serve(side: str, folder: Path) -> None:
    """Answer each number on the standard input with the seconds of so many steps."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints is no answer
    step, about = SIDES[side](folder)
    print(json.dumps(about), file=answers, flush=True)
    for line in sys.stdin:
        seconds = []
        for _ in range(int(line)):
            began = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - began)
        print(json.dumps(seconds), file=answers, flush=True)


# ---- the comparison


class Side:
    """A side's process and its workers, suspended unless they are asked."""

    def __init__(self, name: str, python: str, side: str, folder: Path, environment: dict[str, str]) -> None:
        self.log = folder / f"{name}.log"
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [python, __file__, "--serve", side, "--folder", str(folder)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=os.environ | environment,
            )  # fmt: skip
        self.about = self._answer()
        self.suspend()

    def steps(self, number: int) -> list[float]:
        """Take so many steps; the seconds of each."""
        for process in self._family():
            process.resume()
        assert self.process.stdin
        self.process.stdin.write(f"{number}\n")
        self.process.stdin.flush()
        seconds = self._answer()
        self.suspend()
        return seconds

    def suspend(self) -> None:
        for process in self._family():
            process.suspend()

    def end(self) -> None:
        for process in self._family():
            process.kill()
        self.process.wait()

    def _family(self) -> list:
        """This side's processes, the trainer first: it must not see its workers stand still."""
        import psutil

        if self.process.poll() is not None:
            return []
        root = psutil.Process(self.process.pid)
        return [root, *root.children(recursive=True)]

    def _answer(self):
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.process.args} failed:\n{self.log.read_text(errors='replace')[-3000:]}")
        return json.loads(line)


def prepare(folder: Path, data: Path, peer: Path, environment: dict[str, str]) -> None:
    """Let both sides plan and preprocess."""
    raw = folder / "raw" / "Dataset005_Hippocampus"
    shutil.copytree(data / "hippocampus", raw)
    autoseg = [str(Path(sys.executable).parent / "autoseg"), "plan", str(raw), "-w", str(folder / "workspace")]
    autoseg += ["-c", NAME, "--rules", "nnunet", "--vram", "8", "--workers", "2"]
    theirs = [str(peer / "bin" / "nnUNetv2_plan_and_preprocess"), "-d", "5", "-c", NAME, "-np", "2", "-npfp", "2"]
    for command in (autoseg, theirs):
        done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--peer", type=Path)
    parser.add_argument("--peer-workers", default="1,2", help="values of nnUNet_n_proc_DA; the fastest counts")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--warm", type=int, default=8, help="steps at the begin of a turn that are not counted")
    parser.add_argument("--steps", type=int, default=12, help="steps of a turn that are")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, options.folder)
        return
    if not (options.data and options.peer):
        parser.error("--data and --peer are needed")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        paths = {"nnUNet_raw": "raw", "nnUNet_preprocessed": "preprocessed", "nnUNet_results": "results"}
        environment = {name: str(folder / part) for name, part in paths.items()}
        prepare(folder, options.data, options.peer, environment)
        sides: dict[str, Side] = {}
        try:
            sides["autoseg"] = Side("autoseg", sys.executable, "autoseg", folder, {})
            for workers in options.peer_workers.split(","):
                name = f"nnU-Net, {workers} worker(s)"
                settings = environment | {"nnUNet_n_proc_DA": workers}
                sides[name] = Side(name, str(options.peer / "bin" / "python"), "peer", folder, settings)
            compare(sides, options.rounds, options.warm, options.steps)
        finally:
            for side in sides.values():
                side.end()


def compare(sides: dict[str, Side], rounds: int, warm: int, steps: int) -> None:
    """Let the sides take turns, and print the table."""
    print(f"load of the machine: {os.getloadavg()[0]:.1f}; cores: {len(os.sched_getaffinity(0))}")
    same = [side.about["same"] for side in sides.values()]
    if any(other != same[0] for other in same):
        raise SystemExit(f"not the same network, patch and batch: {dict(zip(sides, same, strict=True))}")
    print(f"both train {same[0]}")
    for name, side in sides.items():
        print(f"{name}: {'; '.join(side.about['settings'])}")
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        for name, side in sides.items():
            counted = side.steps(warm + steps)[warm:]
            seconds[name] += counted
            print(f"round {number}  {name:24s} median {statistics.median(counted):.3f} s", flush=True)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    peer = min((name for name in sides if name != "autoseg"), key=medians.__getitem__)
    print("\n| | s per step (median) | lowest | highest |\n|---|---|---|---|")
    for name, values in seconds.items():
        print(f"| {name} | {medians[name]:.3f} | {min(values):.3f} | {max(values):.3f} |")
    print(f"| autoseg / {peer} | {medians['autoseg'] / medians[peer]:.3f} | | |")


if __name__ == "__main__":
    main()
