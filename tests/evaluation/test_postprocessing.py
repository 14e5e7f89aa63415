"""Components counted once score every candidate as correcting the label map does; planted islands are removed."""

import numpy as np
import pytest
from scipy import ndimage

from autoseg.commands.choose import choose_components
from autoseg.evaluation.choose import HeldOutCases
from autoseg.evaluation.evaluate import ScoreJob
from autoseg.evaluation.metrics import confusion_matrix
from autoseg.evaluation.postprocessing import (
    CorrectedJob,
    candidates,
    combined,
    components_of_case,
    corrected_confusion,
)
from autoseg.imaging.corrections import correct
from autoseg.imaging.labels import LabelSet
from autoseg.models.decision import ComponentRule, Rule
from files import nifti

LABELS = LabelSet({"organ": 1, "lesion": 2})
REGIONS = LabelSet({"oedema": 1, "core": 2}, regions={"whole": (1, 2), "core": (2,)}, region_values=(1, 2))
SPACING = np.diag([1.0, 2.0, 1.5, 1.0])  # 3 mm³


def job(folder, name: str, reference, segmentation, labels=LABELS) -> ScoreJob:
    files = [nifti(folder / f"{name}_{what}.nii", array.astype(np.uint8), SPACING)
             for what, array in (("ref", reference), ("seg", segmentation))]  # fmt: skip
    return ScoreJob(name, files[0], files[1], labels)


def blobs(seed: int, shape=(12, 14, 10)) -> np.ndarray:
    smooth = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 0.8)
    return np.digitize(smooth, np.quantile(smooth, [0.6, 0.85]))


@pytest.mark.parametrize("labels", [LABELS, REGIONS], ids=["labels", "regions"])
@pytest.mark.parametrize(
    "rule", [ComponentRule(keep_largest=True), ComponentRule(min_volume=20.0), ComponentRule(fill_holes=True)], ids=str
)
def test_candidates_are_scored_as_they_are_applied(tmp_path, labels, rule):
    for seed in range(3):
        reference, segmentation = blobs(seed), blobs(seed + 10)
        pair = job(tmp_path, f"c{seed}", reference, segmentation, labels)
        case = components_of_case(pair)
        np.testing.assert_array_equal(case.confusion, confusion_matrix(reference, segmentation, 3))
        for name in labels.scored:
            corrected = segmentation.astype(np.uint8)
            correct(corrected, Rule(components={name: rule}).corrections(labels, 3.0))
            wanted = confusion_matrix(reference, corrected, 3)
            np.testing.assert_array_equal(case.corrected(name, rule, labels), wanted)
            applied = corrected_confusion(CorrectedJob(pair, Rule(components={name: rule})))
            np.testing.assert_array_equal(applied, wanted)


def test_an_inner_region_leaves_the_outer_one():
    """Islands of the core become oedema, not background."""
    labels = np.full((3, 3, 9), 1, np.uint8)
    labels[:, :, :3] = 2
    labels[1, 1, 7] = 2
    correct(labels, Rule(components={"core": ComponentRule(keep_largest=True)}).corrections(REGIONS, 1.0))
    assert labels[1, 1, 7] == 1
    assert (labels == 2).sum() == 27


def test_volumes_are_in_cubic_millimetres(tmp_path):
    segmentation = np.zeros((4, 4, 4))
    segmentation[0, 0, :2] = segmentation[3, 3, 3] = 1
    case = components_of_case(job(tmp_path, "a", segmentation, segmentation))
    assert sorted(case.labels["organ"].volumes) == [3.0, 6.0]


def task_of(cases: int):
    class Plan:
        labels = LABELS

    class Task:
        plan = Plan
        held = HeldOutCases(
            tuple(map(str, range(cases))), np.array([str(n % 4) for n in range(cases)]), tuple(map(str, range(cases)))
        )

    return Task


def planted(folder, count: int, islands: bool) -> list[ScoreJob]:
    """An organ with noise at its edge and a lesion in two parts; with islands of the organ far away, in most cases."""
    jobs = []
    for seed in range(count):
        rng = np.random.default_rng(seed)
        reference = np.zeros((16, 18, 18))
        reference[4:10, 4:11, 4:10] = 1
        reference[12:14, 3:5, 3:5] = reference[12:15, 12:14, 12:15] = 2  # never one component
        segmentation = reference.copy()
        edge = ndimage.binary_dilation(reference == 1) & (reference == 0)
        segmentation[edge & (rng.random(edge.shape) < 0.3)] = 1
        if islands and seed % 4:
            z, x = rng.integers(0, 3, 2)
            segmentation[z, 15:17, x : x + 4] = 1
        jobs.append(job(folder, f"c{seed}", reference, segmentation))
    return jobs


@pytest.mark.thorough
def test_planted_islands_are_removed_and_a_null_is_refused(tmp_path):
    rules, choices = choose_components(planted(tmp_path / "islands", 20, True), task_of(20), 0)
    assert set(rules) == {"organ"}
    assert rules["organ"].min_volume > 0 or rules["organ"].keep_largest
    accepted = [choice for choice in choices if choice.accepted]
    assert [choice.label for choice in accepted] == ["organ"]
    assert accepted[0].low > 0
    assert len(choices) == 4  # islands and holes of both labels: all are listed
    rules, choices = choose_components(planted(tmp_path / "null", 20, False), task_of(20), 0)
    assert rules == {}
    assert not any(choice.accepted for choice in choices)


def test_candidates_begin_with_the_mildest(tmp_path):
    cases = [components_of_case(one) for one in planted(tmp_path, 4, True)]
    found = candidates(cases, "organ")
    assert found[-1] == ComponentRule(keep_largest=True)
    volumes = [rule.min_volume for rule in found[:-1]]
    assert volumes == sorted(volumes)
    assert candidates(cases[:1], "organ") == []  # one component: nothing to remove


def test_rules_of_one_label_are_combined():
    rule = combined([ComponentRule(min_volume=3.0), ComponentRule(fill_holes=True)])
    assert rule == ComponentRule(min_volume=3.0, fill_holes=True)
    assert str(rule) == "no component below 3 mm³, holes filled"
