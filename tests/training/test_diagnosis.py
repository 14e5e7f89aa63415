"""What a fold's history shows: overfits, collapses and divergences that are named, and sound trainings that are not.

The histories are drawn by hand, copied from trainings (marked as real), or made up by Hypothesis.
"""

import math
import re
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoseg.planning.plan import Training
from autoseg.training.diagnosis import diagnose, ever_found
from autoseg.training.history import EpochRow

EPOCHS = 20


def rows(*, pseudo, training=None, loss=None, validation_loss=None, skipped=None, total=EPOCHS, steps=25):
    """A history with the Dice of one label (numbers) or of several (tuples), and losses that fall unless given."""
    count = len(pseudo)
    told = []
    for i in range(count):
        known = listed(pseudo[i])
        row = EpochRow(
            epoch=i + 1,
            step=steps * (i + 1),
            seconds=10.0 * (i + 1),
            loss=1 - 0.05 * i if loss is None else loss[i],
            training_dice=(None,) * len(known) if training is None else listed(training[i]),
            validation_loss=1 - 0.04 * i if validation_loss is None else validation_loss[i],
            pseudo_dice=known,
            learning_rate=0.01 * (1 - i / total),
            progress=(i + 1) / total,
            skipped=0 if skipped is None else skipped[i],
        )
        told.append(row)
    return told


def listed(dice):
    return dice if isinstance(dice, tuple) else (dice,)


def names(history):
    return ["liver", "tumour", "vessel"][: len(history[0].pseudo_dice)]


def kinds(history):
    """Kind and label of what is wrong as a history stands."""
    return [(finding.kind, finding.label) for finding in diagnose(history, names(history))]


def first_named(history):
    """The epoch at which something was first named, or None."""
    return next((n for n in range(1, len(history) + 1) if kinds(history[:n])), None)


def rising(top, speed=4.0, count=EPOCHS):
    """A Dice that approaches `top`, by 1 - 1/e in a quarter of 16 epochs."""
    return [top * (1 - math.exp(-(i + 1) / speed)) for i in range(count)]


# Overfitting


def test_two_patients_learnt_by_heart():
    """As of brain lesions: 0.9 on the two patients, 0.35 on new ones, which is named when half of the time is left."""
    pseudo = [0, 0.05, 0.2, 0.3, 0.33, 0.35, 0.34, 0.35, 0.36, 0.34] + 10 * [0.35]
    training = [0, 0.06, 0.3, 0.45, 0.6, 0.68, 0.75, 0.8, 0.83, 0.85] + 10 * [0.9]
    history = rows(pseudo=pseudo, training=training)
    assert first_named(history) == 10  # the means of epochs 8 to 10 are 0.827 and 0.35; those of 5 to 7 were 0.34
    (finding,) = diagnose(history[:10], ["tumour"])
    assert (finding.kind, finding.label) == ("overfit", "tumour")
    assert finding.what == (
        "tumour has a Dice of 0.83 on patches of training cases but 0.35 on those of validation cases, "
        "which was already 0.34 around epoch 6"
    )
    assert kinds(history) == [("overfit", "liver")]  # and to the end


REAL_OVERFIT = (  # hippocampus, two patients without augmentation, 500 steps: training and pseudo Dice of both labels
    ((0.121, 0.176), (0.121, 0.155)), ((0.406, 0.635), (0.335, 0.486)), ((0.673, 0.858), (0.591, 0.676)),
    ((0.875, 0.863), (0.687, 0.672)), ((0.887, 0.873), (0.710, 0.658)), ((0.894, 0.911), (0.700, 0.734)),
    ((0.902, 0.898), (0.752, 0.712)), ((0.916, 0.894), (0.729, 0.742)), ((0.921, 0.915), (0.746, 0.716)),
    ((0.945, 0.936), (0.742, 0.742)), ((0.934, 0.933), (0.733, 0.722)), ((0.939, 0.947), (0.751, 0.740)),
    ((0.951, 0.942), (0.752, 0.746)), ((0.949, 0.944), (0.736, 0.716)), ((0.956, 0.950), (0.741, 0.742)),
    ((0.958, 0.954), (0.749, 0.746)), ((0.960, 0.957), (0.746, 0.740)), ((0.961, 0.958), (0.747, 0.738)),
    ((0.963, 0.957), (0.751, 0.740)), ((0.963, 0.957), (0.751, 0.741)),
)  # fmt: skip


