"""The floor of a dataset: what is tuned on which images, and what held-out ones score."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from scipy import ndimage

from autoseg.datasets.splits import Split, Splits
from autoseg.evaluation.classical import OBJECT_METHODS
from autoseg.evaluation.classical_labels import LabelRecipe
from autoseg.evaluation.crossval import CrossValidation, FoldScores
from autoseg.evaluation.evaluate import summary_of
from autoseg.evaluation.floor import (
    CHOSEN,
    Beside,
    Floor,
    Loaded,
    MethodOnLabels,
    label_floor,
    object_floor,
    tried_cases,
)
from autoseg.evaluation.floor_text import compare_networks, describe
from phantom import sphere

SHAPE = (40, 72)
CENTRES = ((20, 12), (20, 25), (20, 56))  # the first two touch: radii of 7, centres 13 apart
IDS = ("a", "b", "c", "d")


def splits_of(*folds: tuple[str, str]) -> Splits:
    """Folds as strings of one-letter case ids: ("bcd", "a")."""
    return Splits(1, 0, tuple(Split(i, tuple(t), tuple(v)) for i, (t, v) in enumerate(folds)), (), ())


TWO = splits_of(("cd", "ab"), ("ab", "cd"))


def read_discs(case: str, *, dark: str = "", empty: str = "", channels: int = 1) -> Loaded:
    """Three discs, 80 above 100 or (in cases of `dark`) below it, in the last of the channels; others hold noise."""
    reference = np.zeros((1, *SHAPE), np.int32)
    if case not in empty:
        for number, centre in enumerate(CENTRES, start=1):
            reference[0][sphere(SHAPE, centre, 7.0, (1, 1)) & (reference[0] == 0)] = number
    values = 100 + np.where(reference > 0, -80.0 if case in dark else 80.0, 0.0)
    noise = np.random.default_rng(ord(case)).normal(100, 5, (channels - 1, *reference.shape))
    return Loaded(np.concatenate([noise, values[None]]).astype(np.float32), reference, (1.0, 1.0, 1.0))


def read_stripes(case: str, *, labels: int = 2) -> Loaded:
    """Stripes of 0..labels whose brightness falls with their number."""
    numbers = np.repeat(np.arange(labels + 1), 12)[None, None].repeat(12, axis=1)
    return Loaded((200.0 - 60 * numbers)[None].astype(np.float32), numbers, (1.0, 1.0, 1.0))


def average(found, method: str) -> float | None:
    return found[method].scores.average_precision["0.5"]


def test_no_image_is_tuned_on_that_the_fold_holds_out():
    ids = [f"{i:03d}" for i in range(100)]
    folds = splits_of(*((ids[:k] + ids[k + 20 :], ids[k : k + 20]) for k in range(0, 100, 20)))
    tried = tried_cases(folds, 40)
    assert len({case for cases in tried.values() for case in cases}) == 40
    for split in folds.splits:
        assert set(tried[split.fold]) <= set(split.train)
        assert len(tried[split.fold]) == 32
    assert tried_cases(splits_of(("bcd", "a")), 2) == {0: ("b", "d")}
    assert tried_cases(splits_of(("a", "a")), 5) == {0: ("a",)}  # one patient alone


@pytest.fixture(scope="module")
def discs_found():
    return object_floor(read_discs, TWO, {}, workers=0, most=2)


def test_discs_that_touch_are_found_by_a_watershed_alone(discs_found):
    """Two of three discs touch: as one object they match the larger of them, just, and miss the other: 2 / 3."""
    assert list(discs_found) == [*OBJECT_METHODS, CHOSEN]
    assert average(discs_found, "otsu_components") == pytest.approx(2 / 3)
    assert average(discs_found, "otsu_watershed") == average(discs_found, CHOSEN) == 1.0
    assert discs_found["otsu_components"].scores.merges == 4
    assert {recipe.method for recipe in discs_found[CHOSEN].recipes.values()} != {"otsu_components"}
    assert set(discs_found[CHOSEN].recipes) == {"0", "1"}
    assert discs_found[CHOSEN].scores.interval == (1.0, 1.0)  # every case is a patient


@pytest.mark.thorough
def test_polarity_and_channel_are_those_of_training_images():
    found = object_floor(partial(read_discs, dark="abcd", channels=2), TWO, {}, workers=0, most=2)
    assert average(found, "otsu_watershed") == 1.0
    assert {(recipe.bright, recipe.channel) for recipe in found[CHOSEN].recipes.values()} == {(False, 1)}


@pytest.mark.thorough
def test_what_held_out_images_show_decides_nothing():
    """Fold 0 trains on bright objects and holds dark ones out, fold 1 the reverse: both are wrong everywhere."""
    found = object_floor(partial(read_discs, dark="ab"), TWO, {}, workers=0, most=2)
    assert found["otsu_watershed"].recipes["0"].bright
    assert not found["otsu_watershed"].recipes["1"].bright
    assert average(found, CHOSEN) == 0.0


@pytest.mark.thorough
def test_empty_references_and_images_score_nothing():
    found = object_floor(partial(read_discs, empty="abcd"), TWO, {}, workers=0, most=2)
    assert average(found, CHOSEN) is None
    found = object_floor(partial(read_discs, empty="d"), TWO, {}, workers=0, most=2)
    assert average(found, "otsu_watershed") == 1.0


@pytest.mark.thorough
def test_ignored_voxels_count_in_neither_map():
    def read(case: str) -> Loaded:
        loaded = read_discs(case)
        image = loaded.image.copy()
        image[:, :, 30:, :] = 300  # a bright bar, which nobody annotated
        return replace(loaded, image=image, ignored=ndimage.binary_dilation(image[0] == 300, iterations=2))

    found = object_floor(read, TWO, {}, workers=0, most=2)
    assert found["otsu_components"].scores.segmentation < 8  # the bar alone is none


@pytest.mark.thorough
def test_cases_of_one_patient_have_no_interval():
    found = object_floor(read_discs, TWO, dict.fromkeys(IDS, "one"), workers=0, most=2)
    assert found[CHOSEN].scores.interval is None


def test_labels_are_found_by_their_brightness():
    scored = {"a": (1,), "b": (2,), "both": (1, 2)}
    found = label_floor(read_stripes, TWO, {}, scored, 2, workers=0, most=2)
    for method in ("otsu", "superpixels", CHOSEN):
        assert [*found[method].dice] == ["a", "b", "both", "mean"]
        assert found[method].dice["mean"].mean > 0.95
    assert found["otsu"].dice["mean"].mean == 1.0
    assert found["otsu"].recipes["0"].classes == 3


@pytest.mark.thorough
def test_labels_with_ignored_voxels():
    def read(case: str) -> Loaded:
        loaded = read_stripes("a")
        hidden = np.zeros(loaded.reference.shape, bool)
        hidden[..., :6] = True
        return replace(loaded, reference=np.where(hidden, 2, loaded.reference), ignored=hidden)  # nonsense, ignored

    found = label_floor(read, TWO, {}, {"a": (1,), "b": (2,)}, 2, workers=0, most=2)
    assert found[CHOSEN].dice["mean"].mean == 1.0


def floor_with(dice: float) -> Floor:
    """What methods on labels found, as far as models are compared with it."""
    chosen = MethodOnLabels({"a": summary_of([dice]), "mean": summary_of([dice])}, {"0": LabelRecipe("otsu")})
    return Floor("set", 4, 2, labels={CHOSEN: chosen})


def model_with(mean: list[float], cases: int = 4) -> CrossValidation:
    summary = {"a": {"dice": summary_of(mean, list(range(len(mean))))}}
    folds = (FoldScores(0, tuple("abcd"[:cases])),)  # type: ignore[arg-type]
    return CrossValidation(1, "3d", "unet", folds, 1, summary, summary["a"]["dice"])


@pytest.mark.parametrize(
    ("dice", "floor", "said"),
    [
        ([0.8, 0.9, 0.85, 0.95], 0.5, "is above 0.5000 without a network, beyond chance"),
        ([0.4, 0.9, 0.5, 0.8], 0.6, "0.6000 without a network is within its interval: no gain is shown"),
        ([0.4, 0.5, 0.45, 0.5], 0.9, "is below 0.9000, which needs no network"),
        ([0.7], 0.6, "without a network 0.6000; too few patients for an interval"),
    ],
)
def test_models_are_put_beside_the_floor_in_words(dice, floor, said):
    found = compare_networks(floor_with(floor), [model_with(dice)])
    assert [one.score for one in found.networks] == ["Dice of a", "mean Dice"]
    assert all(said in one.verdict for one in found.networks)
    assert found.networks[0].verdict.startswith("WARNING") == ("gain" in said or "below" in said)
    assert said in describe(found)


def test_models_that_scored_other_cases_are_not_compared():
    assert compare_networks(floor_with(0.5), [model_with([0.9, 0.8], cases=2)]).networks == ()


def test_objects_of_models_are_compared_too(discs_found):
    floor = Floor("discs", 4, 2, objects={"disc": discs_found})
    model = replace(model_with([0.5, 0.6]), objects={"disc": discs_found["otsu_components"].scores})
    (beside,) = compare_networks(floor, [model]).networks
    assert isinstance(beside, Beside)
    assert beside.network == pytest.approx(2 / 3)
    assert (beside.floor, beside.score) == (1.0, "average precision of disc at an IoU of 0.5")
    text = describe(floor)
    assert "otsu_watershed" in text
    assert "disc reach 1.0000 (AP 0.5) without a network" in text
