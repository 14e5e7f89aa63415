"""Every key of a plan has a rule: hostile values are refused by name, or give a plan that trains."""

import dataclasses
import itertools
import json
import types
from dataclasses import replace
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pytest
import torch

from autoseg.augmentation.presets import AUGMENTATIONS
from autoseg.datasets.dataset import Case, Dataset
from autoseg.datasets.splits import Split, Splits
from autoseg.errors import StateError, UsageError
from autoseg.models.build import build_plan_loss, build_plan_network
from autoseg.nn import losses, networks
from autoseg.nn.losses import LOSSES
from autoseg.nn.networks import NETWORKS
from autoseg.planning.options import options_of
from autoseg.planning.plan import ChannelNormalization, Configuration, NetworkSpec, Plan, Training
from autoseg.records import from_plain, to_plain
from autoseg.rules import Rule, hints
from hostile_values import HOSTILE, leaves, put, spelled
from plans import plan, with_cascade
from synthetic_fingerprints import label_set, uniform

LABELS = label_set(3)


def a_plan() -> Plan:
    """With 2d, 3d_fullres, 3d_lowres and 3d_cascade."""
    return with_cascade(plan(uniform((2.0, 1.0, 1.0), (12, 20, 24), 5, LABELS, channels=("CT",)), LABELS))


PLAIN = to_plain(a_plan())


