"""The parts of a fold's training, each by itself: a step, want of memory, the networks and losses of plans."""

import math
import re
import shlex
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from autoseg.commands.parser import build_parser
from autoseg.dataloading.store import CaseStore
from autoseg.datasets.splits import Split
from autoseg.errors import OutOfMemory, StateError, UsageError
from autoseg.imaging.labels import LabelSet
from autoseg.models.build import build_plan_loss, build_plan_network, configuration_mirror_axes, head_probabilities
from autoseg.models.versions import Checkpoint, RuntimeSettings
from autoseg.nn.blocks import Stage
from autoseg.nn.distributed import Ranks
from autoseg.nn.optimization import OPTIMIZERS
from autoseg.planning.plan import ChannelNormalization, Plan, Training
from autoseg.planning.planner import Wishes, make_plan
from autoseg.training.resume import remarks_on_contents, require_same_training
from autoseg.training.setup import FoldOptions, TrainingSession, TrainingTask
from autoseg.training.state import TrainState
from autoseg.training.within_memory import TrainingStep, step_within_memory
from autoseg.workspace import Workspace
from checkpoints import checkpoint_of
from plans import plan_of
from synthetic_fingerprints import label_set, uniform
from synthetic_memory import ElementMemory

CPU = torch.device("cpu")
LABELS = label_set(3)


# ---- one step


