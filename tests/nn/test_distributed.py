"""Two processes as one training: the same global batch gives the losses and the weights of one process."""

import multiprocessing
import os
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from autoseg.errors import AutosegError, UsageError
from autoseg.nn.blocks import set_checkpointing
from autoseg.nn.deep_supervision import rest_idle_heads
from autoseg.nn.distributed import Ranks, sum_over_ranks
from autoseg.nn.losses import LOSSES, DeepSupervision, traits_of
from autoseg.nn.networks import NETWORKS, build_network
from autoseg.nn.training_step import clipped_gradients, update

CPU = torch.device("cpu")
SHAPE, BATCH, STEPS = (16, 12), 4, 3
IGNORED = 3  # labels 0, 1, 2
PATIENCE = 240  # seconds after which a test that hangs fails
LONG, SHORT = timedelta(seconds=PATIENCE), timedelta(seconds=2)


@dataclass(frozen=True)
class Case:
    """One training; `weighted`: with an ignore label, class weights, voxel weights and a boundary term."""

    loss: str = "dice_ce"
    batch_dice: bool = True
    weighted: bool = False
    network: str = "unet"
    deep_supervision: bool = True
    checkpointing: bool = False
    skipped: tuple[int, ...] = ()  # steps whose loss is computed, and no gradient
    planted: str | None = None  # what two processes do wrong: a name of the code that is replaced


LOSS_CASES = {
    f"{loss}-{'batch' if batch_dice else 'sample'}-{'weighted' if weighted else 'plain'}": Case(
        loss, batch_dice, weighted, network="mask_transformer" if traits_of(loss).queries else "unet"
    )
    for loss in LOSSES
    for batch_dice in (True, False)
    for weighted in (False, True)
}
NETWORK_CASES = {name: Case(network=name, checkpointing=True) for name in NETWORKS}
OTHER_CASES = {
    "without deep supervision": Case(deep_supervision=False),
    "checkpointed, weighted": Case(checkpointing=True, weighted=True),
    "a step skipped by all": Case(skipped=(0, 1)),
}
WEIGHTED = Case(weighted=True)
PLANTED_CASES = {
    "sums of one's own": replace(WEIGHTED, planted="autoseg.nn.losses.sum_over_ranks"),
    "Dice of one's own": Case(loss="tversky", planted="autoseg.nn.losses.sum_over_ranks"),
    "weights of one's own": replace(WEIGHTED, batch_dice=False, planted="autoseg.nn.losses.sum_over_ranks"),
    "hardest of one's own": Case(loss="dice_topk", batch_dice=False, planted="autoseg.nn.losses.sum_over_ranks"),
    "a loss of one's own": Case(batch_dice=False, planted="autoseg.nn.losses.mean_over_ranks"),
    "matched masks of one's own": Case(
        loss="mask_classification",
        network="mask_transformer",
        batch_dice=False,
        planted="autoseg.nn.losses.matched_queries.sum_over_ranks",
    ),
    "a boundary of one's own": replace(WEIGHTED, planted="autoseg.nn.losses.boundary.sum_over_ranks"),
    "gradients of one's own": replace(WEIGHTED, planted="autoseg.nn.distributed._SumOverRanks.backward"),
}
CASES = LOSS_CASES | NETWORK_CASES | OTHER_CASES | PLANTED_CASES


def global_batch(step):
    """Samples that differ much: the first hold little foreground and many ignored voxels, the last the reverse."""
    generator = torch.Generator().manual_seed(step)
    target = torch.zeros(BATCH, *SHAPE, dtype=torch.long)
    for sample in range(BATCH):
        target[sample, 2 : 4 + 3 * sample, 1:6] = 1
        target[sample, 5 : 6 + 3 * sample, 5 : 7 + sample] = 2
        target[sample, :, 7 + 2 * sample :] = IGNORED
    image = target[:, None] / 2 + torch.randn(BATCH, 1, *SHAPE, generator=generator)
    weights = torch.rand(BATCH, *SHAPE, generator=generator) * torch.arange(1, BATCH + 1).view(-1, 1, 1)
    return image, target, weights


