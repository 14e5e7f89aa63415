"""What commands advise, as a notebook types it."""

import re
import shlex

import pytest

import autoseg
from autoseg.api.spelling import as_call, in_python
from autoseg.errors import UsageError
from autoseg.messages import LESS_MEMORY, complete, suggest


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("typed", "call"),
    [
        ("plan data", 'plan_dataset("data", workspace="autoseg_workspace")'),
        ("plan 'my data' --vram 8 -w ws", 'plan_dataset("my data", workspace="ws", vram_gb=8)'),
        ("plan d -w ws --no-preprocess", 'plan_dataset("d", workspace="ws", preprocess=False)'),
        ("plan d -w ws --skip-bad", 'plan_dataset("d", skip_bad=True, workspace="ws")'),
        ("plan d --labels a=1,b=2 -w ws", 'plan_dataset("d", labels="a=1,b=2", workspace="ws")'),
        ("train -f 0 --restart -w ws", 'train_folds("ws", folds=0, restart=True)'),
        ("train -f 0,2 -c 2d --time-budget 90s -w ws",
         'train_folds("ws", folds="0,2", configuration="2d", time_budget_seconds=90)'),
        ("train -w ws --set training.steps=5 --set training.loss=dice_ce --set training.epochs=null",
         'train_folds("ws", settings={"training.steps": 5, "training.loss": "dice_ce", "training.epochs": None})'),
        ("train -f full --init-from m/last.pt -w ws", 'train_folds("ws", folds="full", init_from="m/last.pt")'),
        ("evaluate -w ws", 'cross_validate("ws")'),
        ("evaluate --test -w ws", 'score_test_set("ws")'),
        ("evaluate --predictions a --references b -w ws", 'evaluate_folders("a", "b", workspace="ws")'),
        ("compare a b --references r -w ws", 'compare("a", "b", workspace="ws", references="r")'),
        ("learning-curve --steps 9 -f 0 -w ws", 'learning_curve("ws", steps=9)'),
        ("predict -i IMAGES -o OUT -w ws --no-mirroring", 'predict_images("ws", "IMAGES", "OUT", mirroring=False)'),
        ("evaluate --speeds -w ws", 'measure_speeds("ws")'),
        ("evaluate --expected-dice -w ws", 'learn_expected_dice("ws")'),
        ("evaluate --test -m a.zip -w ws", 'score_test_set("ws", model="a.zip")'),
        ("export model.zip -c 2d -w ws", 'export_model("ws", "model.zip", configurations="2d")'),
        ("export --onnx NETS -f 0 -w ws", 'export_onnx("ws", "NETS", folds=0)'),
        ("info model.zip", 'describe_model("model.zip")'),
        ("check data", 'check_dataset("data")'),
        ("check data --fix OUT", 'fix_dataset("data", "OUT")'),
        ("status -w ws", 'status("ws")'),
        ("calibrate --device cuda", 'calibrate_device(device="cuda")'),
    ],
)  # fmt: skip
def test_a_command_is_a_call(typed, call):
    assert as_call(shlex.split(typed)) == f"autoseg.{call}"


@pytest.mark.parametrize(
    "typed", ["env", "demo", "nonsense", "train --nonsense", "predict -i x", "plan a b", "train -f"]
)
def test_what_cannot_be_parsed_is_no_call(typed):
    assert as_call(shlex.split(typed)) == ""


@pytest.mark.parametrize("text", ["see autoseg env", "autoseg demo", "the layouts that autoseg knows"])
def test_what_is_no_call_stays(text):
    assert in_python(text) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("write --vram 8", "write vram_gb=8"),
        ("--vram GB, or --preset m, l, xl", 'vram_gb=GB, or preset="m", l, xl'),
        ("more (--vram 12), or for the CPU (--preset s)", 'more (vram_gb=12), or for the CPU (preset="s")'),
        ("give a larger --time-budget", "give a larger time_budget_seconds"),
        ("omit --init-from to resume", "omit init_from to resume"),
        ("use --device cpu, or auto", 'use device="cpu", or auto'),
        ("retrain from scratch (--restart) with more", "retrain from scratch (restart=True) with more"),
        ("-c 2d --network fcn -f 1 --restart", 'configuration="2d" network="fcn" folds=1 restart=True'),
        ("--set training.epochs=5, or another", 'settings={"training.epochs": 5}, or another'),
        ("--set training.learning_rate=..., --set training.autocast=float32",
         'settings={"training.learning_rate": ...}, settings={"training.autocast": "float32"}'),
        ("if 255 marks voxels, pass --ignore 255", "if 255 marks voxels, pass ignore=255"),
        ("name at least one: --labels liver=1", 'name at least one: labels="liver=1"'),
        ("-m cannot be combined with -c or --network", "models cannot be combined with configuration or network"),
        ("train here: --gpus all", "train here: --gpus all"),
        ("name the file that registers it: --plugin FILE.py", "name the file that registers it: --plugin FILE.py"),
        ("a-b --unknown x - y", "a-b --unknown x - y"),
        ("crop --> grid", "crop --> grid"),
    ],
)  # fmt: skip
def test_an_option_is_a_keyword(text, expected):
    assert in_python(text) == expected


def test_a_command_ends_where_the_sentence_goes_on():
    again = suggest("train", "-f", "0,2", "--restart", workspace=None)
    call = 'autoseg.train_folds("autoseg_workspace", folds="0,2", restart=True)'
    assert in_python(f"retrain: {again} (the old one is renamed); or omit --restart") == (
        f"retrain: {call} (the old one is renamed); or omit restart=True"
    )
    both = f"{suggest('status', workspace=None)}, or {suggest('evaluate', workspace=None)} for scores"
    assert in_python(both) == (
        'autoseg.status("autoseg_workspace"), or autoseg.cross_validate("autoseg_workspace") for scores'
    )


def test_what_is_suggested_without_a_workspace_is_completed(tmp_path):
    text = in_python(complete(LESS_MEMORY, tmp_path / "my ws"))
    assert re.search(rf'autoseg\.plan_dataset\("DATASET", workspace="{tmp_path}/my ws", vram_gb=8\)', text)


def test_an_error_of_a_function_names_its_keywords(tmp_path):
    with pytest.raises(UsageError) as caught:
        autoseg.train_folds(tmp_path, device="tpu")
    assert "--" not in str(caught.value)
    assert 'device="cpu"' in str(caught.value)
    with pytest.raises(autoseg.AutosegError) as missing:
        autoseg.cross_validate(tmp_path / "my ws")
    assert f'autoseg.plan_dataset("DATASET", workspace="{tmp_path}/my ws")' in str(missing.value)