def test_a_real_overfit_is_named():
    training, pseudo = zip(*REAL_OVERFIT, strict=True)
    history = rows(training=training, pseudo=pseudo)
    assert first_named(history) == 12
    assert ever_found(history, ["liver", "tumour"]) == {("overfit", "tumour"), ("overfit", None)}
    (finding,) = diagnose(history, ["liver", "tumour"])
    assert finding.label is None  # all labels
    assert finding.what.startswith("all 2 labels, for instance: liver has a Dice of 0.96 ")


@pytest.mark.parametrize("seed", range(20))
def test_a_healthy_gap_is_not_named(seed):
    """As of the hippocampus: 0.93 and 0.87, with noise of 0.015 in each epoch, after a fifth without any Dice."""
    random = np.random.default_rng(seed)
    begun = np.maximum(np.arange(EPOCHS) - 3, 0) / 3
    training = 0.93 * (1 - np.exp(-begun)) + random.normal(0, 0.015, EPOCHS) * (begun > 0)
    pseudo = 0.87 * (1 - np.exp(-begun)) + random.normal(0, 0.015, EPOCHS) * (begun > 0)
    loss = 1 - 1.8 * (1 - np.exp(-begun)) + random.normal(0, 0.03, EPOCHS)
    validation_loss = 0.9 - 1.65 * (1 - np.exp(-begun)) + random.normal(0, 0.03, EPOCHS)
    history = rows(
        pseudo=pseudo.clip(0, 1).tolist(), training=training.clip(0, 1).tolist(), loss=loss.tolist(),
        validation_loss=validation_loss.tolist(),
    )  # fmt: skip
    assert ever_found(history, ["liver"]) == set()


def test_hard_validation_cases_are_no_overfit():
    """Validation reaches 0.65 of 0.88 and both stop rising together: the cases differ, the network learnt no heart."""
    assert first_named(rows(pseudo=rising(0.65), training=rising(0.88))) is None
    apart = rows(pseudo=rising(0.65, speed=2.0), training=rising(0.95, speed=6.0))
    assert first_named(apart) is not None  # validation is through, training continues


def test_validation_that_still_improves_is_no_overfit():
    """Even far below: 0.02 per epoch is on its way."""
    history = rows(pseudo=[0.02 * i for i in range(EPOCHS)], training=rising(0.95))
    assert first_named(history) is None


def test_validation_that_falls_is_named_before_the_gap_is_wide():
    training = [0.3, 0.5, 0.6, 0.65, 0.68, 0.7, 0.71, 0.72, 0.73, 0.74]
    pseudo = [0.3, 0.5, 0.6, 0.65, 0.66, 0.62, 0.58, 0.55, 0.53, 0.52]
    history = rows(pseudo=pseudo, training=training)
    assert first_named(history) == 10  # by epochs 8 to 10 it lost 0.110 of 0.643; the gap is 0.197
    pseudo[7:] = [0.5, 0.49, 0.49]
    for now, named in ((0.69, True), (0.66, False)):  # of training patches, which had 0.677 when validation was best
        assert bool(kinds(rows(pseudo=pseudo, training=[*training[:7], now, now, now]))) == named


def test_one_label_of_three_overfits():
    pseudo = list(zip(rising(0.9), [min(0.3, d) for d in rising(0.9)], rising(0.8), strict=True))
    training = list(zip(rising(0.95), rising(0.95), rising(0.9), strict=True))
    assert kinds(rows(pseudo=pseudo, training=training)) == [("overfit", "tumour")]


def test_labels_that_the_validation_patches_do_not_hold_are_not_compared():
    """False voxels make a Dice of 0, and otherwise there is none."""
    training = rising(0.9)
    assert kinds(rows(pseudo=[0.0, None] * 10, training=training)) == []
    assert kinds(rows(pseudo=EPOCHS * [0.0], training=training)) == []  # false voxels in each epoch, perhaps
    assert kinds(rows(pseudo=[0.01] + 19 * [0.0], training=training)) == [("overfit", "liver")]


