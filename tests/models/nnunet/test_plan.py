"""nnU-Net's plans as autoseg's: every entry that decides a prediction, by hand; and what is refused."""

from pathlib import Path

import pytest

from autoseg.datasets.inputs import FileNames
from autoseg.errors import StateError
from autoseg.imaging.labels import LabelSet
from autoseg.models.build import configuration_mirror_axes
from autoseg.models.nnunet.description import Description, describe
from autoseg.models.nnunet.plan import plan_of
from autoseg.planning.plan import Plan
from nnunet_models import dataset, plans, with_cascade, write_json


def described(found: dict, the_dataset: dict | None = None, fingerprint: dict | None = None) -> Description:
    return Description(Path("Dataset007_Tiny/model"), found, the_dataset or dataset(), fingerprint)


def made(found: dict, the_dataset: dict | None = None, name: str = "3d_fullres", mirror=(0, 1, 2)) -> Plan:
    return plan_of(described(found, the_dataset), name, mirror, 1000)


def test_a_plan_sees_and_decides_as_nnunet_does():
    found = plans()
    found |= {"transpose_forward": [2, 0, 1], "transpose_backward": [1, 2, 0]}
    found["configurations"]["3d_fullres"]["use_mask_for_norm"] = [True]
    plan = made(found, mirror=(2, 0))
    assert plan.orientation == "as_stored"
    assert plan.axis_order == (2, 0, 1)
    assert plan.labels == LabelSet({"one": 1, "two": 2})
    assert (plan.channels, plan.file_names) == (("MR0",), FileNames("suffix", ("_0000",)))
    (channel,) = plan.normalization
    assert (channel.scheme, channel.inside_mask) == ("zscore", True)
    assert (channel.mean, channel.std, channel.p00_5, channel.p99_5) == (99.5, 20.25, 40.0, 160.0)
    rules = plan.resampling
    assert (rules.image_order, rules.coarse_axis_order, rules.anisotropy_threshold) == (3, 0, 3.0)
    assert rules.antialias_factor == 1e9  # never
    one = plan.configurations["3d_fullres"]
    assert (one.patch_size, one.spacing, one.cascade_from) == ((4, 8, 8), (2.0, 1.0, 1.0), None)
    assert configuration_mirror_axes(plan, one) == (0, 2)
    assert plan.training.test_time_mirroring
    assert not plan.heads.has_regions
    # 3 heads; stages of 256, 64, 8 voxels with 4, 6, 8 features: convolutions 2, 1, 2 down, 2 + 1 and 1 + 1 up
    assert one.elements == 256 * (3 + 4 * 5) + 64 * 6 * 3 + 8 * 8 * 2


def test_2d_axes_are_those_of_the_slice():
    plan = made(plans(2), name="2d", mirror=(1,))
    assert plan.training.mirror_axes == (2,)
    assert configuration_mirror_axes(plan, plan.configurations["2d"]) == (1,)
    assert not made(plans(2), name="2d", mirror=()).training.test_time_mirroring


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("ZScoreNormalization", "zscore"), ("CTNormalization", "ct"), ("NoNormalization", "none"),
        ("RescaleTo01Normalization", "rescale_to_0_1"), ("RGBTo01Normalization", "rgb_to_0_1"),
    ],
)  # fmt: skip
def test_normalisations(theirs, ours):
    found = plans()
    found["configurations"]["3d_fullres"] |= {"normalization_schemes": [theirs], "use_mask_for_norm": [True]}
    (channel,) = made(found).normalization
    assert (channel.scheme, channel.inside_mask) == (ours, ours == "zscore")


def test_regions_are_heads_in_the_order_of_dataset_json():
    regions = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3, "ignore": 4}
    plan = made(plans(), dataset(regions, regions_class_order=[1, 2, 3]))
    assert plan.heads.regions == {"whole": (1, 2, 3), "core": (2, 3), "enhancing": (3,)}
    assert plan.labels.values == {"label_1": 1, "label_2": 2, "enhancing": 3}
    assert (plan.labels.region_values, plan.labels.ignore) == ((1, 2, 3), 4)
    assert (plan.heads.has_regions, plan.heads.num_heads, plan.training.loss) == (True, 3, "dice_bce")


