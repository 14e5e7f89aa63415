"""What clicks bring: a network trained with prompts beside other ways to correct a mask, on the same held-out cases.

    python benchmarks/clicks.py WORKSPACE --out FOLDER [--scratch WORKSPACE2] [--fold 0] [--cases 32] [--most 20]

WORKSPACE has a trained fold of the recommended configuration and one that continues it with prompts
(`autoseg train -f 0 --time-budget 5m`, then `autoseg train --prompts -f 0 --time-budget 10m`). Every way begins with
the automatic mask and answers the same simulated person (`evaluation.click_curves`): the deepest voxel of the largest
error.

    prompts      the network with prompts; at 0 clicks, the automatic segmentation by that network
    after        the same, but the mask that is corrected is that of the network it continues
    ball         the ball that stands for a click is painted in the label that was said, and nothing else changes
    graph cut    the mask corrected by a minimum cut, as in GrabCut: intensities of the labels (histograms of the
                 automatic mask), edges by contrast, clicks as seeds; the label of the click against the
                 rest, in a window of WINDOW mm about it
    scratch      a network with prompts that was trained from nothing for as long as both others together (WORKSPACE2)

Also: what labelling all cases would take (`minutes`), by the assumptions that are stated there.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy import sparse
from scipy.sparse import csgraph

from autoseg.commands.speeds import held_out_by_fold
from autoseg.datasets.dataset import LoadedCase, load_case
from autoseg.evaluation.click_curves import TARGETS, ClickedCase, ClickTable, correct, describe
from autoseg.evaluation.paired import interval_of_difference
from autoseg.imaging.prompts import Click, Prompt, draw
from autoseg.inference.interactive import Refinement
from autoseg.models.model import Model, open_model
from autoseg.nn.devices import choose_device
from autoseg.workspace import Workspace

WINDOW = 15.0  # mm on either side of a click, in which a graph is cut
BINS = 32  # of a histogram of intensities
SMOOTH = 8.0  # weight of an edge between voxels of equal intensity, against the logarithm of a ratio of likelihoods
SURE = 10**6  # weight of a seed
SCALE = 100  # weights are whole numbers

# What a person does, in seconds; stated in the table
SECONDS_OF_A_CLICK = 4.0  # look, aim, click, look at the answer
SECONDS_OF_A_SLICE = 30.0  # to outline the labels of a slice by hand
SECONDS_OF_A_REVIEW = 1.0  # to look at a slice that is right
SHARE_OF_ERRORS = 0.01  # of a slice's labelled voxels: wrong by more, it is outlined anew

Way = Callable[[LoadedCase, np.ndarray], Callable[[Prompt], np.ndarray]]


def paint(model: Model, loaded: LoadedCase, mask: np.ndarray) -> Callable[[Prompt], np.ndarray]:
    """A click paints its ball."""
    mask, radius = mask.copy(), model.configuration.prompts.radius_mm

    def answer(prompt: Prompt) -> np.ndarray:
        ball = draw(
            [prompt], mask.shape, loaded.geometry.spacing, radius_mm=radius, num_labels=model.plan.labels.num_labels,
            lower=(0, 0, 0),
        )[prompt.index]  # fmt: skip
        mask[ball == 1] = prompt.index
        return mask

    return answer


def cut(model: Model, loaded: LoadedCase, mask: np.ndarray) -> Callable[[Prompt], np.ndarray]:
    """A click is a seed of a minimum cut in a window about it."""
    mask, automatic = mask.copy(), mask.copy()
    image = loaded.to_stored(loaded.image)[0].astype(np.float64)
    low, high = np.percentile(image, [0.5, 99.5])
    bins = np.clip(((image - low) / max(high - low, 1e-9) * BINS).astype(int), 0, BINS - 1)
    sigma = max(np.abs(np.diff(image, axis=-1)).mean(), 1e-9)
    radius, spacing = model.configuration.prompts.radius_mm, loaded.geometry.spacing
    clicks: list[Click] = []

    def answer(prompt: Prompt) -> np.ndarray:
        clicks.append(prompt)
        box = tuple(
            slice(max(0, i - int(WINDOW / step)), i + int(WINDOW / step) + 1)
            for i, step in zip(prompt.at, spacing, strict=True)
        )
        said = prompt.index or int(mask[prompt.at])  # background was clicked: the label that is wrong there
        inside = np.bincount(bins[automatic == said], minlength=BINS) + 1.0
        outside = np.bincount(bins[automatic != said], minlength=BINS) + 1.0
        ratio = np.log(inside / inside.sum()) - np.log(outside / outside.sum())
        unary = ratio[bins[box]] + np.where(mask[box] == said, 1.0, -1.0)
        drawn = draw(
            clicks, mask.shape, spacing, radius_mm=radius, num_labels=model.plan.labels.num_labels, lower=(0, 0, 0)
        )[(slice(None), *box)]
        seeds = np.where(drawn[said] == 1, 1, np.where(np.delete(drawn, said, axis=0).max(axis=0) == 1, -1, 0))
        found = minimum_cut(image[box], unary, seeds, sigma)
        part = mask[box]
        part[(part == said) & ~found] = 0
        part[found] = said
        part[(seeds == -1) & (part == said)] = 0
        if prompt.index:
            mask[prompt.at] = prompt.index
        return mask

    return answer


def minimum_cut(image: np.ndarray, unary: np.ndarray, seeds: np.ndarray, sigma: float) -> np.ndarray:
    """Voxels on the side of the object: bool (Z, Y, X). Boykov and Jolly, ICCV 2001, by scipy's maximum flow."""
    numbers = np.arange(image.size).reshape(image.shape)
    source, sink = image.size, image.size + 1
    starts, ends, weights = [], [], []
    for axis in range(image.ndim):
        low, high = np.split(np.arange(image.shape[axis]), [-1])[0], np.arange(1, image.shape[axis])
        a, b = numbers.take(low, axis).ravel(), numbers.take(high, axis).ravel()
        contrast = image.ravel()[a] - image.ravel()[b]
        weight = SMOOTH * np.exp(-(contrast**2) / (2 * sigma**2))
        starts += [a, b]
        ends += [b, a]
        weights += [weight, weight]
    flat, given = unary.ravel(), seeds.ravel()
    to_object = np.where(given == 1, SURE, np.where(given == -1, 0, np.maximum(flat, 0)))
    to_rest = np.where(given == -1, SURE, np.where(given == 1, 0, np.maximum(-flat, 0)))
    starts += [np.full(image.size, source), numbers.ravel()]
    ends += [numbers.ravel(), np.full(image.size, sink)]
    weights += [to_object, to_rest]
    whole = np.round(SCALE * np.concatenate(weights)).astype(np.int32)
    graph = sparse.csr_matrix(
        (whole, (np.concatenate(starts), np.concatenate(ends))), shape=(image.size + 2,) * 2, dtype=np.int32
    )
    residual = graph - csgraph.maximum_flow(graph, source, sink).flow
    residual.data[residual.data < 0] = 0
    residual.eliminate_zeros()
    reached = csgraph.breadth_first_order(residual, source, return_predecessors=False)
    found = np.zeros(image.size + 2, bool)
    found[reached] = True
    return found[: image.size].reshape(image.shape)


