"""A fold, opened: everything the loop of `train` works with, built from scratch or from a checkpoint."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from autoseg.dataloading.batches import ChainName
from autoseg.dataloading.store import CaseStore
from autoseg.dataloading.stream import BatchStream
from autoseg.datasets.splits import Split
from autoseg.errors import StateError, UsageError
from autoseg.lines import LOG
from autoseg.models.build import build_plan_loss, build_plan_network
from autoseg.models.checkpoint import CheckpointWriter
from autoseg.models.pretrained import begin_from
from autoseg.models.versions import Checkpoint, RuntimeSettings
from autoseg.nn.blocks import with_channels
from autoseg.nn.distributed import Ranks
from autoseg.nn.precision import forward_seconds
from autoseg.planning.plan import Configuration, Plan, Training
from autoseg.plugins import recorded_plugins
from autoseg.preprocessing.cascade import open_previous
from autoseg.records import to_plain
from autoseg.stopping import StopSignals
from autoseg.training.autotune import apply, choose, worker_count
from autoseg.training.batches import TrainingBatches
from autoseg.training.budget import Clock, epoch_steps
from autoseg.training.fold_folder import FoldFolder
from autoseg.training.logger import FoldLog
from autoseg.training.prompted import Prompting
from autoseg.training.state import TrainState, seed_of
from autoseg.training.validation import Batch, ValidationBatches, choose_batches, samples_to_validate
from autoseg.training.validation_budget import AfterTraining, estimate
from autoseg.workspace import FULL, FoldName, Workspace


@dataclass(frozen=True)
class FoldOptions:
    """How a fold is run; of these options, only `init_from` affects the trained weights."""

    restart: bool = False  # retrain from scratch; what was there is kept beside it under another name
    init_from: Path | None = None  # a trained model, whose weights a new fold begins with
    checkpoint_seconds: float = 60.0
    finish: bool = False  # cool down immediately, then end
    as_begun: bool = False  # the training settings are those of the checkpoint, not those of the plan
    settings: tuple[str, ...] = ()  # with which the plan was changed, for commands that are suggested


@dataclass(frozen=True)
class TrainingTask:
    """One fold to train: plan, configuration, split, device, ranks."""

    workspace: Workspace
    plan: Plan  # with the length of the training already set
    configuration_name: str
    split: Split  # the cases to train on and to validate with
    device: torch.device
    ranks: Ranks  # this process among those that train the fold together
    contents: Mapping[str, Sequence[str]] = field(default_factory=dict)  # of the cases, see `same_training.PARTS`
    beside_network: Callable[[], float] | None = None  # measures seconds of the validation without forward passes
    page: Callable[[], None] | None = None  # rewrites the workspace's report while the fold trains

    @property
    def number(self) -> FoldName:
        return self.split.fold

    @property
    def configuration(self) -> Configuration:
        return self.plan.configurations[self.configuration_name]

    @property
    def unseen_labels(self) -> list[str]:
        """What is scored and in no training case; nothing where the cases are not preprocessed."""
        store = CaseStore(self.workspace.preprocessed(self.configuration.data))
        with suppress(StateError):
            present = store.classes_in(self.split.train)
            return [name for name, classes in self.plan.labels.scored.items() if present.isdisjoint(classes)]
        return []

    @property
    def folder(self) -> Path:
        return self.workspace.fold(self.configuration_name, self.configuration.network.name, self.number)


@dataclass
class TrainingSession:
    """Everything the loop works with."""

    task: TrainingTask
    network: nn.Module  # on the device
    trained: nn.Module  # the same, or what spreads it over several processes
    criterion: nn.Module
    stream_of: Callable[[int], BatchStream]  # from a step on
    validation_samples: ValidationBatches | None  # fixed ones, of validation cases; None where none is held out
    train_samples: ValidationBatches  # fixed ones, of training cases
    state: TrainState
    clock: Clock
    after: AfterTraining  # the last step: how long that takes, and how the validation cases are segmented
    tile: torch.Tensor  # one sample (1, C, *patch) on the device, to time forward passes with
    log: FoldLog
    stop: StopSignals
    checkpoints: CheckpointWriter
    init_from: str | None  # the model whose weights it began with
    folder: FoldFolder
    prompting: Prompting | None = None  # what puts prompts into batches, where the network takes them
    stream: BatchStream | None = None
    raw: Batch | None = None  # the batch of the next step, where it was prepared and is not on the device yet
    ahead: Batch | None = None  # the batch of the next step, where it is on the device already

    def __enter__(self) -> "TrainingSession":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self.stream:
            self.stream.close()
        with suppress(Exception) if kind else nullcontext():  # what ended the training says more
            self.checkpoints.wait()

    def open_stream(self) -> None:
        """Let batches come from where the state stands."""
        self.raw = self.ahead = None
        if self.stream:
            self.stream.close()
            self.stream = None  # with the cases it held, before they are read again
        self.stream = self.stream_of(self.state.position.step)

    def prepare_first(self) -> None:
        """Have the batch prepared that is due."""
        assert self.stream is not None, "the stream was not opened"
        self.raw = next(self.stream)

    def next_batch(self) -> Batch:
        """The batch that is due, on the device."""
        batch, self.ahead = self.ahead or self._bring(), None
        return batch

    def bring_next(self) -> None:
        """Bring the batch after the present one to the device, while that is busy with the step."""
        if self.task.device.type != "cpu" and self.ahead is None:
            self.ahead = self._bring()

    def _bring(self) -> Batch:
        assert self.stream is not None, "the stream was not opened"
        if self.raw is None:
            self.raw = next(self.stream)
        batch = self.stream.finish(self.raw, self.task.device)  # without memory for it, the batch stays due
        self.raw = None
        return batch


def open_fold(
    task: TrainingTask,
    options: FoldOptions,
    stop: StopSignals,
    log: FoldLog,
    folder: FoldFolder,
    saved: Checkpoint | None,
    began: float,
) -> TrainingSession:
    """Build what the loop works with: from scratch, or from a checkpoint.

    Args:
        saved: the checkpoint, on the CPU.
        began: when this process took the fold over, by `time.perf_counter`.

    Raises:
        StateError: the split has no case to train on, or none to validate with (which only FULL may lack).
        UsageError: the start alone took the whole time budget.
    """
    training, device = task.plan.training, task.device

    _check_cases(task.split)
    network, criterion = _network_and_loss(task)
    init_from = saved.init_from if saved else _initialise(network, task, options, folder)

    batches = _batches(task)
    validation_samples, train_samples = _fixed_batches(batches, task.split)
    workers = worker_count(training.workers, device, task.ranks.local_count)

    # What is fastest on this machine; a resumed fold keeps the settings it began with
    image = next(iter(validation_samples or train_samples))["image"].to(device)
    image = with_channels(image, task.plan.input_channels(task.configuration))
    runtime = saved.runtime if saved else _choose(network, task, batches, image, workers)
    apply(runtime, network, image)
    state = TrainState.begin(network, training, runtime, device)
    if saved:
        state.restore(saved)
        LOG.info(f"resumed after epoch {state.position.epoch}, step {state.position.step}")

    def stream_of(step: int) -> BatchStream:
        pinned = device.type == "cuda"
        return batches.stream(state.runtime.chain, start_step=step, worker_count=workers, pin_memory=pinned)

    clock = _clock(training, spent=state.position.seconds + time.perf_counter() - began)  # what was prepared counts
    watched = sum(len(each.places) for each in (train_samples, validation_samples) if each)
    after = _after_training(task, batches.store, runtime, network, image[:1], watched=watched)
    if clock.budget_seconds is not None:
        _begin_budget(clock, after, task.number, resumed=saved is not None)
    return TrainingSession(
        task=task, network=network, trained=task.ranks.wrap(network, device), criterion=criterion, after=after,
        tile=image[:1].clone(), stream_of=stream_of, validation_samples=validation_samples, train_samples=train_samples,
        state=state, clock=clock, log=log, stop=stop, checkpoints=CheckpointWriter(task.folder), init_from=init_from,
        folder=folder, prompting=Prompting(task.plan, task.configuration) if task.configuration.prompts else None,
    )  # fmt: skip


def _check_cases(split: Split) -> None:
    """Raise StateError where a fold has nothing to train on, or nothing to validate with; log it if it is FULL."""
    if not split.train or not (split.validation or split.fold == FULL):
        raise StateError(
            f"fold {split.fold} has {len(split.train)} training cases and {len(split.validation)} validation cases",
            remedy="list cases of both kinds for it in splits.json, or train the other folds",
        )
    if split.fold == FULL:
        LOG.info(
            f"trains on all {len(split.train)} cases and holds none out: loss and Dice are those of training cases, "
            "and training always runs to the end of its schedule, because no plateau can be detected"
        )


def _network_and_loss(task: TrainingTask) -> tuple[nn.Module, nn.Module]:
    """A fresh network and its loss, on the device; the weights follow from the seed and the fold."""
    torch.manual_seed(task.plan.training.seed + seed_of(task.number))
    network = build_plan_network(task.plan, task.configuration).to(task.device)
    network.deep_supervision = task.plan.training.deep_supervision  # type: ignore[assignment]
    return network, build_plan_loss(task.plan, task.configuration).to(task.device)


def _batches(task: TrainingTask) -> TrainingBatches:
    """The batches of a fold's training cases, this process's part of them."""
    store = CaseStore(task.workspace.preprocessed(task.configuration.data))
    cases = (*task.split.train, *task.split.validation)
    previous = open_previous(task.workspace, task.configuration_name, task.configuration, cases)
    return TrainingBatches(
        store, task.split.train, task.plan, task.configuration, previous, task.ranks.rank, task.ranks.count
    )


def _fixed_batches(batches: TrainingBatches, split: Split) -> tuple[ValidationBatches | None, ValidationBatches]:
    """Samples of the validation cases, and half as many of the training cases.

    Where no case is held out: None, and as many of the training cases.
    """
    plan, configuration = batches.plan, batches.configuration
    steps = epoch_steps(plan.training.steps, plan.training.iterations_per_epoch)
    samples = samples_to_validate(configuration.batch_size, steps)

    def of(cases: Sequence[str], count: int) -> ValidationBatches:
        return choose_batches(batches.store, cases, plan, configuration, samples=count, previous=batches.previous)

    if not split.validation:
        return None, of(split.train, samples)
    return of(split.validation, samples), of(split.train, samples // 2)


def _choose(
    network: nn.Module,
    task: TrainingTask,
    batches: TrainingBatches,
    image: torch.Tensor,
    workers: int,
) -> RuntimeSettings:
    """Measure what is fastest here; of several processes, all take what the first one chose."""

    def stream_of(chain: ChainName) -> BatchStream:  # without cases kept in memory: a few batches are taken from it
        return batches.stream(chain, memory_limit=0, pin_memory=task.device.type == "cuda")

    found = choose(
        network, task.plan, task.configuration, stream_of, image, workers=workers,
        seconds=task.plan.training.time_budget_seconds,
    )  # fmt: skip
    return task.ranks.broadcast(found)


def _clock(training: Training, *, spent: float) -> Clock:
    """The clock of a training's schedule, after so many seconds."""
    return Clock(
        spent=spent,
        total_steps=training.total_steps,
        iterations_per_epoch=epoch_steps(training.steps, training.iterations_per_epoch),
        budget_seconds=training.time_budget_seconds,
    )


