"""What a training takes over from another model: values worked out by hand, and networks that must agree."""

import json
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from autoseg.cli import main
from autoseg.errors import StateError
from autoseg.imaging.labels import LabelSet
from autoseg.lines import shown_by
from autoseg.models.build import build_plan_network
from autoseg.models.checkpoint import save_checkpoint
from autoseg.models.pretrained import begin_from, match
from autoseg.nn.networks import NETWORKS
from autoseg.nn.optimization import WeightAverage
from autoseg.nn.queries import QueryLogits
from autoseg.planning.plan import NetworkSpec, Plan
from autoseg.records import save
from autoseg.workspace import Workspace
from checkpoints import checkpoint_of
from phantom import tiny_dataset
from plans import plan_of

TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}  # of float32 sums in another order
every_network = pytest.mark.parametrize("name", NETWORKS)
both_dims = pytest.mark.parametrize("dims", [2, 3])


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def test_names_are_matched_as_written_first_then_whatever_their_case():
    assert match(["FLAIR", "T2"], ["t1", "flair"]) == [1, None]
    assert match(["t1", "T1"], ["T1", "t1"]) == [1, 0]
    assert match(["T1", "t1"], ["t1"]) == [None, 0]
    assert match(["MR", "MR", "MR"], ["MR", "mr"]) == [0, 1, None]


# ---- networks of plans


@cache
def _plan(channels: tuple[str, ...], labels: tuple[str, ...], regions: tuple[str, ...]) -> Plan:
    values = {name: i for i, name in enumerate(labels, start=1)}
    unions = {name: (i,) for i, name in enumerate(regions, start=1)}
    return plan_of(LabelSet(values, unions, tuple(range(1, len(regions) + 1))), channels)


def plan_with(
    network="unet", dims=3, channels=("MR",), labels=("a", "b"), regions=(), features=(4, 6, 8), kernel=None,
    cascade=False, spacing=None, decoder_blocks=1, **training,
) -> Plan:  # fmt: skip
    """A plan with one configuration of a small network."""
    plan, stages = _plan(channels, labels, regions), len(features)
    spec = NetworkSpec(
        network, features, ((1,) * dims, *((2,) * dims,) * (stages - 1)), (kernel or (3,) * dims,) * stages,
        (1,) * stages, (decoder_blocks,) * (stages - 1),
    )  # fmt: skip
    name = {2: "2d", 3: "3d_fullres"}[dims]
    configuration = replace(
        plan.configurations[name], network=spec, cascade_from="3d_lowres" if cascade else None,
        spacing=spacing or plan.configurations[name].spacing,
    )  # fmt: skip
    kept = plan.configurations | {name: configuration}
    if cascade:
        kept["3d_lowres"] = replace(configuration, cascade_from=None)
    return replace(plan, configurations=kept, recommended=name, training=replace(plan.training, **training))


def network_of(plan: Plan) -> nn.Module:
    """With all weights random, so that none is 1 or 0 by custom."""
    network = build_plan_network(plan, plan.configurations[plan.recommended])
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn_like(parameter) / max(1, parameter[0].numel()) ** 0.5)
    return network


def state_of(plan: Plan, network: nn.Module, **more) -> dict:
    return checkpoint_of(plan, network, **({"train": ("x", "y"), "finished": True} | more)).to_plain()


def take_over(tmp_path, source_plan, plan, **more) -> tuple[nn.Module, nn.Module, list[str]]:
    """A source in a file, a network that began with it, and what was said."""
    theirs, mine, said = network_of(source_plan), network_of(plan), []
    save_checkpoint(tmp_path / "last.pt", state_of(source_plan, theirs))
    with shown_by(said.append):
        begin_from(tmp_path / "last.pt", mine, plan, plan.recommended, **more)
    return theirs.eval(), mine.eval(), said


def image_of(channels: int, dims: int) -> Tensor:
    return torch.randn(1, channels, *((16, 12) if dims == 2 else (8, 8, 12)))


