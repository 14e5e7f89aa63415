"""nnU-Net's networks as autoseg's: the same logits from the same weights, and what does not fit is refused."""

from pathlib import Path

import pytest
import torch

from autoseg.errors import StateError
from autoseg.models.nnunet.description import Description
from autoseg.models.nnunet.network import architecture_of, converted, name_of_weight
from autoseg.planning.build import build_network
from nnunet_models import PATCH, Net, architecture, dataset, plans

PATH = Path("fold_0/checkpoint_final.pth")


def described(found: dict) -> Description:
    return Description(Path("model"), found, dataset(), None)


def imported(net: Net, found: dict, channels: int = 1, heads: int = 3) -> torch.nn.Module:
    """autoseg's network with the weights of nnU-Net's."""
    built = architecture_of(described(found), next(iter(found["configurations"])))
    network = build_network(built.spec, in_channels=channels, out_channels=heads)
    network.load_state_dict(converted(net.state_dict(), built, network.state_dict(), PATH))
    network.deep_supervision = False
    return network.eval()


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("how", [{}, {"bias": False}, {"affine": False}])
def test_logits_are_those_of_the_same_weights(dims, residual, how):
    """Oracle: a network written from nnU-Net's documentation (tests/support/nnunet_models.py)."""
    net = Net(dims, 2, residual=residual, **how)
    network = imported(net, plans(dims, 2, residual, **how), channels=2)
    image = torch.randn(2, 2, *PATCH[dims], generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        torch.testing.assert_close(network(image)[0], net(image), rtol=1e-5, atol=1e-5)


def test_the_decoder_is_counted_from_the_other_end():
    """nnU-Net lists the decoder from the bottleneck, autoseg from the finest stage: one and two convolutions here."""
    spec = architecture_of(described(plans()), "3d_fullres").spec
    assert spec.decoder_blocks == (2, 1)
    assert (spec.name, spec.features, spec.blocks) == ("unet", (4, 6, 8), (2, 1, 2))
    assert spec.strides == ((1, 1, 1), (1, 2, 2), (2, 2, 2))
    assert spec.kernel_sizes == ((1, 3, 3), (3, 3, 3), (3, 3, 3))


def test_names_of_weights():
    """Worked out by hand: three stages, so stage 0 of our decoder is 1 of theirs."""
    plain = architecture_of(described(plans()), "3d_fullres").spec
    residual = architecture_of(described(plans(residual=True)), "3d_fullres").spec
    names = {
        "encoder.2.1.1.bias": "encoder.stages.2.0.convs.1.norm.bias",
        "up.0.weight": "decoder.transpconvs.1.weight",
        "decoder.0.1.0.weight": "decoder.stages.1.convs.1.conv.weight",
        "heads.1.bias": "decoder.seg_layers.0.bias",
    }
    assert {ours: name_of_weight(ours, plain) for ours in names} == names
    names = {
        "stem.0.1.weight": "encoder.stem.convs.0.norm.weight",
        "encoder.1.1.first.0.bias": "encoder.stages.1.blocks.1.conv1.conv.bias",
        "encoder.1.0.second.weight": "encoder.stages.1.blocks.0.conv2.conv.weight",
        "encoder.1.0.norm.weight": "encoder.stages.1.blocks.0.conv2.norm.weight",
        "encoder.1.0.skip.1.weight": "encoder.stages.1.blocks.0.skip.1.conv.weight",  # 0 is the pooling
        "encoder.1.0.skip.2.bias": "encoder.stages.1.blocks.0.skip.1.norm.bias",
    }
    assert {ours: name_of_weight(ours, residual) for ours in names} == names


def test_wrappers_of_torch_may_prefix_the_names():
    net = Net()
    built = architecture_of(described(plans()), "3d_fullres")
    template = build_network(built.spec, in_channels=1, out_channels=3).state_dict()
    wrapped = {f"module._orig_mod.{name}": tensor for name, tensor in net.state_dict().items()}
    plain, other = (converted(weights, built, template, PATH) for weights in (net.state_dict(), wrapped))
    assert all(torch.equal(plain[name], other[name]) for name in template)


def refused(weights: dict, found: dict) -> str:
    built = architecture_of(described(found), "3d_fullres")
    template = build_network(built.spec, in_channels=1, out_channels=3).state_dict()
    with pytest.raises(StateError, match="cannot be imported") as error:
        converted(weights, built, template, PATH)
    return error.value.what


def test_weights_that_do_not_fit_are_refused_by_name():
    weights = Net().state_dict()
    name = "encoder.stages.1.0.convs.0.conv.weight"
    assert f"the weight {name} is missing" in refused({k: v for k, v in weights.items() if k != name}, plans())
    assert "has the shape [6, 4, 3, 3, 2], expected [6, 4, 3, 3, 3]" in refused(
        weights | {name: weights[name][..., :2]}, plans()
    )
    more = {"encoder.stages.0.0.convs.0.norm.running_mean": torch.zeros(4)}  # of batch normalisation
    assert "running_mean belongs to a network that autoseg does not have" in refused(weights | more, plans())
    twin = "decoder.encoder.stages.1.0.convs.0.all_modules.0.weight"
    assert f"the weights {twin} and {name} are one weight of the network, but differ" in refused(
        weights | {twin: weights[twin] + 1e-3}, plans()
    )


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"norm_op": "torch.nn.modules.batchnorm.BatchNorm3d"}, "norm_op is BatchNorm3d; autoseg's networks have Inst"),
        ({"norm_op_kwargs": {"eps": 1e-3, "affine": True}}, r"norm_op_kwargs\.eps is 0\.001"),
        ({"nonlin": "torch.nn.ReLU"}, "nonlin is ReLU; autoseg's networks have LeakyReLU"),
        ({"nonlin_kwargs": {"negative_slope": 0.2}}, r"nonlin_kwargs\.negative_slope is 0\.2"),
        ({"nonlin_first": True}, "nonlin_first is True"),
        ({"kernel_sizes": [[1, 3, 3], [2, 3, 3], [3, 3, 3]]}, r"kernel_sizes\[1\]\[0\]: expected an odd"),
        ({"strides": [[2, 1, 1], [1, 2, 2], [1, 2, 2]]}, "the first stage has the stride"),
        ({"squeeze_excitation": True}, "squeeze_excitation is not known"),
        ({"n_conv_per_stage": None}, "blocks"),
    ],
)
def test_networks_that_autoseg_lacks_are_refused(changes, reason):
    found = plans()
    found["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"].update(changes)
    with pytest.raises(StateError, match=reason) as error:
        architecture_of(described(found), "3d_fullres")
    assert "plans.json: this model cannot be imported" in error.value.what


def test_other_classes_of_networks_are_refused():
    found = plans()
    found["configurations"]["3d_fullres"]["architecture"]["network_class_name"] = "somewhere.Primus"
    with pytest.raises(StateError, match="the network is Primus, autoseg has PlainConvUNet and ResidualEncoderUNet"):
        architecture_of(described(found), "3d_fullres")


def test_numbers_that_stand_for_every_stage_are_spelled_out():
    found = plans()
    keywords = architecture(3, False)["arch_kwargs"]
    keywords |= {
        "kernel_sizes": 3,
        "n_conv_per_stage": 2,
        "n_conv_per_stage_decoder": 1,
        "dropout_op": "torch.nn.Dropout3d",
    }
    found["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"] = keywords
    spec = architecture_of(described(found), "3d_fullres").spec
    assert spec.kernel_sizes == ((3, 3, 3),) * 3
    assert (spec.blocks, spec.decoder_blocks) == ((2, 2, 2), (1, 1))