def measure(ways: dict[str, Way], cases, plan, most: int, masks) -> dict[str, list[ClickedCase]]:
    """Every way on every case."""
    labels, found = plan.labels, {name: [] for name in ways}
    for case in cases:
        loaded = load_case(
            case, labels, channels=plan.channels, orientation=plan.orientation, axis_order=plan.axis_order
        )
        reference = loaded.to_stored(loaded.target)
        for name, way in ways.items():
            mask = masks(name, loaded)
            dice, seconds = correct(
                mask, reference, loaded.geometry.spacing, way(loaded, mask), labels.scored,
                ignored=labels.ignore_index, most=most,
            )  # fmt: skip
            found[name].append(ClickedCase(case.id, case.patient, tuple(dice), tuple(seconds)))
    return found


def minutes(cases: list[ClickedCase], loaded: list[tuple[np.ndarray, np.ndarray]], target: float, most: int) -> dict:
    """Minutes to label all cases: outlined from nothing, outlined where the automatic mask is wrong, by clicks.

    By clicks: until the target, then outlined where still wrong, like the automatic mask, if it was not reached.
    """
    nothing = automatic = clicked = 0.0
    for case, (mask, reference) in zip(cases, loaded, strict=True):
        labelled = [(r > 0).any() for r in reference]
        nothing += SECONDS_OF_A_SLICE * sum(labelled)
        wrong = sum(
            int((m != r).sum()) > SHARE_OF_ERRORS * max(1, int((r > 0).sum()))
            for m, r in zip(mask, reference, strict=True)
        )
        by_hand = SECONDS_OF_A_REVIEW * len(reference) + SECONDS_OF_A_SLICE * wrong
        automatic += by_hand
        clicks = case.clicks_to(target, most)
        reached = max(case.dice) >= target
        clicked += SECONDS_OF_A_REVIEW * len(reference) + SECONDS_OF_A_CLICK * clicks + (0 if reached else by_hand)
    return {name: round(value / 60, 1) for name, value in
            (("nothing", nothing), ("automatic", automatic), (f"clicks to {target}", clicked))}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workspace", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scratch", type=Path, default=None)
    parser.add_argument("--fold", type=int, default=0)
    parser.add_argument("--cases", type=int, default=32)
    parser.add_argument("--most", type=int, default=20)
    parser.add_argument("--only", nargs="+", default=None, help="names of the ways to measure")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)

    workspace, device = Workspace(options.workspace), choose_device("cpu")
    name, network, held_out = held_out_by_fold(workspace, None, None)
    cases = held_out[options.fold][: options.cases]
    base = open_model(workspace, name, network, folds=[options.fold], device=device)
    prompted = open_model(workspace, f"{name}_prompts", network, folds=[options.fold], device=device)

    def by(model: Model, mask_of_base: bool) -> Way:
        def way(loaded: LoadedCase, mask: np.ndarray) -> Callable[[Prompt], np.ndarray]:
            refinement = Refinement(model, loaded, mask=mask if mask_of_base else None)

            def answer(prompt: Prompt) -> np.ndarray:
                refinement.add(prompt)
                return refinement.labels

            return answer

        return way

    ways: dict[str, Way] = {
        "prompts": by(prompted, False),
        "after": by(prompted, True),
        "ball": lambda loaded, mask: paint(prompted, loaded, mask),
        "graph cut": lambda loaded, mask: cut(prompted, loaded, mask),
    }
    scratch = None
    if options.scratch:
        scratch = open_model(
            Workspace(options.scratch), f"{name}_prompts", network, folds=[options.fold], device=device
        )
        ways["scratch"] = by(scratch, False)
    if options.only:
        ways = {key: way for key, way in ways.items() if key in options.only}

    from autoseg.inference.member import EnsembleMember, decide

    members = {"prompts": EnsembleMember(prompted), "base": EnsembleMember(base)}
    if scratch:
        members["scratch"] = EnsembleMember(scratch)
    pairs: list[tuple[np.ndarray, np.ndarray]] = []

    def masks(way: str, loaded: LoadedCase) -> np.ndarray:
        member = members[way if way in ("prompts", "scratch") else "base"]
        mask = loaded.to_stored(decide([member], loaded)).copy()
        if way == next(iter(ways)):
            pairs.append((mask.copy(), loaded.to_stored(loaded.target).copy()))
        return mask

    began = time.perf_counter()
    found = measure(ways, cases, base.plan, options.most, masks)
    tables = {
        key: ClickTable(1, f"{name}_prompts", network, {}, options.most, tuple(clicked))
        for key, clicked in found.items()
    }
    for key, table in tables.items():
        print(f"\n{key}\n{describe(table)}")
        (options.out / f"{key.replace(' ', '_')}.json").write_text(
            json.dumps([[c.case, c.patient, c.dice, c.seconds] for c in table.cases])
        )
    patients = [case.patient for case in cases]
    if {"prompts", "after"} <= set(tables):
        lost = [a.after(0) - b.after(0) for a, b in zip(tables["prompts"].cases, tables["after"].cases, strict=True)]
        print(f"\n0 clicks, prompts minus base: {np.mean(lost):+.4f}, {interval_of_difference(lost, patients)}")
    for key in tables:
        for clicks in (1, 3, 5, 10):
            if key != "prompts" and "prompts" in tables:
                more = [
                    a.after(clicks) - b.after(clicks)
                    for a, b in zip(tables["prompts"].cases, tables[key].cases, strict=True)
                ]
                low, high = interval_of_difference(more, patients)
                print(f"{clicks:3d} clicks, prompts minus {key}: {np.mean(more):+.4f} ({low:+.4f} to {high:+.4f})")
    for target in TARGETS:
        print("minutes of a person:", minutes(list(tables[next(iter(tables))].cases), pairs, target, options.most))
    print(f"{time.perf_counter() - began:.0f} s in all")


if __name__ == "__main__":
    main()