def test_lists_of_one_value_are_labels():
    plan = made(plans(), dataset({"background": 0, "a": [1], "b": [2], "ignore": 3}))
    assert plan.labels == LabelSet({"a": 1, "b": 2}, ignore=3)
    assert plan.heads.num_heads == 3


def test_torch_resampling_is_linear():
    found = plans()
    one = found["configurations"]["3d_fullres"]
    for which in ("data", "probabilities"):
        one[f"resampling_fn_{which}"] = "resample_torch_fornnunet"
        one[f"resampling_fn_{which}_kwargs"] = {
            "is_seg": False, "force_separate_z": False, "memefficient_seg_resampling": False
        }  # fmt: skip
    rules = made(found).resampling
    assert (rules.image_order, rules.anisotropy_threshold) == (1, 1e9)  # no axis on its own


def test_a_cascade_brings_its_previous_stage():
    plan = made(with_cascade(plans()), name="3d_cascade_fullres")
    assert list(plan.configurations) == ["3d_lowres", "3d_cascade_fullres"]
    cascade = plan.configurations["3d_cascade_fullres"]
    assert (cascade.cascade_from, cascade.patch_size) == ("3d_lowres", (4, 8, 8))  # inherited
    assert plan.input_channels(cascade) == 1 + 2


def test_plans_of_before_2_5_have_no_architecture():
    found = plans()
    one = found["configurations"]["3d_fullres"]
    del one["architecture"]
    one |= {
        "UNet_class_name": "PlainConvUNet", "UNet_base_num_features": 32, "unet_max_num_features": 100,
        "n_conv_per_stage_encoder": [2, 2, 2], "n_conv_per_stage_decoder": [2, 2],
        "pool_op_kernel_sizes": [[1, 1, 1], [1, 2, 2], [2, 2, 2]], "conv_kernel_sizes": [[3, 3, 3]] * 3,
        "num_pool_per_axis": [1, 2, 2],
    }  # fmt: skip
    spec = made(found).configurations["3d_fullres"].network
    assert (spec.features, spec.strides[1], spec.blocks) == ((32, 64, 100), (1, 2, 2), (2, 2, 2))


def test_the_fingerprint_says_what_it_was_trained_on():
    measured = {"spacings": [[3.0, 1.0, 1.0], [5.0, 0.5, 1.0]], "shapes_after_crop": [[20, 60, 50], [30, 40, 50]]}
    grids = plan_of(described(plans(), None, measured), "3d_fullres", (), 1).grids
    assert (grids.spacing_min, grids.spacing_max) == ((3.0, 0.5, 1.0), (5.0, 1.0, 1.0))
    assert (grids.shape_min, grids.shape_max) == ((20, 40, 50), (30, 60, 50))
    for unsound in (
        None,
        {},
        {"spacings": [], "shapes_after_crop": []},
        {"spacings": [[0, 1, 1]], "shapes_after_crop": [[1, 1, 1]]},
    ):
        assert plan_of(described(plans(), None, unsound), "3d_fullres", (), 1).grids is None


def test_colour_pictures_hold_their_channels_in_one_file():
    found = plans(2, 3) | {"image_reader_writer": "NaturalImage2DIO"}
    assert made(found, dataset(channels=3), "2d", ()).file_names is None


def spoilt(place: str, value: object) -> dict:
    """Plans with one value changed: "configurations.3d_fullres.patch_size"."""
    found = plans()
    node = found
    *parents, last = place.split("/")
    for part in parents:
        node = node[part]
    node[last] = value
    return found


ONE = "configurations/3d_fullres"
AUTO = {"force_separate_z": None}
ORDER_0 = {"is_seg": False, "order": 0, "order_z": 0, "force_separate_z": None}


