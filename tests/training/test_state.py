"""The state of a training between two steps: positions, the end at a plateau, restoring, what a step draws."""

import math

import pytest
import torch
from torch import nn

from autoseg.models.checkpoint import save_checkpoint
from autoseg.models.versions import Position, RuntimeSettings, read_checkpoint
from autoseg.planning.plan import Training
from autoseg.training.state import TrainState
from checkpoints import checkpoint_of

CPU = torch.device("cpu")
RUNTIME = RuntimeSettings("float32", channels_last=False, compiled=False, chain="host", forward_seconds=0.1)


def begin(**training) -> TrainState:
    torch.manual_seed(0)
    return TrainState.begin(nn.Linear(3, 2), Training(**training), RUNTIME, CPU)


def step(state: TrainState) -> None:
    state.set_learning_rate(0.3)
    state.seed_step(fold=0, rank=0)
    state.optimizer.zero_grad()
    loss = state.network(torch.rand(4, 3)).square().mean()
    loss.backward()
    state.optimizer.step()
    state.advance(float(loss.detach()), seconds=state.position.seconds + 1)


# ---- position


def test_a_position_counts_what_was_done_and_what_was_left_out():
    position = Position(epoch=2, step=10, seconds=5.0)
    position = position.after(0.5, 6.0).after(math.nan, 8.0).after(0.25, 9.0)
    assert position == Position(
        2, 13, 9.0, epoch_steps=3, epoch_seconds=4.0, loss_sum=0.75, skipped=1, consecutive_nonfinite=0
    )
    assert position.mean_loss == 0.375  # of the two finite ones
    assert position.next_epoch(9.5) == Position(3, 13, 9.5)


def test_nonfinite_steps_in_a_row_are_counted_across_epochs():
    position = Position().after(math.inf, 1.0).after(math.nan, 2.0)
    assert position.consecutive_nonfinite == 2
    assert position.mean_loss is None
    assert position.next_epoch(2.0).after(math.nan, 3.0).consecutive_nonfinite == 3
    assert position.after(1.0, 3.0).consecutive_nonfinite == 0


def test_a_loss_that_is_not_finite_does_not_enter_the_average():
    state = begin(weight_average=0.9)
    before = [weight.clone() for weight in state.average.average]
    with torch.no_grad():
        state.network.weight += 1
    state.advance(math.nan, 1.0)
    assert all(torch.equal(a, b) for a, b in zip(before, state.average.average, strict=True))
    state.advance(0.5, 2.0)
    assert not torch.equal(before[0], state.average.average[0])


def test_a_cool_down_that_is_asked_for_needs_no_plateau_rule():
    """`--finish` at half of the schedule: it takes a tenth of what came before, so that 0.55 is the end."""
    state = begin(patience=0, schedule="poly", learning_rate=1.0)
    assert state.plateau is None
    state.cooling_since = 0.5
    assert state.watch_plateau(0.5, FLAT, 0.5) == ""
    rates = [state.set_learning_rate(progress) for progress in (0.5, 0.51, 0.53, 0.55)]
    assert rates[0] == pytest.approx(0.5**0.9)
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] <= 0.001
    assert state.due_progress(0.53) < 1
    assert state.due_progress(0.55) == 1


# ---- the end at a plateau

FLAT = (0.5, None)  # pseudo Dice of two labels, the second not in the samples


def test_a_plateau_begins_a_cool_down_that_ends_the_training():
    state = begin(patience=3, schedule="cosine", learning_rate=1.0)
    said = [state.watch_plateau(0.5, FLAT, progress) for progress in (0.1, 0.2, 0.3, 0.4)]
    assert said[:3] == ["", "", ""]  # the first is the best, two more are waited for
    assert "cooling down" in said[3]
    assert state.cooling_since == 0.4  # three epochs without a better one
    # it takes a tenth of what came before: it ends at 0.44 of the schedule
    assert state.due_progress(0.4) == pytest.approx(0.4 / 0.44)
    assert state.due_progress(0.42) == pytest.approx(0.42 / 0.44)
    assert state.due_progress(0.441) == 1
    # the schedule's own rate, times 1 - sqrt(share of the cool-down)
    cosine = 0.5 * (1 + math.cos(math.pi * 0.41))
    assert state.set_learning_rate(0.41) == pytest.approx(cosine * (1 - math.sqrt(0.25)))
    assert state.watch_plateau(0.5, FLAT, 0.42) == ""  # it is ending already


