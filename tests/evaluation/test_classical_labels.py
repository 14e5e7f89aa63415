"""Labels without a network: classes of intensity with known answers, counts worked out by hand."""

import numpy as np
import pytest

from autoseg.evaluation.classical_labels import LabelRecipe, Parts, confusion_of, cut, dice_of, learn_meaning

SCORED = {"a": (1,), "b": (2,)}
THREE = LabelRecipe("otsu", smoothing=0.0, classes=3)


def stripes(*values: float) -> tuple[np.ndarray, np.ndarray]:
    """Image (1, 1, 12, 12 n) of n stripes with these values; and their numbers 0..n-1, (1, 12, 12 n)."""
    numbers = np.repeat(np.arange(len(values)), 12)[None, None].repeat(12, axis=1)
    return np.array(values, np.float32)[numbers][None], numbers


@pytest.mark.parametrize("recipe", [THREE, LabelRecipe("superpixels", smoothing=0.0)])
@pytest.mark.parametrize("values", [(10.0, 60.0, 110.0), (110.0, 60.0, 10.0), (60.0, 110.0, 10.0)])
def test_labels_of_different_brightness_are_found_whatever_their_order(recipe, values):
    image, target = stripes(*values)
    parts = cut(image, target, (1, 1, 1), recipe, 2)
    meaning = learn_meaning(recipe, [parts], SCORED)
    confusion = confusion_of(recipe, parts, meaning)
    assert confusion.sum() == target.size
    assert dice_of(confusion, SCORED) == {"a": 1.0, "b": 1.0}


def test_counts_are_of_the_labels_in_each_class():
    image, target = stripes(10.0, 60.0, 110.0)
    target = target.copy()
    target[0, 0, :6] = 2  # 6 voxels of the darkest class belong to label 2
    parts = cut(image, target, (1, 1, 1), THREE, 2)
    assert parts.counts.tolist() == [[138, 0, 6], [0, 144, 0], [0, 0, 144]]
    assert parts.means[:, 0] == pytest.approx([0, 0.5, 1])


def test_a_meaning_is_chosen_by_dice_not_by_majority():
    """Class 1 holds 100 of background and 60 of label a: most are background, but calling it a gives a Dice of 0.75."""
    parts = Parts(np.array([[1000, 0], [100, 60]]), np.zeros((2, 1), np.float32))
    recipe = LabelRecipe("otsu")
    meaning = learn_meaning(recipe, [parts], {"a": (1,)})
    assert meaning.tolist() == [0, 1]
    confusion = confusion_of(recipe, parts, meaning)
    assert confusion.tolist() == [[1000, 100], [0, 60]]
    assert dice_of(confusion, {"a": (1,)})["a"] == pytest.approx(2 * 60 / (60 + 160))


def test_nearest_means_weigh_voxels():
    """Label 1 is 0.9 in 10 voxels and 0.3 in 30: its mean is 0.45, so that a part of 0.4 is nearer to it than to 0."""
    recipe = LabelRecipe("superpixels")
    training = Parts(np.array([[100, 0], [0, 10], [0, 30]]), np.array([[0.0], [0.9], [0.3]], np.float32))
    meaning = learn_meaning(recipe, [training], {"a": (1,)})
    assert meaning[:, 0] == pytest.approx([0, 0.45])
    new = Parts(np.array([[5, 0], [0, 7]]), np.array([[0.2], [0.4]], np.float32))
    assert confusion_of(recipe, new, meaning).tolist() == [[5, 0], [0, 7]]


def test_regions_are_unions_and_absent_labels_have_no_dice():
    confusion = np.array([[5, 0, 0], [1, 2, 1], [0, 0, 0]])
    found = dice_of(confusion, {"whole": (1, 2), "b": (2,), "none": ()})
    assert found["whole"] == pytest.approx(2 * 3 / (4 + 3))
    assert found["b"] == 0.0
    assert dice_of(np.array([[5, 0], [0, 0]]), {"a": (1,)})["a"] is None


def test_ignored_voxels_count_nowhere():
    image, target = stripes(10.0, 60.0, 110.0)
    target = np.where(np.indices(target.shape)[2] % 2, -1, target)
    assert cut(image, target, (1, 1, 1), THREE, 2).counts.sum() == target.size // 2


@pytest.mark.parametrize("recipe", [LabelRecipe("otsu", classes=2), THREE, LabelRecipe("superpixels")])
def test_a_constant_image_is_one_part(recipe):
    image, target = stripes(50.0, 50.0, 50.0)
    parts = cut(image, target, (1, 1, 1), recipe, 2)
    assert np.count_nonzero(parts.counts.sum(axis=1)) == 1
    meaning = learn_meaning(recipe, [parts], SCORED)
    assert confusion_of(recipe, parts, meaning).sum() == target.size


def test_labels_that_training_never_shows_are_never_found():
    image, target = stripes(10.0, 60.0)
    recipe = LabelRecipe("superpixels", smoothing=0.0)
    parts = cut(image, target, (1, 1, 1), recipe, 2)  # label 2 is absent
    meaning = learn_meaning(recipe, [parts], SCORED)
    assert np.isinf(meaning[2]).all()
    assert confusion_of(recipe, parts, meaning)[:, 2].sum() == 0


def test_unknown_methods_are_refused():
    image, target = stripes(10.0, 60.0)
    with pytest.raises(ValueError, match="there is no method 'kmeans': otsu, superpixels"):
        cut(image, target, (1, 1, 1), LabelRecipe("kmeans"), 1)