def _initialise(network: nn.Module, task: TrainingTask, options: FoldOptions, folder: FoldFolder) -> str | None:
    """Begin with the weights of `options.init_from`, if any; returns where that model is to be found from now on."""
    if not options.init_from:
        return place(options.init_from)
    source = begin_from(
        options.init_from, network, task.plan, task.configuration_name, held_out=task.split.validation,
        own=task.folder, contents=task.contents,
    )  # fmt: skip
    lies = folder.where_it_lies(source)
    return place(options.init_from) if lies == source.resolve() else str(lies.parent)


def _begin_budget(clock: Clock, after: AfterTraining, fold: FoldName, *, resumed: bool) -> None:
    """Reserve what the validation needs of a time budget. Raises UsageError where the start alone took all of it."""
    clock.start_seconds = 0.0 if resumed else clock.elapsed()
    if not resumed and clock.remaining() <= 0:
        raise UsageError(
            f"fold {fold}: the time budget of {clock.budget_seconds:.0f} s leaves no time to train: starting took "
            f"{clock.elapsed():.0f} s",
            remedy="give a larger --time-budget",
        )
    if message := after.begin(clock):
        LOG.info(message)


def _after_training(
    task: TrainingTask,
    store: CaseStore,
    runtime: RuntimeSettings,
    network: nn.Module,
    tile: torch.Tensor,
    *,
    watched: int,
) -> AfterTraining:
    """How long it takes after the last step; measured only where that has to be known, under a time budget."""
    seconds, beside = runtime.forward_seconds, None
    if task.plan.training.time_budget_seconds is not None:
        seconds = min(forward_seconds(network, tile, runtime.dtype))
        beside = task.beside_network() if task.beside_network and task.ranks.rank == 0 else None
        seconds, beside = task.ranks.broadcast((seconds, beside))
    return estimate(
        store, task.split, task.plan, task.configuration, device_type=task.device.type, watched=watched,
        forward_seconds=seconds, beside_seconds=beside,
    )  # fmt: skip


def checkpoint_of(fold: TrainingSession, *, finished: bool) -> Checkpoint:
    """All that resumes the fold where it stands; tensors are shared with it."""
    task = fold.task
    return Checkpoint(
        plan=to_plain(task.plan),
        configuration=task.configuration_name,
        fold=task.number,
        train=task.split.train,
        validation=task.split.validation,
        contents={case: tuple(parts) for case, parts in task.contents.items()},
        init_from=fold.init_from,
        plugins=tuple(recorded_plugins()),
        finished=finished,
        history=tuple(row.to_plain() for row in fold.log.history),
        **fold.state.kept(),
    )


def place(model: Path | None) -> str | None:
    """A model by its whole path, so that it is known again from another folder."""
    return str(model.resolve()) if model else None