def unruled(annotation: Any, place: str) -> list[str]:
    """Places under an annotation where a number, a text or anything may stand without a rule."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if dataclasses.is_dataclass(annotation):
        return [name for key, inner in hints(annotation).items() for name in unruled(inner, f"{place}.{key}")]
    if origin is Annotated:
        assert any(isinstance(rule, Rule) for rule in arguments[1:]), place
        inner = arguments[0]
        return [] if inner in (int, float, str) else unruled(inner, place)
    if origin in (Union, types.UnionType):
        return [name for choice in arguments if choice is not type(None) for name in unruled(choice, place)]
    if origin is tuple:
        return [name for inner in set(arguments) - {Ellipsis} for name in unruled(inner, f"{place}[]")]
    if origin is dict:
        return unruled(arguments[0], f"{place} (keys)") + unruled(arguments[1], f"{place}{{}}")
    return [] if origin is Literal or annotation is bool else [place]


def test_every_key_of_a_plan_has_a_rule():
    """Options are the keywords of a network or a loss, held against its signature, which is checked below."""
    assert unruled(Plan, "plan") == ["plan.configurations{}.network.options{}", "plan.training.loss_options{}"]


def test_a_key_without_a_rule_is_found():
    @dataclasses.dataclass(frozen=True)
    class Bare:
        choice: Literal["a"]
        count: int
        sizes: tuple[float, ...] | None
        names: dict[str, bool]

    globals()["Bare"] = Bare
    assert unruled(Bare, "r") == ["r.count", "r.sizes[]", "r.names (keys)"]


@pytest.mark.parametrize(
    ("function", "given"),
    [(NETWORKS[name], networks.GIVEN) for name in NETWORKS] + [(LOSSES[name], losses.GIVEN) for name in LOSSES],
)
def test_every_option_of_a_network_and_a_loss_has_a_rule_and_a_default_that_keeps_it(function, given):
    for key, option in options_of(function, given).items():
        assert unruled(option.annotation, key) == []
        from_plain(option.annotation, to_plain(option.default), key)


def names_the_place(message: str, place: tuple) -> bool:
    """Whether a message begins with the place, or with one inside it or, for what contradicts, beside or above it."""
    named = message.removeprefix("plan.json").removeprefix(".").split(":")[0].split(",")[0]
    wanted = spelled(place)
    if named and (named.startswith(wanted) or wanted.startswith(named)):
        return True
    return named.rpartition(".")[0] != "" and wanted.startswith(named.rpartition(".")[0])


MAY_NAME_ANOTHER = {  # contradictions: key -> what is named instead, which it makes wrong
    "channels": ["normalization: expected"],
    "configurations": ["recommended: expected", "cascade_from: expected", "data: expected"],
    "labels": ["label", "training.class_weights", "ignore", "region", "value", "training.loss"],
    "training": ["a training has one length"],
    "recommended": [],
    "normalization": [],
}


def fits(message: str, place: tuple) -> bool:
    others = MAY_NAME_ANOTHER.get(str(place[0]), [])
    return names_the_place(message, place) or any(other in message for other in others)


def read(plain: dict) -> Plan | StateError:
    """As `load` reads a file, without one."""
    plain = json.loads(json.dumps(plain))
    try:
        return from_plain(Plan, plain, "plan.json")
    except StateError as error:
        return error


def refusal(kind: Any, plain: Any, where: str) -> str | None:
    """What a record says of plain data that do not fit; None where they do."""
    try:
        from_plain(kind, plain, where)
    except StateError as error:
        return error.what
    return None


def hostile_plans(keys: list[tuple], names=tuple(HOSTILE)):
    for place in keys:
        for name in names:
            yield place, name, put(PLAIN, place, HOSTILE[name])


def places() -> list[tuple]:
    """Every key, but of the many decisions two, and of like configurations two."""
    return [
        place for place in leaves(PLAIN)
        if not (place[0] == "decisions" and len(place) > 1 and place[1] > 1)
        and not (place[0] == "configurations" and len(place) > 2 and place[1] in ("3d_lowres", "3d_fullres"))
    ]  # fmt: skip


@pytest.mark.thorough
@pytest.mark.parametrize("top", list(PLAIN))
def test_hostile_values_are_refused_by_name_or_give_a_plan(top):
    """No other exception comes, whatever stands in any place of plan.json."""
    refused = 0
    for place, name, plain in hostile_plans([place for place in places() if place[0] == top]):
        found = read(plain)
        if isinstance(found, StateError):
            refused += 1
            assert fits(found.what, place), (place, name, found.what)
            assert "expected" in found.what or found.remedy, (place, name, found.what)
            assert len(found.what) < 500
        else:
            assert from_plain(Plan, json.loads(json.dumps(to_plain(found)))) == found
    assert refused > 0


@pytest.mark.thorough
@pytest.mark.parametrize("top", [key for key in PLAIN if key != "version"])
def test_a_setting_is_held_to_the_same_rules(top):
    """`--set` refuses what the file refuses, as a mistake of usage, and accepts what it accepts."""
    made = from_plain(Plan, PLAIN)
    keys = [p for p in places() if p[0] == top and all(isinstance(step, str) for step in p)]
    for place, name, plain in hostile_plans(
        keys, ("null", "true", "-1", "1.5", "1e308", "10**30", "nan", "text", "path", "[0, 0]", "object")
    ):
        in_file = read(plain)
        try:
            set_so: Any = made.with_settings([f"{spelled(place)}={json.dumps(HOSTILE[name])}"])
        except UsageError as error:
            set_so = error
        if place[-1] in ("epochs", "steps", "time_budget_seconds"):  # as a setting it takes the place of the others
            continue
        assert isinstance(in_file, StateError) == isinstance(set_so, UsageError), (place, name, in_file, set_so)


@pytest.mark.parametrize("text", ["9" * 5000, "[" * 100_000, "NaN", "1e999", '{"a": NaN}', "[" * 500 + "]" * 500])
def test_a_setting_that_cannot_be_read_is_a_mistake_of_usage(text):
    for key in ("training.epochs", "configurations.2d.network.options", "decisions"):
        with pytest.raises(UsageError):
            a_plan().with_settings([f"{key}={text}"])


@pytest.mark.parametrize("version", [True, 1.0, 2, 3, 4, -1, 10**30, "1", None, [1]])
@pytest.mark.parametrize("content", [{}, {"configurations": []}, {"configurations": {"a": 3}}, {"training": None}])
def test_what_claims_another_version_is_refused(version, content):
    found = read({"version": version} | content)
    assert isinstance(found, StateError)
    assert found.what.startswith("plan.json: ")


# Each rule, by hand: what is refused, and the words


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("configurations.2d.batch_size=0", "configurations.2d.batch_size: expected 1 or more, at most 65536, found 0"),
        ("configurations.3d_fullres.patch_size=[16,16]", "configurations.3d_fullres.patch_size: expected 3 entries"),
        ("configurations.2d.patch_size=[16,0]", "patch_size[1]: expected 1 or more, at most 16384, found 0"),
        ("configurations.2d.patch_size=[16,-8]", "patch_size[1]: expected 1 or more, at most 16384, found -8"),
        ("configurations.2d.patch_size=[]", "patch_size: expected 2 to 3 entries, found []"),
        ("configurations.2d.spacing=[0,1]", "spacing[0]: expected 1e-09 to 1000000, found 0"),
        ("configurations.2d.spacing=[-1,1]", "spacing[0]: expected 1e-09 to 1000000, found -1"),
        ("configurations.2d.spacing=[NaN,1]", "spacing[0]: expected a finite number, found nan"),
        ("configurations.2d.spacing=[1,1,1]", "configurations.2d.spacing: expected 2 entries"),
        ("configurations.2d.median_shape=[9]", "configurations.2d.median_shape: expected 2 entries"),
        ("configurations.2d.receptive_field=[9]", "configurations.2d.receptive_field: expected 2 entries"),
        ("configurations.2d.data=elsewhere", "configurations.2d.data: expected one of configurations: 2d, 3d_fullres"),
        ("configurations.2d.data=../x", "configurations.2d.data: expected a name for a file"),
        ("configurations.3d_cascade.cascade_from=x", "configurations.3d_cascade.cascade_from: expected another one of"),
        ("configurations.3d_cascade.cascade_from=3d_cascade", "3d_cascade.cascade_from: expected another one of"),
        ("configurations.2d.cascade_from=3d_cascade", "2d.cascade_from: expected one that is not a cascade itself"),
        ("configurations.2d.network.name=unot", "network.name: expected one of 'unet', 'residual_unet'"),
        ("configurations.3d_lowres.network.features=[8,0]", "features[1]: expected 1 to 16384, found 0"),
        ("configurations.3d_lowres.network.features=[8]", "features: expected 2 to 16 entries"),
        ("configurations.3d_lowres.network.features=[8,8,8]", "network.strides: expected 3 entries"),
        ("configurations.3d_lowres.network.blocks=[1]", "network.blocks: expected 2 entries"),
        ("configurations.3d_lowres.network.decoder_blocks=[1,1]", "network.decoder_blocks: expected 1 entry"),
        ("configurations.3d_lowres.network.strides=[[1,1,1],[2,2]]", "strides[1]: expected 3 entries"),
        ("configurations.3d_lowres.network.strides=[[1,1],[2,2]]", "network.kernel_sizes[0]: expected 2 entries"),
        ("configurations.3d_lowres.network.kernel_sizes=[[3,3,3],[3,2,3]]", "kernel_sizes[1][1]: expected an odd"),
        ("configurations.2d.network.options={\"a\":1}", "network.options.a: expected no options, which unet takes"),
        ("configurations.2d.elements=-1", "elements: expected 0 or more"),
        ("recommended=4d", "plan.recommended: expected one of configurations: 2d, 3d_fullres, 3d_lowres, 3d_cascade"),
        ("axis_order=[0,1,1]", "plan.axis_order: expected 3 entries without repetition"),
        ("axis_order=[0,1,3]", "plan.axis_order[2]: expected 0 to 2, found 3"),
        ("channels=[\"a\",\"b\"]", "plan.normalization: expected 2 entries, one per channel, found 1"),
        ("channels=[]", "plan.channels: expected 1 or more entries"),
        ("resampling.image_order=6", "resampling.image_order: expected 0 to 5, found 6"),
        ("resampling.coarse_axis_order=-1", "resampling.coarse_axis_order: expected 0 to 5, found -1"),
        ("resampling.anisotropy_threshold=0", "anisotropy_threshold: expected 1 or more"),
        ("resampling.antialias_factor=-3", "antialias_factor: expected 1 or more"),
        ("resampling.filter=box", "resampling.filter: expected one of 'gaussian', 'hamming_sinc', 'lanczos', 'none', "),
        ("training.foreground_fraction=1.5", "training.foreground_fraction: expected 0 to 1, found 1.5"),
        ("training.mirror_axes=[5]", "training.mirror_axes[0]: expected 0 to 2, found 5"),
        ("training.mirror_axes=[0,0]", "training.mirror_axes: expected 0 to 3 entries without repetition"),
        ("training.loss=dise", "expected one of 'dice_ce', 'dice_bce', 'dice_focal', 'dice_topk', 'tversky', 'mask_"),
        ("training.optimizer=lion", "training.optimizer: expected one of 'sgd', 'adamw', found 'lion'"),
        ("training.schedule=no", "schedule: expected one of 'poly', 'cosine', 'one_cycle', 'reduce_on_plateau', found"),
        ("training.loss_options.focal_gamma=3", "loss_options.focal_gamma: expected one of 'boundary_weight', which "),
        ("training.loss_options.boundary_weight=-0.1", "training.loss_options.boundary_weight: expected 0 or more"),
        ("training.loss_options.boundary_weight=x", "loss_options.boundary_weight: expected a value of type float"),
        ("training.loss_options=3", "training.loss_options: expected an object, found 3"),
        ("training.augmentation=wild", "training.augmentation: expected one of 'none', 'mirror', 'nnunet'"),
        ("training.seed=-1", "training.seed: expected 0 to 4294967295, found -1"),
        ("training.workers=-3", "training.workers: expected 0 or more, at most 1024, found -3"),
        ("training.weight_decay=-0.1", "training.weight_decay: expected 0 to 10, found -0.1"),
        ("training.class_weights=[1,1]", "training.class_weights: expected 3 entries, because the network has 3 heads"),
        ("training.class_weights=[1,1,-1]", "training.class_weights[2]: expected 0 to 1000000, found -1"),
        ("training.class_weights=[0,0,0]", "training.class_weights: expected one weight above 0"),
        ("training.iterations_per_epoch=0", "training.iterations_per_epoch: expected 1 or more"),
        ("training.learning_rate=1e308", "training.learning_rate: expected more than 0, at most 100"),
        ("training.deep_supervision=1", "training.deep_supervision: expected a value of type bool, found 1"),
        ("vram_gb=0", "plan.vram_gb: expected more than 0"),
        ("version=5", "plan.version: expected 1, the version of plans that this autoseg reads and writes, found 5"),
        ("labels.values.label1=1000000000000", "plan.labels.values.label1: expected 1 to 2147483647"),
    ],
)  # fmt: skip
def test_a_setting_that_breaks_a_rule_names_key_and_rule(setting, message):
    with pytest.raises(UsageError) as caught:
        a_plan().with_settings([setting])
    assert message in caught.value.what


def test_intensities_that_contradict_each_other_are_refused():
    with pytest.raises(StateError, match="p00_5: expected at most p99_5, which is 1, found 2"):
        ChannelNormalization("ct", p00_5=2.0, p99_5=1.0)
    with pytest.raises(StateError, match="std: expected more than 0"):
        ChannelNormalization("ct", std=0.0, p00_5=0.0, p99_5=1.0)
    assert ChannelNormalization("ct", std=0.0).std == 0  # a constant channel: its window admits one value


def test_losses_and_labels_that_contradict_each_other_are_refused():
    plain = PLAIN | {"labels": to_plain(LABELS.as_regions())}
    with pytest.raises(StateError, match=r"training\.loss: expected dice_bce"):
        from_plain(Plan, plain)
    with pytest.raises(UsageError, match=r"training\.component_weight: expected 0"):
        a_plan().with_settings(["training.loss=tversky", "training.component_weight=1"])


def test_what_a_loss_can_predict_is_a_property_of_its_own(monkeypatch):
    """A loss that is registered from outside says it in the same way as those of the table."""

    def mine(**given):
        return losses.dice_focal(**given)

    monkeypatch.setitem(LOSSES, "mine", mine)
    assert losses.traits_of("mine") == losses.Traits()
    regions = PLAIN | {"labels": to_plain(LABELS.as_regions())}
    of_regions = regions | {"training": PLAIN["training"] | {"loss": "mine"}}
    assert from_plain(Plan, of_regions).heads.has_regions
    mine.traits = losses.Traits(predicts="labels", cross_entropy=False)
    with pytest.raises(StateError, match=r"training\.loss: expected dice_bce .*, found mine, which predicts one label"):
        from_plain(Plan, of_regions)
    with pytest.raises(UsageError, match=r"component_weight: expected 0, because mine has no cross-entropy"):
        a_plan().with_settings(["training.loss=mine", "training.component_weight=1"])
    mine.traits = losses.Traits(predicts="regions")
    exclusive = a_plan().with_settings(["training.loss=mine"])
    assert not exclusive.labels.has_regions
    assert exclusive.heads.has_regions


def test_records_made_by_hand_are_checked_too():
    with pytest.raises(StateError, match="seed: expected 0 to 4294967295, found -1"):
        Training(seed=-1)
    spec = a_plan().configurations["3d_lowres"].network
    with pytest.raises(StateError, match=r"kernel_sizes\[0\]\[1\]: expected an odd number, 1 to 15, found 2"):
        replace(spec, kernel_sizes=((3, 2, 3), (3, 3, 3)))
    with pytest.raises(StateError, match=r"batch_size: expected 1 or more"):
        replace(a_plan().configurations["2d"], batch_size=0)


@pytest.mark.parametrize("name", NETWORKS)
def test_hostile_options_of_networks(name):
    spec = a_plan().configurations["3d_lowres"].network
    for key in (*options_of(NETWORKS[name], networks.GIVEN), "quantum"):
        for value in HOSTILE.values():
            plain = to_plain(replace(spec, name=name, options={})) | {"options": {key: value}}
            found = refusal(NetworkSpec, plain, "plan")
            assert found is None or found.startswith(f"plan.options.{key}")


@pytest.mark.parametrize("name", LOSSES)
def test_hostile_options_of_losses(name):
    for key in (*options_of(LOSSES[name], losses.GIVEN), "quantum"):
        for value in HOSTILE.values():
            found = refusal(Training, to_plain(Training(loss=name)) | {"loss_options": {key: value}}, "plan")
            assert found is None or found.startswith(f"plan.loss_options.{key}")


# What is accepted works

OF_A_NETWORK = ("name", "features", "strides", "kernel_sizes", "blocks")
MATTERING = ("patch_size", "batch_size", "batch_dice", "checkpointing", *(f"network.{key}" for key in OF_A_NETWORK))


def one_step(made: Plan, configuration: Configuration) -> float:
    """Loss of one step of a plan's network on a made-up batch."""
    network, loss = build_plan_network(made, configuration), build_plan_loss(made, configuration)
    image = torch.randn(configuration.batch_size, made.input_channels(configuration), *configuration.patch_size)
    target = torch.randint(0, made.heads.num_heads, (configuration.batch_size, *configuration.patch_size))
    value = loss(network(image), target)
    value.backward()
    return float(value)


