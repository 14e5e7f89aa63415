"""Seconds of a CPU's training step, predicted by the plan, beside those of real steps of the same size.

    python benchmarks/step_seconds.py --data DIR [--networks unet attention_unet] [--threads 1]

With one thread the processor's time is what counts, which other programs hardly change; with more it is the clock's,
and the machine must be quiet.
"""

import argparse
import itertools
import tempfile
import time
from pathlib import Path

import torch

from autoseg.commands.plan import PlanOptions, plan_dataset
from autoseg.nn.blocks import set_checkpointing
from autoseg.nn.optimization import OPTIMIZERS
from autoseg.nn.rate import THREADS_GAIN, measure_rate
from autoseg.nn.training_step import clipped_gradients, loss_of, update
from autoseg.planning.build import build_loss, build_network
from autoseg.planning.fingerprint import Fingerprint
from autoseg.planning.pace import STEP_OVERHEAD
from autoseg.planning.plan import Plan
from autoseg.planning.planner import with_network
from autoseg.records import load
from autoseg.workspace import Workspace

STEPS = 6  # the first warms up, the fastest of the others counts


def real_seconds(plan: Plan, name: str, dtype: str, threads: int) -> float:
    """The fastest of a few real steps of one configuration."""
    clock = time.thread_time if threads == 1 else time.perf_counter
    configuration = plan.configurations[name]
    labels, channels = plan.heads, plan.input_channels(configuration)
    network = build_network(configuration.network, in_channels=channels, out_channels=labels.num_heads)
    set_checkpointing(network, configuration.checkpointing)
    criterion = build_loss(plan.training, labels, batch_dice=configuration.batch_dice, class_weights=None)
    optimizer = OPTIMIZERS[plan.training.optimizer](network.parameters(), 1e-3, 1e-2)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    image = torch.randn(configuration.batch_size, channels, *configuration.patch_size)
    shape = (configuration.batch_size, *configuration.patch_size)
    target = torch.randint(0, labels.num_heads, shape, dtype=torch.uint8)

    def steps():
        while True:
            began = clock()
            optimizer.zero_grad(set_to_none=True)
            total = loss_of(network, criterion, image, target, dtype=dtype)
            clipped_gradients(total, network, optimizer, scaler, 12.0)
            update(optimizer, scaler)
            yield clock() - began

    return min(list(itertools.islice(steps(), STEPS))[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--datasets", nargs="+", default=["hippocampus", "axon_sem", "ms_lesion_mni"])
    parser.add_argument("--networks", nargs="+", default=["unet", "attention_unet"])
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rate = measure_rate()
    print(f"{rate.describe()}: {rate.flops_2d / 1e9:.0f} G in 2-D, {rate.flops_3d / 1e9:.0f} G in 3-D; gain of threads "
          f"taken as {options.threads**THREADS_GAIN:.2f}\n")  # fmt: skip
    print("| dataset | configuration | network | operations, G | predicted, s | real, s | real / predicted |")
    print("|---|---|---|---|---|---|---|")
    for dataset in options.datasets:
        with tempfile.TemporaryDirectory() as folder:
            workspace = Workspace(Path(folder))
            quiet = PlanOptions(preprocess=False, cpu_rate="reference")
            usual = plan_dataset(options.data / dataset, workspace, quiet)
            found = load(Fingerprint, workspace.fingerprint)
        for network in options.networks:
            plan = usual if network == "unet" else with_network(usual, found, network)
            for name in (name for name in ("2d", "3d_fullres") if name in plan.configurations):
                flops = plan.configurations[name].cost.flops
                predicted = STEP_OVERHEAD + flops / rate.by_dims[plan.configurations[name].dims]
                real = real_seconds(plan, name, rate.dtype, options.threads)
                print(
                    f"| {dataset} | {name} | {network} | {flops / 1e9:.3g} | {predicted:.3f} | {real:.3f} | "
                    f"{real / predicted:.2f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
