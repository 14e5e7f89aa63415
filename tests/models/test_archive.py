"""A model as one file: it holds what was trained, names nobody, and is refused where it was changed."""

import json
import os
import re
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from autoseg.commands.export import ExportOptions, export_model
from autoseg.errors import StateError
from autoseg.models.archive import open_archive
from autoseg.models.checkpoint import load_checkpoint, save_checkpoint
from autoseg.models.model import Model
from autoseg.models.opening import fold_weights, models_in, open_models
from autoseg.models.safetensors import chunks, read
from autoseg.planning.plan import Plan
from autoseg.records import from_plain, to_plain
from autoseg.workspace import FULL, Workspace
from exported import IDS, PATIENTS, changed, contents_of, plan_for_tests, scored, workspace_of

CPU = torch.device("cpu")
WEIGHTS, PLAN = "models/3d_fullres-unet/fold_0.safetensors", "models/3d_fullres-unet/plan.json"


def exported(workspace: Workspace, path: Path, **options) -> Path:
    export_model(workspace, path, ExportOptions(**options))
    return path


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    """A model of two folds."""
    folder = tmp_path_factory.mktemp("sound")
    workspace = workspace_of(folder / "workspace")
    scored(workspace)
    return exported(workspace, folder / "model.zip")


def open_all(path: Path) -> list[Model]:
    archive = open_archive(path)
    return models_in(archive, archive.manifest.predicts, folds=None, device=CPU)


def refusal(path: Path) -> str:
    with pytest.raises(StateError) as caught:
        open_all(path)
    assert caught.value.remedy
    return caught.value.what


def same(a: Model, b: Model) -> bool:
    """Whether two models predict the same: weights, and all that is decided by plan and training."""
    pairs = zip(a.networks, b.networks, strict=True)
    weights = all(
        torch.equal(x, y)
        for m, n in pairs
        for x, y in zip(m.state_dict().values(), n.state_dict().values(), strict=True)
    )
    facts = [
        (m.name, m.folds, m.dtype, m.forward_seconds, replace(m.plan, decisions=()), m.networks[0].deep_supervision)
        for m in (a, b)
    ]
    return weights and facts[0] == facts[1] and (a.previous is None or same(a.previous, b.previous))


# ---- what is in it


@pytest.mark.thorough
def test_an_archive_holds_the_models_of_the_workspace(tmp_path):
    workspace = workspace_of(
        tmp_path / "w", configurations=("3d_fullres", "3d_lowres", "3d_cascade"), folds=(0, 1, FULL)
    )
    path = exported(workspace, tmp_path / "a.zip", configurations=("3d_fullres", "3d_cascade"))
    for name in ("3d_fullres", "3d_cascade"):
        (there,) = open_models(workspace.root, configuration=name, device=CPU)
        (here,) = open_models(path, configuration=name, device=CPU)
        assert same(there, here)
    assert [model.name for model in open_models(path, device=CPU)] == ["3d_fullres-unet", "3d_cascade-unet"]
    assert [model.name for model in open_models(path, names=["3d_lowres-unet"], device=CPU)] == ["3d_lowres-unet"]
    (one,) = open_models(path, configuration="3d_cascade", folds=[1], device=CPU)
    assert one.folds == one.previous.folds == (1,)
    for wrong in ({"names": ["2d-unet"]}, {"configuration": "2d"}, {"network": "fcn"}, {"folds": [4]}):
        with pytest.raises(StateError, match="holds no"):
            open_models(path, device=CPU, **wrong)


def test_the_model_of_all_cases_is_exported_where_it_is_named_or_alone(tmp_path):
    workspace = workspace_of(tmp_path / "w", folds=(0, FULL))
    (model,) = open_all(exported(workspace, tmp_path / "a.zip"))
    assert model.folds == (0,)
    (model,) = open_all(exported(workspace, tmp_path / "b.zip", folds=(FULL,)))
    assert model.folds == (FULL,)


