"""Where models looked, from tiles to maps on the image: closed forms of networks that see one voxel at a time."""

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from autoseg.datasets.dataset import Case, load_case
from autoseg.errors import DataError, UsageError
from autoseg.imaging.components import as_slices
from autoseg.imaging.labels import LabelSet
from autoseg.inference.arrays import case_of_array
from autoseg.inference.member import EnsembleMember, decide
from autoseg.inference.options import InferenceOptions
from autoseg.inference.predictor import ArrayPredictor
from autoseg.inference.saliency import Asked, How, _Scored, explain, parse_asked, voxel_of
from autoseg.inference.saliency_files import SaliencyIndex, SaliencyOutput, write_saliency
from autoseg.nn.networks import NETWORKS
from autoseg.nn.sliding_window import Tiling, gaussian_importance, windows_of
from autoseg.records import load
from bright import THRESHOLD, model_of, picture, plan_of
from files import affine_along, nifti
from plans import with_cascade
from small_networks import small_network

ONE = (1.0, 1.0, 1.0)
ORGAN = Asked("organ")
HIRES = How(method="hires_cam")


class Encoded(nn.Module):
    """`Bright` with an encoder: one feature, the brightness above the threshold, and a head that reads it."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.encoder = nn.ModuleList([nn.Identity()])
        self.head = nn.Identity()
        self.scale = scale

    def forward(self, image: Tensor) -> list[Tensor]:
        above = self.head(self.encoder[0]((image[:, -1:] - THRESHOLD) / 20))
        return [torch.cat([torch.zeros_like(above), self.scale * above], dim=1)]


def loaded_case(folder, axis_order=(0, 1, 2), shape=(9, 11, 13), name="case", letters="RSA"):
    image = nifti(folder / f"{name}.nii.gz", picture(shape), affine_along(letters, ONE))
    return load_case(Case(name, name, (str(image),), None), None, axis_order=axis_order)


def encoded(axis_order=(0, 1, 2), networks=None, **changes):
    made = model_of(ONE, plan=plan_of(axis_order=axis_order), network=Encoded(), **changes)
    return made if networks is None else replace(made, networks=tuple(networks), folds=tuple(range(len(networks))))


def explained(model, loaded, asked=ORGAN, how=HIRES, **options):
    labels = decide([EnsembleMember(model)], loaded)
    return labels, explain([model], loaded, labels, asked, how, InferenceOptions(**options))


def whole(found, loaded, number=0):
    made = np.zeros(loaded.image.shape[1:], np.float32)
    made[as_slices(found.box)] = found.maps[number].values
    return made


# ---- questions


def test_labels_and_places_as_they_are_typed():
    assert parse_asked("left lung") == Asked("left lung")
    assert parse_asked("liver@0,12,7") == Asked("liver", (0, 12, 7))
    assert parse_asked("cell@12,7") == Asked("cell", (12, 7))
    assert str(Asked("liver", (0, 12, 7))) == "liver@0,12,7"


@pytest.mark.parametrize("text", ["", "@1,2,3", "liver@", "liver@1", "liver@1,2,3,4", "liver@1,x,2", "liver@-1,2,3"])
def test_what_names_no_place_is_refused(text):
    with pytest.raises(UsageError, match="names no label and place"):
        parse_asked(text)


def test_a_label_that_the_model_does_not_have_is_refused_with_those_it_has(tmp_path):
    with pytest.raises(UsageError, match=r"(?s)no such label.*background, organ"):
        explained(encoded(), loaded_case(tmp_path), Asked("liver"))
    regions = plan_of(labels=LabelSet({"a": 1, "b": 2}, {"whole": (1, 2), "core": (2,)}, (1, 2)))
    model = model_of(ONE, plan=regions, network=Encoded())
    with pytest.raises(UsageError, match=r"(?s)no such region.*whole, core"):
        SaliencyOutput(tmp_path, [model], [Asked("a")], How(), InferenceOptions())


@pytest.mark.parametrize("axis_order", [(0, 1, 2), (2, 0, 1)])
@pytest.mark.parametrize("letters", ["LPS", "RSA", "AIL"])
def test_a_place_is_a_voxel_of_the_file(tmp_path, axis_order, letters):
    loaded = loaded_case(tmp_path, axis_order, letters=letters)
    numbers = np.arange(np.prod(loaded.geometry.shape)).reshape(loaded.geometry.shape)
    marked = replace(loaded, image=loaded.image * 0)
    for stored in [(0, 0, 0), (8, 3, 12), (2, 10, 5)]:
        voxel = voxel_of(Asked("organ", stored), loaded)
        marked.image[...] = 0
        marked.image[(0, *voxel)] = 1
        assert numbers[marked.to_stored(marked.image)[0] > 0].tolist() == [numbers[stored]]


@pytest.mark.parametrize("place", [(9, 0, 0), (0, 0, 13), (1, 2)])
def test_a_place_outside_the_image_is_refused(tmp_path, place):
    with pytest.raises(DataError, match=r"(?s)outside the image, whose shape is \(9, 11, 13\).*z,y,x"):
        explained(encoded(), loaded_case(tmp_path), Asked("organ", place))


# ---- scores of tiles


@pytest.mark.parametrize(
    ("shape", "tile"), [((1, 20, 11, 13), (8, 8, 8)), ((1, 5, 17, 9), (8, 6)), ((1, 6, 6, 6), (8, 8, 8))]
)
def test_shares_of_the_tiles_add_up_to_the_logit(shape, tile):
    """Over all tiles that see a voxel, channel times weight is 1: the score is that of the tiles' mean."""
    rng = np.random.default_rng(0)
    where, tiling = rng.random(shape[1:]) > 0.5, Tiling(tile)
    image = _Scored(np.zeros(shape, np.float32), where, tiling)
    score = image[slice(None), slice(0, shape[1])][-1]
    full = (1,) * (3 - len(tile)) + tile
    total, mean = np.zeros(shape[1:]), np.zeros(shape[1:])
    logits, weights = np.zeros(shape[1:]), np.zeros(shape[1:])
    of_tiles = 0.0
    for number, window in enumerate(windows_of(shape[1:], tiling)):
        inside = tuple(slice(max(b, 0), min(b + e, n)) for b, e, n in zip(window, full, shape[1:], strict=True))
        at = tuple(slice(s.start - b, s.stop - b) for s, b in zip(inside, window, strict=True))
        share = score[inside] * image.weights.reshape(full).numpy()[at]
        total[inside] += share
        of_tiles += float((share * number).sum())  # a network whose logits are the tile's number
        importance = gaussian_importance(full).numpy()[at]
        logits[inside] += number * importance
        weights[inside] += importance
    np.testing.assert_allclose(total, where, rtol=1e-4)
    mean = logits / weights
    assert of_tiles == pytest.approx(mean[where].sum(), rel=5e-3)  # importance has a smallest value, shares do not