class Linear(nn.Module):
    """One number per head: logits are its weight times the image."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, 2.0]))

    def forward(self, image: Tensor) -> list[Tensor]:
        return [self.weight[None, :, None, None] * image]


IMAGE, TARGET = torch.ones(1, 1, 2, 2), torch.zeros(1, 2, 2)
OFF = torch.amp.GradScaler("cpu", enabled=False)


def step(network, criterion, optimizer, *, image=IMAGE, clip=1e9) -> float:
    batch = {"image": image, "target": TARGET}
    return TrainingStep(network, criterion, optimizer, OFF, "float32", clip)(batch)


def total(logits: list[Tensor], target: Tensor) -> Tensor:
    return logits[0].sum()


def root_of_zero(logits: list[Tensor], target: Tensor) -> Tensor:
    return (logits[0] - logits[0].detach()).abs().sqrt().sum() + logits[0].sum()  # a finite loss of endless slope


def test_a_step_goes_down_the_slope():
    """The slope of the sum over four voxels is 4 for either weight; at a rate of 0.1 both lose 0.4."""
    network = Linear()
    loss = step(network, total, torch.optim.SGD(network.parameters(), 0.1))
    assert loss == pytest.approx(4 * (1 + 2))
    assert network.weight.tolist() == pytest.approx([0.6, 1.6])


def test_slopes_do_not_add_up_over_steps():
    network = Linear()
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    for _ in range(2):
        step(network, total, optimizer)
    assert network.weight.tolist() == pytest.approx([0.2, 1.2])


def test_slopes_are_clipped():
    """(4, 4) is sqrt(32) long; clipped to sqrt(2) it is (1, 1)."""
    network = Linear()
    step(network, total, torch.optim.SGD(network.parameters(), 1.0), clip=math.sqrt(2))
    assert network.weight.tolist() == pytest.approx([0.0, 1.0], abs=1e-5)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(
    ("criterion", "image"),
    [
        (lambda logits, target: total(logits, target) * math.nan, IMAGE),
        (lambda logits, target: total(logits, target) * math.inf, IMAGE),
        (lambda logits, target: -total(logits, target) / 0, IMAGE),
        (total, IMAGE * math.nan),
        (total, torch.tensor([[[[1.0, math.inf], [-math.inf, 0]]]])),
        (root_of_zero, IMAGE),
    ],
    ids=["nan", "inf", "-inf", "nan image", "inf image", "slope"],
)
def test_what_is_not_finite_changes_no_weight(optimizer, criterion, image):
    """Nor what the optimiser remembers; weight decay and momentum would move the weights otherwise."""
    network = Linear()
    chosen = OPTIMIZERS[optimizer](network.parameters(), 0.1, 0.1)
    assert math.isfinite(step(network, total, chosen))
    weights, memory = network.weight.detach().clone(), to_plain_memory(chosen)
    assert not math.isfinite(step(network, criterion, chosen, image=image))
    assert torch.equal(network.weight, weights)
    assert to_plain_memory(chosen) == memory
    assert math.isfinite(step(network, total, chosen))
    assert not torch.equal(network.weight, weights)
    assert network.weight.isfinite().all()


@pytest.mark.parametrize(("samples", "parts"), [(4, 2), (5, 2), (5, 5), (3, 2)])
def test_a_batch_in_parts_gives_the_step_of_the_whole(samples, parts):
    """A mean over samples, whatever the sizes of the parts; the weights of voxels are cut as the samples are."""
    generator = torch.Generator().manual_seed(samples)
    batch = {
        "image": torch.randn(samples, 1, 3, 2, generator=generator),
        "target": torch.randint(0, 2, (samples, 3, 2), generator=generator),
        "weights": torch.rand(samples, 3, 2, generator=generator),
    }

    def weighted(logits: list[Tensor], target: Tensor, weights: Tensor) -> Tensor:
        return ((logits[0][:, 1] - target) ** 2 * weights + 0.5 * logits[0][:, 0]).mean()

    results = []
    for n in (1, parts):
        network = Linear()
        optimizer = torch.optim.SGD(network.parameters(), 0.1)
        loss = TrainingStep(network, weighted, optimizer, OFF, "float32", 0.2)(batch, parts=n)
        results.append([loss, *network.weight.tolist()])
    assert results[0] == pytest.approx(results[1], rel=1e-5)


def test_one_bad_part_spoils_the_step():
    network = Linear()
    batch = {"image": torch.ones(2, 1, 2, 2), "target": torch.zeros(2, 2, 2)}
    batch["image"][0] = math.nan
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    loss = TrainingStep(network, total, optimizer, OFF, "float32", 1e9)(batch, parts=2)
    assert math.isnan(loss)
    assert network.weight.tolist() == [1.0, 2.0]


class Memory:
    """A loss for which only so many samples at a time fit."""

    def __init__(self, samples: int, error: Exception) -> None:
        self.samples, self.error = samples, error
        self.seen: list[int] = []

    def __call__(self, logits: list[Tensor], target: Tensor) -> Tensor:
        self.seen.append(len(target))
        if len(target) > self.samples:
            raise self.error
        return logits[0].mean()


def fold_that_needs_memory(criterion: Memory) -> SimpleNamespace:
    network = Linear()
    runtime = RuntimeSettings("float32", channels_last=False, compiled=False, chain="host", forward_seconds=0.1)
    training = Training(gradient_clip=1e9, optimizer="sgd", momentum=0.0, weight_decay=0.0)
    state = TrainState.begin(network, training, runtime, CPU)
    task = SimpleNamespace(plan=SimpleNamespace(training=training), number=0, ranks=Ranks(), device=CPU)
    return SimpleNamespace(
        task=task, state=state, trained=network, criterion=criterion, bring_next=lambda: None, prompting=None
    )


BIG = {"image": torch.ones(6, 1, 2, 2), "target": torch.zeros(6, 2, 2)}


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        MemoryError("unable"),
        RuntimeError("[enforce fail] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
)
def test_out_of_memory_halves_the_parts_until_they_fit(error, said):
    criterion = Memory(2, error)
    fold = fold_that_needs_memory(criterion)
    loss = step_within_memory(fold, BIG)
    assert loss == pytest.approx(1.5)  # of weights 1 and 2 on ones
    assert criterion.seen == [6, 3, 2, 2, 1, 1]  # whole, in two, in four parts
    assert fold.state.micro_batches == 4
    assert [text.split(" into ")[-1] for text in said] == ["2 micro-batches", "4 micro-batches"]
    assert fold.trained.weight.tolist() == pytest.approx([1 - 0.01 / 2, 2 - 0.01 / 2])  # one step, no more
    criterion.seen.clear()
    step_within_memory(fold, BIG)
    assert criterion.seen == [2, 2, 1, 1]  # it is not tried again


def test_a_sample_that_does_not_fit_ends_the_training():
    fold = fold_that_needs_memory(Memory(0, MemoryError("unable to allocate 7 GiB")))
    with pytest.raises(OutOfMemory, match="unable to allocate 7 GiB") as caught:
        step_within_memory(fold, BIG)
    assert caught.value.exit_code == 6
    assert fold.state.micro_batches == 6


def test_as_many_parts_as_samples_at_most():
    """A fold that was begun by one process and goes on in several: each has fewer samples."""
    fold = fold_that_needs_memory(Memory(9, MemoryError()))
    fold.state.micro_batches = 4
    assert math.isfinite(step_within_memory(fold, {name: tensor[:1] for name, tensor in BIG.items()}))


@pytest.mark.parametrize(
    "sign", ["CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED when calling", "MPS backend out of memory"]
)
def test_out_of_memory_has_many_names(sign):
    fold = fold_that_needs_memory(Memory(3, RuntimeError(f"{sign} (and more)")))
    step_within_memory(fold, BIG)
    assert fold.state.micro_batches == 2


class Batches:
    """A stream of numbered batches, of which some do not fit the device at first."""

    def __init__(self, too_large: tuple[int, ...]) -> None:
        self.prepared, self.too_large = -1, list(too_large)

    def __next__(self) -> dict:
        self.prepared += 1
        return {"number": self.prepared}

    def finish(self, batch: dict, device: torch.device) -> dict:
        if batch["number"] in self.too_large:
            self.too_large.remove(batch["number"])
            raise torch.OutOfMemoryError("CUDA out of memory")
        return batch


def test_a_batch_that_does_not_fit_at_first_stays_due():
    """Batch 0 when it is asked for, batch 2 when it is to come beside a step: none is left out, none comes twice."""
    fold = object.__new__(TrainingSession)
    fold.task = SimpleNamespace(device=torch.device("cuda"))
    fold.stream, fold.raw, fold.ahead = Batches(too_large=(0, 2)), None, None
    with pytest.raises(torch.OutOfMemoryError):
        fold.next_batch()
    seen = [fold.next_batch()["number"]]
    fold.bring_next()
    seen.append(fold.next_batch()["number"])
    with pytest.raises(torch.OutOfMemoryError):
        fold.bring_next()
    fold.bring_next()
    seen += [fold.next_batch()["number"] for _ in range(2)]
    assert seen == [0, 1, 2, 3]


def test_without_memory_for_the_optimiser_no_step_is_tried_again(monkeypatch):
    """Half of the weights may be new by then."""
    fold = fold_that_needs_memory(Memory(9, MemoryError()))
    monkeypatch.setattr(fold.state.optimizer, "step", lambda *_, **__: (_ for _ in ()).throw(MemoryError("no room")))
    with pytest.raises(OutOfMemory, match="out of memory for the optimiser state: no room"):
        step_within_memory(fold, BIG)
    assert fold.state.micro_batches == 1


def test_a_scaler_that_finds_no_scale_is_noticed():
    """It skips what is not finite, and halves its scale: below 1 there is none to be found."""
    network = Linear()
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    batch = {"image": IMAGE, "target": TARGET}
    losses = [TrainingStep(network, root_of_zero, optimizer, scaler, "float32", 1.0)(batch) for _ in range(4)]
    assert [math.isfinite(loss) for loss in losses] == [True, True, False, False]
    assert network.weight.tolist() == [1.0, 2.0]


def test_other_errors_are_not_taken_for_want_of_memory():
    fold = fold_that_needs_memory(Memory(0, RuntimeError("expected scalar type Float but found Half")))
    with pytest.raises(RuntimeError, match="scalar type"):
        step_within_memory(fold, BIG)


def to_plain_memory(optimizer: torch.optim.Optimizer) -> list:
    return [
        (name, value.tolist() if isinstance(value, Tensor) else value)
        for state in optimizer.state.values()
        for name, value in state.items()
    ]


# ---- what follows from a plan


def test_probabilities_of_heads():
    logits = torch.tensor([[0.0, 0.0], [math.log(3), 2.0]])[None]  # (1, 2 heads, 2 voxels)
    np.testing.assert_allclose(head_probabilities(logits, False)[0, 1], [0.75, 1 / (1 + math.exp(-2))], rtol=1e-6)
    np.testing.assert_allclose(head_probabilities(logits, True)[0, 0], [0.5, 0.5], rtol=1e-6)
    np.testing.assert_allclose(head_probabilities(logits, True)[0, 1], [0.75, 1 / (1 + math.exp(-2))], rtol=1e-6)


@pytest.mark.parametrize(
    ("axes", "in_space", "in_plane"),
    [((0, 1, 2), (0, 1, 2), (0, 1)), ((0,), (0,), ()), ((1,), (1,), (0,)), ((0, 2), (0, 2), (1,)), ((), (), ())],
)
def test_mirror_axes_of_a_patch(axes, in_space, in_plane):
    """The plan counts (Z, Y, X); a slice has only (Y, X)."""
    plan = plan_of(mirror_axes=axes)
    assert configuration_mirror_axes(plan, plan.configurations["3d_fullres"]) == in_space
    assert configuration_mirror_axes(plan, plan.configurations["2d"]) == in_plane


def task_of(plan: Plan, folder: Path, **cases) -> TrainingTask:
    split = Split(0, **({"train": ("a", "b", "c"), "validation": ("d",)} | cases))
    return TrainingTask(Workspace(folder), plan, "3d_fullres", split, torch.device("cpu"), Ranks())


def test_labels_that_no_training_case_has(tmp_path, monkeypatch):
    """The store says which classes the training cases hold; regions count as soon as one of their labels is there."""
    asked = []
    monkeypatch.setattr(CaseStore, "classes_in", lambda self, ids: asked.append(list(ids)) or {2})
    plan = replace(plan_of(), labels=LabelSet({"one": 1, "two": 5, "three": 9}))
    assert task_of(plan, tmp_path).unseen_labels == ["one", "three"]
    assert asked == [["a", "b", "c"]]
    regions = replace(plan.labels, regions={"both": (1, 5), "inner": (9,)}, region_values=(1, 9))
    assert task_of(replace(plan, labels=regions), tmp_path).unseen_labels == ["inner"]


def test_where_nothing_is_preprocessed_no_label_counts_as_unseen(tmp_path):
    assert task_of(plan_of(), tmp_path).unseen_labels == []


def saved_of(plan: Plan, **more) -> Checkpoint:
    return checkpoint_of(plan, **more)


def test_another_plan_is_refused_and_what_changed_is_named(tmp_path):
    plan = plan_of()
    saved, name = saved_of(plan), "3d_fullres"
    folder = task_of(plan, tmp_path).folder
    other = replace(plan.configurations["2d"], batch_size=99)
    cheaper = replace(plan.configurations[name], cost=None)
    for indifferent in (
        plan,
        replace(plan, decisions=()),  # why is not what
        replace(plan, training=replace(plan.training, workers=7)),
        replace(plan, recommended="2d", vram_gb=3.0),
        replace(plan, configurations=plan.configurations | {"2d": other, name: cheaper}),
    ):
        require_same_training(saved, task_of(indifferent, tmp_path), FoldOptions())
    larger = replace(plan.configurations[name], batch_size=99)
    for changes, named in (
        ({"training": replace(plan.training, seed=5)}, "training.seed differ"),
        (
            {"normalization": (ChannelNormalization("none"),), "axis_order": (1, 0, 2)},
            "axis_order, normalization differ",
        ),
        ({"configurations": plan.configurations | {name: larger}}, "configurations.3d_fullres differ"),
    ):
        with pytest.raises(StateError, match=f"{folder} was trained under a different plan: {named}") as caught:
            require_same_training(saved, task_of(replace(plan, **changes), tmp_path), FoldOptions())
        assert "--restart" in caught.value.remedy
    older = {key: value for key, value in saved.plan.items() if key != "vram_gb"} | {"orientation": "as_stored"}
    with pytest.raises(StateError, match="orientation differ"):
        require_same_training(replace(saved, plan=older), task_of(plan, tmp_path), FoldOptions())


@pytest.mark.parametrize(
    ("cases", "said"),
    [
        ({"train": ("a", "b", "d"), "validation": ("c",)}, "now lists others to train on (2 differ, for instance c)"),
        ({"validation": ("d", "e")}, "now lists others to hold out (1 differ, for instance e)"),
    ],
)
def test_other_cases_are_refused(tmp_path, cases, said):
    """Held-out cases that a fold has learnt from would make the cross-validation worthless."""
    plan = plan_of()
    with pytest.raises(StateError, match=re.escape(f"fold 0 of splits.json {said}")) as caught:
        require_same_training(saved_of(plan), task_of(plan, tmp_path, **cases), FoldOptions())
    assert "restore the splits.json" in caught.value.remedy
    reordered = task_of(plan, tmp_path, train=("c", "b", "a"))
    with pytest.raises(StateError, match="in a different order"):
        require_same_training(saved_of(plan), reordered, FoldOptions())
    require_same_training(saved_of(plan, finished=True), reordered, FoldOptions())


def test_a_refusal_names_the_command_under_which_a_fold_is_what_it_was(tmp_path):
    """Begun with options that were not repeated, and asked for with others."""
    plan = plan_of()
    begun = plan.with_settings(["training.epochs=7", "training.learning_rate=0.5"])
    asked = ("training.seed=5", "training.learning_rate=0.25")
    task = task_of(plan.with_settings(asked), tmp_path)
    with pytest.raises(StateError, match=r"training\.learning_rate, training\.seed differ") as caught:
        require_same_training(saved_of(begun), task, FoldOptions(settings=asked))
    words = shlex.split(caught.value.remedy.partition("with its own settings: ")[2].partition("; or")[0])
    typed = build_parser().parse_args(words[1:])
    again = plan.with_settings([*typed.settings, f"training.epochs={typed.epochs}"])
    assert (typed.folds, typed.configuration, typed.workspace) == (["0"], "3d_fullres", tmp_path)
    require_same_training(saved_of(begun), task_of(again, tmp_path), FoldOptions())
    with pytest.raises(StateError) as caught:
        require_same_training(saved_of(replace(plan, orientation="as_stored")), task, FoldOptions())
    assert "restore the plan.json it was started with" in caught.value.remedy


def with_contents(task: TrainingTask, **contents: tuple[str, str]) -> TrainingTask:
    return replace(task, contents={"a": ("A", "1"), "b": ("B", "2"), "c": ("C", "3"), "d": ("D", "4")} | contents)


def test_other_contents_of_training_cases_are_refused_while_a_fold_is_half_trained(tmp_path):
    """Of a finished fold, and of held-out cases, they are told instead."""
    plan = plan_of()
    task, options = task_of(plan, tmp_path), FoldOptions(settings=("training.seed=1",))
    half = saved_of(plan, contents=with_contents(task).contents)
    done = replace(half, finished=True)
    for saved in (half, done):
        require_same_training(saved, with_contents(task), options)
        assert remarks_on_contents(saved, with_contents(task), options) == []
    relabelled = with_contents(task, b=("B", "two"))
    with pytest.raises(StateError, match="not trained to the end, and since it began the label of b has") as caught:
        require_same_training(half, relabelled, options)
    assert caught.value.exit_code == 4
    assert "-f 0 -c 3d_fullres --network unet --epochs" in caught.value.remedy
    assert f"--set training.seed=1 --restart -w {tmp_path}" in caught.value.remedy
    require_same_training(done, relabelled, options)
    (remark,) = remarks_on_contents(done, relabelled, options)
    assert "since it was trained, the label of b has changed; to retrain it from scratch: autoseg train -f 0" in remark
    held_out = with_contents(task, d=("D", "four"))
    require_same_training(half, held_out, options)
    (remark,) = remarks_on_contents(half, held_out, options)
    assert "of its held-out cases, the label of d has changed: the training resumes" in remark
    (remark,) = remarks_on_contents(done, held_out, options)
    assert f"score it again: autoseg evaluate -c 3d_fullres --network unet -w {tmp_path}" in remark


@pytest.mark.parametrize("asked", ["fold_0", "fold_0/last.pt", ".", "../.."])
def test_a_fold_that_began_from_itself_is_resumed_by_the_same_command(tmp_path, asked):
    """The fold that it was is called otherwise by now."""
    plan = plan_of()
    task = task_of(plan, tmp_path)
    before = task.folder.resolve().with_name("fold_0.before-20260101-120000")
    saved = saved_of(plan, init_from=str(before))
    require_same_training(saved, task, FoldOptions(init_from=task.folder.parent / asked))
    with pytest.raises(StateError, match="was initialised from"):
        require_same_training(saved, task, FoldOptions(init_from=task.folder.parent / "fold_1"))


@pytest.mark.parametrize(
    ("began", "asked", "said"),
    [
        (None, "other", "was initialised from random weights, not from {folder}/other"),
        ("one", "other", "was initialised from {folder}/one, not from {folder}/other"),
        ("one", "one", ""),
        ("one", None, ""),
        (None, None, ""),
    ],
)
def test_a_fold_does_not_begin_from_a_model_twice(tmp_path, monkeypatch, began, asked, said):
    plan = plan_of()
    monkeypatch.chdir(tmp_path)  # models are compared by their whole path
    saved = saved_of(plan, init_from=str(tmp_path.resolve() / began) if began else None)
    refused = pytest.raises(StateError, match=re.escape(said.format(folder=tmp_path.resolve()))) if said else None
    with refused or nullcontext():
        require_same_training(saved, task_of(plan, tmp_path), FoldOptions(init_from=Path(asked) if asked else None))


# ---- networks of plans


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_plan_says_whether_feature_maps_are_kept(checkpointing):
    plan = plan_of()
    configuration = replace(plan.configurations["3d_fullres"], checkpointing=checkpointing)
    stages = [m for m in build_plan_network(plan, configuration).modules() if isinstance(m, Stage)]
    assert stages
    assert {stage.checkpointing for stage in stages} == {checkpointing}


spacings = st.tuples(*[st.floats(0.3, 8.0)] * 3)
shapes = st.tuples(*[st.integers(1, 600)] * 3)


@pytest.mark.thorough
@settings(max_examples=8, deadline=None)
@given(
    spacing=spacings, shape=shapes, entries=st.integers(2, 12), channels=st.integers(1, 4),
    vram=st.sampled_from([None, None, 4.0, 24.0]), rules=st.sampled_from(["autoseg", "nnunet"]),
)  # fmt: skip
def test_every_plan_describes_a_network_that_runs(spacing, shape, entries, channels, vram, rules):
    """With tensors that have shapes alone: no patch is too large for them."""
    labels = label_set(entries)
    names = tuple(f"MR{i}" for i in range(channels))
    found = uniform(spacing, shape, 5, labels, channels=names)
    plan = make_plan(
        dataset="any",
        channels=names,
        labels=labels,
        fingerprint=found,
        wishes=Wishes(rules=rules, vram_gb=vram),
        memory=ElementMemory(),
    )
    for configuration in plan.configurations.values():
        with FakeTensorMode():
            network = build_plan_network(plan, configuration)
            logits = network(torch.zeros(1, plan.input_channels(configuration), *configuration.patch_size))
        strides = np.cumprod(configuration.network.strides, axis=0)
        assert strides.shape[1] == configuration.dims == len(configuration.patch_size)
        assert len(logits) == len(strides) - 1
        for stage, divided in zip(logits, strides, strict=False):
            edges = np.array(configuration.patch_size) / divided
            assert stage.shape == (1, entries, *edges)  # whole numbers, or it is no equality


@pytest.mark.parametrize(
    "labels",
    [
        LABELS,
        LabelSet({"a": 1, "b": 2}, ignore=9),
        LabelSet({"a": 1, "b": 2, "c": 5}, {"whole": (1, 2, 5), "core": (2, 5)}, (1, 2), ignore=9),
    ],
    ids=["labels", "ignore", "regions"],
)
@pytest.mark.parametrize("name", ["2d", "3d_fullres"])
def test_network_and_loss_of_a_plan_fit_together(labels, name):
    """A real step, forward and back: every weight that the loss can reach gets a slope."""
    plan = plan_of(shape=(8, 16, 16), labels=labels)
    configuration = plan.configurations[name]
    torch.manual_seed(0)
    network, criterion = build_plan_network(plan, configuration), build_plan_loss(plan, configuration)
    target = torch.randint(0, labels.num_labels + 1 + (labels.ignore is not None), (2, *configuration.patch_size))
    logits = network(torch.randn(2, 1, *configuration.patch_size))
    assert logits[0].shape[1] == plan.heads.num_heads == (2 if labels.has_regions else labels.num_labels + 1)
    loss = criterion(logits, target.to(torch.uint8))
    loss.backward()
    assert loss.isfinite()
    coarsest = {id(p) for p in network.heads[-1].parameters()} if len(network.heads) > 1 else set()  # weighs nothing
    for parameter in network.parameters():
        if id(parameter) not in coarsest:
            assert parameter.grad is not None
            assert parameter.grad.isfinite().all()
    assert network.encoder[0][0][0].weight.grad.abs().sum() > 0


def test_the_loss_obeys_the_plan():
    """Ignored voxels have no slope; weights of labels and Dice over the batch change the value."""
    plan = plan_of(shape=(8, 16, 16), labels=LabelSet({"a": 1, "b": 2}, ignore=9))
    configuration = plan.configurations["3d_fullres"]
    torch.manual_seed(0)
    logits = [torch.randn(2, 3, 4, 4, 4, requires_grad=True)]
    target = torch.randint(0, 4, (2, 4, 4, 4), dtype=torch.uint8)
    value = build_plan_loss(plan, configuration)(logits, target)
    value.backward()
    slope = logits[0].grad.abs().sum(dim=1)
    assert (slope[target == 3] == 0).all()
    assert (slope[target != 3] > 0).all()
    weighted = replace(plan, training=replace(plan.training, class_weights=(1.0, 5.0, 1.0)))
    over_the_batch = replace(configuration, batch_dice=not configuration.batch_dice)
    for other in (build_plan_loss(weighted, configuration), build_plan_loss(plan, over_the_batch)):
        assert other(logits, target).item() != pytest.approx(value.item(), abs=1e-4)


def test_regions_need_a_loss_with_one_head_each():
    plan = plan_of()
    regions = plan.labels.as_regions()
    with pytest.raises(UsageError, match=r"dice_ce.*regions"):
        build_plan_loss(replace(plan, labels=regions), plan.configurations["3d_fullres"])


def with_network_named(plan, name):
    """The plan with another network in 3d_fullres, and that configuration."""
    old = plan.configurations["3d_fullres"]
    configuration = replace(old, network=replace(old.network, name=name, options={}))
    return replace(plan, configurations=plan.configurations | {"3d_fullres": configuration}), configuration


def test_a_loss_of_queries_needs_a_network_that_has_them():
    plan = plan_of(loss="mask_classification", loss_options={"things": [1, 2]})
    with pytest.raises(UsageError, match="mask_classification reads the queries of a network, and unet has none"):
        build_plan_loss(plan, plan.configurations["3d_fullres"])
    assert build_plan_loss(*with_network_named(plan, "mask_transformer")).loss.things == (1, 2)
    unknown = replace(plan, training=replace(plan.training, loss_options={"things": [2, 3, 7]}))
    with pytest.raises(UsageError, match="things holds 3, 7; labels are numbered 1 to 2"):
        build_plan_loss(*with_network_named(unknown, "mask_transformer"))


def test_a_network_of_exclusive_labels_takes_no_loss_of_regions():
    with pytest.raises(UsageError, match="dice_bce predicts regions, but mask_transformer predicts one label"):
        build_plan_loss(*with_network_named(plan_of(loss="dice_bce"), "mask_transformer"))
    build_plan_loss(*with_network_named(plan_of(loss="dice_topk"), "mask_transformer"))


def test_weights_of_components_need_an_entropy():
    plan = plan_of(loss="tversky", component_weight=1.0)
    with pytest.raises(UsageError, match=r"component_weight .* tversky does not have"):
        build_plan_loss(plan, plan.configurations["3d_fullres"])