def test_averaged_weights_are_exported(tmp_path):
    workspace = workspace_of(tmp_path / "w", folds=(0,))
    path = workspace.fold("3d_fullres", "unet", 0) / "last.pt"
    state = load_checkpoint(path)
    (there,) = open_models(workspace.root, device=CPU)
    state["average"] = [torch.full_like(p, 0.25) for p in there.networks[0].parameters()]
    save_checkpoint(path, state)
    (model,) = open_all(exported(workspace, tmp_path / "a.zip"))
    assert all((p == 0.25).all() for p in model.networks[0].parameters())


def test_a_fold_of_another_plan_keeps_it(tmp_path):
    workspace = workspace_of(tmp_path / "w", folds=(0, 1))
    path = workspace.fold("3d_fullres", "unet", 1) / "last.pt"
    state = load_checkpoint(path)
    state["plan"]["training"]["learning_rate"] = 0.125
    save_checkpoint(path, state)
    archive = open_archive(exported(workspace, tmp_path / "a.zip"))
    plans = [archive.plan(fold).training.learning_rate for fold in archive.manifest.models["3d_fullres-unet"].folds]
    assert plans == [plan_for_tests().training.learning_rate, 0.125]


def test_the_same_model_gives_the_same_file_wherever_it_is(tmp_path):
    files = []
    for name in ("here", "there"):
        workspace = workspace_of(tmp_path / name / "workspace")
        scored(workspace)
        files.append(exported(workspace, tmp_path / f"{name}.zip").read_bytes())
    assert files[0] == files[1]


def test_safetensors_in_it_are_read_by_the_usual_library(sound):
    library = pytest.importorskip("safetensors.torch", reason="safetensors is an oracle: pip install -e '.[dev]'")
    with zipfile.ZipFile(sound) as archive:
        found = library.load(archive.read(WEIGHTS))
    archive = open_archive(sound)
    model = archive.manifest.models["3d_fullres-unet"]
    weights = fold_weights(archive, model, model.folds[0])[2]
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[key], weights[key]) for key in found)


def test_what_other_commands_measured_is_carried(tmp_path):
    workspace = workspace_of(tmp_path / "w")
    folder = workspace.model("3d_fullres", "unet")
    text = '{"version": 1, "rows": [{"speed": "fast", "dice": 0.5}]}'
    (folder / "speeds.json").write_text(text)
    (folder / "expected_dice.json").write_text(json.dumps({"cases": {IDS[0]: 0.5}, "from": "/home/me/w"}))
    contents = contents_of(exported(workspace, tmp_path / "a.zip"))
    assert contents["models/3d_fullres-unet/speeds.json"].decode() == text
    assert json.loads(contents["models/3d_fullres-unet/expected_dice.json"])["cases"].keys() <= {
        f"case-{i}" for i in range(1, 6)
    }
    (folder / "speeds.json").write_text("{")
    with pytest.raises(StateError, match=r"speeds\.json is not valid JSON"):
        exported(workspace, tmp_path / "a.zip")


def test_weights_read_again_compute_the_same(sound):
    rows = json.loads(contents_of(sound)["models/3d_fullres-unet/agreements.json"])["rows"]
    assert [(row["what"], row["value"], row["limit"]) for row in rows] == [("archive against workspace", 0.0, 0.0)]


def test_scores_from_before_the_last_training_stay_behind(tmp_path, said):
    workspace = workspace_of(tmp_path / "w")
    scored(workspace)
    later = workspace.crossval("3d_fullres", "unet").stat().st_mtime + 60
    os.utime(workspace.fold("3d_fullres", "unet", 1) / "last.pt", (later, later))
    export_model(workspace, tmp_path / "a.zip")
    assert "was trained after it was evaluated" in said[0]
    assert "models/3d_fullres-unet/crossval.json" not in contents_of(tmp_path / "a.zip")