@pytest.mark.parametrize("axis_order", [(0, 1, 2), (2, 0, 1)])
def test_the_map_of_a_network_in_closed_form(tmp_path, axis_order):
    """HiResCAM: feature times gradient, where the label is: the logit over the largest, in tiles of any number."""
    loaded, model = loaded_case(tmp_path, axis_order), encoded(axis_order)
    labels, found = explained(model, loaded)
    logit = (loaded.image[0] - THRESHOLD) / 20
    expected = np.where(labels == 1, logit, 0)
    np.testing.assert_allclose(whole(found, loaded), expected / expected.max(), atol=1e-4)
    (made,) = found.maps
    assert made.inside == pytest.approx(1.0)
    assert found.voxels == np.count_nonzero(labels) > 0
    assert found.note == ""


def test_one_tile_is_exact(tmp_path):
    loaded, model = loaded_case(tmp_path), encoded(patch=(16, 16, 16))
    labels, found = explained(model, loaded)
    np.testing.assert_allclose(whole(found, loaded), labels == 1, atol=1e-6)  # each voxel's logit is 2.5
    assert found.maps[0].largest == pytest.approx(2.5)


def test_folds_are_averaged(tmp_path):
    """Of scales 1 and 3, the mean is that of 2."""
    loaded = loaded_case(tmp_path)
    _, both = explained(encoded(networks=[Encoded(1.0), Encoded(3.0)], patch=(16, 16, 16)), loaded)
    _, mean = explained(encoded(networks=[Encoded(2.0)], patch=(16, 16, 16)), loaded)
    assert both.maps[0].largest == pytest.approx(mean.maps[0].largest)


def test_several_models_count_as_shares_of_their_largest_values(tmp_path):
    loaded = loaded_case(tmp_path)
    models = [encoded(networks=[Encoded(s)], patch=(16, 16, 16)) for s in (1.0, 100.0)]
    labels = decide([EnsembleMember(models[0])], loaded)
    found = explain(models, loaded, labels, ORGAN, HIRES)
    assert len(found.maps) == 1
    np.testing.assert_allclose(whole(found, loaded), labels == 1, atol=1e-6)