def logits(network: nn.Module, image: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return network(image)


def outputs(network: nn.Module, image: Tensor, heads: int) -> list[Tensor]:
    """Logits, of which each head makes one; of queries those of their classes, before they share out probabilities."""
    found = logits(network, image)
    return [found.queries.classes[-1].mT[:, :heads]] if isinstance(found, QueryLogits) else found


def same_logits(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(torch.allclose(x, y, **TOLERANCE) for x, y in zip(a, b, strict=True))


@pytest.mark.thorough
@every_network
@both_dims
def test_everything_is_kept_under_the_same_plan(name, dims, tmp_path):
    plan = plan_with(name, dims)
    theirs, mine, said = take_over(tmp_path, plan, plan)
    image = image_of(1, dims)
    assert all(torch.equal(a, b) for a, b in zip(logits(theirs, image), logits(mine, image), strict=True))
    total = sum(parameter.numel() for parameter in mine.parameters())
    assert said == [
        f"initialised from {tmp_path / 'last.pt'} ({plan.recommended}-{name}, fold 0, 40 steps)",
        "  channels: MR kept",
        "  output channels: background, a, b kept",
        f"  parameters: {total:,} kept",
    ]


@pytest.mark.thorough
@every_network
@both_dims
def test_channels_and_heads_in_another_order_find_their_weights(name, dims, tmp_path):
    """As many channels and heads as features everywhere: no shape tells which is which, and none differs."""
    names = ("a", "b", "c", "d")
    before = plan_with(name, dims, channels=names, labels=names[:3], features=(4, 4, 4))
    after = plan_with(name, dims, channels=("d", "A", "c", "b"), labels=("c", "A", "b"), features=(4, 4, 4))
    theirs, mine, _ = take_over(tmp_path, before, after)
    image = image_of(4, dims)
    wanted = [stage[:, [0, 3, 1, 2]] for stage in logits(theirs, image)]
    assert same_logits(logits(mine, image[:, [3, 0, 2, 1]]), wanted)


@pytest.mark.thorough
@every_network
@both_dims
def test_a_further_channel_is_ignored_at_first_and_learnt_at_once(name, dims, tmp_path):
    before, after = plan_with(name, dims, channels=("T1",)), plan_with(name, dims, channels=("T2", "T1"))
    theirs, mine, said = take_over(tmp_path, before, after)
    image = image_of(2, dims)
    assert same_logits(logits(mine, image), logits(theirs, image[:, 1:]))
    assert "  channels: T1 kept; T2 new (initial weights 0)" in said
    (first,) = (p for _, p in mine.named_parameters() if p.ndim == dims + 2 and p.shape[1] == 2 and not p[:, 0].any())
    (mine(image)[0] ** 2).sum().backward()
    assert first.grad[:, 0].abs().max() > 0


@every_network
def test_a_lost_channel_is_as_if_it_were_0(name, tmp_path):
    before, after = plan_with(name, 2, channels=("T1", "T2")), plan_with(name, 2, channels=("T2",))
    theirs, mine, said = take_over(tmp_path, before, after)
    image = image_of(2, 2)
    image[:, 0] = 0
    assert same_logits(logits(mine, image[:, 1:]), logits(theirs, image))
    assert "  channels: T2 kept; T1 not used" in said


@every_network
def test_unknown_channels_begin_as_the_mean_of_all(name, tmp_path):
    """Each of the three has half of what the two had together: twice the mean image of the source's."""
    before, after = plan_with(name, 2, channels=("T1", "T2")), plan_with(name, 2, channels=("R", "G", "B"))
    theirs, mine, said = take_over(tmp_path, before, after)
    one = image_of(1, 2)
    shown = torch.cat([one, torch.zeros_like(one), one], dim=1)  # 2 * one * mean of both = one * both
    assert same_logits(logits(mine, shown), logits(theirs, one.expand(-1, 2, -1, -1)))
    assert said[1].startswith("  channels: R new (as the mean of T1, T2); G new (as the mean of T1, T2); B new")
    assert said[1].endswith("T1, T2)")


@pytest.mark.thorough
@every_network
def test_further_and_fewer_labels(name, tmp_path):
    more, fewer = plan_with(name, 2, labels=("a", "b", "c")), plan_with(name, 2, labels=("c", "a"))
    theirs, mine, said = take_over(tmp_path, more, fewer)
    image = image_of(1, 2)
    assert same_logits(outputs(mine, image, 3), [stage[:, [0, 3, 1]] for stage in outputs(theirs, image, 4)])
    assert "  output channels: background, c, a kept; b not used" in said
    theirs, mine, said = take_over(tmp_path, fewer, more)
    assert same_logits([stage[:, [0, 3, 1]] for stage in outputs(mine, image, 4)], outputs(theirs, image, 3))
    assert outputs(mine, image, 4)[0][:, 2].std() > 0  # as it was built
    assert "  output channels: background, a, c kept; b new (initialised at random)" in said


def test_regions_and_labels_are_matched_by_name(tmp_path):
    """No region is background, and one is called like no label."""
    labels, regions = plan_with(labels=("whole", "core")), plan_with(regions=("Core", "edge"), loss="dice_bce")
    theirs, mine, said = take_over(tmp_path, labels, regions)
    image = image_of(1, 3)
    assert same_logits([stage[:, :1] for stage in logits(mine, image)], [s[:, 2:] for s in logits(theirs, image)])
    assert "  output channels: Core kept; edge new (initialised at random); background, whole not used" in said
    assert said[-1] == "  note: the model's labels exclude each other, here they may overlap"


def test_labels_under_a_loss_of_regions(tmp_path):
    plan = plan_with(loss="dice_bce")
    theirs, mine, said = take_over(tmp_path, plan, plan)
    image = image_of(1, 3)
    assert same_logits(logits(mine, image), logits(theirs, image))
    assert "  output channels: a, b kept" in said


def test_a_cascade_ignores_its_previous_stage_at_first(tmp_path):
    theirs, mine, said = take_over(tmp_path, plan_with(), plan_with(cascade=True))
    image = image_of(3, 3)
    assert same_logits(logits(mine, image), logits(theirs, image[:, :1]))
    new = "segmentation of a, segmentation of b new (initial weights 0)"
    assert f"  channels: MR kept; {new}" in said


def test_a_cascade_finds_the_labels_of_another_cascade(tmp_path):
    """A channel that is called like a label is none of these."""
    before = plan_with(cascade=True, channels=("b", "MR"), labels=("a", "b"))
    after = plan_with(cascade=True, channels=("MR",), labels=("c", "b", "a"))
    theirs, mine, said = take_over(tmp_path, before, after)
    image = image_of(4, 3)  # MR, c, b, a
    wanted = torch.cat([torch.zeros_like(image[:, :1]), image[:, [0, 3, 2]]], dim=1)  # b, MR, a, b
    assert same_logits([s[:, [0, 3, 2]] for s in logits(mine, image)], logits(theirs, wanted))
    kept = "MR, segmentation of b, segmentation of a kept"
    assert f"  channels: {kept}; segmentation of c new (initial weights 0); b not used" in said


def test_a_deeper_network_keeps_the_stages_that_fit(tmp_path):
    theirs, mine, said = take_over(tmp_path, plan_with(), plan_with(features=(4, 6, 8, 10)))
    known, here = theirs.state_dict(), mine.state_dict()
    assert all(torch.equal(tensor, known[name]) for name, tensor in here.items() if name in known)
    further = set(here) - set(known)
    assert {".".join(name.split(".")[:2]) for name in further} == {"encoder.3", "up.2", "decoder.2", "heads.2"}
    assert said[-1] == "  new, absent from the model: encoder.3, up.2, decoder.2, heads.2"
    kept, new = (sum(here[name].numel() for name in names) for names in (known, further))
    assert said[-2] == f"  parameters: {kept:,} kept, {new:,} new"


def test_a_shallower_network_keeps_all_of_its_stages(tmp_path):
    theirs, mine, said = take_over(tmp_path, plan_with(features=(4, 6, 8, 10)), plan_with())
    known = theirs.state_dict()
    assert all(torch.equal(tensor, known[name]) for name, tensor in mine.state_dict().items())
    assert said[-1] == f"  parameters: {sum(p.numel() for p in mine.parameters()):,} kept"


def test_a_wider_bottleneck_is_new_and_so_is_what_leads_there(tmp_path):
    theirs, mine, said = take_over(tmp_path, plan_with(features=(8, 8, 8)), plan_with(features=(8, 8, 9)))
    before, now = theirs.state_dict(), mine.state_dict()
    kept = {name for name in now if torch.equal(now[name], before[name]) if now[name].shape == before[name].shape}
    assert set(now) - kept == {f"encoder.2.0.{part}" for part in ("0.weight", "0.bias", "1.weight", "1.bias")} | {
        "up.1.weight"
    }
    example = "encoder.2.0.0.weight is (8, 8, 3, 3, 3) there, (9, 8, 3, 3, 3) here"
    assert said[-1] == f"  new, of a different shape in the model: encoder.2, up.1 ({example})"


def test_other_kernels_are_not_kept_but_listed(tmp_path):
    """The bias and the scales beside them are."""
    flat, cube = plan_with(kernel=(1, 3, 3), decoder_blocks=1), plan_with()
    theirs, mine, said = take_over(tmp_path, flat, cube)
    before, now = theirs.state_dict(), mine.state_dict()
    convolutions = {f"{half}.{i}.0.0.weight" for half, n in (("encoder", 3), ("decoder", 2)) for i in range(n)}
    assert {name for name in now if now[name].shape != before[name].shape} == convolutions
    assert all(torch.equal(now[name], before[name]) for name in now if name not in convolutions)
    example = "encoder.0.0.0.weight is (4, 1, 1, 3, 3) there, (4, 1, 3, 3, 3) here"
    parts = "encoder.0, encoder.1, encoder.2, decoder.0, decoder.1"
    assert said[-1] == f"  new, of a different shape in the model: {parts} ({example})"


def test_a_related_network_keeps_what_both_have(tmp_path):
    _, _, said = take_over(tmp_path, plan_with("unet"), plan_with("attention_unet"))
    assert said[-1] == "  new, absent from the model: gates.0, gates.1"
    assert "(3d_fullres-unet, fold 0, 40 steps)" in said[0]


@pytest.mark.parametrize(
    ("before", "after", "named"),
    [
        ({}, {"network": "residual_unet"}, r"the first layer does not. Its name \(unet there, residual_unet here\)"),
        ({"network": "segformer"}, {"network": "deeplab"}, r"name \(segformer there, deeplab here\)"),
        ({}, {"features": (5, 7, 9)}, r"features \(\(4, 6, 8\) there, \(5, 7, 9\) here\) differs"),
    ],
)
def test_another_architecture_is_refused_and_what_differs_is_said(before, after, named, tmp_path):
    with pytest.raises(StateError, match=named) as caught:
        take_over(tmp_path, plan_with(**before), plan_with(**after))
    assert "% of the parameters fit" in caught.value.what
    assert "--network" in caught.value.remedy


@pytest.mark.parametrize("name", ["unet", "segformer", "swin_unet", "transunet", "mask_transformer"])
def test_flat_and_solid_networks_are_kept_apart(name, tmp_path):
    """Of a transformer's linear layers most would fit."""
    with pytest.raises(StateError, match=r"is a 2-D network \(2d\), 3d_fullres is 3-D") as caught:
        take_over(tmp_path, plan_with(name, 2), plan_with(name, 3))
    assert "a 3-D configuration" in caught.value.remedy


def test_other_voxels_and_intensities_are_noted(tmp_path):
    plan = plan_with(spacing=(2.0, 1.0, 1.0))
    coarser = plan_with(spacing=(2.2, 1.0, 1.5))
    coarser = replace(coarser, normalization=(replace(coarser.normalization[0], scheme="ct"),))
    _, _, said = take_over(tmp_path, plan, coarser)
    assert said[-2:] == [
        "  note: the model was trained on voxels of 2 x 1 x 1 mm, here they have 2.2 x 1 x 1.5 mm",
        "  note: the model was trained with MR normalised by zscore, here by ct",
    ]
    _, _, said = take_over(tmp_path, plan, plan_with(spacing=(2.4, 1.0, 0.9)))
    assert not any("note" in line for line in said)


@pytest.mark.parametrize(
    ("image", "name", "warns"),
    [("X", "another", True), ("X", "test", True), ("new", "test", False), ("", "another", False), ("", "test", True)],
)
def test_cases_that_the_model_saw_are_known_by_their_images(tmp_path, image, name, warns, said):
    """Under another id, in a dataset of another name; where the image is not known, by id and name."""
    plan = replace(plan_with(), dataset=name)
    contents = {"x": ["X", "1"], "y": ["Y", "2"]}
    mine = network_of(plan)
    save_checkpoint(tmp_path / "last.pt", state_of(plan_with(), network_of(plan_with()), contents=contents))
    held_out = "patient" if image else "x"
    begin_from(
        tmp_path / "last.pt", mine, plan, plan.recommended, held_out=[held_out],
        contents={held_out: (image, "1")},
    )  # fmt: skip
    assert any("WARNING: the model was trained on 1 of this fold's 1 held-out" in line for line in said) == warns


def test_a_model_that_saw_held_out_cases_is_named(tmp_path):
    _, _, said = take_over(tmp_path, plan_with(), plan_with(), held_out=["w", "y", "z"])
    cases = "1 of this fold's 3 held-out cases (for instance y)"
    warning = f"the model was trained on {cases}: their scores will be too high"
    assert said[-1] == f"  WARNING: {warning}"
    for clean in (
        {"held_out": ["w", "z"], "plan": plan_with()},
        {"held_out": ["y"], "plan": replace(plan_with(), dataset="another")},
    ):
        _, _, said = take_over(tmp_path, plan_with(), **clean)
        assert not any("WARNING" in line for line in said)


# ---- where the source is


def constant(plan: Plan, value: float) -> nn.Module:
    network = network_of(plan)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(value)
    return network


def begun_from(path, plan) -> tuple[float, list[str]]:
    """The one value of all weights that a source of constants gave, and what was said."""
    network, said = network_of(plan), []
    with shown_by(said.append):
        begin_from(path, network, plan, plan.recommended)
    values = torch.cat([parameter.detach().flatten() for parameter in network.parameters()]).unique()
    return values.item(), said


def write_fold(folder, trained, value, **more):
    save_checkpoint(folder / "last.pt", state_of(trained, constant(trained, value), **more))


def test_the_averaged_weights_are_taken(tmp_path):
    """One update from 2 to 5 with the decay of the first steps, (1 + 0) / (10 + 0): 5 + 0.1 * (2 - 5) = 4.7."""
    plan = plan_with()
    network = constant(plan, 2.0)
    average = WeightAverage(network, 0.999)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(5.0)
    average.update(network)
    save_checkpoint(tmp_path / "last.pt", state_of(plan, network, average=average.average))
    value, said = begun_from(tmp_path, plan)
    assert value == pytest.approx(4.7)
    assert said[0].endswith("40 steps, averaged)")


@pytest.mark.thorough
@every_network
def test_averages_find_their_tensors(name, tmp_path):
    plan = plan_with(name)
    theirs, mine = network_of(plan), network_of(plan)
    average = WeightAverage(theirs, 0.999).average
    save_checkpoint(tmp_path / "last.pt", state_of(plan, network_of(plan), average=average))
    begin_from(tmp_path, mine, plan, plan.recommended)
    assert all(torch.equal(a, b) for a, b in zip(theirs.parameters(), mine.parameters(), strict=True))


@pytest.mark.thorough
def test_a_file_and_the_folders_of_a_fold_a_model_and_a_workspace(tmp_path):
    """Of the model the first finished fold: not 0, which is not done, nor 10, which is no less than 2."""
    plan = plan_with()
    model = Workspace(tmp_path).model("3d_fullres", "unet")
    write_fold(model / "fold_0", plan, 1.0, finished=False)
    write_fold(model / "fold_0.before-20200101-000000", plan, 9.0)
    write_fold(model / "fold_2", plan, 2.0, fold=2)
    write_fold(model / "fold_10", plan, 10.0, fold=10)
    write_fold(Workspace(tmp_path).model("2d", "unet") / "fold_0", plan, 7.0)
    save(Workspace(tmp_path).plan, plan)
    assert begun_from(model / "fold_10" / "last.pt", plan)[0] == 10
    assert begun_from(model / "fold_10", plan)[0] == 10
    assert begun_from(model, plan)[0] == 2
    value, said = begun_from(tmp_path, plan)
    assert value == 2
    assert said[0] == f"initialised from {model / 'fold_2' / 'last.pt'} (3d_fullres-unet, fold 2, 40 steps)"
    value, said = begun_from(model / "fold_0", plan)
    assert value == 1
    assert said[0].endswith("fold 0, 40 steps, not trained to the end)")


def test_what_is_no_source_is_refused(tmp_path):
    plan = plan_with()
    workspace = Workspace(tmp_path / "workspace")
    with pytest.raises(StateError, match="does not exist"):
        begun_from(tmp_path / "nowhere", plan)
    with pytest.raises(StateError, match="holds no trained fold"):
        begun_from(tmp_path, plan)
    save(workspace.plan, plan)
    with pytest.raises(StateError, match=r"3d_fullres-unet holds no trained fold"):
        begun_from(workspace.root, plan)
    write_fold(workspace.fold("2d", "fcn", 0), plan, 1.0)
    with pytest.raises(StateError, match=r"3d_fullres-unet, which the plan in .* recommends, is not trained") as caught:
        begun_from(workspace.root, plan)
    assert "2d-fcn" in caught.value.remedy
    write_fold(workspace.fold("3d_fullres", "unet", 3), plan, 1.0, finished=False)
    with pytest.raises(StateError, match=r"no fold in .*3d_fullres-unet is trained to the end"):
        begun_from(workspace.root, plan)


def test_what_is_no_checkpoint_is_refused(tmp_path):
    plan = plan_with()
    (tmp_path / "text.pt").write_text("no archive")
    with pytest.raises(StateError, match="cannot be read as a checkpoint"):
        begun_from(tmp_path / "text.pt", plan)
    save_checkpoint(tmp_path / "weights.pt", network_of(plan).state_dict())
    with pytest.raises(StateError, match="is not a checkpoint of autoseg"):
        begun_from(tmp_path / "weights.pt", plan)
    save_checkpoint(tmp_path / "old.pt", state_of(plan, network_of(plan)) | {"version": 4})
    with pytest.raises(StateError, match=r"old\.pt is a checkpoint of version 4, this autoseg reads version 1"):
        begun_from(tmp_path / "old.pt", plan)
    write_fold(tmp_path, plan, float("nan"))
    with pytest.raises(StateError, match="not finite, the first in encoder"):
        begun_from(tmp_path, plan)


# ---- the command


@pytest.mark.slow
def test_a_fold_begins_with_a_trained_model(tmp_path, capsys):
    dataset, workspace = tiny_dataset(tmp_path / "data", cases=6), Workspace(tmp_path / "workspace")
    settings = ("iterations_per_epoch=12", "workers=0", "autocast=float32", "chain=host")
    common = ["-w", str(workspace.root), *(word for s in settings for word in ("--set", f"training.{s}"))]
    assert main(["plan", str(dataset), "-w", str(workspace.root)]) == 0
    assert main(["train", "-f", "0", "--epochs", "8", *common]) == 0
    dice = []
    for more in (["--init-from", str(workspace.root)], ["--restart"]):
        capsys.readouterr()
        assert main(["train", "-f", "1", "--epochs", "1", *common, *more]) == 0
        said = capsys.readouterr().out
        assert ("initialised from" in said) == (more[0] == "--init-from")
        rows = (workspace.fold("3d_fullres", "unet", 1) / "history.jsonl").read_text().splitlines()
        dice.append(np.mean(json.loads(rows[-1])["pseudo_dice"]))
    assert dice[0] > dice[1] + 0.05