@pytest.mark.parametrize("folds", [(0,), (0, 1)])
def test_weights_that_are_not_finite_are_not_exported(tmp_path, folds):
    workspace = workspace_of(tmp_path / "w", folds=folds)
    path = workspace.fold("3d_fullres", "unet", folds[-1]) / "last.pt"
    state = load_checkpoint(path)
    state["network"]["heads.0.bias"][0] = torch.nan
    save_checkpoint(path, state)
    with pytest.raises(StateError, match=rf"fold {folds[-1]} of 3d_fullres-unet has weights .* heads\.0\.bias"):
        exported(workspace, tmp_path / "a.zip")
    assert not (tmp_path / "a.zip").exists()


# ---- nobody is named


def test_nothing_in_it_names_a_case_a_patient_or_a_path(tmp_path, said):
    plan = plan_for_tests()
    decisions = tuple(replace(d, reason=f"{d.reason}; {IDS[0]} is in /home/anna/data/x.nii") for d in plan.decisions)
    workspace = workspace_of(tmp_path / "w", replace(plan, decisions=decisions), init_from="/home/anna/other/last.pt")
    scored(workspace)
    done = export_model(workspace, tmp_path / "a.zip")
    texts = {name: data.decode("utf-8", "replace") for name, data in contents_of(tmp_path / "a.zip").items()}
    for name in (*IDS, *(p for p in PATIENTS), "/data", "/home", str(tmp_path), "hospital", "anna"):
        assert [file for file, text in texts.items() if name in text] == []
    assert done.left_out == (
        "names of cases and patients", "digests of the images", "notes of the fingerprint that list cases", "paths",
    )  # fmt: skip
    assert said[-1].startswith("left out: names of cases and patients, digests")
    assert "Names of cases and patients, digests" in texts["README.md"]
    measured = json.loads(texts["fingerprint.json"])
    assert [case["id"] for case in measured["cases"]] == [f"case-{i}" for i in range(1, 6)]
    assert {case["digest"] for case in measured["cases"]} == {""}
    assert measured["notes"] == ["3 of 5 cases have no foreground"]


def test_a_case_has_one_name_in_all_records(tmp_path):
    """Dice of the first label is 0.5 + i / 10 for the case that was i-th before."""
    workspace = workspace_of(tmp_path / "w")
    scored(workspace)
    plain, kept = (
        contents_of(exported(workspace, tmp_path / f"{keep}.zip", keep_case_ids=keep)) for keep in (False, True)
    )
    crossval = "models/3d_fullres-unet/crossval.json"

    def dice(contents: dict[str, bytes]) -> dict[str, float]:
        folds = json.loads(contents[crossval])["folds"]
        return {case["case"]: case["scores"]["label1"]["dice"] for fold in folds for case in fold["cases"]}

    assert dice(kept) == {name: pytest.approx(0.5 + i / 10) for i, name in enumerate(IDS)}
    assert sorted(dice(plain).values()) == sorted(dice(kept).values())
    assert set(dice(plain)) == {case["id"] for case in json.loads(plain["fingerprint.json"])["cases"]}
    assert {case["id"] for case in json.loads(kept["fingerprint.json"])["cases"]} == set(IDS)
    assert json.loads(kept["manifest.json"])["case_ids_kept"] is True


def test_the_card_says_what_was_measured(sound):
    card = contents_of(sound)["README.md"].decode()
    assert "It segments **label1** (1), **label2** (2) in images of one channel: MR." in card
    assert "- 5 cases of 4 patients" in card  # of two cases one patient
    assert "- voxels (z, y, x): 2 × 1 × 1 mm" in card
    assert "- label1: in 5 of 5 cases, 1.44 to 1.44 ml" in card  # 6 x 10 x 12 voxels of 2 mm3
    (row,) = re.findall(r"^\| label1 \| (.+) \|$", card, re.MULTILINE)
    mean, interval, worst, cases = row.split(" | ")
    assert (mean, worst, cases) == ("0.700", "below 0.520", "5")
    low, high = map(float, interval.split(" to "))
    assert 0.5 <= low < 0.7 < high <= 0.9
    assert "It is not a medical device." in card


