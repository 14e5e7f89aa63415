"""Arguments of the Python interface: what fits, what is refused and with which words, what commands receive."""

import io
import sys
from pathlib import Path

import numpy as np
import pytest

import autoseg
from autoseg.api import keywords
from autoseg.api.keywords import File, FoldNames, Labels, Names, Say, Settings, checked
from autoseg.commands.folds import TrainOptions
from autoseg.commands.plan import PlanOptions
from autoseg.datasets.dataset import IntakeOptions
from autoseg.errors import DataError, OutOfMemory, UsageError
from autoseg.messages import suggest
from autoseg.workspace import Workspace


@checked
def example(
    workspace: File,
    folds: FoldNames | None = None,
    *,
    steps: int | None = None,
    rate: float = 0.5,
    labels: Labels | None = None,
    models: Names = (),
    settings: Settings = (),
    restart: bool = False,
    say: Say | None = print,
) -> dict:
    """Return what was given."""
    return locals()


def got(*args: object, **kwargs: object) -> dict:
    """What of a call is not at its default."""
    usual = example("w")
    return {key: value for key, value in example(*args, **kwargs).items() if value != usual[key]}


@pytest.mark.parametrize(
    ("given", "arrives"),
    [
        ({"folds": 0}, 0),
        ({"folds": [0, "full"]}, (0, "full")),
        ({"folds": np.arange(2)}, (0, 1)),
        ({"folds": range(2)}, (0, 1)),
        ({"steps": np.int64(7)}, 7),
        ({"rate": 1}, 1.0),
        ({"rate": np.float32(0.25)}, 0.25),
        ({"labels": {"liver": np.int16(1)}}, {"liver": 1}),
        ({"models": ["a", "b"]}, ("a", "b")),
        ({"settings": {"training.class_weights": np.array([1, 2])}}, None),
        ({"restart": True}, True),
        ({"say": None}, None),
    ],
)
def test_what_fits(given, arrives):
    (found,) = got("w", **given).values()
    if arrives is not None:
        assert found == arrives
        assert type(found) is type(arrives)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"workspace": 3}, "workspace: expected text or a path, found 3"),
        ({"folds": 0.5}, "a whole number or text or a list of a whole number or text or None, found 0.5"),
        ({"folds": [[0]]}, "found [[0]]"),
        ({"steps": "ten"}, "steps: expected a whole number or None, found 'ten'"),
        ({"steps": 1.0}, "steps: expected a whole number or None, found 1.0"),
        ({"steps": True}, "found True"),
        ({"rate": float("nan")}, "rate: expected a finite number, found nan"),
        ({"rate": 1j}, "found 1j"),
        ({"labels": {"liver": 0.5}}, "labels: expected text or a dict from text to a whole number or text or None"),
        ({"models": {"a"}}, "models: expected text or a list of text"),
        ({"restart": 1}, "restart: expected True or False, found 1"),
        ({"say": "print"}, "say: expected a function or None"),
    ],
)  # fmt: skip
def test_a_wrong_type_says_what_was_expected(given, words):
    with pytest.raises(UsageError) as caught:
        example(**({"workspace": "w"} | given))
    assert words in caught.value.what
    assert caught.value.what.startswith("autoseg.example(): ")


def test_an_unknown_keyword_says_what_there_is():
    with pytest.raises(UsageError, match=r"autoseg.train_folds\(\) has no argument 'step'") as caught:
        autoseg.train_folds("ws", step=100)  # type: ignore[call-arg]
    assert caught.value.remedy.startswith("did you mean steps? it takes workspace, folds, ")
    with pytest.raises(UsageError, match="has no argument 'colour'") as caught:
        example("w", colour=1)  # type: ignore[call-arg]
    assert caught.value.remedy.startswith("it takes workspace, folds")


@pytest.mark.parametrize(
    ("args", "words"), [((), "missing a required argument: 'workspace'"), (("w", 0, 1), "too many")]
)
def test_a_missing_argument_is_named(args, words):
    with pytest.raises(UsageError, match=words):
        example(*args)


def test_help_and_editors_see_the_signature():
    import inspect

    assert str(inspect.signature(autoseg.train_folds)).startswith("(workspace: str | os.PathLike[str], *, folds: ")
    assert autoseg.train_folds.__doc__
    with pytest.raises(AttributeError, match=r"plan_datasets.*plan_dataset"):
        autoseg.plan_datasets  # noqa: B018


@pytest.mark.parametrize(
    ("folds", "names"),
    [
        (None, None), ("all", None), (0, (0,)), ((0, 2), (0, 2)), ("0..2", (0, 1, 2)), ("full", ("full",)),
        ((0, "full"), (0, "full")), (("0..1", 4), (0, 1, 4)), ((1, 1), (1,)),
    ],
)  # fmt: skip
def test_folds(folds, names):
    assert keywords.folds_of(folds) == names


@pytest.mark.parametrize("folds", [-1, (), "4..0", ("all", 0)])
def test_what_names_no_folds(folds):
    with pytest.raises(UsageError, match=r"folds: .* names no folds"):
        keywords.folds_of(folds)