def light(configuration: Configuration) -> bool:
    """Whether a step is a matter of milliseconds."""
    voxels = configuration.batch_size
    for edge in configuration.patch_size:
        voxels *= edge
    return voxels * max(configuration.network.features) * max(configuration.network.blocks) < 3e6


@pytest.mark.thorough
def test_what_is_accepted_of_a_configuration_trains():
    base = json.loads(json.dumps(PLAIN))
    base["configurations"]["3d_lowres"]["patch_size"] = [8, 8, 8]
    tried = 0
    for key, name in itertools.product(MATTERING, HOSTILE):
        plain = put(base, ("configurations", "3d_lowres", *key.split(".")), HOSTILE[name])
        try:
            made = from_plain(Plan, plain)
        except StateError:
            continue
        configuration = made.configurations["3d_lowres"]
        if light(configuration):
            assert one_step(made, configuration) == pytest.approx(1.5, abs=3), (key, name)
            tried += 1
    assert tried >= 5


@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
def test_names_of_augmentations_are_those_of_the_table(augmentation):
    assert a_plan().with_settings([f"training.augmentation={augmentation}"]).training.augmentation == augmentation


# The other records of a workspace


CASE = Case("a", "p", ("/data/a.nii.gz",), "/data/a_seg.nii.gz", 0)
OTHERS = {
    "fingerprint.json": uniform((2.0, 1.0, 1.0), (12, 20, 24), 1, LABELS),
    "splits.json": Splits(1, 1234, (Split(0, ("b",), ("a",)),), ("c",), ("a note",)),
    "dataset.json": Dataset(1, "d", "/data", "nnunet", ("CT",), LABELS, (CASE,), (), True, None, ("a note",)),
}