def test_a_cool_down_never_outlasts_the_schedule():
    state = begin(patience=1)
    state.watch_plateau(0.5, FLAT, 0.96)
    state.watch_plateau(0.5, FLAT, 0.97)
    assert state.cooling_since == 0.97
    assert state.due_progress(0.985) == pytest.approx(0.985)
    assert state.due_progress(1.0) == 1


def test_an_improving_loss_never_ends_the_training():
    state = begin(patience=2)
    assert {state.watch_plateau(1 - 0.01 * epoch, FLAT, epoch / 100) for epoch in range(100)} == {""}
    assert state.due_progress(0.99) == 0.99


def test_it_takes_the_loss_and_the_dice_to_stand_still():
    """Per epoch the loss and the Dice change by so much; the first values are the best there were before."""
    for loss, dice, ends in ((0.01, 0.01, False), (-0.01, -0.01, False), (0.01, -0.01, True), (0.01, 0.0, True)):
        state = begin(patience=3)
        said = [state.watch_plateau(0.5 + e * loss, (0.5 + e * dice, None), 0.0) for e in range(4)]
        assert [bool(text) for text in said] == [False, False, False, ends]
    unknown = begin(patience=3)  # no label occurs in the samples: the loss alone decides
    assert [bool(unknown.watch_plateau(0.5, (None, None), 0.0)) for _ in range(4)] == [False, False, False, True]


def test_the_last_epoch_has_nothing_to_cool_down():
    state = begin(patience=1)
    assert [state.watch_plateau(0.5, FLAT, progress) for progress in (0.9, 1.0)] == ["", ""]
    assert state.cooling_since is None


def test_patience_0_never_ends_the_training():
    state = begin(patience=0)
    assert {state.watch_plateau(0.5, FLAT, epoch / 100) for epoch in range(100)} == {""}


def test_reduce_on_plateau_reduces_twice_before_it_ends():
    state = begin(patience=2, schedule="reduce_on_plateau", learning_rate=1.0)
    said = [state.watch_plateau(0.5, FLAT, epoch / 100) for epoch in range(6)]
    assert ["reducing" in text for text in said] == [False, False, True, False, True, False]
    assert state.set_learning_rate(0.5) == pytest.approx(0.2 * 0.2)
    assert "cooling down" in state.watch_plateau(0.5, FLAT, 0.06)
    assert state.cooling_since == 0.06
    assert state.set_learning_rate(0.06) == pytest.approx(0.2 * 0.2)  # it cools down from where it is


# ---- restoring


def test_a_restored_state_goes_on_bit_by_bit(tmp_path):
    options = {"optimizer": "adamw", "learning_rate": 0.01, "weight_average": 0.9}
    whole = begin(**options)
    for _ in range(6):
        step(whole)
    half = begin(**options)
    for _ in range(3):
        step(half)
    half.watch_plateau(0.7, FLAT, 0.3)
    half.cooling_since, half.micro_batches, half.rollbacks, half.learning_rate_factor = 0.9, 2, 1, 0.5
    save_checkpoint(tmp_path / "last.pt", checkpoint_of(None, **half.kept()).to_plain())
    resumed = begin(**options)
    with torch.no_grad():
        resumed.network.weight.fill_(7)
    resumed.restore(read_checkpoint(tmp_path / "last.pt"))
    assert (resumed.cooling_since, resumed.micro_batches, resumed.rollbacks) == (0.9, 2, 1)
    assert resumed.plateau == half.plateau
    assert resumed.position == half.position
    assert resumed.learning_rate_factor == 0.5
    resumed.cooling_since, resumed.learning_rate_factor = None, 1.0
    for _ in range(3):
        step(resumed)
    for a, b in zip(whole.network.parameters(), resumed.network.parameters(), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(whole.average.average, resumed.average.average, strict=True):
        assert torch.equal(a, b)
    assert whole.position == resumed.position


def test_what_a_step_draws_follows_from_fold_rank_and_step():
    drawn = {}
    state = begin()
    for fold in (0, 1):
        for rank in (0, 1):
            for steps in (0, 1):
                state.position = Position(step=steps)
                state.seed_step(fold, rank)
                drawn[fold, rank, steps] = float(torch.rand(()))
    assert len(set(drawn.values())) == 8
    torch.rand(5)
    state.seed_step(1, 1)
    assert float(torch.rand(())) == drawn[1, 1, 1]


def test_averaged_weights_are_there_while_they_are_looked_at():
    state = begin(weight_average=0.9)
    for _ in range(3):
        step(state)
    own, average = state.network.weight.detach().clone(), state.average.average[0].clone()
    with state.averaged():
        assert torch.equal(state.network.weight, average)
    assert torch.equal(state.network.weight, own)
    assert torch.equal(state.average.average[0], average)
