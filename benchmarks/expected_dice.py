"""Expected Dice on test cases that no fold has seen, as they are and damaged: how often the interval holds, its width.

    autoseg evaluate --expected-dice -w WORKSPACE
    python benchmarks/expected_dice.py -w WORKSPACE [--score soft_dice]

The test cases are those of the dataset, with labels. Each fold of the record segments them by itself, over its flips.
Damaged in three ways, by turns: noise of one standard deviation of the image, a Gaussian blur of two voxels, and upside
down along the second axis. No interval is promised to hold for those: what counts is that the expected Dice falls.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy import ndimage

from autoseg.datasets.dataset import Dataset, LoadedCase, load_case
from autoseg.evaluation.expected_dice import ExpectedDiceRecord, calibrate
from autoseg.evaluation.metrics import confusion_matrix, dice, overlap_counts
from autoseg.inference.agreement import SCORES, AgreementCounter
from autoseg.inference.ensemble import Ensemble, split
from autoseg.inference.member import EnsembleMember, Preparations, decide
from autoseg.messages import ruled
from autoseg.models.model import Model, open_model
from autoseg.nn.devices import choose_device
from autoseg.records import load
from autoseg.workspace import Workspace

DAMAGE = ("noise", "blur", "upside down")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-w", "--workspace", type=Path, default=Path("autoseg_workspace"))
    parser.add_argument("--score", choices=SCORES, help="judge by this score instead of the one that was chosen")
    options = parser.parse_args()
    workspace = Workspace(options.workspace)
    (path,) = workspace.root.glob("models/*/expected_dice.json")
    record = load(ExpectedDiceRecord, path)
    if options.score:
        only = [replace(c, scores={options.score: c.scores[options.score]}) for c in record.cases]
        record = calibrate(
            record.configuration, record.network, only, options=record.options, weights=record.weights
        )  # fmt: skip
    print(f"by {record.score}, {len(record.cases)} held-out cases")
    rows: dict[tuple[str, str], list[tuple[float, float, float, float]]] = {}
    for fold in record.weights:
        model = open_model(
            workspace, record.configuration, record.network, folds=[int(fold)], device=choose_device("cpu")
        )  # fmt: skip
        for images, label, numbers in measured(model, load(Dataset, workspace.dataset), record):
            rows.setdefault((images, label), []).append(numbers)
    table = [["images", "label", "cases", "Dice", "expected", "width", "error", "holds"]]
    for (images, label), numbers in rows.items():
        true, expected, low, high = np.array(numbers).T
        held = ((low <= true) & (true <= high)).mean()
        means = (true.mean(), expected.mean(), (high - low).mean(), np.abs(true - expected).mean())
        table.append([images, label, str(len(numbers)), *(f"{value:.3f}" for value in means), f"{held:.1%}"])
    print(ruled(table))


def measured(model: Model, dataset: Dataset, record: ExpectedDiceRecord):
    """Yield (kind of image, label, (Dice, expected, low, high)) of every test case, as it is and damaged."""
    ensemble = split([model], by="flips")
    shared = Preparations()
    members = [EnsembleMember(part, ensemble.options, shared) for part in ensemble.models]
    plan = model.plan
    for number, case in enumerate(case for case in dataset.test_cases if case.label):
        loaded = load_case(
            case, plan.labels, channels=plan.channels, orientation=plan.orientation, axis_order=plan.axis_order
        )  # fmt: skip
        for images, one in (("as they are", loaded), (DAMAGE[number % 3], damaged(loaded, number))):
            scores, found = looked_at(one, ensemble, members)
            shared.forget()
            labels, mean = record.expected(scores)
            if mean is not None:
                yield images, "mean", (float(np.nanmean(list(found.values()))), mean.dice, mean.low, mean.high)
            for name, expected in labels.items():
                yield images, name, (found[name], expected.dice, expected.low, expected.high)


def looked_at(loaded: LoadedCase, ensemble: Ensemble, members: list[EnsembleMember]):
    """Agreement of the flips on an image, and the Dice of what they decide."""
    plan = ensemble.models[0].plan
    counter = AgreementCounter(plan.heads, ensemble.fold_of)
    decided = decide(members, loaded, consumers=[counter])
    assert loaded.target is not None
    confusion = confusion_matrix(
        loaded.target, decided, plan.labels.num_labels + 1, ignore_index=plan.labels.ignore_index
    )  # fmt: skip
    scored = {name: dice(overlap_counts(confusion, own)) for name, own in plan.labels.scored.items()}
    return counter.result(), scored


def damaged(loaded: LoadedCase, number: int) -> LoadedCase:
    """The case, damaged in one of three ways."""
    image, target = loaded.image, loaded.target
    assert target is not None
    kind = DAMAGE[number % 3]
    if kind == "noise":
        image = image + np.random.default_rng(number).normal(0, image.std(), image.shape)
    elif kind == "blur":
        image = ndimage.gaussian_filter(image, (0, 2.0, 2.0, 2.0))
    else:
        image, target = image[:, :, ::-1], target[:, ::-1]
    return replace(loaded, image=np.ascontiguousarray(image, dtype=np.float32), target=np.ascontiguousarray(target))


if __name__ == "__main__":
    main()
