"""How curves ended, in words: a sound fold, a planted overfit, and one that cannot be judged."""

import numpy as np

from autoseg.evaluation.overfitting import judge_curves
from autoseg.training.history import EpochRow


def rows(validation, training) -> list[EpochRow]:
    count = len(validation)
    return [
        EpochRow(
            epoch=n + 1, step=10 * n + 10, seconds=1.0, loss=-float(t), training_dice=(float(t),), learning_rate=0.01,
            validation_loss=-float(v), pseudo_dice=(float(v),), skipped=0, progress=(n + 1) / count,
        )
        for n, (v, t) in enumerate(zip(validation, training, strict=True))
    ]  # fmt: skip


def test_a_sound_fold():
    training = 0.9 * (1 - np.exp(-np.arange(40) / 6))
    found = judge_curves(2, rows(training - 0.03, training), ["organ"])
    assert (found.verdict, found.fold, found.epochs) == ("sound", 2, 40)
    assert abs(found.gap - 0.03) < 1e-3
    assert found.words.startswith("fold 2 does not overfit: the Dice of training patches is 0.030 above")
    assert found.remedy == ""


def test_a_planted_overfit_and_when_validation_turned():
    """Validation rises to epoch 20 and then loses 0.01 per epoch, while training patches become perfect."""
    epochs = np.arange(40)
    validation = np.where(epochs < 20, 0.8 * (1 - np.exp(-epochs / 4)), 0.8 - 0.01 * (epochs - 20))
    training = 1 - np.exp(-epochs / 5)
    found = judge_curves(0, rows(validation, training), ["organ"])
    assert found.verdict == "overfit"
    assert 19 <= found.best_epoch <= 22
    assert 0.15 < found.lost < 0.2
    assert "validation turned around epoch" in found.words
    assert found.words.startswith("fold 0 overfits: ")
    assert "more patients help most" in found.remedy


def test_a_fold_without_curves():
    assert judge_curves(0, [], ["organ"]).verdict == "unknown"
    assert "there is no history" in judge_curves(0, [], ["organ"]).words
    assert judge_curves(0, rows([0.1, 0.2], [0.1, 0.2]), ["organ"]).verdict == "unknown"
