"""Every network as ONNX: onnxruntime computes what torch does; and the page's example segments as autoseg does."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from autoseg.cli import main
from autoseg.errors import UsageError
from autoseg.models import onnx as module
from autoseg.models.build import build_plan_network
from autoseg.models.model import Model, ready
from autoseg.models.onnx import TOLERANCE, export_fold, require_libraries, steps_of
from autoseg.models.opening import open_models
from autoseg.nn.networks import NETWORKS
from autoseg.nn.sliding_window import predict_logits
from autoseg.planning.plan import NetworkSpec, Plan
from exported import contents_of, plan_for_tests, workspace_of

pytestmark = pytest.mark.thorough
REASON = "needs the onnx extra: pip install onnx onnxruntime onnxscript"
WITH_ONNX = pytest.mark.usefixtures("libraries")
PAGE = Path(__file__).parents[2] / "docs" / "onnx.md"
CPU = torch.device("cpu")


@pytest.fixture
def libraries() -> None:
    for name in module.NEEDED:
        pytest.importorskip(name, reason=REASON)


def plan_with(network: str, dims: int) -> tuple[Plan, str]:
    """A plan with a small network of this name."""
    plan, name = plan_for_tests(), {2: "2d", 3: "3d_fullres"}[dims]
    spec = NetworkSpec(
        network, (8, 16, 24), ((1,) * dims, (2,) * dims, (2,) * dims), ((3,) * dims,) * 3, (1, 1, 1), (1, 1)
    )  # fmt: skip
    patch = (16, 32, 32)[-dims:]
    changed = replace(plan.configurations[name], network=spec, patch_size=patch)
    return replace(plan, configurations={**plan.configurations, name: changed}), name


def model_with(network: str, dims: int) -> Model:
    plan, name = plan_with(network, dims)
    torch.manual_seed(0)
    made = ready(build_plan_network(plan, plan.configurations[name]))
    return Model(plan, name, (0,), (made,), "float32", 0.1, CPU)


@pytest.mark.slow
@WITH_ONNX
@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_computes_the_same(tmp_path, name, dims):
    made = export_fold(model_with(name, dims), 0, tmp_path / "a.onnx")
    assert made.difference <= TOLERANCE
    assert made.path.exists()
    (row,) = re.findall(rf"^\| `{name}` \|.*$", PAGE.read_text(), re.MULTILINE)
    assert made.any_size == (row.split("|")[3].strip() != "the patch"), row


@WITH_ONNX
def test_a_file_that_computes_something_else_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "TOLERANCE", -1.0)
    with pytest.raises(Exception, match="cannot be exported as ONNX: its logits differ by"):
        export_fold(model_with("fcn", 2), 0, tmp_path / "a.onnx")
    assert not (tmp_path / "a.onnx").exists()


def test_without_the_extra_the_libraries_are_named(monkeypatch):
    monkeypatch.setattr(module, "NEEDED", ("numpy", "no_such_library"))
    with pytest.raises(UsageError, match="no_such_library is not installed") as caught:
        require_libraries()
    assert caught.value.remedy.endswith("pip install numpy no_such_library")


def test_sizes_are_multiples_of_the_product_of_the_strides():
    plan, name = plan_with("unet", 3)
    assert steps_of(plan.configurations[name]) == (4, 4, 4)


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    for name in module.NEEDED:
        pytest.importorskip(name, reason=REASON)
    root = tmp_path_factory.mktemp("onnx")
    workspace = workspace_of(root / "workspace")
    words = ["export", root / "model.zip", "--onnx", root / "networks", "-w", workspace.root]
    assert main([str(word) for word in words]) == 0
    return root


def test_each_fold_is_a_file_and_its_agreement_leaves_with_the_model(exported):
    assert sorted(path.name for path in (exported / "networks").iterdir()) == [
        "3d_fullres-unet-fold_0.onnx", "3d_fullres-unet-fold_1.onnx", "3d_fullres-unet.json",
    ]  # fmt: skip
    rows = json.loads(contents_of(exported / "model.zip")["models/3d_fullres-unet/agreements.json"])["rows"]
    assert [row["what"] for row in rows] == ["ONNX against torch"] * 2 + ["archive against workspace"]
    assert all(row["value"] <= row["limit"] for row in rows)


@pytest.mark.parametrize("shape", [(12, 20, 24), (6, 33, 16)])
def test_the_example_of_the_page_segments_as_torch_does(exported, shape):
    (example,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    names: dict = {}
    exec(example, names)
    image = np.random.default_rng(0).normal(100, 20, (1, *shape)).astype(np.float32)
    found = names["segment"](image, exported / "networks", "3d_fullres-unet")
    (model,) = open_models(exported / "workspace", device=CPU)
    assert model.plan.normalization[0].scheme == "zscore"
    prepared = torch.from_numpy((image - image.mean()) / image.std())
    logits = predict_logits(
        prepared, [lambda tile, network=network: network(tile)[0] for network in model.networks], out_channels=3,
        tile=model.configuration.patch_size,
    )  # fmt: skip
    wanted = logits.argmax(0).numpy()
    top = logits.topk(2, dim=0).values
    clear = (top[0] - top[1]).numpy() > 1e-3
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(found[clear], wanted[clear])
