"""Sparsity rules: closed forms, Monte Carlo, and thresholds met from both sides."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from autoseg.imaging.labels import LabelSet
from autoseg.planning import sparsity
from autoseg.planning.fingerprint import ComponentSizes
from synthetic_fingerprints import boxes, case, fingerprint, label_set, uniform

ONE = (1.0, 1.0, 1.0)
TWO_LABELS = label_set(3)


# ---- chance of foreground, foreground fraction


def test_meeting_chance_in_one_axis_by_hand():
    # image 10, patch 4, box 2: free lengths 6 and 8; to miss needs a gap: (10 - 4 - 2)^2 / (6 * 8) = 1/3
    chance = sparsity.meeting_chance(np.array([10.0]), np.array([4.0]), np.array([2.0]))
    assert chance == pytest.approx(2 / 3)


def test_meeting_chance_is_what_random_placement_gives():
    shape, patch, extent = np.array([30.0, 50.0, 20.0]), np.array([8.0, 20.0, 20.0]), np.array([3.0, 6.0, 2.0])
    rng = np.random.default_rng(0)
    corner = rng.random((200_000, 3)) * (shape - patch)
    box = rng.random((200_000, 3)) * (shape - extent)
    met = ((corner < box + extent) & (box < corner + patch)).all(axis=1).mean()
    assert sparsity.meeting_chance(shape, patch, extent) == pytest.approx(met, abs=0.005)


@pytest.mark.parametrize(("patch", "extent"), [(20, 2), (25, 2), (5, 20), (5, 30), (20, 20)])
def test_a_patch_or_a_box_as_long_as_the_image_always_meets(patch, extent):
    assert sparsity.meeting_chance(np.array([20.0]), np.array([float(patch)]), np.array([float(extent)])) == 1


def test_foreground_chance_counts_every_component_and_takes_the_median_case():
    labels = label_set(2)
    shape, patch = (10, 10, 10), (10, 10, 4)  # one axis decides: a box of 2 is missed with chance 1/3
    cases = [
        case(0, ONE, shape, {"label1": boxes(1, (10, 10, 2), ONE)}, labels.values),
        case(1, ONE, shape, {"label1": boxes(2, (10, 10, 2), ONE)}, labels.values),
        case(2, ONE, shape, {"label1": boxes(128, (10, 10, 2), ONE)}, labels.values),  # described by 64
    ]
    shapes, spacings = np.full((3, 3), 10.0), np.ones((3, 3))
    chance = [
        sparsity.foreground_chance(
            sparsity.component_table(fingerprint(chosen, labels)), shapes[: len(chosen)], spacings[: len(chosen)], patch
        )
        for chosen in (cases[:1], cases[1:2], cases)
    ]
    assert chance == pytest.approx([2 / 3, 1 - 1 / 9, 1 - 1 / 9])


def test_a_described_component_stands_for_several_in_the_chance():
    labels = label_set(2)
    two = ComponentSizes(2, (200.0,), ((10.0, 10.0, 2.0),))
    table = sparsity.component_table(uniform(ONE, (10, 10, 10), 1, labels, {"label1": two}))
    chance = sparsity.foreground_chance(table, np.full((1, 3), 10.0), np.ones((1, 3)), (10, 10, 4))
    assert chance == pytest.approx(1 - 1 / 9)


def test_cases_without_foreground_have_no_chance():
    labels = label_set(2)
    empty = fingerprint([case(0, ONE, (9, 9, 9), {}, labels.values)], labels)
    table = sparsity.component_table(empty)
    assert sparsity.foreground_chance(table, np.full((1, 3), 9.0), np.ones((1, 3)), (3, 3, 3)) == 0


@pytest.mark.parametrize(
    ("chance", "fraction"),
    [
        (0.0, 0.67),  # 2/3 of all patches must be forced
        (0.4, 0.44),  # (2/3 - .4) / .6 = .444
        (0.5, 0.33),  # (2/3 - .5) / .5 = 1/3
        (0.49, 0.35),  # .1767 / .51 = .346
        (0.9, 0.33),
        (1.0, 0.33),
    ],
)
def test_foreground_fraction_by_hand(chance, fraction):
    assert sparsity.foreground_fraction(chance)[0] == fraction


# ---- which cases and labels are drawn


def with_presence(*present):
    """Two labels; label1 in all cases, label2 in the given ones."""
    cases = [
        case(
            i,
            ONE,
            (20, 20, 20),
            {"label1": boxes(1, (9, 9, 9), ONE)} | ({"label2": boxes(1, (5, 5, 5), ONE)} if p else {}),
            TWO_LABELS.values,
        )
        for i, p in enumerate(present)
    ]
    return fingerprint(cases, TWO_LABELS)


def test_cases_of_a_label_in_fewer_than_half_are_drawn_more_often():
    assert sparsity.case_sampling(with_presence(1, 1, 0, 0))[0] == "uniform"
    assert sparsity.case_sampling(with_presence(1, 0, 0, 0))[0] == "presence"
    assert sparsity.case_sampling(with_presence(0, 0, 0, 0))[0] == "uniform"  # no case could be drawn for it


def test_labels_are_drawn_by_rarity_beyond_a_factor_of_ten():
    def sampling(extent):
        parts = {"label1": boxes(1, (10, 10, 10), ONE), "label2": boxes(1, extent, ONE)}
        return sparsity.class_sampling(uniform(ONE, (20, 20, 20), 2, TWO_LABELS, parts))

    assert sampling((1, 10, 10))[0] == "uniform"  # exactly 10
    assert sampling((1, 10, 9))[0] == "inverse_frequency"
    assert "11.1" in sampling((1, 10, 9))[1]


# ---- what a patch should cover


def test_wanted_extent_is_twice_the_typical_component_of_the_neediest_label():
    sizes = ComponentSizes(
        count=4,
        volumes_mm3=(40.0, 30.0, 20.0, 10.0),
        extents_mm=((4.0, 1.0, 1.0), (3.0, 1.0, 1.0), (2.0, 1.0, 1.0), (1.0, 1.0, 1.0)),
    )
    parts = {"label1": sizes, "label2": boxes(1, (1, 6, 1), ONE)}
    table = sparsity.component_table(uniform(ONE, (20, 20, 20), 1, TWO_LABELS, parts))
    assert sparsity.wanted_extent(table).tolist() == [6, 12, 2]  # 3 of 4 components are no longer than 3


def test_described_components_stand_for_all_of_them():
    few = ComponentSizes(count=10, volumes_mm3=(8.0,), extents_mm=((8.0, 1.0, 1.0),))
    table = sparsity.component_table(uniform(ONE, (20, 20, 20), 2, label_set(2), {"label1": few}))
    assert table.weight.tolist() == [10, 10]


def test_weighted_quantile_is_the_inverse_of_the_distribution():
    values, weights = np.array([3.0, 1.0, 2.0]), np.array([1.0, 2.0, 1.0])
    assert [sparsity.weighted_quantile(values, weights, q) for q in (0.25, 0.5, 0.51, 0.75, 0.76, 1.0)] == [
        1, 1, 2, 2, 3, 3,
    ]  # fmt: skip


def test_axes_of_components_follow_the_plan():
    parts = {"label1": boxes(1, (2, 3, 4), ONE)}
    table = sparsity.component_table(uniform(ONE, (9, 9, 9), 1, label_set(2), parts), axis_order=(2, 0, 1))
    assert table.extent_mm.tolist() == [[4, 2, 3]]


# ---- spacing guard


def guarded(fine_cases, coarse_cases, extent_mm, target):
    """Cases at 1 mm and at 4 mm along axis 0, each with one component of the given extent."""
    labels = label_set(2)
    sizes = ComponentSizes(1, (float(np.prod(extent_mm)),), (tuple(map(float, extent_mm)),))
    all_spacings = [ONE] * fine_cases + [(4.0, 1.0, 1.0)] * coarse_cases
    cases = [case(i, s, (50, 50, 50), {"label1": sizes}, labels.values) for i, s in enumerate(all_spacings)]
    table = sparsity.component_table(fingerprint(cases, labels))
    return sparsity.guard_spacing(table, np.array(all_spacings), np.array(target)), table, np.array(all_spacings)


def test_components_thinner_than_half_a_voxel_vanish_where_a_case_becomes_coarser():
    (_, _), table, case_spacings = guarded(3, 7, (1, 9, 9), (4.0, 1.0, 1.0))
    # 3 cases are coarsened along axis 0, where their components are 1 < 2 mm; the 7 others stay as they are
    assert sparsity.vanishing(table, case_spacings, np.array([4.0, 1.0, 1.0])) == {"label1": (3, 10)}
    assert sparsity.vanishing(table, case_spacings, np.array([2.0, 1.0, 1.0])) == {"label1": (0, 10)}


def test_components_smaller_than_half_a_voxel_vanish():
    (_, _), table, case_spacings = guarded(4, 0, (1, 1, 1), (1.3, 1.3, 1.3))
    assert sparsity.vanishing(table, case_spacings, np.array([1.3, 1.3, 1.3])) == {"label1": (4, 4)}  # 1 < 2.197 / 2
    assert sparsity.vanishing(table, case_spacings, np.array([1.2, 1.2, 1.2])) == {"label1": (0, 4)}  # 1 > 1.728 / 2


def test_spacing_is_refined_as_far_as_twice_the_voxels():
    (spacing, reason), _, _ = guarded(5, 5, (1, 9, 9), (4.0, 1.0, 1.0))
    assert spacing.tolist() == [2, 1, 1]  # the 10th percentile, 1 mm, would be four times the voxels
    assert "label1 5 of 10" in reason
    assert "label1 0 of 10" in reason


def test_spacing_is_not_refined_beyond_the_finest_tenth_of_the_cases():
    labels = label_set(2)
    sizes = ComponentSizes(1, (81.0,), ((1.0, 9.0, 9.0),))
    all_spacings = [(1.6, 1.0, 1.0)] * 4 + [(2.2, 1.0, 1.0)] * 6
    cases = [case(i, s, (50, 50, 50), {"label1": sizes}, labels.values) for i, s in enumerate(all_spacings)]
    table = sparsity.component_table(fingerprint(cases, labels))
    spacing, _ = sparsity.guard_spacing(table, np.array(all_spacings), np.array([2.2, 1.0, 1.0]))
    assert spacing.tolist() == pytest.approx([1.6, 1, 1])  # 1.375 times the voxels


def test_spacing_stays_where_few_vanish_or_nothing_helps():
    (spacing, reason), _, _ = guarded(1, 19, (1, 9, 9), (4.0, 1.0, 1.0))
    assert spacing.tolist() == [4, 1, 1]  # 1 of 20 is 5 %, not more
    assert reason == "components that vanish at this spacing: label1 1 of 20"
    (spacing, _), _, _ = guarded(3, 17, (1, 9, 9), (4.0, 1.0, 1.0))
    assert spacing[0] == 2  # 15 %
    (spacing, reason), _, _ = guarded(5, 5, (0.5, 9, 9), (4.0, 1.0, 1.0))
    assert spacing.tolist() == [4, 1, 1]  # even at 2 mm 0.5 mm is lost
    assert "no spacing saves any" in reason


# ---- loss


def test_filled_share_is_that_of_the_component_around_a_random_voxel():
    # one component of 900 voxels, and 100 of a single one: 90 % of the label's voxels lie in the large one
    sizes = ComponentSizes(101, (900.0, *(1.0,) * 100), ((9.0, 10.0, 10.0), *((1.0, 1.0, 1.0),) * 100))
    table = sparsity.component_table(uniform(ONE, (30, 30, 30), 1, label_set(2), {"label1": sizes}))
    assert sparsity.filled_share(table, (10, 10, 10), ONE) == {"label1": pytest.approx(0.9)}
    assert sparsity.filled_share(table, (20, 20), (1.0, 1.0)) == {"label1": pytest.approx(100 / 400)}  # mean slice


def test_class_weights_by_hand():
    # 20^3 voxels: label1 100, label2 4, background 7896; roots of 7896/100 and 7896/4, the latter beyond the cap
    parts = {"label1": boxes(1, (1, 10, 10), ONE), "label2": boxes(1, (1, 2, 2), ONE)}
    found = uniform(ONE, (20, 20, 20), 3, TWO_LABELS, parts)
    weights, reason = sparsity.class_weights(found, TWO_LABELS, {"label1": 0.1, "label2": 1e-4})
    expected = np.array([1.0, np.sqrt(78.96), 10.0])
    assert weights == pytest.approx(expected / expected.mean(), abs=1e-4)
    assert "label2 0.0001" in reason
    assert sparsity.class_weights(found, TWO_LABELS, {"label1": 0.1, "label2": 0.005})[0] is None


def test_class_weights_of_regions_have_one_entry_per_region():
    labels = LabelSet({"core": 1, "rim": 2}, regions={"whole": (1, 2), "core": (1,)}, region_values=(2, 1))
    parts = {"core": boxes(1, (1, 10, 10), ONE), "rim": boxes(1, (3, 10, 10), ONE)}
    found = uniform(ONE, (20, 20, 20), 1, labels, parts)
    weights, _ = sparsity.class_weights(found, labels, {"core": 1e-4})
    expected = np.array([np.sqrt(7600 / 400), np.sqrt(7600 / 100)])
    assert weights == pytest.approx(expected / expected.mean(), abs=1e-4)


def test_a_label_that_never_occurs_weighs_as_background():
    found = uniform(ONE, (20, 20, 20), 1, TWO_LABELS, {"label1": boxes(1, (1, 2, 2), ONE)})
    weights, _ = sparsity.class_weights(found, TWO_LABELS, {"label1": 1e-4})
    assert weights[2] == weights[0] < weights[1]


def test_ignored_voxels_are_no_background():
    found = uniform(ONE, (20, 20, 20), 1, label_set(2), {"label1": boxes(1, (4, 5, 5), ONE)})
    found = replace(found, cases=tuple(replace(c, ignored_voxels=8000 - 100 - 400) for c in found.cases))
    weights, _ = sparsity.class_weights(found, label_set(2), {"label1": 1e-4})
    assert weights[1] / weights[0] == pytest.approx(2, abs=1e-3)  # root of 400 / 100


def test_dice_is_summed_over_the_batch_for_absent_or_tiny_labels():
    large = {"label1": 0.1, "label2": 0.1}
    assert sparsity.batch_dice(with_presence(1, 1, 1, 0), large)[0] is False  # absent from a quarter, not from more
    assert sparsity.batch_dice(with_presence(1, 1, 0), large)[0] is True
    assert sparsity.batch_dice(with_presence(1, 1, 1), large | {"label2": 0.9e-3})[0] is True
    assert sparsity.batch_dice(with_presence(0, 0, 0), {"label1": 0.1})[0] is False  # it never occurs: no Dice at all


def test_rules_survive_a_dataset_without_any_component():
    found = fingerprint([case(0, ONE, (9, 9, 9), {}, TWO_LABELS.values)], TWO_LABELS)
    table = sparsity.component_table(found)
    assert sparsity.wanted_extent(table).tolist() == [0, 0, 0]
    assert sparsity.guard_spacing(table, np.ones((1, 3)), np.ones(3))[0].tolist() == [1, 1, 1]
    filled = sparsity.filled_share(table, (4, 4, 4), ONE)
    assert filled == {}
    assert sparsity.class_weights(found, TWO_LABELS, filled)[0] is None
    assert sparsity.batch_dice(found, filled)[0] is False
    assert [rule(found)[0] for rule in (sparsity.case_sampling, sparsity.class_sampling)] == ["uniform", "uniform"]


def test_long_lists_of_labels_are_cut_short_in_reasons():
    labels = label_set(60)
    parts = {name: boxes(1, (2, 2, 2), ONE) for name in itertools.islice(labels.values, 59)}
    table = sparsity.component_table(uniform(ONE, (20, 20, 20), 1, labels, parts))
    _, reason = sparsity.guard_spacing(table, np.ones((1, 3)), np.ones(3))
    assert "and 53 more" in reason