@pytest.mark.parametrize(
    ("place", "value", "reason"),
    [
        ("image_reader_writer", "NibabelIOWithReorient", "the other way round"),
        ("label_manager", "MyManager", "label_manager is MyManager, whose code is not part of the model"),
        (f"{ONE}/preprocessor_name", "SkelPreprocessor", "preprocessor_name is SkelPreprocessor"),
        (f"{ONE}/normalization_schemes", ["MyNorm"], "normalization_schemes: MyNorm; autoseg has ZScore"),
        (f"{ONE}/normalization_schemes", [], "0 normalisations for 1 channels"),
        (f"{ONE}/resampling_fn_data", "no_resampling_data_or_seg_to_shape", "_data is no_resampling"),
        (f"{ONE}/resampling_fn_probabilities_kwargs", ORDER_0, "order 0, order_z 0; autoseg resamples logits by"),
        (f"{ONE}/resampling_fn_data_kwargs", {"force_separate_z": True}, "has no equivalent"),
        (f"{ONE}/resampling_fn_data_kwargs", {"order": 2, **AUTO}, "has no equivalent"),
        (f"{ONE}/resampling_fn_data_kwargs", {"separate_z_anisotropy_threshold": 5, **AUTO}, "from a ratio"),
        (f"{ONE}/patch_size", [4, 8, 6], "is not a multiple of what the strides divide by"),
        (f"{ONE}/patch_size", None, "patch_size: expected a list, found None"),
        (f"{ONE}/spacing", [1.0, 1.0], "spacing"),
        (f"{ONE}/inherits_from", "3d_fullres", "inherits_from leads from '3d_fullres' to '3d_fullres'"),
        ("transpose_forward", [0, 1, 1], "expected an order of the axes"),
        ("transpose_backward", [1, 0, 2], "does not undo"),
        ("foreground_intensity_properties_per_channel", {"0": {"mean": 1}}, "'std' is missing"),
        ("configurations", {}, "there is no '3d_fullres'"),
    ],
)  # fmt: skip
def test_what_autoseg_cannot_represent_is_refused(place, value, reason):
    with pytest.raises(StateError, match=reason) as error:
        made(spoilt(place, value))
    assert "this model cannot be imported" in error.value.what


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        ({"a": 1}, "background 0"),
        ({"background": 0, "a": 1, "b": 3}, "without a gap"),
        ({"background": 0, "a": 1, "ignore": 3}, "without a gap, ignore last"),
        ({"background": 0, "a": "1"}, r"labels\.a: expected a value of 0 or more, or several, found '1'"),
        ({"background": 0, "all": [0, 1], "b": 2}, "the region contains the background"),
        ({"background": 0, "all": [1, 2], "b": 2}, "2 regions but 0 values"),
    ],
)
def test_labels_that_mean_something_else_are_refused(labels, reason):
    with pytest.raises(StateError, match=reason):
        made(plans(), dataset(labels))


def test_mirroring_an_axis_that_the_patch_lacks_is_refused():
    with pytest.raises(StateError, match=r"it mirrors the axes \[2\] of a patch of 2 axes"):
        made(plans(2), name="2d", mirror=(2,))


def test_a_folder_without_its_files_says_what_it_lacks(tmp_path):
    with pytest.raises(
        StateError, match=r"holds no plans\.json, so it is not the folder of a trained nnU-Net v2 model"
    ):
        describe(tmp_path)
    write_json(tmp_path / "plans.json", plans())
    with pytest.raises(StateError, match=r"holds no dataset\.json"):
        describe(tmp_path)
    write_json(tmp_path / "dataset.json", [])
    with pytest.raises(StateError, match=r"dataset\.json is not a JSON object"):
        describe(tmp_path)
    (tmp_path / "dataset.json").write_text("{", encoding="utf-8")
    with pytest.raises(StateError, match=r"dataset\.json is not valid JSON"):
        describe(tmp_path)