def test_a_place_is_explained_by_what_is_about_it(tmp_path):
    loaded, model = loaded_case(tmp_path, letters="LPS"), encoded(patch=(16, 16, 16))
    labels = decide([EnsembleMember(model)], loaded)
    place = tuple(int(n) for n in np.argwhere(labels == 1)[7])
    found = explain([model], loaded, labels, Asked("organ", place), HIRES)
    lit = np.argwhere(whole(found, loaded) > 0)
    assert (np.abs(lit - place) <= 1).all()
    assert place in {tuple(one) for one in lit.tolist()}
    dark = tuple(int(n) for n in np.argwhere((labels == 0) & (loaded.image[0] == 50))[3])
    assert "was not given the label organ" in explain([model], loaded, labels, Asked("organ", dark)).note


def test_an_absent_label_gives_an_empty_map_and_says_so(tmp_path):
    loaded, model = loaded_case(tmp_path), encoded()
    found = explain([model], loaded, np.zeros(loaded.image.shape[1:], np.uint8), ORGAN)
    assert not found.maps[0].values.any()
    assert (found.voxels, found.maps[0].largest, found.maps[0].inside) == (0, 0.0, None)
    assert found.note == "organ was found nowhere in this image: its map is 0"
    margin = explain([model], loaded, np.zeros(loaded.image.shape[1:], np.uint8), Asked("organ", (0, 0, 0)))
    assert "empty margin" in margin.note


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.thorough) if name != "unet" else name for name in NETWORKS]
)
def test_every_network_explains_an_image_with_margins(tmp_path, name, dims):
    """Spacings differ, so that the maps are resampled; slices of a volume are explained one by one."""
    torch.manual_seed(0)
    spacing = (1.0, 2.0, 1.5)[-dims:]
    model = replace(
        model_of(spacing, plan=plan_of(labels=LabelSet({"organ": 7})), patch=(8, 8, 8)),
        networks=(small_network(name, dims).eval(),),
    )
    for network in model.networks:
        network.deep_supervision = False
    loaded = loaded_case(tmp_path, shape=(9, 20, 21), letters="LPS")
    labels = np.zeros(loaded.image.shape[1:], np.uint8)
    labels[4:6, 8:12, 8:12] = 1
    found = explain([model], loaded, labels, ORGAN, HIRES)
    for made in found.maps:
        assert made.values.shape == tuple(high - low for low, high in found.box)
        assert np.isfinite(made.values).all()
        assert made.values.min() >= 0
        assert made.values.max() <= 1 + 1e-6
    assert found.maps[0].values.max() == pytest.approx(1.0) or "no feature" in found.note