def criterion_of(case):
    regions = ((1, 2), (2,)) if case.loss == "dice_bce" else ()
    loss = LOSSES[case.loss](
        regions=regions,
        ignore_index=IGNORED if case.weighted else None,
        class_weights=(0.5, 2.0, 1.0)[len(regions) // 2 :] if case.weighted else None,
        batch_dice=case.batch_dice,
        boundary_weight=0.5 if case.weighted else 0.0,
    )
    return DeepSupervision(loss), len(regions) or 3


def training(case, ranks):
    """Losses of all steps and the weights after them. Ranks start from different weights, if they were left to it."""
    torch.manual_seed(ranks.rank)
    criterion, heads = criterion_of(case)
    network = build_network(
        case.network, in_channels=1, out_channels=heads, features=(4, 8, 8), strides=[(1, 1), (2, 2), (2, 2)],
        kernel_sizes=[(3, 3)] * 3, blocks=[1] * 3, decoder_blocks=[1] * 2,
    )  # fmt: skip
    network.deep_supervision = case.deep_supervision
    set_checkpointing(network, case.checkpointing)
    trained = ranks.wrap(network, CPU)
    # plain steps, without anything that hides how long a gradient is
    optimizer = torch.optim.SGD(network.parameters(), 0.05, momentum=0.9, weight_decay=1e-3)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    share = BATCH // ranks.count
    losses = []
    for step in range(STEPS):
        image, target, weights = (x[ranks.rank * share :][:share] for x in global_batch(step))
        if not case.weighted:
            target = target.where(target != IGNORED, 0)
        optimizer.zero_grad(set_to_none=True)
        loss = criterion(trained(image), target, weights if case.weighted else None)
        losses.append(float(loss.detach()))
        if step not in case.skipped:
            clipped_gradients(loss, network, optimizer, scaler, 100.0)
            update(optimizer, scaler)
    return torch.tensor(losses), network.state_dict()


def own(*arguments):
    """What a process does that asks nobody: what it holds (of `backward`, the last argument)."""
    return arguments[-1]


def train_every_case(ranks, folder):
    results = {}
    for name, case in CASES.items():
        with pytest.MonkeyPatch.context() as patch:
            if case.planted:
                patch.setattr(case.planted, own)
            results[name] = training(case, ranks)
    counts = torch.tensor([[1, 2 + ranks.rank]])
    results["agree"] = ranks.all_max(float(ranks.rank), -float(ranks.rank), 7.5)
    results["sum"] = ranks.all_sum(counts)
    results["mean"] = ranks.all_mean(0.5 + ranks.rank)
    results["first"] = ranks.broadcast({"dtype": "float32", "rank": ranks.rank})
    results["gathered"] = ranks.all_gather([f"case{ranks.rank}", ranks.rank])
    assert counts.tolist() == [[1, 2 + ranks.rank]]  # as they were
    torch.save(results, folder / f"{ranks.rank}.pt")


def be_killed(ranks, folder):
    """Rank 1 ends in the middle of a step; rank 0 hears of it from its gradients."""
    trained = ranks.wrap(torch.nn.Linear(2, 2), CPU)
    if ranks.rank == 1:
        os._exit(3)
    trained(torch.ones(1, 2)).sum().backward()


def fall_asleep(ranks, folder):
    """Rank 1 lets rank 0 wait: at a barrier for longer than the timeout, then in the middle of a work for ever."""
    if ranks.rank == 1:
        time.sleep(2 * SHORT.total_seconds())
    ranks.barrier()
    if ranks.rank == 1:
        time.sleep(PATIENCE)
    (folder / "waited").touch()
    sum_over_ranks(torch.ones(3))


def raise_an_error(ranks, folder):
    """Rank 1 has a problem of its own, and lives on; rank 0 waits for it at a barrier."""
    if ranks.rank == 1:
        with suppress(ValueError), ranks:
            raise ValueError("of its own")
        time.sleep(PATIENCE)
    ranks.barrier()


def process(rank, folder, work, timeout):
    """Do some work as one of two ranks, and write down which error ended it."""
    torch.set_num_threads(1)
    ranks = Ranks(rank, 2, rank)
    try:
        with ranks:
            ranks.init(f"file://{folder}/meeting", "cpu", timeout)
            work(ranks, folder)
    except AutosegError as error:
        (folder / "error.txt").write_text(str(error))
    assert not dist.is_initialized()


def start_two(folder, work, timeout=LONG):
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=process, args=(rank, folder, work, timeout)) for rank in range(2)]
    for each in processes:
        each.start()
    return processes


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """What each of two processes found, for all cases."""
    folder = tmp_path_factory.mktemp("ranks")
    processes = start_two(folder, train_every_case)
    for each in processes:
        each.join(PATIENCE)
    assert [each.exitcode for each in processes] == [0, 0]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def differences(found, expected):
    """Greatest difference of the losses and of the weights."""
    (losses, weights), (alone_losses, alone_weights) = found, expected
    assert weights.keys() == alone_weights.keys()
    apart = max(float((weights[name] - alone_weights[name]).abs().max()) for name in weights)
    return float((losses - alone_losses).abs().max()), apart


TOLERANCE = 2e-5


@pytest.mark.thorough
@pytest.mark.parametrize("name", [*LOSS_CASES, *NETWORK_CASES, *OTHER_CASES])
def test_two_processes_train_as_one(name, together):
    expected = training(CASES[name], Ranks())
    assert expected[0].unique().numel() == STEPS  # steps change something
    for found in together:
        losses, weights = differences(found[name], expected)
        assert losses < TOLERANCE
        assert weights < TOLERANCE


@pytest.mark.thorough
@pytest.mark.parametrize("name", [*LOSS_CASES, *NETWORK_CASES, *OTHER_CASES])
def test_both_processes_hold_the_same_bits(name, together):
    (losses, weights), (other_losses, other_weights) = (found[name] for found in together)
    assert torch.equal(losses, other_losses)
    assert all(torch.equal(weight, other_weights[key]) for key, weight in weights.items())


