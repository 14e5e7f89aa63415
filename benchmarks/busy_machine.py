"""A fold under a time budget, beside a process that spins on one core: how much of the budget is used, and for what.

    python benchmarks/busy_machine.py --data DIR [--time-budget 5m] [--sets hippocampus axon_sem] [--core 0] [--idle]
        [--out FOLDER]
    python benchmarks/busy_machine.py --step [--core 0]

DIR holds `hippocampus` and `axon_sem`. The process that spins is pinned to a core, as one of another user may be;
`--idle` leaves it out. A line per set: wall time of the fold from its start to the last prediction that was written,
its share of the budget, the share that went by until the last step, steps, and steps a second.

With `--step` no data are needed: a training step of a network as planned for hippocampus is timed, beside the spinning
process and without it, with threads that wait for each other as GNU's OpenMP lets them and as autoseg sets it.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common import autoseg, steps_done

from autoseg.commands.arguments import duration

INTAKE = {"axon_sem": ["--labels", "myelin=1,axon=2"]}
SPIN = "while True: pass"
WAITS = {"OpenMP's own": {"GOMP_SPINCOUNT": "300000"}, "autoseg's": {}, "none": {"OMP_WAIT_POLICY": "PASSIVE"}}
STEP_SECONDS = 8.0


@contextmanager
def spinning(core: int | None) -> Iterator[None]:
    """Let a process spin on this core while the body runs; None: leave it."""
    if core is None:
        yield
        return
    process = subprocess.Popen([sys.executable, "-c", f"import os; os.sched_setaffinity(0, {{{core}}})\n{SPIN}"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def fold(name: str, data: Path, workspace: Path, budget: str, core: int | None) -> str:
    """Train fold 0 and say how the budget was used, as a line of a table."""
    if not (workspace / "plan.json").exists():
        autoseg("plan", data / name, *INTAKE.get(name, []), "-w", workspace)
    restart = ["--restart"] if list(workspace.glob("models/*/fold_0")) else []
    with spinning(core):
        autoseg("train", "-f", "0", "--time-budget", budget, *restart, "-w", workspace)
    (folder,) = workspace.glob("models/*/fold_0")
    history = folder / "history.jsonl"  # written after the last step
    trained = json.loads(history.read_text(encoding="utf-8").splitlines()[-1])["seconds"]
    written = max(path.stat().st_mtime for path in (folder / "validation").iterdir())
    whole = trained + written - history.stat().st_mtime
    seconds, steps = duration(budget), steps_done(folder)
    inference = json.loads((folder / "inference.json").read_text(encoding="utf-8"))
    return (
        f"| {name} | {'idle' if core is None else 'busy'} | {seconds:.0f} | {whole:.1f} | {whole / seconds:.1%} | "
        f"{trained / seconds:.1%} | {steps} | {steps / trained:.2f} | {'cheaper' if inference['cheaper'] else 'full'} |"
    )


def time_a_step() -> None:
    """Print the median and the longest of the steps that STEP_SECONDS allow, in ms."""
    import torch

    from autoseg.nn.networks import build_network

    torch.manual_seed(0)
    network = build_network(
        "unet", in_channels=1, out_channels=3, features=(16, 32, 64, 128), strides=[(1,) * 3, *[(2,) * 3] * 3],
        kernel_sizes=[(3,) * 3] * 4, blocks=(2,) * 4, decoder_blocks=(2,) * 3,
    )  # fmt: skip
    image, taken = torch.randn(2, 1, 32, 48, 32), []
    while len(taken) < 4 or sum(taken) < STEP_SECONDS:
        began = time.perf_counter()
        sum(stage.float().square().mean() for stage in network(image)).backward()
        taken.append(time.perf_counter() - began)
    later = sorted(taken[1:])
    print(f"{1000 * statistics.median(later):.0f} ms, at most {1000 * later[-1]:.0f}, {len(later)} steps")


def compare_waits(core: int) -> None:
    """Time steps with each way to wait, idle and busy, in processes of their own; twice, in turns."""
    for _ in range(2):
        for where, on in (("idle", None), ("busy", core)):
            for name, setting in WAITS.items():
                kept = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
                with spinning(on):
                    command = [sys.executable, __file__, "--one-step"]
                    found = subprocess.run(command, env=kept | setting, capture_output=True, text=True, check=True)
                print(f"| {where} | {name} | {found.stdout.strip()} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--time-budget", default="5m")
    parser.add_argument("--sets", nargs="+", default=["hippocampus", "axon_sem"])
    parser.add_argument("--core", type=int, default=0)
    parser.add_argument("--idle", action="store_true", help="without the process that spins")
    parser.add_argument("--step", action="store_true", help="time steps alone")
    parser.add_argument("--one-step", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=Path("busy_machine_run"))
    options = parser.parse_args()
    if options.one_step:
        time_a_step()
    elif options.step:
        compare_waits(options.core)
    elif options.data is None:
        parser.error("--data is needed")
    else:
        core = None if options.idle else options.core
        head = ["data", "machine", "budget, s", "fold, s", "of the budget", "until the last step", "steps"]
        rows = [f"| {' | '.join([*head, 'steps/s', 'validation'])} |", "|" + "---|" * 9]
        for name in options.sets:
            rows.append(fold(name, options.data, options.out / name, options.time_budget, core))
        print("\n" + "\n".join(rows))


if __name__ == "__main__":
    main()