def losses(rise, *, fall=0.02, at=8):
    """Both losses fall by 0.1 per epoch from 0.5 until epoch `at`; then validation rises, training falls on."""
    told = [0.5 - 0.1 * i for i in range(at)]
    for _ in range(at, EPOCHS):
        told.append(told[-1])
    validation = [loss + rise * max(0, i - at + 1) for i, loss in enumerate(told)]
    training = [loss - fall * max(0, i - at + 1) for i, loss in enumerate(told)]
    return {"loss": training, "validation_loss": validation}


def test_losses_that_part_are_named():
    """Where no patch of a training case holds a label."""
    flat = EPOCHS * [0.6]
    history = rows(pseudo=flat, **losses(0.03))
    assert kinds(history) == [("overfit", None)]
    (finding,) = diagnose(history, ["liver"])
    assert finding.what == (
        "the validation loss rose from -0.170 (around epoch 9) to +0.160 "
        "while the training loss fell from -0.220 to -0.420"
    )
    assert kinds(rows(pseudo=flat, **losses(0.005))) == []  # by 0.06 in all
    assert kinds(rows(pseudo=flat, **losses(0.03, fall=0.0))) == []  # training learns no more, either
    assert kinds(rows(pseudo=[0.6 + 0.005 * i for i in range(EPOCHS)], **losses(0.03))) == []  # sure, and yet better


def test_a_rise_is_measured_by_what_the_loss_had_fallen():
    """0.2 is less than a fifth of 2.8 and more than that of 0.7; below 0.1 it is noise, whatever it had fallen by."""
    shallow = losses(0.0)["validation_loss"]
    down = [0.0] * 14 + [-0.1] * 6
    for scale, rise, named in ((1, 0.2, True), (4, 0.2, False), (0.2, 0.09, False), (0.2, 0.11, True)):
        history = rows(
            pseudo=EPOCHS * [0.6],
            loss=[scale * a + b for a, b in zip(shallow, down, strict=True)],
            validation_loss=[scale * loss + (rise if i >= 14 else 0) for i, loss in enumerate(shallow)],
        )
        assert bool(kinds(history)) == named


# Collapse


@pytest.mark.parametrize("training", [None, EPOCHS * [(0.9, 0.001)]])
def test_a_label_that_is_never_learnt(training):
    pseudo = [(min(0.9, 0.1 * i), 0.002) for i in range(EPOCHS)]
    history = rows(pseudo=pseudo, training=training)
    assert first_named(history) == 12  # 60 % of the training: no sooner
    (finding,) = diagnose(history[:12], ["liver", "tumour"])
    assert (finding.kind, finding.label) == ("collapse", "tumour")
    assert finding.what == "tumour is not learnt: its Dice is 0.002 after 60% of the training"
    assert "class_sampling=inverse_frequency" in finding.remedy
    assert "training.loss=dice_focal" in finding.remedy


REAL_LATE = (0.002, 0, 0, 0, 0, 0, 0.001, 0.012, 0.018, 0.061, 0.132, 0.189, 0.303, 0.374, 0.415)  # a small lesion


def test_a_label_that_is_learnt_late_is_not_named():
    """Real: no Dice of a lesion until half of a minute's training was over, 0.4 at its end."""
    assert ever_found(rows(pseudo=REAL_LATE, total=len(REAL_LATE)), ["liver"]) == set()
    assert first_named(rows(pseudo=[*REAL_LATE[:6], *6 * [0.0]], total=15)) == 9


def test_a_long_training_is_not_watched_until_it_is_late():
    assert first_named(rows(pseudo=120 * [0.0], total=1000, steps=250)) == 100  # 25 000 steps
    assert first_named(rows(pseudo=120 * [0.0], total=1000, steps=10)) is None