def test_a_cascade_sees_its_previous_stage(tmp_path):
    """The further channels are those of a prediction: a head that reads the label's own is explained by them."""

    class Previous(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = nn.ModuleList([nn.Identity()])

        def forward(self, image):
            told = self.encoder[0](image[:, -1:])
            return [torch.cat([torch.zeros_like(told), told], dim=1)]

    plan = with_cascade(plan_of())
    model = model_of(ONE, plan=plan, network=Previous(), patch=(16, 16, 16))
    before = replace(encoded(patch=(16, 16, 16)), plan=plan)
    full = model.plan.configurations["3d_fullres"]
    plan = replace(
        model.plan, configurations=model.plan.configurations | {"3d_cascade": replace(full, cascade_from="3d_lowres")}
    )
    model = replace(model, plan=plan, configuration_name="3d_cascade", previous=before)
    loaded = loaded_case(tmp_path)
    labels = decide([EnsembleMember(before)], loaded)
    found = explain([model], loaded, labels, ORGAN, HIRES)
    np.testing.assert_allclose(whole(found, loaded) > 0.5, labels == 1)


# ---- files and arrays


def test_maps_lie_on_the_image(tmp_path):
    loaded, model = loaded_case(tmp_path), encoded(patch=(16, 16, 16))
    out = tmp_path / "out"
    output = SaliencyOutput(out, [model], [ORGAN, Asked("organ", (4, 5, 6)), ORGAN], HIRES, InferenceOptions())
    member = EnsembleMember(model)
    assert output.begin(loaded, [member], out / "case.nii.gz") is None
    labels = decide([member], loaded)
    output.finish(labels)
    folder = out / "saliency" / "case"
    index = load(SaliencyIndex, folder / "saliency.json")
    assert [one.file for one in index.maps] == ["1_organ.nii", "1_organ_at_4_5_6.nii"]
    assert sorted(path.name for path in folder.iterdir()) == ["1_organ.nii", "1_organ_at_4_5_6.nii", "saliency.json"]
    image, found = nib.load(tmp_path / "case.nii.gz"), nib.load(folder / "1_organ.nii")
    np.testing.assert_array_equal(found.affine, image.affine)
    values = np.asarray(image.dataobj)
    np.testing.assert_allclose(np.asarray(found.dataobj), values > THRESHOLD, atol=1e-4)
    assert index.maps[0].inside == pytest.approx(1)
    assert index.maps[0].voxels == np.count_nonzero(values > THRESHOLD)
    assert "organ, organ" not in output.name


def test_gates_are_written_once(tmp_path):
    torch.manual_seed(0)
    network = small_network("attention_unet", 3).eval()
    network.deep_supervision = False
    model = replace(model_of(ONE, patch=(8, 8, 8)), networks=(network,))
    loaded = loaded_case(tmp_path)
    labels = (loaded.image[0] > THRESHOLD).astype(np.uint8)
    found = [explain([model], loaded, labels, asked) for asked in (ORGAN, Asked("background"))]
    index = write_saliency(tmp_path / "maps", loaded, How(), found)
    assert [one.file for one in index.maps] == ["1_organ.nii", "gate_0.nii", "gate_1.nii", "0_background.nii"]
    gate = np.asarray(nib.load(tmp_path / "maps" / "gate_0.nii").dataobj)
    assert 0 < gate.max() < 1
    assert index.maps[1].largest == 1.0


def test_a_place_outside_is_refused_before_anything_is_computed(tmp_path):
    output = SaliencyOutput(tmp_path, [encoded()], [Asked("organ", (1, 2, 99))], How(), InferenceOptions())
    with pytest.raises(DataError, match="outside the image"):
        output.begin(loaded_case(tmp_path), [], tmp_path / "case.nii.gz")
    with pytest.raises(UsageError, match="has no stage"):
        SaliencyOutput(tmp_path, [encoded()], [ORGAN], How("5"), InferenceOptions())


def test_an_array_is_explained_as_a_file(tmp_path):
    array = picture((9, 11, 13)).astype(np.float32)
    model = encoded(patch=(16, 16, 16))
    predictor = ArrayPredictor([model])
    found = predictor.saliency(array, ONE, asked=ORGAN, how=HIRES)
    labels = predictor.segment(array, ONE).labels
    assert list(found.maps) == ["saliency"]
    np.testing.assert_allclose(found.maps["saliency"], labels == 7, atol=1e-6)
    loaded = case_of_array(array, model.plan, ONE)
    expected = explain([model], loaded, (labels == 7).astype(np.uint8), ORGAN, HIRES)
    np.testing.assert_allclose(found.maps["saliency"], whole(expected, loaded), atol=1e-6)
    with pytest.raises(DataError, match="outside the image"):
        predictor.saliency(array, ONE, asked=Asked("organ", (-1, 0, 0)))


def test_the_method_suits_the_layer():
    assert [How(stage).chosen for stage in ("bottleneck", "decoder", "0")] == ["grad_cam", "hires_cam", "hires_cam"]
    assert How("0", "grad_cam").chosen == "grad_cam"


def test_maps_of_grad_cam_are_averaged_over_tiles(tmp_path):
    """Of each tile, its share of |M| over its voxels, times the feature, by the Gaussian weights of the tiles."""
    loaded, model = loaded_case(tmp_path, letters="LPS"), encoded(patch=(4, 6, 16))
    member = EnsembleMember(model)
    placement = member.prepare(loaded).placement
    labels = decide([member], loaded)
    found = explain([model], loaded, labels, ORGAN)
    feature = placement.crop(((loaded.image[0] - THRESHOLD) / 20).clip(0))
    shape, tiling = placement.shape, member.tiling((1, *placement.shape))
    scored = _Scored(np.zeros((1, *shape), np.float32), placement.crop(labels) == 1, tiling)
    score, weights = scored[slice(None), slice(0, shape[0])][-1], scored.weights.numpy()
    total, sums = np.zeros(shape), np.zeros(shape)
    for window in windows_of(shape, tiling):
        inside = tuple(slice(max(b, 0), min(b + e, n)) for b, e, n in zip(window, tiling.tile, shape, strict=True))
        at = tuple(slice(s.start - b, s.stop - b) for s, b in zip(inside, window, strict=True))
        share = (score[inside] * weights[at]).sum() / np.prod(tiling.tile)
        importance = gaussian_importance(tiling.tile).numpy()[at]
        total[inside] += importance * share * feature[inside]
        sums[inside] += importance
    expected = total / sums
    assert len(windows_of(shape, tiling)) > 1
    assert found.maps[0].largest == pytest.approx(expected.max(), rel=1e-3)
    np.testing.assert_allclose(found.maps[0].values, expected / expected.max(), atol=1e-3)