def test_the_card_of_a_model_that_was_not_measured_says_so(tmp_path):
    card = contents_of(exported(workspace_of(tmp_path / "w"), tmp_path / "a.zip"))["README.md"].decode()
    assert "not measured" in card


# ---- what is refused


def test_a_sound_archive_is_opened_and_one_that_was_repacked_too(sound, tmp_path):
    (model,) = open_all(sound)
    assert model.folds == (0, 1)
    (again,) = open_all(changed(sound, {}, tmp_path / "a.zip"))
    assert same(model, again)


def as_json(path: Path, name: str, **changes) -> bytes:
    return json.dumps(json.loads(contents_of(path)[name]) | changes).encode()


def test_a_changed_byte_is_found(sound, tmp_path):
    for name in (WEIGHTS, PLAN, "README.md"):
        data = bytearray(contents_of(sound)[name])
        data[-3] ^= 1
        found = refusal(changed(sound, {name: bytes(data)}, tmp_path / "a.zip", listed=False))
        assert f"{name!r} has other content than the manifest says" in found
        found = refusal(changed(sound, {name: bytes(data[:-1])}, tmp_path / "a.zip", listed=False))
        assert f"{name!r} has {len(data) - 1} bytes, the manifest says {len(data)}" in found


def test_files_that_are_missing_or_not_listed(sound, tmp_path):
    assert f"{WEIGHTS!r} is listed in the manifest and missing" in refusal(
        changed(sound, {WEIGHTS: None}, tmp_path / "a.zip", listed=False)
    )
    assert "its file" in refusal(changed(sound, {WEIGHTS: None}, tmp_path / "a.zip"))
    assert "'run.py' is not listed" in refusal(changed(sound, {"run.py": b"1"}, tmp_path / "a.zip", listed=False))
    assert "holds no manifest.json" in refusal(changed(sound, {"manifest.json": None}, tmp_path / "a.zip"))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"version": 2}, "is of version 2; expected 1"), ({"version": "1"}, "is of version '1'"),
        ({"more": 1}, "unknown key 'more'"), ({"format": "other"}, "format: expected one of 'autoseg model'"),
        ({"predicts": ["2d-unet"]}, "there is no model '2d-unet'"), ({"predicts": []}, "1 or more entries"),
        ({"models": {}}, "models"), ({"files": []}, "is not listed in files"),
        ({"labels": {"a": "1"}}, "labels.a"),
    ],
)  # fmt: skip
def test_manifests_that_do_not_fit(sound, tmp_path, changes, why):
    data = as_json(sound, "manifest.json", **changes)
    assert why in refusal(changed(sound, {"manifest.json": data}, tmp_path / "a.zip"))


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"\xff\xff", b'{"a": 1, "a": 2}', b"[" * 100000])
def test_manifests_that_are_not_json(sound, tmp_path, text):
    assert "manifest.json" in refusal(changed(sound, {"manifest.json": text}, tmp_path / "a.zip"))


def with_weights(path: Path, out: Path, change) -> Path:
    """The archive with other tensors, listed as they are."""
    tensors = dict(read(memoryview(bytearray(contents_of(path)[WEIGHTS])), "w"))
    return changed(path, {WEIGHTS: b"".join(chunks(change(tensors)))}, out)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda t: {k: v for k, v in t.items() if k != "heads.0.bias"}, "lacks tensor 'heads.0.bias'"),
        (lambda t: t | {"more": torch.ones(1)}, "has an unknown tensor 'more'"),
        (lambda t: t | {"heads.0.bias": torch.ones(4)}, "'heads.0.bias' of [4] float32, the network of the plan [3]"),
        (lambda t: t | {"heads.0.bias": torch.ones(3).double()}, "of [3] float64, the network of the plan [3] float32"),
        (lambda t: t | {"heads.0.bias": torch.tensor([0, torch.inf, 0])}, "not finite in the tensor 'heads.0.bias'"),
        (lambda t: t | {"heads.0.bias": torch.tensor([0, torch.nan, 0])}, "not finite in the tensor 'heads.0.bias'"),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit_the_network(sound, tmp_path, change, why):
    found = refusal(with_weights(sound, tmp_path / "a.zip", change))
    assert why in found
    assert repr(WEIGHTS) in found