def test_a_label_that_no_patch_holds_does_not_collapse():
    assert kinds(rows(pseudo=EPOCHS * [None])) == []
    assert kinds(rows(pseudo=[None, *19 * [0.0]])) == []  # false voxels: 0
    assert kinds(rows(pseudo=EPOCHS * [None], training=EPOCHS * [0.0])) == [("collapse", "liver")]  # training's count


def test_a_label_known_on_training_patches_does_not_collapse():
    assert kinds(rows(pseudo=EPOCHS * [0.001], training=EPOCHS * [0.3])) == []
    assert kinds(rows(pseudo=[0.5, 0.5, 0.5, *17 * [0.0]], training=EPOCHS * [0.8])) == [("overfit", "liver")]


def test_a_label_that_was_learnt_and_lost():
    history = rows(pseudo=[0.1, 0.3, 0.5, 0.6, 0.0, 0.01, 0.0])
    assert first_named(history) == 7  # three epochs, however early
    (finding,) = diagnose(history, ["liver"])
    assert (finding.kind, finding.label) == ("collapse", "liver")
    assert finding.what == (
        "liver was learnt (Dice 0.30 around epoch 3) and then lost: its Dice is 0.003 after 35% of the training"
    )
    assert "--set training.learning_rate=0.003" in finding.remedy  # a third of 0.01
    assert kinds(rows(pseudo=[0.1, 0.3, 0.5, 0.6, 0.0, 0.0, 0.3])) == []  # two epochs are a dip
    assert kinds(rows(pseudo=[0.0, 0.19, 0.19, 0.19, 0.0, 0.0, 0.0])) == []  # it was hardly learnt
    assert kinds(history + rows(pseudo=[0.3, 0.4])) == []  # found again


def test_nothing_is_learnt_at_all():
    (finding,) = diagnose(rows(pseudo=EPOCHS * [(0.0, 0.001)]), ["liver", "tumour"])
    assert (finding.kind, finding.label) == ("collapse", None)
    assert finding.what.startswith("all 2 labels, for instance: liver is not learnt")


def test_two_labels_of_three():
    found = kinds(rows(pseudo=EPOCHS * [(0.9, 0.0, 0.001)]))
    assert found == [("collapse", "tumour"), ("collapse", "vessel")]


def test_many_labels_that_are_not_learnt_are_one_finding():
    label_names = [f"l{i}" for i in range(300)]
    (finding,) = diagnose(rows(pseudo=EPOCHS * [(0.9, *[0.0] * 293, *[0.8] * 6)]), label_names)
    assert (finding.kind, finding.label) == ("collapse", None)
    assert finding.what == (
        "293 of 300 labels (l1, l2, l3, l4, l5 and 288 more), for instance: "
        "l1 is not learnt: its Dice is 0.000 after 100% of the training"
    )
    assert len(diagnose(rows(pseudo=EPOCHS * [(0.9, *[0.0] * 5)]), label_names[:6])) == 5


# Labels without a training case


def unseen(history, *labels):
    return [replace(row, unseen=labels) for row in history]


def test_a_label_without_a_training_case_is_named_as_that_and_at_once():
    history = unseen(rows(pseudo=EPOCHS * [(0.9, 0.0)]), 1)
    assert first_named(history) == 1
    (finding,) = diagnose(history, ["liver", "tumour"])  # at the end, when it would be called not learnt
    assert (finding.kind, finding.label) == ("unseen", "tumour")
    assert finding.what == "tumour is in none of the fold's training cases"
    assert "--set" not in finding.remedy
    assert kinds(rows(pseudo=EPOCHS * [(0.9, 0.0)])) == [("collapse", "tumour")]


def test_other_labels_are_judged_beside_it():
    assert kinds(unseen(rows(pseudo=EPOCHS * [(0.0, 0.9, 0.0)]), 2)) == [("unseen", "vessel"), ("collapse", "liver")]
    (finding,) = diagnose(unseen(rows(pseudo=EPOCHS * [(0.9, 0.0, 0.0)]), 1, 2), ["liver", "tumour", "vessel"])
    assert (finding.kind, finding.label) == ("unseen", None)
    assert finding.what == "tumour, vessel are in none of the fold's training cases"