@pytest.mark.parametrize(
    ("settings", "typed"),
    [
        ((), ()),
        ("training.seed=1", ("training.seed=1",)),
        (("training.seed=1", "training.loss=dice_ce"), ("training.seed=1", "training.loss=dice_ce")),
        ({"training.seed": 1, "training.loss": "dice_ce"}, ("training.seed=1", "training.loss=dice_ce")),
        ({"training.steps": None, "x": "7"}, ("training.steps=null", 'x="7"')),  # text stays text
        ({"x": np.array([1.0, 0.5]), "y": (1, 2)}, ("x=[1.0, 0.5]", "y=[1, 2]")),
    ],
)  # fmt: skip
def test_settings(settings, typed):
    assert keywords.settings_of(settings) == typed


def test_a_setting_that_no_plan_can_hold_is_named():
    with pytest.raises(UsageError, match=r"settings: training\.seed: <object"):
        keywords.settings_of({"training.seed": object()})


def test_what_a_dataset_cannot_say_itself():
    wanted = IntakeOptions(("CT", "MR"), {"liver": 1, "tumour": 2}, {"whole": (1, 2)}, 255, "(p.)")
    assert wanted == keywords.intake_of("CT,MR", "liver=1,tumour=2", "whole=1+2", 255, "(p.)")
    assert wanted == keywords.intake_of(("CT", "MR"), {"liver": 1, "tumour": 2}, {"whole": (1, 2)}, 255, "(p.)")
    assert keywords.intake_of() == IntakeOptions()
    assert keywords.intake_of(labels={"liver": "#ff0000"}).colours == {"#ff0000": 1}
    with pytest.raises(UsageError, match="'liver, left' has a comma"):
        keywords.intake_of(labels={"liver, left": 1})


def test_commands_receive_paths_workspaces_and_records(monkeypatch, tmp_path):
    calls = []
    for name in ("plan.plan_dataset", "train.train_folds"):
        monkeypatch.setattr(f"autoseg.commands.{name}", lambda *a: calls.append(a) or [])
    autoseg.plan_dataset("data", workspace=tmp_path, vram_gb=8, preset="m", configurations="2d,3d_fullres")
    autoseg.train_folds("~/ws", folds=[0], steps=100, device="cpu", init_from="a model", settings={"training.seed": 1})
    options = PlanOptions(vram_gb=8, preset="m", configurations=("2d", "3d_fullres"))
    assert calls[0] == (Path("data"), Workspace(tmp_path), options)
    options = TrainOptions(
        folds=(0,), steps=100, device="cpu", init_from=Path("a model"), settings=("training.seed=1",)
    )  # fmt: skip
    assert calls[1] == (Workspace(Path.home() / "ws"), options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"steps": 0}, "steps: expected 1 or more"),
        ({"epochs": 10**7}, "epochs: expected 1 or more, at most 1000000, found 10000000"),
        ({"checkpoint_seconds": -1}, "checkpoint_seconds: expected more than 0"),
        ({"steps": 5, "epochs": 2}, "exclude each other"),
        ({"finish": True, "restart": True}, "finish=True ends a started training"),
    ],
)
def test_a_value_outside_its_range_is_refused(options, words):
    with pytest.raises(UsageError) as caught:
        autoseg.train_folds("ws", **options)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [{"vram_gb": 0.0}, {"workers": -1}, {"cpu_rate": 0}, {"cpu_rate": "fast"}, {"preset": "huge"}, {"rules": "mine"}],
    ids=str,
)
def test_a_plan_that_cannot_be_is_refused(options):
    with pytest.raises(UsageError, match=next(iter(options))):
        autoseg.plan_dataset("data", "ws", **options)


def test_commands_that_errors_suggest_know_the_workspace(tmp_path):
    @checked
    def failing(workspace: File) -> None:
        raise DataError("it is damaged", remedy=suggest("evaluate"))

    with pytest.raises(DataError) as caught:
        failing(tmp_path / "my ws")
    assert caught.value.remedy == f'autoseg.cross_validate("{tmp_path}/my ws")'
    with pytest.raises(autoseg.AutosegError, match=f"{tmp_path}.* does not exist"):
        autoseg.cross_validate(str(tmp_path))


@pytest.mark.parametrize("error", [MemoryError("600 GB"), RuntimeError("CUDNN_STATUS_ALLOC_FAILED, 600 GB")])
def test_memory_that_runs_out_is_one_error(error):
    @checked
    def failing() -> None:
        raise error

    with pytest.raises(OutOfMemory, match=r"out of memory: .*600 GB") as caught:
        failing()
    assert caught.value.__cause__ is error
    assert caught.value.remedy


def test_a_fault_of_the_code_stays_what_it_is():
    @checked
    def failing() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        failing()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("say", "bars"), [(print, True), (None, False)])
def test_progress_bars_are_silenced_with_the_rest(say, bars, monkeypatch):
    from tqdm import tqdm

    @checked
    def counting(*, say: Say | None = print) -> None:
        list(tqdm(range(3), disable=None))
        sys.stderr.write("a warning\n")

    monkeypatch.setattr(sys, "stderr", Terminal())
    counting(say=say)
    assert ("3/3" in sys.stderr.getvalue()) == bars
    assert "a warning" in sys.stderr.getvalue()