@pytest.mark.thorough
@pytest.mark.parametrize("name", OTHERS)
def test_other_records_refuse_hostile_values_by_name(name):
    plain, refused = to_plain(OTHERS[name]), 0
    for place in leaves(plain):
        for value in HOSTILE.values():
            found = refusal(type(OTHERS[name]), json.loads(json.dumps(put(plain, place, value))), name)
            refused += found is not None
            assert found is None or found.startswith(name), place
    assert refused > 50


@pytest.mark.parametrize(
    ("name", "place", "value", "message"),
    [
        ("fingerprint.json", ("cases", 0, "shape"), [12, 0, 24], "cases[0].shape[1]: expected 1 or more"),
        ("fingerprint.json", ("cases", 0, "spacing"), [0, 1, 1], "cases[0].spacing[0]: expected 1e-09 to 1000000"),
        ("fingerprint.json", ("version",), 2, "version: expected 1, the version of fingerprints"),
        ("fingerprint.json", ("channels",), [], "channels: expected 1 or more entries"),
        ("splits.json", ("splits", 0, "fold"), -1, "splits[0].fold: expected 0 to 9999"),
        ("splits.json", ("splits", 0, "train"), ["b", "b"], "splits[0].train: expected 0 or more entries without"),
        ("splits.json", ("splits", 0, "validation", 0), "../../b", "splits[0].validation[0]: expected a name for a"),
        ("splits.json", ("splits",), [], "splits: expected 1 or more entries"),
        ("splits.json", ("version",), 7, "version: expected 1, the version of splits"),
        ("dataset.json", ("cases", 0, "id"), "../a", "cases[0].id: expected a name for a file, without slashes"),
        ("dataset.json", ("cases", 0, "images"), [], "cases[0].images: expected 1 or more entries"),
        ("dataset.json", ("cases", 0, "label"), "a\0b", "cases[0].label: expected the path of a file"),
        ("dataset.json", ("version",), "1", "version: expected a value of type int"),
        ("dataset.json", ("labels", "values", "label1"), 0, "labels.values.label1: expected 1 to 2147483647"),
    ],
)  # fmt: skip
def test_rules_of_other_records(name, place, value, message):
    found = refusal(type(OTHERS[name]), put(to_plain(OTHERS[name]), place, value), name)
    assert found is not None
    assert found.startswith(f"{name}.{message}")