def test_positions_without_a_label_mean_nothing():
    assert kinds(unseen(rows(pseudo=3 * [0.9]), 7, -1)) == []


# Divergence


def diverging(**changes):
    told = {"pseudo": [0.5, 0.5, 0.5, 0.5], **changes}
    return rows(**told)


@pytest.mark.parametrize("value", [None, math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_named_at_once(value):
    history = diverging(loss=[0.5, 0.3, 0.2, value])
    assert first_named(history) == 4
    (finding,) = diagnose(history, ["liver"])
    assert (finding.kind, finding.label) == ("diverge", None)
    assert finding.what == "the training loss of epoch 4 is not finite"
    assert "--set training.autocast=float32" in finding.remedy
    (finding,) = diagnose(diverging(validation_loss=[0.5, 0.3, 0.2, value]), ["liver"])
    assert finding.what == "the validation loss of epoch 4 is not finite"
    assert kinds(diverging(loss=[0.5, value, 0.3, 0.2])) == []  # it is past


def test_a_loss_far_above_its_best():
    (finding,) = diagnose(diverging(loss=[0.6, -0.4, 0.2, 2.0]), ["liver"])
    assert finding.what == "the training loss rose from -0.400 (epoch 2) to +2.000"
    assert kinds(diverging(loss=[0.6, -0.4, -0.3, 2.0])) == []  # one epoch
    assert kinds(diverging(loss=[0.6, -0.4, 0.0, 0.05])) == []  # by 0.4
    assert kinds(diverging(loss=[0.2, -0.1, 0.3, 0.35])) == []  # more than it had fallen by, and still 0.4
    assert kinds(diverging(loss=[0.2, -0.1, 0.41, 0.42])) == [("diverge", None)]
    assert kinds(diverging(loss=[3.0, -0.4, 1.0, 1.2])) == []  # less than half of what it had fallen by
    assert kinds(diverging(loss=[1.0, 2.0, 8.0, 70.0])) == [("diverge", None)]  # from the first step


def test_many_skipped_steps():
    (finding,) = diagnose(diverging(skipped=[0, 4, 4, 2]), ["liver"])
    assert finding.what == "10 of the last 75 steps were skipped: loss or gradients were not finite"
    assert kinds(diverging(skipped=[0, 4, 4, 1])) == []
    assert kinds(diverging(skipped=[9, 0, 0, 0])) == []  # half precision that looks for its scale
    assert kinds(diverging(skipped=[0, 4, 4, 2], steps=40)) == []  # of 120
    assert kinds(diverging(skipped=[10, 0, 0, 0])[:1]) == [("diverge", None)]  # of the first 25


# Any history


def test_an_empty_history_shows_nothing():
    assert diagnose([], ["liver"]) == []
    assert ever_found([], ["liver"]) == set()


def test_a_fold_that_holds_no_case_out_is_judged_by_its_training_patches():
    history = [
        replace(row, pseudo_dice=None, validation_loss=None)
        for row in rows(pseudo=EPOCHS * [0.0], training=EPOCHS * [0.0])
    ]
    assert ever_found(history, ["liver"]) == {("collapse", "liver")}
    assert ever_found([replace(row, training_dice=(0.9,)) for row in history], ["liver"]) == set()
    (finding,) = diagnose([replace(row, loss=None, training_dice=(0.9,)) for row in history], ["liver"])
    assert finding.what == "the training loss of epoch 20 is not finite"


figure = st.one_of(st.none(), st.floats())
dices = st.lists(figure, max_size=4).map(tuple)
counts = st.integers(-(2**40), 2**40)
any_row = st.builds(
    EpochRow, epoch=counts, step=counts, seconds=st.floats(0, 1e300), loss=figure, training_dice=dices,
    validation_loss=figure, pseudo_dice=st.one_of(st.none(), dices), learning_rate=st.floats(0, 1e300),
    skipped=counts, progress=st.floats(0, 1), unseen=st.lists(st.integers(-2, 5)).map(tuple),
)  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(st.lists(any_row, max_size=12), st.integers(0, 3))
def test_no_history_raises(history, labels):
    before = list(history)
    label_names = ["liver", "tumour", "vessel"][:labels]
    found = diagnose(history, label_names)
    assert {(finding.kind, finding.label) for finding in found} <= ever_found(history, label_names)
    assert all(finding.what and finding.remedy for finding in found)
    assert history == before


dice = st.floats(0, 1).map(lambda value: round(value, 4))
loss = st.floats(-1, 3).map(lambda value: round(value, 3))


@st.composite
def sane_history(draw, labels=2):
    count = draw(st.integers(3, 16))
    column = st.lists(loss, min_size=count, max_size=count)
    table = st.lists(st.tuples(*labels * [st.one_of(dice, st.just(0.0))]), min_size=count, max_size=count)
    return rows(
        pseudo=draw(table), training=draw(table), loss=draw(column), validation_loss=draw(column), total=count,
        skipped=draw(st.lists(st.integers(0, 8), min_size=count, max_size=count)),
    )  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(sane_history())
def test_ever_found_is_what_each_epoch_would_have_named(history):
    expected = {pair for epochs in range(1, len(history) + 1) for pair in kinds(history[:epochs])}
    assert ever_found(history, ["liver", "tumour"]) == expected


@settings(max_examples=60, deadline=None)
@given(sane_history())
def test_labels_are_judged_whatever_their_order(history):
    turned = [replace(row, training_dice=row.training_dice[::-1], pseudo_dice=row.pseudo_dice[::-1]) for row in history]
    found = {(f.kind, f.label) for f in diagnose(history, ["liver", "tumour"])}
    assert {(f.kind, f.label) for f in diagnose(turned, ["tumour", "liver"])} == found


def test_where_losses_begin_is_indifferent():
    random = np.random.default_rng(5)
    found = []
    for _ in range(200):
        loss, validation_loss = random.normal(0, 0.1, (2, 12)) + np.linspace(0.6, -0.4, 12)
        loss, validation_loss = loss - random.choice([0, 0.05]) * np.arange(12), validation_loss.copy()
        validation_loss[6:] += random.uniform(0, 1)
        loss[10:] += random.choice([0, 1])
        each = [
            kinds(rows(pseudo=12 * [0.5], loss=loss + shift, validation_loss=validation_loss + shift))
            for shift in (0, 7.3, -2.1)
        ]
        assert each[0] == each[1] == each[2]
        found += each[0]
    assert min(found.count((kind, None)) for kind in ("overfit", "diverge")) > 20


@pytest.mark.thorough
@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.floats(0, 1), min_size=8, max_size=40).map(sorted),
    st.lists(st.floats(0, 0.19), min_size=40, max_size=40),
    st.lists(loss, min_size=40, max_size=40).map(lambda values: sorted(values, reverse=True)),
    st.integers(0, 2),
)
def test_a_training_that_only_improves_is_sound(known, gaps, falling, unknown):
    """All Dice rise, all losses fall, the gap stays below 0.2; some epochs at the beginning have no Dice at all."""
    known = unknown * [0.0] + [0.1 + 0.9 * value for value in known]
    new = np.maximum.accumulate([max(0.06, d - g) if d else 0.0 for d, g in zip(known, gaps, strict=False)]).tolist()
    count = len(new)
    history = rows(
        pseudo=new, training=known[:count], loss=falling[:count], validation_loss=falling[:count], total=count
    )
    assert ever_found(history, ["liver"]) == set()


# What to try


def test_remedies_are_options_that_exist():
    told = [
        rows(pseudo=EPOCHS * [0.0]),
        rows(pseudo=[0.1, 0.3, 0.5, 0.6, 0.0, 0.01, 0.0]),
        rows(pseudo=EPOCHS * [0.3], training=EPOCHS * [0.9]),
        diverging(loss=[0.5, 0.3, 0.2, None]),
    ]
    remedies = [finding.remedy for history in told for finding in diagnose(history, ["liver"])]
    assert len(remedies) == len(told)
    known = {field.name for field in fields(Training)}
    for remedy in remedies:
        options = re.findall(r"training\.([a-z_]+)", remedy)
        assert options
        assert set(options) <= known