def test_other_bytes_than_weights(sound, tmp_path):
    assert f"{WEIGHTS} cannot be read as safetensors" in refusal(
        changed(sound, {WEIGHTS: b"\x80\x04}." * 9}, tmp_path / "a.zip")
    )


def with_plan(path: Path, out: Path, change) -> Path:
    plan = json.loads(contents_of(path)[PLAN])
    change(plan)
    return changed(path, {PLAN: json.dumps(plan).encode()}, out)


def test_a_plan_that_describes_another_network(sound, tmp_path):
    def larger(plan: dict) -> None:
        plan["configurations"]["3d_fullres"]["network"]["features"] = [8, 17]

    assert "the network of the plan" in refusal(with_plan(sound, tmp_path / "a.zip", larger))


def test_a_plan_that_describes_a_network_larger_than_any_memory(sound, tmp_path):
    """It is compared without being built: 16384 x 16384 kernels of 15 x 15 x 15 are 3.6 TB."""

    def huge(plan: dict) -> None:
        spec = plan["configurations"]["3d_fullres"]["network"]
        spec |= {"features": [16384, 16384], "kernel_sizes": [[15] * 3] * 2, "blocks": [9, 9], "decoder_blocks": [9]}

    assert "the network of the plan" in refusal(with_plan(sound, tmp_path / "a.zip", huge))


def test_a_plan_that_names_what_is_not_there(sound, tmp_path):
    def other(plan: dict) -> None:
        plan["configurations"]["3d_fullres"]["network"]["name"] = "os.system"

    assert "network.name: expected one of 'unet'" in refusal(with_plan(sound, tmp_path / "a.zip", other))


def test_a_cascade_whose_stages_do_not_belong_together(tmp_path):
    workspace = workspace_of(tmp_path / "w", configurations=("3d_lowres", "3d_cascade"), folds=(0,))
    path = exported(workspace, tmp_path / "a.zip", configurations=("3d_cascade",))
    assert [model.previous.name for model in open_all(path)] == ["3d_lowres-unet"]
    manifest = json.loads(contents_of(path)["manifest.json"])
    manifest["models"]["3d_cascade-unet"]["previous"] = None
    data = json.dumps(manifest).encode()
    assert "continues 3d_lowres" in refusal(changed(path, {"manifest.json": data}, tmp_path / "b.zip"))
    manifest["models"]["3d_cascade-unet"]["previous"] = "3d_cascade-unet"
    data = json.dumps(manifest).encode()
    assert "has a previous stage itself" in refusal(changed(path, {"manifest.json": data}, tmp_path / "b.zip"))


def test_a_model_that_needs_a_plugin_asks_for_it(tmp_path):
    plugin = {"name": "my_net.py", "sha256": "ab" * 32}
    workspace = workspace_of(tmp_path / "w", folds=(0,))
    path = exported(workspace, tmp_path / "a.zip")
    manifest = json.loads(contents_of(path)["manifest.json"])
    manifest["models"]["3d_fullres-unet"]["folds"][0]["plugins"] = [plugin]
    changed(path, {"manifest.json": json.dumps(manifest).encode()}, tmp_path / "b.zip")
    with pytest.raises(
        StateError, match=r"b\.zip was trained with the plugin my_net\.py \(sha256 abababababab\)"
    ) as caught:
        open_all(tmp_path / "b.zip")
    assert "--plugin my_net.py" in caught.value.remedy


def test_the_plan_of_an_archive_is_that_of_the_workspace(sound, tmp_path):
    archive = open_archive(sound)
    plan = archive.record(Plan, PLAN)
    wanted = from_plain(Plan, to_plain(plan_for_tests()), "plan")
    assert replace(plan, decisions=()) == replace(wanted, decisions=())