@pytest.mark.thorough
@pytest.mark.parametrize("name", PLANTED_CASES)
def test_what_a_process_keeps_for_itself_is_noticed(name, together):
    expected = training(replace(CASES[name], planted=None), Ranks())
    assert max(differences(together[0][name], expected)) > 50 * TOLERANCE


@pytest.mark.thorough
def test_processes_agree_and_add_up(together):
    for found in together:
        assert found["agree"] == (1.0, 0.0, 7.5)
        assert found["sum"].tolist() == [[2, 5]]
        assert found["mean"] == 1.0
        assert found["first"] == {"dtype": "float32", "rank": 0}
        assert found["gathered"] == ["case0", 0, "case1", 1]


def test_alone_everything_is_as_it_is():
    ranks, network, counts = Ranks(), torch.nn.Linear(2, 2), torch.tensor([1, 2])
    assert ranks.all_max(3.0, -1.0) == (3.0, -1.0)
    assert ranks.all_mean(0.25) == 0.25
    assert ranks.all_sum(counts) is counts
    assert ranks.broadcast(counts) is counts
    assert ranks.all_gather(("a", "b")) == ["a", "b"]
    assert ranks.wrap(network, CPU) is network
    assert sum_over_ranks(counts) is counts
    ranks.barrier()
    with ranks as same:
        assert same is ranks
    assert not dist.is_initialized()


# ---- heads without a loss


@pytest.mark.parametrize(
    ("name", "stages", "deep", "learning"),
    [
        ("unet", 4, True, [True, True, False]),
        ("unet", 4, False, [True, False, False]),
        ("unet_plusplus", 3, True, [True, False]),
        ("unet", 2, True, [True]),
        ("fcn", 3, True, None),
    ],
)
def test_heads_that_the_loss_does_not_ask_rest(name, stages, deep, learning):
    network = build_network(
        name, in_channels=1, out_channels=2, features=(4,) * stages, strides=[(1, 1)] + [(2, 2)] * (stages - 1),
        kernel_sizes=[(3, 3)] * stages, blocks=[1] * stages, decoder_blocks=[1] * (stages - 1),
    )  # fmt: skip
    network.deep_supervision = not deep
    rest_idle_heads(network)
    network.deep_supervision = deep  # what counts is how it stands at last
    rest_idle_heads(network)
    rest = {name for name, parameter in network.named_parameters() if not parameter.requires_grad}
    resting = [i for i, learns in enumerate(learning or []) if not learns]
    assert rest == {f"heads.{i}.{kind}" for i in resting for kind in ("weight", "bias")}


# ---- when something goes wrong


@pytest.mark.thorough
@pytest.mark.parametrize(("work", "timeout"), [(be_killed, LONG), (fall_asleep, SHORT), (raise_an_error, LONG)])
def test_a_rank_that_is_gone_ends_the_others_with_an_error(tmp_path, work, timeout):
    left, gone = start_two(tmp_path, work, timeout)
    left.join(PATIENCE / 2)
    gone.kill()
    left.kill()  # where it still waits
    left.join()
    assert left.exitcode == 0
    message = (tmp_path / "error.txt").read_text()
    assert "rank 0 of 2: another rank ended, or did not answer in time" in message
    assert "the same command resumes" in message
    assert (tmp_path / "waited").exists() == (work is fall_asleep)  # it was not the barrier that lost patience


def test_other_errors_pass_unchanged():
    with pytest.raises(RuntimeError, match=r"^size of tensor$"), Ranks(0, 2):
        raise RuntimeError("size of tensor")


@pytest.mark.thorough
def test_ranks_that_never_come(tmp_path):
    with pytest.raises(AutosegError, match="rank 0 of 2 did not reach the others within 1 s"):
        Ranks(0, 2, 0).init(f"file://{tmp_path}/meeting", "cpu", timedelta(seconds=1))
    assert not dist.is_initialized()


def test_more_ranks_than_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UsageError, match=r"local rank 1 has no GPU: this machine has 1\n.*--nproc-per-node 1,"):
        Ranks(1, 2, 1).init("env://", "cuda")


def test_ranks_of_a_device_that_has_none():
    with pytest.raises(UsageError, match="2 ranks on the device mps"):
        Ranks(0, 2, 0).init("env://", "mps")


# ---- torchrun


@pytest.mark.parametrize("environment", [{}, {"RANK": "0"}, {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}])
def test_without_other_ranks_a_process_is_alone(monkeypatch, environment):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert Ranks.from_environment("cpu") == Ranks()
    assert not dist.is_initialized()


@pytest.mark.thorough
def test_torchrun_starts_ranks_that_meet(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(f"""
from pathlib import Path
from autoseg.nn.distributed import Ranks
with Ranks.from_environment("cpu") as ranks:
    Path({str(tmp_path)!r}, str(ranks.local_rank)).write_text(f"{{ranks}}, mean {{ranks.all_mean(ranks.rank)}}")
""")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert ended.returncode == 0, ended.stderr
    for rank in range(2):
        assert (
            tmp_path / str(rank)
        ).read_text() == f"Ranks(rank={rank}, count=2, local_rank={rank}, local_count=2), mean 0.5"
